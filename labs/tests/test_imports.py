"""What a learner's file may import is one rule, by which practice, the judge and its workers go."""

import ast

import pytest

from labs.harness.catalog import find_lab
from labs.harness.imports import may_import, why_not
from labs.harness.loading import ImportRefused, refuse_imports


@pytest.mark.parametrize(
    "lab, name",
    [
        ("03", "transformers"), ("04", "transformers.generation.logits_process"), ("07", "vllm"), ("05", "flash_attn"),
        ("03", "nano_qwen3_serving.attention.blockwise"), ("03", "nano_qwen3_serving.kernels"),
        ("03", "nano_qwen3_serving.model.loader.load_model"), ("04", "nano_qwen3_serving.components.default_sampler"),
        ("05", "nano_qwen3_serving.ceilings"), ("05", "nano_qwen3_serving.pictures.roofline"),
        ("05", "nano_qwen3_serving.attention.torch_paged"), ("06", "nano_qwen3_serving.scheduling"),
        ("06", "nano_qwen3_serving.testing.fuzz"), ("07", "torch.nn.attention.experimental._paged_attention"),
        ("03", "torch.onnx.ops.attention"),
        ("07", "labs.lab05_kv_cache_and_roofline.network"), ("07", "labs.lab07_paged_attention.test_lab"),
        ("04", "labs.lab04_sampling.reference"), ("04", "reference"), ("06", "labs.harness.loading"),
        ("06", "grading.judge.grader"),
        ("01", "labs.lab01_basic_inference.solution"),
    ],
)  # fmt: skip
def test_what_does_a_labs_part_is_refused_by_whatever_path(lab: str, name: str) -> None:
    assert not may_import(find_lab(lab), name)
    assert "Reading it is allowed, importing it is not" in why_not(find_lab(lab), name)


@pytest.mark.parametrize(
    "lab, name",
    [
        ("01", "nano_qwen3_serving.engine.arg_utils"), ("01", "transformers"), ("02", "nano_qwen3_serving.exceptions"),
        ("03", "nano_qwen3_serving.model.loader.load_weights"), ("03", "nano_qwen3_serving.LLM"), ("03", "nano_qwen3_serving"),
        ("04", "nano_qwen3_serving.outputs.Logprob"), ("04", "nano_qwen3_serving.components.Components"),
        ("05", "labs.lab05_kv_cache_and_roofline.machine"), ("05", "nano_qwen3_serving.config.ModelConfig"),
        ("06", "nano_qwen3_serving.observe.trace.Recorder"), ("07", "nano_qwen3_serving.interfaces.NULL_BLOCK"),
        ("07", "labs.harness.todo.run_lab"), ("07", "matplotlib.pyplot"), ("07", "IPython"), ("07", "torch.nn.functional"),
        ("07", "numpy"), ("07", "pytest"), ("07", "dataclasses.dataclass"), ("07", "labs"), ("06", "nano_qwen3_serving.*"),
    ],
)  # fmt: skip
def test_what_a_lab_needs_and_what_is_nobodys_answer_is_not(lab: str, name: str) -> None:
    assert may_import(find_lab(lab), name)


def test_the_refusal_says_what_of_the_engine_may_be_imported() -> None:
    said = why_not(find_lab("05"), "nano_qwen3_serving.ceilings")
    assert "LLM, SamplingParams, ...), and arguments, components, config" in said


@pytest.mark.parametrize("text", ["import torch.onnx", "from torch import onnx", "import torch\ntorch.onnx.ops.attention(1)"])
def test_a_part_of_torch_that_is_an_answer_is_refused_by_attribute_too(text: str) -> None:
    with pytest.raises(ImportRefused, match=r"starter.py line \d imports torch.onnx"):
        refuse_imports(find_lab("03"), ast.parse(text), "starter.py")
    refuse_imports(find_lab("03"), ast.parse("import torch\nself.torch.onnx.x = torch.nn.functional.silu"), "starter.py")
