"""Answers in pieces, as server-sent events, and clients that leave before their answer is complete.

Knows ASGI; knows nothing of what the pieces say. A stream always ends: with `[DONE]`, or with one error.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nano_qwen3_serving.exceptions import EngineError
from nano_qwen3_serving.server.errors import ApiError, api_error

logger = logging.getLogger(__name__)

T = TypeVar("T")
Chunks = AsyncGenerator[dict[str, Any], None]
Framing = Callable[[Chunks], AsyncGenerator[bytes, None]]

DONE = b"data: [DONE]\n\n"
COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class ClientGoneError(Exception):
    """The client closed its connection; nobody reads an answer."""


class EventStream(Response):
    """Sends each event when it comes.

    If the client goes, or takes nothing for `patience` seconds, the events are closed, and so is what they come from.

    Args:
        frames: the events as they are sent.
        source: entered while events are sent, and left whatever happens, even if no event was ever asked for.
        patience: seconds a client may take to read what fills the connection's buffers.
        headers: of the answer.
    """

    media_type = "text/event-stream"

    def __init__(
        self, frames: AsyncGenerator[bytes, None], source: AbstractAsyncContextManager[Any], patience: float,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status_code, self.background = 200, None
        self._frames, self._source, self._patience = frames, source, patience
        self.init_headers({"Cache-Control": "no-cache", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it all."""
        async with self._source:
            try:
                await unless_gone(receive, self._send(send))
            except ClientGoneError:
                logger.debug("a client closed its stream")
            except TimeoutError:
                logger.info("a client read nothing for %g s; its stream was ended", self._patience)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._frames) as frames:
            async for frame in frames:
                async with asyncio.timeout(self._patience):
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def events(chunks: Chunks) -> AsyncGenerator[bytes, None]:
    """The chunks as events, and how they end: `[DONE]`, or an error in the place of what is missing."""
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                yield event(chunk)
    except Exception as error:
        if not isinstance(error, (EngineError, ApiError)):
            logger.exception("a stream failed")
        yield event(api_error(error).body())
    else:
        yield DONE


def event(data: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + COMPACT.encode(data).encode("utf-8", "replace") + b"\n\n"


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises, if the client stays as long; otherwise it is cancelled.

    To be called when the request's body was read. Cancelling it cancels the work.

    Raises:
        ClientGoneError: the client went first.
    """
    doing, watching = asyncio.ensure_future(work), asyncio.ensure_future(disconnect(receive))
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientGoneError
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


async def disconnect(receive: Receive) -> None:
    """Returns when the client closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
