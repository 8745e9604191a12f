"""Many clients of every kind against one server: each is answered once, or goes, and nothing is left of either.

Knows HTTP and the shapes of answers; the server may be any. Everything is drawn from one seed, but for the interleaving.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

KINDS = {"whole": 30, "stream": 35, "leaves": 20, "malformed": 5, "oversized": 5, "slow": 3, "fails": 2}
"""What a request does → how many of a hundred do."""
TRIES, RETRY_AFTER = 200, 0.1  # of a client that is turned away; seconds between two
PATIENCE = 120.0  # seconds after which an answer will not come
MALFORMED = [
    (b"{", 400), (b"", 400), (b"\xff\xfe", 400), (b"[]", 400), (b'{"prompt": 7}', 400), (b'{"prompt": "a", "n": 0}', 400),
    (b'{"prompt": "a", "temprature": 1}', 400), (b'{"prompt": "a", "model": "gpt-7"}', 404), (b'{"prompt": ""}', 400)]


@dataclass
class Report:
    """How requests ended.

    Attributes:
        ends: (kind, how it ended) → how often.
        statuses: of every answer that a client read the head of.
        turned_away: how often a client was told to try again, since too many waited.
        problems: what should not have happened.
    """

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    turned_away: int = 0
    problems: list[str] = field(default_factory=list)

    def ended(self, *ways: str) -> int:
        """How many requests ended in one of these ways."""
        return sum(count for (_, way), count in self.ends.items() if way in ways)


class Connection:
    """One request's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader, self._writer, self._host = reader, writer, host

    @classmethod
    async def to(cls, url: str) -> Connection:
        """A new one."""
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port), parts.netloc)

    async def post(self, body: bytes, path: str = "/v1/completions", request_id: str | None = None) -> None:
        """Writes a request."""
        named = f"X-Request-Id: {request_id}\r\n" if request_id else ""
        self._writer.write(
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\nConnection: close\r\n{named}"
            f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await self._writer.drain()

    async def status(self) -> int:
        """Reads the head of the answer."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        return int(head.split()[1])

    async def event(self) -> Any:
        """The next event: an object, "[DONE]", or None when there are no more."""
        while line := await self._reader.readline():
            if line.startswith(b"data: "):
                return "[DONE]" if line.strip() == b"data: [DONE]" else json.loads(line[len(b"data: "):])
        return None

    async def rest(self) -> bytes:
        """All that is left to read; the server closes the connection behind it."""
        return await self._reader.read()

    def close(self, rudely: bool = False) -> None:
        """Closes the connection; rudely, as the system does for a process that was killed."""
        if rudely:
            self._writer.transport.abort()
        else:
            self._writer.close()


class Soak:
    """Clients that draw what they do.

    Args:
        url: of the server.
        seed: of all draws.
        too_long: tokens of a prompt that no request can have.
        too_large: bytes of a body that the server refuses.
        failing: a prompt over which the engine fails; None if it fails over none.
    """

    def __init__(self, url: str, seed: int, *, too_long: int, too_large: int, failing: str | None = None) -> None:
        self._url, self._random = url, random.Random(seed)
        self._too_long, self._too_large, self._failing = too_long, too_large, failing
        self.report = Report()

    async def run(self, requests: int, at_once: int) -> Report:
        """So many requests, with so many clients at once."""
        places = asyncio.Semaphore(at_once)
        kinds = self._random.choices(list(KINDS), list(KINDS.values()), k=requests)

        async def one(kind: str, seed: int) -> None:
            async with places:
                for _ in range(TRIES):
                    end = await self._one(kind, random.Random(seed))
                    if end != "turned away":
                        break
                    self.report.turned_away += 1
                    await asyncio.sleep(RETRY_AFTER)
                self.report.ends[kind, end] += 1

        await asyncio.gather(*(one(kind, self._random.getrandbits(32)) for kind in kinds))
        return self.report

    async def _one(self, kind: str, draw: random.Random) -> str:
        """One client's try: how it ended."""
        act: Callable[[Connection, random.Random], Coroutine[Any, Any, str]] = getattr(self, f"_{kind}")
        connection = None
        try:
            async with asyncio.timeout(PATIENCE):
                connection = await Connection.to(self._url)
                end = await act(connection, draw)
        except TimeoutError:
            end = "hangs"
        except (OSError, asyncio.IncompleteReadError) as error:
            end = f"broke: {error!r}"
        finally:
            if connection is not None:
                connection.close()
        if end == "hangs" or end.startswith(("broke", "wrong")):
            self.report.problems.append(f"{kind}: {end}")
        return end

    # -- what clients do; each returns how it ended --

    async def _whole(self, connection: Connection, draw: random.Random) -> str:
        await self._ask(connection, draw, stream=False)
        status = await self._status(connection)
        body = json.loads(await connection.rest())
        if status == 200:
            return "answered" if body["choices"][0]["finish_reason"] in ("stop", "length") else f"wrong: {body}"
        return refused(status, body)

    async def _stream(self, connection: Connection, draw: random.Random, pause: float = 0.0) -> str:
        await self._ask(connection, draw, stream=True)
        status = await self._status(connection)
        if status != 200:
            return refused(status, json.loads(await connection.rest()))
        finishes, last, event = 0, None, await connection.event()
        while event is not None:
            finishes += isinstance(event, dict) and any(choice["finish_reason"] for choice in event.get("choices", ()))
            last, event = event, await connection.event()
            await asyncio.sleep(pause)
        if last == "[DONE]" and finishes == 1:
            return "answered"
        return "failed" if isinstance(last, dict) and "error" in last and not finishes else f"wrong: ends with {last}, {finishes}"

    async def _slow(self, connection: Connection, draw: random.Random) -> str:
        return await self._stream(connection, draw, pause=0.02)

    async def _leaves(self, connection: Connection, draw: random.Random) -> str:
        """Before the request is complete, before its answer, or in its middle; politely or killed."""
        when = draw.choice(["writing", "waiting", "reading", "reading"])
        if when == "writing":
            connection._writer.write(b"POST /v1/completions HTTP/1.1\r\nContent-Le")
        else:
            await self._ask(connection, draw, stream=draw.random() < 0.8)
        if when == "reading":
            await self._status(connection)
            for _ in range(draw.randint(0, 4)):
                await connection.event()
        await asyncio.sleep(draw.random() * 0.05)
        connection.close(rudely=draw.random() < 0.5)
        return "left"

    async def _malformed(self, connection: Connection, draw: random.Random) -> str:
        body, expected = draw.choice(MALFORMED)
        await connection.post(body)
        return await self._is_refused(connection, expected)

    async def _oversized(self, connection: Connection, draw: random.Random) -> str:
        if draw.random() < 0.5:
            await connection.post(b" " * self._too_large)
            return await self._is_refused(connection, 413)
        await connection.post(json.dumps({"prompt": "x" * self._too_long}).encode())
        return await self._is_refused(connection, 400)

    async def _fails(self, connection: Connection, draw: random.Random) -> str:
        if self._failing is None:
            return await self._whole(connection, draw)
        await connection.post(json.dumps({"prompt": self._failing, "max_tokens": 20, "ignore_eos": True}).encode())
        status = await self._status(connection)
        body = json.loads(await connection.rest())
        return "failed" if status == 500 and body["error"]["code"] == "generation_failed" else refused(status, body)

    # -- how they do it --

    async def _ask(self, connection: Connection, draw: random.Random, stream: bool) -> None:
        prompt = draw.choice(["shared beginning, ", ""]) + "p" * draw.randint(1, 60)
        body: dict[str, Any] = {"max_tokens": draw.randint(1, 40), "ignore_eos": True, "stream": stream}
        chat = draw.random() < 0.3
        body |= {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        request_id = draw.choice("abc") if draw.random() < 0.1 else None
        await connection.post(json.dumps(body).encode(), "/v1/chat/completions" if chat else "/v1/completions", request_id)

    async def _status(self, connection: Connection) -> int:
        status = await connection.status()
        self.report.statuses[status] += 1
        return status

    async def _is_refused(self, connection: Connection, expected: int) -> str:
        status = await self._status(connection)
        end = refused(status, json.loads(await connection.rest()))
        return end if status == expected or end == "turned away" else f"wrong: {status} instead of {expected}"


def refused(status: int, body: Any) -> str:
    """How a request ended whose answer is an error: refused, or turned away since too many wait."""
    code = body["error"]["code"]
    if (status, code) == (503, "queue_full"):
        return "turned away"
    return "refused" if status in (400, 404, 413) else f"wrong: {status} {code}"
