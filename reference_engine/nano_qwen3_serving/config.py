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
    generation_defaults: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, raw: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelConfig:
        """From the parsed `config.json` and, if there is one, `generation_config.json`.

        Raises:
            ModelLoadError: another architecture, a missing field, or a feature that would change
                the results and is not implemented.
        """
        refuse_other_architectures(raw)
        generation = generation or {}
        eos = generation.get("eos_token_id", raw.get("eos_token_id"))
        try:
            heads = int(raw["num_attention_heads"])
            return cls(
                vocab_size=int(raw["vocab_size"]),
                hidden_size=int(raw["hidden_size"]),
                intermediate_size=int(raw["intermediate_size"]),
                num_hidden_layers=int(raw["num_hidden_layers"]),
                num_attention_heads=heads,
                num_key_value_heads=int(raw.get("num_key_value_heads") or heads),
                head_dim=int(raw.get("head_dim") or raw["hidden_size"] // heads),
                max_position_embeddings=int(raw["max_position_embeddings"]),
                rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
                rope_theta=rope_theta(raw),
                tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
                attention_bias=bool(raw.get("attention_bias", False)),
                eos_token_ids=as_ids(eos),
                generation_defaults={
                    k: generation[k] for k in ("temperature", "top_p", "top_k") if generation.get(k) is not None
                },
            )
        except KeyError as missing:
            raise ModelLoadError(
                f"config.json has no field {missing.args[0]!r}; is this a complete {ARCHITECTURE} checkpoint?"
            ) from None


def refuse_other_architectures(raw: dict[str, Any]) -> None:
    """Raises a `ModelLoadError` for anything that this engine would compute wrongly."""
    architectures = raw.get("architectures") or []
    if architectures != [ARCHITECTURE]:
        raise ModelLoadError(
            f"config.json names the architecture {architectures or raw.get('model_type')!r}; this engine "
            f"serves {ARCHITECTURE} (dense Qwen3, such as Qwen/Qwen3-0.6B)"
        )
    scaling = raw.get("rope_scaling") or {}
    kind = (raw.get("rope_parameters") or scaling or {}).get("rope_type", scaling.get("type", "default"))
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
    inside = raw.get("rope_parameters") or {}
    return float(inside.get("rope_theta", raw.get("rope_theta", 10_000.0)))


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
