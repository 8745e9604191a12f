"""Makes calls, a few at a time, beside neighbours whose outputs must not change."""

from __future__ import annotations

import asyncio
import pickle
import warnings
from collections import Counter
from random import Random
from typing import Any

from nano_qwen3_serving.exceptions import EngineDeadError, EngineError
from nano_qwen3_serving.observe.progress import progress_bar
from nano_qwen3_serving.testing.api_fuzz.calls import Call, make_call
from nano_qwen3_serving.testing.api_fuzz.ways import PATIENCE, WAYS, forked, here
from nano_qwen3_serving.testing.api_fuzz.world import World
from nano_qwen3_serving.testing.quiet_logs import quiet_logs

TOGETHER = 8  # calls at a time
LONGEST_MESSAGE = 4000


class ApiFuzzFailure(AssertionError):
    """A call ended in what no caller should see, or disturbed other requests.

    Attributes:
        number: `run_api_fuzz(seed=…, only=number)` makes it again; None if it is one of a few.
    """

    def __init__(self, reason: str, seed: int, number: int | None, calls: list[Call]) -> None:
        again = f"run_api_fuzz(seed={seed}, only={number})" if number is not None else f"seed {seed}"
        super().__init__(f"{reason}\n  {again}\n  " + "\n  ".join(map(str, calls)))
        self.number = number


def run_api_fuzz(calls: int, seed: int = 0, *, only: int | None = None, show_progress: bool = False) -> Counter[str]:
    """Makes that many random calls.

    Args:
        calls: how many.
        seed: the same seed makes the same calls.
        only: make this one of them, alone.
        show_progress: a bar on standard error.

    Returns:
        How many ended in a result, and in each kind of error.

    Raises:
        ApiFuzzFailure: something is wrong.
    """
    with quiet_logs(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return asyncio.run(many(range(calls) if only is None else range(only, only + 1), seed, show_progress))


def api_fuzz_command(calls: int, seeds: list[int]) -> int:
    """What `python -m nano_qwen3_serving fuzz --api` does, so many calls split over the seeds; 0 if nothing was wrong."""
    totals = Counter[str]()
    try:
        for i, seed in enumerate(seeds):
            totals += run_api_fuzz(calls // len(seeds) + (i < calls % len(seeds)), seed, show_progress=True)
    except ApiFuzzFailure as failure:
        print(f"FAILED: {failure}")
        return 1
    print(f"{calls} calls. " + ", ".join(f"{name} {count}" for name, count in totals.most_common()))
    return 0


async def many(numbers: range, seed: int, show_progress: bool) -> Counter[str]:
    """Makes all calls; after every few, checks the neighbours and the engines."""
    world, totals = World(), Counter[str]()
    try:
        await world.async_llm.start()
        with progress_bar(show_progress) as bar:
            task = bar.add_task("Calling", total=len(numbers), note="")
            for start in range(0, len(numbers), TOGETHER):
                some = numbers[start : start + TOGETHER]
                totals += await run_together(world, some, seed)
                bar.advance(task, len(some))
    finally:
        await world.close()
    return totals


async def run_together(world: World, numbers: range, seed: int) -> Counter[str]:
    """Some calls at the same time, with neighbours among them; then everything must be at rest."""
    made = [make_call(Random(f"{seed}:{number}:call")) for number in numbers]
    calls = (run_call(world, call, number, seed) for call, number in zip(made, numbers, strict=True))
    try:
        endings, _ = await asyncio.gather(asyncio.gather(*calls), world.neighbours())
        await world.check_at_rest()
    except ApiFuzzFailure:
        raise
    except Exception as error:
        raise ApiFuzzFailure(f"beside one of these: {type(error).__name__}: {error}", seed, None, made) from error
    return Counter(endings)


async def run_call(world: World, call: Call, number: int, seed: int) -> str:
    """Makes one call in one way; returns what it ended in."""
    random = Random(f"{seed}:{number}:way")
    way = random.choices([way for way, _ in WAYS], [weight for _, weight in WAYS])[0]
    try:
        async with asyncio.timeout(PATIENCE):
            await way(call, world, random)
    except EngineDeadError as error:
        raise ApiFuzzFailure(f"{way.__name__}: the engine died: {error}", seed, number, [call]) from error
    except EngineError as error:
        wrong = complaint(error)
        if wrong is not None:
            raise ApiFuzzFailure(f"{way.__name__}: {wrong}", seed, number, [call]) from error
        return type(error).__name__
    except BaseException as error:
        raise ApiFuzzFailure(f"{way.__name__}: {type(error).__name__}: {str(error)[:500]}", seed, number, [call]) from error
    return "forked" if way is forked and call.in_fork else "elsewhere" if way is not here else "result"


def complaint(error: EngineError) -> str | None:
    """What is wrong with an error that a caller gets; None if it can be pickled and its message fits on a screen."""
    message: Any = str(error)
    if not message or len(message) > LONGEST_MESSAGE:
        return f"an error's message has {len(message)} characters: {message[:200]}"
    message.encode()
    twin = pickle.loads(pickle.dumps(error))
    return None if (type(twin), str(twin)) == (type(error), message) else f"pickle makes {twin!r} of {error!r}"
