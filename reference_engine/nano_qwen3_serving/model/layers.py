"""The layers of Qwen3 over a flat row of tokens: no batch dimension, no padding.

Knows the mathematics; knows nothing of requests, blocks or files. Attention over the KV cache is
injected as `core`, so that these layers serve a paged cache and, in a lab, a dense one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.interfaces import AttentionBackend, AttentionMetadata
from nano_qwen3_serving.model.linear import Linear


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean square taken in float32 (Zhang and Sennrich, 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[…, size] → […, size]"""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class RotaryEmbedding(nn.Module):
    """Turns pairs of numbers of a head by an angle that grows with the position (Su et al., 2021).

    The pairs are (i, i + head_dim / 2), as in Hugging Face's checkpoints.
    """

    def __init__(self, head_dim: int, theta: float, max_positions: int) -> None:
        super().__init__()
        self.head_dim, self.theta, self.max_positions = head_dim, theta, max_positions
        self.cos = self.sin = torch.empty(0)

    def finalize_weights(self, device: torch.device, dtype: torch.dtype) -> None:
        """Computes the tables, [max_positions, head_dim], in float32, and keeps them as `dtype`."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.int64).float() / self.head_dim
        frequencies = 1.0 / self.theta**exponents
        angles = torch.outer(torch.arange(self.max_positions).float(), frequencies)
        angles = torch.cat([angles, angles], dim=-1)
        self.cos = angles.cos().to(device, dtype)
        self.sin = angles.sin().to(device, dtype)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """x [num_tokens, heads, head_dim], positions [num_tokens] → turned x."""
        cos, sin = self.cos[positions][:, None, :], self.sin[positions][:, None, :]
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys.

    Args:
        config: shape of the model.
        rotary: shared by all layers.
        core: writes keys and values into the cache and attends to them.
    """

    def __init__(self, config: ModelConfig, rotary: RotaryEmbedding, core: AttentionBackend) -> None:
        super().__init__()
        hidden, dim, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_attention_heads, config.num_key_value_heads, dim
        self.q_proj: Linear | None = Linear(hidden, self.num_heads * dim, bias)
        self.k_proj: Linear | None = Linear(hidden, self.num_kv_heads * dim, bias)
        self.v_proj: Linear | None = Linear(hidden, self.num_kv_heads * dim, bias)
        self.o_proj = Linear(self.num_heads * dim, hidden, bias)
        self.q_norm = RMSNorm(dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(dim, config.rms_norm_eps)
        self.qkv_proj: Linear | None = None
        self._rotary = [rotary]  # in a list: shared, so not this module's child
        self._core = core

    def finalize_weights(self) -> None:
        """Makes one matrix of q, k and v: one product instead of three, over the same bytes."""
        self.qkv_proj = Linear.fused([self.q_proj, self.k_proj, self.v_proj])
        self.q_proj = self.k_proj = self.v_proj = None
        self.qkv_proj.finalize_weights()
        self.o_proj.finalize_weights()

    def forward(self, x: Tensor, positions: Tensor, layer_cache: Any, metadata: AttentionMetadata) -> Tensor:
        """x [num_tokens, hidden] → [num_tokens, hidden]; writes this step's keys and values."""
        heads = self.qkv_proj(x).view(x.shape[0], -1, self.head_dim)
        q, k, v = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        rotary = self._rotary[0]
        q = rotary(self.q_norm(q), positions)
        k = rotary(self.k_norm(k), positions)
        self._core.write(layer_cache, k, v, metadata.slot_mapping)
        out = self._core.forward(q, layer_cache, metadata)  # [num_tokens, heads, head_dim]
        return self.o_proj(out.reshape(x.shape[0], -1))


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)), SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj: Linear | None = Linear(hidden, inner)
        self.up_proj: Linear | None = Linear(hidden, inner)
        self.down_proj = Linear(inner, hidden)
        self.gate_up_proj: Linear | None = None

    def finalize_weights(self) -> None:
        """Makes one matrix of gate and up."""
        self.gate_up_proj = Linear.fused([self.gate_proj, self.up_proj])
        self.gate_proj = self.up_proj = None
        self.gate_up_proj.finalize_weights()
        self.down_proj.finalize_weights()

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, hidden] → [num_tokens, hidden]"""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    """h = x + attention(norm(x)); out = h + mlp(norm(h))"""

    def __init__(self, config: ModelConfig, rotary: RotaryEmbedding, core: AttentionBackend) -> None:
        super().__init__()
        self.self_attn = Attention(config, rotary, core)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, positions: Tensor, layer_cache: Any, metadata: AttentionMetadata) -> Tensor:
        """[num_tokens, hidden] → [num_tokens, hidden]"""
        h = x + self.self_attn(self.input_layernorm(x), positions, layer_cache, metadata)
        return h + self.mlp(self.post_attention_layernorm(h))
