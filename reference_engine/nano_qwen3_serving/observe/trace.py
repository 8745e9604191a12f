"""The flight recorder: one record per step of what was scheduled, computed and finished.

Knows what a step leaves behind; changes nothing. Records are plain dicts, one JSON line each when
written to a file, so that tests, labs and pictures read the same truth.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

from nano_qwen3_serving.observe.observer import EngineObserver, StepRecord


def record_of(step: StepRecord, number: int) -> dict[str, Any]:
    """The record of a step: a dict of plain values that `json` writes, described at `Recorder`.

    Args:
        step: one that is over.
        number: which step it was, from 0.
    """
    batch, result, block_manager = step.batch, step.result, step.block_manager
    return {
        "step": number,
        "time": step.ended,
        "chunks": [
            {"request": c.request.request_id, "start": c.start, "num_tokens": c.num_tokens,
             "samples": c.request.request_id in result.token_ids}
            for c in batch.chunks
        ],
        "block_tables": {c.request.request_id: list(c.block_table) for c in batch.chunks},
        "running": list(step.running),
        "waiting": list(step.waiting),
        "preempted": [r.request_id for r in batch.preempted],
        "sampled": dict(result.token_ids),
        "finished": {
            c.request.request_id: c.request.finish_reason for c in batch.chunks if c.request.finish_reason
        },
        "free_blocks": block_manager.num_free_blocks,
        "evictions": getattr(block_manager, "num_evictions", 0),
        "seconds": {
            "schedule": step.scheduled - step.started,
            "execute": step.executed - step.scheduled,
            "output": step.ended - step.executed},
    }


class Recorder(EngineObserver):
    """Keeps the records of an engine's steps, in memory and, with a path, in a file.

    Attributes:
        steps: a dict per step, with

            step         number of the step, from 0
            time         engine time at its end, in seconds
            chunks       [{request, start, num_tokens, samples}] in the order of the batch
            block_tables {request: [block, …]} of the batch
            running      ids running after scheduling
            waiting      ids waiting after scheduling, in order
            preempted    ids that lost their blocks in the step
            sampled      {request: [token, …]}
            finished     {request: finish reason}
            free_blocks  blocks that could be given out at its end
            evictions    cached blocks evicted since the engine began
            seconds      {schedule, execute, output} of the step
    """

    name, lists_queues = "recorder", True

    def __init__(self, path: str | Path | None = None) -> None:
        self.steps: list[dict[str, Any]] = []
        self._file: TextIO | None = Path(path).open("w", encoding="utf-8") if path else None  # noqa: SIM115 (close() closes it)

    def on_step(self, step: StepRecord) -> None:
        """Notes the step."""
        entry = record_of(step, len(self.steps))
        self.steps.append(entry)
        if self._file is not None:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()

    def steps_with(self, request_id: str) -> list[dict[str, Any]]:
        """The steps that computed tokens of the request."""
        return [s for s in self.steps if request_id in s["block_tables"]]

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
