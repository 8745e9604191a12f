"""Loops over slots and blocks, a running softmax in float64; a batch is a loop over rows, each a decode.

A decode is a chunk of one row, and nothing is fetched but the block at hand.
"""


def slots_of(block_table: Sequence[int], positions: range, block_size: int) -> list[int]:
    """The slot of each of a request's `positions`."""
    return [block_table[p // block_size] * block_size + p % block_size for p in positions]


def lay_out(chunks: Sequence[Chunk], block_size: int) -> Layout:
    """The chunks of one step, one after the other in flat tensors; at least one chunk."""
    order = [i for i, c in enumerate(chunks) if len(c.token_ids) == 1]
    num_decodes = len(order)
    order += [i for i, c in enumerate(chunks) if len(c.token_ids) > 1]
    ordered = [chunks[i] for i in order]
    rows = [(t, c.num_computed_tokens + j, c) for c in ordered for j, t in enumerate(c.token_ids)]
    starts = [0, *itertools.accumulate(len(c.token_ids) for c in ordered)]
    return Layout(
        ordered,
        torch.tensor([t for t, _, _ in rows]),
        torch.tensor([p for _, p, _ in rows]),
        torch.tensor([slots_of(c.block_table, range(p, p + 1), block_size)[0] for _, p, c in rows]),
        starts,
        [c.num_computed_tokens + len(c.token_ids) for c in ordered],
        torch.tensor(list(zip(*itertools.zip_longest(*(c.block_table for c in ordered), fillvalue=NULL_BLOCK)))),
        num_decodes,
    )


def write_kv(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
    """Puts this step's keys and values into their slots, in place.

    Args:
        k_cache, v_cache: [num_blocks, block_size, num_kv_heads, head_dim], contiguous; changed in
            the slots of `slot_mapping` and nowhere else.
        k, v: [num_tokens, num_kv_heads, head_dim], of any strides.
        slot_mapping: [num_tokens], torch.long.
    """
    block_size = k_cache.shape[1]
    for i, slot in enumerate(slot_mapping.tolist()):
        block, offset = divmod(slot, block_size)
        k_cache[block, offset].copy_(k[i])
        v_cache[block, offset].copy_(v[i])


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
    out, left = [], num_tokens
    for block in block_table.tolist():
        out.append(cache[block, : min(left, block_size)])
        left -= len(out[-1])
        if left == 0:
            break
    return torch.cat(out)


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
    return chunk_attention(q[None], k_cache, v_cache, block_table, seq_len - 1)[0]


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
    # block by block with a running maximum, running sum and running weighted sum (Going Further 2)
    num_tokens, num_heads, head_dim = q.shape
    _, block_size, num_kv_heads, _ = k_cache.shape
    seq_len = num_computed_tokens + num_tokens
    groups = q.double().reshape(num_tokens, num_kv_heads, -1, head_dim)
    rows = torch.arange(num_tokens, device=q.device) + num_computed_tokens
    top = torch.full(groups.shape[:3], float("-inf"), dtype=torch.double, device=q.device)
    total = torch.zeros_like(top)
    summed = torch.zeros_like(groups)
    for begin in range(0, seq_len, block_size):
        block = block_table[begin // block_size]
        end = min(begin + block_size, seq_len)
        keys, values = k_cache[block, : end - begin].double(), v_cache[block, : end - begin].double()
        scores = torch.einsum("tkgd,nkd->tkgn", groups, keys) / head_dim**0.5
        hidden = torch.arange(begin, end, device=q.device)[None, :] > rows[:, None]
        scores = scores.masked_fill(hidden[:, None, None, :], float("-inf"))
        new_top = torch.maximum(top, scores.amax(-1))  # finite from the first block on: key 0 is seen by all
        shrink = torch.exp(top - new_top)
        weights = torch.exp(scores - new_top[..., None])
        total = total * shrink + weights.sum(-1)
        summed = summed * shrink[..., None] + torch.einsum("tkgn,nkd->tkgd", weights, values)
        top = new_top
    return (summed / total[..., None]).reshape(q.shape).to(q.dtype)


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
    pieces = []
    for row_range, seq_len, table in zip(itertools.pairwise(query_starts), seq_lens, block_tables):
        start, end = row_range
        # each row as a decode that stands at its own position
        for j in range(start, end):
            pieces.append(decode_attention(q[j], k_cache, v_cache, table, seq_len - (end - 1 - j)))
    return torch.stack(pieces)


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
