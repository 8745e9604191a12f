"""No mask: each row attends to a slice of the keys, KV head by KV head, and its weights are exp(score - logsumexp), which
rounds otherwise than a softmax does. Rows are written one by one, tables are filled up by zip_longest, and the batch is
computed from its last request to its first.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labs.harness.todo import run_lab
from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.config import EngineConfig, ModelConfig
from nano_qwen3_serving.interfaces import NULL_BLOCK, AttentionMetadata

LayerCache = tuple[Tensor, Tensor]
"""Keys and values of one layer."""


@dataclass(frozen=True)
class Chunk:
    """What one request computes in one step.

    Attributes:
        token_ids: the tokens of this step, at least one.
        num_computed_tokens: tokens of the request computed in earlier steps; the first of
            `token_ids` stands at this position.
        block_table: ids of the request's blocks, in the order of its positions.
    """

    token_ids: list[int]
    num_computed_tokens: int
    block_table: list[int]


@dataclass(frozen=True)
class Layout:
    """One step as flat tensors, without a batch dimension.

    Attributes:
        chunks: in the order in which they lie in the tensors: those of one token first.
        token_ids, positions, slot_mapping: [num_tokens], torch.long.
        query_starts: num_requests + 1 rows; request i has the rows from query_starts[i] up to, not
            including, query_starts[i + 1].
        seq_lens: for each request, the keys its last token attends to.
        block_tables: [num_requests, longest block table], torch.long, filled up with the null block.
        num_decodes: how many requests, from the first, compute exactly one token.
    """

    chunks: list[Chunk]
    token_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    query_starts: list[int]
    seq_lens: list[int]
    block_tables: Tensor
    num_decodes: int


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
    """The engine's attention: owns the layout of the KV cache, writes it and reads it.

    Args:
        config: shape of the model.
        block_size: tokens in a block.
        dtype, device: of the cache.
    """

    def __init__(self, config: ModelConfig, block_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self.num_layers = config.num_hidden_layers
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.block_size = block_size
        self.dtype = dtype
        self.device = device

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

    def slots(self, block_table: Sequence[int], positions: range) -> list[int]:
        """The slot of each of a request's `positions` (written for you)."""
        return slots_of(block_table, positions, self.block_size)

    def write(self, layer_cache: LayerCache, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Puts a layer's keys and values of this step into their slots (written for you)."""
        write_kv(*layer_cache, k, v, slots)

    def forward(self, q: Tensor, layer_cache: LayerCache, metadata: AttentionMetadata) -> Tensor:
        """The padding is made by itself and put behind."""
        starts = list(itertools.accumulate([0, *metadata.query_lens]))
        out = batch_attention(q[: starts[-1]], *layer_cache, starts, list(metadata.seq_lens), metadata.block_tables)
        return torch.cat([out, out.new_zeros(len(q) - len(out), *out.shape[1:])])


def make_attention(config: EngineConfig) -> PagedAttention:
    """What `Components` needs: your attention for an engine (written for you)."""
    return PagedAttention(config.model, config.cache.block_size, config.dtype, config.device)


# The program: the README's example, then your attention in the engine.

BLOCK_SIZE, NUM_BLOCKS = 4, 8
A = Chunk(token_ids=[17], num_computed_tokens=6, block_table=[5, 2])
B = Chunk(token_ids=[21, 22], num_computed_tokens=1, block_table=[7])
KEYS = {"A": [0.0] * 7, "B": [0.0, math.log(2), math.log(3)]}
VALUES = {"A": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], "B": [30.0, 60.0, 90.0]}
PROMPTS = ["What is paged attention?", "What is a block table?", "Why does a server batch requests?"]


def main() -> None:
    """The worked example, then three prompts on an engine with this attention."""
    print("=== Paged Attention Lab ===\n")
    show_slots()
    layout = lay_out([B, A], BLOCK_SIZE)
    show_layout(layout)
    k_cache, v_cache = fill_cache()
    show_cache(k_cache)
    show_decode(k_cache, v_cache)
    show_chunk(k_cache, v_cache)
    show_batch(k_cache, v_cache, layout)
    show_engine()


def name_of(chunk: Chunk) -> str:
    """A or B."""
    return "A" if chunk is A else "B"


def column(numbers: Sequence[float]) -> Tensor:
    """Numbers as keys or values of one KV head with head_dim 1: [len(numbers), 1, 1]."""
    return torch.tensor(numbers)[:, None, None]


def show_slots() -> None:
    """Where the tokens of each request lie."""
    for chunk in (A, B):
        positions = range(chunk.num_computed_tokens + len(chunk.token_ids))
        slots = ", ".join(map(str, slots_of(chunk.block_table, positions, BLOCK_SIZE)))
        print(f"{name_of(chunk)}, block table {chunk.block_table}: positions 0 to {positions[-1]} have the slots {slots}")
    print()


def show_layout(layout: Layout) -> None:
    """The rows of the step."""
    print("One step: A decodes its seventh token, B computes two tokens of its prompt.")
    print("row  request  token  position  slot")
    for i, chunk in enumerate(layout.chunks):
        for row in range(layout.query_starts[i], layout.query_starts[i + 1]):
            token, position, slot = (t[row].item() for t in (layout.token_ids, layout.positions, layout.slot_mapping))
            print(f"{row:3}  {name_of(chunk):7}  {token:5}  {position:8}  {slot:4}")
    print(f"query starts {layout.query_starts}, sequence lengths {layout.seq_lens}\n")


def fill_cache() -> LayerCache:
    """The example's cache, [8, 4, 1, 1], after the step has written; NaN where nobody wrote."""
    k_cache, v_cache = (torch.full((NUM_BLOCKS, BLOCK_SIZE, 1, 1), torch.nan) for _ in "kv")
    for chunk in (A, B):
        keys, values = column(KEYS[name_of(chunk)]), column(VALUES[name_of(chunk)])
        slots = torch.tensor(slots_of(chunk.block_table, range(len(keys)), BLOCK_SIZE))
        write_kv(k_cache, v_cache, keys, values, slots)
    return k_cache, v_cache


def show_cache(k_cache: Tensor) -> None:
    """Who wrote into which slot."""
    owner = {block: name_of(chunk) for chunk in (A, B) for block in chunk.block_table}
    print("The cache after the step has written ('.' is a slot that nobody wrote):")
    for block in range(NUM_BLOCKS):
        cells = [owner.get(block, "?") if written else "." for written in ~k_cache[block, :, 0, 0].isnan()]
        print(f"block {block}  {' '.join(cells)}")
    print()


def show_decode(k_cache: Tensor, v_cache: Tensor) -> None:
    """A's token over A's block table."""
    q, table, seq_len = torch.tensor([[1.0], [0.0]]), torch.tensor(A.block_table), A.num_computed_tokens + 1
    values = gather(v_cache, table, seq_len)
    out = decode_attention(q, k_cache, v_cache, table, seq_len)
    print(f"A, position 6, reads {len(values)} values: heads {heads(out)}")


def show_chunk(k_cache: Tensor, v_cache: Tensor) -> None:
    """B's two tokens, each up to itself."""
    q = torch.tensor([[1.0], [0.0]]).expand(2, 2, 1)
    out = chunk_attention(q, k_cache, v_cache, torch.tensor(B.block_table), B.num_computed_tokens)
    for j, row in enumerate(out):
        position = B.num_computed_tokens + j
        print(f"B, position {position}, reads {position + 1} values: heads {heads(row)}")


def show_batch(k_cache: Tensor, v_cache: Tensor, layout: Layout) -> None:
    """All three rows at once."""
    q = torch.tensor([[1.0], [0.0]]).expand(3, 2, 1)
    out = batch_attention(q, k_cache, v_cache, layout.query_starts, layout.seq_lens, layout.block_tables)
    print(f"All three rows in one batch: {', '.join(heads(row) for row in out)}\n")


def heads(row: Tensor) -> str:
    """`50.0 and 45.0`"""
    return " and ".join(f"{number:.1f}" for number in row.flatten().tolist())


def show_engine() -> None:
    """Three prompts on an engine with this attention, and whether the engine's own gives the same."""
    config = {"block_size": BLOCK_SIZE, "max_num_batched_tokens": 16, "max_num_seqs": 8}
    greedy = SamplingParams(temperature=0.0, max_tokens=48)
    mine = LLM("course", components=Components(attention=make_attention), **config)
    print("Your attention in the engine, blocks of 4, steps of at most 16 tokens:")
    outputs = mine.generate(PROMPTS, greedy, use_tqdm=False)
    for output in outputs:
        print(f"- {output.prompt}\n  {output.outputs[0].text.strip()}")
    theirs = LLM("course", **config).generate(PROMPTS, greedy, use_tqdm=False)
    same = [o.outputs[0].token_ids for o in outputs] == [o.outputs[0].token_ids for o in theirs]
    print(f"\nThe same tokens as with the engine's own attention: {'yes' if same else 'no'}")


if __name__ == "__main__":
    run_lab(main)
