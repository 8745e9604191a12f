"""Paged attention against attention written out densely in float64."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from nano_qwen3_serving.attention.blockwise import blockwise_attention, pays_off
from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.interfaces import NULL_BLOCK, AttentionMetadata

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
CPU = torch.device("cpu")


def model_config(num_heads: int = 4, num_kv_heads: int = 2, head_dim: int = 8, layers: int = 1) -> ModelConfig:
    return ModelConfig(
        vocab_size=10, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads, head_dim=head_dim, max_position_embeddings=1024)


def dense(q: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    """Causal attention of one request, in float64 and in loops.

    q [count, heads, dim] stands at positions start, start + 1, …; keys and values [end, kv_heads, dim].
    """
    count, num_heads, dim = q.shape
    group = num_heads // keys.shape[1]
    out = torch.empty(count, num_heads, dim, dtype=torch.float64)
    for j in range(count):
        seen = start + j + 1
        for head in range(num_heads):
            k, v = keys[:seen, head // group].double(), values[:seen, head // group].double()
            weights = torch.softmax(k @ q[j, head].double() / dim**0.5, dim=0)
            out[j, head] = weights @ v
    return out


class Pool:
    """A KV pool of one layer and the requests in it: (start, count) is what this step computes."""

    def __init__(
        self, spans: Sequence[tuple[int, int]], *, block_size: int = 4, num_heads: int = 4, num_kv_heads: int = 2,
        head_dim: int = 8, dtype: torch.dtype = torch.float32, seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        self.attention = TorchPagedAttention(
            model_config(num_heads, num_kv_heads, head_dim), block_size, dtype, CPU)
        lengths = [-(-(start + count) // block_size) for start, count in spans]
        blocks = random.Random(seed).sample(range(1, sum(lengths) + 4), sum(lengths))
        self.tables = [[blocks.pop() for _ in range(n)] for n in lengths]
        self.cache = self.attention.make_cache(sum(lengths) + 4)[0]
        for tensor in self.cache:
            tensor.fill_(1e3)  # what a wrong read would find
        self.spans = spans
        self.keys = [torch.randn(s + c, num_kv_heads, head_dim, dtype=dtype) for s, c in spans]
        self.values = [torch.randn(s + c, num_kv_heads, head_dim, dtype=dtype) for s, c in spans]
        self.queries = [torch.randn(c, num_heads, head_dim, dtype=dtype) for _, c in spans]
        for table, k, v in zip(self.tables, self.keys, self.values, strict=True):
            slots = self.attention.slots(table, range(len(k)))
            self.attention.write(self.cache, k, v, torch.tensor(slots))

    def metadata(self) -> AttentionMetadata:
        longest = max(map(len, self.tables))
        slots: list[int] = []
        for table, (start, count) in zip(self.tables, self.spans, strict=True):
            slots += self.attention.slots(table, range(start, start + count))
        return AttentionMetadata(
            query_lens=[c for _, c in self.spans],
            seq_lens=[s + c for s, c in self.spans],
            block_tables=torch.tensor([t + [NULL_BLOCK] * (longest - len(t)) for t in self.tables]),
            slot_mapping=torch.tensor(slots),
            num_decodes=sum(c == 1 for _, c in self.spans),
            block_size=self.attention.block_size,
        )

    def run(self) -> Tensor:
        return self.attention.forward(torch.cat(self.queries), self.cache, self.metadata())

    def check(self) -> None:
        want = torch.cat([
            dense(q, k, v, start)
            for q, k, v, (start, _) in zip(self.queries, self.keys, self.values, self.spans, strict=True)
        ])
        got = self.run()
        assert got.dtype == self.attention.dtype
        torch.testing.assert_close(got.double(), want, rtol=0, atol=TOLERANCE[self.attention.dtype])


DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
EDGES = [(k * 4 + d) for k in (1, 2, 5) for d in (-1, 0, 1)]


@DTYPES
@pytest.mark.parametrize("length", [1, 2, *EDGES])
def test_decode_sees_all_its_keys_and_no_other_at_every_block_edge(length: int, dtype: torch.dtype) -> None:
    Pool([(length - 1, 1)], dtype=dtype).check()


@DTYPES
@pytest.mark.parametrize("end", [2, *EDGES])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_token_j_of_a_chunk_sees_keys_up_to_itself(count: int, end: int, dtype: torch.dtype) -> None:
    Pool([(max(end - count, 0), min(count, end))] if min(count, end) > 1 else [(0, 2)], dtype=dtype).check()


@DTYPES
def test_decodes_and_chunks_of_unequal_lengths_share_a_batch(dtype: torch.dtype) -> None:
    decodes = [(0, 1), (3, 1), (4, 1), (16, 1), (40, 1)]
    chunks = [(0, 2), (0, 9), (3, 5), (8, 8), (30, 3)]
    Pool(decodes + chunks, dtype=dtype).check()


@pytest.mark.parametrize("block_size", [1, 2, 3, 16, 256])
def test_every_block_size_gives_the_same(block_size: int) -> None:
    Pool([(0, 1), (18, 1), (0, 20), (5, 12)], block_size=block_size).check()


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (8, 8), (8, 4), (8, 2), (8, 1), (6, 2), (14, 2), (5, 5)])
@pytest.mark.parametrize("head_dim", [2, 12, 128])
def test_query_head_i_reads_kv_head_i_over_group_size(num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    Pool([(6, 1), (9, 1), (2, 6)], num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim).check()


@pytest.mark.parametrize("seed", range(20))
def test_random_batches_equal_dense_attention(seed: int) -> None:
    rng = random.Random(seed)
    decodes = [(rng.randrange(70), 1) for _ in range(rng.randrange(5))]
    chunks = [(rng.randrange(40), rng.randrange(2, 30)) for _ in range(rng.randrange(not decodes, 4))]
    pool = Pool(decodes + chunks, block_size=rng.choice([1, 3, 4, 16]), seed=seed)
    pool.check()
    pool.attention.batch_invariant = True
    pool.check()


def test_a_request_never_reads_what_another_wrote() -> None:
    pool = Pool([(5, 1), (9, 1), (2, 6)])
    before = pool.run()
    slots = torch.tensor(pool.attention.slots(pool.tables[1], range(10)))
    pool.attention.write(pool.cache, torch.randn(10, 2, 8), torch.randn(10, 2, 8), slots)
    after = pool.run()
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2:], after[2:])
    assert not torch.allclose(before[1], after[1])


def test_the_null_block_may_hold_anything_finite() -> None:
    pool = Pool([(2, 1), (30, 1)])  # the first table is padded with seven null blocks
    want = pool.run()
    for tensor in pool.cache:
        tensor[NULL_BLOCK] = 7e4
    assert torch.equal(pool.run(), want)


def test_slot_of_a_position_is_its_block_times_the_block_size_plus_its_offset() -> None:
    attention = TorchPagedAttention(model_config(), 4, torch.float32, CPU)
    assert attention.slots([7, 2, 5], range(2, 10)) == [30, 31, 8, 9, 10, 11, 20, 21]
    assert attention.slots([7, 2, 5], range(4, 4)) == []


@DTYPES
def test_read_gives_back_what_write_put_there(dtype: torch.dtype) -> None:
    attention = TorchPagedAttention(model_config(), 4, dtype, CPU)
    layer = attention.make_cache(6)[0]
    slots = [13, 4, 23, 8]  # request A has keys 10, 11, 12, 13
    k = torch.tensor([10.0, 11, 12, 13], dtype=dtype)[:, None, None].expand(4, 2, 8)
    attention.write(layer, k, -k, torch.tensor(slots))
    keys, values = attention.read(layer, slots)
    assert keys.shape == (4, 2, 8)
    assert torch.equal(keys, k) and torch.equal(values, -k)
    others = [s for s in range(24) if s not in slots]
    assert not any(t.any() for t in attention.read(layer, others)), "a slot was written that nobody named"


def test_copy_blocks_copies_whole_blocks_in_every_layer() -> None:
    attention = TorchPagedAttention(model_config(layers=3), 4, torch.float32, CPU)
    cache = attention.make_cache(6)
    for i, layer in enumerate(cache):
        for tensor in layer:
            tensor.copy_(100 * i + torch.arange(6.0)[:, None, None, None].expand(tensor.shape))
    attention.copy_blocks(cache, [(1, 4), (2, 5)])
    for i, layer in enumerate(cache):
        for tensor in layer:
            assert (tensor[:, 0, 0, 0] - 100 * i).tolist() == [0, 1, 2, 3, 1, 2]
    attention.copy_blocks(cache, [])


@DTYPES
def test_bytes_per_block_is_what_a_block_takes_in_the_cache(dtype: torch.dtype) -> None:
    attention = TorchPagedAttention(model_config(layers=3), 4, dtype, CPU)
    cache = attention.make_cache(10)
    assert sum(t.numel() * t.element_size() for layer in cache for t in layer) == 10 * attention.bytes_per_block


def operators(pool: Pool) -> set[str]:
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as recorded:
        pool.run()
    return {event.name for event in recorded.events()}


@DTYPES
@pytest.mark.parametrize("spans", [[(40, 1), (9, 1)], [(20, 30)]], ids=["decode", "chunk"])
def test_the_flash_kernel_is_taken_on_cpu(spans: list[Any], dtype: torch.dtype) -> None:
    names = operators(Pool(spans, block_size=16, head_dim=32, num_heads=8, dtype=dtype))
    assert any("flash_attention_for_cpu" in name for name in names), sorted(names)
    assert not any("attention_math" in name for name in names), sorted(names)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (64, 64), (65, 300), (256, 256), (300, 300), (257, 1000)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_in_groups_of_queries_is_the_dense_one(num_queries: int, num_keys: int, groups: int):
    """In float32 exactly; that bfloat16 rounds its scores is the only difference."""
    generator = torch.Generator().manual_seed(num_queries + num_keys)
    q = torch.randn(num_queries, 2 * groups, 16, generator=generator)
    keys, values = (torch.randn(2, num_keys, 16, generator=generator) for _ in range(2))
    visible = torch.arange(num_keys)[None] <= torch.arange(num_keys - num_queries, num_keys)[:, None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.double().transpose(0, 1)[None], keys.double()[None], values.double()[None], attn_mask=visible, enable_gqa=True)
    found = blockwise_attention(q, keys, values, 16**-0.5)
    torch.testing.assert_close(found.double(), expected[0].transpose(0, 1), atol=1e-5, rtol=1e-4)


def test_long_bfloat16_chunks_on_cpu_take_the_faster_way_and_nothing_else_does():
    long = torch.zeros(64, 4, 16)
    assert pays_off(long.bfloat16())
    assert not pays_off(long) and not pays_off(long.half()) and not pays_off(long.bfloat16()[:63])
