"""What the routes of one app share. It is part of the app's state; nothing is global.

Knows the engine, its names and the server's bounds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nano_qwen3_serving.arguments import check_float, check_int
from nano_qwen3_serving.engine.async_llm_engine import AsyncLLMEngine
from nano_qwen3_serving.exceptions import shown
from nano_qwen3_serving.server.errors import ApiError, draining_error
from nano_qwen3_serving.server.live import LiveSteps


@dataclass(frozen=True)
class Limits:
    """Bounds of what clients can take.

    Attributes:
        body_bytes: of a request's body.
        request_seconds: until a request is ended, waiting included; None is no bound.
        patience: seconds a client may read nothing of its stream, or send nothing of its body.
        connections: open at once, of all clients.
    """

    body_bytes: int = 4 << 20
    request_seconds: float | None = 600.0
    patience: float = 60.0
    connections: int = 2048

    def __post_init__(self) -> None:
        check_int("body_bytes", self.body_bytes, at_least=1)
        check_int("connections", self.connections, at_least=1)
        for name in ("request_seconds", "patience"):
            if getattr(self, name) is not None:
                check_float(name, getattr(self, name), low=0, high=1e9, open_low=True)


@dataclass
class Serving:
    """One engine behind one app.

    Attributes:
        engine: which the app does not own.
        names: under which clients know the model; the first is the one that answers carry.
        limits: of each request.
        live: the engine's last steps, for readers of the playground; recorded while there are any.
        watchers: how many readers there are.
        created: when the app was made, in seconds since the epoch.
        draining: whether new requests are refused.
        in_flight: requests that were accepted and are not answered completely.
    """

    engine: AsyncLLMEngine
    names: list[str]
    limits: Limits
    live: LiveSteps = field(default_factory=LiveSteps)
    watchers: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    in_flight: int = 0
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    def check_model(self, name: str | None) -> None:
        """Refuses a model that is not served; None is the one that is."""
        if name is not None and name not in self.names:
            raise ApiError(404, f"model {shown(name)} is not served here; there is {', '.join(map(repr, self.names))}",
                           "model_not_found", "model")

    def card(self, name: str) -> dict[str, Any]:
        """The model as OpenAI describes one."""
        config = self.engine.engine.config
        return {"id": name, "object": "model", "created": self.created, "owned_by": "nano_qwen3_serving",
                "root": config.model_name, "parent": None, "max_model_len": config.scheduler.max_model_len}

    def check_ready(self) -> None:
        """Raises the error that is answered while no request is taken: the engine is dead, or the server is about to stop."""
        if self.engine.is_stopped:
            raise self.engine.dead_error
        if self.draining:
            raise draining_error()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around the answer to a request that was accepted."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    async def drain(self, seconds: float) -> bool:
        """Takes no new requests and waits for those in flight; whether all ended within `seconds`."""
        self.draining = True
        self._idle.clear()
        if not self.in_flight:
            return True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
