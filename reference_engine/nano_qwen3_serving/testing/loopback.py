"""A web application behind a real socket of this machine, for as long as a test takes, and a client that can do anything.

Knows uvicorn and HTTP; knows nothing of engines.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI

from nano_qwen3_serving.server.serve import configured

PATIENCE = 30.0  # seconds until a test that waits for the server gives up


@contextmanager
def served(app: FastAPI, send_buffer: int | None = None, **settings: Any) -> Iterator[str]:
    """Serves `app` from a thread, on a loopback port that is free; the URL. When it is over no task may be left.

    Args:
        app: as `create_app` makes it.
        send_buffer: bytes that the system takes from the server for a reader who does not read; None is its own default.
        settings: of `uvicorn.Config`.
    """
    left: set[str] = set()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = uvicorn.Server(configured(app, **settings))

        async def run() -> None:
            await server.serve([listener])
            left.update(map(repr, asyncio.all_tasks() - {asyncio.current_task()}))

        thread = threading.Thread(target=lambda: asyncio.run(run()), name="loopback-server", daemon=True)
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive(), "the server never started")
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the server's thread is left"
    assert not left, f"tasks are left: {left}"


def wait_until(condition: Callable[[], object], otherwise: str, patience: float = PATIENCE) -> None:
    """Waits for a condition of another thread or process; fails with `otherwise` if it does not hold in `patience` seconds."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.005)


class Wire:
    """A connection on which a test writes what it likes, and from which it reads as much as it likes.

    Args:
        url: of the server.
        receive_buffer: bytes that the system keeps for a reader who does not read; None is its own default.
    """

    def __init__(self, url: str, receive_buffer: int | None = None) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self.host = parts.netloc
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect((parts.hostname, parts.port))
        self._answers = self.socket.makefile("rb")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._answers.close()
        self.socket.close()

    def send(self, data: bytes, pace: int = 1 << 20) -> None:
        """Writes `data`, `pace` bytes at a time."""
        for start in range(0, len(data), pace):
            self.socket.sendall(data[start : start + pace])

    def request(self, body: bytes, headers: bytes = b"", path: bytes = b"/v1/completions") -> bytes:
        """A request that posts a body, as it is written."""
        return (b"POST " + path + b" HTTP/1.1\r\nHost: " + self.host.encode() + b"\r\nContent-Type: application/json\r\n"
                + headers + b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body)

    def post(self, path: str = "/v1/completions", **fields: Any) -> None:
        """Asks for something, and does not wait for it."""
        self.send(self.request(json.dumps(fields).encode(), path=path.encode()))

    def head(self) -> tuple[int, dict[str, str]]:
        """Of the next answer: its status and headers."""
        status = int(self._answers.readline().split()[1])
        headers = {}
        while line := self._answers.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """The next answer: status, headers, and its body, which is JSON."""
        status, headers = self.head()
        return status, headers, json.loads(self._answers.read(int(headers["content-length"])))

    def event(self) -> Any:
        """The next event of a stream whose head was read: an object, "[DONE]", or None at its end."""
        while line := self._answers.readline():
            if line.startswith(b"data: "):
                data = line[len(b"data: "):].strip()
                return "[DONE]" if data == b"[DONE]" else json.loads(data)
            if line == b"0\r\n":
                self._answers.readline()
                return None
        return None

    def events(self) -> list[Any]:
        """The events that are left."""
        return list(iter(self.event, None))

    def is_closed(self) -> bool:
        """Whether the server closed the connection, waiting for it; there must be nothing left to read."""
        return self._answers.read() == b""
