"""What stands in front of the routes: who may come in, how much a client may send, and whether requests are taken at all.

Knows headers and bytes; knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import uuid
from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nano_qwen3_serving.exceptions import shown
from nano_qwen3_serving.server.errors import ApiError, api_error, draining_error
from nano_qwen3_serving.server.metrics import HttpCounts
from nano_qwen3_serving.server.serving import Serving

logger = logging.getLogger(__name__)

OPEN_PATHS = ("/health", "/")
"""Paths that need no key: a load balancer has none, and neither has a person who opens the page that asks for it."""
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
DISCARDED_BYTES, DISCARDING_SECONDS = 64 << 20, 5.0  # of a body that is too large, so that its sender reads why
CLOSE = {"Connection": "close"}  # what is left of a body would be taken for the next request


class Numbered:
    """Names each request, counts it, and says its name in the answer: the client's `X-Request-Id`, or a new one.

    It also answers requests in which an exception was not caught.
    """

    def __init__(self, app: ASGIApp, counts: HttpCounts) -> None:
        self._app, self._counts = app, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        header = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = header if REQUEST_ID.fullmatch(header) else uuid.uuid4().hex.encode()
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        begun = False

        async def send_named(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id)]
                self._counts.count(scope, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:
            logger.exception("%s %s failed", scope["method"], scope["path"])
            if begun:
                raise  # whoever runs us closes the connection
            await api_error(error).response()(scope, receive, send_named)


class KnownHosts:
    """Refuses requests for a host of another name.

    A page on the web can give its own name the address 127.0.0.1 ("DNS rebinding"). Browsers then take a server
    here for a part of that page, and let it read the answers. The Host header still has the page's name. Programs that
    come to a loopback address by one of its own names never notice this check.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self._app, self._hosts = app, {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if host_name(host) not in self._hosts:
                refusal = ApiError(403, f"this server answers to {', '.join(sorted(self._hosts))} and not to {shown(host)}; "
                                   "start it with --allowed-hosts to add a name", "unknown_host")
                return await refusal.response()(scope, receive, send)
        await self._app(scope, receive, send)


def host_name(header: str) -> str:
    """The name in a Host header, without a port and an IPv6 address's brackets."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]*))(?::\d*)?", header.strip())
    return (match[1] or match[2] or "").lower() if match else ""


class KeyRequired:
    """Admits clients that send the key, `Authorization: Bearer KEY`. The refusal does not say how wrong a key is."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app, self._wanted = app, b"bearer " + api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            return await self._app(scope, receive, send)
        kind, _, key = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        if not hmac.compare_digest(kind.lower() + b" " + key.strip(), self._wanted):
            refusal = ApiError(401, "this server needs a key: send the header Authorization: Bearer KEY", "invalid_api_key",
                               headers={"WWW-Authenticate": "Bearer"})
            return await refusal.response()(scope, receive, send)
        await self._app(scope, receive, send)


class Admission:
    """Counts the requests in progress, and refuses new ones while the server drains.

    GET requests, which only ask about the server, are answered to the end.
    """

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self._app, self._serving = app, serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        if self._serving.draining:
            return await draining_error().response()(scope, receive, send)
        with self._serving.working():
            await self._app(scope, receive, send)


class BoundedBody:
    """Refuses a body of more than `limit` bytes: by its Content-Length, or when as much has come. Nothing holds more of it.

    A body that stops coming for `patience` seconds is refused, too.
    """

    def __init__(self, app: ASGIApp, limit: int, patience: float) -> None:
        self._app, self._limit, self._patience = app, limit, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body = BodyReader(receive, self._limit, self._patience, int(dict(scope["headers"]).get(b"content-length", b"0")))

        async def send_after_body(message: Message) -> None:
            if body.refused and message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await body.discard()
                message = {"type": "http.response.body"}
            await send(message)

        await self._app(scope, body.receive, send_after_body)


class BodyReader:
    """The body of one request, on its way to the app.

    Args:
        receive: where it comes from.
        limit: in bytes.
        patience: seconds between two pieces.
        declared: the length that the client said, in bytes; 0 if it did not say.

    Attributes:
        refused: whether it was too large.
    """

    def __init__(self, receive: Receive, limit: int, patience: float, declared: int) -> None:
        self._receive, self._limit, self._patience, self._declared = receive, limit, patience, declared
        self._so_far, self._complete = 0, False
        self.refused = False

    async def receive(self) -> Message:
        """The next piece of the body; after the last one, any later message. Raises `HTTPException` if the body is too large."""
        if self._complete:
            return await self._receive()  # a client that waits for its answer may wait as long as it likes
        self._check(self._declared)
        try:
            async with asyncio.timeout(self._patience):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"no more of the body came for {self._patience:g} s", CLOSE) from None
        self._so_far += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        self._check(self._so_far)
        return message

    def _check(self, size: int) -> None:
        if size > self._limit:
            self.refused = True
            raise HTTPException(
                413, f"the body has more than {self._limit} bytes; send less, or start the server with a larger "
                "--max-body-bytes", CLOSE)

    async def discard(self) -> None:
        """Reads for a while what still comes and keeps nothing: a client that writes does not read its answer."""
        discarded = 0
        try:
            async with asyncio.timeout(min(self._patience, DISCARDING_SECONDS)):
                while not self._complete and discarded < DISCARDED_BYTES:
                    message = await self._receive()
                    discarded += len(message.get("body", b""))
                    self._complete = not message.get("more_body", False)
        except TimeoutError:
            pass  # it stopped writing without saying that this was all


class Guard:
    """All of it, in front of an app.

    Args:
        app: the routes.
        serving: what they share.
        counts: told of each answer.
        api_key: what clients must send; None lets everybody in.
        hosts: names by which clients may call the server; None is any.
    """

    def __init__(
        self, app: ASGIApp, serving: Serving, counts: HttpCounts, api_key: str | None, hosts: Sequence[str] | None,
    ) -> None:
        app = Admission(BoundedBody(app, serving.limits.body_bytes, serving.limits.patience), serving)
        if api_key is not None:
            app = KeyRequired(app, api_key)
        if hosts is not None:
            app = KnownHosts(app, hosts)
        self._app = Numbered(app, counts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        await self._app(scope, receive, send)
