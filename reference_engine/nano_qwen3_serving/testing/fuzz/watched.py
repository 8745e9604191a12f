"""The engine under test with two hooks: a gate before every step, and a signal that a prompt is tokenised."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from nano_qwen3_serving.engine.async_llm_engine import AsyncLLMEngine
from nano_qwen3_serving.engine.llm_engine import LLMEngine
from nano_qwen3_serving.testing.fuzz.caller import caller_of_task
from nano_qwen3_serving.testing.fuzz.episode import HELD_AT_ONCE
from nano_qwen3_serving.testing.fuzz.faults import Faults, with_faults
from nano_qwen3_serving.testing.fuzz.setup import Setup


class Gate:
    """A gate at which the step thread waits until it may step."""

    def __init__(self) -> None:
        self.parked = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._leave = threading.Semaphore(0)
        self._open = False

    def __call__(self) -> None:
        """Called on the step thread, before each step."""
        if not self._open:
            self._loop.call_soon_threadsafe(self.parked.set)
            self._leave.acquire()

    def release(self) -> None:
        """Lets one step through."""
        self.parked.clear()
        self._leave.release()

    def open(self) -> None:
        """Lets every step through from now on."""
        self._open = True
        self._leave.release()


class WatchedEngine(AsyncLLMEngine):
    """Tells a caller when its prompt is tokenised; its submission follows before anything else runs."""

    async def run_text(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """As the engine's."""
        try:
            return await super().run_text(function, *args, **kwargs)
        finally:
            caller = caller_of_task.get()
            if caller is not None:
                caller.submitted.set()


def watched_engine(setup: Setup, faults: Faults, gate: Gate, clock: Callable[[], float]) -> WatchedEngine:
    """An engine of the setup's parts, failing when `faults` says so."""
    inner = LLMEngine(setup.config, with_faults(setup.parts, faults), clock=clock)
    if setup.grammars is not None:  # the compiler is no component: it needs a tokenizer.json, and bytes have none
        inner.input_processor._grammars = setup.grammars  # type: ignore[assignment]  # stands in for it
    return WatchedEngine(inner, worker_count=HELD_AT_ONCE + 1, gate=gate)
