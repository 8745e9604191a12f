"""Who runs in the next step, and how many of each request's tokens.

Knows requests and the block manager; knows nothing of tensors, text or time. The rule is one:
bring `num_computed_tokens` up to `num_tokens`, within a budget of tokens a step. Requests that
decode (one token to go) come first, so that no prompt makes them wait; what is left of the budget
goes to prompts, in chunks (Sarathi-Serve, Agrawal et al., 2024). When blocks run out, the request
that is last in order gives all of its own back and later computes them again (vLLM's preemption by
recomputation). The first in order always advances, so every request finishes in the end.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from operator import attrgetter

from nano_qwen3_serving.config import SchedulerConfig
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
from nano_qwen3_serving.scheduling.budget import Budget

by_order = attrgetter("order")


class Scheduler:
    """Continuous batching (Orca, Yu et al., 2022): requests join and leave the batch at every step.

    Args:
        config: the bounds of a step.
        block_manager: asked for blocks before anything is scheduled.
    """

    def __init__(self, config: SchedulerConfig, block_manager: BlockManager) -> None:
        self.config = config
        self.block_manager = block_manager
        self.waiting: list[Request] = []  # in order
        self.running: list[Request] = []  # in order
        self._requests: dict[str, Request] = {}

    def add(self, request: Request) -> None:
        """Queues a request at its place in `order`."""
        if self.config.policy == "fcfs":
            request.priority = 0
        self._requests[request.request_id] = request
        insort(self.waiting, request, key=by_order)

    def abort(self, request_id: str) -> None:
        """Ends a request wherever it is, and frees its blocks. An unknown id is a no-op."""
        self.finish([StoppedRequest(request_id, "abort")])

    def finish(self, stopped: Sequence[StoppedRequest]) -> None:
        """Ends requests for reasons that only others can see. Unknown ids are no-ops."""
        for stop in stopped:
            request = self._requests.get(stop.request_id)
            if request is not None:
                request.stop_reason = stop.stop_reason
                if stop.num_output_tokens is not None:
                    del request.output_token_ids[stop.num_output_tokens :]
                self._end(request, stop.finish_reason)

    def schedule(self) -> ScheduledBatch:
        """Picks the chunks of the next step and has block tables cover them.

        At most `max_num_batched_tokens` tokens and `max_num_seqs` requests. Nobody is admitted in a
        step that had to preempt.
        """
        budget = Budget(self.config, len(self.running))
        in_turn = sorted(self.running, key=lambda r: r.num_uncomputed_tokens > 1)  # those that decode come first
        for place, request in enumerate(in_turn, start=1):
            if request.status is RequestStatus.RUNNING:  # not preempted meanwhile
                self._advance(request, budget, reserved=len(in_turn) - place)
        while self.waiting and not budget.preempted and self._admit(self.waiting[0], budget):
            pass
        return budget.batch()

    def update(self, batch: ScheduledBatch, result: SampledTokens) -> list[RequestUpdate]:
        """Applies what a step computed: tokens grow, full blocks can be shared, the done finish."""
        updates = []
        for chunk in batch.chunks:
            request = chunk.request
            if request.status is not RequestStatus.RUNNING:
                continue  # it ended while it was computed
            new, reason = ended_at(request, result.token_ids[request.request_id]) if chunk.samples else ([], None)
            request.output_token_ids.extend(new)
            request.draft_token_ids = []
            request.num_computed_tokens = chunk.known_end + max(len(new) - 1, 0)  # accepted drafts are computed, too
            self._commit(request, chunk.start)
            if reason is not None:
                self._end(request, reason)
            if chunk.samples:
                updates.append(RequestUpdate(request, new, result.logprobs.get(request.request_id)))
        return updates

    def _commit(self, request: Request, start: int) -> None:
        """Blocks that a chunk from `start` on has filled can be shared."""
        size = self.block_manager.block_size
        first = start // size * size
        if request.num_computed_tokens - first >= size:
            self.block_manager.commit(request.request_id, request.token_ids(first, request.num_computed_tokens), first)

    def _advance(self, request: Request, budget: Budget, reserved: int) -> None:
        """Gives a running request what it gets of the step; drafts leave a token for each of `reserved` others."""
        size = budget.chunk_size(request.num_uncomputed_tokens)
        if not size:
            return
        drafts = self._drafts(request, size, budget.tokens - size - reserved)
        if drafts or self._make_room(request, size, budget):
            budget.spend(self._chunk(request, size, drafts))

    def _drafts(self, request: Request, size: int, most: int) -> list[int]:
        """Drafts that follow a chunk of `size` tokens: at most `most`, none past the request's end, and none for which
        somebody would have to be preempted."""
        known = request.num_tokens
        if not request.draft_token_ids or request.num_computed_tokens + size < known:
            return []
        drafts = request.draft_token_ids[: max(min(most, request.max_total_tokens - known - 1), 0)]
        return drafts if drafts and self.block_manager.allocate(request.request_id, known + len(drafts)) else []

    def _chunk(self, request: Request, size: int, drafts: Sequence[int] = ()) -> ScheduledChunk:
        table = self.block_manager.block_table(request.request_id)
        return ScheduledChunk.of(request, request.num_computed_tokens, size, table, drafts)

    def _make_room(self, request: Request, size: int, budget: Budget) -> bool:
        """Grows the request's block table, preempting from the end of the order until it fits.

        Returns False if the request itself was the last in order, and so the one preempted.
        """
        while not self.block_manager.allocate(request.request_id, request.num_computed_tokens + size):
            victim = self.running.pop()
            budget.take_back(victim)
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self.block_manager.free(request.request_id)
        request.num_computed_tokens = 0
        request.status = RequestStatus.WAITING
        request.metrics.num_preemptions += 1
        insort(self.waiting, request, key=by_order)

    def _admit(self, request: Request, budget: Budget) -> bool:
        """Starts the first waiting request if a sequence, budget and blocks for all its tokens are left.

        Only the chunk's blocks are taken; asking for all of them keeps a prompt from being started
        that would be preempted halfway.
        """
        if budget.seqs < 1:
            return False
        tokens = request.token_ids(0, request.num_tokens)
        cached = 0
        if request.params.prompt_logprobs is None:  # those need every token of the prompt computed
            cached = self.block_manager.find_cached_prefix(request.request_id, tokens, request.cache_salt)
            if self._is_coming(tokens, cached, request.cache_salt, budget):
                return False
        size = budget.chunk_size(len(tokens) - cached)
        needed = -(-(len(tokens) - cached) // self.block_manager.block_size)
        if not size or needed > self.block_manager.num_free_blocks:
            return False
        if not self.block_manager.allocate(request.request_id, cached + size, tokens[:cached], request.cache_salt):
            return False
        self._start(request, cached)
        budget.seqs -= 1
        budget.spend(self._chunk(request, size))
        return True

    def _is_coming(self, tokens: list[int], cached: int, salt: str, budget: Budget) -> bool:
        """Whether this step computes the first block that a request lacks, for another one: a step later it is a hit.

        So a prefix that several requests share is computed once, though they arrive together. (vLLM shares blocks that
        are promised and not yet computed: a step sooner, and a failed or preempted writer leaves readers behind.)
        """
        end = cached + self.block_manager.block_size
        return self.block_manager.enable_prefix_caching and end < len(tokens) and budget.computes(tokens[:end], salt)

    def _start(self, request: Request, cached: int) -> None:
        """Moves the first waiting request to those that run; its first `cached` tokens are computed."""
        if request.num_cached_tokens is None:  # recomputation after a preemption is not a hit
            request.num_cached_tokens = cached
        request.num_computed_tokens = cached
        request.status = RequestStatus.RUNNING
        self.waiting.pop(0)
        insort(self.running, request, key=by_order)

    def _end(self, request: Request, reason: FinishReason) -> None:
        (self.running if request.status is RequestStatus.RUNNING else self.waiting).remove(request)
        self.block_manager.free(request.request_id)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason
        del self._requests[request.request_id]


def ended_at(request: Request, new: list[int]) -> tuple[list[int], FinishReason | None]:
    """New tokens up to the first that ends the request, and how it ends it."""
    for count, token_id in enumerate(new, start=1):
        reason = finish_reason(request, token_id, len(request.output_token_ids) + count)
        if reason is not None:
            return new[:count], reason
    return new, None


def finish_reason(request: Request, token_id: int, num_output_tokens: int) -> FinishReason | None:
    """Whether a token ends the request, by what it is or by how many there are with it."""
    enough = num_output_tokens >= request.params.min_tokens
    if enough and token_id in request.eos_token_ids and not request.params.ignore_eos:
        request.stop_reason = None if token_id == request.eos_token_id else token_id
        return "stop"
    if enough and token_id in (request.params.stop_token_ids or ()):
        request.stop_reason = token_id
        return "stop"
    return "length" if request.num_prompt_tokens + num_output_tokens >= request.max_total_tokens else None
