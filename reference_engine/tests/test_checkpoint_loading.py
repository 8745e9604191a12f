"""Checkpoints of every form load to the same network; damaged ones are refused by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatch
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

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/tmp/model.safetensors", "a/b.safetensors", ".."])
def test_an_index_reaches_no_file_outside_the_folder(sharded: Path, name: str) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(content))
    message = refusal(sharded)
    assert str(index) in message and "weight_map" in message


def test_a_tensor_that_is_not_in_the_shard_of_the_index_is_named(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shards = sorted(set(content["weight_map"].values()))
    other = next(s for s in shards if s != content["weight_map"]["model.norm.weight"])
    for changed in ({"model.norm.weight": other}, {"model.layers.9.mlp.up_proj.weight": shards[0]}):
        index.write_text(json.dumps({"weight_map": content["weight_map"] | changed}))
        message = refusal(sharded)
        assert str(index) in message and all(part in message for pair in changed.items() for part in pair)


def test_a_tensor_in_two_shards_is_named_with_both(sharded: Path) -> None:
    first, second = sorted(sharded.glob("model-*.safetensors"))[:2]
    name = next(iter(load_file(first)))
    save_file(load_file(second) | {name: load_file(first)[name]}, second, {"format": "pt"})
    message = refusal(sharded)
    assert str(first) in message and str(second) in message and name in message


def test_one_file_is_believed_before_an_older_save_in_shards_as_in_transformers(
    folder: Path, make_llm: Callable[..., LLM]
) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({k: torch.zeros_like(t) for k, t in tensors.items()}, folder / "model-00001-of-00001.safetensors", {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}))
    tokens, logprob = answer(make_llm(folder))
    want_tokens, want_logprob = oracle_answer(folder)
    assert tokens == want_tokens and logprob == pytest.approx(want_logprob, abs=1e-3)


def test_a_tied_head_in_the_file_is_served_if_it_is_the_embedding_and_refused_if_not(
    random_checkpoint: Callable[..., Path], tmp_path: Path, make_llm: Callable[..., LLM]
) -> None:
    folder = shutil.copytree(random_checkpoint(SHAPE), tmp_path / "tied")
    expected = answer(make_llm(folder))
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert answer(make_llm(folder)) == expected
    edit_tensors(folder, lambda t: t["lm_head.weight"].__setitem__((3, 3), 7.0))
    message = refusal(folder)
    assert all(word in message for word in ("config.json", "tie_word_embeddings", "lm_head.weight", "model.embed_tokens.weight"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.bool], ids=str)
def test_a_tensor_of_quantized_numbers_is_named_with_its_dtype(folder: Path, dtype: torch.dtype) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    message = refusal(folder)
    assert name in message and str(dtype) in message


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
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, ["rope_parameters.factor"]),
    ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0}}, ["rope", "llama3"]),
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


class Hub:
    """What `snapshot_download` finds: files in the local cache, and those that the network would add."""

    def __init__(self, folder: Path, cached: list[str], remote: list[str]) -> None:
        self.folder, self.remote, self.asked_network = folder, remote, 0
        for file in cached:
            self.put(file)

    def put(self, file: str) -> None:
        content = '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}' if "index" in file else "{}"
        (self.folder / file).write_text(content)

    def snapshot(self, name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        if local_files_only and not list(self.folder.iterdir()):
            raise LocalEntryNotFoundError("nothing is cached")
        if not local_files_only:
            self.asked_network += 1
            for file in self.remote:
                if any(fnmatch(file, pattern) for pattern in allow_patterns):
                    self.put(file)
        return str(self.folder)


ONE = ["config.json", "tokenizer.json", "model.safetensors"]
SHARDED = ["config.json", "tokenizer.json", "model.safetensors.index.json", "one.safetensors", "two.safetensors"]


@pytest.mark.parametrize(("whole", "cached"), [
    (whole, [file for file in whole if file not in gone])
    for whole in (ONE, SHARDED) for gone in ([], *([file] for file in whole), whole, whole[2:], whole[1:])
], ids=str)
def test_only_files_missing_in_the_hubs_cache_are_fetched_from_the_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: list[str], cached: list[str]
) -> None:
    import huggingface_hub

    hub = Hub(tmp_path, cached, whole)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot)
    assert find_checkpoint("Qwen/Qwen3-0.6B") == tmp_path
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(whole)
    assert hub.asked_network == (cached != whole)


def test_without_a_network_what_the_cache_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", Hub(tmp_path, SHARDED[:4], SHARDED[:4]).snapshot)
    with pytest.raises(ModelLoadError, match=r"Qwen/Qwen3-0.6B.* lacks two.safetensors.*network"):
        find_checkpoint("Qwen/Qwen3-0.6B")


def test_a_tokenizer_of_the_hub_needs_no_weights_and_fetches_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    hub = Hub(tmp_path, ["config.json"], ONE)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot)
    config = EngineArgs(model="course", tokenizer="Qwen/Qwen3-0.6B").create_engine_config()
    assert config.tokenizer_path == tmp_path and hub.asked_network == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "tokenizer.json"]


# -- what ends a text, and how it is sampled unless a request says otherwise --


@pytest.fixture
def course(tmp_path: Path) -> Path:
    return shutil.copytree(find_checkpoint("course"), tmp_path / "course")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}) | changes))


END, OTHER = 2041, 2039  # the course tokenizer's <|im_end|> and <|endoftext|>


@pytest.mark.share(1)
@pytest.mark.parametrize(("config", "generation", "ends"), [
    ({}, {}, (END, OTHER)), ({"eos_token_id": OTHER}, {"eos_token_id": OTHER}, (END, OTHER)), ({}, {"eos_token_id": None},
        (END,)),
    ({}, {"eos_token_id": []}, (END,)), ({"eos_token_id": OTHER}, None, (END, OTHER)), ({"eos_token_id": None}, None, (END,)),
    ({"eos_token_id": OTHER}, {"eos_token_id": 5}, (END, 5)), ({}, {"eos_token_id": [OTHER, OTHER, END]}, (END, OTHER)),
], ids=str)
def test_the_tokenizers_eos_counts_beside_generation_configs_or_without_it_configs(
    course: Path, config: dict[str, Any], generation: dict[str, Any] | None, ends: tuple[int, ...], make_llm: Callable[..., LLM]
) -> None:
    edit_json(course / "config.json", **config)
    if generation is None:
        (course / "generation_config.json").unlink()
    else:
        edit_json(course / "generation_config.json", **generation)
    llm = make_llm(course)
    assert llm.llm_engine.config.model.eos_token_ids == ends
    completion = llm.chat([{"role": "user", "content": "What is a KV cache?"}], SamplingParams(temperature=0,
        max_tokens=200))[0].outputs[0]
    assert completion.finish_reason == "stop" and completion.token_ids[-1] == END


def test_an_end_for_which_the_network_has_no_row_is_left_out(random_checkpoint: Callable[..., Path], make_llm: Callable[...,
    LLM]) -> None:
    llm = make_llm(random_checkpoint())  # 512 rows, and the course's tokenizer
    assert llm.get_tokenizer().eos_token_id == END and llm.llm_engine.config.model.eos_token_ids == ()
    assert llm.generate(PROMPT, SamplingParams(max_tokens=4, min_tokens=2))[0].outputs[0].finish_reason == "length"


def test_a_token_without_a_row_in_the_network_is_refused_only_where_it_is_needed(
    course: Path, make_llm: Callable[..., LLM]
) -> None:
    from nano_qwen3_serving.sampling_params import StructuredOutputsParams

    edit_json(course / "tokenizer_config.json", extra_special_tokens=["<|pad|>"])
    llm = make_llm(course)
    assert llm.get_tokenizer().encode("<|pad|>") == [2048]
    for prompt, params in (("a<|pad|>", {}), ("a", {"bad_words": ["<|pad|>"]})):
        with pytest.raises(InvalidParametersError, match="2048"):
            llm.generate(prompt, SamplingParams(max_tokens=2, **params))
    chosen = SamplingParams(max_tokens=9, structured_outputs=StructuredOutputsParams(choice=["<|pad|>"]))
    assert llm.generate("a", chosen)[0].outputs[0].text == "<|pad|>"


DEFAULTS = {"repetition_penalty": 1.3, "temperature": 0.5, "top_k": 7, "top_p": 0.8, "min_p": 0.1, "max_new_tokens": 9}


@pytest.mark.share(2)
@pytest.mark.parametrize("given", [DEFAULTS, {}, *({k: v} for k, v in DEFAULTS.items()), dict.fromkeys(DEFAULTS)], ids=str)
def test_generation_config_says_what_a_request_without_parameters_gets(
    course: Path, given: dict[str, Any], make_llm: Callable[..., LLM]
) -> None:
    """vLLM's six, in `LLM.generate` and `LLM.chat` without parameters; a request's own parameters know nothing of them."""
    (course / "generation_config.json").write_text(json.dumps(given))
    llm = make_llm(course)
    expected = SamplingParams(**{k.replace("max_new", "max"): v for k, v in given.items() if v is not None})
    assert llm.get_default_sampling_params() == expected
    limit = given.get("max_new_tokens") or 16
    for output in (*llm.generate("Count: 1 2 3"), *llm.chat([{"role": "user", "content": "What is attention?"}])):
        assert len(output.outputs[0].token_ids) == limit or output.outputs[0].finish_reason == "stop"
    own = SamplingParams(temperature=0.0, ignore_eos=True)
    assert answer_with(llm, own) == answer_with(make_llm("course"), own)


def answer_with(llm: LLM, params: SamplingParams) -> list[int]:
    return llm.generate("Count: 1 2 3", params)[0].outputs[0].token_ids
