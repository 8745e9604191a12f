"""The two worlds an episode can play in: the toy model, and the course checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from nano_qwen3_serving.components import Components
from nano_qwen3_serving.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from nano_qwen3_serving.engine.arg_utils import EngineArgs
from nano_qwen3_serving.testing.byte_tokenizer import END_OF_TEXT, ByteTokenizer
from nano_qwen3_serving.testing.fuzz.grammars import ByteGrammarCompiler
from nano_qwen3_serving.testing.fuzz.oracles import AloneOracle, TokenOracle, ToyOracle
from nano_qwen3_serving.testing.fuzz.params import ALPHABET
from nano_qwen3_serving.testing.telltale import TellTaleDrafter, TellTaleModel

TOY_MODEL = ModelConfig(
    vocab_size=END_OF_TEXT + 1, hidden_size=1, intermediate_size=1, num_hidden_layers=1, num_attention_heads=1,
    num_key_value_heads=1, head_dim=4, max_position_embeddings=64, eos_token_ids=(END_OF_TEXT,))


@dataclass(frozen=True)
class Setup:
    """What an episode needs besides its operations.

    Attributes:
        grammars: takes the place of the engine's compiler, if not None.
    """

    config: EngineConfig
    parts: Components
    oracle: TokenOracle
    grammars: ByteGrammarCompiler | None = None


def make_setup(model: str, raw: dict[str, Any], components: Components | None) -> Setup:
    """The world of an episode; `components` replace the reference's parts."""
    cache_config = CacheConfig(raw["num_blocks"], raw["block_size"], raw["enable_prefix_caching"])
    scheduler = SchedulerConfig(
        raw["max_num_seqs"], raw["max_num_batched_tokens"], min(raw["max_model_len"], cache_config.capacity),
        raw["scheduling_policy"], raw["enable_chunked_prefill"], raw["long_prefill_token_threshold"],
        raw.get("num_speculative_tokens", 0))
    config = replace(
        base_config(model), cache=cache_config, scheduler=scheduler, check_invariants=True,
        stream_interval=raw["stream_interval"], max_num_queued_reqs=raw["max_num_queued_reqs"])
    parts = components or Components()
    if raw["weak_hash"] and parts.block_manager is Components().block_manager:
        parts = parts.using(block_manager=weak_block_manager)
    if model == "course":
        return Setup(config, parts, AloneOracle(config))
    parts = parts.using(
        model=lambda config, attention: TellTaleModel(config, attention, ALPHABET),
        tokenizer=lambda config: ByteTokenizer(),
        drafter=lambda config: TellTaleDrafter(ALPHABET))
    grammars = ByteGrammarCompiler(TOY_MODEL.vocab_size, END_OF_TEXT)
    return Setup(config, parts, ToyOracle(config, ALPHABET, grammars), grammars)


@cache
def base_config(model: str) -> EngineConfig:
    """The model's configuration, before an episode's own numbers."""
    if model == "toy":
        return EngineConfig(
            model_name="toy", model_path=Path("toy"), tokenizer_path=Path("toy"), model=TOY_MODEL,
            cache=CacheConfig(2), scheduler=SchedulerConfig(), device=torch.device("cpu"), dtype=torch.float32)
    return EngineArgs(model=model, device="cpu", dtype="float32", batch_invariant=True).create_engine_config()


def weak_block_manager(config: EngineConfig) -> Any:
    """The reference's, with a hash that has three values: almost everything collides."""
    from nano_qwen3_serving.scheduling.block_manager import BlockManager

    cache_config = config.cache
    return BlockManager(
        cache_config.num_blocks, cache_config.block_size, cache_config.enable_prefix_caching,
        hash_function=lambda parent, token_ids: bytes([(sum(parent) + sum(token_ids)) % 3]))
