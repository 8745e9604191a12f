"""The last steps of a running engine, for any number of readers.

Knows the flight recorder's records and event loops; knows nothing of HTTP. There is one ring of records and no buffer
per reader: a reader is a place in the ring. A reader that is slower than the engine is overtaken, and told how many steps
it missed; so nothing grows, and the step thread never waits.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any

from nano_qwen3_serving.engine.mailbox import LoopPort
from nano_qwen3_serving.observe.observer import EngineObserver, StepRecord
from nano_qwen3_serving.observe.trace import record_of

Event = tuple[str, dict[str, Any]]


class Reader:
    """A reader of the steps: what wakes it on its event loop, and the step that it wants next."""

    def __init__(self, loop: asyncio.AbstractEventLoop, at: int) -> None:
        self.port = LoopPort(loop)
        self.at = at
        self.bell = asyncio.Event()

    def ring(self) -> None:
        """Wakes the reader. Called on its event loop."""
        self.bell.set()


class LiveSteps(EngineObserver):
    """Keeps the records of the last steps, and lets readers on any thread and event loop follow them.

    A record is the flight recorder's, and `cached_blocks` with it: the blocks that nobody holds and whose content is
    known. Without readers a step costs its record, and nothing else. Steps that happen while it is not among the engine's
    observers are missing without a gap, so call `forget()` before it is added again.

    Args:
        keep: how many records are kept. A reader begins with them.
    """

    name, lists_queues = "live steps", True

    def __init__(self, keep: int = 300) -> None:
        self._lock = threading.Lock()
        self._ring: deque[dict[str, Any]] = deque(maxlen=keep)
        self._count = 0
        self._readers: set[Reader] = set()
        self._closed = False

    def on_step(self, step: StepRecord) -> None:
        """Keeps the step's record, and wakes the readers that wait for it."""
        record = record_of(step, self._count) | {"cached_blocks": getattr(step.block_manager, "evictable_blocks", [])}
        with self._lock:
            self._ring.append(record)
            self._count += 1
            readers = list(self._readers)
        self._wake(readers)

    @property
    def num_readers(self) -> int:
        """Readers that follow the steps now."""
        with self._lock:
            return len(self._readers)

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The records that are kept, the oldest first."""
        with self._lock:
            return list(self._ring)

    def forget(self) -> None:
        """Drops the records that are kept; readers get those to come."""
        with self._lock:
            self._ring.clear()

    def close(self) -> None:
        """Ends every reader's iteration, and that of readers to come, after the steps that are kept."""
        with self._lock:
            self._closed = True
            readers = list(self._readers)
        self._wake(readers)

    async def follow(self) -> AsyncGenerator[Event, None]:
        """Past and coming steps: `("step", record)`, the oldest record first.

        A reader that was overtaken gets `("gap", {"missed": number of steps})` before the next step. The iteration ends
        after `close()`. Cancelled, or closed with `aclose()`, the reader is forgotten at once.
        """
        with self._lock:
            reader = Reader(asyncio.get_running_loop(), self._count - len(self._ring))
            self._readers.add(reader)
        try:
            while True:
                reader.bell.clear()
                events, closed = self._next(reader)
                for event in events:
                    yield event
                if not events and closed:
                    return
                if not events:
                    await reader.bell.wait()
        finally:
            with self._lock:
                self._readers.discard(reader)

    def _next(self, reader: Reader) -> tuple[list[Event], bool]:
        """The next record for a reader, if there is one, after the gap before it; and whether there will be no more."""
        with self._lock:
            oldest = self._count - len(self._ring)
            events: list[Event] = [("gap", {"missed": oldest - reader.at})] if reader.at < oldest else []
            reader.at = max(reader.at, oldest)
            if reader.at < self._count:
                events.append(("step", self._ring[reader.at - oldest]))
                reader.at += 1
            return events, self._closed

    def _wake(self, readers: list[Reader]) -> None:
        """Rings at each reader; forgets those whose event loop is closed."""
        gone = {reader for reader in readers if not reader.port.wake([reader])}
        if gone:
            with self._lock:
                self._readers -= gone
