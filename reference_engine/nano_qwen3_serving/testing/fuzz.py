"""The engine fuzzer: random requests and accidents on the real `AsyncLLMEngine`.

    run_fuzz(10_000, seed=1)      raises FuzzFailure, or returns what happened

A run is cut into episodes of one engine each. An episode is drawn from the seed and is plain JSON:
a configuration and a list of operations (`fuzz_operations.py`). It is lived through with the clock
and the steps in the fuzzer's hands (`fuzz_driver.py`), so it always runs the same way. Every output
is compared with what the same request says alone (`fuzz_checks.py`). A failing episode is made as
short as possible (`fuzz_shrink.py`) and written down to be replayed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from nano_qwen3_serving.components import Components
from nano_qwen3_serving.observe.files import write_atomically
from nano_qwen3_serving.observe.host import host
from nano_qwen3_serving.observe.progress import progress_bar
from nano_qwen3_serving.testing.fuzz_checks import Wrong, require
from nano_qwen3_serving.testing.fuzz_driver import Driver
from nano_qwen3_serving.testing.fuzz_operations import Episode, make_episode
from nano_qwen3_serving.testing.fuzz_setup import make_setup
from nano_qwen3_serving.testing.fuzz_shrink import shrink

EPISODE_REQUESTS = 25


@dataclass
class FuzzReport:
    """What happened in a run.

    Attributes:
        requests: submitted, and how they ended:
        finished: with every token right; `aborts` by id; `timeouts`; `refused`: too long, too many
            waiting, or a tokenizer that raised; `failed`: alone, by a fault; `stopped`: the engine
            was; `vanished`: the caller was gone.
        cancellations: callers who gave up before their request was over.
        faults: injected errors that were raised.
        preemptions, evictions: requests that lost their blocks, known blocks that were forgotten.
        steps: of all engines; `episodes`: engines.
        seeds: of the runs.
        seconds: wall clock.
    """

    requests: int = 0
    finished: int = 0
    aborts: int = 0
    vanished: int = 0
    timeouts: int = 0
    refused: int = 0
    failed: int = 0
    stopped: int = 0
    cancellations: int = 0
    faults: int = 0
    preemptions: int = 0
    evictions: int = 0
    steps: int = 0
    episodes: int = 0
    seconds: float = 0.0
    seeds: list[int] = field(default_factory=list)

    def add(self, totals: Counter[str]) -> None:
        """Takes an episode in."""
        self.episodes += 1
        for name, count in totals.items():
            setattr(self, name, getattr(self, name) + count)

    def merged(self, other: FuzzReport) -> FuzzReport:
        """Both runs as one."""
        mine, theirs = asdict(self), asdict(other)
        both = {name: mine[name] + theirs[name] for name in mine}
        return FuzzReport(**both | {"seconds": round(both["seconds"], 1)})


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
            except Wrong as wrong:
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
    except Wrong as wrong:
        raise FuzzFailure(episode, str(wrong)) from wrong
    return report


def live(episode: Episode, components: Components | None = None) -> Driver:
    """Lives through one episode; its driver knows what happened. Raises `Wrong`."""
    before = set(threading.enumerate())
    setup = make_setup(episode.model, episode.config, components)

    async def life() -> Driver:
        driver = Driver(episode, setup.parts, setup)
        await driver.run()
        return driver

    with quiet_logs(), one_torch_thread():
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
        except Wrong as wrong:
            reasons.append(str(wrong))
            return True
        return False

    return FuzzFailure(episode.with_operations(shrink(episode.operations, fails, tries)), reasons[-1])


@contextmanager
def quiet_logs() -> Iterator[None]:
    """The engine's log is silent: dying is part of the game."""
    logger = logging.getLogger("nano_qwen3_serving")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Tensors of a few numbers are slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def fuzz_command(
    requests: int = 500,
    seeds: list[int] | None = None,
    *,
    model: str = "toy",
    replay_file: str | None = None,
    trace_file: str = "fuzz_trace.json",
    json_file: str | None = None,
) -> int:
    """What `python -m nano_qwen3_serving fuzz` does: runs, prints, writes; 0 if nothing was wrong.

    Args:
        requests: how many in all, split over the seeds.
        seeds: [0] if not given.
        model: "toy" or "course".
        replay_file: a trace to live through again, instead of random requests.
        trace_file: where a failure's trace goes.
        json_file: where the totals go.
    """
    console = Console()
    seeds = seeds or [0]
    report = FuzzReport()
    try:
        if replay_file is not None:
            report = replay(replay_file)
        else:
            for i, seed in enumerate(seeds):
                share = requests // len(seeds) + (i < requests % len(seeds))
                report = report.merged(run_fuzz(share, seed, model=model, show_progress=True))
    except FuzzFailure as failure:
        console.print(failure.trace(), markup=False, highlight=False, soft_wrap=True)
        console.print(f"FAILED: {failure}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        if replay_file is None:
            write_atomically(Path(trace_file), failure.trace())
            console.print(f"The trace is in {trace_file}: python -m nano_qwen3_serving fuzz --replay {trace_file}",
                          markup=False, highlight=False, soft_wrap=True)
        return 1
    console.print(report_table(report))
    if json_file is not None:
        write_atomically(Path(json_file), json.dumps(record(report, model), indent=1) + "\n")
    return 0


def report_table(report: FuzzReport) -> Table:
    """The totals for people."""
    table = Table(title="Nothing went wrong", title_justify="left")
    table.add_column("what")
    table.add_column("count", justify="right")
    for name, value in asdict(report).items():
        table.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else f"{value:,}")
    return table


def record(report: FuzzReport, model: str) -> dict[str, Any]:
    """The totals for a file, with what they were measured on."""
    return {"model": model, "totals": asdict(report), "host": host()}
