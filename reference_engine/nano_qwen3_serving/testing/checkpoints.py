"""Writes Qwen3 checkpoints with random weights: any shape, in Hugging Face's format.

A trained network can hide mistakes: it has learnt one text, and a wrong layer may still lead to the
right token. Random weights of an odd shape hide nothing. Weights are scaled so that every layer
adds as much as the one before, attention prefers some keys over others, and logits have a standard
deviation of about `LOGITS_SCALE`: a best token exists, and it depends on everything.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nano_qwen3_serving.model.checkpoint import BUNDLED

LOGITS_SCALE = 4.0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Shape:
    """The fields of a Qwen3 `config.json` that a test chooses. `head_dim` is free of the others."""

    vocab_size: int = 512
    hidden_size: int = 64
    intermediate_size: int = 96
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 16
    max_position_embeddings: int = 512
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    attention_bias: bool = False


def write_random_checkpoint(
    folder: Path,
    shape: Shape | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: int | str | None = None,
    rope_theta_at_top_level: bool = False,
) -> Path:
    """A complete checkpoint in `folder`, with the course's tokenizer; returns `folder`.

    The tokenizer knows 2,048 tokens: with a smaller vocabulary, give prompts as token ids.

    Args:
        folder: made if it is not there.
        shape: of the network.
        seed: the same weights for the same seed and shape.
        dtype: of the stored tensors.
        max_shard_size: bytes of a safetensors file, such as "50KB"; None writes a single file.
        rope_theta_at_top_level: as in older files, instead of inside `rope_parameters`.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    fields: dict[str, Any] = asdict(shape or Shape())
    rope_theta = fields.pop("rope_theta")
    config = Qwen3Config(**fields, rope_parameters={"rope_type": "default", "rope_theta": rope_theta})
    network = Qwen3ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(random_weight(name, parameter, generator))
    network.to(dtype)  # type: ignore[arg-type]  # transformers' decorator loses `self`
    shards: dict[str, Any] = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    network.save_pretrained(folder, **shards)
    if rope_theta_at_top_level:
        move_rope_theta_to_top_level(folder / "config.json")
    for file in TOKENIZER_FILES:
        shutil.copy(BUNDLED / "course" / file, folder)
    return folder


def random_weight(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Values for the parameter `name`: spread so that what it computes keeps a scale of about 1."""
    noise = torch.randn(like.shape, generator=generator)
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return 1.5 + 0.3 * noise  # queries and keys long enough for attention to choose
    if name.endswith("norm.weight"):
        return 1.0 + 0.2 * noise
    if name.endswith("bias"):
        return 0.5 * noise
    scale = LOGITS_SCALE if name.endswith(("embed_tokens.weight", "lm_head.weight")) else 1.5
    return scale * noise / like.shape[-1] ** 0.5


def move_rope_theta_to_top_level(path: Path) -> None:
    """Rewrites a `config.json` as transformers wrote it before version 5."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = None
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
