"""A web application behind a real socket of this machine, for as long as a test takes.

Knows uvicorn; knows nothing of engines.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI

from nano_qwen3_serving.server.serve import configured

PATIENCE = 30.0  # seconds until a test that waits for the server gives up


@contextmanager
def served(app: FastAPI, **settings: Any) -> Iterator[str]:
    """Serves `app` from a thread, on a loopback port that is free; the URL.

    Args:
        app: as `create_app` makes it.
        settings: of `uvicorn.Config`.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(configured(app, **settings))
        thread = threading.Thread(target=server.run, args=[[listener]], name="loopback-server", daemon=True)
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive(), "the server never started")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the server's thread is left"


def wait_until(condition: Any, otherwise: str) -> None:
    """Waits for a condition of another thread; fails with `otherwise` if it never holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.005)
