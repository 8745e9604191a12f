"""The engine's own scheduler and block manager, as a scheduler that the simulator can play: the reference.

Knows how the engine's parts are called; decides nothing. Its requests have tokens that nobody reads.
"""

from __future__ import annotations

from nano_qwen3_serving.config import SchedulerConfig
from nano_qwen3_serving.interfaces import SampledTokens, ScheduledBatch, StoppedRequest
from nano_qwen3_serving.request import Request
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.scheduling.block_manager import BlockManager
from nano_qwen3_serving.scheduling.scheduler import Scheduler

LONGEST = 1 << 20
"""Tokens of a request: no bound that matters here."""


class EngineScheduler:
    """Plays the engine's `Scheduler`, without prefix caching.

    Args:
        num_blocks: blocks that requests can hold.
        block_size: tokens in a block.
        max_seqs: requests that run at once.
        budget: tokens in a step.
    """

    def __init__(self, num_blocks: int, block_size: int, max_seqs: int, budget: int) -> None:
        config = SchedulerConfig(max_seqs, budget, LONGEST, policy="priority")
        self._scheduler = Scheduler(config, BlockManager(num_blocks + 1, block_size, enable_prefix_caching=False))
        self._arrived = 0
        self._batch = ScheduledBatch([])

    def add(self, name: str, num_prompt: int, max_tokens: int, priority: int = 0) -> None:
        """Queues a request."""
        self._arrived += 1
        self._scheduler.add(Request(
            name, None, [0] * num_prompt, SamplingParams(max_tokens=max_tokens, ignore_eos=True), 0, num_prompt + max_tokens,
            priority, self._arrived))

    def schedule(self) -> tuple[dict[str, int], list[str]]:
        """The engine's next step, in counts."""
        self._batch = self._scheduler.schedule()
        chunks = {chunk.request.request_id: chunk.num_tokens for chunk in self._batch.chunks}
        return chunks, [request.request_id for request in self._batch.preempted]

    def update(self, chunks: dict[str, int], ended: list[str]) -> None:
        """Gives token 0 to each chunk that samples, and ends those that have their answer."""
        sampled = {chunk.request.request_id: [0] for chunk in self._batch.chunks if chunk.samples}
        self._scheduler.update(self._batch, SampledTokens(sampled))
        self._scheduler.finish([StoppedRequest(name, "length") for name in ended])
