"""Lab 07, TODO 5: a batch of requests."""

import math
import random
from typing import Any

import torch

from grading.judge.checks import check, expect, hold, kept, look, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab07.pool import ALL_DTYPES, DTYPES, Pool, Vast, cut_out, elsewhere_by_default, expect_unchanged

BATCH = "TODO 5: A batch of requests"


def attended(lab: Remote, pool: Pool) -> Any:
    """batch_attention of the pool."""
    return lab.batch_attention(pool.q(), pool.k_cache, pool.v_cache, pool.query_starts(), pool.seq_lens(), pool.tables())


def batches(rng: random.Random) -> dict[str, list[tuple[int, int]]]:
    """(computed, count) of each request, those of one token first."""
    far = rng.randrange(12, 24)
    return {
        "one decode": [(8, 1)], "one chunk": [(4, 4)], "decodes": [(0, 1), (3, 1), (4, 1), (far, 1)],
        "chunks": [(0, 9), (3, 2), (8, 8), (0, rng.randrange(2, 6))],
        "decodes and chunks": [(7, 1), (0, 1), (far, 1), (0, 4), (5, rng.randrange(2, 6)), (12, 7)]}


@check(todo=5, points=4, section=BATCH, concept="every request and its own tokens")
def every_request_attends_to_its_own_tokens(lab: Remote, rng: random.Random) -> None:
    for size in (1, 4, 16):
        for name, spans in batches(rng).items():
            pool = Pool(rng, *spans, block_size=size)
            pool.expect_attended(attended(lab, pool), f"{name}, blocks of {size}")
    reads_cache_and_tables_anew(lab, Pool(rng, (7, 1), (2, 1), (5, 3)))


def reads_cache_and_tables_anew(lab: Remote, pool: Pool) -> None:
    """Calls between which the cache was written to, and two requests have changed their blocks."""
    caches, tables = pool.held(lab), hold(lab, pool.tables())
    for call in ("the first call", "the second, after other keys and values came", "the third, after tables have changed"):
        got = lab.batch_attention(pool.q(), *caches, pool.query_starts(), pool.seq_lens(), tables)
        pool.expect_attended(got, call)
        pool.rewrite(1)
        first, second = pool.requests[:2]  # both tables are two blocks long, padding included
        if "second" in call:
            rows = pool.tables()
            first.table, second.table = rows[1].tolist(), rows[0].tolist()
            kept(tables.copy_, torch.stack([rows[1], rows[0], rows[2]]))
            pool.put(second, second.keys, second.values)
            pool.put(first, first.keys, first.values)
        kept(caches[0].copy_, pool.k_cache)
        kept(caches[1].copy_, pool.v_cache)


@check(todo=5, points=3, section=BATCH, concept="nothing of a neighbour")
def nothing_of_a_neighbour_reaches_a_request(lab: Remote, rng: random.Random) -> None:
    for clean in range(4):
        pool = Pool(rng, (7, 1), (2, 1), (0, 4), (5, 3), garbage=math.nan)
        for i, request in enumerate(pool.requests):
            if i != clean:
                pool.put(request, request.keys * math.nan, request.values * math.nan)
        pool.expect_attended(attended(lab, pool), "NaN in all others' keys and values", only=clean)


@check(todo=5, points=1, section=BATCH, concept="two requests that begin alike", hidden=True)
def two_requests_may_share_a_block(lab: Remote, rng: random.Random) -> None:
    pool = Pool(rng, (rng.randrange(4, 12), 1), (6, 3))
    first, second = pool.requests
    second.table[0] = first.table[0]  # the same first four tokens, stored once
    second.keys[:4], second.values[:4] = first.keys[:4], first.values[:4]
    pool.expect_attended(attended(lab, pool), "the first block is in both tables")


@check(todo=5, points=1, section=BATCH, concept="any batch", hidden=True)
def random_batches(lab: Remote, rng: random.Random) -> None:
    for _ in range(6):
        decodes = [(rng.randrange(40), 1) for _ in range(rng.randrange(4))]
        chunks = [(rng.randrange(20), rng.randrange(2, 15)) for _ in range(rng.randrange(not decodes, 4))]
        pool = Pool(rng, *decodes, *chunks, block_size=rng.choice([1, 3, 4, 16]),
                    heads=rng.choice([(4, 4, 16), (4, 2, 8), (8, 2, 16), (3, 1, 4)]))
        pool.expect_attended(attended(lab, pool), f"blocks of {pool.block_size}, {pool.described()}")


@check(todo=5, points=2, section=BATCH, concept="arguments of any strides, none of them changed", hidden=True)
def any_strides_longer_tables_and_nothing_changed(lab: Remote, rng: random.Random) -> None:
    for dtype in ALL_DTYPES:
        pool = Pool(rng, (3, 1), (rng.randrange(4, 9), 1), (6, 5), dtype=dtype)
        starts, lens, tables = pool.query_starts(), pool.seq_lens(), pool.tables(spare=3)
        q = cut_out(lab, pool.q())
        k_cache, v_cache, starts_there, lens_there, tables_there = (
            hold(lab, one) for one in (pool.k_cache, pool.v_cache, starts, lens, tables))
        got = elsewhere_by_default(lab, lab.batch_attention, q, k_cache, v_cache, starts_there, lens_there, tables_there)
        pool.expect_attended(got, f"{dtype}, q cut out of a wider tensor, tables with three spare entries")
        expect_unchanged(q=(q, pool.q()), k_cache=(k_cache, pool.k_cache), v_cache=(v_cache, pool.v_cache),
                         block_tables=(tables_there, tables))
        now = look(starts_there), look(lens_there)
        expect(now == (starts, lens), f"query_starts and seq_lens were {(starts, lens)}, and afterwards {shown(now)}")


@check(todo=5, points=1, section=BATCH, concept="the pool is not copied")
def batch_copies_no_more_than_the_requests_own_blocks(lab: Remote, rng: random.Random) -> None:
    for dtype in DTYPES:
        vast = Vast(lab, rng, (rng.randrange(250, 500), 1), (9, 1), (rng.randrange(250, 500), 5), (5, 6), dtype=dtype)
        pool = vast.pool
        got = vast.within_its_blocks(
            lab.batch_attention, pool.q(), vast.k_cache, vast.v_cache, pool.query_starts(), pool.seq_lens(), vast.tables)
        pool.expect_attended(got, vast.what)
