"""What goes on beside a step: its times, its checks, and telling the observers.

Knows what the phases of a step hand on, which it hands on unchanged; knows nothing of how they come by it. So
`LLMEngine.step()` can be read without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized

from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.exceptions import EngineDeadError
from nano_qwen3_serving.interfaces import BlockManager, RequestUpdate, SampledTokens, ScheduledBatch, Scheduler
from nano_qwen3_serving.observe.observer import Observers, StepRecord
from nano_qwen3_serving.request import Request
from nano_qwen3_serving.scheduling.invariants import check_pool, check_schedule

Clock = Callable[[], float]


class StepWatch:
    """Looks on while an engine steps. `with watch:` is one step, in which each phase hands its result through here.

    Args:
        config: what is checked, and against which bounds.
        clock: engine time, in seconds.
        scheduler: asked who runs and who waits.
        block_manager: asked for its tables when they are checked; observers see it after the step.
        in_flight: the requests in flight; only their number is asked.
        observers: told of the step once it is over.
    """

    def __init__(
        self, config: EngineConfig, clock: Clock, scheduler: Scheduler, block_manager: BlockManager, in_flight: Sized,
        observers: Observers,
    ) -> None:
        self._config = config
        self._clock = clock
        self._scheduler = scheduler
        self._block_manager = block_manager
        self._in_flight = in_flight
        self._observers = observers
        self._started = self._scheduled = self._executed = 0.0
        self._batch = ScheduledBatch([])
        self._result = SampledTokens({})
        self._running: list[str] = []
        self._waiting: list[str] = []

    def __enter__(self) -> StepWatch:
        self._started = self._clock()
        return self

    def scheduled(self, batch: ScheduledBatch) -> ScheduledBatch:
        """`batch`, checked before it is computed.

        Raises:
            EngineDeadError: nothing is scheduled and requests are in flight.
            AssertionError: the batch breaks an invariant, and `check_invariants` is on.
        """
        if self._config.check_invariants:
            check_schedule(batch, self._scheduler.running, self._block_manager, self._config.scheduler)
        if not (batch.chunks or batch.preempted) and len(self._in_flight):
            raise EngineDeadError(
                f"the scheduler scheduled nothing, and {len(self._in_flight)} requests are in flight: they would "
                "wait for ever; schedule() must advance the first in order")
        self._batch, self._scheduled = batch, self._clock()
        lists = self._observers.lists_queues
        self._running = ids(self._scheduler.running) if lists else []
        self._waiting = ids(self._scheduler.waiting) if lists else []
        return batch

    def executed(self, result: SampledTokens) -> SampledTokens:
        """`result`, whose tokens exist from now on."""
        self._result, self._executed = result, self._clock()
        return result

    def updated(self, updates: list[RequestUpdate]) -> list[RequestUpdate]:
        """`updates`; the step's times and blocks are noted on its requests, before anything of them is shown.

        A table only grows while its request runs, so it is copied when it is longer than before: outputs share the copy.
        """
        for request in self._batch.preempted:
            request.block_indices = ()
        for chunk in self._batch.chunks:
            request = chunk.request
            if len(request.block_indices) != len(chunk.block_table):
                request.block_indices = tuple(chunk.block_table)
            request.metrics.scheduled_ts = request.metrics.scheduled_ts or self._scheduled
        for update in updates:
            metrics = update.request.metrics
            metrics.first_token_ts = metrics.first_token_ts or self._executed
            metrics.last_token_ts = self._executed
        return updates

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Tells the observers of a step that did not raise, and checks what it left.

        Raises:
            AssertionError: the pool breaks an invariant, and `check_invariants` is on.
        """
        if kind is not None:
            return
        self._observers.on_step(StepRecord(
            self._batch, self._result, self._running, self._waiting, self._block_manager,
            self._started, self._scheduled, self._executed, self._clock()))
        if self._config.check_invariants:
            check_pool(self._block_manager, self._config.cache.num_blocks, idle=not len(self._in_flight))


def ids(requests: Sequence[Request]) -> list[str]:
    """The requests' ids, in their order."""
    return [request.request_id for request in requests]
