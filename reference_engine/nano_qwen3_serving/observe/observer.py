"""Observers of a working engine: one channel for the flight recorder, the counts, the queue, and any later observer.

Knows what a step leaves behind; changes no request, no block and no token. An observer that fails is removed,
because no request depends on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from nano_qwen3_serving.interfaces import BlockManager, SampledTokens, ScheduledBatch
from nano_qwen3_serving.outputs import RequestOutput

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepRecord:
    """A step that is over.

    Attributes:
        batch: what was scheduled.
        result: what was computed.
        running: ids that ran after scheduling, in order; empty unless an observer `lists_queues`.
        waiting: ids that waited then, in order; empty likewise.
        block_manager: as the step left it; to read, not to change.
        started: engine time when scheduling began, in seconds, like the three that follow.
        scheduled: when the batch was handed to the executor.
        executed: when its tokens were there.
        ended: when its outputs were made.
    """

    batch: ScheduledBatch
    result: SampledTokens
    running: list[str]
    waiting: list[str]
    block_manager: BlockManager
    started: float
    scheduled: float
    executed: float
    ended: float


class EngineObserver:
    """Is told what an engine does; override the methods you need.

    Both methods are called on the thread that steps the engine, which waits for them. They must not call the engine.

    Attributes:
        name: for the log.
        lists_queues: whether records need the ids of all running and waiting requests. Thousands may wait, so the
            lists are made only if an observer reads them.
    """

    name: ClassVar[str] = "observer"
    lists_queues: ClassVar[bool] = False

    def on_step(self, step: StepRecord) -> None:
        """A step is over. Not called for a step that raised."""

    def on_end(self, output: RequestOutput, finish_reasons: list[str]) -> None:
        """A caller's request ended, in a step or by an abort: its last output, and how each completion ended."""


class Observers:
    """The observers of one engine, in the order in which they came."""

    def __init__(self, *observers: EngineObserver) -> None:
        self._observers = observers  # replaced, never changed: a step on another thread may be iterating over it

    def __iter__(self) -> Iterator[EngineObserver]:
        return iter(self._observers)

    def add(self, observer: EngineObserver) -> None:
        """From now on `observer` is told of every step and every end."""
        self._observers = (*self._observers, observer)

    def remove(self, observer: EngineObserver) -> None:
        """`observer` is told nothing more. No-op for an observer that was not added."""
        self._observers = tuple(other for other in self._observers if other is not observer)

    @property
    def lists_queues(self) -> bool:
        """Whether one of them reads the queues of a record."""
        return any(observer.lists_queues for observer in self._observers)

    def on_step(self, step: StepRecord) -> None:
        """Tells each that a step is over."""
        for observer in self._observers:
            self._notify(observer, observer.on_step, step)

    def on_end(self, output: RequestOutput, finish_reasons: list[str]) -> None:
        """Tells each that a caller's request ended."""
        for observer in self._observers:
            self._notify(observer, observer.on_end, output, finish_reasons)

    def _notify(self, observer: EngineObserver, handler: Callable[..., None], *event: Any) -> None:
        """Tells the observer of the event. An observer that fails, for example because a disk is full, is removed."""
        try:
            handler(*event)
        except Exception:
            logger.exception("the %s failed, and notes nothing more", observer.name)
            self.remove(observer)


class LastStep(EngineObserver):
    """Keeps the record of the last step, for code that looks at the engine between two steps.

    Attributes:
        record: None before the first step.
    """

    def __init__(self) -> None:
        self.record: StepRecord | None = None

    def on_step(self, step: StepRecord) -> None:
        """Keeps it."""
        self.record = step
