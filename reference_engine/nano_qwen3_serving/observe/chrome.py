"""Flight records → the trace format of Chrome and Perfetto (open ui.perfetto.dev, load the file).

One row for the engine's own work, one for each request; counters for queues and blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PHASES = ("schedule", "execute", "output")


def chrome_trace(steps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The records of `Recorder.steps` as a trace; times in microseconds from the first step."""
    events: list[dict[str, Any]] = []
    rows: dict[str, int] = {}
    origin = begin_of(steps[0]) if steps else 0.0
    for step in steps:
        start = (begin_of(step) - origin) * 1e6
        events += counters(step, start)
        for phase in PHASES:
            length = step["seconds"][phase] * 1e6
            events.append(span(f"{phase} {step['step']}", 0, start, length, {"tokens": step_tokens(step)}))
            if phase == "execute":
                events += [chunk_span(c, step, rows, start, length) for c in step["chunks"]]
            start += length
    names = {0: "engine"} | {row: f"request {request}" for request, row in rows.items()}
    events += [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": row, "args": {"name": name}} for row, name in names.items()]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def begin_of(step: dict[str, Any]) -> float:
    """Engine time at which a step began, in seconds."""
    return step["time"] - sum(step["seconds"].values())


def step_tokens(step: dict[str, Any]) -> int:
    """Tokens that a step computed."""
    return sum(c["num_tokens"] for c in step["chunks"])


def chunk_span(chunk: dict[str, Any], step: dict[str, Any], rows: dict[str, int], start: float, length: float) -> dict[str, Any]:
    """What a request computed in a step, on the request's own row."""
    request, first, count = chunk["request"], chunk["start"], chunk["num_tokens"]
    row = rows.setdefault(request, len(rows) + 1)
    name = f"token {first}" if count == 1 else f"tokens {first}–{first + count - 1}"
    detail = {"blocks": step["block_tables"][request], "sampled": step["sampled"].get(request)}
    return span(name, row, start, length, detail)


def span(name: str, row: int, start: float, length: float, detail: dict[str, Any]) -> dict[str, Any]:
    """A complete event."""
    return {"ph": "X", "name": name, "pid": 1, "tid": row, "ts": start, "dur": length, "args": detail}


def counters(step: dict[str, Any], start: float) -> list[dict[str, Any]]:
    """Queues and free blocks at a step's beginning."""
    values = {
        "requests": {"running": len(step["running"]), "waiting": len(step["waiting"])},
        "free blocks": {"free": step["free_blocks"]},
    }
    return [{"ph": "C", "name": name, "pid": 1, "tid": 0, "ts": start, "args": v} for name, v in values.items()]
