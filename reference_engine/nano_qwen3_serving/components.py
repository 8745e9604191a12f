"""The choice of parts. An engine is built from one `Components`; anything else in it is wiring.

Each field is a factory for one part. The defaults import the reference part only when they are called,
so the package still imports, and runs with a replacement, when any one part's file is missing.
The engine does not know where a replacement comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.interfaces import (
    AttentionBackend,
    BlockManager,
    Detokenizer,
    Drafter,
    Model,
    Sampler,
    Scheduler,
    Tokenizer,
    Verifier,
)
from nano_qwen3_serving.sampling_params import SamplingParams


def default_block_manager(config: EngineConfig) -> BlockManager:
    """The reference `BlockManager`."""
    from nano_qwen3_serving.scheduling.block_manager import BlockManager

    cache = config.cache
    return BlockManager(cache.num_blocks, cache.block_size, cache.enable_prefix_caching)


def default_scheduler(config: EngineConfig, block_manager: BlockManager) -> Scheduler:
    """The reference `Scheduler`."""
    from nano_qwen3_serving.scheduling.scheduler import Scheduler

    return Scheduler(config.scheduler, block_manager)


def default_attention(config: EngineConfig) -> AttentionBackend:
    """Paged attention in plain torch, on any device; with compiled operators where the configuration says so."""
    if config.cpu_kernels:
        from nano_qwen3_serving.attention.cpu_paged import CPUPagedAttention
        from nano_qwen3_serving.kernels.build import cpu_kernels

        return CPUPagedAttention(cpu_kernels(), config.model, config.cache.block_size, config.dtype, config.device)
    from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention

    return TorchPagedAttention(
        config.model, config.cache.block_size, config.dtype, config.device, config.batch_invariant)


def default_model(config: EngineConfig, attention: AttentionBackend) -> Model:
    """Qwen3 with the checkpoint's weights."""
    from nano_qwen3_serving.model.loader import load_model

    return load_model(config, attention)


def default_sampler(config: EngineConfig) -> Sampler:
    """The reference `Sampler`."""
    from nano_qwen3_serving.execution.sampler import Sampler
    from nano_qwen3_serving.model.operators import operators_for

    return Sampler(config.max_logprobs, operators_for(config))


def default_verifier(config: EngineConfig, sampler: Sampler) -> Verifier:
    """Samples each position as if there were no drafts."""
    from nano_qwen3_serving.execution.verifier import SamplingVerifier

    return SamplingVerifier(sampler)


def no_drafter(config: EngineConfig) -> Drafter | None:
    """Nobody guesses: a step makes one token a request."""
    return None


def default_detokenizer(tokenizer: Tokenizer, params: SamplingParams) -> Detokenizer:
    """The reference `Detokenizer`."""
    from nano_qwen3_serving.text.detokenizer import make_detokenizer

    return make_detokenizer(tokenizer, params)


def default_tokenizer(config: EngineConfig) -> Any:
    """The checkpoint's own tokenizer and chat template."""
    from nano_qwen3_serving.text.tokenizer import Tokenizer

    return Tokenizer.from_folder(config.tokenizer_path)


@dataclass(frozen=True)
class Components:
    """A factory per part; replace one with `Components(scheduler=MyScheduler…)` or `.using(...)`."""

    block_manager: Callable[[EngineConfig], BlockManager] = default_block_manager
    scheduler: Callable[[EngineConfig, BlockManager], Scheduler] = default_scheduler
    attention: Callable[[EngineConfig], AttentionBackend] = default_attention
    model: Callable[[EngineConfig, AttentionBackend], Model] = default_model
    sampler: Callable[[EngineConfig], Sampler] = default_sampler
    verifier: Callable[[EngineConfig, Sampler], Verifier] = default_verifier
    drafter: Callable[[EngineConfig], Drafter | None] = no_drafter
    detokenizer: Callable[[Tokenizer, SamplingParams], Detokenizer] = default_detokenizer
    tokenizer: Callable[[EngineConfig], Any] = default_tokenizer

    def using(self, **parts: Callable[..., Any]) -> Components:
        """A copy with some parts replaced."""
        return replace(self, **parts)
