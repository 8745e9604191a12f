"""What is left of a step, and to whom the rest of it went (compare `PrefillAdder` in mini-sglang).

Knows the bounds of a step and its chunks; knows nothing of blocks or queues. A step of at most 8 tokens, in which A
decodes and B's prompt has 20 to go:

    A's token | B's first 7 tokens | 0 left
"""

from __future__ import annotations

from collections.abc import Sequence

from nano_qwen3_serving.config import SchedulerConfig
from nano_qwen3_serving.interfaces import ScheduledBatch, ScheduledChunk
from nano_qwen3_serving.request import Request


class Budget:
    """One step in the making.

    Args:
        config: the bounds of a step.
        num_running: requests that run already, each of which is one sequence.

    Attributes:
        tokens: how many more can be computed.
        seqs: how many more requests can run.
        preempted: who lost their blocks to make room.
    """

    def __init__(self, config: SchedulerConfig, num_running: int) -> None:
        self._config = config
        self._chunks: dict[str, ScheduledChunk] = {}
        self.tokens = config.max_num_batched_tokens
        self.seqs = config.max_num_seqs - num_running
        self.preempted: list[Request] = []

    def chunk_size(self, num_uncomputed: int) -> int:
        """How many of a request's `num_uncomputed` tokens fit; 0 if the request has to wait."""
        size = min(num_uncomputed, self.tokens, self._config.long_prefill_token_threshold or num_uncomputed)
        return size if size == num_uncomputed or self._config.enable_chunked_prefill else 0

    def computes(self, token_ids: Sequence[int], salt: str) -> bool:
        """Whether a chunk of this step computes the last of `token_ids`, after the same tokens, for the same salt."""
        end = len(token_ids)
        return any(
            chunk.start < end <= chunk.known_end
            and chunk.request.cache_salt == salt
            and chunk.request.token_ids(0, end) == token_ids
            for chunk in self._chunks.values())

    def spend(self, chunk: ScheduledChunk) -> None:
        """Gives the chunk's tokens to its request."""
        self._chunks[chunk.request.request_id] = chunk
        self.tokens -= chunk.num_tokens

    def take_back(self, victim: Request) -> None:
        """A request was preempted: the tokens of its chunk, if it has one, and its place go to others."""
        chunk = self._chunks.pop(victim.request_id, None)
        self.tokens += chunk.num_tokens if chunk else 0
        self.seqs += 1
        self.preempted.append(victim)

    def batch(self) -> ScheduledBatch:
        """What the step computes, in the order in which it was spent."""
        return ScheduledBatch(list(self._chunks.values()), self.preempted)
