"""Qwen3: embedding, decoder layers, norm, head.

Knows the order of the layers; knows nothing of where weights come from. Parameter names are those
of Hugging Face's checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.interfaces import AttentionBackend, AttentionMetadata
from nano_qwen3_serving.model.layers import DecoderLayer, RMSNorm, RotaryEmbedding
from nano_qwen3_serving.model.linear import Linear
from nano_qwen3_serving.model.operators import Operators


class Embedding(nn.Module):
    """One row of `weight` [vocab_size, hidden_size] per token."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size), requires_grad=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        """[num_tokens] → [num_tokens, hidden_size]"""
        return F.embedding(token_ids, self.weight)


class Qwen3Model(nn.Module):
    """Token ids to hidden states."""

    def __init__(self, config: ModelConfig, core: AttentionBackend, max_positions: int, ops: Operators) -> None:
        super().__init__()
        self.rotary = RotaryEmbedding(config.head_dim, config.rope_theta, max_positions, config.rope_scaling)
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, self.rotary, core, ops) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops)

    def forward(self, token_ids: Tensor, positions: Tensor, cache: list[Any], metadata: AttentionMetadata) -> Tensor:
        """[num_tokens] → [num_tokens, hidden]"""
        hidden = self.embed_tokens(token_ids)
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            hidden = layer(hidden, positions, layer_cache, metadata)
        return self.norm(hidden)


class Qwen3ForCausalLM(nn.Module):
    """The whole network.

    Args:
        config: its shape.
        core: attention over the KV cache.
        max_positions: length of the rotary tables; no position may reach it.
        ops: the operators between the matrices.
    """

    def __init__(self, config: ModelConfig, core: AttentionBackend, max_positions: int, ops: Operators) -> None:
        super().__init__()
        self.config = config
        self.model = Qwen3Model(config, core, max_positions, ops)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, False, ops)

    def forward(self, token_ids: Tensor, positions: Tensor, cache: list[Any], metadata: AttentionMetadata) -> Tensor:
        """Hidden states of all tokens, [num_tokens, hidden]; writes their keys and values."""
        return self.model(token_ids, positions, cache, metadata)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden] → [rows, vocab_size], only for the rows whose logits are wanted."""
        return self.lm_head(hidden)
