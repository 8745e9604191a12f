"""A scheduler in a state that a test describes, and its answers as plain values.

Knows the names of Lab 08's scheduler; judges nothing. It lives where the part lives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from labs.harness.event_log.play import Arrival, make_request, plain_blocks
from nano_qwen3_serving.config import SchedulerConfig
from nano_qwen3_serving.interfaces import SampledTokens, ScheduledBatch, ScheduledChunk, StoppedRequest
from nano_qwen3_serving.request import Request, RequestStatus


class ByHand:
    """A scheduler, its block manager, and requests that wait or run.

    Args:
        make_scheduler: the class `Scheduler`.
        bounds: fields of `SchedulerConfig`.
        num_blocks: of four tokens, the null block among them.
        waiting: requests in order.
        running: requests whose prompt is computed and that have one token, which is not.
        more: further arguments of the scheduler.
    """

    def __init__(
        self, make_scheduler: Callable[..., Any], bounds: Mapping[str, Any], num_blocks: int, waiting: Sequence[Arrival] = (),
        running: Sequence[Arrival] = (), more: Mapping[str, Any] | None = None,
    ) -> None:
        self.blocks = plain_blocks(num_blocks, 4)
        self.scheduler = make_scheduler(SchedulerConfig(**bounds), self.blocks, **(more or {}))
        self.requests: dict[str, Request] = {}
        for arrival in waiting:
            self.scheduler.waiting.append(self.request(arrival))
        for arrival in running:
            request = self.request(arrival)
            self.blocks.allocate(request.request_id, request.max_total_tokens)
            request.num_computed_tokens, request.status = request.num_prompt_tokens, RequestStatus.RUNNING
            request.output_token_ids.append(77)
            self.scheduler.running.append(request)

    def request(self, arrival: Arrival) -> Request:
        """A new request, numbered by its place."""
        request = self.requests[arrival["request"]] = make_request(arrival, len(self.requests))
        return request

    def add(self, arrival: Arrival) -> None:
        """Calls add() with a new request."""
        self.scheduler.add(self.request(arrival))

    def admit(self, name: str, tokens_left: int) -> dict[str, Any] | None:
        """What admit() answers."""
        return chunk_dict(self.scheduler.admit(self.requests[name], tokens_left))

    def admissions(self, tokens_left: int) -> list[Any]:
        """What admissions() answers."""
        return [chunk_dict(chunk) for chunk in self.scheduler.admissions(tokens_left)]

    def decodes(self) -> list[Any]:
        """What decodes() answers."""
        return [chunk_dict(chunk) for chunk in self.scheduler.decodes()]

    def update(self, sampled: Mapping[str, list[int]], ended: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Calls update() after a step in which the requests of `sampled` had a chunk of all they know.

        Those of `ended` have ended while it was computed.
        """
        chunks = []
        for name in sampled:
            request = self.requests[name]
            table = list(self.blocks.block_table(name))
            chunks.append(ScheduledChunk.of(request, request.num_computed_tokens, request.num_uncomputed_tokens, table))
        for name in ended:
            self.scheduler.running.remove(self.requests[name])
            self.blocks.free(name)
            self.requests[name].status, self.requests[name].finish_reason = RequestStatus.FINISHED, "abort"
        logprobs = {name: [{1: None}] for name in sampled}
        updates = self.scheduler.update(ScheduledBatch(chunks), SampledTokens(dict(sampled), logprobs))  # type: ignore[arg-type]
        return [{"request": one.request.request_id, "new": one.new_token_ids, "logprobs": bool(one.logprobs)} for one in updates]

    def finish(self, *stopped: Sequence[Any]) -> None:
        """Calls finish() with the fields of `StoppedRequest`s."""
        self.scheduler.finish([StoppedRequest(*fields) for fields in stopped])

    def state(self) -> dict[str, Any]:
        """Who waits, who runs, and how many blocks are free."""
        return {
            "waiting": [request.request_id for request in self.scheduler.waiting],
            "running": [request.request_id for request in self.scheduler.running],
            "free": self.blocks.num_free_blocks}

    def look(self, name: str) -> dict[str, Any]:
        """What is known of a request."""
        request = self.requests[name]
        return {
            "status": request.status.value, "output": list(request.output_token_ids),
            "computed": request.num_computed_tokens, "reason": request.finish_reason, "stop_reason": request.stop_reason,
            "priority": request.priority}


def chunk_dict(chunk: Any) -> Any:
    """A `ScheduledChunk` as plain values; anything else as it is."""
    if not isinstance(chunk, ScheduledChunk):
        return chunk
    return {"request": chunk.request.request_id, "start": chunk.start, "tokens": list(chunk.token_ids),
            "blocks": len(chunk.block_table), "samples": chunk.samples}
