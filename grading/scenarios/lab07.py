"""Lab 07: the paged cache. What the functions give is compared with attention written out in float64.

A cache that may be changed in place lies where the submission is. The engine of the last checks is the
judge's own, with the submission's attention in place of its own.
"""

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grading.checks import Wrong, check, expect, hold, kept, look, shown
from grading.scenarios.lab07_engine import expect_same_tokens, generated, item, metadata_there, pairs_of, part, random_network
from grading.scenarios.lab07_pool import (
    VAST_BLOCK,
    VAST_HEADS,
    Pool,
    Vast,
    bits,
    cut_out,
    expect_tensor,
    expect_unchanged,
    first_of,
    module_there,
    numbers,
    within_memory,
)
from grading.worker.peer import Remote
from nano_qwen3_serving.config import ModelConfig

DTYPES = (torch.float32, torch.bfloat16)
GARBAGE = {"NaN": math.nan, "infinity": math.inf, "3e38": 3e38}
"""What may be in a slot that nobody wrote."""


def model_config(num_heads: int = 4, num_kv_heads: int = 2, head_dim: int = 16, layers: int = 1) -> ModelConfig:
    """The shape of a model, of which only heads and layers matter here."""
    return ModelConfig(
        vocab_size=10, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads, head_dim=head_dim, max_position_embeddings=1024)


# TODO 1

LAY_OUT = "TODO 1: Lay out the batch"
TENSORS = ("token_ids", "positions", "slot_mapping", "block_tables")


class Piece:
    """A chunk: the judge's knowledge of it, and one made of the submission's `Chunk`."""

    def __init__(self, lab: Remote, token_ids: list[int], computed: int, table: list[int]) -> None:
        self.facts = (token_ids, computed, table)
        self.there = lab.Chunk(token_ids=token_ids, num_computed_tokens=computed, block_table=table)

    def __repr__(self) -> str:
        return f"{len(self.facts[0])} tokens after {self.facts[1]} in blocks {self.facts[2]}"


def facts_of(chunk: Any) -> tuple:
    """(token_ids, computed, table) of a chunk that came back."""
    return tuple(getattr(chunk, name, None) for name in ("token_ids", "num_computed_tokens", "block_table"))


def expect_layout(layout: Any, pieces: Sequence[Piece], size: int, **wanted: Any) -> None:
    """The named fields are as wanted."""
    for name, want in wanted.items():
        got = getattr(layout, name, None)
        expect(name not in TENSORS or (isinstance(got, Tensor) and got.dtype == torch.long),
               f"{name}: expected a torch.long tensor, and {shown(got)} came")
        expect(numbers(got) == want,
               f"chunks {list(pieces)}, blocks of {size}: expected {name} {shown(want)}, got {shown(numbers(got))}")


def place_of(table: Sequence[int], position: int, size: int) -> int:
    """The slot of a position, found by laying out the blocks of the table."""
    return [block * size + offset for block in table for offset in range(size)][position]


@check(todo=1, points=3, section=LAY_OUT, concept="from a position to its slot")
def a_slot_is_block_id_times_block_size_plus_offset(lab: Remote, dice: random.Random) -> None:
    for size in (1, 4, dice.randrange(2, 20), 16):
        table = dice.sample(range(1, 60), 4)
        for first, last in ((0, size), (size - 1, size + 1), (dice.randrange(2 * size), 4 * size), (size, size)):
            found = lab.slots_of(table, range(first, last), size)
            right = [place_of(table, position, size) for position in range(first, last)]
            expect(numbers(found) == right,
                   f"blocks of {size}, block table {table}, positions {shown(list(range(first, last)))}: "
                   f"expected slots {shown(right)}, got {shown(numbers(found))}")


@check(todo=1, points=3, section=LAY_OUT, concept="a decode beside a chunk of a prompt")
def lays_out_a_decode_beside_a_chunk(lab: Remote, dice: random.Random) -> None:
    size, blocks, tokens = dice.randrange(3, 8), dice.sample(range(1, 60), 4), dice.sample(range(10, 999), 4)
    computed = dice.randrange(size, 2 * size)
    a = Piece(lab, tokens[:1], computed, blocks[:2])
    b = Piece(lab, tokens[1:3], size - 1, [blocks[2], blocks[3], blocks[0]])
    layout = lab.lay_out([a.there, b.there], size)
    expect_layout(
        layout, [a, b], size, token_ids=tokens[:3], positions=[computed, size - 1, size], num_decodes=1,
        slot_mapping=[place_of(blocks[:2], computed, size), blocks[2] * size + size - 1, blocks[3] * size],
        query_starts=[0, 1, 3], seq_lens=[computed + 1, size + 1],
        block_tables=[[*blocks[:2], 0], [blocks[2], blocks[3], blocks[0]]])


@check(todo=1, points=3, section=LAY_OUT, concept="the order of the chunks")
def chunks_of_one_token_come_first_and_otherwise_the_order_stays(lab: Remote, dice: random.Random) -> None:
    longest = dice.randrange(3, 6)
    lengths = [longest, 1, dice.randrange(2, longest), 1, 1, dice.randrange(2, 9)]
    pieces = [Piece(lab, [100 * i + j for j in range(n)], 0, [i + 1, i + 21]) for i, n in enumerate(lengths)]
    layout = lab.lay_out([piece.there for piece in pieces], 8)
    order = [facts_of(chunk)[0] for chunk in layout.chunks]
    right = [pieces[i].facts for i in (1, 3, 4, 0, 2, 5)]
    expect(order == [tokens for tokens, _, _ in right],
           f"chunks of {lengths} tokens, those of chunk i being 100 i, 100 i + 1, ...: "
           f"expected the order 1, 3, 4, 0, 2, 5; chunks have the tokens {shown(order)}")
    expect_layout(
        layout, pieces, 8, token_ids=[token for tokens, _, _ in right for token in tokens],
        block_tables=[table for _, _, table in right], num_decodes=3)


@check(todo=1, points=1, section=LAY_OUT, concept="whose the chunks are")
def leaves_the_chunks_as_they_are(lab: Remote, dice: random.Random) -> None:
    size, blocks = dice.randrange(3, 8), dice.sample(range(1, 60), 5)
    pieces = [Piece(lab, [3, 4, dice.randrange(99)], 0, blocks[:1]), Piece(lab, [dice.randrange(99)], size, blocks[1:4]),
              Piece(lab, [5], 1, blocks[4:])]
    given = hold(lab, [piece.there for piece in pieces])
    lab.lay_out(given, size)
    now = [facts_of(chunk) for chunk in look(given)]
    expect(now == [piece.facts for piece in pieces],
           f"the chunks {pieces} belong to the scheduler, which uses them again; after lay_out the list held {shown(now)}")


def scheduled(dice: random.Random, count: int, size: int, spare: int) -> Any:
    """A chunk as the scheduler makes it: `count` tokens after some others, in any blocks, and some too many."""
    from nano_qwen3_serving import SamplingParams
    from nano_qwen3_serving.interfaces import ScheduledChunk
    from nano_qwen3_serving.request import Request

    start = dice.choice([0, size - 1, size, dice.randrange(30)])
    tokens = [dice.randrange(1000) for _ in range(start + count + dice.randrange(3))]
    request = Request(f"r{dice.random()}", None, tokens, SamplingParams(), seed=0, max_total_tokens=1000)
    return ScheduledChunk(request, start, count, dice.sample(range(1, 300), -(-(start + count) // size) + spare))


def by_the_engine(chunks: Sequence[Any], size: int) -> dict[str, Any]:
    """What the engine's own model runner makes of them, by the names of `Layout`."""
    from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention
    from nano_qwen3_serving.execution.model_runner import ModelRunner
    from nano_qwen3_serving.interfaces import ScheduledBatch

    cpu = torch.device("cpu")
    attention = TorchPagedAttention(model_config(), size, torch.float32, cpu)
    none: Any = None  # laying out needs neither a model nor a sampler
    runner = ModelRunner(none, attention, none, num_blocks=2, block_size=size, device=cpu)
    inputs = runner.lay_out(ScheduledBatch(list(chunks)))
    lens, rest = inputs.metadata.query_lens, inputs.metadata
    return {"token_ids": inputs.token_ids.tolist(), "positions": inputs.positions.tolist(),
            "slot_mapping": rest.slot_mapping.tolist(), "query_starts": [sum(lens[:i]) for i in range(len(lens) + 1)],
            "seq_lens": rest.seq_lens, "block_tables": rest.block_tables.tolist(), "num_decodes": rest.num_decodes}


@check(todo=1, points=4, section=LAY_OUT, concept="any chunks", hidden=True)
def is_what_the_engines_model_runner_lays_out(lab: Remote, dice: random.Random) -> None:
    for size in (1, 4, 16):
        for case in range(6):
            counts = [dice.choice([1, 1, 2, 5, size, size + 1]) for _ in range(dice.randrange(1, 6))]
            chunks = [scheduled(dice, count, size, spare=case % 2) for count in counts]
            pieces = [Piece(lab, list(c.request.token_ids(c.start, c.end)), c.start, list(c.block_table)) for c in chunks]
            expect_layout(lab.lay_out([piece.there for piece in pieces], size), pieces, size, **by_the_engine(chunks, size))


# TODO 2

WRITE = "TODO 2: Write keys and values"


def rows_of(first: float, count: int, dtype: torch.dtype = torch.float32, heads: int = 2) -> Tensor:
    """[count, heads, 4] that can be told apart by eye: token i has first + i, and .25 more in each further head."""
    tokens = torch.arange(count)[:, None, None] + first + 0.25 * torch.arange(heads)[:, None]
    return tokens.expand(-1, -1, 4).to(dtype).contiguous()


def expect_written(lab: Remote, cache: Tensor, slots: list[int], k: Tensor, v: Tensor, but_block_0: bool = False) -> None:
    """write_kv of k and v, into caches that both begin as `cache`, writes these slots and no others."""
    held = [hold(lab, cache) for _ in "kv"]
    lab.write_kv(*held, k, v, torch.tensor(slots))
    for name, there, rows in (("k_cache", held[0], k), ("v_cache", held[1], v)):
        want = cache.clone().flatten(0, 1)
        want[torch.tensor(slots)] = rows
        got = look(there).flatten(0, 1)
        expect(got.shape == want.shape and got.dtype == want.dtype, f"{name} became {shown(got)}")
        begins = cache.shape[1] if but_block_0 else 0
        wrong = ((bits(got) != bits(want)).flatten(1).any(dim=1).nonzero().flatten()).tolist()
        wrong = [slot for slot in wrong if slot >= begins]
        if wrong:
            raise Wrong(f"{name} after writing slots {slots}: slots {shown(wrong)} are wrong; slot {wrong[0]} should begin with "
                        f"{want[wrong[0], 0, 0].item()} and begins with {got[wrong[0], 0, 0].item()}")


@check(todo=2, points=3, section=WRITE, concept="each token into its slot")
def every_token_lands_in_its_slot_and_nothing_else_changes(lab: Remote, dice: random.Random) -> None:
    for dtype in DTYPES:
        size = dice.randrange(3, 7)
        one, two, three = dice.sample(range(1, 7), 3)
        slots = [one * size + size - 1, two * size, 8 * size - 1, three * size + 1]
        first = dice.randrange(10, 50)
        expect_written(lab, torch.full((8, size, 2, 4), -1.0, dtype=dtype), slots, rows_of(first, 4, dtype),
                       rows_of(first + 50, 4, dtype))


@check(todo=2, points=2, section=WRITE, concept="k and v of any strides")
def takes_keys_and_values_of_any_strides(lab: Remote, dice: random.Random) -> None:
    for heads in (1, 3):
        generator = torch.Generator().manual_seed(dice.randrange(1 << 30))
        k, v = (torch.randn(3, heads, 8, generator=generator) for _ in "kv")
        slots = torch.tensor(dice.sample(range(4, 20), 3))
        caches = [hold(lab, torch.zeros(5, 4, heads, 8)) for _ in "kv"]
        given = cut_out(lab, k), cut_out(lab, v), hold(lab, slots)
        lab.write_kv(*caches, *given)
        for name, cache, rows in (("k_cache", caches[0], k), ("v_cache", caches[1], v)):
            found = look(cache).flatten(0, 1)[slots]
            expect(torch.equal(found, rows), f"{name}: k and v were cut out of a wider tensor, and other numbers arrived")
        expect_unchanged(k=(given[0], k), v=(given[1], v), slot_mapping=(given[2], slots))


@check(todo=2, points=2, section=WRITE, concept="padding rows")
def padding_goes_into_the_null_block(lab: Remote, dice: random.Random) -> None:
    cache, first = torch.zeros(4, 4, 2, 4), dice.randrange(10, 50)
    slot, other = dice.sample(range(4, 16), 2)
    expect_written(lab, cache, [slot], rows_of(first, 1), rows_of(first + 50, 1))
    expect_written(lab, cache, [slot, other, 0, 0], rows_of(first, 4), rows_of(first + 50, 4), but_block_0=True)


@check(todo=2, points=2, section=WRITE, concept="slots that were used before", hidden=True)
def what_was_in_a_slot_before_is_overwritten_whatever_it_was(lab: Remote, dice: random.Random) -> None:
    for before in GARBAGE.values():
        for dtype in DTYPES:
            slots = dice.sample(range(4, 32), 5)
            expect_written(lab, torch.full((8, 4, 3, 4), before, dtype=dtype), slots, rows_of(3, 5, dtype, heads=3),
                           rows_of(60, 5, dtype, heads=3))


@check(todo=2, points=1, section=WRITE, concept="the pool is not copied")
def does_not_copy_the_cache(lab: Remote, dice: random.Random) -> None:
    for dtype in DTYPES:
        vast = Vast(lab, dice, (0, 3), dtype=dtype)
        k, v = (torch.randn(3, *VAST_HEADS[1:]).to(dtype) for _ in "kv")
        offsets = torch.tensor(dice.sample(range(VAST_BLOCK), 3))
        blocks = vast.ids[torch.tensor(dice.sample(range(len(vast.ids)), 3))]
        vast.within_its_blocks(lab.write_kv, vast.k_cache, vast.v_cache, k, v, blocks * VAST_BLOCK + offsets)
        for name, cache, rows in (("k_cache", vast.k_cache, k), ("v_cache", vast.v_cache, v)):
            found = cache.index_select(0, blocks)[torch.arange(3), offsets]
            expect(torch.equal(found, rows), f"{name} of {vast.what}: what was written is not there")


# TODO 3

DECODE = "TODO 3: Decode one request"


def edges(size: int) -> list[int]:
    """Lengths around the edges of blocks."""
    return [k * size + d for k in (1, 2, 5) for d in (-1, 0, 1)]


def expect_decode(lab: Remote, pool: Pool, what: str) -> None:
    """decode_attention of the pool's first request."""
    request = pool.requests[0]
    got = lab.decode_attention(request.q[0], pool.k_cache, pool.v_cache, pool.table(), request.seq_len)
    expect_tensor(got, request.q[0].shape, what)
    request.expect_attended(got[None], what)


@check(todo=3, points=3, section=DECODE, concept="a request's keys in the order of its positions")
def gather_follows_the_block_table_and_stops_at_the_last_token(lab: Remote, dice: random.Random) -> None:
    size = dice.randrange(3, 6)
    a, b, c, other = dice.sample(range(1, 8), 4)
    cache, keys = torch.full((8, size, 2, 4), -1.0), rows_of(10, 3 * size)
    for place, block in enumerate((a, b, c)):
        cache[block] = keys[place * size : (place + 1) * size]
    cache[other] = rows_of(60, size)
    for length in (1, size - 1, size, size + 1, 2 * size - 1, 2 * size, 2 * size + 1, 3 * size):
        got = lab.gather(cache, torch.tensor([a, b, c, other, 0]), length)
        expect_tensor(got, (length, 2, 4), f"gather of {length} tokens in blocks of {size}")
        expect(torch.equal(got, keys[:length]), (
            f"keys 10, 11, ... in blocks {[a, b, c]} of {size}; asked for the first {length}, got those that begin with "
            f"{shown(got[:, 0, 0].tolist())} (-1 is a slot nobody wrote, 60 and more is somebody else's)"))


@check(todo=3, points=2, section=DECODE, concept="an example that can be worked out by hand")
def an_example_by_hand_five_tokens_four_heads(lab: Remote, dice: random.Random) -> None:
    w, base, (first, second, null) = dice.choice([4, 9]), dice.choice([30, 60, 90]), dice.sample(range(8), 3)
    k_cache, v_cache = (torch.zeros(8, 4, 2, 4) for _ in "kv")
    k_cache[second, :, :, 0] = math.log(w)
    v_cache[second, 0], v_cache[second, 1:] = base, 2 * base
    v_cache[:, :, 1] += 300
    got = lab.decode_attention(torch.tensor([2.0, 0, 0, 0]).repeat(4, 1), k_cache, v_cache, torch.tensor([first, second, null]),
                               5)
    # A score is 2 * log(w) / sqrt(4): the tokens weigh 1, 1, 1, 1, w, and their values are 0, 0, 0, 0, base.

    def mean(weight: float, more: int = 0, count: int = 4) -> float:
        return (weight * base + more * weight * 2 * base) / (count + weight * (1 + more))

    right = mean(w)
    known = {
        mean(w * w): "The scores were not divided by the square root of head_dim, which is 2.",
        mean(w**0.5): "The scores were divided by head_dim, or twice by its square root.",
        mean(1): "All tokens had the same weight, whatever their keys are.", 0.0: "The fifth token, the newest, was not read.",
        mean(w, 1): "A sixth token was read, and there are five.",
        mean(w, 3): "The whole last block was read, and only one of its slots is the request's."}
    expect_tensor(got, (4, 4), "one token, four heads of four numbers")
    found = got[:, 0].tolist()
    hint = next((f" {why}" for number, why in known.items() if abs(number - found[0]) < 1e-3), "")
    if abs(found[0] - right) < 1e-3:
        hint = " Query heads 0 and 1 share KV head 0, 2 and 3 share KV head 1."
    want = torch.tensor([right, right, 300 + right, 300 + right])[:, None].expand(4, 4)
    expect(bool((got - want).abs().max() < 1e-3), (
        f"weights 1, 1, 1, 1, {w} and values 0, 0, 0, 0, {base} (KV head 1: 300 more): expected heads beginning with "
        f"{[round(number, 3) for number in want[:, 0].tolist()]}, found {[round(number, 3) for number in found]}.{hint}"))


@check(todo=3, points=3, section=DECODE, concept="lengths at the edges of blocks")
def decode_reads_all_its_keys_and_no_other_at_every_block_edge(lab: Remote, dice: random.Random) -> None:
    size = dice.randrange(3, 7)
    for length in (1, 2, *edges(size)):
        expect_decode(lab, Pool(dice, (length - 1, 1), (6, 1), block_size=size), f"decode over {length} tokens, blocks of {size}")


@check(todo=3, points=2, section=DECODE, concept="query heads that share KV heads", hidden=True)
def query_head_i_reads_kv_head_i_over_group_size(lab: Remote, dice: random.Random) -> None:
    for heads in ((4, 4, 16), (4, 2, 8), (8, 2, 16), (6, 3, 4), (6, 1, 32), (1, 1, 2)):
        pool = Pool(dice, (dice.randrange(5, 12), 1), heads=heads)
        expect_decode(lab, pool, pool.described())


@check(todo=3, points=2, section=DECODE, concept="slots that nobody wrote", hidden=True)
def decode_what_nobody_wrote_never_reaches_the_result(lab: Remote, dice: random.Random) -> None:
    for name, garbage in GARBAGE.items():
        pool = Pool(dice, (4 * dice.randrange(1, 4), 1), garbage=garbage)  # three slots of the last block are free
        expect_decode(lab, pool, f"{name} in every slot that nobody wrote")


@check(todo=3, points=1, section=DECODE, concept="exactness in bfloat16", hidden=True)
def bfloat16_is_as_exact_as_bfloat16_can_be(lab: Remote, dice: random.Random) -> None:
    for spread, what in ((1.0, "keys that differ"), (0.01, "keys almost alike")):
        pool = Pool(dice, (dice.randrange(560, 640), 1), dtype=torch.bfloat16, block_size=16)
        request = pool.requests[0]
        request.keys, request.values = request.keys * spread, request.values * spread + 1
        pool.put(request, request.keys, request.values)
        expect_decode(lab, pool, f"decode over {request.seq_len} tokens in bfloat16, {what}")


@check(todo=3, points=1, section=DECODE, concept="large scores", hidden=True)
def decode_large_scores_do_not_overflow(lab: Remote, dice: random.Random) -> None:
    for times in (100.0, -100.0):
        pool = Pool(dice, (dice.randrange(20, 30), 1))
        pool.requests[0].q *= times  # scores of some hundreds; e^89 is more than float32 can hold
        expect_decode(lab, pool, f"q times {times}, scores of some hundreds")


@check(todo=3, points=1, section=DECODE, concept="arguments of any strides, none of them changed")
def decode_reads_a_view_and_changes_nothing(lab: Remote, dice: random.Random) -> None:
    pool = Pool(dice, (dice.randrange(4, 8), 1), (2, 1))
    request, table = pool.requests[0], pool.table()
    q = kept(cut_out(lab, request.q).select, 0, 0)
    k_cache, v_cache, table_there = (hold(lab, one) for one in (pool.k_cache, pool.v_cache, table))
    got = lab.decode_attention(q, k_cache, v_cache, table_there, request.seq_len)
    expect_tensor(got, request.q[0].shape, "q cut out of a wider tensor")
    request.expect_attended(got[None], "q cut out of a wider tensor")
    expect_unchanged(q=(q, request.q[0]), k_cache=(k_cache, pool.k_cache), v_cache=(v_cache, pool.v_cache),
                     block_table=(table_there, table))


@check(todo=3, points=1, section=DECODE, concept="only the blocks that hold its tokens")
def gather_fetches_only_the_blocks_that_hold_its_tokens(lab: Remote, dice: random.Random) -> None:
    entries, head_dim = 1 << 20, 1 << 15  # blocks of 512 KiB: whoever fetches them all needs 512 GiB
    generator = torch.Generator().manual_seed(dice.randrange(1 << 30))
    cache, blocks = torch.randn(6, 4, 1, head_dim, generator=generator), dice.sample(range(6), 4)
    table = kept(module_there(lab, "torch").full, [entries], blocks[3])
    kept(table.index_copy_, 0, torch.arange(3), torch.tensor(blocks[:3]))
    length = dice.randrange(9, 13)
    got = within_memory(
        f"the block table of a request with 3 blocks has {entries:,} entries: "
        "what stands after those 3 means nothing, and is not fetched",
        lab.gather, cache, table, length)
    expect_tensor(got, (length, 1, head_dim), f"gather of {length} tokens")
    expect(torch.equal(got, cache[torch.tensor(blocks[:3])].flatten(0, 1)[:length]),
           f"gather of {length} tokens in blocks {blocks[:3]} of 4: other keys came")


@check(todo=3, points=1, section=DECODE, concept="the pool is not copied")
def decode_copies_no_more_than_the_requests_own_blocks(lab: Remote, dice: random.Random) -> None:
    for dtype in DTYPES:
        vast = Vast(lab, dice, (dice.randrange(250, 500), 1), dtype=dtype)
        request = vast.pool.requests[0]
        got = vast.within_its_blocks(lab.decode_attention, request.q[0], vast.k_cache, vast.v_cache, vast.tables[0],
                                     request.seq_len)
        expect_tensor(got, request.q[0].shape, vast.what)
        request.expect_attended(got[None], vast.what)


# TODO 4

CHUNKS = "TODO 4: Chunks"


def rounded(rows: list[list[float]]) -> list[list[float]]:
    return [[round(number, 3) for number in row] for row in rows]


def expect_chunk(lab: Remote, pool: Pool, what: str) -> None:
    """chunk_attention of the pool's first request."""
    request = pool.requests[0]
    request.expect_attended(lab.chunk_attention(request.q, pool.k_cache, pool.v_cache, pool.table(), request.start), what)


@check(todo=4, points=3, section=CHUNKS, concept="an example that can be worked out by hand")
def an_example_by_hand_two_rows_after_one_token(lab: Remote, dice: random.Random) -> None:
    weights, values = dice.sample([1, 2, 3, 4, 5], 3), dice.sample([30.0, 60.0, 90.0, 120.0, 150.0], 3)
    block, spare = dice.sample(range(8), 2)
    k_cache, v_cache = (torch.full((8, 4, 1, 1), 50.0) for _ in "kv")
    k_cache[block, :3, 0, 0], v_cache[block, :3, 0, 0] = torch.tensor(weights).log(), torch.tensor(values)
    q = torch.tensor([[1.0], [0.0]]).repeat(2, 1, 1)  # the first head asks with 1, the second with 0
    got = lab.chunk_attention(q, k_cache, v_cache, torch.tensor([block, spare]), 1)

    def mean(*weighed: float) -> float:
        return sum(w * v for w, v in zip(weighed, values, strict=False)) / sum(weighed)

    want = [[mean(*weights[:2]), mean(1, 1)], [mean(*weights), mean(1, 1, 1)]]
    first = mean(weights[0])
    known = {
        (first, want[0][0]): " That is each row one key short: the first row stands at position num_computed_tokens, not 0.",
        (want[1][0], want[1][0]): " The first row has seen the key of the second.",
        (mean(*weights[:2], 1), want[1][0]): " A later position's score was set to 0, and e^0 is 1: a weight, not none."}
    expect_tensor(got, (2, 2, 1), "two rows, two heads of one number")
    found = got[:, :, 0].double()
    hint = next((why for pair, why in known.items() if (found[:, 0] - torch.tensor(pair)).abs().max() < 1e-3), "")
    expect(bool((found - torch.tensor(want, dtype=torch.float64)).abs().max() < 1e-2), (
        f"keys log {weights}, values {values}; positions 1 and 2, whose heads ask with 1 and 0: expected "
        f"{rounded(want)}, got {rounded(found.tolist())}.{hint}"))


@check(todo=4, points=4, section=CHUNKS, concept="which keys a row sees")
def row_j_reads_the_keys_up_to_computed_plus_j(lab: Remote, dice: random.Random) -> None:
    size = dice.randrange(3, 6)
    spans = [(0, 2), (0, size), (0, size + 1), (0, 2 * size + 1), (1, 2), (size - 1, 2), (size - 1, size + 1), (size, size),
             (size + 1, size - 1), (2 * size - 1, 2), (2 * size, 3), (2 * size, 2 * size), (4 * size - 1, size + 2),
             (5 * size, 2), (dice.randrange(1, 40), dice.randrange(2, 12))]
    for computed, count in spans:
        pool = Pool(dice, (computed, count), (5, 2), block_size=size)
        expect_chunk(lab, pool, f"a chunk of {count} after {computed} computed tokens, blocks of {size}")


@check(todo=4, points=2, section=CHUNKS, concept="a prompt cut into chunks")
def a_prompt_cut_into_chunks_gives_what_it_gives_whole(lab: Remote, dice: random.Random) -> None:
    length = dice.randrange(9, 14)
    for cuts in ([], [1], [4], sorted(dice.sample(range(1, length), 3)), list(range(1, length))):
        pool = Pool(dice, (0, length), block_size=3)
        request, parts = pool.requests[0], []
        for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
            what = f"{length} tokens cut at {cuts}, blocks of 3"
            parts.append(lab.chunk_attention(request.q[start:stop], pool.k_cache, pool.v_cache, pool.table(), start))
            expect_tensor(parts[-1], request.q[start:stop].shape, what)
        request.expect_attended(torch.cat(parts), what)


@check(todo=4, points=1, section=CHUNKS, concept="a chunk of one token", hidden=True)
def a_chunk_of_one_token_is_a_decode(lab: Remote, dice: random.Random) -> None:
    for computed in (0, 3, 4, dice.randrange(5, 30)):
        expect_chunk(lab, Pool(dice, (computed, 1)), f"a chunk of 1 after {computed} computed tokens")


@check(todo=4, points=2, section=CHUNKS, concept="slots that nobody wrote", hidden=True)
def chunk_what_nobody_wrote_never_reaches_the_result(lab: Remote, dice: random.Random) -> None:
    for name, garbage in GARBAGE.items():
        computed = dice.randrange(3, 7)
        pool = Pool(dice, (computed, 4 * dice.randrange(2, 4) + 1 - computed), garbage=garbage)
        expect_chunk(lab, pool, f"{name} in every slot that nobody wrote")


@check(todo=4, points=1, section=CHUNKS, concept="arguments of any strides, none of them changed")
def chunk_reads_a_view_and_changes_nothing(lab: Remote, dice: random.Random) -> None:
    pool = Pool(dice, (dice.randrange(3, 9), dice.randrange(3, 9)), heads=(8, 2, 16))
    request, table = pool.requests[0], pool.table()
    q = cut_out(lab, request.q)
    k_cache, v_cache, table_there = (hold(lab, one) for one in (pool.k_cache, pool.v_cache, table))
    got = lab.chunk_attention(q, k_cache, v_cache, table_there, request.start)
    request.expect_attended(got, "q cut out of a wider tensor")
    expect_unchanged(q=(q, request.q), k_cache=(k_cache, pool.k_cache), v_cache=(v_cache, pool.v_cache),
                     block_table=(table_there, table))


@check(todo=4, points=1, section=CHUNKS, concept="query heads that share KV heads, in both dtypes", hidden=True)
def chunks_with_grouped_heads_in_both_dtypes(lab: Remote, dice: random.Random) -> None:
    for heads in ((4, 4, 8), (8, 2, 16), (6, 1, 32), (14, 2, 2)):
        for dtype in DTYPES:
            pool = Pool(dice, (6, dice.randrange(2, 9)), heads=heads, dtype=dtype)
            expect_chunk(lab, pool, pool.described())


@check(todo=4, points=1, section=CHUNKS, concept="large scores", hidden=True)
def chunk_large_scores_do_not_overflow(lab: Remote, dice: random.Random) -> None:
    for times in (100.0, -100.0):
        pool = Pool(dice, (dice.randrange(10, 20), dice.randrange(10, 15)))
        pool.requests[0].q *= times  # scores of some hundreds; e^89 is more than float32 can hold
        expect_chunk(lab, pool, f"q times {times}, scores of some hundreds")


@check(todo=4, points=1, section=CHUNKS, concept="the pool is not copied")
def chunk_copies_no_more_than_the_requests_own_blocks(lab: Remote, dice: random.Random) -> None:
    for dtype in DTYPES:
        vast = Vast(lab, dice, (dice.randrange(250, 500), 3), dtype=dtype)
        request = vast.pool.requests[0]
        got = vast.within_its_blocks(lab.chunk_attention, request.q, vast.k_cache, vast.v_cache, vast.tables[0], request.start)
        request.expect_attended(got, vast.what)


# TODO 5

BATCH = "TODO 5: A batch of requests"


def attended(lab: Remote, pool: Pool) -> Any:
    """batch_attention of the pool."""
    return lab.batch_attention(pool.q(), pool.k_cache, pool.v_cache, pool.query_starts(), pool.seq_lens(), pool.tables())


def batches(dice: random.Random) -> dict[str, list[tuple[int, int]]]:
    """(computed, count) of each request, those of one token first."""
    far = dice.randrange(12, 24)
    return {
        "one decode": [(8, 1)], "one chunk": [(4, 4)], "decodes": [(0, 1), (3, 1), (4, 1), (far, 1)],
        "chunks": [(0, 9), (3, 2), (8, 8), (0, dice.randrange(2, 6))],
        "decodes and chunks": [(7, 1), (0, 1), (far, 1), (0, 4), (5, dice.randrange(2, 6)), (12, 7)]}


@check(todo=5, points=4, section=BATCH, concept="every request and its own tokens")
def every_request_attends_to_its_own_tokens(lab: Remote, dice: random.Random) -> None:
    for size in (1, 4, 16):
        for name, spans in batches(dice).items():
            pool = Pool(dice, *spans, block_size=size)
            pool.expect_attended(attended(lab, pool), f"{name}, blocks of {size}")


@check(todo=5, points=3, section=BATCH, concept="nothing of a neighbour")
def nothing_of_a_neighbour_reaches_a_request(lab: Remote, dice: random.Random) -> None:
    for clean in range(4):
        pool = Pool(dice, (7, 1), (2, 1), (0, 4), (5, 3), garbage=math.nan)
        for i, request in enumerate(pool.requests):
            if i != clean:
                pool.put(request, request.keys * math.nan, request.values * math.nan)
        pool.expect_attended(attended(lab, pool), "NaN in all others' keys and values", only=clean)


@check(todo=5, points=1, section=BATCH, concept="two requests that begin alike", hidden=True)
def two_requests_may_share_a_block(lab: Remote, dice: random.Random) -> None:
    pool = Pool(dice, (dice.randrange(4, 12), 1), (6, 3))
    first, second = pool.requests
    second.table[0] = first.table[0]  # the same first four tokens, stored once
    second.keys[:4], second.values[:4] = first.keys[:4], first.values[:4]
    pool.expect_attended(attended(lab, pool), "the first block is in both tables")


@check(todo=5, points=1, section=BATCH, concept="any batch", hidden=True)
def random_batches(lab: Remote, dice: random.Random) -> None:
    for _ in range(6):
        decodes = [(dice.randrange(40), 1) for _ in range(dice.randrange(4))]
        chunks = [(dice.randrange(20), dice.randrange(2, 15)) for _ in range(dice.randrange(not decodes, 4))]
        pool = Pool(dice, *decodes, *chunks, block_size=dice.choice([1, 3, 4, 16]),
                    heads=dice.choice([(4, 4, 16), (4, 2, 8), (8, 2, 16), (3, 1, 4)]))
        pool.expect_attended(attended(lab, pool), f"blocks of {pool.block_size}, {pool.described()}")


@check(todo=5, points=2, section=BATCH, concept="arguments of any strides, none of them changed", hidden=True)
def any_strides_longer_tables_and_nothing_changed(lab: Remote, dice: random.Random) -> None:
    for dtype in DTYPES:
        pool = Pool(dice, (3, 1), (dice.randrange(4, 9), 1), (6, 5), dtype=dtype)
        starts, lens, tables = pool.query_starts(), pool.seq_lens(), pool.tables(spare=3)
        q = cut_out(lab, pool.q())
        k_cache, v_cache, starts_there, lens_there, tables_there = (
            hold(lab, one) for one in (pool.k_cache, pool.v_cache, starts, lens, tables))
        got = lab.batch_attention(q, k_cache, v_cache, starts_there, lens_there, tables_there)
        pool.expect_attended(got, f"{dtype}, q cut out of a wider tensor, tables with three spare entries")
        expect_unchanged(q=(q, pool.q()), k_cache=(k_cache, pool.k_cache), v_cache=(v_cache, pool.v_cache),
                         block_tables=(tables_there, tables))
        now = look(starts_there), look(lens_there)
        expect(now == (starts, lens), f"query_starts and seq_lens were {(starts, lens)}, and afterwards {shown(now)}")


@check(todo=5, points=1, section=BATCH, concept="the pool is not copied")
def batch_copies_no_more_than_the_requests_own_blocks(lab: Remote, dice: random.Random) -> None:
    for dtype in DTYPES:
        vast = Vast(lab, dice, (dice.randrange(250, 500), 1), (9, 1), (dice.randrange(250, 500), 5), (5, 6), dtype=dtype)
        pool = vast.pool
        got = vast.within_its_blocks(
            lab.batch_attention, pool.q(), vast.k_cache, vast.v_cache, pool.query_starts(), pool.seq_lens(), vast.tables)
        pool.expect_attended(got, vast.what)


# TODO 6

SWAP_IN = "TODO 6: Swap in"
LISTS = ("query_lens", "seq_lens", "block_tables", "slot_mapping")


def unset_memory_is_nan(lab: Remote) -> None:
    """From now on `torch.empty` gives NaN there, where it would give whatever was in memory, which may be zeros."""
    module_there(lab, "torch").set_deterministic_debug_mode("warn")


def metadata_of(lab: Remote, pool: Pool) -> Remote:
    return metadata_there(
        lab, query_lens=[one.count for one in pool.requests], seq_lens=pool.seq_lens(), block_tables=pool.tables(),
        slot_mapping=torch.tensor(pool.slots()), num_decodes=sum(one.count == 1 for one in pool.requests),
        block_size=pool.block_size)


@check(todo=6, points=2, section=SWAP_IN, concept="the tensors of the cache")
def a_cache_of_two_tensors_per_layer_each_its_own(lab: Remote, dice: random.Random) -> None:
    unset_memory_is_nan(lab)
    for dtype in DTYPES:
        layers, blocks = dice.randrange(2, 5), dice.randrange(4, 9)
        cache = kept(part(lab, model_config(num_kv_heads=2, head_dim=8, layers=layers), dtype=dtype).make_cache, blocks)
        expect(len(cache) == layers, f"{layers} layers: expected as many pairs of keys and values, got {len(cache)}")
        pairs = pairs_of(lab, cache)
        expect(all(len(pair) == 2 for pair in pairs), "each layer has a pair: keys and values")
        tensors = [item(lab, pair, which) for pair in pairs for which in (0, 1)]
        for tensor in tensors:
            now = look(tensor)
            expect_tensor(now, (blocks, 4, 2, 8), f"make_cache({blocks})")
            expect(now.dtype == dtype and tensor.is_contiguous(), f"expected contiguous {dtype}; {shown(now)} came")
            expect(bool((now == 0).all()), "the cache begins with zeros")
        for i, tensor in enumerate(tensors):
            kept(tensor.fill_, i + 1)
        expect([look(tensor).max().item() for tensor in tensors] == list(range(1, 2 * layers + 1)),
               f"two of the {2 * layers} tensors are one and the same")
    elsewhere = kept(part(lab, model_config(), device="meta").make_cache, 2)  # has shapes and no memory
    found = {item(lab, pair, which).device.type for pair in pairs_of(lab, elsewhere) for which in (0, 1)}
    expect(found == {"meta"}, f"self.device was 'meta', so the whole cache is there; it was made on {shown(sorted(found))}")


@check(todo=6, points=2, section=SWAP_IN, concept="the bytes of a block")
def bytes_per_block_is_what_a_block_takes(lab: Remote, dice: random.Random) -> None:
    for layers, kv_heads, head_dim, size in ((1, 1, 2, 1), (3, 2, 8, 4),
                                             (dice.randrange(2, 9), 2, dice.randrange(4, 40), dice.randrange(2, 20))):
        for dtype in DTYPES:
            got = part(lab, model_config(4, kv_heads, head_dim, layers), size, dtype).bytes_per_block
            want = sum(torch.empty(size, kv_heads, head_dim, dtype=dtype).nbytes for _ in range(2 * layers))
            expect(got == want,
                   f"{layers} layers, blocks of {size}, {kv_heads} KV heads of {head_dim}, {dtype}: "
                   f"expected {want} bytes, got {shown(got)}")


@check(todo=6, points=2, section=SWAP_IN, concept="attention of a step")
def forward_attends_each_request_to_its_own_tokens(lab: Remote, dice: random.Random) -> None:
    attention = part(lab, model_config(num_heads=8, num_kv_heads=2))
    for name, spans in batches(dice).items():
        pool = Pool(dice, *spans, heads=(8, 2, 16))
        pool.expect_attended(attention.forward(pool.q(), (pool.k_cache, pool.v_cache), metadata_of(lab, pool)), name)


@check(todo=6, points=1, section=SWAP_IN, concept="whose the metadata are", hidden=True)
def forward_changes_nothing(lab: Remote, dice: random.Random) -> None:
    pool = Pool(dice, (dice.randrange(3, 9), 1), (9, 1), (2, 5))
    q, metadata, fresh = cut_out(lab, pool.q()), metadata_of(lab, pool), metadata_of(lab, pool)
    k_cache, v_cache = hold(lab, pool.k_cache), hold(lab, pool.v_cache)
    got = part(lab, model_config()).forward(q, (k_cache, v_cache), metadata)
    for name in LISTS:
        was, now = numbers(getattr(fresh, name)), numbers(getattr(metadata, name))
        expect(now == was,
               f"forward changed metadata.{name}: the next layer uses the same one. Before {shown(was)}, after {shown(now)}")
    expect_unchanged(q=(q, pool.q()), k_cache=(k_cache, pool.k_cache), v_cache=(v_cache, pool.v_cache))
    pool.expect_attended(got, "q cut out of a wider tensor")


@check(todo=6, points=2, section=SWAP_IN, concept="rows of padding")
def padding_rows_come_back_as_zeros(lab: Remote, dice: random.Random) -> None:
    unset_memory_is_nan(lab)
    for padding, dtype in ((1, torch.float32), (dice.randrange(2, 14), torch.float32), (3, torch.bfloat16)):
        pool = Pool(dice, (6, 1), (4, 1), (2, 5), garbage=math.nan, dtype=dtype)
        q = torch.cat([pool.q(), torch.full((padding, 4, 16), math.nan, dtype=dtype)])
        rows = len(pool.q())
        got = part(lab, model_config(), dtype=dtype).forward(q, (pool.k_cache, pool.v_cache), metadata_of(lab, pool))
        expect_tensor(got, q.shape, f"{len(q)} rows, {padding} of them padding")
        pool.expect_attended(got[:rows], "with padding rows after the last request")
        expect(bool((got[rows:] == 0).all()), (
            f"the {padding} padding rows belong to nobody and must be zeros, whatever their q holds (here NaN): they go on "
            f"through the layers. Got {[first_of(row) for row in got[rows:, 0]][:3]}"))


@check(todo=6, points=3, section=SWAP_IN, concept="in the engine, on random weights")
def in_the_engine_logits_of_random_weights_are_those_of_its_own_attention(lab: Remote, dice: random.Random) -> None:
    kept(part(lab, model_config()).make_cache, 2)
    prompts = [{"prompt_token_ids": [dice.randrange(2000) for _ in range(n)]} for n in (1, 4, 9, dice.randrange(15, 22))]
    with random_network(dice) as model:
        found = generated(model, prompts, 4, lab, block_size=4, max_num_batched_tokens=7)
        expect_same_tokens(found, generated(model, prompts, 4), "random weights, blocks of 4, steps of at most 7 tokens")


WAYS = {
    "blocks of 1, steps of at most 7 tokens": {"block_size": 1, "max_num_batched_tokens": 7},
    "blocks of 4, padding rows": {"block_size": 4, "max_num_batched_tokens": 9, "batch_invariant": True},
    "blocks of 16": {"block_size": 16, "max_num_batched_tokens": 24},
}
PROMPTS = [
    "What is paged attention?", "Hello", "Explain the difference between throughput and latency to a beginner.",
    "What is a block table?", "Why does a server batch requests?", "What is a KV cache?", "How does chunked prefill help?"]


@check(todo=6, points=4, section=SWAP_IN, concept="in the engine, any blocks and steps", hidden=True)
def in_the_engine_greedy_tokens_are_those_of_its_own_attention(lab: Remote, dice: random.Random) -> None:
    kept(part(lab, model_config()).make_cache, 2)
    prompts = dice.sample(PROMPTS, 4)
    right = generated("course", prompts, 6)
    for how, arguments in WAYS.items():
        expect_same_tokens(generated("course", prompts, 6, lab, **arguments), right, how)
