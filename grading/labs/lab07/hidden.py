"""What only the judge asks of Lab 07: caches that nobody can copy, and an engine with the submission's attention."""

import random
from typing import Any

import torch

from grading.judge.suite import hidden, tests_in
from grading.labs.lab07.engine import expect_same_tokens, generated, random_network
from grading.labs.lab07.vast import VAST_BLOCK, VAST_HEADS, Vast, within_memory
from labs.harness.catalog import find_lab

SUITE: Any = tests_in(find_lab("07").folder)


def vast_pool(rng: random.Random, *spans: tuple[int, int], dtype: torch.dtype) -> Any:
    """Requests in blocks that fit into a vast cache."""
    return SUITE.Pool(rng, *spans, block_size=VAST_BLOCK, dtype=dtype, **VAST_HEADS)


@hidden("test_todo_2_does_not_copy_the_cache", concept="a cache larger than any memory")
def test_todo_2_writes_into_a_cache_that_cannot_be_copied(lab: Any, rng: random.Random) -> None:
    for dtype in SUITE.TWO_DTYPES:
        pool = vast_pool(rng, (0, 3), dtype=dtype)
        vast, [request] = Vast(lab, rng, pool), pool.requests
        offsets = torch.tensor(rng.sample(range(VAST_BLOCK), 3))
        blocks = vast.ids[torch.tensor(rng.sample(range(len(vast.ids)), 3))]
        slots = blocks * VAST_BLOCK + offsets
        vast.within_its_blocks(lab.write_kv, vast.k_cache, vast.v_cache, request.keys, request.values, slots)
        for name, cache, rows in (("k_cache", vast.k_cache, request.keys), ("v_cache", vast.v_cache, request.values)):
            written = cache.index_select(0, blocks)[torch.arange(3), offsets]
            assert torch.equal(written, rows), f"{name} of {vast.what}: what was written is not there"


@hidden("test_todo_3_gather_fetches_only_the_blocks_that_hold_its_tokens", concept="a block table of a million entries")
def test_todo_3_gather_fetches_three_blocks_of_a_table_of_a_million(lab: Any, rng: random.Random) -> None:
    entries, head_dim = 1 << 20, 1 << 15  # blocks of 512 KiB: whoever fetches them all needs 512 GiB
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    cache, blocks = torch.randn(6, 4, 1, head_dim, generator=generator), rng.sample(range(6), 4)
    table = torch.full([entries], blocks[3])
    table[:3], length = torch.tensor(blocks[:3]), rng.randrange(9, 13)
    keys = within_memory(
        f"the block table of a request with 3 blocks has {entries:,} entries: what stands after those 3 means nothing, and is "
        "not fetched", lab.gather, cache, table, length)
    SUITE.check_shape(keys, (length, 1, head_dim), f"gather of {length} tokens")
    expected = cache[torch.tensor(blocks[:3])].flatten(0, 1)[:length]
    assert torch.equal(keys, expected), f"gather of {length} tokens in blocks {blocks[:3]} of 4: other keys came"


@hidden("test_todo_3_a_decode_copies_no_more_than_the_requests_own_blocks", concept="a cache larger than any memory")
def test_todo_3_decodes_from_a_cache_that_cannot_be_copied(lab: Any, rng: random.Random) -> None:
    for dtype in SUITE.TWO_DTYPES:
        pool = vast_pool(rng, (rng.randrange(250, 500), 1), dtype=dtype)
        vast, [request] = Vast(lab, rng, pool), pool.requests
        output = vast.within_its_blocks(
            lab.decode_attention, request.q[0], vast.k_cache, vast.v_cache, vast.tables[0], request.seq_len)
        SUITE.assert_decodes(output, request, what=vast.what)


@hidden("test_todo_4_a_chunk_copies_no_more_than_the_requests_own_blocks", concept="a cache larger than any memory")
def test_todo_4_a_chunk_reads_a_cache_that_cannot_be_copied(lab: Any, rng: random.Random) -> None:
    for dtype in SUITE.TWO_DTYPES:
        pool = vast_pool(rng, (rng.randrange(250, 500), 3), dtype=dtype)
        vast, [request] = Vast(lab, rng, pool), pool.requests
        output = vast.within_its_blocks(
            lab.chunk_attention, request.q, vast.k_cache, vast.v_cache, vast.tables[0], request.start)
        SUITE.assert_attends(output, request, what=vast.what)


@hidden("test_todo_5_a_batch_copies_no_more_than_the_requests_own_blocks", concept="a cache larger than any memory")
def test_todo_5_a_batch_reads_a_cache_that_cannot_be_copied(lab: Any, rng: random.Random) -> None:
    for dtype in SUITE.TWO_DTYPES:
        pool = vast_pool(rng, (rng.randrange(250, 500), 1), (9, 1), (rng.randrange(250, 500), 5), (5, 6), dtype=dtype)
        vast = Vast(lab, rng, pool)
        output = vast.within_its_blocks(
            lab.batch_attention, pool.q(), vast.k_cache, vast.v_cache, pool.query_starts(), pool.seq_lens(), vast.tables)
        SUITE.assert_batch_attends(output, pool, what=f"{vast.what}: ")


@hidden("test_todo_6_in_the_engine_logits_of_random_weights_are_those_of_transformers",
        concept="in the engine, on random weights")
def test_todo_6_in_the_engine_logits_of_random_weights_are_those_of_its_attention(lab: Any, rng: random.Random) -> None:
    prompts = [{"prompt_token_ids": [rng.randrange(2000) for _ in range(n)]} for n in (1, 4, 9, rng.randrange(15, 22))]
    with random_network(rng) as model:
        mine = generated(model, prompts, 4, lab, block_size=4, max_num_batched_tokens=7)
        expect_same_tokens(mine, generated(model, prompts, 4), "random weights, blocks of 4, steps of at most 7 tokens")


PROMPTS = [*SUITE.PROMPTS, "Why does a server batch requests?", "What is a KV cache?", "How does chunked prefill help?"]


@hidden("test_todo_6_in_the_engine_greedy_tokens_are_those_of_transformers", concept="in the engine, any blocks and steps")
def test_todo_6_in_the_engine_greedy_tokens_are_those_of_its_own_attention(lab: Any, rng: random.Random) -> None:
    prompts = rng.sample(PROMPTS, 4)
    expected = generated("course", prompts, 6)
    for how, arguments in SUITE.WAYS.items():
        expect_same_tokens(generated("course", prompts, 6, lab, **arguments), expected, how)
