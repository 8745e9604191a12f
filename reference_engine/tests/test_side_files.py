"""Every variant of a checkpoint's files gives what transformers makes of it, or is refused by file and field.

The variants are made from lists of what people's files hold, and from seeded pairs of those. A refusal of
something that transformers reads, and a reading of something that transformers refuses, have to stand in
reference_engine/README.md, "Files that are read otherwise".
"""

from __future__ import annotations

import copy
import json
import math
import random
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding
from transformers.utils import logging

from nano_qwen3_serving.exceptions import InvalidParametersError, ModelLoadError
from nano_qwen3_serving.model.checkpoint import read_model_config
from nano_qwen3_serving.model.layers import rotary_frequencies
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.testing.tiny_tokenizer import TEMPLATE, added_tokens, tokenizer_files
from nano_qwen3_serving.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

GONE = object()  # a field, or a file, that is not there
NEXT_ID = added_tokens()[-1]["id"] + 1
HALF = "\ud83d"  # half a character, as JSON can spell it
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 320, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16,
    "hidden_act": "silu", "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
    "attention_bias": False, "use_sliding_window": False, "sliding_window": None, "eos_token_id": NEXT_ID - 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}}
BASE: dict[str, Any] = {"config.json": CONFIG, **tokenizer_files()}


@dataclass(frozen=True)
class Variant:
    """The base files with some fields, or whole files, replaced: file → field → value, or file → content."""

    kind: str
    changes: dict[str, Any]

    @property
    def name(self) -> str:
        def shown(value: Any) -> str:
            return "gone" if value is GONE else repr(value).replace("\\", "/")[:60]

        return f"{self.kind}: " + "; ".join(
            f"{file} " + (", ".join(f"{k}={shown(v)}" for k, v in change.items()) if isinstance(change, dict) else shown(change))
            for file, change in self.changes.items())

    def write(self, folder: Path) -> None:
        """Puts the files into the folder."""
        for file in {**BASE, **self.changes}:
            content = copy.deepcopy(BASE.get(file, {}))
            change = self.changes.get(file, {})
            content = change if not isinstance(change, dict) else change_fields(content, change) if change else content
            if content is GONE:
                continue
            (folder / file).parent.mkdir(exist_ok=True)
            data = content if isinstance(content, bytes) else (
                content if isinstance(content, str) else json.dumps(content)).encode("utf-8", "surrogatepass")
            (folder / file).write_bytes(data)


def change_fields(content: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The object with fields replaced; "a.b" is field b of the object a."""
    for path, value in change.items():
        inner, *names = content, *path.split("/")
        for name in names[:-1]:
            if not isinstance(inner.get(name), dict):
                inner[name] = {}
            inner = inner[name]
        inner.pop(names[-1], None)
        if value is not GONE:
            inner[names[-1]] = value
    return content


# -- what files hold --

VLLM_DEFAULTS = {"repetition_penalty": "repetition_penalty", "temperature": "temperature", "top_k": "top_k", "top_p": "top_p",
                 "min_p": "min_p", "max_new_tokens": "max_tokens"}  # of generation_config.json → of SamplingParams
COUNTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "head_dim", "max_position_embeddings")
YARN = {"factor": 4.0, "original_max_position_embeddings": 128}
ROPES: list[dict[str, Any]] = [
    {"rope_parameters": GONE}, {"rope_parameters": None}, {"rope_parameters": {}}, {"rope_parameters": [1]},
    {"rope_parameters": "yarn"}, {"rope_parameters": {"rope_type": "default"}}, {"rope_parameters": {"rope_theta": 5e5}},
    {"rope_parameters": {"rope_theta": 7}}, {"rope_parameters": {"rope_theta": "big"}}, {"rope_parameters": {"rope_theta": None}},
    {"rope_parameters": {"rope_theta": -1.0}}, {"rope_parameters": {"rope_theta": math.inf}},
    {"rope_parameters": {"rope_theta": 5e5, "factor": 4.0}}, {"rope_parameters": {"rope_theta": 5e5, "type": "default"}},
    {"rope_parameters": {"rope_theta": 5e5, "rope_type": "yarn", **YARN}}, {"rope_parameters": {"rope_theta": 5e5,
        "type": "yarn", **YARN}},
    {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default", "type": "yarn", **YARN}},
    {"rope_parameters": {"rope_theta": 5e5, "rope_type": None}}, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "bogus"}},
    {"rope_parameters": {"rope_theta": 5e5, "rope_type": 3}}, {"rope_parameters": {"rope_theta": 5e5,
        "partial_rotary_factor": 0.5}},
    {"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 1.0}},
    {"rope_parameters": {"full_attention": {"rope_theta": 5e5, "rope_type": "yarn", **YARN}}},
    {"rope_parameters": {"full_attention": {"rope_theta": 5e5, "rope_type": "default"}}},
    {"rope_parameters": GONE, "rope_theta": 5e5}, {"rope_parameters": GONE, "rope_theta": 7}, {"rope_parameters": GONE,
        "rope_theta": None},
    {"rope_parameters": GONE, "rope_theta": "5e5"}, {"rope_theta": 5e5}, {"rope_theta": None}, {"rope_parameters": {},
        "rope_theta": 5e5},
    {"rope_scaling": None}, {"rope_scaling": {}}, {"rope_scaling": {"type": "default"}},
    {"rope_scaling": {"rope_type": "default", "rope_theta": 9.0}},
    {"rope_scaling": {"rope_type": "yarn", **YARN}}, {"rope_scaling": {"type": "yarn", **YARN}}, {"rope_scaling": "yarn"},
    {"rope_scaling": [4.0]},
    {"rope_scaling": {"rope_type": "yarn", **YARN}, "rope_parameters": GONE, "rope_theta": 5e5},
    {"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    {"rope_scaling": {"type": "default"}, "rope_parameters": GONE, "rope_theta": 5e5},
    {"rope_scaling": {"rope_type": "default"}, "rope_parameters": [1]},
    {"rope_scaling": {"factor": 2.0}}, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                                         "high_freq_factor": 4.0, "original_max_position_embeddings": 128}},
    *({"rope_parameters": change_fields({"rope_theta": 5e5, "rope_type": "yarn", **YARN}, more)} for more in (
        {"factor": None}, {"factor": GONE}, {"factor": "4"}, {"factor": 1}, {"factor": 0.5}, {"factor": 4.5}, {"factor": True},
        {"original_max_position_embeddings": None}, {"original_max_position_embeddings": GONE},
        {"original_max_position_embeddings": 512}, {"original_max_position_embeddings": 1024},
        {"original_max_position_embeddings": 0}, {"original_max_position_embeddings": 128.0},
        {"attention_factor": 1.2}, {"attention_factor": None}, {"attention_factor": 1}, {"attention_factor": 0},
        {"attention_factor": -1.0}, {"attention_factor": "1"}, {"beta_fast": 8}, {"beta_fast": None}, {"beta_fast": 0},
        {"beta_fast": "8"}, {"beta_slow": 2.5}, {"beta_slow": None}, {"beta_slow": -1}, {"beta_fast": 2, "beta_slow": 3},
        {"beta_fast": 2, "beta_slow": 2}, {"mscale": 0.7}, {"mscale": 0.7, "mscale_all_dim": 1.2}, {"mscale": None},
        {"mscale": 0, "mscale_all_dim": 1.2}, {"mscale": "x", "mscale_all_dim": 1}, {"truncate": False}, {"truncate": None},
        {"truncate": "no"}, {"rope_theta": 1}, {"rope_theta": GONE}, {"finetuned": True}, {"partial_rotary_factor": 0.5})),
    {"rope_scaling": {"rope_type": "yarn", **YARN}, "original_max_position_embeddings": 64},
    {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "original_max_position_embeddings": 64},
    {"rope_scaling": {"rope_type": "yarn", **YARN}, "max_position_embeddings": 128},
    {"rope_scaling": {"rope_type": "yarn", **YARN}, "max_position_embeddings": 4096, "head_dim": 64},
    {"partial_rotary_factor": 0.5}, {"partial_rotary_factor": 1.0}, {"partial_rotary_factor": None},
]
OTHER_CONFIGS: dict[str, list[Any]] = {
    "rms_norm_eps": [GONE, None, "1e-6", 1, 0, -1e-6, math.nan, math.inf, True, 1e-5],
    "tie_word_embeddings": [GONE, None, "false", 0, 1, [], False],
    "attention_bias": [GONE, None, "false", 0, True],
    "use_sliding_window": [GONE, None, "false", 0, True],
    "sliding_window": [GONE, 64, "64", 64.0],
    "max_window_layers": [1, "x"],
    "hidden_act": [GONE, None, "gelu", "swish", "SILU", 3],
    "layer_types": [None, [], ["full_attention"], ["full_attention"] * 2, ["sliding_attention"] * 2,
                    ["full_attention", "sliding_attention"], ["bogus"] * 2, "full_attention", ["full_attention", 3]],
    "architectures": [GONE, None, [], "Qwen3ForCausalLM", ["Qwen3Model"], ["Qwen3MoeForCausalLM"], [3],
                      ["Qwen3ForCausalLM", "Qwen3Model"]],
    "model_type": [GONE, None, "qwen2", "llama", "", 3, "Qwen3"],
    "quantization_config": [None, {}, {"quant_method": "fp8"}],
    "compression_config": [{"format": "pack-quantized"}],
    "per_layer_config": [{"0": {"head_dim": 32}}, {}],
    "attention_dropout": [0.1, "x"], "initializer_range": [0.5, "x"], "pad_token_id": [None, 3, "x"], "bos_token_id": [3, "x"],
    "dtype": ["bfloat16", "bogus"], "torch_dtype": ["float32"], "use_cache": [False], "transformers_version": ["4.51.0"],
    "something_new": [3],
    "eos_token_id": [GONE, None, 3, [3, 4], [3, 3], [], "3", 3.0, 3.5, True, -1, [-1], [3, "4"], {}, 320, [3, 151645], [[3]]],
}
GENERATION: dict[str, list[Any]] = {
    "eos_token_id": OTHER_CONFIGS["eos_token_id"],
    "temperature": [0.6, 0, 1, 2.5, -1.0, "0.6", True, math.nan, math.inf, [0.6], None],
    "top_k": [20, 0, -1, 50, -2, 20.0, "20", True, None],
    "top_p": [0.95, 1, 0.0, 1.5, "0.95", None],
    "min_p": [0.1, 0, 1.5, -0.1, "0.1", None],
    "repetition_penalty": [1.05, 1, 0, -1.0, "1.05", math.inf, None],
    "max_new_tokens": [99, 0, -1, 99.0, "99", None],
    "do_sample": [False], "pad_token_id": ["x"], "bos_token_id": [3], "something_new": [3], "min_new_tokens": [5],
}
TOKEN = {"__type": "AddedToken", "content": "<|new|>", "lstrip": False, "normalized": False, "rstrip": False,
         "single_word": False, "special": True}
UNMARKED = {k: v for k, v in TOKEN.items() if k != "__type"}
DECODER = {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in added_tokens()}
THINK = next(i for i, t in DECODER.items() if t["content"] == "<think>")
TOKENIZER_CONFIGS: dict[str, list[Any]] = {
    **{name: [GONE, None, "<|im_end|>", "<|new|>", "<think>", "hello", "a", "", " ", "é", 5, True, ["<|im_end|>"], TOKEN,
        UNMARKED,
              {"x": 1}, {"__type": "AddedToken", "content": "<|strip|>", "lstrip": True, "rstrip": True}, HALF]
       for name in ("bos_token", "eos_token", "pad_token")},
    "unk_token": [GONE, "<|unk|>", 5], "mask_token": ["<|mask|>", None, 5], "image_token": ["<|image|>", TOKEN, 5, None, ["x"]],
    "extra_special_tokens": [None, [], ["<|tool|>"], ["<|tool|>", "<think>", "hello"], {"image_token": "<|image|>"},
        {"image_token": 5},
                             {"video_token": TOKEN}, "<|tool|>", 5, [5], [UNMARKED], [TOKEN], [""], [HALF], ["<|tool|>",
                                 "<|tool|>"]],
    "additional_special_tokens": [None, [], ["<|tool|>"], ["<think>"], "<|tool|>", [5], [UNMARKED], [TOKEN]],
    "added_tokens_decoder": [
        DECODER, {}, None, [], "x", {THINK: DECODER[THINK]}, {k: v for k, v in DECODER.items() if k != THINK},
        DECODER | {str(NEXT_ID): UNMARKED}, DECODER | {str(NEXT_ID + 5): UNMARKED}, DECODER | {"x": UNMARKED},
        DECODER | {str(NEXT_ID): {"content": 5}}, DECODER | {str(NEXT_ID): {}}, DECODER | {str(NEXT_ID): "<|new|>"},
        DECODER | {str(NEXT_ID): UNMARKED | {"special": "yes"}}, DECODER | {str(NEXT_ID): UNMARKED | {"lstrip": True,
            "rstrip": True}},
        DECODER | {str(NEXT_ID): UNMARKED | {"special": False, "normalized": True}},
        DECODER | {THINK: DECODER[THINK] | {"special": True}},
        DECODER | {str(NEXT_ID): {"content": "<|new|>"}}, DECODER | {"-1": UNMARKED}, DECODER | {"0": {"content": "!"}},
        DECODER | {str(NEXT_ID): {"content": "ﬁ<é>"}}, dict(reversed(DECODER.items()))],
    "tokenizer_class": [GONE, None, "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizerFast",
                        "LlamaTokenizer", "GPT2Tokenizer", "Bogus", 5, ""],
    "split_special_tokens": [True, False, None, "x"], "add_prefix_space": [True, False, None],
    "clean_up_tokenization_spaces": [True, False], "model_max_length": [8, 1e30, "x"], "padding_side": ["left", "up"],
    "add_bos_token": [True, False], "add_eos_token": [True], "errors": ["replace"], "truncation_side": ["left"],
    "fast_tokenizer_files": [["tokenizer.json"], ["tokenizer.json", "tokenizer.4.0.json"]], "something_new": [3],
    "auto_map": [{"AutoConfig": "x.Y"}],
}
GENERIC = {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}}
TOKENIZERS: list[dict[str, Any]] = [
    {"truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}},
    {"padding": {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                 "pad_token": "!"}},
    {"padding": {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": 8, "pad_id": 0, "pad_type_id": 0,
                 "pad_token": "<|endoftext|>"}},
    {"added_tokens": []}, {"added_tokens": added_tokens()[:-1]}, {"added_tokens": GONE}, {"added_tokens": "x"},
    {"added_tokens": [*added_tokens(), UNMARKED | {"id": NEXT_ID}]}, {"added_tokens": [*added_tokens(),
        UNMARKED | {"id": NEXT_ID + 9}]},
    {"added_tokens": [*added_tokens(), UNMARKED]}, {"added_tokens": [*added_tokens(), {"id": NEXT_ID, "content": 5}]},
    {"added_tokens": [{**t, "special": True} for t in added_tokens()]}, {"added_tokens": [{**t,
        "rstrip": True} for t in added_tokens()]},
    {"normalizer": None}, {"normalizer": {"type": "NFKC"}}, {"normalizer": {"type": "Lowercase"}}, {"normalizer": "NFC"},
    {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}},
    {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
    {"decoder": None}, {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, {"decoder": GONE},
    {"decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
    {"model": GONE}, {"model": None}, {"model": []}, {"model/vocab": GONE}, {"model/vocab": []}, {"model/merges": GONE},
    {"model/merges": [["h", "e"]]}, {"model/merges": [["h"]]}, {"model/merges": ["h q"]}, {"model/merges": [5]},
    {"model/vocab/a": "x"},
    {"model/unk_token": "a"}, {"model/dropout": 0.5}, {"model/ignore_merges": True}, {"model/byte_fallback": True},
    {"model/continuing_subword_prefix": None}, {"model/type": "WordLevel"}, {"model/type": GONE}, {"version": GONE},
    {"post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}},
]
SPECIAL_MAPS: list[dict[str, Any]] = [
    {"eos_token": "<|endoftext|>"}, {"eos_token": UNMARKED}, {"eos_token": {"content": "<|new|>", "rstrip": True}},
    {"eos_token": None},
    {"eos_token": 5}, {"eos_token": {"x": 1}}, {"eos_token": ["a"]}, {"bos_token": "<|new|>", "mask_token": "<|mask|>"},
    {"additional_special_tokens": ["<|tool|>"]}, {"additional_special_tokens": [UNMARKED]},
    {"extra_special_tokens": ["<|tool|>"]},
    {"extra_special_tokens": [UNMARKED]}, {"extra_special_tokens": {"image_token": "<|image|>"}}, {"image_token": "<|image|>"},
    {"additional_special_tokens": "x"}, {"something": 5}, {},
]
ADDED_JSONS: list[dict[str, Any]] = [
    {"<|tool|>": NEXT_ID}, {"<|tool|>": NEXT_ID + 7}, {"<|tool|>": str(NEXT_ID)}, {"<|tool|>": None}, {"<|tool|>": -1},
    {"<|tool|>": 3},
    {"<|a|>": NEXT_ID + 1, "<|b|>": NEXT_ID}, {"": NEXT_ID}, {}, {"<think>": int(THINK)}, {"hello": NEXT_ID},
]
NAMED = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "tools: {{ tools | tojson }}"}]
TEMPLATES: list[dict[str, Any]] = [
    {"chat_template.jinja": GONE},
    {"chat_template.jinja": "{{ eos_token }}{{ bos_token }}{{ unk_token }}{{ pad_token }}"}, {"chat_template.jinja": ""},
    {"chat_template.jinja": "{% for %}"}, {"chat_template.jinja": "{{ 1 | nofilter }}"}, {"chat_template.jinja": b"caf\xe9"},
    {"chat_template.jinja": "\ufeff" + TEMPLATE}, {"chat_template.jinja": TEMPLATE,
        "tokenizer_config.json": {"chat_template": "other"}},
    *({"chat_template.jinja": GONE, "tokenizer_config.json": {"chat_template": value}} for value in (
        TEMPLATE, None, "", NAMED, NAMED[1:], [], {}, {"default": TEMPLATE}, {"x": TEMPLATE}, 5, ["x"], [{"name": "default"}],
        [{"template": TEMPLATE}], [{"name": 5, "template": TEMPLATE}], {"default": 5}, "{% if %}", NAMED + NAMED[:1])),
    {"additional_chat_templates/tool_use.jinja": "tools {{ tools | length }}"},
    {"chat_template.jinja": GONE, "additional_chat_templates/tool_use.jinja": "tools {{ tools | length }}"},
    {"chat_template.jinja": GONE, "additional_chat_templates/default.jinja": "other"},
    {"additional_chat_templates/rag.jinja": "{% broken"}, {"chat_template.jinja": GONE,
        "chat_template.json": {"chat_template": TEMPLATE}},
    {"chat_template.json": {"chat_template": "other"}}, {"chat_template.jinja": GONE, "chat_template.json": {"chat_template": 5}},
    {"chat_template.jinja": GONE, "chat_template.json": "["},
]
BYTES: dict[str, Any] = {
    "empty": b"", "null": b"null", "a list": b"[]", "a number": b"3", "a text": b'"x"', "cut short": b'{"a": 1',
        "a comma too many": b'{"a": 1,}',
    "a comment": b'{"a": 1} // x', "spaces": b"  \n", "nothing but a byte order mark": b"\xef\xbb\xbf",
    "Latin-1": '{"a": "é"}'.encode("latin-1"),
    "UTF-16": '{"a": 1}'.encode("utf-16"), "zero bytes": b"\0" * 20,
    "an LFS pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "nested without end": b'{"a":' * 100_000, "an endless number": b'{"a": ' + b"9" * 5000 + b"}",
}
JSON_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
              "added_tokens.json")


def variants() -> Iterator[Variant]:
    """All of them: one change at a time."""
    for name in COUNTS:
        for value in (GONE, None, "4", 4.0, 4.5, True, [4], {}, -1, 0, 4):
            yield Variant("config", {"config.json": {name: value}})
    yield from (Variant("config", {"config.json": change}) for change in ROPES)
    yield from (Variant("config", {"config.json": {k: v}}) for k, values in OTHER_CONFIGS.items() for v in values)
    yield from (Variant("config", {"generation_config.json": {k: v}}) for k, values in GENERATION.items() for v in values)
    yield Variant("config", {"generation_config.json": {}, "config.json": {"eos_token_id": 3}})
    for names in (("mask_token", "eos_token", "bos_token"), ("pad_token", "unk_token", "cls_token", "sep_token")):
        new = {name: f"<|{letter}|>" for name, letter in zip(names, "abcd", strict=False)}  # which comes first in the vocabulary?
        yield Variant("tokenizer", {"tokenizer_config.json": new})
        more = {"extra_special_tokens": ["<|tool|>"], "image_token": "<|image|>"}
        yield Variant("tokenizer", {"tokenizer_config.json": more | new})
    generic: list[dict[str, Any]] = [
        {"eos_token": "<think>"}, {"eos_token": "hello"}, {"extra_special_tokens": ["<think>"]}, {"eos_token": TOKEN}]
    for change in generic:
        yield Variant("tokenizer", {"tokenizer_config.json": change | GENERIC["tokenizer_config.json"]})
    named = {"extra_special_tokens": {"image_token": "<|image|>"}, "additional_special_tokens": ["<|tool|>"]}
    yield Variant("tokenizer", {"tokenizer_config.json": named})
    yield Variant("tokenizer", {"tokenizer_config.json": {"tokenizer_class": "", "eos_token": GONE}})
    filled = next(change for change in TOKENIZERS if "padding" in change)
    yield Variant("tokenizer", {"tokenizer.json": filled, "tokenizer_config.json": {
        "pad_token": GONE, **GENERIC["tokenizer_config.json"]}})
    yield from (Variant("tokenizer", {"tokenizer_config.json": {k: v}}) for k,
        values in TOKENIZER_CONFIGS.items() for v in values)
    for change in TOKENIZERS:
        yield Variant("tokenizer", {"tokenizer.json": change})
        yield Variant("tokenizer", {"tokenizer.json": change, **GENERIC})
    for kind, changes in (("special_tokens_map.json", SPECIAL_MAPS), ("added_tokens.json", ADDED_JSONS)):
        for change in changes:
            yield Variant("tokenizer", {kind: change})
            yield Variant("tokenizer", {kind: change, "tokenizer_config.json": {"added_tokens_decoder": DECODER}})
    yield from (Variant("tokenizer", change) for change in TEMPLATES)
    for file in JSON_FILES:
        kind = "config" if file in ("config.json", "generation_config.json") else "tokenizer"
        yield from (Variant(kind, {file: content}) for content in BYTES.values())
        whole = json.dumps(BASE.get(file, {}), ensure_ascii=False)
        yield Variant(kind, {file: whole.encode("utf-8-sig")})
        field = next(iter(json.loads(whole)), "eos_token")  # a second time: the last one counts
        yield Variant(kind, {file: whole.replace("{", f'{{"{field}": "a"' + ", " * (len(whole) > 2), 1)})
        yield Variant(kind, {file: GONE})


def pairs(count: int, seed: int = 4) -> Iterator[Variant]:
    """Two changes at once, of one kind, drawn with a seed."""
    rng, single = random.Random(seed), [v for v in variants() if all(isinstance(c, dict) for c in v.changes.values())]
    while count:
        one, two = rng.sample(single, 2)
        fields = [{(file, field) for file, change in v.changes.items() for field in change} for v in (one, two)]
        if one.kind == two.kind and not fields[0] & fields[1]:
            count -= 1
            merged = {f: {**one.changes.get(f, {}), **two.changes.get(f, {})} for f in {**one.changes, **two.changes}}
            yield Variant(one.kind, merged)


# -- what is made of them --

TEXTS = ("hello world", "  two\n\nlines  ", "e\u0301 \u212b ﬁ", "a<|im_end|>b<think>c</think>",
    "x <|new|> y<|tool|>z <|strip|> w", "<é>ﬁ<é>",
         "<|image|><|mask|><|unk|><|a|><|b|><|c|><|d|>", "你好 🙂")
MESSAGES = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "é"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def ours_of_config(folder: Path) -> dict[str, Any]:
    config = read_model_config(folder)
    scaling = config.rope_scaling
    return {name: getattr(config, name) for name in (
        *COUNTS, "rms_norm_eps", "rope_theta", "tie_word_embeddings", "attention_bias", "eos_token_ids", "generation_defaults")
    } | {"frequencies": rotary_frequencies(config.head_dim, config.rope_theta, scaling).tolist(),
         "attention_factor": scaling.attention_factor if scaling else 1.0}


def theirs_of_config(folder: Path) -> dict[str, Any]:
    """transformers' configuration; of the sampling defaults and the end of a text, vLLM's use of transformers' files."""
    config = AutoConfig.from_pretrained(folder)
    found = {name: getattr(config, name) for name in (*COUNTS, "rms_norm_eps", "tie_word_embeddings", "attention_bias")}
    rope = config.rope_parameters
    rotary = Qwen3RotaryEmbedding(config)
    assert config.architectures == ["Qwen3ForCausalLM"] and config.hidden_act == "silu"
    has_file = (folder / "generation_config.json").exists()
    generation = (GenerationConfig.from_pretrained(folder) if has_file else config).to_dict()
    eos = generation.get("eos_token_id")
    used = {ours: generation[theirs] for theirs, ours in VLLM_DEFAULTS.items() if generation.get(theirs) is not None}
    SamplingParams(**used)
    return found | {
        "rope_theta": rope["rope_theta"], "frequencies": rotary.inv_freq.tolist(), "attention_factor": rotary.attention_scaling,
        "generation_defaults": used if has_file else {},
        "eos_token_ids": tuple(dict.fromkeys([] if eos is None else eos if isinstance(eos, list) else [eos]))}


def ours_of_tokenizer(folder: Path) -> dict[str, Any]:
    tokenizer = Tokenizer.from_folder(folder)
    ids = [tokenizer.encode(text) for text in TEXTS]
    return {
        "ids": ids, "texts": [[tokenizer.decode(i, skip_special_tokens=skip) for i in ids] for skip in (True, False)],
        "bytes": [b"".join(map(tokenizer.token_bytes, i)).decode("utf-8", "replace") for i in ids],
        "names": tokenizer.special_token_map, "eos": tokenizer.eos_token_id, "size": len(tokenizer),
        "chat": [chatted(tokenizer, InvalidParametersError, **how) for how in ({}, {"tools": TOOLS},
            {"chat_template": "tool_use"})]}


def theirs_of_tokenizer(folder: Path) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    return {
        "ids": ids, "texts": [[tokenizer.decode(i, skip_special_tokens=skip) for i in ids] for skip in (True, False)],
        "bytes": [tokenizer.decode(i) for i in ids],
        "names": tokenizer.special_tokens_map, "eos": tokenizer.eos_token_id, "size": len(tokenizer),
        "chat": [chatted(tokenizer, Exception, **how) for how in ({}, {"tools": TOOLS}, {"chat_template": "tool_use"})]}


def chatted(tokenizer: Any, refusal: type[Exception], **how: Any) -> str:
    try:
        return tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True, **how)
    except refusal:
        return "refused"


READERS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "config": (ours_of_config, theirs_of_config), "tokenizer": (ours_of_tokenizer, theirs_of_tokenizer)}


# -- the table --

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SAID_OF = re.compile(r"([\w.]+\.(?:json|jinja)) (?:has (?:no field '|a )?([\w.]+)?|says|is )")
SAYS = {"tokenizer.json": "added_tokens", "tokenizer_config.json": "added_tokens_decoder"}  # where an id is said of a token


def table() -> dict[str, set[tuple[str, str]]]:
    """Of "Files that are read otherwise": verdict → (file, field); the field `*` is the file as a whole."""
    rows: dict[str, set[tuple[str, str]]] = {"refused": set(), "read": set()}
    text = README.split("## Files that are read otherwise")[1].split("\n## ")[0]
    for files, fields, verdict in re.findall(r"^\| (`.*?) \| (.*?) \|.*?\| (refused|read) \|", text, re.MULTILINE):
        names = re.findall(r"`([^`]+)`", fields) or ["*"]
        rows[verdict] |= {(file, field) for file in re.findall(r"`([^`]+)`", files) for field in names}
    return rows


TABLE = table()


def judged(variant: Variant, folder: Path) -> str | None:
    """What is wrong with what is made of the variant; None if nothing is."""
    variant.write(folder)
    ours_read, theirs_read = READERS[variant.kind]
    try:
        theirs: Any = theirs_read(folder)
    except Exception as error:
        theirs = error
    try:
        ours = ours_read(folder)
    except ModelLoadError as error:
        return judged_refusal(str(error), theirs, folder)
    except Exception as error:
        return f"a raw {type(error).__name__}: {error}"
    changed = {(file, f.split("/")[0]) for file, c in variant.changes.items() for f in (c if isinstance(c, dict) else "*")}
    differing = {} if isinstance(theirs, Exception) else {k: (v, theirs[k]) for k, v in ours.items() if v != theirs[k]}
    if changed & TABLE["read"] or ours == theirs:
        return None
    if isinstance(theirs, Exception):
        return f"read, but transformers says {type(theirs).__name__}: {str(theirs)[:200]}"
    return f"differs (ours, transformers'): {differing}"


def judged_refusal(message: str, theirs: Any, folder: Path) -> str | None:
    said = SAID_OF.search(message.replace(f"{folder}/", ""))
    if said is None or str(folder) not in message:
        return f"the refusal names no file: {message}"
    if isinstance(theirs, Exception):
        return None
    file, field = said[1], said[2] or (SAYS.get(said[1], "*") if said[0].endswith("says") else "*")
    files = {file, "*.jinja"} if file.endswith(".jinja") else {file}
    known = {(f, name) for f in files for name in (field, field.split(".")[0], "*")} & TABLE["refused"]
    return None if known else f"refused, but transformers reads it: {message}"


@pytest.fixture(autouse=True)
def quietly() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.set_verbosity(before)


@pytest.mark.parametrize("group", ["config", "tokenizer", "pairs"])
def test_every_variant_is_what_it_is_in_transformers_or_is_refused_by_file_and_field(group: str, tmp_path: Path) -> None:
    corpus = list(pairs(150)) if group == "pairs" else [v for v in variants() if v.kind == group]
    wrong = {}
    for i, variant in enumerate(corpus):
        folder = tmp_path / str(i)
        folder.mkdir()
        what = judged(variant, folder)
        if what:
            wrong[variant.name] = what
    assert not wrong, f"{len(wrong)} of {len(corpus)} variants:\n" + "\n".join(f"- {k}\n    {v}" for k, v in wrong.items())


def test_the_corpus_is_large_and_without_its_changes_nothing_is_refused(tmp_path: Path) -> None:
    assert len(list(variants())) >= 300
    for kind, (ours, theirs) in READERS.items():
        folder = tmp_path / kind
        folder.mkdir()
        Variant(kind, {}).write(folder)
        assert ours(folder) == theirs(folder)
