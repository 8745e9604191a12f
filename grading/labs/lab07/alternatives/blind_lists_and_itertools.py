"""Two lists of chunks, itertools for the starts, pairs of block and offset, einsum over groups, one loop over requests.

Every request goes through chunk_attention, a decode too; results are written into zeros.
"""


def slots_of(block_table: Sequence[int], positions: range, block_size: int) -> list[int]:
    """The slot of each of a request's `positions`."""
    return [block_table[p // block_size] * block_size + p % block_size for p in positions]


def lay_out(chunks: Sequence[Chunk], block_size: int) -> Layout:
    """The chunks of one step, one after the other in flat tensors; at least one chunk."""
    ordered = [c for c in chunks if len(c.token_ids) == 1] + [c for c in chunks if len(c.token_ids) != 1]
    token_ids, positions, slots, query_starts, seq_lens = [], [], [], [0], []
    for c in ordered:
        seq_len = c.num_computed_tokens + len(c.token_ids)
        here = range(c.num_computed_tokens, seq_len)
        token_ids += c.token_ids
        positions += here
        slots += slots_of(c.block_table, here, block_size)
        query_starts.append(len(token_ids))
        seq_lens.append(seq_len)
    longest = max(len(c.block_table) for c in ordered)
    tables = [list(c.block_table) + [NULL_BLOCK] * (longest - len(c.block_table)) for c in ordered]
    return Layout(
        chunks=ordered,
        token_ids=torch.tensor(token_ids),
        positions=torch.tensor(positions),
        slot_mapping=torch.tensor(slots),
        query_starts=query_starts,
        seq_lens=seq_lens,
        block_tables=torch.tensor(tables),
        num_decodes=sum(len(c.token_ids) == 1 for c in ordered),
    )


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
    num_blocks = (num_tokens + block_size - 1) // block_size
    return cache[block_table[:num_blocks]].flatten(0, 1)[:num_tokens]


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
    num_kv_heads, head_dim = keys.shape[1:]
    groups = q.reshape(num_kv_heads, -1, head_dim)
    scores = torch.einsum("kgd,nkd->kgn", groups, keys) / math.sqrt(head_dim)
    weights = torch.softmax(scores, dim=-1)
    out = torch.einsum("kgn,nkd->kgd", weights, values)
    return out.reshape(q.shape).to(q.dtype)


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
    num_tokens, num_heads, head_dim = q.shape
    seq_len = num_computed_tokens + num_tokens
    keys = gather(k_cache, block_table, seq_len)
    values = gather(v_cache, block_table, seq_len)
    groups = q.reshape(num_tokens, keys.shape[1], -1, head_dim)
    scores = torch.einsum("tkgd,nkd->kgtn", groups, keys) / math.sqrt(head_dim)
    rows = torch.arange(num_computed_tokens, seq_len, device=q.device)
    columns = torch.arange(seq_len, device=q.device)
    mask = columns[None, :] > rows[:, None]
    scores = scores.masked_fill(mask, float("-inf"))
    weights = torch.softmax(scores, dim=-1)
    out = torch.einsum("kgtn,nkd->tkgd", weights, values)
    return out.reshape(num_tokens, num_heads, head_dim).to(q.dtype)


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
    out = q.new_zeros(q.shape)
    for i, seq_len in enumerate(seq_lens):
        start, end = query_starts[i], query_starts[i + 1]
        num_computed = seq_len - (end - start)
        out[start:end] = chunk_attention(q[start:end], k_cache, v_cache, block_tables[i], num_computed)
    return out


class PagedAttention:
    @property
    def bytes_per_block(self) -> int:
        """Bytes that one block takes in all layers, keys and values."""
        return 2 * self.num_layers * self.block_size * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def make_cache(self, num_blocks: int) -> list[LayerCache]:
        """A pair of zeroed caches, keys and values, for each layer."""
        shape = (num_blocks, self.block_size, self.num_kv_heads, self.head_dim)
        return [
            (
                torch.zeros(shape, dtype=self.dtype, device=self.device),
                torch.zeros(shape, dtype=self.dtype, device=self.device),
            )
            for _ in range(self.num_layers)
        ]

    def forward(self, q: Tensor, layer_cache: LayerCache, metadata: AttentionMetadata) -> Tensor:
        """Attention of a step in one layer. The engine calls `write` for the same step before.

        Args:
            q: [num_rows, num_heads, head_dim]. Rows after the last request's are padding.
            layer_cache: keys and values.
            metadata: query_lens (the rows of each request), seq_lens and block_tables.

        Returns:
            [num_rows, num_heads, head_dim], of q's dtype; zeros in the padding rows.
        """
        query_starts = [0, *itertools.accumulate(metadata.query_lens)]
        num_tokens = query_starts[-1]
        out = q.new_zeros(q.shape)
        out[:num_tokens] = batch_attention(
            q[:num_tokens], *layer_cache, query_starts, metadata.seq_lens, metadata.block_tables
        )
        return out
