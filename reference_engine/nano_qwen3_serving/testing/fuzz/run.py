"""Runs episodes: random ones until one fails, and the one of a trace.

Knows threads, logs and files; knows nothing of what an episode does or what may be wrong in it.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nano_qwen3_serving.components import Components
from nano_qwen3_serving.observe.progress import progress_bar
from nano_qwen3_serving.testing.fuzz.checks import Violation, require
from nano_qwen3_serving.testing.fuzz.driver import Driver
from nano_qwen3_serving.testing.fuzz.episode import Episode, make_episode
from nano_qwen3_serving.testing.fuzz.report import FuzzReport
from nano_qwen3_serving.testing.fuzz.setup import make_setup
from nano_qwen3_serving.testing.fuzz.shrink import shrink
from nano_qwen3_serving.testing.quiet_logs import quiet_logs

EPISODE_REQUESTS = 25


class FuzzFailure(AssertionError):
    """The engine did something wrong.

    Attributes:
        episode: shrunk; run it with `replay`.
        reason: what went wrong in it.
    """

    def __init__(self, episode: Episode, reason: str) -> None:
        super().__init__(f"{reason} (seed {episode.seed}, episode {episode.number}, "
                         f"{len(episode.operations)} operations)")
        self.episode = episode
        self.reason = reason

    def trace(self) -> str:
        """JSON, one operation per line: `replay` takes it."""
        raw = self.episode.as_dict() | {"reason": self.reason}
        operations = ",\n  ".join(json.dumps(op) for op in raw.pop("operations"))
        head = json.dumps(raw, indent=1)[:-2]
        return f'{head},\n "operations": [\n  {operations}\n ]\n}}\n'


def run_fuzz(
    requests: int,
    seed: int = 0,
    *,
    model: str = "toy",
    components: Components | None = None,
    shrink_tries: int = 200,
    show_progress: bool = False,
) -> FuzzReport:
    """Runs that many random requests.

    Args:
        requests: how many.
        seed: the same seed does the same again.
        model: "toy", exact and fast, or "course", the bundled checkpoint.
        components: parts to test instead of the reference's; with "toy", all but the model and
            the tokenizer.
        shrink_tries: how often a failing episode is run again to make it shorter.
        show_progress: a bar on standard error, if that is a terminal.

    Raises:
        FuzzFailure: the engine did wrong; its `trace()` replays it.
    """
    report = FuzzReport(seeds=[seed])
    started = time.monotonic()
    with progress_bar(show_progress) as bar:
        task = bar.add_task("Fuzzing", total=requests, note="")
        for number in range(-(-requests // EPISODE_REQUESTS)):
            count = min(EPISODE_REQUESTS, requests - number * EPISODE_REQUESTS)
            episode = make_episode(seed, number, count, model)
            try:
                report.add(live(episode, components).totals)
            except Violation as wrong:
                raise shrunk(episode, components, str(wrong), shrink_tries) from wrong
            bar.advance(task, count)
    report.seconds = round(time.monotonic() - started, 1)
    return report


def replay(trace: str | Path, components: Components | None = None) -> FuzzReport:
    """Lives through the episode of a trace file again.

    Raises:
        FuzzFailure: it still fails.
    """
    raw = json.loads(Path(trace).read_text(encoding="utf-8"))
    raw.pop("reason", None)
    episode = Episode(**raw)
    report = FuzzReport(seeds=[episode.seed])
    try:
        report.add(live(episode, components).totals)
    except Violation as wrong:
        raise FuzzFailure(episode, str(wrong)) from wrong
    return report


def live(episode: Episode, components: Components | None = None) -> Driver:
    """Runs one episode; the returned driver knows what happened. Raises `Violation`."""
    before = set(threading.enumerate())
    setup = make_setup(episode.model, episode.config, components)

    async def life() -> Driver:
        driver = Driver(episode, setup)
        await driver.run()
        return driver

    with quiet_logs(), one_torch_thread():  # dying is part of the game
        driver = asyncio.run(life())
    last = time.monotonic() + 5.0
    while (left := set(threading.enumerate()) - before) and time.monotonic() < last:
        time.sleep(0.001)
    require(not left, f"threads are left over: {left}")
    return driver


def shrunk(episode: Episode, components: Components | None, reason: str, tries: int) -> FuzzFailure:
    """The failure with its episode as short as `tries` runs can make it."""
    reasons = [reason]

    def fails(operations: list[Any]) -> bool:
        try:
            live(episode.with_operations(operations), components)
        except Violation as wrong:
            reasons.append(str(wrong))
            return True
        return False

    return FuzzFailure(episode.with_operations(shrink(episode.operations, fails, tries)), reasons[-1])


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Tensors of a few numbers are slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
