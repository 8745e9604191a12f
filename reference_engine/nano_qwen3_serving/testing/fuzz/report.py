"""What happened in a run of the fuzzer, in numbers: for a program, for people, for a file."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from nano_qwen3_serving.observe.host import host


@dataclass
class FuzzReport:
    """What happened in a run.

    Attributes:
        requests: submitted, and how they ended:
        finished: with every token right; `aborts` by id; `timeouts`; `refused`: too long, too many
            waiting, or a tokenizer that raised; `failed`: alone, by a fault; `stopped`: the engine
            was; `vanished`: the caller was gone.
        cancellations: callers who gave up before their request was over.
        full: how many of the refused found no place in the queue.
        structured: requests with a grammar.
        second_loop: requests whose caller lives on another event loop, in another thread.
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
    full: int = 0
    structured: int = 0
    second_loop: int = 0
    faults: int = 0
    preemptions: int = 0
    evictions: int = 0
    steps: int = 0
    episodes: int = 0
    seconds: float = 0.0
    seeds: list[int] = field(default_factory=list)

    def add(self, totals: Counter[str]) -> None:
        """Adds an episode's numbers."""
        self.episodes += 1
        for name, count in totals.items():
            setattr(self, name, getattr(self, name) + count)

    def merged(self, other: FuzzReport) -> FuzzReport:
        """Both runs as one."""
        mine, theirs = asdict(self), asdict(other)
        both = {name: mine[name] + theirs[name] for name in mine}
        return FuzzReport(**both | {"seconds": round(both["seconds"], 1)})


def report_table(report: FuzzReport) -> Table:
    """The totals for people."""
    table = Table(title="Nothing went wrong", title_justify="left")
    table.add_column("what")
    table.add_column("count", justify="right")
    for name, value in asdict(report).items():
        table.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else f"{value:,}")
    return table


def record(report: FuzzReport, model: str) -> dict[str, Any]:
    """The totals for a file, with the machine they were measured on."""
    return {"model": model, "totals": asdict(report), "host": host()}
