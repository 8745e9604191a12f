"""The thread that steps the engine, and nothing else ever does.

Others hand it commands, which it runs between two steps; it hands out outputs through mailboxes.
It sleeps while there is nothing to do. Whatever happens, every mailbox it knows gets a last output
or an error.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypeVar

from nano_qwen3_serving.engine.llm_engine import LLMEngine
from nano_qwen3_serving.engine.mailbox import FinalMailbox, LoopPort, Mailbox, NoLoop
from nano_qwen3_serving.exceptions import EngineDeadError, RequestTimeoutError
from nano_qwen3_serving.outputs import RequestOutput
from nano_qwen3_serving.request import Request

logger = logging.getLogger(__name__)

T = TypeVar("T")
StepGate = Callable[[], None]


@dataclass(eq=False)
class Stream:
    """A caller's request as the step thread knows it.

    Attributes:
        request_id: the engine's id of it.
        external_id: the caller's; outputs carry this one.
        mailbox: where its outputs go.
        deadline: engine time after which it times out.
        timeout: the seconds that led to the deadline.
        aborted: its caller gave up, perhaps while its prompt was still tokenised.
        member_ids: ids of the sequences it is made of.
    """

    request_id: str
    external_id: str
    mailbox: Mailbox | FinalMailbox
    deadline: float | None = None
    timeout: float | None = None
    aborted: bool = False
    member_ids: Sequence[str] = ()


@dataclass(frozen=True)
class Command:
    """Something to do between two steps; `refuse` is called instead if the engine is gone."""

    run: Callable[[], None]
    refuse: Callable[[BaseException], object]


def timed_out(stream: Stream, partial: RequestOutput | None = None) -> RequestTimeoutError:
    """What the consumer of a stream gets when its time is over."""
    return RequestTimeoutError(
        f"request {stream.external_id!r} did not finish within its timeout of {stream.timeout:g} s; "
        "what it generated is in .partial", partial)


class StepLoop:
    """Runs `LLMEngine.step` in a thread of its own.

    Args:
        engine: touched by no other thread from now on, but for `make_requests`.
        gate: called before each step; a test's gate decides when it returns.
        on_gone: told the id of each request that left.
    """

    def __init__(
        self,
        engine: LLMEngine,
        gate: StepGate | None,
        on_gone: Callable[[str], None],
    ) -> None:
        self.engine = engine
        self._died: EngineDeadError | None = None
        self._process = os.getpid()
        self._gate = gate
        self._on_gone = on_gone
        self._inbox: deque[Command] = deque()
        self._wakeup = threading.Condition()
        self._stopping = False
        self._streams: dict[str, Stream] = {}
        self._ids: set[str] = set()  # of the streams and their members
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="engine-step", daemon=True)

    def start(self) -> None:
        """Starts the thread, once."""
        if self.forked:
            return
        with self._wakeup:
            if self._thread.ident is None and not self._stopping:
                self._thread.start()

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that runs the thread. Its locks may be held by threads it does not have."""
        return os.getpid() != self._process

    @property
    def dead_error(self) -> EngineDeadError | None:
        """What the engine died of, for one caller; None while it lives. Takes no lock."""
        if self.forked:
            return EngineDeadError(
                f"the engine runs in process {self._process}, and this is a fork of it: threads are not copied; make the "
                "engine after the fork, or start processes with 'spawn'")
        return copy.copy(self._died)

    @property
    def gone_error(self) -> EngineDeadError:
        """What a caller gets of an engine that died or was shut down. Takes no lock."""
        return self.dead_error or EngineDeadError("the engine was shut down; start a new one")

    @property
    def started(self) -> bool:
        """Whether the thread was started."""
        return self._thread.ident is not None

    def streams_of(self, external_id: str) -> list[Stream]:
        """The caller's requests of this name that are in flight."""
        return [s for s in self._open_streams() if s.external_id == external_id]

    def has_any(self, ids: Sequence[str]) -> bool:
        """Whether one of these ids is in flight, as a request's or as a sequence's."""
        with self._wakeup:
            return not self._ids.isdisjoint(ids)

    def open(self, stream: Stream) -> None:
        """Makes a stream known, before its prompt is tokenised: from now on it ends in every case.

        Raises:
            EngineDeadError: the engine is gone.
        """
        self._refuse_if_gone()
        with self._wakeup:
            self._refuse_if_gone()
            self._streams[stream.request_id] = stream
            self._ids.update((stream.request_id, *stream.member_ids))
            self._idle.clear()

    def close(self, stream: Stream) -> None:
        """Forgets a stream whose request was never submitted."""
        self._forget(stream)
        with self._wakeup:
            self._wakeup.notify()

    def submit(self, stream: Stream, requests: list[Request]) -> None:
        """Adds a request before the next step."""
        self._post(Command(lambda: self._add(stream, requests), stream.mailbox.fail))

    def abort(self, stream: Stream) -> None:
        """Ends a request before the next step; its mailbox gets the last output. Late: no-op."""
        stream.aborted = True
        self._post(Command(lambda: self._abort(stream), lambda error: None))

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Runs `function` on the step thread, between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except Exception as error:
                    future.set_exception(error)

        def refuse(error: BaseException) -> None:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

        self._post(Command(run, refuse))
        return future

    def wait_idle(self, timeout: float) -> bool:
        """Waits until no request is in flight; False if `timeout` seconds passed first."""
        return self._idle.wait(timeout)

    def stop(self, join_timeout: float | None = 10.0) -> None:
        """Ends the thread after the step it is in. Every waiter gets an `EngineDeadError`. In a fork there is neither."""
        if self.forked:
            return
        self._fail_all(self.dead_error or EngineDeadError("the engine was shut down while the request ran"))
        if self.started and threading.current_thread() is not self._thread:
            self._thread.join(join_timeout)

    def _refuse_if_gone(self) -> None:
        if self.dead_error is not None or self._stopping:
            raise self.gone_error

    def _post(self, command: Command) -> None:
        """Queues a command, or refuses it at once if nobody will ever run it."""
        if self.forked:
            command.refuse(self.gone_error)
            return
        with self._wakeup:
            gone = self._stopping
            if not gone:
                self._inbox.append(command)
                self._idle.clear()
                self._wakeup.notify()
        if gone:
            command.refuse(self.gone_error)

    # Why a thread: a step computes for milliseconds, with a long prompt for seconds. On the event loop it would hold up every
    # stream and every caller for as long; in a thread torch releases the interpreter's lock while it multiplies, and they
    # go on. Why one thread of its own, not a pool: whatever touches the engine does so here, between two steps, so that no
    # part of it needs a lock, and no cancelled caller can leave a second step running beside the first.
    def _run(self) -> None:
        try:
            while True:
                commands = self._wait_for_work()
                if commands is None:
                    return
                for command in commands:
                    self._obey(command)
                self._expire()
                if self.engine.has_unfinished_requests():
                    self._step()
        except BaseException as error:
            logger.exception("the engine died")
            self._die(error)

    def _wait_for_work(self) -> list[Command] | None:
        """The commands that came, at once if requests are in flight; None to stop."""
        with self._wakeup:
            while not (self._inbox or self._stopping or self.engine.has_unfinished_requests()):
                if not self._streams:
                    self._idle.set()
                self._wakeup.wait()
            if self._stopping:
                return None
            commands = list(self._inbox)
            self._inbox.clear()
            return commands

    def _obey(self, command: Command) -> None:
        """Runs a command. Only its caller hears of it if it fails."""
        try:
            command.run()
        except Exception as error:
            logger.exception("a command between two steps failed")
            command.refuse(error)

    def _step(self) -> None:
        if self._gate is not None:
            self._gate()
        self._publish(self.engine.step())

    def _add(self, stream: Stream, requests: list[Request]) -> None:
        if not self._knows(stream):
            return  # it timed out while its prompt was tokenised
        try:
            self.engine.add(requests)
        except Exception as error:
            self._forget(stream)
            self._fail([stream], error)
            return
        if stream.aborted:
            self._abort(stream)

    # What an abort races with:
    #   the step that runs now    it is a command, and waits: no block is freed that the step still writes to
    #   the request's tokens      its prompt may be with the text threads; `stream.aborted` stays, and `_add` looks at it
    #   the request's own end     the step before may have finished it, or its time may be over: then nobody knows it
    #   the next of its name      the id may be another's by then: the stream is compared, not its id
    def _abort(self, stream: Stream) -> None:
        if not self._knows(stream):
            return
        try:
            outputs = self.engine.abort_request(stream.request_id)
        except Exception as error:
            self._forget(stream)
            self._fail([stream], error)
            raise
        self._publish(outputs)

    def _knows(self, stream: Stream) -> bool:
        with self._wakeup:
            return self._streams.get(stream.request_id) is stream

    def _expire(self) -> None:
        """Ends the requests whose time is over."""
        now = self.engine.clock()
        for stream in [s for s in self._open_streams() if s.deadline is not None and now >= s.deadline]:
            partial = self.engine.abort_request(stream.request_id)
            self._forget(stream)
            self._fail([stream], timed_out(
                stream, stream.mailbox.with_unfetched(replace(partial[0], request_id=stream.external_id)) if partial else None))

    # Why a mailbox: the step thread must not wait for a consumer, who may be slow or gone, and a queue that it fills
    # without waiting grows without bound. A mailbox holds one output, and merges what was not fetched with what comes.
    # It also spares wake-ups: an event loop is woken once a step, however many of its requests got a token.
    def _publish(self, outputs: list[RequestOutput]) -> None:
        """Puts outputs into mailboxes and wakes each event loop once."""
        touched: list[Stream] = []
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is None:
                continue
            if output.finished:
                self._forget(stream)
            if output.error is not None:
                stream.mailbox.fail(output.error)
            else:
                output.request_id = stream.external_id
                stream.mailbox.put(output)
            touched.append(stream)
        self._wake(touched)

    def _wake(self, streams: list[Stream]) -> None:
        """One wake-up per event loop. Requests of a closed loop have no reader any more: they end."""
        by_port: dict[LoopPort | NoLoop, list[Stream]] = {}
        for stream in streams:
            by_port.setdefault(stream.mailbox.port, []).append(stream)
        for port, members in by_port.items():
            if not port.wake([s.mailbox for s in members]):
                for stream in [s for s in self._open_streams() if s.mailbox.port is port]:
                    self.engine.abort_request(stream.request_id)
                    self._forget(stream)

    def _fail(self, streams: list[Stream], error: BaseException) -> None:
        for stream in streams:
            stream.mailbox.fail(error)
        self._wake(streams)

    def _open_streams(self) -> list[Stream]:
        with self._wakeup:
            return list(self._streams.values())

    def _forget(self, stream: Stream) -> None:
        with self._wakeup:
            known = self._streams.get(stream.request_id) is stream
            if known:
                del self._streams[stream.request_id]
                self._ids.difference_update((stream.request_id, *stream.member_ids))
        if known:
            self._on_gone(stream.request_id)

    def _die(self, error: BaseException) -> None:
        dead = EngineDeadError(
            f"the engine died: {type(error).__name__}: {error}; every request was ended, start a new engine")
        dead.__cause__ = error
        self._died = dead
        self._fail_all(dead)

    def _fail_all(self, error: BaseException) -> None:
        """Everyone who waits gets `error`: open streams, and commands that will not run any more."""
        with self._wakeup:
            self._stopping = True
            commands, self._inbox = list(self._inbox), deque()
            streams, self._streams = list(self._streams.values()), {}
            self._wakeup.notify()
        for command in commands:
            command.refuse(error)
        for stream in streams:
            stream.mailbox.fail(error)
            self._on_gone(stream.request_id)
        for port in {s.mailbox.port for s in streams}:
            port.wake([s.mailbox for s in streams if s.mailbox.port is port])
        self._idle.set()
