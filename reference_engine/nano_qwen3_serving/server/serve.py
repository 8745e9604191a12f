"""Runs an app until it is told to stop: first it answers what it has begun.

Knows uvicorn, sockets and signals; knows no route.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
import socket
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from nano_qwen3_serving.engine.arg_utils import AsyncEngineArgs
from nano_qwen3_serving.engine.async_llm_engine import AsyncLLMEngine
from nano_qwen3_serving.exceptions import EngineError
from nano_qwen3_serving.server.app import create_app
from nano_qwen3_serving.server.errors import SERVER_ERROR, ApiError
from nano_qwen3_serving.server.serving import Limits, Serving

logger = logging.getLogger(__name__)

CLOSING_SECONDS = 3  # that connections get to send what is left in their buffers
LAST_WORDS_SECONDS = 0.2  # in which streams that are cut off say why


class Http(H11Protocol):
    """Answers what is no HTTP, and connections that are too many, in the shape of every other error."""

    max_connections: int

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's is as narrow
        """A client connected; one too many is told to come again."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._close_with(ApiError(
                503, f"{self.max_connections} connections are open, and the server takes no more; try again later",
                "too_many_connections", kind=SERVER_ERROR, headers={"Retry-After": "1"}))

    def send_400_response(self, msg: str) -> None:
        """Sends it, and closes the connection: nobody knows where the next request would begin."""
        self._close_with(ApiError(400, "this is no HTTP/1.1 request, or its headers are too large", "invalid_http"))

    def _close_with(self, error: ApiError) -> None:
        body = json.dumps(error.body()).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        answer: list[Any] = [
            h11.Response(status_code=error.status, headers=list((headers | error.headers).items())),
            h11.Data(body), h11.EndOfMessage()]
        for part in answer:
            self.transport.write(self.conn.send(part) or b"")
        self.transport.close()


def configured(app: FastAPI, max_connections: int = Limits.connections, **settings: Any) -> uvicorn.Config:
    """How uvicorn is run; `settings` are its own."""
    return uvicorn.Config(app, **{
        "http": type("BoundedHttp", (Http,), {"max_connections": max_connections}), "ws": "none", "lifespan": "on",
        "log_level": "warning", "server_header": False, "timeout_graceful_shutdown": CLOSING_SECONDS, **settings})


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket of that address; nobody can connect before it listens.

    Raises:
        EngineError: the address is taken, or is none of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        raise EngineError(f"cannot serve on {host}:{port} ({error}); choose others with --host and --port") from error
    return bound


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class DrainingServer(uvicorn.Server):
    """Stops in two steps. The first SIGTERM or SIGINT refuses new requests and lets those that run finish; a second one,
    or the end of `drain_seconds`, ends them with an error. Then the server is gone.

    Args:
        config: uvicorn's.
        serving: the app's.
        drain_seconds: how long requests may take to finish.
        on_start: called when connections are accepted.

    Attributes:
        is_clean: whether every request that was accepted was answered.
    """

    def __init__(self, config: uvicorn.Config, serving: Serving, drain_seconds: float, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._serving, self._drain_seconds, self._on_start = serving, drain_seconds, on_start
        self._stops: set[asyncio.Task[None]] = set()
        self.is_clean = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came, between any two instructions of the event loop's thread."""
        self._loop.call_soon_threadsafe(self._stop, signal.Signals(sig).name)

    def _stop(self, why: str) -> None:
        again = self._serving.draining
        logger.warning("%s: stopping at once", why) if again else logger.warning(
            "%s: no new requests; %d are in flight and have %g s (again: stop at once)",
            why, self._serving.in_flight, self._drain_seconds)
        self._serving.draining = True
        self._stops.add(self._loop.create_task(self._cut_off() if again else self._drain()))

    async def _drain(self) -> None:
        if await self._serving.drain(self._drain_seconds):
            self._serving.live.close()  # else the playground's streams would never end
            self.should_exit = True
        else:
            await self._cut_off()

    async def _cut_off(self) -> None:
        """Ends the engine: requests in flight get an error that says so."""
        self.is_clean = self.is_clean and not self._serving.in_flight
        ending = self._loop.run_in_executor(None, self._serving.engine.shutdown)
        await asyncio.wait({ending}, timeout=LAST_WORDS_SECONDS)
        await asyncio.sleep(LAST_WORDS_SECONDS)
        self.should_exit = self.force_exit = True


def run_server(
    engine_args: Mapping[str, Any], *, host: str, port: int, log_level: str, drain_seconds: float, body_bytes: int,
    request_seconds: float, connections: int, announce: Callable[[str, str, bool], None], api_key: str | None, **app_options: Any,
) -> bool:
    """Builds an engine and serves it until a signal comes; whether every request that was accepted was answered.

    Args:
        engine_args: of `AsyncEngineArgs`.
        announce: told the URL, the model's name, and whether a key is needed, when connections are accepted.
        app_options: of `create_app`.

    Raises:
        EngineError: an argument is not acceptable, the address is taken, or the checkpoint cannot be used.
    """
    limits = Limits(body_bytes, request_seconds, connections=connections)
    args = AsyncEngineArgs(**engine_args)
    with bound_socket(host, port) as listener:
        engine = AsyncLLMEngine.from_engine_args(args)
        gc.collect()
        gc.freeze()  # a full collection need not look at what was loaded and stays: that would take tens of milliseconds
        try:
            app = create_app(engine, api_key=api_key, limits=limits, **app_options)
            serving: Serving = app.state.serving
            server = DrainingServer(
                configured(app, connections, log_level=log_level), serving, drain_seconds,
                lambda: announce(url_of(listener), serving.names[0], api_key is not None))
            server.run(sockets=[listener])
        finally:
            engine.shutdown()
    return server.is_clean
