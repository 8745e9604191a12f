"""The results of a load test as numbers: percentiles, throughput, goodput, failures by kind.

Knows times and counts that were taken; knows nothing of clocks, connections or servers.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from rich.console import Console
from rich.table import Table

PERCENTILES = (50, 90, 99)
LATENCIES = {"ttft": "time to first token", "itl": "between two tokens", "e2e": "whole answer"}


def poisson_arrivals(requests: int, rate: float, seed: int) -> list[float]:
    """When each of `requests` arrives, in seconds from the beginning: independent of each other, `rate` a second on average."""
    rng = random.Random(seed)
    return list(accumulate(rng.expovariate(rate) for _ in range(requests)))


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of the `values` lie, interpolated between two neighbours as numpy does by default."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass
class Sample:
    """One request's result. Times are seconds since the run began.

    Attributes:
        scheduled: when it was due; latencies count from here, so that a request that is sent late counts as slow.
        prompt_tokens: its prompt's length.
        sent: when it was sent.
        pieces: when each piece of its answer came. A piece has one token, or several if the server merged them.
        ended: when its answer was complete.
        output_tokens: the answer's, as the server counts them.
        failure: the kind, or "" if it was answered.
        detail: what the server or the connection said about the failure.
    """

    scheduled: float
    prompt_tokens: int
    sent: float = 0.0
    pieces: list[float] = field(default_factory=list)
    ended: float = 0.0
    output_tokens: int = 0
    failure: str = ""
    detail: str = ""

    def fail(self, kind: str, detail: str) -> None:
        """Notes that it was not answered."""
        self.failure, self.detail = kind, detail

    @property
    def ttft(self) -> float:
        """Seconds until the first token."""
        return self.pieces[0] - self.scheduled

    @property
    def e2e(self) -> float:
        """Seconds until the answer was complete."""
        return self.ended - self.scheduled

    @property
    def mean_itl(self) -> float:
        """Mean seconds between two tokens; 0.0 if there is only one."""
        return (self.pieces[-1] - self.pieces[0]) / max(self.output_tokens - 1, 1)


@dataclass(frozen=True)
class LatencyLimits:
    """Limits that an answer must keep to count as goodput, in seconds; None is no limit.

    Attributes:
        ttft: until the first token.
        itl: between two tokens, the mean of one answer.
        e2e: until the answer is complete.
    """

    ttft: float | None = None
    itl: float | None = None
    e2e: float | None = None

    def are_kept_by(self, sample: Sample) -> bool:
        """Whether an answered request kept to all of them."""
        measured = ((self.ttft, sample.ttft), (self.itl, sample.mean_itl), (self.e2e, sample.e2e))
        return all(limit is None or value <= limit for limit, value in measured)


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """`{"p50": …, "p90": …, "p99": …}`; None of no values."""
    return {f"p{percent}": percentile(values, percent) if values else None for percent in PERCENTILES}


def summary(samples: Sequence[Sample], seconds: float, limits: LatencyLimits) -> dict[str, Any]:
    """The figures of a run that took `seconds`. Latencies and tokens are those of requests that were answered."""
    answered = [sample for sample in samples if not sample.failure]
    output_tokens = sum(sample.output_tokens for sample in answered)
    failures = Counter(sample.failure for sample in samples if sample.failure)
    good = sum(limits.are_kept_by(sample) for sample in answered)
    return {
        "seconds": seconds,
        "requests": len(samples),
        "answered": len(answered),
        "failures": dict(failures.most_common()),
        "failure_examples": {kind: next(s.detail for s in samples if s.failure == kind) for kind in failures},
        "ttft": percentiles([sample.ttft for sample in answered]),
        "itl": percentiles([later - earlier for sample in answered for earlier, later in pairwise(sample.pieces)]),
        "e2e": percentiles([sample.e2e for sample in answered]),
        "sent_late": percentiles([sample.sent - sample.scheduled for sample in samples]),
        "requests_per_second": len(answered) / seconds,
        "output_tokens_per_second": output_tokens / seconds,
        "total_tokens_per_second": (output_tokens + sum(sample.prompt_tokens for sample in answered)) / seconds,
        "goodput": None if limits == LatencyLimits() else {
            "limits": asdict(limits), "answered_within": good, "requests_per_second": good / seconds},
    }


def show(report: dict[str, Any], console: Console) -> None:
    """Prints a report for people."""
    table = Table("milliseconds", *(f"p{percent}" for percent in PERCENTILES))
    for name, title in LATENCIES.items():
        table.add_row(title, *("–" if value is None else f"{value * 1e3:,.1f}" for value in report[name].values()))
    console.print(table)
    for name in ("requests_per_second", "output_tokens_per_second", "total_tokens_per_second"):
        console.print(f"{name.replace('_', ' '):28} {report[name]:10.2f}")
    console.print(f"answered {report['answered']} of {report['requests']} in {report['seconds']:.2f} s")
    if (goodput := report["goodput"]) is not None:
        console.print(f"within the limits: {goodput['answered_within']}, {goodput['requests_per_second']:.2f} a second")
    for kind, count in report["failures"].items():
        console.print(f"failed, {kind}: {count}; for example: {report['failure_examples'][kind]}", style="red")
