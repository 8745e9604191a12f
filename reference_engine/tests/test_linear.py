"""Packed and fused matrices give what plain, separate ones give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.config import INVARIANT_ROWS
from nano_qwen3_serving.execution.model_runner import torch_threads
from nano_qwen3_serving.model.linear import Linear
from nano_qwen3_serving.model.operators import CPUOperators, InvariantOperators, Operators
from nano_qwen3_serving.model.products import OneDNNProduct
from nano_qwen3_serving.testing.checkpoints import Shape

pytestmark = pytest.mark.slow

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
SIZES = [(16, 16), (33, 7), (256, 768), (100, 1), (1, 5), (64, 2049)]


def make(in_features: int, out_features: int, bias: bool, dtype: torch.dtype) -> tuple[Linear, Tensor, Tensor | None]:
    torch.manual_seed(in_features + out_features)
    module = Linear(in_features, out_features, bias, Operators())
    weight = (torch.randn(out_features, in_features) / in_features**0.5).to(dtype)
    b = torch.randn(out_features).to(dtype) if bias else None
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if b is not None:
        module.bias = nn.Parameter(b.clone(), requires_grad=False)
    return module, weight, b


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


def check(got: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    want = exact(x, weight, bias)
    assert got.dtype == x.dtype
    tolerance = TOLERANCE[x.dtype]
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@DTYPES
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 33])
@torch.inference_mode()
def test_a_finalized_linear_equals_the_plain_product(rows: int, size: tuple[int, int], bias: bool, dtype: torch.dtype) -> None:
    module, weight, b = make(*size, bias, dtype)
    x = torch.randn(rows, size[0]).to(dtype)
    check(module(x), x, weight, b)
    module.finalize_weights()
    check(module(x), x, weight, b)


def test_a_bfloat16_weight_is_packed_where_possible_and_the_plain_one_is_freed() -> None:
    module, weight, _ = make(64, 64, False, torch.bfloat16)
    packs = OneDNNProduct.takes(weight)
    assert packs == (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    module.finalize_weights()
    assert (module.weight is None) == packs


@torch.inference_mode()
def test_without_the_private_operators_the_plain_product_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Operators, "product_with", lambda self, weight: None)
    module, weight, b = make(33, 70, True, torch.bfloat16)
    module.finalize_weights()
    assert module.weight is not None
    x = torch.randn(5, 33).bfloat16()
    assert torch.equal(module(x), F.linear(x, weight, b))


@DTYPES
@pytest.mark.parametrize("threads", [1, 2])
@torch.inference_mode()
def test_an_invariant_product_has_the_same_bits_for_a_row_whatever_lies_beside_it(threads: int, dtype: torch.dtype) -> None:
    """In Qwen3-0.6B's shapes: with more rows plain products sum in another order, from 48 rows on in some of them."""
    x = torch.randn(15 * INVARIANT_ROWS, 1024, generator=torch.Generator().manual_seed(0)).to(dtype)
    for outputs in (1024, 3072):
        weight = torch.randn(outputs, 1024, generator=torch.Generator().manual_seed(outputs)).to(dtype)
        product = InvariantOperators().product_with(weight)
        with torch_threads(threads):
            together = product(x, None)
            check(together / 32, x / 32, weight, None)
            for begin in range(0, len(x), INVARIANT_ROWS):
                alone = product(x[begin : begin + INVARIANT_ROWS].clone(), None)
                assert torch.equal(alone, together[begin : begin + INVARIANT_ROWS]), begin


@DTYPES
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_a_fused_linear_gives_its_parts_outputs_side_by_side(bias: bool, dtype: torch.dtype) -> None:
    parts = [make(48, size, bias, dtype) for size in (64, 16, 17)]
    fused = Linear.fused([module for module, _, _ in parts])
    assert all(module.weight is None and module.bias is None for module, _, _ in parts), "weights are held twice"
    fused.finalize_weights()
    x = torch.randn(9, 48).to(dtype)
    for got, (_, weight, b) in zip(fused(x).split([64, 16, 17], dim=-1), parts, strict=True):
        check(got, x, weight, b)


@pytest.mark.parametrize("attention_bias", [False, True])
def test_q_k_v_and_gate_up_of_a_loaded_network_are_the_checkpoints_concatenated(
    attention_bias: bool, random_checkpoint: Callable[..., Path], make_llm: Callable[..., LLM]
) -> None:
    from nano_qwen3_serving.model.checkpoint import open_tensors

    folder = random_checkpoint(Shape(attention_bias=attention_bias))
    tensors = open_tensors(folder)
    x = torch.randn(11, 64)
    for i, layer in enumerate(make_llm(folder).llm_engine.model_runner.model.model.layers):
        for fused, names in (
            (layer.self_attn.qkv_proj, "self_attn.{}_proj q k v"),
            (layer.mlp.gate_up_proj, "mlp.{}_proj gate up"),
        ):
            pattern, *which = names.split()
            paths = [f"model.layers.{i}.{pattern.format(w)}" for w in which]
            want = [
                exact(x, tensors.load(f"{p}.weight"), tensors.load(f"{p}.bias") if f"{p}.bias" in tensors else None)
                for p in paths
            ]
            torch.testing.assert_close(fused(x).double(), torch.cat(want, dim=-1), rtol=1e-5, atol=1e-5)


def test_packed_and_plain_matrices_give_the_same_bfloat16_answers(
    make_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["What is a KV cache?\n", "Once upon a time", "Count from 1 to 10\n"]
    greedy = SamplingParams(temperature=0.0, max_tokens=24)

    def texts() -> list[str]:
        return [o.outputs[0].text for o in make_llm(dtype="bfloat16").generate(prompts, greedy)]

    packed = texts()
    monkeypatch.setattr(CPUOperators, "product_with", lambda self, weight: None)
    assert texts() == packed
    monkeypatch.setattr(CPUOperators, "product_with", Operators.product_with)
    assert texts() == packed
