"""A decode loop with no engine around it: the ceiling that an engine over this network can reach.

The same network, packed products and attention, and nothing else: no scheduler, no requests, no
sampling but argmax, block tables laid out once for all tokens to come.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from nano_qwen3_serving.interfaces import AttentionBackend, AttentionMetadata, Model

BLOCK = 16


class BareLoop:
    """Decodes `batch` sequences side by side.

    Args:
        network: as it was loaded for an engine.
        attention: the backend it was built with.
        batch: sequences.
        length: most tokens of one, prompt and output.
    """

    def __init__(self, network: Model, attention: AttentionBackend, batch: int, length: int) -> None:
        self.network, self.batch = network, batch
        blocks = -(-length // BLOCK)
        self.tables = 1 + torch.arange(batch * blocks).view(batch, blocks)  # after the null block
        self.cache = attention.make_cache(1 + batch * blocks)

    @torch.inference_mode()
    def run(self, prompts: Tensor, output_tokens: int) -> float:
        """Seconds for a prompt [batch, prompt_tokens] and `output_tokens` tokens of each sequence."""
        started = time.perf_counter()
        tokens = self._forward(prompts.flatten(), range(prompts.shape[1]))
        for position in range(prompts.shape[1], prompts.shape[1] + output_tokens - 1):
            tokens = self._forward(tokens, range(position, position + 1))
        return time.perf_counter() - started

    def _forward(self, tokens: Tensor, span: range) -> Tensor:
        """One pass over positions `span` of all sequences; the next token of each."""
        count = len(span)
        positions = torch.arange(span.start, span.stop).repeat(self.batch)
        blocks = self.tables.repeat_interleave(count, 0)[torch.arange(len(positions)), positions // BLOCK]
        metadata = AttentionMetadata(
            query_lens=[count] * self.batch, seq_lens=[span.stop] * self.batch,
            block_tables=self.tables[:, : -(-span.stop // BLOCK)], slot_mapping=blocks * BLOCK + positions % BLOCK,
            num_decodes=self.batch if count == 1 else 0, block_size=BLOCK)
        hidden = self.network(tokens, positions, self.cache, metadata)
        return self.network.compute_logits(hidden[count - 1 :: count]).argmax(-1)
