"""The playground beside an engine: `GET /` is the page, `GET /playground/steps` what it shows.

Knows events; what happened is `LiveSteps`' to say, and how it looks the page's.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from nano_qwen3_serving.server.live import Event
from nano_qwen3_serving.server.playground.page import engine_header, playground_page
from nano_qwen3_serving.server.serving import Serving
from nano_qwen3_serving.server.streams import EventStream

FRAMED_BY_NOBODY = {"Content-Security-Policy": "frame-ancestors 'none'"}
"""A page that shows this one inside itself could have its visitors press buttons that they do not see."""


def playground_routes(serving: Serving) -> APIRouter:
    """Both routes."""
    routes = APIRouter(include_in_schema=False)
    page = playground_page()
    header = engine_header(serving.engine.engine.config, serving.names[0])

    @routes.get("/")
    async def playground() -> HTMLResponse:
        """A page that chats with this server and shows its engine at work."""
        return HTMLResponse(page, headers=FRAMED_BY_NOBODY)

    @routes.get("/playground/steps")
    async def steps() -> EventStream:
        """What the engine is (`event: engine`), then each step (`event: step`)."""
        follows = serving.live.follow()
        return EventStream(named_events(header, follows), watching(serving, follows), serving.limits.patience)

    return routes


@asynccontextmanager
async def watching(serving: Serving, follows: AsyncGenerator[Event, None]) -> AsyncIterator[None]:
    """While somebody follows them, the steps are noted: a record lists the whole pool, and nobody should pay for it unseen."""
    observers = serving.engine.engine.observers
    serving.watchers += 1
    if serving.watchers == 1:
        serving.live.forget()  # since then steps went by unseen
        observers.add(serving.live)
    try:
        async with aclosing(follows):
            yield
    finally:
        serving.watchers -= 1
        if not serving.watchers:
            observers.remove(serving.live)


async def named_events(header: dict[str, Any], follows: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    """The header and what follows, as server-sent events with names."""
    yield named_event("engine", header)
    async with aclosing(follows):
        async for name, data in follows:
            yield named_event(name, data)


def named_event(name: str, data: dict[str, Any]) -> bytes:
    """One of them."""
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
