"""The compiled operators give what torch gives in float64; without a compiler, torch does the work."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nano_qwen3_serving import LLM, EngineArgs, SamplingParams
from nano_qwen3_serving.attention.blockwise import causal_softmax
from nano_qwen3_serving.attention.cpu_paged import CPUPagedAttention
from nano_qwen3_serving.exceptions import InvalidParametersError
from nano_qwen3_serving.interfaces import AttentionMetadata
from nano_qwen3_serving.kernels import build
from nano_qwen3_serving.kernels.build import BuildError, cpu_kernels
from nano_qwen3_serving.kernels.shapes import HEAD_DIMS
from nano_qwen3_serving.model.loader import load_weights
from nano_qwen3_serving.model.operators import CPUOperators, Decode, Operators
from nano_qwen3_serving.model.products import CompiledProduct
from nano_qwen3_serving.model.qwen3 import Qwen3ForCausalLM
from nano_qwen3_serving.testing.checkpoints import Shape

pytestmark = pytest.mark.slow

ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-8}  # half a unit in the last place, relative
DTYPES = pytest.mark.parametrize("dtype", ROUNDING, ids=lambda d: str(d).removeprefix("torch."))
TILE = 32  # keys that `paged_decode` takes at once


@pytest.fixture(scope="module")
def kernels() -> Any:
    """The operators; a Linux machine with a compiler must have them."""
    try:
        return cpu_kernels()
    except BuildError as error:
        pytest.skip(f"this machine cannot build them: {error}")


def check(got: Tensor, want: Tensor, dtype: torch.dtype, scale: Tensor | float = 0.0) -> None:
    """One rounding of the result, and float32 sums: a hundred roundings of 2^-24 of `scale`, the largest term."""
    assert got.dtype == dtype and got.shape == want.shape
    allowed = want.abs() * ROUNDING[dtype] * 1.01 + 100 * 2**-24 * (want.abs() + scale)
    assert ((got.double() - want).abs() <= allowed).all(), (got.double() - want).abs().max()


@DTYPES
@pytest.mark.parametrize("rows", [1, 3, 33])
def test_rms_norm_is_the_one_of_torch(kernels, dtype, rows):
    torch.manual_seed(rows)
    x, weight = (torch.randn(rows, 2 * 112) * 3).to(dtype)[:, 112:], torch.randn(112).to(dtype)  # rows lie apart
    want = F.rms_norm(x.double(), (112,), weight.double(), 1e-6)
    check(CPUOperators(kernels).rms_norm(x, weight, 1e-6), want, dtype)


@DTYPES
@pytest.mark.parametrize("dim", [32, 128])
def test_norm_and_rotate_does_what_the_operators_of_torch_do_one_by_one(kernels, dtype, dim):
    torch.manual_seed(dim)
    heads = torch.randn(5, 6, dim).to(dtype)[:, 1:4]  # three heads out of the middle
    weight, positions = torch.randn(dim).to(dtype), torch.tensor([0, 7, 7, 499, 1])
    angles = torch.outer(torch.arange(500.0), 10_000.0 ** -(torch.arange(0, dim, 2) / dim)).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    wide = [t.double() for t in (heads, weight)]
    want = Operators().norm_and_rotate(*wide, 1e-6, cos.double(), sin.double(), positions)
    got = CPUOperators(kernels).norm_and_rotate(heads, weight, 1e-6, cos, sin, positions)
    check(got, want, dtype, scale=want.abs().max())


@DTYPES
def test_silu_and_mul_holds_for_huge_and_tiny_gates(kernels, dtype):
    torch.manual_seed(0)
    gate_up = torch.randn(7, 96).to(dtype) * 4
    gate_up[0, :16] = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 80, -80, 88, -88, 100, -100, 1e4, -1e4, 1e30, -1e30, 5, -5])
    check(CPUOperators(kernels).silu_and_mul(gate_up), Operators().silu_and_mul(gate_up.double()), dtype, scale=1e-30)


def dense(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """q [heads, dim] against keys and values [length, kv_heads, dim], in float64."""
    group = q.shape[0] // keys.shape[1]
    k, v = (t.double().repeat_interleave(group, dim=1) for t in (keys, values))
    weights = torch.softmax(torch.einsum("hd,lhd->hl", q.double(), k) / q.shape[1] ** 0.5, dim=-1)
    return torch.einsum("hl,lhd->hd", weights, v)


class Pool:
    """Requests of the given lengths in scattered blocks; every slot that nobody owns holds NaN."""

    def __init__(self, lengths: list[int], block_size: int, kv_heads: int, group: int, dim: int, dtype: torch.dtype) -> None:
        torch.manual_seed(len(lengths) + block_size)
        counts = [-(-n // block_size) for n in lengths]
        ids = random.Random(7).sample(range(1, sum(counts) + 4), sum(counts))
        self.lengths = torch.tensor(lengths)
        self.tables = torch.zeros(len(lengths), max(counts) + 1, dtype=torch.long)
        self.cache = [torch.full((sum(counts) + 4, block_size, kv_heads, dim), float("nan"), dtype=dtype) for _ in "kv"]
        self.contents = [[torch.randn(n, kv_heads, dim).to(dtype) * 2 for _ in "kv"] for n in lengths]
        for i, n in enumerate(lengths):
            table = [ids.pop() for _ in range(counts[i])]
            self.tables[i, : len(table)] = torch.tensor(table)
            slots = torch.tensor([table[p // block_size] * block_size + p % block_size for p in range(n)])
            cpu_kernels().write_kv(*self.contents[i], *self.cache, slots)
        self.queries = torch.randn(len(lengths), kv_heads * group, dim).to(dtype)

    def decode(self, rows: slice = slice(None)) -> Tensor:
        scale = self.queries.shape[-1] ** -0.5
        return cpu_kernels().paged_decode(self.queries[rows], *self.cache, self.tables[rows], self.lengths[rows], scale)


EDGES = [1, 3, 4, 5, 15, 16, 17, TILE - 1, TILE, TILE + 1, 2 * TILE, 200]


@DTYPES
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize(("group", "dim"), [(1, 32), (2, 128), (4, 64), (5, 128), (16, 32)])
def test_decoding_over_block_tables_is_dense_attention(kernels, dtype, block_size, group, dim):
    pool = Pool(EDGES, block_size, 2, group, dim, dtype)
    for out, q, (keys, values) in zip(pool.decode(), pool.queries, pool.contents, strict=True):
        want = dense(q, keys, values)
        error = (out.double() - want).abs().max()
        assert error <= ROUNDING[dtype] * want.abs().max() + 3e-6 * values.double().abs().max()


@DTYPES
def test_a_request_has_the_same_bits_alone_and_in_blocks_of_any_size(kernels, dtype):
    pools = [Pool(EDGES, size, 2, 2, 64, dtype) for size in (4, 16)]
    together = pools[0].decode()
    for i in range(len(EDGES)):
        assert torch.equal(pools[0].decode(slice(i, i + 1))[0], together[i])
    pools[1].queries, pools[1].contents = pools[0].queries, pools[0].contents
    for i, (table, n) in enumerate(zip(pools[1].tables, EDGES, strict=True)):
        slots = torch.tensor([int(table[p // 16]) * 16 + p % 16 for p in range(n)])
        kernels.write_kv(*pools[0].contents[i], *pools[1].cache, slots)
    assert torch.equal(pools[1].decode(), together)


def test_writing_takes_rows_that_lie_apart_and_touches_no_other_slot(kernels):
    qkv = torch.randn(3, 4, 32, dtype=torch.bfloat16)
    keys, values = torch.zeros(4, 2, 1, 32, dtype=torch.bfloat16), torch.zeros(4, 2, 1, 32, dtype=torch.bfloat16)
    kernels.write_kv(qkv[:, 2:3], qkv[:, 3:4], keys, values, torch.tensor([7, 2, 5]))
    for cache, head in ((keys, 2), (values, 3)):
        flat = cache.view(8, 32)
        assert torch.equal(flat[[7, 2, 5]], qkv[:, head])
        assert not flat[[0, 1, 3, 4, 6]].any()


@DTYPES
@pytest.mark.parametrize("num_queries, num_keys", [(1, 1), (3, 3), (16, 16), (5, 47), (64, 200), (256, 1024)], ids=str)
def test_a_causal_softmax_sees_no_key_after_its_query(kernels, dtype, num_queries, num_keys):
    torch.manual_seed(num_keys)
    scores = (torch.randn(2, 2 * num_queries, num_keys) * 8).to(dtype)
    scores[0, 0] += 300  # e^300 is no float32
    want = causal_softmax(scores.double(), num_queries)
    assert (want[:, 0, num_keys - num_queries + 1 :] == 0).all()
    got = kernels.causal_softmax(scores.clone(), num_queries)
    check(got, want, dtype, 1e-3)


PROMPTS = ["What is a KV cache?", "Once upon a time", "Explain async programming in Python", "Count: 1 2 3"]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


def tokens(**engine_args: Any) -> list[list[int]]:
    llm = LLM("course", **engine_args)
    return [list(o.outputs[0].token_ids) for o in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]


@pytest.mark.parametrize("ways", [{}, {"block_size": 1}, {"long_prefill_token_threshold": 3, "block_size": 4},
                                  {"num_gpu_blocks_override": 7, "block_size": 16}], ids=str)
def test_an_engine_with_them_gives_the_tokens_of_one_in_plain_torch(kernels, ways):
    assert tokens(cpu_kernels=True, dtype="float32", **ways) == tokens(cpu_kernels=False, dtype="float32")


def test_bfloat16_on_a_cpu_uses_them_by_default_and_float32_does_not(kernels):
    chosen = {d: EngineArgs("course", dtype=d, device="cpu").create_engine_config().cpu_kernels for d in ("bfloat16", "float32")}
    assert chosen == {"bfloat16": True, "float32": False}
    assert not EngineArgs("course", dtype="bfloat16", device="cpu", cpu_kernels=False).create_engine_config().cpu_kernels
    assert not EngineArgs("course", dtype="bfloat16", device="cpu", batch_invariant=True).create_engine_config().cpu_kernels


def test_a_model_kernels_do_not_fit_runs_in_torch_and_asking_for_them_is_refused(kernels, random_checkpoint):
    folder = random_checkpoint(Shape(head_dim=24))
    assert 24 not in HEAD_DIMS
    assert not EngineArgs(str(folder), dtype="bfloat16", device="cpu").create_engine_config().cpu_kernels
    with pytest.raises(
        InvalidParametersError, match="cpu_kernels must be None or False here: head_dim 24 is none of 32, 64, 128"
    ):
        EngineArgs(str(folder), dtype="bfloat16", device="cpu", cpu_kernels=True).create_engine_config()


@pytest.fixture(scope="module")
def product(kernels) -> Any:
    """Makes a compiled product; processors without AVX-512 BF16 have none."""
    if not hasattr(kernels, "packed_linear"):
        pytest.skip("this processor has no AVX-512 BF16")
    return lambda weight: CompiledProduct(kernels, weight)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs, inputs", [(48, 2), (16, 64), (96, 130), (400, 1024), (1024, 3072)], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 33])
def test_a_product_is_rounded_once_from_the_exact_one(product, rows, outputs, inputs, bias):
    torch.manual_seed(rows + outputs)
    x = torch.randn(rows, 2 * inputs).bfloat16()[:, inputs:]  # rows lie apart
    weight, b = torch.randn(outputs, inputs).bfloat16(), torch.randn(outputs).bfloat16() if bias else None
    exact = F.linear(x.double(), weight.double(), None if b is None else b.double())
    scale = F.linear(x.double().abs(), weight.double().abs())  # what the sums' roundings are relative to
    check(product(weight)(x, b), exact, torch.bfloat16, scale)


def test_a_row_has_the_same_bits_whatever_rows_lie_beside_it(product):
    torch.manual_seed(0)
    x, multiply = torch.randn(37, 256).bfloat16(), product(torch.randn(160, 256).bfloat16())
    together = multiply(x, None)
    for first, count in ((0, 1), (3, 5), (7, 16), (30, 7), (36, 1)):
        assert torch.equal(multiply(x[first : first + count], None), together[first : first + count])


def test_a_column_of_a_transposed_matrix_is_no_row(product):
    torch.manual_seed(0)
    x, weight = torch.randn(64, 5).bfloat16(), torch.randn(48, 64).bfloat16()
    assert torch.equal(product(weight)(x.T, None), product(weight)(x.T.contiguous(), None))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_product_does_not_depend_on_how_many_threads_share_it(product, threads):
    torch.manual_seed(0)
    x, multiply = torch.randn(9, 128).bfloat16(), product(torch.randn(1000 // 16 * 16, 128).bfloat16())
    before, together = torch.get_num_threads(), multiply(x, None)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(multiply(x, None), together)
    finally:
        torch.set_num_threads(before)


def test_nan_and_infinity_come_through_a_product(product):
    x = torch.zeros(3, 4).bfloat16()
    x[0, 1], x[1, 2] = float("nan"), float("inf")
    found = product(torch.ones(16, 4).bfloat16())(x, None)
    assert found[0].isnan().all() and (found[1] == float("inf")).all() and (found[2] == 0).all()


@pytest.mark.parametrize("shape, dtype", [((17, 64), torch.bfloat16), ((48, 63), torch.bfloat16), ((48, 64), torch.float32)])
def test_what_the_compiled_product_does_not_take_is_left_to_torch(kernels, shape, dtype):
    weight = torch.randn(shape).to(dtype)
    assert not CompiledProduct.takes(kernels, weight)
    assert not isinstance(CPUOperators(kernels).product_with(weight), CompiledProduct)


class OneByOne(CPUOperators):
    """The same operators, each called by itself."""

    def decode_layer(self, layer: Any) -> None:
        return None


class Counted(CPUOperators):
    """Counts the layers that were computed in one call."""

    calls = 0

    def decode_layer(self, layer: Any) -> Decode | None:
        whole = super().decode_layer(layer)

        def counted(*given: Any) -> Tensor:
            self.calls += 1
            return whole(*given)

        return whole and counted


class Another(CPUPagedAttention):
    """An attention of somebody else's, as far as the network knows."""


@pytest.fixture
def network(kernels, product, random_checkpoint) -> Callable[..., Any]:
    """`network(attention class, operators, shape)`: with random weights, and its cache of 20 blocks of 4 tokens."""

    def make(attention: type[CPUPagedAttention], ops: CPUOperators, shape: Shape | None = None) -> Any:
        config = EngineArgs(str(random_checkpoint(shape or Shape(head_dim=32))), dtype="bfloat16", device="cpu",
                            block_size=4).create_engine_config()
        core = attention(kernels, config.model, 4, config.dtype, config.device)
        with torch.device("meta"):
            made = Qwen3ForCausalLM(config.model, core, config.scheduler.max_model_len, ops)
        torch.manual_seed(0)
        cache = [tuple(torch.randn_like(tensor) for tensor in pair) for pair in core.make_cache(20)]
        return load_weights(made, config), cache

    return make


def decoding(lens: list[int], chunk: int = 1) -> tuple[Tensor, Tensor, AttentionMetadata]:
    """Requests of so many tokens, each of which computes its last; the last request its last `chunk`."""
    torch.manual_seed(len(lens))
    counts = [1] * (len(lens) - 1) + [chunk]
    tables = torch.randperm(19)[: 5 * len(lens)].view(len(lens), 5) + 1
    spans = [range(end - count, end) for end, count in zip(lens, counts, strict=True)]
    slots = [int(tables[i, p // 4]) * 4 + p % 4 for i, span in enumerate(spans) for p in span]
    positions = torch.tensor([p for span in spans for p in span])
    metadata = AttentionMetadata(counts, lens, tables, torch.tensor(slots), sum(c == 1 for c in counts), 4)
    return torch.randint(0, 90, positions.shape), positions, metadata


@pytest.mark.parametrize("lens", [[1], [20], [4, 5, 13]], ids=str)
def test_a_layer_in_one_call_has_the_bits_of_its_operators_one_by_one(kernels, network, lens):
    counted = Counted(kernels)
    same_bits(network(CPUPagedAttention, counted), network(CPUPagedAttention, OneByOne(kernels)), decoding(lens))
    assert counted.calls == 2


@pytest.mark.parametrize("chunk, attention, bias",
                         [(3, CPUPagedAttention, False), (1, Another, False), (1, CPUPagedAttention, True)],
                         ids=["a chunk beside them", "another attention", "a bias"])
def test_what_the_one_call_does_not_know_is_computed_one_by_one(kernels, network, chunk, attention, bias):
    counted, shape = Counted(kernels), Shape(head_dim=32, attention_bias=bias)
    same_bits(network(attention, counted, shape), network(CPUPagedAttention, OneByOne(kernels), shape), decoding([5, 9], chunk))
    assert counted.calls == 0


def same_bits(one: Any, other: Any, batch: tuple[Tensor, Tensor, AttentionMetadata]) -> None:
    """Both networks give the same hidden states, and leave the same in their caches."""
    tokens, positions, metadata = batch
    with torch.inference_mode():
        first, second = (made(tokens, positions, cache, metadata) for made, cache in (one, other))
    assert torch.equal(first, second)
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert all(map(torch.equal, mine, theirs))


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As on a machine that has built nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.cpu_kernels.cache_clear()
    yield monkeypatch
    build.cpu_kernels.cache_clear()


def test_without_a_compiler_torch_does_the_work_and_asking_says_what_to_install(fresh):
    fresh.setattr(build.sys, "platform", "linux")
    fresh.setenv("PATH", "/nowhere")
    assert not EngineArgs("course", dtype="bfloat16", device="cpu").create_engine_config().cpu_kernels
    with pytest.raises(InvalidParametersError, match="no C\\+\\+ compiler was found; install g\\+\\+"):
        EngineArgs("course", device="cpu", cpu_kernels=True).create_engine_config()


def test_source_that_does_not_compile_gives_the_compilers_words_and_leaves_no_file(kernels, fresh, tmp_path):
    broken = tmp_path / "broken.cpp"
    broken.write_text("int main() { return nonsense; }")
    fresh.setattr(build, "SOURCES", (broken,))
    with pytest.raises(BuildError, match="could not compile the kernels.*nonsense"):
        cpu_kernels()
    assert list(build.cache_folder().iterdir()) == []


@pytest.mark.proof
@pytest.mark.slow
def test_a_library_is_built_once_and_then_used_again(kernels, fresh):
    loaded: list[str] = []
    fresh.setattr(torch.ops, "load_library", loaded.append)  # a process can load it only once
    cpu_kernels()
    build.cpu_kernels.cache_clear()
    fresh.setattr(build, "compile_library", lambda *_: pytest.fail("it compiled again"))
    cpu_kernels()
    (library,) = build.cache_folder().iterdir()
    assert loaded == [str(library)] * 2


def test_other_systems_are_told_plainly(fresh):
    fresh.setattr(build.sys, "platform", "darwin")
    with pytest.raises(BuildError, match="Linux only"):
        cpu_kernels()


@DTYPES
@pytest.mark.parametrize("size", [1, 15, 16, 17, 48, 2048, 151])
def test_argmax_is_the_first_of_the_largest(kernels, dtype, size):
    torch.manual_seed(size)
    rows = torch.randint(-3, 3, (9, size)).to(dtype)  # many are equal
    rows[1] = -rows[1].abs() - 200
    rows[2, size // 2 :] = float("-inf")
    rows[3] = float("-inf")
    want = [row.index(max(row)) for row in rows.tolist()]
    assert kernels.argmax(rows).tolist() == want
    assert kernels.argmax(torch.cat([rows, rows], dim=1)[:, :size]).tolist() == want
    assert Operators().argmax(rows).tolist() == want
