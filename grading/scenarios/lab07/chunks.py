"""Lab 07, TODO 4: chunks."""

import random

import torch

from grading.judge.checks import check, expect, hold, kept
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab07.pool import (
    ALL_DTYPES,
    DTYPES,
    GARBAGE,
    Pool,
    Vast,
    cut_out,
    elsewhere_by_default,
    expect_tensor,
    expect_unchanged,
)

CHUNKS = "TODO 4: Chunks"


def rounded(rows: list[list[float]]) -> list[list[float]]:
    """To three decimals."""
    return [[round(number, 3) for number in row] for row in rows]


def expect_chunk(lab: Remote, pool: Pool, what: str) -> None:
    """chunk_attention of the pool's first request."""
    request = pool.requests[0]
    request.expect_attended(lab.chunk_attention(request.q, pool.k_cache, pool.v_cache, pool.table(), request.start), what)


@check(todo=4, points=3, section=CHUNKS, concept="an example that can be worked out by hand")
def an_example_by_hand_two_rows_after_one_token(lab: Remote, rng: random.Random) -> None:
    weights, values = rng.sample([1, 2, 3, 4, 5], 3), rng.sample([30.0, 60.0, 90.0, 120.0, 150.0], 3)
    block, spare = rng.sample(range(8), 2)
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
def row_j_reads_the_keys_up_to_computed_plus_j(lab: Remote, rng: random.Random) -> None:
    size = rng.randrange(3, 6)
    spans = [(0, 2), (0, size), (0, size + 1), (0, 2 * size + 1), (1, 2), (size - 1, 2), (size - 1, size + 1), (size, size),
             (size + 1, size - 1), (2 * size - 1, 2), (2 * size, 3), (2 * size, 2 * size), (4 * size - 1, size + 2),
             (5 * size, 2), (2, 40), (rng.randrange(1, 40), rng.randrange(2, 12))]
    for computed, count in spans:
        pool = Pool(rng, (computed, count), (5, 2), block_size=size)
        expect_chunk(lab, pool, f"a chunk of {count} after {computed} computed tokens, blocks of {size}")
    reads_the_cache_anew(lab, Pool(rng, (rng.randrange(1, 9), 4)))


def reads_the_cache_anew(lab: Remote, pool: Pool) -> None:
    """Two calls, between which other keys and values were written to the same slots."""
    request, table, caches = pool.requests[0], hold(lab, pool.table()), pool.held(lab)
    for call in ("the first call", "the second call, after other keys and values were written"):
        request.expect_attended(lab.chunk_attention(request.q, *caches, table, request.start), call)
        pool.rewrite()
        kept(caches[0].copy_, pool.k_cache)
        kept(caches[1].copy_, pool.v_cache)


@check(todo=4, points=2, section=CHUNKS, concept="a prompt cut into chunks")
def a_prompt_cut_into_chunks_gives_what_it_gives_whole(lab: Remote, rng: random.Random) -> None:
    length = rng.randrange(9, 14)
    for cuts in ([], [1], [4], sorted(rng.sample(range(1, length), 3)), list(range(1, length))):
        pool = Pool(rng, (0, length), block_size=3)
        request, parts = pool.requests[0], []
        for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
            what = f"{length} tokens cut at {cuts}, blocks of 3"
            parts.append(lab.chunk_attention(request.q[start:stop], pool.k_cache, pool.v_cache, pool.table(), start))
            expect_tensor(parts[-1], request.q[start:stop].shape, what)
        request.expect_attended(torch.cat(parts), what)


@check(todo=4, points=1, section=CHUNKS, concept="a chunk of one token", hidden=True)
def a_chunk_of_one_token_is_a_decode(lab: Remote, rng: random.Random) -> None:
    for computed in (0, 3, 4, rng.randrange(5, 30)):
        expect_chunk(lab, Pool(rng, (computed, 1)), f"a chunk of 1 after {computed} computed tokens")


@check(todo=4, points=2, section=CHUNKS, concept="slots that nobody wrote", hidden=True)
def chunk_what_nobody_wrote_never_reaches_the_result(lab: Remote, rng: random.Random) -> None:
    for name, garbage in GARBAGE.items():
        computed = rng.randrange(3, 7)
        pool = Pool(rng, (computed, 4 * rng.randrange(2, 4) + 1 - computed), garbage=garbage)
        expect_chunk(lab, pool, f"{name} in every slot that nobody wrote")


@check(todo=4, points=1, section=CHUNKS, concept="arguments of any strides, none of them changed")
def chunk_reads_a_view_and_changes_nothing(lab: Remote, rng: random.Random) -> None:
    pool = Pool(rng, (rng.randrange(3, 9), rng.randrange(3, 9)), heads=(8, 2, 16))
    request, table = pool.requests[0], pool.table()
    q = cut_out(lab, request.q)
    k_cache, v_cache, table_there = (hold(lab, one) for one in (pool.k_cache, pool.v_cache, table))
    got = elsewhere_by_default(lab, lab.chunk_attention, q, k_cache, v_cache, table_there, request.start)
    request.expect_attended(got, "q cut out of a wider tensor")
    expect_unchanged(q=(q, request.q), k_cache=(k_cache, pool.k_cache), v_cache=(v_cache, pool.v_cache),
                     block_table=(table_there, table))


@check(todo=4, points=1, section=CHUNKS, concept="query heads that share KV heads, in any dtype", hidden=True)
def chunks_with_grouped_heads_in_any_dtype(lab: Remote, rng: random.Random) -> None:
    for heads in ((4, 4, 8), (8, 2, 16), (6, 1, 32), (14, 2, 2)):
        for dtype in ALL_DTYPES:
            pool = Pool(rng, (6, rng.randrange(2, 9)), heads=heads, dtype=dtype)
            expect_chunk(lab, pool, pool.described())


@check(todo=4, points=1, section=CHUNKS, concept="large scores", hidden=True)
def chunk_large_scores_do_not_overflow(lab: Remote, rng: random.Random) -> None:
    for times in (100.0, -100.0):
        pool = Pool(rng, (rng.randrange(10, 20), rng.randrange(10, 15)))
        pool.requests[0].q *= times  # scores of some hundreds; e^89 is more than float32 can hold
        expect_chunk(lab, pool, f"q times {times}, scores of some hundreds")
        pool.requests[0].q[1, 2] *= 5  # one row and head far from the others
        expect_chunk(lab, pool, "scores of one row and head five times as large as those of the others")
    for low in (-1000.0 * rng.randrange(30, 60), -1e30):
        a_later_key_has_no_weight(lab, Pool(rng, (0, 3), heads=(1, 1, 1)), low)


def a_later_key_has_no_weight(lab: Remote, pool: Pool, low: float) -> None:
    """Three keys that score `low` each, of which the first row sees one."""
    request = pool.requests[0]
    request.q, request.values = torch.ones(3, 1, 1), torch.tensor([30.0, 60.0, 90.0])[:, None, None]
    request.keys = torch.full((3, 1, 1), low)
    pool.put(request, request.keys, request.values)
    got = lab.chunk_attention(request.q, pool.k_cache, pool.v_cache, pool.table(), 0)
    expect_tensor(got, (3, 1, 1), "three rows, one head of one number")
    first = got.flatten()[0].item()
    expect(abs(first - 30) < 1e-3,  # of one key the weight is 1, however its score is rounded
           f"three keys that score {low:g} each, values 30, 60, 90: the first row sees the first key alone, so it is 30; got "
           f"{first:g}. Hide later positions with minus infinity: a finite number is larger than some scores")
    if low > -1e5:  # of scores far below that, rounding leaves nothing in which two could be compared
        request.expect_attended(got, f"three keys that score {low:g} each")


@check(todo=4, points=1, section=CHUNKS, concept="the pool is not copied")
def chunk_copies_no_more_than_the_requests_own_blocks(lab: Remote, rng: random.Random) -> None:
    for dtype in DTYPES:
        vast = Vast(lab, rng, (rng.randrange(250, 500), 3), dtype=dtype)
        request = vast.pool.requests[0]
        got = vast.within_its_blocks(lab.chunk_attention, request.q, vast.k_cache, vast.v_cache, vast.tables[0], request.start)
        request.expect_attended(got, vast.what)
