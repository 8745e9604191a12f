"""The engine's log, silent for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Silences the engine's log while parts fail on purpose, or while their messages must not be shown."""
    logger = logging.getLogger("nano_qwen3_serving")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
