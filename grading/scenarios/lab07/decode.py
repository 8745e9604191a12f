"""Lab 07, TODO 3: the decode of one request."""

import math
import random
from collections.abc import Sequence

import torch

from grading.judge.checks import check, expect, hold, kept, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab07.pool import (
    DTYPES,
    GARBAGE,
    Pool,
    Vast,
    cut_out,
    elsewhere_by_default,
    expect_tensor,
    expect_unchanged,
    module_there,
    within_memory,
)
from grading.scenarios.lab07.writing import rows_of

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
def gather_follows_the_block_table_and_stops_at_the_last_token(lab: Remote, rng: random.Random) -> None:
    size = rng.randrange(3, 6)
    *table, other = rng.sample(range(1, 8), 4)
    gathers(lab, table, other, size, (1, size - 1, size, size + 1, 2 * size - 1, 2 * size, 2 * size + 1, 3 * size))
    block = rng.randrange(1, 4)
    # The first two have their ends as far apart as in a row of blocks.
    for steps in ((0, 3, 2), (0, 2, 1, 3), (0, 1, 2), (2, 1, 0)):
        gathers(lab, [block + step for step in steps], 7, size, (len(steps) * size, len(steps) * size - 1))


def gathers(lab: Remote, table: list[int], other: int, size: int, lengths: Sequence[int]) -> None:
    """A request's keys come in the order of its blocks, and no others; `other` is somebody else's block."""
    cache, keys = torch.full((8, size, 2, 4), -1.0), rows_of(10, len(table) * size)
    cache[torch.tensor(table)], cache[other] = keys.unflatten(0, (-1, size)), rows_of(60, size)
    for length in lengths:
        got = lab.gather(cache, torch.tensor([*table, other, 0]), length)
        expect_tensor(got, (length, 2, 4), f"gather of {length} tokens in blocks of {size}")
        expect(torch.equal(got, keys[:length]), (
            f"keys 10, 11, ... in blocks {table} of {size}; asked for the first {length}, got those that begin with "
            f"{shown(got[:, 0, 0].tolist())} (-1 is a slot nobody wrote, 60 and more is somebody else's)"))


@check(todo=3, points=2, section=DECODE, concept="an example that can be worked out by hand")
def an_example_by_hand_five_tokens_four_heads(lab: Remote, rng: random.Random) -> None:
    w, base, (first, second, null) = rng.choice([4, 9]), rng.choice([30, 60, 90]), rng.sample(range(8), 3)
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
def decode_reads_all_its_keys_and_no_other_at_every_block_edge(lab: Remote, rng: random.Random) -> None:
    for size in (1, 3, rng.randrange(4, 7)):
        for length in (1, 2, *edges(size)):
            if length:
                pool = Pool(rng, (length - 1, 1), (6, 1), block_size=size)
                expect_decode(lab, pool, f"decode over {length} tokens, blocks of {size}")
    reads_the_cache_anew(lab, Pool(rng, (8, 1)))


def reads_the_cache_anew(lab: Remote, pool: Pool) -> None:
    """Two calls of each function, between which other keys and values were written to the same slots."""
    request, table, caches = pool.requests[0], hold(lab, pool.table()), pool.held(lab)
    for call in ("the first call", "the second call, after other keys and values were written"):
        for name, cache, right in zip(("keys", "values"), caches, (request.keys, request.values), strict=True):
            expect(torch.equal(lab.gather(cache, table, request.seq_len), right), f"gather of {name}, {call}: other numbers came")
        got = lab.decode_attention(request.q[0], *caches, table, request.seq_len)
        expect_tensor(got, request.q[0].shape, call)
        request.expect_attended(got[None], call)
        pool.rewrite()
        kept(caches[0].copy_, pool.k_cache)
        kept(caches[1].copy_, pool.v_cache)


@check(todo=3, points=2, section=DECODE, concept="query heads that share KV heads", hidden=True)
def query_head_i_reads_kv_head_i_over_group_size(lab: Remote, rng: random.Random) -> None:
    for heads in ((4, 4, 16), (4, 2, 8), (8, 2, 16), (6, 3, 4), (6, 1, 32), (1, 1, 2)):
        pool = Pool(rng, (rng.randrange(5, 12), 1), heads=heads)
        expect_decode(lab, pool, pool.described())


@check(todo=3, points=2, section=DECODE, concept="slots that nobody wrote", hidden=True)
def decode_what_nobody_wrote_never_reaches_the_result(lab: Remote, rng: random.Random) -> None:
    for name, garbage in GARBAGE.items():
        pool = Pool(rng, (4 * rng.randrange(1, 4), 1), garbage=garbage)  # three slots of the last block are free
        expect_decode(lab, pool, f"{name} in every slot that nobody wrote")


@check(todo=3, points=1, section=DECODE, concept="exactness in bfloat16", hidden=True)
def bfloat16_is_as_exact_as_bfloat16_can_be(lab: Remote, rng: random.Random) -> None:
    for spread, what in ((1.0, "keys that differ"), (0.01, "keys almost alike")):
        pool = Pool(rng, (rng.randrange(560, 640), 1), dtype=torch.bfloat16, block_size=16)
        request = pool.requests[0]
        request.keys, request.values = request.keys * spread, request.values * spread + 1
        pool.put(request, request.keys, request.values)
        expect_decode(lab, pool, f"decode over {request.seq_len} tokens in bfloat16, {what}")


@check(todo=3, points=1, section=DECODE, concept="large scores", hidden=True)
def decode_large_scores_do_not_overflow(lab: Remote, rng: random.Random) -> None:
    for times in (100.0, -100.0):
        pool = Pool(rng, (rng.randrange(20, 30), 1))
        pool.requests[0].q *= times  # scores of some hundreds; e^89 is more than float32 can hold
        expect_decode(lab, pool, f"q times {times}, scores of some hundreds")
        pool.requests[0].q[:, 0] *= 5  # one head far from the others
        expect_decode(lab, pool, "scores of query head 0 five times as large as those of the others")


@check(todo=3, points=1, section=DECODE, concept="arguments of any strides, none of them changed")
def decode_reads_a_view_and_changes_nothing(lab: Remote, rng: random.Random) -> None:
    for dtype in (torch.float32, torch.float16):
        pool = Pool(rng, (rng.randrange(4, 8), 1), (2, 1), dtype=dtype)
        request, table, what = pool.requests[0], pool.table(), f"{dtype}, q cut out of a wider tensor"
        q = kept(cut_out(lab, request.q).select, 0, 0)
        k_cache, v_cache, table_there = (hold(lab, one) for one in (pool.k_cache, pool.v_cache, table))
        got = elsewhere_by_default(lab, lab.decode_attention, q, k_cache, v_cache, table_there, request.seq_len)
        expect_tensor(got, request.q[0].shape, what)
        request.expect_attended(got[None], what)
        expect_unchanged(q=(q, request.q[0]), k_cache=(k_cache, pool.k_cache), v_cache=(v_cache, pool.v_cache),
                         block_table=(table_there, table))


@check(todo=3, points=1, section=DECODE, concept="only the blocks that hold its tokens")
def gather_fetches_only_the_blocks_that_hold_its_tokens(lab: Remote, rng: random.Random) -> None:
    entries, head_dim = 1 << 20, 1 << 15  # blocks of 512 KiB: whoever fetches them all needs 512 GiB
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    cache, blocks = torch.randn(6, 4, 1, head_dim, generator=generator), rng.sample(range(6), 4)
    table = kept(module_there(lab, "torch").full, [entries], blocks[3])
    kept(table.index_copy_, 0, torch.arange(3), torch.tensor(blocks[:3]))
    length = rng.randrange(9, 13)
    got = within_memory(
        f"the block table of a request with 3 blocks has {entries:,} entries: "
        "what stands after those 3 means nothing, and is not fetched",
        lab.gather, cache, table, length)
    expect_tensor(got, (length, 1, head_dim), f"gather of {length} tokens")
    expect(torch.equal(got, cache[torch.tensor(blocks[:3])].flatten(0, 1)[:length]),
           f"gather of {length} tokens in blocks {blocks[:3]} of 4: other keys came")


@check(todo=3, points=1, section=DECODE, concept="the pool is not copied")
def decode_copies_no_more_than_the_requests_own_blocks(lab: Remote, rng: random.Random) -> None:
    for dtype in DTYPES:
        vast = Vast(lab, rng, (rng.randrange(250, 500), 1), dtype=dtype)
        request = vast.pool.requests[0]
        got = vast.within_its_blocks(lab.decode_attention, request.q[0], vast.k_cache, vast.v_cache, vast.tables[0],
                                     request.seq_len)
        expect_tensor(got, request.q[0].shape, vast.what)
        request.expect_attended(got[None], vast.what)
