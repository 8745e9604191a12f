"""Paged attention in plain torch: the readable one, and the oracle for faster ones.

Owns the KV tensors and knows their layout; knows nothing of requests or layers. A layer's cache is

    keys, values   [num_blocks, block_size, num_kv_heads, head_dim]

and a slot is a row of its flat view: slot = block * block_size + offset. Grouped query heads that
share a KV head are folded into the query length, so keys and values are never repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nano_qwen3_serving.attention.blockwise import CausalSoftmax, blockwise_attention, causal_softmax, pays_off
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.interfaces import AttentionMetadata

LayerCache = tuple[Tensor, Tensor]

INVARIANT_QUERIES = 16  # with batch_invariant every call has this many queries a head,
INVARIANT_KEYS = 512  # and a multiple of this many keys: the same sums in the same order


class TorchPagedAttention:
    """Reads keys and values through block tables.

    Args:
        config: shape of the model.
        block_size: tokens in a block.
        dtype, device: of the cache.
        batch_invariant: the same bits for a token whatever is computed beside it.
    """

    def __init__(
        self, config: ModelConfig, block_size: int, dtype: torch.dtype, device: torch.device,
        batch_invariant: bool = False,
    ) -> None:
        self.num_layers = config.num_hidden_layers
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.block_size = block_size
        self.dtype = dtype
        self.device = device
        self.batch_invariant = batch_invariant
        self.causal_softmax: CausalSoftmax = causal_softmax

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one block in all layers, keys and values."""
        numbers = 2 * self.num_layers * self.block_size * self.num_kv_heads * self.head_dim
        return numbers * self.dtype.itemsize

    def make_cache(self, num_blocks: int) -> list[LayerCache]:
        """One (keys, values) pair per layer, zeroed."""
        shape = (num_blocks, self.block_size, self.num_kv_heads, self.head_dim)
        return [
            (torch.zeros(shape, dtype=self.dtype, device=self.device),
             torch.zeros(shape, dtype=self.dtype, device=self.device))
            for _ in range(self.num_layers)
        ]

    def slots(self, block_table: Sequence[int], positions: range) -> list[int]:
        """Slots of a request's `positions`."""
        size = self.block_size
        return [block_table[i // size] * size + i % size for i in positions]

    def write(self, layer_cache: LayerCache, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Puts k and v, [num_tokens, num_kv_heads, head_dim], into `slots`, [num_tokens]."""
        for cache, new in zip(layer_cache, (k, v), strict=True):
            cache.view(-1, self.num_kv_heads, self.head_dim)[slots] = new

    def forward(self, q: Tensor, layer_cache: LayerCache, metadata: AttentionMetadata) -> Tensor:
        """Causal attention of each token to its own request's tokens up to itself.

        Args:
            q: [num_tokens, num_heads, head_dim], decoding requests' tokens first. Rows after the
                last request's are padding; what comes out for them means nothing.
            layer_cache: keys and values, this step's already written.

        Returns:
            [num_tokens, num_heads, head_dim]
        """
        parts = []
        together = 0 if self.batch_invariant else metadata.num_decodes
        if together:
            parts.append(self._decode(q[:together], layer_cache, metadata))
        start = together
        for i in range(together, len(metadata.query_lens)):
            stop = start + metadata.query_lens[i]
            attend = self._invariant if self.batch_invariant else self._chunk
            parts.append(attend(q[start:stop], layer_cache, metadata, i))
            start = stop
        if start < q.shape[0]:
            parts.append(torch.zeros_like(q[start:]))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def copy_blocks(self, cache: list[LayerCache], pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks, source to target, in every layer."""
        if pairs:
            sources, targets = (torch.tensor(ids, device=self.device) for ids in zip(*pairs, strict=True))
            for layer_cache in cache:
                for tensor in layer_cache:
                    tensor[targets] = tensor[sources]

    def read(self, layer_cache: LayerCache, slots: Sequence[int]) -> LayerCache:
        """Keys and values in `slots`, each [len(slots), num_kv_heads, head_dim]."""
        index = torch.tensor(list(slots), dtype=torch.long, device=self.device)
        keys, values = (t.view(-1, self.num_kv_heads, self.head_dim)[index] for t in layer_cache)
        return keys, values

    def _gather(self, cache: Tensor, block_tables: Tensor) -> Tensor:
        """[requests, blocks] → [requests, num_kv_heads, blocks * block_size, head_dim].

        An embedding lookup of whole blocks: several times faster on CPU than advanced indexing.
        """
        blocks = F.embedding(block_tables, cache.view(cache.shape[0], -1))
        return blocks.view(block_tables.shape[0], -1, self.num_kv_heads, self.head_dim).transpose(1, 2)

    def _decode(self, q: Tensor, layer_cache: LayerCache, metadata: AttentionMetadata) -> Tensor:
        """One token for each of the first requests, all in one call: [num_decodes, heads, head_dim]."""
        tables = metadata.block_tables[: metadata.num_decodes, : metadata.decode_blocks]
        keys, values = (self._gather(cache, tables) for cache in layer_cache)
        folded = q.view(q.shape[0], self.num_kv_heads, -1, self.head_dim)  # [requests, kv_heads, group, dim]
        out = F.scaled_dot_product_attention(
            folded, keys, values, attn_mask=metadata.decode_mask, scale=self.scale)
        return out.reshape(q.shape)

    def _chunk(self, q: Tensor, layer_cache: LayerCache, metadata: AttentionMetadata, i: int) -> Tensor:
        """Several tokens of request i: token j of the chunk sees keys up to position start + j."""
        end, count = metadata.seq_lens[i], metadata.query_lens[i]
        num_blocks = -(-end // self.block_size)
        table = metadata.block_tables[i : i + 1, :num_blocks]
        keys, values = (self._gather(cache, table)[:, :, :end] for cache in layer_cache)
        if pays_off(q):
            return blockwise_attention(q, keys[0], values[0], self.scale, self.causal_softmax)
        rows = torch.arange(end - count, end, device=q.device)
        causal = torch.arange(end, device=q.device)[None, :] <= rows[:, None]  # [count, end]
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], keys, values, attn_mask=causal, scale=self.scale, enable_gqa=True)
        return out[0].transpose(0, 1)

    def _invariant(self, q: Tensor, layer_cache: LayerCache, metadata: AttentionMetadata, i: int) -> Tensor:
        """Like `_chunk`, always in products of one shape: 16 queries by whole groups of 512 keys."""
        end, count = metadata.seq_lens[i], metadata.query_lens[i]
        num_keys = -(-end // INVARIANT_KEYS) * INVARIANT_KEYS
        table = metadata.block_tables[i : i + 1, : -(-end // self.block_size)]
        missing = num_keys - table.shape[1] * self.block_size
        keys, values = (
            F.pad(self._gather(cache, table), (0, 0, 0, missing)) if missing > 0
            else self._gather(cache, table)[:, :, :num_keys]
            for cache in layer_cache)
        groups = -(-count // INVARIANT_QUERIES)
        padded = F.pad(q, (0, 0, 0, 0, 0, groups * INVARIANT_QUERIES - count))
        queries = padded.view(groups, INVARIANT_QUERIES, *q.shape[1:]).transpose(1, 2)
        rows = torch.arange(end - count, end - count + padded.shape[0], device=q.device)
        causal = torch.arange(num_keys, device=q.device)[None, :] <= rows[:, None]
        out = F.scaled_dot_product_attention(
            queries, keys.expand(groups, -1, -1, -1), values.expand(groups, -1, -1, -1),
            attn_mask=causal.view(groups, 1, INVARIANT_QUERIES, num_keys), scale=self.scale, enable_gqa=True)
        return out.transpose(1, 2).reshape(padded.shape)[:count]
