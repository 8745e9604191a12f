"""torch's scaled_dot_product_attention with a mask; slots written through a flat view; a batch without decode_attention."""

import torch.nn.functional as F


def slots_of(block_table: Sequence[int], positions: range, block_size: int) -> list[int]:
    """Quotient and remainder of each."""
    return [block_table[index] * block_size + offset for index, offset in (divmod(i, block_size) for i in positions)]


def write_kv(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
    """The first two dimensions of a cache are one row of slots."""
    for cache, rows in ((k_cache, k), (v_cache, v)):
        cache.view(-1, *cache.shape[2:])[slot_mapping] = rows


def gather(cache: Tensor, block_table: Tensor, num_tokens: int) -> Tensor:
    """Block by block; of the last one only what is needed."""
    size = cache.shape[1]
    blocks = block_table[: (num_tokens + size - 1) // size].tolist()
    parts = [cache[block, : min(size, num_tokens - i * size)] for i, block in enumerate(blocks)]
    return torch.cat(parts)


def decode_attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_len: int) -> Tensor:
    """A chunk of one row."""
    return chunk_attention(q[None], k_cache, v_cache, block_table, seq_len - 1)[0]


def chunk_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, num_computed_tokens: int
) -> Tensor:
    """Heads before tokens; True in the mask is a key that is seen."""
    seq_len, group = num_computed_tokens + len(q), q.shape[1] // k_cache.shape[2]
    keys, values = (
        gather(cache, block_table, seq_len).repeat_interleave(group, dim=1).transpose(0, 1) for cache in (k_cache, v_cache))
    seen = torch.ones(len(q), seq_len, dtype=torch.bool, device=q.device).tril(num_computed_tokens)
    return F.scaled_dot_product_attention(q.transpose(0, 1), keys, values, attn_mask=seen).transpose(0, 1)


def batch_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor,
    query_starts: Sequence[int], seq_lens: Sequence[int], block_tables: Tensor,
) -> Tensor:
    """Rows are split by their lengths, and joined again."""
    lengths = [stop - start for start, stop in zip(query_starts, query_starts[1:])]
    parts = zip(q.split(lengths), block_tables.unbind(), seq_lens, strict=True)
    return torch.cat([chunk_attention(rows, k_cache, v_cache, table, seq_len - len(rows)) for rows, table, seq_len in parts])


class PagedAttention:
    def forward(self, q: Tensor, layer_cache: LayerCache, metadata: AttentionMetadata) -> Tensor:
        """Padding is joined to what was computed."""
        starts = [sum(metadata.query_lens[:i]) for i in range(len(metadata.query_lens) + 1)]
        rows = batch_attention(q[: starts[-1]], *layer_cache, starts, metadata.seq_lens, metadata.block_tables)
        return torch.cat([rows, rows.new_zeros(len(q) - starts[-1], *q.shape[1:])])
