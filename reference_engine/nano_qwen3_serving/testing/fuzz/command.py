"""`python -m nano_qwen3_serving fuzz`: runs, prints, writes."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from nano_qwen3_serving.observe.files import write_atomically
from nano_qwen3_serving.testing.fuzz.report import FuzzReport, record, report_table
from nano_qwen3_serving.testing.fuzz.run import FuzzFailure, replay, run_fuzz


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
