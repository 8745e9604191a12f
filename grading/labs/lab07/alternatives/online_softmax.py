"""Block by block with a running maximum and a running sum, the way fast kernels do it.

No row of scores is ever held whole: each block of keys corrects what the blocks before it have summed up
(Milakov and Gimelshein, 2018). Decoding is a chunk of one row. The cache is written a token at a time.
"""


@dataclass(frozen=True)
class Chunk:
    token_ids: list
    num_computed_tokens: int
    block_table: list


@dataclass(frozen=True)
class Layout:
    chunks: list
    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    query_starts: list
    seq_lens: list
    block_tables: torch.Tensor
    num_decodes: int


def slots_of(block_table, positions, block_size):
    found = []
    for position in positions:
        place, offset = divmod(position, block_size)
        found.append(block_table[place] * block_size + offset)
    return found


def lay_out(chunks, block_size):
    decodes = [chunk for chunk in chunks if len(chunk.token_ids) == 1]
    ordered = decodes + [chunk for chunk in chunks if len(chunk.token_ids) != 1]
    rows = []  # one (token, position, slot) for each
    starts = [0]
    for chunk in ordered:
        for j, token in enumerate(chunk.token_ids):
            position = chunk.num_computed_tokens + j
            rows.append((token, position, *slots_of(chunk.block_table, range(position, position + 1), block_size)))
        starts.append(len(rows))
    token_ids, positions, slots = torch.tensor(rows).unbind(dim=1)
    tables = torch.full((len(ordered), max(len(c.block_table) for c in ordered)), NULL_BLOCK)
    for i, chunk in enumerate(ordered):
        tables[i, : len(chunk.block_table)] = torch.tensor(chunk.block_table)
    lens = [chunk.num_computed_tokens + len(chunk.token_ids) for chunk in ordered]
    return Layout(ordered, token_ids, positions, slots, starts, lens, tables, len(decodes))


def write_kv(k_cache, v_cache, k, v, slot_mapping):
    for row, slot in enumerate(slot_mapping.tolist()):
        place = divmod(slot, k_cache.shape[1])
        k_cache[place], v_cache[place] = k[row], v[row]


def gather(cache, block_table, num_tokens):
    size = cache.shape[1]
    parts = [cache[block_table[i // size], : num_tokens - i] for i in range(0, num_tokens, size)]
    return torch.cat(parts)


def decode_attention(q, k_cache, v_cache, block_table, seq_len):
    return _stream(q[None], k_cache, v_cache, block_table, seq_len - 1)[0]


def chunk_attention(q, k_cache, v_cache, block_table, num_computed_tokens):
    return _stream(q, k_cache, v_cache, block_table, num_computed_tokens)


def _stream(q, k_cache, v_cache, block_table, first):
    count, num_heads, dim = q.shape
    size, num_kv_heads = k_cache.shape[1:3]
    queries = q.float().reshape(count, num_kv_heads, -1, dim) / dim**0.5
    positions = torch.arange(first, first + count, device=q.device)[:, None, None, None]
    largest = torch.full((*queries.shape[:3], 1), -torch.inf, device=q.device)
    total, out = torch.zeros_like(largest), torch.zeros_like(queries)
    for start in range(0, first + count, size):
        block = block_table[start // size]
        filled = min(size, first + count - start)
        keys, values = k_cache[block, :filled].float(), v_cache[block, :filled].float()
        scores = torch.einsum("tkgd,nkd->tkgn", queries, keys)
        scores = scores.masked_fill(torch.arange(start, start + filled, device=q.device) > positions, -torch.inf)
        now = torch.maximum(largest, scores.amax(dim=-1, keepdim=True))
        weights, shrink = (scores - now).exp(), (largest - now).exp()
        total = total * shrink + weights.sum(dim=-1, keepdim=True)
        out = out * shrink + torch.einsum("tkgn,nkd->tkgd", weights, values)
        largest = now
    return (out / total).reshape(q.shape).to(q.dtype)


def batch_attention(q, k_cache, v_cache, query_starts, seq_lens, block_tables):
    parts = []
    for start, stop, seq_len, table in zip(query_starts[:-1], query_starts[1:], seq_lens, block_tables, strict=True):
        parts.append(chunk_attention(q[start:stop], k_cache, v_cache, table, seq_len - stop + start))
    return torch.cat(parts)


class PagedAttention:
    def __init__(self, config, block_size, dtype, device):
        self.config, self.block_size, self.dtype, self.device = config, block_size, dtype, device

    def slots(self, block_table, positions):
        return slots_of(block_table, positions, self.block_size)

    def write(self, layer_cache, k, v, slots):
        write_kv(*layer_cache, k, v, slots)

    @property
    def bytes_per_block(self):
        return sum(t.nbytes for pair in self.make_cache(1) for t in pair)

    def make_cache(self, num_blocks):
        shape = (num_blocks, self.block_size, self.config.num_key_value_heads, self.config.head_dim)
        return [
            tuple(torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
            for _ in range(self.config.num_hidden_layers)]

    def forward(self, q, layer_cache, metadata):
        starts = [0]
        for count in metadata.query_lens:
            starts.append(starts[-1] + count)
        used = batch_attention(q[: starts[-1]], *layer_cache, starts, metadata.seq_lens, metadata.block_tables)
        return torch.cat([used, torch.zeros_like(q[starts[-1] :])])
