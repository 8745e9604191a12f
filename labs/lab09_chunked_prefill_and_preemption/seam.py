"""How the engine uses this lab's part: `Components.scheduler`.

The lab's class counts tokens and blocks. Tokens themselves, block tables and finish reasons are added here, and so is what
this lab leaves to Lab 10: no prefix is looked for, so every prompt is computed.
"""

from collections.abc import Sequence
from types import ModuleType

from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.interfaces import (
    BlockManager,
    RequestUpdate,
    SampledTokens,
    ScheduledBatch,
    ScheduledChunk,
    StoppedRequest,
)
from nano_qwen3_serving.outputs import FinishReason
from nano_qwen3_serving.request import Request, RequestStatus
from nano_qwen3_serving.scheduling.scheduler import ended_at


def scheduler(lab: ModuleType, config: EngineConfig, block_manager: BlockManager) -> "PlannedScheduler":
    """The lab's `Scheduler` for this engine, with the policy of the engine's own."""
    bounds = config.scheduler
    policy = lab.Policy(token_budget=bounds.max_num_batched_tokens)
    part = lab.Scheduler(config.cache.num_blocks - 1, config.cache.block_size, bounds.max_num_seqs, policy)
    return PlannedScheduler(part, block_manager, bounds.policy == "priority")


class PlannedScheduler:
    """Does with the engine's requests and blocks what the lab's part decides."""

    def __init__(self, part, block_manager: BlockManager, by_priority: bool) -> None:
        self._part, self.block_manager, self._by_priority = part, block_manager, by_priority
        self._requests: dict[str, Request] = {}

    @property
    def waiting(self) -> list[Request]:
        return self._those(RequestStatus.WAITING)

    @property
    def running(self) -> list[Request]:
        return self._those(RequestStatus.RUNNING)

    def _those(self, status: RequestStatus) -> list[Request]:
        return sorted((r for r in self._requests.values() if r.status is status), key=lambda r: r.order)

    def add(self, request: Request) -> None:
        if not self._by_priority:
            request.priority = 0
        self._requests[request.request_id] = request
        longest = request.max_total_tokens - request.num_prompt_tokens
        self._part.add(request.request_id, request.num_prompt_tokens, longest, request.priority)

    def abort(self, request_id: str) -> None:
        self.finish([StoppedRequest(request_id, "abort")])

    def finish(self, stopped: Sequence[StoppedRequest]) -> None:
        for stop in stopped:
            request = self._requests.get(stop.request_id)
            if request is not None:
                request.stop_reason = stop.stop_reason
                if stop.num_output_tokens is not None:
                    del request.output_token_ids[stop.num_output_tokens :]
                self._end(request, stop.finish_reason)
                self._part.end(stop.request_id)

    def schedule(self) -> ScheduledBatch:
        chunks, preempted = self._part.schedule()
        for name in preempted:
            self._take_away(self._known(name))
        scheduled = [self._chunk(self._known(name), size) for name, size in chunks.items()]
        return ScheduledBatch(scheduled, [self._requests[name] for name in preempted])

    def _known(self, name: str) -> Request:
        if name not in self._requests:
            raise ValueError(f"schedule() named {name!r}, which is no request of this engine")
        return self._requests[name]

    def _take_away(self, request: Request) -> None:
        self.block_manager.free(request.request_id)
        request.num_computed_tokens = 0
        request.status = RequestStatus.WAITING
        request.metrics.num_preemptions += 1

    def _chunk(self, request: Request, size: int) -> ScheduledChunk:
        """The engine's chunk of this size, whose blocks are allocated."""
        name, start = request.request_id, request.num_computed_tokens
        if not 0 < size <= request.num_uncomputed_tokens:
            raise ValueError(f"schedule() gave {name} a chunk of {size} tokens; {request.num_uncomputed_tokens} are to go")
        if not self.block_manager.allocate(name, start + size):
            raise ValueError(f"schedule() gave {name} {size} tokens after {start}, for which there are not enough free blocks")
        request.status = RequestStatus.RUNNING
        request.num_cached_tokens = 0
        return ScheduledChunk.of(request, start, size, self.block_manager.block_table(name))

    def update(self, batch: ScheduledBatch, result: SampledTokens) -> list[RequestUpdate]:
        updates, ended = [], []
        for chunk in batch.chunks:
            request = chunk.request
            if request.status is not RequestStatus.RUNNING:
                continue  # it ended while it was computed
            new, reason = ended_at(request, result.token_ids[request.request_id]) if chunk.samples else ([], None)
            request.output_token_ids.extend(new)
            request.draft_token_ids = []
            request.num_computed_tokens = chunk.known_end
            if reason is not None:
                self._end(request, reason)
                ended.append(request.request_id)
            if chunk.samples:
                updates.append(RequestUpdate(request, new, result.logprobs.get(request.request_id)))
        self._part.update({chunk.request.request_id: chunk.num_tokens for chunk in batch.chunks}, ended)
        return updates

    def _end(self, request: Request, reason: FinishReason) -> None:
        self.block_manager.free(request.request_id)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        del self._requests[request.request_id]
