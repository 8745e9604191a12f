"""torch's own attention, one call for the whole batch: every request padded to the longest.

Queries become [requests, heads, rows, head_dim], keys [requests, heads, keys, head_dim], and one mask says for
each row which keys it sees. Slots past a request's end are replaced by zeros before they meet a weight.
"""

import torch.nn.functional as F


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
    index = torch.arange(positions.start, positions.stop)
    table = torch.tensor(block_table)
    return (table[index // block_size] * block_size + index % block_size).tolist()


def lay_out(chunks, block_size):
    counts = torch.tensor([len(chunk.token_ids) for chunk in chunks])
    order = torch.argsort((counts > 1).int(), stable=True).tolist()
    ordered = [chunks[i] for i in order]
    counts = counts[order]
    starts = F.pad(counts.cumsum(0), (1, 0))
    computed = torch.tensor([chunk.num_computed_tokens for chunk in ordered])
    owner = torch.repeat_interleave(torch.arange(len(ordered)), counts)
    positions = torch.arange(len(owner)) - starts[owner] + computed[owner]
    tables = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(chunk.block_table) for chunk in ordered], batch_first=True, padding_value=NULL_BLOCK)
    slots = tables[owner, positions // block_size] * block_size + positions % block_size
    token_ids = torch.cat([torch.tensor(chunk.token_ids) for chunk in ordered])
    return Layout(
        ordered, token_ids, positions, slots, starts.tolist(), (computed + counts).tolist(), tables,
        int((counts == 1).sum()))


def write_kv(k_cache, v_cache, k, v, slot_mapping):
    for cache, new in ((k_cache, k), (v_cache, v)):
        cache.view(-1, *cache.shape[2:]).index_copy_(0, slot_mapping, new)


def gather(cache, block_table, num_tokens):
    positions = torch.arange(num_tokens, device=cache.device)
    slots = block_table[positions // cache.shape[1]] * cache.shape[1] + positions % cache.shape[1]
    return cache.view(-1, *cache.shape[2:]).index_select(0, slots)


def decode_attention(q, k_cache, v_cache, block_table, seq_len):
    return batch_attention(q[None], k_cache, v_cache, [0, 1], [seq_len], block_table[None])[0]


def chunk_attention(q, k_cache, v_cache, block_table, num_computed_tokens):
    lens = [num_computed_tokens + len(q)]
    return batch_attention(q, k_cache, v_cache, [0, len(q)], lens, block_table[None])


def batch_attention(q, k_cache, v_cache, query_starts, seq_lens, block_tables):
    lens, starts = torch.tensor(seq_lens, device=q.device), torch.tensor(query_starts, device=q.device)
    counts = starts[1:] - starts[:-1]
    most, longest, size = int(counts.max()), int(lens.max()), k_cache.shape[1]
    tables = block_tables[:, : -(-longest // size)]
    mine = torch.arange(longest, device=q.device) < lens[:, None]  # [requests, longest]
    keys, values = (
        cache[tables].flatten(1, 2)[:, :longest].masked_fill(~mine[..., None, None], 0).transpose(1, 2)
        for cache in (k_cache, v_cache))
    rows = torch.arange(most, device=q.device)
    used = rows < counts[:, None]  # [requests, most]
    queries = q.new_zeros(len(lens), most, *q.shape[1:])
    queries[used] = q
    positions = (lens - counts)[:, None] + rows  # of every row; past a request's end they mean nothing
    sees = torch.arange(longest, device=q.device) <= positions[..., None]
    out = F.scaled_dot_product_attention(
        queries.transpose(1, 2), keys, values, attn_mask=(sees & mine[:, None]).unsqueeze(1), enable_gqa=True)
    return out.transpose(1, 2)[used]


class PagedAttention:
    def __init__(self, config, block_size, dtype, device):
        self.config, self.block_size, self.dtype, self.device = config, block_size, dtype, device

    def slots(self, block_table, positions):
        return slots_of(block_table, positions, self.block_size)

    def write(self, layer_cache, k, v, slots):
        write_kv(*layer_cache, k, v, slots)

    @property
    def bytes_per_block(self):
        per_token = 2 * self.config.num_key_value_heads * self.config.head_dim * torch.finfo(self.dtype).bits // 8
        return self.config.num_hidden_layers * self.block_size * per_token

    def make_cache(self, num_blocks):
        shape = (self.config.num_hidden_layers, 2, num_blocks, self.block_size,
                 self.config.num_key_value_heads, self.config.head_dim)
        return [tuple(pair) for pair in torch.zeros(shape, dtype=self.dtype, device=self.device)]

    def forward(self, q, layer_cache, metadata):
        counts = torch.tensor(metadata.query_lens)
        starts = F.pad(counts.cumsum(0), (1, 0)).tolist()
        used = batch_attention(q[: starts[-1]], *layer_cache, starts, metadata.seq_lens, metadata.block_tables)
        return F.pad(used, (0, 0, 0, 0, 0, len(q) - starts[-1]))
