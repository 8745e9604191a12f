"""The engine for asyncio: one stream of outputs per request. vLLM's `AsyncLLMEngine`.

Knows event loops, text threads and the bound of the queue; the steps are `StepLoop`'s. The event
loop never waits for the model: steps run in one thread, prompts are tokenised in others.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, TypeVar

from nano_qwen3_serving.arguments import check_float, names_unknown_arguments
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.engine.arg_utils import EngineArgs
from nano_qwen3_serving.engine.input_processor import check_arguments
from nano_qwen3_serving.engine.llm_engine import LLMEngine, ids_of
from nano_qwen3_serving.engine.mailbox import FinalMailbox, LoopPort, Mailbox
from nano_qwen3_serving.engine.step_loop import StepGate, StepLoop, Stream, timed_out
from nano_qwen3_serving.exceptions import EngineDeadError, InvalidParametersError, QueueFullError
from nano_qwen3_serving.observe.metrics import Metric
from nano_qwen3_serving.observe.observer import EngineObserver, StepRecord
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.outputs import RequestOutput
from nano_qwen3_serving.ownership import copies_arguments
from nano_qwen3_serving.prompts import Prompt
from nano_qwen3_serving.request import member_ids
from nano_qwen3_serving.sampling_params import RequestOutputKind, SamplingParams

logger = logging.getLogger(__name__)

T = TypeVar("T")


class WaitingRoom(EngineObserver):
    """Counts the requests that were accepted and have not run yet; refuses one too many.

    A request keeps its places until its members were scheduled once, or it leaves. Preempted
    requests ran already and do not count.
    """

    name = "waiting room"

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._waiting: dict[str, set[str]] = {}  # request → members that have not run
        self._request_of: dict[str, str] = {}  # each of these members → its request

    def __len__(self) -> int:
        with self._lock:
            return len(self._request_of)

    def enter(self, request_id: str, members: Sequence[str]) -> None:
        """Takes a place for each member, or none and raises `QueueFullError`; n larger than the whole
        queue is an `InvalidParametersError`, for waiting would not help."""
        if self.limit is not None and len(members) > self.limit:
            raise InvalidParametersError(
                f"n must be at most {self.limit}, the engine's max_num_queued_reqs, got {len(members)}",
                parameter="n", value=len(members))
        with self._lock:
            if self.limit is not None and len(self._request_of) + len(members) > self.limit:
                raise QueueFullError(self.limit)
            self._waiting[request_id] = set(members)
            self._request_of |= dict.fromkeys(members, request_id)

    def on_step(self, step: StepRecord) -> None:
        """The requests of the step's batch wait no longer. Takes as long as the batch is, however many wait."""
        with self._lock:
            for chunk in step.batch.chunks:
                request_id = self._request_of.pop(chunk.request.request_id, None)
                if request_id is not None:
                    self._waiting[request_id].remove(chunk.request.request_id)
                    if not self._waiting[request_id]:
                        del self._waiting[request_id]

    def leave(self, request_id: str) -> None:
        """The request is gone, whether it ran or not."""
        with self._lock:
            for member in self._waiting.pop(request_id, ()):
                del self._request_of[member]


@names_unknown_arguments
class AsyncLLMEngine:
    """Serves many requests at once from asyncio code.

    Use `from_engine_args`. One engine can be used from several event loops.

    Args:
        engine: owned by this object from now on.
        worker_count: threads that tokenise prompts.
        gate: called before every step, on the step thread; tests replay interleavings with it.
        start_engine_loop: start the step thread now, not with the first request.
    """

    def __init__(
        self,
        engine: LLMEngine,
        *,
        worker_count: int = 2,
        gate: StepGate | None = None,
        start_engine_loop: bool = True,
    ) -> None:
        self.engine = engine
        self.waiting_room = WaitingRoom(engine.config.max_num_queued_reqs)
        engine.observers.add(self.waiting_room)
        self._steps = StepLoop(engine, gate, self.waiting_room.leave)
        self._text_threads = ThreadPoolExecutor(worker_count, thread_name_prefix="engine-text")
        self._ports: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopPort] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, stop_threads, self._steps, self._text_threads)
        if start_engine_loop:
            self._steps.start()

    @classmethod
    @names_unknown_arguments
    def from_engine_args(
        cls,
        engine_args: EngineArgs,
        start_engine_loop: bool = True,
        *,
        components: Components | None = None,
        clock: Callable[[], float] = time.monotonic,
        recorder: Recorder | None = None,
        gate: StepGate | None = None,
        worker_count: int = 2,
    ) -> AsyncLLMEngine:
        """Builds an engine and loads the checkpoint. Needs no running event loop.

        Raises:
            InvalidParametersError, ModelLoadError: as `EngineArgs.create_engine_config`.
        """
        engine = LLMEngine(engine_args.create_engine_config(), components, clock=clock, recorder=recorder)
        return cls(engine, worker_count=worker_count, gate=gate, start_engine_loop=start_engine_loop)

    @names_unknown_arguments
    @copies_arguments
    def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        priority: int = 0,
        timeout: float | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Runs one request; yields its outputs as they come, the last one `finished`.

        A slow consumer gets merged outputs. Two requests in flight may have the same id.

        Args:
            prompt: text or tokens.
            sampling_params: how to choose tokens; `output_kind` says what outputs hold.
            request_id: the caller's name for it.
            priority: the smaller number first, with scheduling_policy="priority".
            timeout: seconds until the request is ended, waiting included.

        Raises:
            InvalidParametersError: something given is not acceptable; nothing was queued.
            QueueFullError: too many requests wait; nothing was queued.
            RequestTimeoutError: the timeout passed; `partial` has what was generated.
            GenerationError: the request failed.
            EngineDeadError: the engine died or was shut down.

        Cancelling the consumer, or closing the generator, aborts the request and frees its blocks.
        """
        return self._generate(prompt, sampling_params, request_id, None, priority, timeout)

    async def _generate(
        self, prompt: Prompt, params: SamplingParams, request_id: str,
        arrival_time: float | None, priority: int, timeout: float | None,
    ) -> AsyncGenerator[RequestOutput, None]:
        stream = await self._start(prompt, params, request_id, arrival_time, priority, timeout)
        async with aclosing(await self._outputs(stream)) as outputs:
            async for output in outputs:
                yield output

    @names_unknown_arguments
    @copies_arguments
    async def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        arrival_time: float | None = None,
        priority: int = 0,
        timeout: float | None = None,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Queues a request and returns its stream; note the order of the arguments.

        Raises and ends like `generate`, but what is wrong with the request is raised here.
        """
        stream = await self._start(prompt, params, request_id, arrival_time, priority, timeout)
        return await self._outputs(stream)

    async def submit(
        self, request_id: str, prompt: Prompt, params: SamplingParams, priority: int = 0, timeout: float | None = None,
    ) -> Future[RequestOutput]:
        """Queues a request that runs by itself; its last output, or its error, will be in the future returned.

        That can be waited for on any thread, and in any event loop by `asyncio.wrap_future`. Raises like `add_request`.
        """
        mailbox = FinalMailbox()
        await self._start(prompt, params, request_id, None, priority, timeout, mailbox)
        return mailbox.future

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """Ends requests; their consumers get a last output with finish_reason "abort".

        Unknown ids are no-ops, and so is an abort that comes too late.
        """
        if self.is_stopped:
            return
        for external_id in ids_of(request_id):
            for stream in self._steps.streams_of(external_id):
                self._steps.abort(stream)

    async def check_health(self) -> None:
        """Raises the `EngineDeadError` if the engine died or was shut down."""
        if self.is_stopped:
            raise self.dead_error

    async def get_stats(self) -> dict[str, Any]:
        """Numbers of this moment, taken between two steps."""
        return await self._between_steps(self.engine.stats)

    async def get_metrics(self) -> list[Metric]:
        """What the engine counted, and gauges of this moment, as `LLM.get_metrics`; taken between two steps."""
        return await self._between_steps(self.engine.get_metrics)

    async def do_log_stats(self) -> None:
        """Writes the numbers of this moment to the log."""
        if self.engine.config.log_stats:
            logger.info("engine: %s", await self.get_stats())

    async def reset_prefix_cache(self) -> bool:
        """Forgets cached prefixes; False, and nothing happens, while requests hold blocks."""
        self._steps.start()
        return await asyncio.wrap_future(self._steps.call(self.engine.reset_prefix_cache))

    async def run_text(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Runs work on text in a text thread, where it delays neither the event loop nor the steps.

        Raises:
            EngineDeadError: the engine was shut down before the work began.
        """
        if self.is_stopped:
            raise self.dead_error
        call = functools.partial(function, *args, **kwargs)
        try:
            future = self._text_threads.submit(call)
        except RuntimeError:
            raise self.dead_error from None
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.is_stopped and task is not None and not task.cancelling():
                raise self.dead_error from None  # the shutdown cancelled the work; the caller was not cancelled
            raise

    def get_tokenizer(self) -> Any:
        """The engine's tokenizer."""
        return self.engine.get_tokenizer()

    def shutdown(self, timeout: float | None = None) -> None:
        """Stops the engine. With a timeout, requests in flight have that many seconds to finish.

        Whoever still waits then gets an `EngineDeadError`. Blocks the caller: on an event loop that
        also consumes, leave the timeout out or call it in a thread. A second call does nothing.
        """
        if timeout is not None:
            check_float("timeout", timeout, low=0, high=1e9)
            if not self._steps.forked:
                self._steps.wait_idle(timeout)
        self._finalizer()

    @property
    def is_running(self) -> bool:
        """Whether requests are accepted; true before the step thread starts."""
        return not self.is_stopped

    @property
    def is_stopped(self) -> bool:
        """Whether the engine died or was shut down."""
        return self.errored or not self._finalizer.alive

    @property
    def errored(self) -> bool:
        """Whether the engine died."""
        return self._steps.dead_error is not None

    @property
    def dead_error(self) -> BaseException:
        """What it died of; before that, what callers get after shutdown."""
        return self._steps.gone_error

    async def _start(
        self, prompt: Prompt, params: SamplingParams, request_id: str,
        arrival_time: float | None, priority: int, timeout: float | None, mailbox: FinalMailbox | None = None,
    ) -> Stream:
        """Takes a place in the queue, tokenises in a text thread, and submits."""
        check_arguments(request_id, params, arrival_time, priority)
        params = params.clone()  # it may have been changed since it was checked
        arrival = self.engine.clock() if arrival_time is None else arrival_time
        if timeout is not None:
            check_float("timeout", timeout, low=0, high=1e9, open_low=True)
        stream = self._register(request_id, params, None if timeout is None else arrival + timeout, timeout, mailbox)
        try:
            async with asyncio.timeout(self._seconds_of(timeout)) as scope:
                requests = await self.run_text(
                    self.engine.make_requests, stream.request_id, prompt, params, arrival, priority)
        except BaseException:
            self._steps.close(stream)
            if scope.expired():
                raise timed_out(stream) from None
            raise
        self._steps.submit(stream, requests)
        return stream

    async def _between_steps(self, function: Callable[[], T]) -> T:
        """What `function` says of the engine while no step runs."""
        if self._steps.forked:
            raise self.dead_error
        if not self._steps.started:
            return function()
        return await asyncio.wrap_future(self._steps.call(function))

    def _seconds_of(self, timeout: float | None) -> float | None:
        """How long an event loop waits for a tokenisation, while an idle engine takes no steps that look at the
        clock. None with a clock that is not the loop's own: it alone says when time has passed."""
        return timeout if self.engine.clock is time.monotonic else None

    async def _outputs(self, stream: Stream) -> AsyncGenerator[RequestOutput, None]:
        """The stream's outputs; begun, because closing a generator that never began runs none of it,
        and a caller may leave before the first output."""
        outputs = self._consume(stream)
        await anext(outputs)
        return outputs  # type: ignore[return-value]  # what follows the first None

    async def _consume(self, stream: Stream) -> AsyncGenerator[RequestOutput | None, None]:
        finished, mailbox = False, stream.mailbox
        assert isinstance(mailbox, Mailbox)  # who submits reads a future instead
        try:
            yield None
            while not finished:
                output = await mailbox.get()
                finished = output.finished
                yield output
        except Exception:
            finished = True  # the engine ended it already
            raise
        finally:
            if not finished:
                self._steps.abort(stream)

    def _register(
        self, request_id: str, params: SamplingParams, deadline: float | None, timeout: float | None,
        mailbox: FinalMailbox | None,
    ) -> Stream:
        """A new stream with a name of its own, its places in the queue taken."""
        if self.is_stopped:
            raise self.dead_error
        with self._lock:
            own_id = self._own_id(request_id, params.n)
            members = member_ids(own_id, params.n)
            mail = mailbox or Mailbox(self._port(), deltas=params.output_kind is RequestOutputKind.DELTA)
            stream = Stream(own_id, request_id, mail, deadline, timeout, member_ids=members)
            self.waiting_room.enter(own_id, members)
            try:
                self._steps.open(stream)
            except EngineDeadError:
                self.waiting_room.leave(own_id)
                raise
        self._steps.start()
        return stream

    def _port(self) -> LoopPort:
        """The way to the event loop that runs here."""
        loop = asyncio.get_running_loop()
        return self._ports.setdefault(loop, LoopPort(loop, self.engine.config.stream_pause))

    def _own_id(self, request_id: str, count: int) -> str:
        """The caller's id, or with a number if it, or one of its members', is in flight already."""
        names = itertools.chain([request_id], (f"{request_id}#{i}" for i in itertools.count(2)))
        return next(name for name in names if not self._steps.has_any([name, *member_ids(name, count)]))


def stop_threads(steps: StepLoop, text_threads: ThreadPoolExecutor) -> None:
    """Ends an engine's threads; knows no engine, so that it can run after one is gone."""
    if steps.forked:
        return  # they are the parent's
    text_threads.shutdown(wait=False, cancel_futures=True)  # first: a step may take its time to end
    steps.stop()
