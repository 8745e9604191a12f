"""Lab 05, TODO 3: the KV bytes of a token."""

import random
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grading.judge.checks import check, expect, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab05.network import Network, Pair, a_shape, words
from grading.scenarios.lab05.quantities import DTYPES, SIZES, of_any_dtype
from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention
from nano_qwen3_serving.config import ModelConfig

KV_BYTES = "TODO 3: Predict the KV bytes of a token"


def qwen(**fields: int) -> ModelConfig:
    """Qwen3-0.6B's shape, with some fields replaced."""
    shape: dict[str, Any] = {
        "vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 40_960}
    return ModelConfig(**(shape | fields))


def says_so_many_bytes(lab: Remote, config: ModelConfig, dtype: torch.dtype, right: int, story: str) -> None:
    """`kv_bytes_per_token` says the `right` number; `story` is the shape in words."""
    said = of_any_dtype(lab.kv_bytes_per_token, config, dtype)
    expect(type(said) is int, f"bytes are an int; kv_bytes_per_token returned {shown(said)}")
    expect(said == right, f"{story}, in {dtype}: {right:,} bytes a token; kv_bytes_per_token says {said:,}")


def engine_bytes(config: ModelConfig, dtype: torch.dtype, tokens: int) -> int:
    """What the engine sets aside for so many tokens."""
    return TorchPagedAttention(config, tokens, dtype, torch.device("cpu")).bytes_per_block


@check(todo=3, points=4, section=KV_BYTES, concept="what a pass hands to its cache")
def is_what_a_pass_of_the_network_hands_to_its_cache(lab: Remote, rng: random.Random) -> None:
    for dtype in (*DTYPES, *DTYPES):
        network = Network(rng, dtype)
        handed: list[int] = []

        def append(layer: int, k: Tensor, v: Tensor, handed: list[int] = handed) -> Pair:
            handed.append(k.nbytes + v.nbytes)
            return k, v

        tokens = rng.randrange(2, 9)
        network(range(tokens), 0, append)
        story = f"a pass over {tokens} tokens handed {sum(handed):,} bytes to its cache"
        says_so_many_bytes(lab, network.config, dtype, sum(handed) // tokens, story)


@check(todo=3, points=3, section=KV_BYTES, concept="what an engine sets aside")
def is_what_the_engine_sets_aside(lab: Remote, rng: random.Random) -> None:
    for fields in ({}, {"num_hidden_layers": rng.randrange(1, 60)}, {"num_key_value_heads": rng.choice((1, 2, 16))},
                   {"head_dim": rng.choice((64, 96, 256))}, {"hidden_size": 2560, "num_attention_heads": 32}):
        for dtype in SIZES:
            config = qwen(**fields)
            block = engine_bytes(config, dtype, 16)
            story = f"the engine's blocks of 16 tokens have {block:,} bytes for Qwen3-0.6B's shape with {fields}"
            says_so_many_bytes(lab, config, dtype, block // 16, story)


@check(todo=3, points=3, section=KV_BYTES, concept="what the bytes depend on", hidden=True)
def depends_on_the_shape_of_keys_and_values_and_on_nothing_else(lab: Remote, rng: random.Random) -> None:
    for dtype in (torch.float16, *SIZES):
        config = a_shape(rng)
        right = engine_bytes(config, dtype, 1)
        others: dict[str, Any] = {"num_attention_heads": config.num_key_value_heads * rng.randrange(4, 9),
                                  "hidden_size": rng.randrange(10, 999), "vocab_size": rng.randrange(10, 999),
                                  "intermediate_size": rng.randrange(10, 999)}
        for shape in (config, replace(config, **others)):
            says_so_many_bytes(lab, shape, dtype, right, words(shape))
