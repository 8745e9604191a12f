"""Slots through a flat view of the cache (index_copy_, index_select), torch's own attention with an explicit mask.

A decode goes head by head in float32; all requests of one row are one padded product, whose unread keys are zeroed.
"""


def slots_of(block_table: Sequence[int], positions: range, block_size: int) -> list[int]:
    """The slot of each of a request's `positions`."""
    slots = []
    for position in positions:
        place, offset = divmod(position, block_size)
        slots.append(block_table[place] * block_size + offset)
    return slots


def lay_out(chunks: Sequence[Chunk], block_size: int) -> Layout:
    """The chunks of one step, one after the other in flat tensors; at least one chunk."""
    ordered = sorted(chunks, key=lambda c: len(c.token_ids) > 1)  # sorted is stable
    lens = torch.tensor([len(c.token_ids) for c in ordered])
    ranges = [range(c.num_computed_tokens, c.num_computed_tokens + len(c.token_ids)) for c in ordered]
    tables = torch.full((len(ordered), max(len(c.block_table) for c in ordered)), NULL_BLOCK, dtype=torch.long)
    for row, c in zip(tables, ordered):
        row[: len(c.block_table)] = torch.tensor(c.block_table, dtype=torch.long)
    return Layout(
        chunks=ordered,
        token_ids=torch.cat([torch.tensor(c.token_ids) for c in ordered]),
        positions=torch.cat([torch.arange(r.start, r.stop) for r in ranges]),
        slot_mapping=torch.tensor([s for c, r in zip(ordered, ranges) for s in slots_of(c.block_table, r, block_size)]),
        query_starts=[0] + lens.cumsum(0).tolist(),
        seq_lens=[r.stop for r in ranges],
        block_tables=tables,
        num_decodes=int((lens == 1).sum()),
    )


def write_kv(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
    """Puts this step's keys and values into their slots, in place.

    Args:
        k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_dim], contiguous; changed in
            the slots of `slot_mapping` and nowhere else.
        k, v: [num_tokens, num_kv_heads, head_dim], of any strides.
        slot_mapping: [num_tokens], torch.long.
    """
    for cache, rows in ((k_cache, k), (v_cache, v)):
        flat = cache.view(-1, *cache.shape[2:])  # a view of all slots: the cache is contiguous
        flat.index_copy_(0, slot_mapping, rows)


def gather(cache: Tensor, block_table: Tensor, num_tokens: int) -> Tensor:
    """The first `num_tokens` keys (or values) of one request, in the order of their positions.

    Args:
        cache: [num_blocks, block_size, num_kv_heads, head_dim]; not changed.
        block_table: [max_blocks], torch.long; entries after the request's last block mean nothing.
        num_tokens: at least 1.

    Returns:
        [num_tokens, num_kv_heads, head_dim]
    """
    block_size = cache.shape[1]
    positions = torch.arange(num_tokens, device=cache.device)
    slots = block_table[positions // block_size] * block_size + positions % block_size
    return cache.view(-1, *cache.shape[2:]).index_select(0, slots)


def decode_attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_len: int) -> Tensor:
    """Attention of a request's newest token to all its `seq_len` tokens, itself included.

    Args:
        q: [num_heads, head_dim]; query head i reads KV head i // (num_heads // num_kv_heads).
        k_cache, v_cache: as in `write_kv`, the token's own key and value already written.
        block_table: [max_blocks], torch.long.
        seq_len: tokens of the request in the cache.

    Returns:
        [num_heads, head_dim], of q's dtype.
    """
    keys = gather(k_cache, block_table, seq_len)
    values = gather(v_cache, block_table, seq_len)
    share = q.shape[0] // keys.shape[1]
    out = q.new_empty(q.shape)
    for head in range(q.shape[0]):
        kv_head = head // share
        scores = keys[:, kv_head].float() @ q[head].float() * q.shape[-1] ** -0.5
        out[head] = torch.softmax(scores, 0) @ values[:, kv_head].float()
    return out


def chunk_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, num_computed_tokens: int
) -> Tensor:
    """Causal attention of several tokens of one request, which follow `num_computed_tokens` others.

    Args:
        q: [num_tokens, num_heads, head_dim]; row j stands at position num_computed_tokens + j and
            attends to that position and all before it.
        k_cache, v_cache: the chunk's own keys and values already written.
        block_table: [max_blocks], torch.long.
        num_computed_tokens: 0 for the beginning of a prompt.

    Returns:
        [num_tokens, num_heads, head_dim], of q's dtype.
    """
    num_tokens = q.shape[0]
    seq_len = num_computed_tokens + num_tokens
    share = q.shape[1] // k_cache.shape[2]
    keys = gather(k_cache, block_table, seq_len).repeat_interleave(share, dim=1).transpose(0, 1)
    values = gather(v_cache, block_table, seq_len).repeat_interleave(share, dim=1).transpose(0, 1)
    sees = torch.ones(num_tokens, seq_len, dtype=torch.bool, device=q.device).tril(num_computed_tokens)
    out = torch.nn.functional.scaled_dot_product_attention(q.transpose(0, 1)[None], keys[None], values[None], attn_mask=sees)
    return out[0].transpose(0, 1)


def batch_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor,
    query_starts: Sequence[int], seq_lens: Sequence[int], block_tables: Tensor,
) -> Tensor:
    """Attention of every token of a step to its own request's tokens.

    Args:
        q: [num_tokens, num_heads, head_dim], num_tokens == query_starts[-1].
        k_cache, v_cache: this step's keys and values already written.
        query_starts, seq_lens, block_tables: as in `Layout`.

    Returns:
        [num_tokens, num_heads, head_dim], of q's dtype.
    """
    # Going Further 1: requests of one row in one product, the others one after the other
    lens = [b - a for a, b in zip(query_starts, query_starts[1:])]
    out = q.new_empty(q.shape)
    ones = [i for i, n in enumerate(lens) if n == 1]
    if ones:
        block_size, num_kv_heads, head_dim = k_cache.shape[1:]
        rows = [query_starts[i] for i in ones]
        longest = max(seq_lens[i] for i in ones)
        blocks = -(-longest // block_size)
        tables = block_tables[ones][:, :blocks]
        lengths = torch.tensor([seq_lens[i] for i in ones], device=q.device)
        hidden = torch.arange(longest, device=q.device)[None, :] >= lengths[:, None]
        # what the shorter requests read after their end is nobody's: zero it, for 0 * NaN is NaN
        keys = k_cache[tables].flatten(1, 2)[:, :longest].masked_fill(hidden[:, :, None, None], 0)
        values = v_cache[tables].flatten(1, 2)[:, :longest].masked_fill(hidden[:, :, None, None], 0)
        groups = q[rows].reshape(len(ones), num_kv_heads, -1, head_dim)
        scores = groups @ keys.permute(0, 2, 3, 1) / math.sqrt(head_dim)
        scores = scores.masked_fill(hidden[:, None, None, :], float("-inf"))
        out[rows] = (torch.softmax(scores, -1) @ values.transpose(1, 2)).reshape(len(ones), *q.shape[1:])
    for i, n in enumerate(lens):
        if n != 1:
            own = slice(query_starts[i], query_starts[i + 1])
            out[own] = chunk_attention(q[own], k_cache, v_cache, block_tables[i], seq_lens[i] - n)
    return out


class PagedAttention:
    @property
    def bytes_per_block(self) -> int:
        """Bytes that one block takes in all layers, keys and values."""
        per_block = torch.empty(self.block_size, self.num_kv_heads, self.head_dim, dtype=self.dtype, device="meta")
        return self.num_layers * 2 * per_block.nbytes

    def make_cache(self, num_blocks: int) -> list[LayerCache]:
        """A pair of zeroed caches, keys and values, for each layer."""
        def one() -> Tensor:
            return torch.zeros(num_blocks, self.block_size, self.num_kv_heads, self.head_dim, dtype=self.dtype, device=self.device)

        caches = []
        for _ in range(self.num_layers):
            caches.append((one(), one()))
        return caches

    def forward(self, q: Tensor, layer_cache: LayerCache, metadata: AttentionMetadata) -> Tensor:
        """Attention of a step in one layer. The engine calls `write` for the same step before.

        Args:
            q: [num_rows, num_heads, head_dim]. Rows after the last request's are padding.
            layer_cache: keys and values.
            metadata: query_lens (the rows of each request), seq_lens and block_tables.

        Returns:
            [num_rows, num_heads, head_dim], of q's dtype; zeros in the padding rows.
        """
        starts = [0]
        for n in metadata.query_lens:
            starts.append(starts[-1] + n)
        out = batch_attention(q[: starts[-1]], *layer_cache, starts, metadata.seq_lens, metadata.block_tables)
        return torch.cat([out, torch.zeros_like(q[starts[-1] :])])
