"""All requests of a step as one sequence: their keys one after the other, and a mask of blocks on the diagonal.

A row sees a key if both are the same request's and the key's position is not after the row's. KV heads are
repeated for the query heads that share them. Decoding and chunks are batches of one request.
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
    every = [slot for block in block_table for slot in range(block * block_size, (block + 1) * block_size)]
    return every[positions.start : positions.stop]


def lay_out(chunks, block_size):
    order = sorted(range(len(chunks)), key=lambda i: (len(chunks[i].token_ids) > 1, i))
    ordered = [chunks[i] for i in order]
    ends = [chunk.num_computed_tokens + len(chunk.token_ids) for chunk in ordered]
    spans = [range(chunk.num_computed_tokens, end) for chunk, end in zip(ordered, ends, strict=True)]
    slots = [s for chunk, span in zip(ordered, spans, strict=True) for s in slots_of(chunk.block_table, span, block_size)]
    widest = max(len(chunk.block_table) for chunk in ordered)
    tables = [[*chunk.block_table, *[NULL_BLOCK] * widest][:widest] for chunk in ordered]
    return Layout(
        ordered, torch.tensor([token for chunk in ordered for token in chunk.token_ids]),
        torch.tensor([position for span in spans for position in span]), torch.tensor(slots),
        [sum(map(len, spans[:i])) for i in range(len(spans) + 1)], ends, torch.tensor(tables),
        [len(chunk.token_ids) for chunk in ordered].count(1))


def write_kv(k_cache, v_cache, k, v, slot_mapping):
    k_cache.flatten(0, 1)[slot_mapping] = k
    v_cache.flatten(0, 1)[slot_mapping] = v


def gather(cache, block_table, num_tokens):
    blocks = block_table[: (num_tokens - 1) // cache.shape[1] + 1].tolist()
    return torch.cat([cache[block] for block in blocks])[:num_tokens]


def decode_attention(q, k_cache, v_cache, block_table, seq_len):
    return batch_attention(q.unsqueeze(0), k_cache, v_cache, [0, 1], [seq_len], block_table.unsqueeze(0)).squeeze(0)


def chunk_attention(q, k_cache, v_cache, block_table, num_computed_tokens):
    return batch_attention(
        q, k_cache, v_cache, [0, q.shape[0]], [num_computed_tokens + q.shape[0]], block_table.unsqueeze(0))


def batch_attention(q, k_cache, v_cache, query_starts, seq_lens, block_tables):
    rows, columns = [], []  # (request, position) of each query and of each key
    for i, seq_len in enumerate(seq_lens):
        count = query_starts[i + 1] - query_starts[i]
        rows += [(i, position) for position in range(seq_len - count, seq_len)]
        columns += [(i, position) for position in range(seq_len)]
    rows, columns = torch.tensor(rows, device=q.device), torch.tensor(columns, device=q.device)
    same = rows[:, None, 0] == columns[None, :, 0]
    sees = same & (columns[None, :, 1] <= rows[:, None, 1])
    keys, values = (
        torch.cat([gather(cache, table, n) for table, n in zip(block_tables, seq_lens, strict=True)])
        for cache in (k_cache, v_cache))
    group = q.shape[1] // keys.shape[1]
    keys, values = (t.repeat_interleave(group, dim=1).transpose(0, 1) for t in (keys, values))  # [heads, keys, dim]
    parts = []
    for row in range(q.shape[0]):  # a row takes what it sees, so nobody's NaN is multiplied by 0
        seen = sees[row]
        scores = keys[:, seen] @ q[row].unsqueeze(-1) / q.shape[-1] ** 0.5  # [heads, seen, 1]
        weights = torch.softmax(scores.float(), dim=1).to(q.dtype)
        parts.append((weights.transpose(1, 2) @ values[:, seen]).squeeze(1))
    return torch.stack(parts)


class PagedAttention:
    def __init__(self, config, block_size, dtype, device):
        self.config, self.block_size, self.dtype, self.device = config, block_size, dtype, device

    def slots(self, block_table, positions):
        return slots_of(block_table, positions, self.block_size)

    def write(self, layer_cache, k, v, slots):
        write_kv(*layer_cache, k, v, slots)

    @property
    def bytes_per_block(self):
        config = self.config
        one = torch.empty(self.block_size, config.num_key_value_heads, config.head_dim, dtype=self.dtype).nbytes
        return one * 2 * config.num_hidden_layers

    def make_cache(self, num_blocks):
        shape = [num_blocks, self.block_size, self.config.num_key_value_heads, self.config.head_dim]
        cache = []
        for _ in range(self.config.num_hidden_layers):
            keys = torch.zeros(shape, dtype=self.dtype, device=self.device)
            cache.append((keys, torch.zeros_like(keys)))
        return cache

    def forward(self, q, layer_cache, metadata):
        starts = [sum(metadata.query_lens[:i]) for i in range(len(metadata.query_lens) + 1)]
        result = q.new_zeros(q.shape)
        result[: starts[-1]] = batch_attention(
            q[: starts[-1]], *layer_cache, starts, metadata.seq_lens, metadata.block_tables)
        return result
