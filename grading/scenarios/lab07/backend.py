"""Lab 07, TODO 6: the attention backend, and the engine with it."""

import math
import random

import torch

from grading.judge.checks import check, expect, hold, kept, look, same, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab07.batch import batches
from grading.scenarios.lab07.engine import expect_same_tokens, generated, item, metadata_there, pairs_of, part, random_network
from grading.scenarios.lab07.pool import (
    ALL_DTYPES,
    DTYPES,
    Pool,
    cut_out,
    elsewhere_by_default,
    expect_tensor,
    expect_unchanged,
    first_of,
    model_config,
    module_there,
    numbers,
)

SWAP_IN = "TODO 6: Swap in"

LISTS = ("query_lens", "seq_lens", "block_tables", "slot_mapping")


def unset_memory_is_nan(lab: Remote) -> None:
    """From now on `torch.empty` gives NaN there, where it would give whatever was in memory, which may be zeros."""
    module_there(lab, "torch").set_deterministic_debug_mode("warn")


def metadata_of(lab: Remote, pool: Pool) -> Remote:
    """The pool's requests as the engine describes a step."""
    return metadata_there(
        lab, query_lens=[one.count for one in pool.requests], seq_lens=pool.seq_lens(), block_tables=pool.tables(),
        slot_mapping=torch.tensor(pool.slots()), num_decodes=sum(one.count == 1 for one in pool.requests),
        block_size=pool.block_size)


@check(todo=6, points=2, section=SWAP_IN, concept="the tensors of the cache")
def a_cache_of_two_tensors_per_layer_each_its_own(lab: Remote, rng: random.Random) -> None:
    unset_memory_is_nan(lab)
    for dtype in ALL_DTYPES:
        layers, blocks = rng.randrange(2, 5), rng.randrange(4, 9)
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
    again = part(lab, model_config())
    for pair in pairs_of(lab, kept(again.make_cache, 3)):
        kept(item(lab, pair, 0).fill_, 9)
    fresh = [look(item(lab, pair, 0)) for pair in pairs_of(lab, kept(again.make_cache, 3))]
    expect(not any(bool(tensor.any()) for tensor in fresh), "a second make_cache() has in it what was written to the first")
    elsewhere = kept(part(lab, model_config(), device="meta").make_cache, 2)  # has shapes and no memory
    found = {item(lab, pair, which).device.type for pair in pairs_of(lab, elsewhere) for which in (0, 1)}
    expect(found == {"meta"}, f"self.device was 'meta', so the whole cache is there; it was made on {shown(sorted(found))}")


@check(todo=6, points=2, section=SWAP_IN, concept="the bytes of a block")
def bytes_per_block_is_what_a_block_takes(lab: Remote, rng: random.Random) -> None:
    for layers, kv_heads, head_dim, size in ((1, 1, 2, 1), (3, 2, 8, 4),
                                             (rng.randrange(2, 9), 2, rng.randrange(4, 40), rng.randrange(2, 20))):
        for dtype in (*DTYPES, torch.float64):
            got = part(lab, model_config(4, kv_heads, head_dim, layers), size, dtype).bytes_per_block
            want = sum(torch.empty(size, kv_heads, head_dim, dtype=dtype).nbytes for _ in range(2 * layers))
            expect(same(got, want),
                   f"{layers} layers, blocks of {size}, {kv_heads} KV heads of {head_dim}, {dtype}: "
                   f"expected {want} bytes, got {shown(got)}")


@check(todo=6, points=2, section=SWAP_IN, concept="attention of a step")
def forward_attends_each_request_to_its_own_tokens(lab: Remote, rng: random.Random) -> None:
    attention = part(lab, model_config(num_heads=8, num_kv_heads=2))
    for name, spans in batches(rng).items():
        pool = Pool(rng, *spans, heads=(8, 2, 16))
        pool.expect_attended(attention.forward(pool.q(), (pool.k_cache, pool.v_cache), metadata_of(lab, pool)), name)
    pools = [Pool(rng, *spans, heads=(8, 2, 16)) for spans in ([(6, 1), (2, 5)], [(3, 1), (4, 1), (6, 5)], [(0, 9)])]
    metadata = metadata_of(lab, pools[0])
    for pool in pools:  # the object of a step may stand at the address of the last step's: here it is the same
        there = module_there(lab, "builtins")
        kept(kept(there.vars, metadata).update, kept(there.vars, metadata_of(lab, pool)))
        got = attention.forward(pool.q(), (pool.k_cache, pool.v_cache), metadata)
        pool.expect_attended(got, "steps one after the other, metadata at the same address")


def tensors_there(lab: Remote) -> int:
    """How many tensors there are, of all objects; counted there, since a list of all objects is too long to show."""
    builtins, collector = module_there(lab, "builtins"), module_there(lab, "gc")
    collector.collect()
    everything = kept(module_there(lab, "itertools").chain.from_iterable, kept(builtins.map, collector.get_objects, [None]))
    return builtins.sum(kept(builtins.map, module_there(lab, "torch").is_tensor, everything))


def keeps_nothing_of_a_step(lab: Remote, pool: Pool) -> None:
    """More steps leave no more behind."""
    forward, metadata, counts = part(lab, model_config()).forward, metadata_of(lab, pool), []
    for steps in (2, 20):
        for _ in range(steps):
            forward(pool.q(), (pool.k_cache, pool.v_cache), metadata)
        counts.append(tensors_there(lab))
    expect(counts[1] - counts[0] < 20,
           f"after 20 more steps there are {counts[1] - counts[0]} more tensors than before: something of each step is kept")


@check(todo=6, points=1, section=SWAP_IN, concept="whose the metadata are", hidden=True)
def forward_changes_nothing(lab: Remote, rng: random.Random) -> None:
    pool = Pool(rng, (rng.randrange(3, 9), 1), (9, 1), (2, 5))
    q, metadata, fresh = cut_out(lab, pool.q()), metadata_of(lab, pool), metadata_of(lab, pool)
    k_cache, v_cache = hold(lab, pool.k_cache), hold(lab, pool.v_cache)
    got = elsewhere_by_default(lab, part(lab, model_config()).forward, q, (k_cache, v_cache), metadata)
    for name in LISTS:
        was, now = numbers(getattr(fresh, name)), numbers(getattr(metadata, name))
        expect(now == was,
               f"forward changed metadata.{name}: the next layer uses the same one. Before {shown(was)}, after {shown(now)}")
    expect_unchanged(q=(q, pool.q()), k_cache=(k_cache, pool.k_cache), v_cache=(v_cache, pool.v_cache))
    pool.expect_attended(got, "q cut out of a wider tensor")
    keeps_nothing_of_a_step(lab, pool)


@check(todo=6, points=2, section=SWAP_IN, concept="rows of padding")
def padding_rows_come_back_as_zeros(lab: Remote, rng: random.Random) -> None:
    unset_memory_is_nan(lab)
    for padding, dtype in ((1, torch.float32), (rng.randrange(2, 14), torch.float32), (3, torch.bfloat16)):
        pool = Pool(rng, (6, 1), (4, 1), (2, 5), garbage=math.nan, dtype=dtype)
        q = torch.cat([pool.q(), torch.full((padding, 4, 16), math.nan, dtype=dtype)])
        rows = len(pool.q())
        got = part(lab, model_config(), dtype=dtype).forward(q, (pool.k_cache, pool.v_cache), metadata_of(lab, pool))
        expect_tensor(got, q.shape, f"{len(q)} rows, {padding} of them padding")
        pool.expect_attended(got[:rows], "with padding rows after the last request")
        expect(bool((got[rows:] == 0).all()), (
            f"the {padding} padding rows belong to nobody and must be zeros, whatever their q holds (here NaN): they go on "
            f"through the layers. Got {[first_of(row) for row in got[rows:, 0]][:3]}"))


@check(todo=6, points=3, section=SWAP_IN, concept="in the engine, on random weights")
def in_the_engine_logits_of_random_weights_are_those_of_its_own_attention(lab: Remote, rng: random.Random) -> None:
    kept(part(lab, model_config()).make_cache, 2)
    prompts = [{"prompt_token_ids": [rng.randrange(2000) for _ in range(n)]} for n in (1, 4, 9, rng.randrange(15, 22))]
    with random_network(rng) as model:
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
def in_the_engine_greedy_tokens_are_those_of_its_own_attention(lab: Remote, rng: random.Random) -> None:
    kept(part(lab, model_config()).make_cache, 2)
    prompts = rng.sample(PROMPTS, 4)
    right = generated("course", prompts, 6)
    for how, arguments in WAYS.items():
        expect_same_tokens(generated("course", prompts, 6, lab, **arguments), right, how)
