"""The engine's log, silent for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Nothing is logged by the engine: where parts fail on purpose, or what they say is not to be repeated."""
    logger = logging.getLogger("nano_qwen3_serving")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
