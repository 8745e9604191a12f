"""What a checkpoint is and how the engine is to run it, checked and complete.

Knows the fields of a Qwen3 `config.json`; knows nothing of files or tensors. `EngineArgs` (what a
user writes) becomes `EngineConfig` (what the parts read) in `engine/arg_utils.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nano_qwen3_serving.exceptions import ModelLoadError

ARCHITECTURE = "Qwen3ForCausalLM"
DEFAULT_HEAD_DIM = 128  # of a config.json without one, as in transformers


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Qwen3 network, from the checkpoint's `config.json`.

    Attributes:
        rope_theta: base of the rotary frequencies.
        eos_token_ids: tokens that end a sequence.
        generation_defaults: `temperature`, `top_p`, `top_k` of `generation_config.json`.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    eos_token_ids: tuple[int, ...] = ()
    generation_defaults: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, raw: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelConfig:
        """From the parsed `config.json` and, if there is one, `generation_config.json`.

        Raises:
            ModelLoadError: another architecture, a missing field, or a feature that would change
                the results and is not implemented.
        """
        refuse_other_architectures(raw)
        generation = generation or {}
        heads = positive_int(raw, "num_attention_heads")
        config = cls(
            vocab_size=positive_int(raw, "vocab_size"),
            hidden_size=positive_int(raw, "hidden_size"),
            intermediate_size=positive_int(raw, "intermediate_size"),
            num_hidden_layers=positive_int(raw, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=positive_int(raw, "num_key_value_heads", heads),
            head_dim=positive_int(raw, "head_dim", DEFAULT_HEAD_DIM),
            max_position_embeddings=positive_int(raw, "max_position_embeddings"),
            rms_norm_eps=positive_number(raw, "rms_norm_eps", 1e-6),
            rope_theta=rope_theta(raw),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            attention_bias=bool(raw.get("attention_bias", False)),
            eos_token_ids=as_ids(generation.get("eos_token_id", raw.get("eos_token_id"))),
            generation_defaults={
                k: generation[k] for k in ("temperature", "top_p", "top_k") if generation.get(k) is not None
            },
        )
        if heads % config.num_key_value_heads:
            raise ModelLoadError(
                f"config.json has num_key_value_heads={config.num_key_value_heads}, which does not divide "
                f"num_attention_heads={heads}")
        if config.head_dim % 2:
            raise ModelLoadError(f"config.json has head_dim={config.head_dim}; rotary embeddings need an even one")
        return config


def positive_int(raw: dict[str, Any], name: str, default: int | None = None) -> int:
    """A field of `config.json`; `default`, if there is one, when it is left out or null."""
    value = default if raw.get(name) is None else raw[name]
    if value is None:
        raise ModelLoadError(f"config.json has no field {name!r}; is this a complete {ARCHITECTURE} checkpoint?")
    if type(value) is not int or value < 1:
        raise ModelLoadError(f"config.json has {name}={value!r}; it must be an int of at least 1")
    return value


def positive_number(raw: dict[str, Any], name: str, default: float) -> float:
    """A field of `config.json` that may have a fraction; `default` when it is left out."""
    value = raw.get(name, default)
    if type(value) not in (int, float) or not value > 0:
        raise ModelLoadError(f"config.json has {name}={value!r}; it must be a number above 0")
    return float(value)


def refuse_other_architectures(raw: dict[str, Any]) -> None:
    """Raises a `ModelLoadError` for anything that this engine would compute wrongly."""
    architectures = raw.get("architectures") or []
    if architectures != [ARCHITECTURE]:
        raise ModelLoadError(
            f"config.json names the architecture {architectures or raw.get('model_type')!r}; this engine "
            f"serves {ARCHITECTURE} (dense Qwen3, such as Qwen/Qwen3-0.6B)"
        )
    scaling = section(raw, "rope_scaling")
    kind = (section(raw, "rope_parameters") or scaling).get("rope_type", scaling.get("type", "default"))
    unsupported = {
        "rope_scaling": kind if kind != "default" else None,
        "use_sliding_window": raw.get("use_sliding_window"),
        "quantization_config": raw.get("quantization_config"),
        "hidden_act": raw.get("hidden_act") if raw.get("hidden_act", "silu") != "silu" else None,
    }
    for name, value in unsupported.items():
        if value:
            raise ModelLoadError(f"config.json asks for {name}={value!r}, which is not supported")


def rope_theta(raw: dict[str, Any]) -> float:
    """The rotary base: at the top level in older files, inside `rope_parameters` in newer ones."""
    return positive_number(raw | section(raw, "rope_parameters"), "rope_theta", 10_000.0)


def section(raw: dict[str, Any], name: str) -> dict[str, Any]:
    """An object inside `config.json`; empty if it is left out or null."""
    value = raw.get(name) or {}
    if not isinstance(value, dict):
        raise ModelLoadError(f"config.json has {name}={value!r}; it must be an object")
    return value


def as_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """`eos_token_id` as a tuple: configs write one id, several, or none."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


@dataclass(frozen=True)
class CacheConfig:
    """The KV cache: `num_blocks` blocks of `block_size` tokens, block 0 being the null block."""

    num_blocks: int
    block_size: int = 16
    enable_prefix_caching: bool = True

    @property
    def capacity(self) -> int:
        """Tokens the pool can hold; the null block holds none."""
        return (self.num_blocks - 1) * self.block_size


@dataclass(frozen=True)
class SchedulerConfig:
    """Bounds of one step.

    Attributes:
        max_num_seqs: requests running at once.
        max_num_batched_tokens: tokens computed in one step.
        max_model_len: tokens of one request, prompt and output.
        policy: "fcfs", or "priority" (smaller number first).
        enable_chunked_prefill: a prompt may be computed over several steps.
        long_prefill_token_threshold: a chunk has at most this many tokens; 0 is no such bound.
    """

    max_num_seqs: int = 128
    max_num_batched_tokens: int = 2048
    max_model_len: int = 2048
    policy: str = "fcfs"
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0


@dataclass(frozen=True)
class EngineConfig:
    """Everything the parts of one engine are built from."""

    model_name: str
    model_path: Path
    tokenizer_path: Path
    model: ModelConfig
    cache: CacheConfig
    scheduler: SchedulerConfig
    device: torch.device
    dtype: torch.dtype
    seed: int = 0
    max_logprobs: int = 20
    stream_interval: int = 1
    max_num_queued_reqs: int | None = None
    log_stats: bool = True
    check_invariants: bool = False
    batch_invariant: bool = False
    cpu_kernels: bool = False
