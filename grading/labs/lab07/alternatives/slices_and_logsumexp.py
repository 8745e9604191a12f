"""No mask: each row attends to a slice of the keys, KV head by KV head, and its weights are exp(score - logsumexp), which
rounds otherwise than a softmax does. Rows are written one by one, tables are filled up by zip_longest, and the batch is
computed from its last request to its first.
"""


def slots_of(block_table: Sequence[int], positions: range, block_size: int) -> list[int]:
    """Each block's slots are a range, and the offset is a place in it."""
    rows = [range(block * block_size, (block + 1) * block_size) for block in block_table]
    return [rows[i // block_size][i % block_size] for i in positions]


def lay_out(chunks: Sequence[Chunk], block_size: int) -> Layout:
    """Token by token, in the order of places that are sorted instead of the chunks."""
    places = sorted(range(len(chunks)), key=lambda i: (len(chunks[i].token_ids) > 1, i))
    laid = [chunks[i] for i in places]
    rows: list[tuple[int, int, int]] = []
    query_starts, seq_lens = [0], []
    for chunk in laid:
        for position, token in enumerate(chunk.token_ids, start=chunk.num_computed_tokens):
            rows.append((token, position, slots_of(chunk.block_table, range(position, position + 1), block_size)[0]))
        query_starts.append(len(rows))
        seq_lens.append(rows[-1][1] + 1)
    token_ids, positions, slot_mapping = map(torch.LongTensor, zip(*rows, strict=True))
    columns = itertools.zip_longest(*(chunk.block_table for chunk in laid), fillvalue=NULL_BLOCK)
    return Layout(laid, token_ids, positions, slot_mapping, query_starts, seq_lens,
                  torch.LongTensor(list(columns)).T.contiguous(), [len(chunk.token_ids) for chunk in laid].count(1))


def write_kv(k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
    """Row by row."""
    for row, slot in enumerate(slot_mapping.tolist()):
        place = divmod(slot, k_cache.shape[1])
        k_cache[place], v_cache[place] = k[row], v[row]


def gather(cache: Tensor, block_table: Tensor, num_tokens: int) -> Tensor:
    """The blocks' ids are narrowed down to the request's, and so is what was fetched."""
    ids = block_table.narrow(0, 0, math.ceil(num_tokens / cache.shape[1]))
    return torch.index_select(cache, 0, ids).reshape(-1, *cache.shape[2:]).narrow(0, 0, num_tokens)


def decode_attention(q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, seq_len: int) -> Tensor:
    """One row, which sees all."""
    return attended(q, gather(k_cache, block_table, seq_len), gather(v_cache, block_table, seq_len))


def attended(row: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of one row, [num_heads, head_dim], to all of these keys; scores in float32."""
    parts = []
    for head, queries in enumerate(row.chunk(keys.shape[1])):  # [heads that share the KV head, head_dim]
        scores = (queries @ keys[:, head].T).float() / math.sqrt(row.shape[-1])
        weights = torch.exp(scores - torch.logsumexp(scores, dim=-1, keepdim=True))
        parts.append(weights.to(row.dtype) @ values[:, head])
    return torch.cat(parts)


def chunk_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, block_table: Tensor, num_computed_tokens: int
) -> Tensor:
    """Keys and values are gathered once; each row is given those that it sees."""
    seq_len = num_computed_tokens + len(q)
    keys, values = gather(k_cache, block_table, seq_len), gather(v_cache, block_table, seq_len)
    return torch.stack([attended(row, keys[:seen], values[:seen]) for seen, row in enumerate(q, num_computed_tokens + 1)])


def batch_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor,
    query_starts: Sequence[int], seq_lens: Sequence[int], block_tables: Tensor,
) -> Tensor:
    """From the last request to the first; a decode is a chunk of one row."""
    parts: list[Tensor] = []
    for i in reversed(range(len(seq_lens))):
        rows = q[query_starts[i] : query_starts[i + 1]]
        parts.insert(0, chunk_attention(rows, k_cache, v_cache, block_tables[i], seq_lens[i] - len(rows)))
    return torch.cat(parts)


class PagedAttention:
    @property
    def bytes_per_block(self) -> int:
        """Bytes that one block takes in all layers, keys and values."""
        of_a_token_and_layer = len("kv") * self.num_kv_heads * self.head_dim * self.dtype.itemsize
        return of_a_token_and_layer * self.block_size * self.num_layers

    def make_cache(self, num_blocks: int) -> list[LayerCache]:
        """A pair of zeroed caches, keys and values, for each layer."""
        def one() -> Tensor:
            shape = (num_blocks, self.block_size, self.num_kv_heads, self.head_dim)
            return torch.full(shape, 0, dtype=self.dtype, device=self.device)

        return [(one(), one()) for _ in range(self.num_layers)]

    def forward(self, q: Tensor, layer_cache: LayerCache, metadata: AttentionMetadata) -> Tensor:
        """The padding is made by itself and put behind."""
        starts = list(itertools.accumulate([0, *metadata.query_lens]))
        out = batch_attention(q[: starts[-1]], *layer_cache, starts, list(metadata.seq_lens), metadata.block_tables)
        return torch.cat([out, out.new_zeros(len(q) - len(out), *out.shape[1:])])
