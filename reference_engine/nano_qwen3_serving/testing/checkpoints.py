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
from safetensors.torch import save_file
from torch import Tensor

from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.model.checkpoint import BUNDLED

LOGITS_SCALE = 4.0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

ParameterShapes = dict[str, tuple[int, ...]]
"""Name → shape of each parameter; a matrix is [outputs, inputs]."""


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
    folder: Path, shape: Shape | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """A complete checkpoint in `folder`, with the course's tokenizer; returns `folder`.

    The tokenizer knows 2,048 tokens: with a smaller vocabulary, give prompts as token ids.

    Args:
        folder: made if it is not there.
        shape: of the network.
        seed: the same weights for the same seed and shape.
        dtype: of the stored tensors.
    """
    shape = shape or Shape()
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: random_weight(name, size, generator).to(dtype) for name, size in parameter_shapes(shape).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config: dict[str, Any] = asdict(shape)
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    config |= {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
        "dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for file in TOKENIZER_FILES:
        shutil.copy(BUNDLED / "course" / file, folder)
    return folder


def parameter_shapes(shape: Shape | ModelConfig) -> ParameterShapes:
    """Of every parameter of the network; names and order are transformers'."""
    vocabulary = (shape.vocab_size, shape.hidden_size)
    shapes: ParameterShapes = {"model.embed_tokens.weight": vocabulary}
    for i in range(shape.num_hidden_layers):
        shapes |= layer_shapes(shape, f"model.layers.{i}.")
    shapes["model.norm.weight"] = (shape.hidden_size,)
    return shapes if shape.tie_word_embeddings else shapes | {"lm_head.weight": vocabulary}


def layer_shapes(shape: Shape | ModelConfig, part: str = "") -> ParameterShapes:
    """Of one layer's parameters, their names after `part`."""
    norms = {f"{part}{name}.weight": (shape.hidden_size,) for name in ("input_layernorm", "post_attention_layernorm")}
    return attention_shapes(shape, f"{part}self_attn.") | mlp_shapes(shape, f"{part}mlp.") | norms


def attention_shapes(shape: Shape | ModelConfig, part: str = "") -> ParameterShapes:
    """Of one attention layer's parameters, their names after `part`."""
    hidden, dim = shape.hidden_size, shape.head_dim
    q, kv = shape.num_attention_heads * dim, shape.num_key_value_heads * dim
    shapes: ParameterShapes = {}
    for name, size in {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q)}.items():
        shapes[f"{part}{name}.weight"] = size
        if shape.attention_bias:
            shapes[f"{part}{name}.bias"] = size[:1]
    return shapes | {f"{part}{name}.weight": (dim,) for name in ("q_norm", "k_norm")}


def mlp_shapes(shape: Shape | ModelConfig, part: str = "") -> ParameterShapes:
    """Of one feed-forward network's parameters, their names after `part`."""
    up, down = (shape.intermediate_size, shape.hidden_size), (shape.hidden_size, shape.intermediate_size)
    return {f"{part}gate_proj.weight": up, f"{part}up_proj.weight": up, f"{part}down_proj.weight": down}


def random_weight(name: str, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Values for the parameter `name`: spread so that what it computes keeps a scale of about 1."""
    noise = torch.randn(size, generator=generator)
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return 1.5 + 0.3 * noise  # queries and keys long enough for attention to choose
    if name.endswith("norm.weight"):
        return 1.0 + 0.2 * noise
    if name.endswith("bias"):
        return 0.5 * noise
    scale = LOGITS_SCALE if name.endswith(("embed_tokens.weight", "lm_head.weight")) else 1.5
    return scale * noise / size[-1] ** 0.5
