"""MPS without a Mac: every operator of a step has an implementation there.

The engine runs on the CPU under a recorder of operators. torch's own table of operators, which comes
with it for code generation, says which of them have an MPS kernel.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchgen
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from nano_qwen3_serving import LLM, SamplingParams

# What attention is on the CPU and on MPS: torch picks the kernel by device inside one public call.
SAME_CALL_ON_MPS = {
    "_scaled_dot_product_flash_attention_for_cpu": "_scaled_dot_product_attention_math_for_mps",
}
# Kernels that serve every device: made of other operators, or only looking at a tensor's metadata.
FOR_EVERY_DEVICE = {
    "CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional",
}


class OperatorRecorder(TorchDispatchMode):
    """Notes the name and overload of every aten operator that runs, composites resolved."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, str]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        self.seen.add((name, func._schema.overload_name))
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def kernels() -> dict[str, dict]:
    """torch's table: operator and overload → its entry."""
    path = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {entry["func"].split("(")[0]: entry for entry in entries}


@pytest.fixture(scope="module")
def operators() -> set[tuple[str, str]]:
    """Every operator of steps that decode, compute chunks, sample in all ways and hit the cache."""
    llm = LLM("course", dtype="float16", long_prefill_token_threshold=5, num_gpu_blocks_override=64)
    prompt = "Explain async programming in Python, please, and what a coroutine is"
    params = [
        SamplingParams(temperature=0, max_tokens=4),
        SamplingParams(temperature=0.8, top_k=5, top_p=0.9, min_p=0.05, seed=1, max_tokens=4),
        SamplingParams(seed=1, max_tokens=4, logprobs=2, prompt_logprobs=1),
        SamplingParams(temperature=0, max_tokens=4, repetition_penalty=1.1, presence_penalty=0.1,
                       frequency_penalty=0.1, logit_bias={5: 1.0}, min_tokens=2, bad_words=["cat"]),
        SamplingParams(temperature=0, max_tokens=4, allowed_token_ids=[5, 6, 7]),
    ]
    with OperatorRecorder() as recorder:
        llm.generate([prompt] * len(params), params)
        llm.generate(prompt, params[0])
        attention = llm.llm_engine.model_runner.attention
        attention.copy_blocks(llm.llm_engine.model_runner.kv_cache, [(1, 2)])
        attention.read(llm.llm_engine.model_runner.kv_cache[0], [4, 5])
    return recorder.seen


def has_mps_kernel(name: str, overload: str, kernels: dict[str, dict]) -> bool:
    """Whether torch's table has a kernel for MPS, of its own or one for every device."""
    entry = kernels.get(f"{name}.{overload}" if overload else name)
    if entry is None:
        return False
    if "structured_delegate" in entry:
        entry = kernels[entry["structured_delegate"]]
    dispatch = entry.get("dispatch")
    if dispatch is None:
        return True  # no table of kernels: a composite of other operators
    keys = {key.strip() for keys in dispatch for key in keys.split(",")}
    return "MPS" in keys or bool(keys & FOR_EVERY_DEVICE)


def test_every_operator_of_a_step_has_an_mps_kernel(operators, kernels):
    names = {(SAME_CALL_ON_MPS.get(name, name), "" if name in SAME_CALL_ON_MPS else overload)
             for name, overload in operators}
    missing = sorted(f"{n}.{o}" for n, o in names if not has_mps_kernel(n, o, kernels))
    assert len(names) > 20, "the recorder saw almost nothing"
    assert not missing, f"these operators have no MPS implementation: {missing}"


def test_the_look_up_notices_an_operator_without_one(kernels):
    assert not has_mps_kernel("_scaled_dot_product_flash_attention_for_cpu", "", kernels)
    assert has_mps_kernel("_scaled_dot_product_attention_math_for_mps", "", kernels)


def test_no_tensor_of_a_step_is_float64(monkeypatch):
    """MPS has no float64 at all."""
    seen: set[torch.dtype] = set()

    class Dtypes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            seen.update(t.dtype for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, torch.Tensor))
            return out

    llm = LLM("course", dtype="float16", num_gpu_blocks_override=64)
    with Dtypes():
        llm.generate(["Hello", "Once upon a time"], SamplingParams(seed=3, top_p=0.9, max_tokens=4, logprobs=1))
    assert torch.float16 in seen and torch.float64 not in seen
