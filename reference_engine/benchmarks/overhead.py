"""Where a step's time goes besides the network, and what the flight recorder costs.

    python reference_engine/benchmarks/overhead.py --large /tmp/qwen3-0.6b --out reference_engine/benchmarks/results

Steps without a network are timed in CPU seconds of their thread, at several numbers of requests, lengths of context and of
the queue. The parts are timed on the course checkpoint, where the network is small and everything else shows;
the recorder on a checkpoint of Qwen3-0.6B's shape, as its share of a real step.
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nano_qwen3_serving import LLM
from nano_qwen3_serving.bench import Workload, run_workload
from nano_qwen3_serving.observe.files import write_atomically
from nano_qwen3_serving.observe.host import host
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.testing.idle_network import idle_engine

BATCH = Workload(32, (32, 32), (128, 128))
GRID = [  # requests that run, tokens of each, requests that wait
    (running, *more) for running in (8, 64, 256) for more in ((128, 0), (4096, 0), (32_000, 0), (128, 10_000))
] + [(512, 128, 0), (512, 4096, 0), (512, 128, 10_000)]
WARM_UP = Workload(4, (8, 8), (8, 8))


class Stopwatch:
    """Seconds of each call of the functions it was put around, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def around(self, owner: Any, method: str, name: str) -> None:
        """Times `owner.method` from now on."""
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[name].append(time.perf_counter() - started)

        setattr(owner, method, timed)


def step_parts(seed: int) -> dict[str, float]:
    """Median microseconds of each part of a step with 32 requests decoding on the course checkpoint."""
    llm = LLM("course")
    engine, runner = llm.llm_engine, llm.llm_engine.model_runner
    run_workload(llm, WARM_UP, seed)
    watch = Stopwatch()
    watch.around(engine, "step", "step")
    for owner, method, name in (
        (engine.scheduler, "schedule", "schedule"), (runner, "lay_out", "lay out tensors"),
        (runner, "_execute", "network and sampler"), (runner.verifier, "verify", "of that, sampling"),
        (engine.scheduler, "update", "update"), (engine.output_processor, "process", "output"),
    ):
        watch.around(owner, method, name)
    run_workload(llm, BATCH, seed)
    parts = {name: statistics.median(times) * 1e6 for name, times in watch.seconds.items()}
    named = ("schedule", "lay out tensors", "network and sampler", "update", "output")
    parts["everything else"] = parts["step"] - sum(parts[name] for name in named)
    parts["engine overhead"] = parts["step"] - parts["network and sampler"]
    return parts


def recorder_share(model: Path, steps: int, seed: int) -> dict[str, float]:
    """The recorder's part of a step's time, medians over `steps` steps of 8 requests."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder) / "steps.jsonl")
        watch = Stopwatch()
        watch.around(recorder, "on_step", "record")
        llm = LLM(str(model), dtype="bfloat16", max_model_len=1024, recorder=recorder)
        run_workload(llm, WARM_UP, seed)
        watch.around(llm.llm_engine, "step", "step")
        watch.seconds.clear()
        while len(watch.seconds["step"]) < steps:
            run_workload(llm, Workload(8, (32, 32), (128, 128)), seed)
        recorder.close()
    shares = [r / s for r, s in zip(watch.seconds["record"], watch.seconds["step"], strict=True)]
    return {
        "steps": len(shares), "record_median_us": statistics.median(watch.seconds["record"]) * 1e6,
        "step_median_us": statistics.median(watch.seconds["step"]) * 1e6, "share_median": statistics.median(shares),
    }


def step_costs(steps: int) -> list[dict[str, float]]:
    """Microseconds of CPU that a step takes beside the network, medians over `steps` steps.

    The first line of each group of three is what the others are compared with: more context, or more who wait.
    """
    costs = []
    for running, context, waiting in GRID:
        engine = idle_engine(running, context, waiting)
        gc.collect()
        gc.freeze()
        seconds = []
        for _ in range(steps):
            started = time.thread_time()
            engine.step()
            seconds.append(time.thread_time() - started)
        gc.unfreeze()
        step = statistics.median(seconds) * 1e6
        costs.append({"running": running, "context": context, "waiting": waiting, "step_us": step, "request_us": step / running,
                      "longest_us": max(seconds) * 1e6})
    return costs


def main(
    large: Annotated[Path | None, typer.Option(help="A checkpoint of Qwen3-0.6B's shape; without it no recorder figure.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON report.")] = None,
    steps: int = 1000,
    grid_steps: int = 100,
    seed: int = 0,
) -> None:
    """Measure the parts of a step, and the recorder."""
    report: dict[str, Any] = {
        "step_costs_us": step_costs(grid_steps), "step_parts_us": step_parts(seed), "seed": seed, "host": host()}
    if large is not None:
        report["recorder"] = recorder_share(large, steps, seed)
    grid = Table("running", "context", "waiting", "step, µs", "a request, µs", "longest, µs", title="Without a network",
                 title_justify="left")
    for cost in report["step_costs_us"]:
        grid.add_row(*(f"{number:,.0f}" if name != "request_us" else f"{number:.1f}" for name, number in cost.items()))
    Console().print(grid)
    table = Table("part of a step, 32 requests", "median, µs", title="Course checkpoint", title_justify="left")
    for name, value in report["step_parts_us"].items():
        table.add_row(name, f"{value:.0f}")
    Console().print(table, report.get("recorder", ""))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "overhead.json", json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
