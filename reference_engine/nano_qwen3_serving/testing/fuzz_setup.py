"""The two worlds an episode can play in: the toy model with its oracle, and the course checkpoint.

The course checkpoint's oracle is a second engine that runs each request alone, from one chunk, and
with no prefix cache.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from nano_qwen3_serving.components import Components
from nano_qwen3_serving.config import CacheConfig, EngineConfig, SchedulerConfig
from nano_qwen3_serving.engine.arg_utils import EngineArgs
from nano_qwen3_serving.engine.llm_engine import LLMEngine
from nano_qwen3_serving.outputs import RequestOutput
from nano_qwen3_serving.sampling_params import RequestOutputKind, SamplingParams
from nano_qwen3_serving.testing.fuzz_toy import TOY_MODEL, Expected, ToyModel, ToyOracle, ToyTokenizer

MODELS = ("toy", "course")


@dataclass(frozen=True)
class Setup:
    """What an episode needs besides its operations."""

    config: EngineConfig
    parts: Components
    tokenizer: Any
    oracle: Any


def make_setup(model: str, raw: dict[str, Any], components: Components | None) -> Setup:
    """The world of an episode; `components` replace the reference's parts."""
    cache_config = CacheConfig(raw["num_blocks"], raw["block_size"], raw["enable_prefix_caching"])
    scheduler = SchedulerConfig(
        raw["max_num_seqs"], raw["max_num_batched_tokens"], min(raw["max_model_len"], cache_config.capacity),
        raw["scheduling_policy"], raw["enable_chunked_prefill"], raw["long_prefill_token_threshold"])
    config = replace(
        base_config(model), cache=cache_config, scheduler=scheduler, check_invariants=True,
        stream_interval=raw["stream_interval"], max_num_queued_reqs=raw["max_num_queued_reqs"])
    parts = components or Components()
    if raw["weak_hash"] and parts.block_manager is Components().block_manager:
        parts = parts.using(block_manager=weak_block_manager)
    if model == "course":
        oracle = AloneOracle(config)
        return Setup(config, parts, oracle.tokenizer, oracle)
    parts = parts.using(model=lambda config, attention: ToyModel(attention), tokenizer=lambda config: ToyTokenizer())
    return Setup(config, parts, ToyTokenizer(), ToyOracle(config))


@cache
def base_config(model: str) -> EngineConfig:
    """The model's configuration, before an episode's own numbers."""
    if model == "toy":
        return EngineConfig(
            model_name="toy", model_path=Path("toy"), tokenizer_path=Path("toy"), model=TOY_MODEL,
            cache=CacheConfig(2), scheduler=SchedulerConfig(), device=torch.device("cpu"), dtype=torch.float32)
    exact = {"batch_invariant": True} if "batch_invariant" in {f.name for f in fields(EngineArgs)} else {}
    return EngineArgs(model=model, device="cpu", dtype="float32", **exact).create_engine_config()


def weak_block_manager(config: EngineConfig) -> Any:
    """The reference's, with a hash that has three values: almost everything collides."""
    from nano_qwen3_serving.scheduling.block_manager import BlockManager

    cache_config = config.cache
    return BlockManager(
        cache_config.num_blocks, cache_config.block_size, cache_config.enable_prefix_caching,
        hash_function=lambda parent, token_ids: bytes([(sum(parent) + sum(token_ids)) % 3]))


class AloneOracle:
    """Runs each request in an engine of its own reference parts, alone."""

    def __init__(self, config: EngineConfig) -> None:
        longest = config.scheduler.max_model_len
        self.engine = LLMEngine(replace(
            config, cache=CacheConfig(4 * longest, 1, False),
            scheduler=SchedulerConfig(8, 8 * longest, longest), max_num_queued_reqs=None, stream_interval=1))
        self.tokenizer = self.engine.get_tokenizer()

    def expected(self, prompt: list[int], params: SamplingParams) -> list[Expected]:
        """All n completions."""
        completions = []
        for i in range(params.n):
            alone = params.clone(n=1, seed=(params.seed or 0) + i, output_kind=RequestOutputKind.FINAL_ONLY)
            (request,) = self.engine.make_requests("alone", {"prompt_token_ids": prompt}, alone)
            request.sample_index = i
            self.engine.add([request])
            outputs: list[RequestOutput] = []
            while self.engine.has_unfinished_requests():
                outputs += self.engine.step()
            (c,) = outputs[-1].outputs
            completions.append(Expected(c.token_ids, c.text, c.finish_reason, c.stop_reason, c.logprobs))
        return completions
