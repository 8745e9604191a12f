"""Which models the compiled operators take."""

from __future__ import annotations

import torch

from nano_qwen3_serving.config import ModelConfig

HEAD_DIMS = (32, 64, 128)
LONGEST_GROUP = 16  # query heads of one KV head
LANES = 16  # numbers that are computed at once


def misfit(model: ModelConfig, dtype: torch.dtype) -> str | None:
    """Why the compiled operators cannot serve this model; None if they can."""
    group = model.num_attention_heads // model.num_key_value_heads
    if dtype not in (torch.float32, torch.bfloat16):
        return f"dtype {dtype} is neither float32 nor bfloat16"
    if model.head_dim not in HEAD_DIMS:
        return f"head_dim {model.head_dim} is none of {', '.join(map(str, HEAD_DIMS))}"
    if group > LONGEST_GROUP:
        return f"{group} query heads share a KV head, more than {LONGEST_GROUP}"
    if model.hidden_size % LANES or model.intermediate_size % LANES:
        return f"hidden_size {model.hidden_size} or intermediate_size {model.intermediate_size} is no multiple of {LANES}"
    return None
