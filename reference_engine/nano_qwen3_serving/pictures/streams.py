"""Streams to look at: a gate that holds the step thread, readers, and callers that come one after the other."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from nano_qwen3_serving.engine.arg_utils import AsyncEngineArgs
from nano_qwen3_serving.engine.async_llm_engine import AsyncLLMEngine
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.sampling_params import SamplingParams


class Gate:
    """What an `AsyncLLMEngine` passes before every step: while it is closed, the step thread waits there."""

    def __init__(self) -> None:
        self._open, self._reached = threading.Event(), threading.Event()
        self._open.set()

    def __call__(self) -> None:
        """Lets the step thread through, or holds it."""
        self._reached.set()
        self._open.wait()

    def close(self) -> None:
        """Holds the step thread the next time that it comes by."""
        self._reached.clear()
        self._open.clear()

    async def reached(self) -> None:
        """Waits until the step thread stands at the gate."""
        await asyncio.to_thread(self._reached.wait)

    def open(self) -> None:
        """Lets the step thread go on."""
        self._open.set()


def serving(gate: Gate | None = None, **engine_args: Any) -> tuple[AsyncLLMEngine, list[dict[str, Any]]]:
    """The course's model behind streams, and its flight recorder's steps, as they come; no blocks are shared."""
    args, recorder = AsyncEngineArgs(model="course", enable_prefix_caching=False, **engine_args), Recorder()
    return AsyncLLMEngine.from_engine_args(args, recorder=recorder, gate=gate), recorder.steps


@asynccontextmanager
async def held(engine: AsyncLLMEngine, gate: Gate) -> AsyncIterator[None]:
    """Holds the step thread, so that all that is handed in meanwhile is there before the same step.

    An idle engine waits for its inbox, not at its gate: a request for one token, "early", brings it there. Its step is the
    first that is recorded afterwards.
    """
    gate.close()
    try:
        early = await engine.add_request("early", {"prompt_token_ids": [500]}, exactly(1))
        await gate.reached()
        yield
    finally:
        gate.open()
    await read(early)


def exactly(max_tokens: int) -> SamplingParams:
    """The likeliest token every time, and so many of them."""
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)


async def read(stream: AsyncIterator[Any], received: list[float] | None = None) -> None:
    """Reads a stream to its end, and notes in `received` when each output arrived; a reader that is cancelled stops there."""
    async for _ in stream:
        if received is not None:
            received.append(time.monotonic())


async def until(received: list[float], count: int, reader: asyncio.Task[None]) -> None:
    """Waits until a reader has received so many outputs, or is done; others go on meanwhile."""
    while len(received) < count and not reader.done():
        await asyncio.sleep(0.001)


async def one_by_one(
    engine: AsyncLLMEngine, wishes: Mapping[str, tuple[Any, int]], outputs: int = 3
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Callers that come one after the other, each after so many outputs of the one before, and read to their ends.

    Args:
        engine: running.
        wishes: prompt and number of tokens, by the caller's name.
        outputs: of each caller, before the next one comes.

    Returns:
        When each was handed in, and when each of its outputs arrived: seconds on the engine's clock.
    """
    asked: dict[str, float] = {}
    received: dict[str, list[float]] = {name: [] for name in wishes}
    readers = []
    for name, (prompt, count) in wishes.items():
        asked[name] = time.monotonic()
        readers.append(asyncio.create_task(read(engine.generate(prompt, exactly(count), name), received[name])))
        await until(received[name], outputs, readers[-1])
    await asyncio.gather(*readers)
    return asked, received
