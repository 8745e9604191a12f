"""Checkpoints of every form load to the same network; damaged ones are refused by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from nano_qwen3_serving import LLM, EngineArgs, SamplingParams
from nano_qwen3_serving.exceptions import InvalidParametersError, ModelLoadError
from nano_qwen3_serving.model.checkpoint import find_checkpoint, open_tensors
from nano_qwen3_serving.testing.checkpoints import Shape, parameter_shapes, write_random_checkpoint
from nano_qwen3_serving.testing.oracle import Oracle

SHAPE = Shape(hidden_size=48, num_attention_heads=6, num_key_value_heads=3, head_dim=10, attention_bias=True)
UNTIED = Shape(hidden_size=48, num_attention_heads=6, num_key_value_heads=3, head_dim=10, tie_word_embeddings=False)
PROMPT = {"prompt_token_ids": list(range(40, 80))}
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=1)


def answer(llm: LLM) -> tuple[list[int], float]:
    """Greedy tokens and the sum of their log-probabilities: what any wrong weight would change."""
    output = llm.generate(PROMPT, GREEDY)[0].outputs[0]
    assert output.cumulative_logprob is not None
    return output.token_ids, output.cumulative_logprob


def oracle_answer(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[list[int], float]:
    oracle = Oracle(folder, dtype)
    prompt = PROMPT["prompt_token_ids"]
    (best,) = oracle.greedy([prompt], GREEDY.max_tokens or 0)
    logprobs = oracle.logits([*prompt, *best.token_ids[:-1]])[len(prompt) - 1 :].log_softmax(dim=-1)
    return best.token_ids, float(logprobs.gather(1, torch.tensor(best.token_ids)[:, None]).sum())


def written_by_transformers(folder: Path, max_shard_size: str = "5GB") -> Path:
    """The checkpoint in `folder`, loaded by transformers and saved in its place."""
    network = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    network.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def move_rope_theta_to_top_level(folder: Path) -> None:
    """Rewrites `config.json` as transformers wrote it before version 5."""
    theta = json.loads((folder / "config.json").read_text())["rope_parameters"]["rope_theta"]
    edit_config(folder, rope_parameters="gone", rope_theta=theta, rope_scaling=None)


FORMS = (
    "one file", "one file, by transformers", "sharded", "rope_theta at the top level",
    "sharded, rope_theta at the top level")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [SHAPE, UNTIED], ids=["tied", "untied"])
def test_every_form_of_a_checkpoint_loads_as_in_transformers(
    shape: Shape, form: str, tmp_path: Path, make_llm: Callable[..., LLM]
) -> None:
    folder = write_random_checkpoint(tmp_path, shape)
    if form != "one file":
        written_by_transformers(folder, "40KB" if "sharded" in form else "5GB")
    if "top level" in form:
        move_rope_theta_to_top_level(folder)
    assert (len(list(folder.glob("*.safetensors"))) > 1) == ("sharded" in form)
    assert ("rope_theta" in json.loads((folder / "config.json").read_text())) == ("top level" in form)
    assert ("lm_head.weight" in open_tensors(folder)) != shape.tie_word_embeddings
    tokens, logprob = answer(make_llm(folder))
    want_tokens, want_logprob = oracle_answer(folder)
    assert tokens == want_tokens
    assert logprob == pytest.approx(want_logprob, abs=1e-3)


@pytest.mark.parametrize("shape", [SHAPE, UNTIED], ids=["biased", "untied"])
def test_random_checkpoints_have_the_parameters_of_transformers_in_its_order(
    shape: Shape, random_checkpoint: Callable[..., Path]
) -> None:
    network = AutoModelForCausalLM.from_pretrained(random_checkpoint(shape))
    assert list(parameter_shapes(shape).items()) == [(n, tuple(p.shape)) for n, p in network.named_parameters()]


@pytest.mark.parametrize("theta", [500.0, 5e6])
@pytest.mark.parametrize("top_level", [True, False])
def test_rope_theta_is_read_wherever_it_stands(
    top_level: bool, theta: float, tmp_path: Path, random_checkpoint: Callable[..., Path], make_llm: Callable[..., LLM]
) -> None:
    folder = shutil.copytree(random_checkpoint(Shape(rope_theta=theta)), tmp_path / "checkpoint")
    if top_level:
        move_rope_theta_to_top_level(folder)
    llm = make_llm(folder)
    assert llm.llm_engine.config.model.rope_theta == theta
    assert answer(llm)[1] == pytest.approx(oracle_answer(folder)[1], abs=1e-3)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_any_stored_dtype_is_served_in_any_dtype(
    dtype: str, stored: torch.dtype, random_checkpoint: Callable[..., Path], make_llm: Callable[..., LLM]
) -> None:
    folder = random_checkpoint(SHAPE, dtype=stored)
    assert open_tensors(folder).load("model.norm.weight").dtype == stored
    llm = make_llm(folder, dtype=dtype)
    keys, _ = llm.llm_engine.model_runner.kv_cache[0]
    assert str(keys.dtype) == f"torch.{dtype}"
    _, logprob = answer(llm)
    if dtype == "float32":
        assert logprob == pytest.approx(oracle_answer(folder)[1], abs=1e-3)
    else:
        exact = oracle_answer(folder)[1]
        assert logprob == pytest.approx(exact, rel=0.5)  # how near it must be is test_logits' business


def test_a_bfloat16_checkpoint_keeps_its_tied_head_and_embedding_equal(
    random_checkpoint: Callable[..., Path], make_llm: Callable[..., LLM]
) -> None:
    folder = random_checkpoint(SHAPE, dtype=torch.bfloat16)
    network = make_llm(folder, dtype="bfloat16").llm_engine.model_runner.model
    weight = open_tensors(folder).load("model.embed_tokens.weight")
    eye = torch.eye(SHAPE.hidden_size, dtype=torch.bfloat16)
    assert torch.equal(network.compute_logits(eye).T, weight)
    assert torch.equal(network.model.embed_tokens(torch.arange(SHAPE.vocab_size)), weight)


def test_loading_leaves_the_checkpoints_file_unchanged(
    random_checkpoint: Callable[..., Path], make_llm: Callable[..., LLM]
) -> None:
    file = random_checkpoint(SHAPE) / "model.safetensors"
    before = file.read_bytes()
    llm = make_llm(file.parent)
    first = answer(llm)
    assert answer(llm) == first
    assert file.read_bytes() == before


def test_the_draft_checkpoint_loads_by_its_name(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm("course-draft")
    assert llm.llm_engine.config.model.num_hidden_layers == 1
    assert llm.generate("What is a KV cache?\n", SamplingParams(temperature=0.0))[0].outputs[0].text


# -- what cannot be loaded --


@pytest.fixture
def folder(random_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(random_checkpoint(UNTIED), tmp_path / "checkpoint")


@pytest.fixture
def sharded(random_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return written_by_transformers(shutil.copytree(random_checkpoint(UNTIED), tmp_path / "checkpoint"), "40KB")


def refusal(folder: Path | str) -> str:
    with pytest.raises(ModelLoadError) as caught:
        LLM(str(folder), device="cpu")
    return str(caught.value)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "gone"}))


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    message = refusal(folder)
    assert str(folder / file) in message and "missing" in message


def test_pytorch_pickles_are_not_read(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "only safetensors are read" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1], ids=str)
def test_a_truncated_weight_file_is_corrupt(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    message = refusal(folder)
    assert str(path) in message and "corrupt" in message and "again" in message


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.unlink()
    message = refusal(sharded)
    assert str(shard) in message and "missing" in message


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-10])
    message = refusal(sharded)
    assert str(shard) in message and "corrupt" in message


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', '"text"'])
def test_a_corrupt_index_of_shards_is_named(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refusal(sharded)


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_norm.weight", "model.norm.weight", "lm_head.weight"])
def test_a_missing_tensor_is_named(folder: Path, name: str) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop(name))
    message = refusal(folder)
    assert "lacks" in message and name in message and str(folder) in message and "config.json" in message


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(60)}))
    message = refusal(folder)
    assert "unexpected" in message and "model.layers.0.self_attn.q_proj.bias" in message


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"])
def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path, name: str) -> None:
    before = load_file(folder / "model.safetensors")[name].shape
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name][:-1].contiguous()}))
    message = refusal(folder)
    assert name in message and str(list(before)) in message and str([before[0] - 1, before[1]]) in message


@pytest.mark.parametrize("content", ["", "{", "not json", "[]", "3", "null", "\xff\xfe"])
def test_a_corrupt_config_is_named(folder: Path, content: str) -> None:
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_corrupt_generation_config_is_named(folder: Path, content: str) -> None:
    (folder / "generation_config.json").write_text(content)
    assert "generation_config.json" in refusal(folder)


@pytest.mark.parametrize(("field", "value"), [
    ("vocab_size", "gone"), ("hidden_size", "gone"), ("num_hidden_layers", "gone"), ("num_attention_heads", "gone"),
    ("num_attention_heads", "four"), ("hidden_size", None), ("vocab_size", [1]), ("num_attention_heads", 0),
    ("num_key_value_heads", 4), ("num_hidden_layers", -1), ("head_dim", 7), ("rms_norm_eps", "small"),
    ("rope_parameters", {"rope_type": "default", "rope_theta": "big"}), ("rope_parameters", [1]),
])
def test_a_field_of_config_json_that_cannot_be_is_named(folder: Path, field: str, value: Any) -> None:
    edit_config(folder, **{field: value})
    message = refusal(folder)
    assert "config.json" in message
    assert field in message or (field == "rope_parameters" and "rope" in message) or field in ("head_dim",)


@pytest.mark.parametrize(("changes", "words"), [
    ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, ["LlamaForCausalLM", "Qwen3"]),
    ({"architectures": ["Qwen3MoeForCausalLM"]}, ["Qwen3MoeForCausalLM"]),
    ({"architectures": "gone", "model_type": "gpt2"}, ["gpt2"]),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, ["rope", "yarn"]),
    ({"rope_parameters": "gone", "rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, ["rope", "linear"]),
    ({"rope_parameters": "gone", "rope_theta": 1e4, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, ["rope", "dynamic"]),
    ({"quantization_config": {"quant_method": "fp8"}}, ["quantization_config", "fp8"]),
    ({"use_sliding_window": True, "sliding_window": 64}, ["use_sliding_window"]),
    ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
])
def test_what_would_be_computed_wrongly_is_refused(folder: Path, changes: dict[str, Any], words: list[str]) -> None:
    edit_config(folder, **changes)
    message = refusal(folder)
    assert all(word in message for word in words)


@pytest.mark.parametrize(("changes", "field", "value"), [
    ({"head_dim": "gone"}, "head_dim", 128),
    ({"tie_word_embeddings": "gone"}, "tie_word_embeddings", False),
    ({"attention_bias": "gone"}, "attention_bias", False),
    ({"rms_norm_eps": "gone"}, "rms_norm_eps", 1e-6),
    ({"num_key_value_heads": None}, "num_key_value_heads", 6),
    ({"eos_token_id": [3, 4]}, "eos_token_ids", (3, 4)),
    ({"eos_token_id": 3}, "eos_token_ids", (3,)),
])
def test_a_field_left_out_of_config_json_means_what_it_means_in_transformers(
    folder: Path, changes: dict[str, Any], field: str, value: Any
) -> None:
    from transformers import AutoConfig

    from nano_qwen3_serving.model.checkpoint import read_model_config

    (folder / "generation_config.json").unlink(missing_ok=True)
    edit_config(folder, **changes)
    assert getattr(read_model_config(folder), field) == value
    if field != "eos_token_ids":
        assert getattr(AutoConfig.from_pretrained(folder), field) == value


def test_a_rope_theta_left_out_is_that_of_transformers(folder: Path) -> None:
    from transformers import AutoConfig

    from nano_qwen3_serving.model.checkpoint import read_model_config

    edit_config(folder, rope_parameters="gone")
    assert read_model_config(folder).rope_theta == AutoConfig.from_pretrained(folder).rope_parameters["rope_theta"]


@pytest.mark.parametrize("name", ["no/such/folder/here", "./nowhere", "coarse", "/absent", "a b"])
def test_a_name_that_is_nothing_is_refused_with_what_there_is(name: str) -> None:
    message = refusal(name)
    assert repr(name) in message and "course" in message


def test_a_file_instead_of_a_folder_is_refused(folder: Path) -> None:
    message = refusal(folder / "model.safetensors")
    assert "model.safetensors" in message and "folder" in message


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(tmp_path)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "cpu:x", "", "CPU ", 3, None])
def test_an_unknown_device_is_refused_by_value(device: Any) -> None:
    with pytest.raises(InvalidParametersError, match="device") as caught:
        EngineArgs(model="course", device=device).create_engine_config()
    assert repr(device) in str(caught.value) and "cpu" in str(caught.value)
    assert caught.value.parameter == "device" and caught.value.value == device


@pytest.mark.parametrize("argument", ["tokenizer", "model"])
def test_both_the_model_and_the_tokenizer_are_looked_for(argument: str) -> None:
    with pytest.raises(ModelLoadError, match="no/such/thing"):
        EngineArgs(**{"model": "course", argument: "no/such/thing"}).create_engine_config()


HUB = """
import sys, time
from nano_qwen3_serving.exceptions import ModelLoadError
from nano_qwen3_serving.model.checkpoint import find_checkpoint
started = time.monotonic()
try:
    find_checkpoint("Nobody/No-Such-Model")
except ModelLoadError as error:
    print(time.monotonic() - started)
    print(error)
"""


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}],
                         ids=["offline", "nobody answers"])
def test_an_unreachable_hub_is_said_quickly_with_the_ways_out(environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HUB], env={**os.environ, "HF_HOME": str(tmp_path), **environment}, text=True,
        capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seconds, message = done.stdout.split("\n", 1)
    assert "'Nobody/No-Such-Model'" in message and "network" in message and "model='course'" in message
    assert float(seconds) < 30


def test_a_model_in_the_hubs_cache_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def snapshot(name: str, *, local_files_only: bool = False, **_: Any) -> str:
        assert local_files_only, "the network was asked for a model that is in the cache"
        return str(tmp_path)

    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / file).touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert find_checkpoint("Qwen/Qwen3-0.6B") == tmp_path
