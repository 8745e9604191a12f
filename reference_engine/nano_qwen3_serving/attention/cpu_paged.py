"""Paged attention on a CPU without gathering: keys and values are read where they lie.

Knows what `torch_paged.py` knows. Requests that decode are attended to in one call that walks their
block tables. So is a short chunk, each of its tokens as if it decoded; a long one takes the way of torch,
with a compiled softmax.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nano_qwen3_serving.attention.blockwise import pays_off
from nano_qwen3_serving.attention.torch_paged import LayerCache, TorchPagedAttention
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.interfaces import AttentionMetadata


class CPUPagedAttention(TorchPagedAttention):
    """`TorchPagedAttention` with compiled writes, decoding and softmax.

    Args:
        kernels: the operators of `kernels/cpu.cpp`.
        config, block_size, dtype, device: as there.
    """

    def __init__(
        self, kernels: Any, config: ModelConfig, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        super().__init__(config, block_size, dtype, device)
        self._kernels = kernels
        self.causal_softmax = kernels.causal_softmax

    def write(self, layer_cache: LayerCache, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Puts k and v, [num_tokens, num_kv_heads, head_dim], into `slots`, [num_tokens]."""
        self._kernels.write_kv(k, v, *layer_cache, slots)

    def _chunk(self, q: Tensor, layer_cache: LayerCache, metadata: AttentionMetadata, i: int) -> Tensor:
        if pays_off(q):
            return super()._chunk(q, layer_cache, metadata, i)
        count, end = q.shape[0], metadata.seq_lens[i]
        tables = metadata.block_tables[i : i + 1].expand(count, -1)
        seen = torch.arange(end - count + 1, end + 1)  # token j of the chunk sees the keys up to its own
        return self._kernels.paged_decode(q, *layer_cache, tables, seen, self.scale)

    def _decode(self, q: Tensor, layer_cache: LayerCache, metadata: AttentionMetadata) -> Tensor:
        return self._kernels.paged_decode(q, *layer_cache, metadata.block_tables, metadata.decode_lens, self.scale)
