"""How the engine uses this lab's part: `Components.attention`.

The lab's class has what a step calls. What the engine's protocol has besides, for tests and for
shared prefixes, is added here.
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.interfaces import AttentionBackend, AttentionMetadata

LayerCache = tuple[Tensor, Tensor]


def attention(lab: ModuleType, config: EngineConfig) -> AttentionBackend:
    """The lab's `PagedAttention` for this engine."""
    return WholeBackend(lab.PagedAttention(config.model, config.cache.block_size, config.dtype, config.device))


class WholeBackend:
    """Hands everything on to the lab's part; adds `copy_blocks` and `read`."""

    def __init__(self, part) -> None:
        self._part = part

    @property
    def bytes_per_block(self) -> int:
        return self._part.bytes_per_block

    def make_cache(self, num_blocks: int) -> list[LayerCache]:
        return self._part.make_cache(num_blocks)

    def slots(self, block_table: Sequence[int], positions: range) -> list[int]:
        return self._part.slots(block_table, positions)

    def write(self, layer_cache: LayerCache, k: Tensor, v: Tensor, slots: Tensor) -> None:
        self._part.write(layer_cache, k, v, slots)

    def forward(self, q: Tensor, layer_cache: LayerCache, metadata: AttentionMetadata) -> Tensor:
        return self._part.forward(q, layer_cache, metadata)

    def copy_blocks(self, cache: list[LayerCache], pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks, source to target, in every layer."""
        for layer_cache in cache:
            for tensor in layer_cache:
                for source, target in pairs:
                    tensor[target] = tensor[source]

    def read(self, layer_cache: LayerCache, slots: Sequence[int]) -> LayerCache:
        """Keys and values in `slots`, each [len(slots), num_kv_heads, head_dim]."""
        index = torch.as_tensor(list(slots), dtype=torch.long, device=layer_cache[0].device)
        keys, values = (tensor.flatten(0, 1)[index] for tensor in layer_cache)
        return keys, values
