"""torch's scaled_dot_product_attention with a mask; slots written through a flat view; a batch without decode_attention."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
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
    """Quotient and remainder of each."""
    return [block_table[index] * block_size + offset for index, offset in (divmod(i, block_size) for i in positions)]


def lay_out(chunks: Sequence[Chunk], block_size: int) -> Layout:
    """The chunks of one step, one after the other in flat tensors; at least one chunk."""
    ordered = sorted(chunks, key=lambda chunk: len(chunk.token_ids) > 1)  # a stable sort
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    query_starts, seq_lens = [0], []
    for chunk in ordered:
        here = range(chunk.num_computed_tokens, chunk.num_computed_tokens + len(chunk.token_ids))
        token_ids += chunk.token_ids
        positions += here
        slots += slots_of(chunk.block_table, here, block_size)
        query_starts.append(len(token_ids))
        seq_lens.append(here.stop)
    longest = max(len(chunk.block_table) for chunk in ordered)
    tables = [chunk.block_table + [NULL_BLOCK] * (longest - len(chunk.block_table)) for chunk in ordered]
    return Layout(
        chunks=ordered,
        token_ids=torch.tensor(token_ids),
        positions=torch.tensor(positions),
        slot_mapping=torch.tensor(slots),
        query_starts=query_starts,
        seq_lens=seq_lens,
        block_tables=torch.tensor(tables),
        num_decodes=sum(len(chunk.token_ids) == 1 for chunk in ordered),
    )


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
        numbers = 2 * self.num_layers * self.block_size * self.num_kv_heads * self.head_dim
        return numbers * self.dtype.itemsize

    def make_cache(self, num_blocks: int) -> list[LayerCache]:
        """A pair of zeroed caches, keys and values, for each layer."""
        shape = (num_blocks, self.block_size, self.num_kv_heads, self.head_dim)
        empty = [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2 * self.num_layers)]
        return list(zip(empty[::2], empty[1::2], strict=True))

    def slots(self, block_table: Sequence[int], positions: range) -> list[int]:
        """The slot of each of a request's `positions` (written for you)."""
        return slots_of(block_table, positions, self.block_size)

    def write(self, layer_cache: LayerCache, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Puts a layer's keys and values of this step into their slots (written for you)."""
        write_kv(*layer_cache, k, v, slots)

    def forward(self, q: Tensor, layer_cache: LayerCache, metadata: AttentionMetadata) -> Tensor:
        """Padding is joined to what was computed."""
        starts = [sum(metadata.query_lens[:i]) for i in range(len(metadata.query_lens) + 1)]
        rows = batch_attention(q[: starts[-1]], *layer_cache, starts, metadata.seq_lens, metadata.block_tables)
        return torch.cat([rows, rows.new_zeros(len(q) - starts[-1], *q.shape[1:])])


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
