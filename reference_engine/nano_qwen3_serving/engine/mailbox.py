"""From the step thread to an event loop: one mailbox per request, one wake-up per loop and step.

Knows threads and loops; knows nothing of engines. A mailbox holds at most one output: what a slow
consumer has not fetched is merged with what came since, so nothing grows without bound.
"""

from __future__ import annotations

import asyncio
import math
import threading
import weakref
from concurrent.futures import Future
from typing import Any

from nano_qwen3_serving.outputs import RequestOutput


class LoopPort:
    """Wakes mailboxes of one event loop; at most one wake-up is on its way at any time.

    It does not keep the loop alive: an engine may see many loops come and go.

    Args:
        loop: whose mailboxes they are.
        pause: seconds between two wake-ups. Steps of a small model take less, and to wake every consumer for every token
            would take the interpreter away from the steps.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, pause: float = 0.0) -> None:
        self._loop = weakref.ref(loop)
        self._pause = pause
        self._last = -math.inf  # when mailboxes were last woken, on the loop's clock
        self._lock = threading.Lock()
        self._to_wake: set[Mailbox] = set()

    def wake(self, mailboxes: list[Any]) -> bool:
        """Called on any thread. False if the loop is closed and nobody will ever look again."""
        loop = self._loop()
        if loop is None or loop.is_closed():
            return False
        with self._lock:
            on_its_way = bool(self._to_wake)
            self._to_wake.update(mailboxes)
        if on_its_way:
            return True
        try:
            loop.call_soon_threadsafe(self._deliver_in_time)
        except RuntimeError:
            return False
        return True

    def _deliver_in_time(self) -> None:
        loop, due = self._loop(), self._last + self._pause
        assert loop is not None  # it runs us
        if loop.time() < due:
            loop.call_at(due, self._deliver)
        else:
            self._deliver()

    def _deliver(self) -> None:
        loop = self._loop()
        assert loop is not None
        self._last = loop.time()
        with self._lock:
            mailboxes, self._to_wake = self._to_wake, set()
        for mailbox in mailboxes:
            mailbox.ring()


class Mailbox:
    """The outputs of one request, on their way to one consumer.

    Args:
        port: of the consumer's event loop.
        deltas: outputs hold what is new, so that merging joins them.
    """

    def __init__(self, port: LoopPort, deltas: bool) -> None:
        self.port = port
        self._deltas = deltas
        self._lock = threading.Lock()
        self._output: RequestOutput | None = None
        self._error: BaseException | None = None
        self._bell = asyncio.Event()

    def put(self, output: RequestOutput) -> None:
        """Adds an output, merging it with one that was not fetched. Called on the step thread."""
        with self._lock:
            waiting = self._output
            self._output = output if waiting is None else waiting.merged(output, deltas=self._deltas)

    def with_unfetched(self, output: RequestOutput) -> RequestOutput:
        """`output`, joined to what was put and not fetched; that is then nobody else's."""
        with self._lock:
            waiting, self._output = self._output, None
            return output if waiting is None else waiting.merged(output, deltas=self._deltas)

    def fail(self, error: BaseException) -> None:
        """The consumer gets `error` next, instead of anything that was not fetched."""
        with self._lock:
            self._error = self._error or error

    def ring(self) -> None:
        """Wakes the consumer. Called on its event loop."""
        self._bell.set()

    async def get(self) -> RequestOutput:
        """The next output, or the error raised. Cancelled while waiting, nothing is lost."""
        while True:
            self._bell.clear()
            with self._lock:
                output, self._output = self._output, None
                if self._error is not None:
                    raise self._error
            if output is not None:
                return output
            await self._bell.wait()


class NoLoop:
    """In place of a `LoopPort` for results that wait for whoever comes: there is no event loop to wake, and none to close."""

    def wake(self, mailboxes: list[Any]) -> bool:
        """True: somebody may look at any time."""
        return True


class FinalMailbox:
    """The last output of one request, in a future: to be had on any thread and in any event loop, as often as one likes."""

    def __init__(self) -> None:
        self.port = NoLoop()
        self.future: Future[RequestOutput] = Future()
        self.future.set_running_or_notify_cancel()  # who gives up waiting does not cancel it for the others

    def put(self, output: RequestOutput) -> None:
        """Keeps the output if it is the last."""
        if output.finished and not self.future.done():
            self.future.set_result(output)

    def with_unfetched(self, output: RequestOutput) -> RequestOutput:
        """`output`: it has everything."""
        return output

    def fail(self, error: BaseException) -> None:
        """Whoever asks gets `error`."""
        if not self.future.done():
            self.future.set_exception(error)
