"""Stand-ins that make tests of an engine exact and fast: time, interleaving, text, the network.

The engine around them is the real one: they are given to it as a clock, a step gate and
`Components`. The network is a `TellTaleModel` (`telltale.py`), the text a `ByteTokenizer`'s.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from nano_qwen3_serving.components import Components
from nano_qwen3_serving.engine.arg_utils import AsyncEngineArgs
from nano_qwen3_serving.engine.async_llm_engine import AsyncLLMEngine
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.testing.byte_tokenizer import ByteTokenizer
from nano_qwen3_serving.testing.telltale import LETTERS, TellTaleModel, continuation, continued_text, script

__all__ = [  # with the network's own names: a test takes all it needs from here
    "ByteTokenizer", "ManualClock", "StepGate", "TellTaleModel", "assert_nothing_left", "continuation",
    "continued_text", "double_components", "script", "serving",
]

PATIENCE = 30.0  # seconds until a test that waits for a thread gives up


class ManualClock:
    """Engine time that passes only when a test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Lets `seconds` pass."""
        self.now += seconds


class StepGate:
    """Stops the step thread before every step until a test lets it go on.

    Args:
        is_open: let every step through from the beginning.
    """

    def __init__(self, is_open: bool = False) -> None:
        self._changed = threading.Condition()
        self._open = is_open
        self._allowed = 0
        self.arrived = 0  # steps that came to the gate
        self.passed = 0  # steps that went through

    def __call__(self) -> None:
        with self._changed:
            self.arrived += 1
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._open or self._allowed, PATIENCE):
                raise TimeoutError("the test never opened the step gate")
            self._allowed -= not self._open
            self.passed += 1

    def allow(self, steps: int = 1) -> None:
        """Lets that many more steps through."""
        with self._changed:
            self._allowed += steps
            self._changed.notify_all()

    def open(self) -> None:
        """Lets every step through from now on."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    async def at_step(self, number: int) -> None:
        """Lets `number` steps through, counted from the first, and waits until one more stands at the gate."""
        self.allow(max(number - self.passed, 0))
        await asyncio.to_thread(self._wait_arrived, number + 1)

    def _wait_arrived(self, count: int) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self.arrived >= count, PATIENCE):
                raise TimeoutError(f"step {count} never came to the gate")


def double_components(
    alphabet: Sequence[int] = LETTERS,
    on_forward: Callable[[list[list[int]]], object] | None = None,
    on_encode: Callable[[str], object] | None = None,
    state: Callable[[Sequence[int]], int] | None = None,
    **parts: Any,
) -> Components:
    """The reference's parts around a `TellTaleModel` and a `ByteTokenizer`."""
    return Components(
        model=lambda config, attention: TellTaleModel(config, attention, alphabet, on_forward, state),
        tokenizer=lambda config: ByteTokenizer(on_encode),
    ).using(**parts)


@asynccontextmanager
async def serving(
    components: Components | None = None, gate: StepGate | None = None, *, worker_count: int = 2,
    clock: Callable[[], float] = time.monotonic, recorder: Recorder | None = None, **engine_args: Any,
) -> AsyncIterator[AsyncLLMEngine]:
    """An asynchronous engine for one test; when the test is over nothing of it may be left.

    Args:
        components: those of `double_components()` by default.
        engine_args: as for `AsyncEngineArgs`; small and checked after every step by default.
    """
    args: dict[str, Any] = {
        "model": "course", "num_gpu_blocks_override": 33, "block_size": 4, "check_invariants": True} | engine_args
    engine = AsyncLLMEngine.from_engine_args(
        AsyncEngineArgs(**args), components=components or double_components(), gate=gate, clock=clock,
        recorder=recorder, worker_count=worker_count)
    before = asyncio.all_tasks()
    try:
        async with asyncio.timeout(PATIENCE):
            yield engine
            if gate is not None:
                gate.open()
            await assert_nothing_left(engine)
    finally:
        if gate is not None:
            gate.open()
        await asyncio.to_thread(engine.shutdown)
    left = {task for task in asyncio.all_tasks() - before if not task.done()}
    assert not left, f"tasks are left: {left}"
    assert not engine._steps._thread.is_alive(), "the step thread is left"


async def assert_nothing_left(engine: AsyncLLMEngine) -> None:
    """Waits until an engine is idle: no request, no place in the queue and no block may be held."""
    assert await asyncio.to_thread(engine._steps.wait_idle, PATIENCE), "the engine never became idle"
    if engine.errored:
        return
    inner = engine.engine
    assert not inner.has_unfinished_requests()
    assert not inner.scheduler.running and not inner.scheduler.waiting
    assert len(engine.waiting_room) == 0
    inner.block_manager.check_integrity()
    free, usable = inner.block_manager.num_free_blocks, inner.config.cache.num_blocks - 1
    assert free == usable, f"{usable - free} blocks are lost"
