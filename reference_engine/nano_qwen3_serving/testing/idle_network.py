"""An engine whose network and sampler do nothing, so that what is left is the engine's own cost.

Knows engines; knows nothing of clocks. Every request is given token 0 in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nano_qwen3_serving.components import Components
from nano_qwen3_serving.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from nano_qwen3_serving.engine.llm_engine import LLMEngine
from nano_qwen3_serving.interfaces import AttentionMetadata, SamplingRow
from nano_qwen3_serving.outputs import Logprob
from nano_qwen3_serving.sampling_params import RequestOutputKind, SamplingParams
from nano_qwen3_serving.testing.byte_tokenizer import END_OF_TEXT, ByteTokenizer

BLOCK_SIZE = 16
MAX_LEN = 40_960


class IdleModel:
    """Hidden states and logits that are all zero."""

    def __call__(self, token_ids: Tensor, positions: Tensor, cache: list[Any], metadata: AttentionMetadata) -> Tensor:
        """[num_tokens] → [num_tokens, 1]"""
        return torch.zeros(len(token_ids), 1)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[num_rows, 1] → [num_rows, 1]"""
        return hidden


class IdleSampler:
    """Token 0 for everybody."""

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow]
    ) -> tuple[list[int], list[dict[int, Logprob] | None]]:
        """One token per row."""
        return [0] * len(rows), [None] * len(rows)


def idle_engine(running: int, context: int, waiting: int = 0, spare_blocks: int = 2) -> LLMEngine:
    """An engine in whose every step `running` requests decode, and `waiting` others wait.

    Args:
        running: requests that decode, each streamed as deltas; they go on for 1,000 steps.
        context: tokens of each when it begins to decode.
        waiting: requests that never get their turn, for `max_num_seqs` run.
        spare_blocks: blocks of the pool that nobody needs.
    """
    shape = ModelConfig(
        vocab_size=END_OF_TEXT + 1, hidden_size=1, intermediate_size=1, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=1, max_position_embeddings=MAX_LEN, eos_token_ids=(END_OF_TEXT,))
    steps = 1000
    blocks = running * -(-(context + steps) // BLOCK_SIZE) + 1 + spare_blocks
    config = EngineConfig(
        model_name="idle", model_path=Path("idle"), tokenizer_path=Path("idle"), model=shape,
        cache=CacheConfig(blocks, BLOCK_SIZE), scheduler=SchedulerConfig(running, max(running, MAX_LEN), MAX_LEN),
        device=torch.device("cpu"), dtype=torch.float32)
    engine = LLMEngine(config, Components(
        model=lambda config, attention: IdleModel(), sampler=lambda config: IdleSampler(),
        tokenizer=lambda config: ByteTokenizer()))
    params = SamplingParams(temperature=0.0, max_tokens=steps, ignore_eos=True, output_kind=RequestOutputKind.DELTA)
    for i in range(running + waiting):
        prompt = [(i * 31 + j * j) % END_OF_TEXT for j in range(context if i < running else 4)]
        engine.add_request(str(i), {"prompt_token_ids": prompt}, params)
    while len(engine.scheduler.running) < running or any(r.num_uncomputed_tokens > 1 for r in engine.scheduler.running):
        engine.step()
    return engine
