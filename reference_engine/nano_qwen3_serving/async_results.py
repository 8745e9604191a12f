"""The dicts that `AsyncLLM` hands out, and its counts of how requests ended.

Knows outputs; knows nothing of engines or queues.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from nano_qwen3_serving.outputs import RequestOutput

Result = dict[str, Any]
Chunk = dict[str, Any]


@dataclass
class Totals:
    """Counts of an `AsyncLLM` since `start_time` (seconds since the epoch)."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    waited: float = 0.0
    start_time: float = field(default_factory=time.time)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def begin(self) -> Totals:
        """Counts a request; its end is counted in the object returned, even if `clear_stats` came between."""
        with self.lock:
            self.total += 1
        return self

    def end(self, output: RequestOutput | None) -> None:
        """Counts how a request ended: with its last output, or without one. On any thread."""
        with self.lock:
            if output is None:
                self.failed += 1
                return
            self.completed += 1
            if output.metrics and output.metrics.scheduled_ts:
                self.waited += output.metrics.scheduled_ts - output.metrics.arrival_time

    def end_of(self, future: Future[RequestOutput]) -> None:
        """Counts how a submitted request ended."""
        self.end(None if future.exception() else future.result())

    async def count(self, outputs: AsyncGenerator[RequestOutput, None]) -> AsyncGenerator[RequestOutput, None]:
        """Passes a request's outputs on and counts how it ends; a request that is given up counts as failed."""
        end = None
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    end = output if output.finished else None
                    yield output
        finally:
            self.end(end)

    def as_dict(self) -> dict[str, Any]:
        """A dict with the keys that users of `get_stats` know; the wait is seconds until the request was first scheduled."""
        return {
            "total_async_requests": self.total,
            "completed_async_requests": self.completed,
            "failed_async_requests": self.failed,
            "average_wait_time": self.waited / self.completed if self.completed else 0.0,
            "start_time": self.start_time,
        }


async def last(outputs: AsyncGenerator[RequestOutput, None]) -> RequestOutput:
    """The last of a request's outputs."""
    output = None
    async with aclosing(outputs):
        async for output in outputs:
            pass
    assert output is not None, "a stream ended without an output"
    return output


def result_dict(output: RequestOutput) -> Result:
    """A finished request in the shape that users of `AsyncLLM` rely on; the caller owns all of it."""
    completion = output.outputs[0]
    return {
        "request_id": output.request_id,
        "prompt": output.prompt,
        "generated_text": completion.text,
        "tokens_generated": len(completion.token_ids),
        "total_tokens": len(output.prompt_token_ids) + len(completion.token_ids),
        "block_indices": list(output.block_indices),
        "finish_reason": completion.finish_reason,
        "metrics": copy.copy(output.metrics),
    }


def chunk_dict(output: RequestOutput, text: str, total: int) -> Chunk:
    """A delta in the shape of a chunk; `text` and `total` tokens were generated so far."""
    new = output.outputs[0]
    return {
        "request_id": output.request_id,
        "token": new.text,
        "token_id": new.token_ids[-1] if new.token_ids else None,
        "token_ids": new.token_ids,
        "text": text,
        "finished": output.finished,
        "tokens_generated": total,
        "total_tokens": len(output.prompt_token_ids) + total,
        "finish_reason": new.finish_reason,
    }
