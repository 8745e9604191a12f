"""The layers of Qwen3 over a flat row of tokens: no batch dimension, no padding.

Knows the mathematics; knows nothing of requests, blocks or files. Attention over the KV cache is
injected as `core`, so that these layers serve a paged cache and, in a lab, a dense one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from nano_qwen3_serving.config import ModelConfig, YarnScaling
from nano_qwen3_serving.interfaces import AttentionBackend, AttentionMetadata
from nano_qwen3_serving.model.linear import Linear
from nano_qwen3_serving.model.operators import Decode, Operators


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean square taken in float32 (Zhang and Sennrich, 2019)."""

    def __init__(self, size: int, eps: float, ops: Operators) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps
        self._ops = ops

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, size] → [num_tokens, size]"""
        return self._ops.rms_norm(x, self.weight, self.eps)


class RotaryEmbedding(nn.Module):
    """Pairs of numbers of a head are turned by an angle that grows with the position (Su et al., 2021).

    The pairs are (i, i + head_dim / 2), as in Hugging Face's checkpoints. This module holds the
    tables of cosines and sines; `Operators.norm_and_rotate` does the turning.

    Args:
        head_dim: numbers of a head.
        theta: base of the frequencies.
        max_positions: length of the tables.
        scaling: stretches the angles for longer texts; None: not at all.
    """

    def __init__(self, head_dim: int, theta: float, max_positions: int, scaling: YarnScaling | None = None) -> None:
        super().__init__()
        self.head_dim, self.theta, self.max_positions, self.scaling = head_dim, theta, max_positions, scaling
        self.cos = self.sin = torch.empty(0)

    def finalize_weights(self, device: torch.device, dtype: torch.dtype) -> None:
        """Computes the tables, [max_positions, head_dim], in float32, and keeps them as `dtype`."""
        frequencies = rotary_frequencies(self.head_dim, self.theta, self.scaling)
        angles = torch.outer(torch.arange(self.max_positions).float(), frequencies)
        angles = torch.cat([angles, angles], dim=-1)
        length = 1.0 if self.scaling is None else self.scaling.attention_factor
        self.cos = (angles.cos() * length).to(device, dtype)
        self.sin = (angles.sin() * length).to(device, dtype)


def rotary_frequencies(head_dim: int, theta: float, scaling: YarnScaling | None = None) -> Tensor:
    """Radians that each pair turns from one position to the next, [head_dim / 2] in float32; the first pair is the fastest.

    YaRN asks how often a pair turns round within the original length. The frequencies of 8 pairs, low = 2, high = 5:

        pair            0      1      2      3      4      5      6      7
        turns        more than beta_fast  |  between them  |  fewer than beta_slow
        frequency    kept   kept   kept    2/3     1/3    f / factor  ...      (2/3 and 1/3: the share of the kept one)

    A fast pair tells neighbours apart, and has seen all its angles in training. A slow pair has not turned once: at
    a later position it would come to angles that the network never saw, so all positions are brought closer together.
    """
    positions_per_radian = theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    kept = 1.0 / positions_per_radian
    if scaling is None:
        return kept
    low, high = blended_pairs(head_dim, theta, scaling)
    share = 1 - ((torch.arange(head_dim // 2).float() - low) / (high - low)).clamp(0, 1)
    return 1.0 / (scaling.factor * positions_per_radian) * (1 - share) + kept * share


def blended_pairs(head_dim: int, theta: float, scaling: YarnScaling) -> tuple[float, float]:
    """The last pair that keeps its frequency, and the first that is stretched by the whole factor.

    Pair i turns n times within the original length if length / (2 pi n) = theta ** (2i / head_dim): solved for i.
    """
    low, high = (
        head_dim * math.log(scaling.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (scaling.beta_fast, scaling.beta_slow))
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    return low, high + 0.001 if low == high else high  # never a division by 0


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys.

    Args:
        config: shape of the model.
        rotary: shared by all layers.
        core: writes keys and values into the cache and attends to them.
        ops: the operators between the matrices.
    """

    def __init__(self, config: ModelConfig, rotary: RotaryEmbedding, core: AttentionBackend, ops: Operators) -> None:
        super().__init__()
        hidden, dim, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_attention_heads, config.num_key_value_heads, dim
        self.q_proj = Linear(hidden, self.num_heads * dim, bias, ops)
        self.k_proj = Linear(hidden, self.num_kv_heads * dim, bias, ops)
        self.v_proj = Linear(hidden, self.num_kv_heads * dim, bias, ops)
        self.o_proj = Linear(self.num_heads * dim, hidden, bias, ops)
        self.q_norm = RMSNorm(dim, config.rms_norm_eps, ops)
        self.k_norm = RMSNorm(dim, config.rms_norm_eps, ops)
        self.qkv_proj: Linear  # replaces q, k and v, see `finalize_weights`
        self._rotary = [rotary]  # in a list: shared, so not this module's child
        self.core = core
        self._ops = ops

    def finalize_weights(self) -> None:
        """Makes one matrix of q, k and v: one product instead of three, over the same bytes."""
        self.qkv_proj = Linear.fused([self.q_proj, self.k_proj, self.v_proj])
        del self.q_proj, self.k_proj, self.v_proj
        self.qkv_proj.finalize_weights()
        self.o_proj.finalize_weights()

    def forward(self, x: Tensor, positions: Tensor, layer_cache: Any, metadata: AttentionMetadata) -> Tensor:
        """x [num_tokens, hidden] → [num_tokens, hidden]; writes this step's keys and values."""
        heads = self.qkv_proj(x).view(x.shape[0], -1, self.head_dim)
        q, k, v = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)
        q, k = self._norm_and_rotate(q, self.q_norm, positions), self._norm_and_rotate(k, self.k_norm, positions)
        self.core.write(layer_cache, k, v, metadata.slot_mapping)
        out = self.core.forward(q, layer_cache, metadata)  # [num_tokens, heads, head_dim]
        return self.o_proj(out.reshape(x.shape[0], -1))

    @property
    def rotary(self) -> RotaryEmbedding:
        """Shared by all layers."""
        return self._rotary[0]

    def _norm_and_rotate(self, heads: Tensor, norm: RMSNorm, positions: Tensor) -> Tensor:
        rotary = self.rotary
        return self._ops.norm_and_rotate(heads, norm.weight, norm.eps, rotary.cos, rotary.sin, positions)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)), SwiGLU (Shazeer, 2020)."""

    def __init__(self, config: ModelConfig, ops: Operators) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = Linear(hidden, inner, False, ops)
        self.up_proj = Linear(hidden, inner, False, ops)
        self.down_proj = Linear(inner, hidden, False, ops)
        self.gate_up_proj: Linear  # replaces gate and up, see `finalize_weights`
        self._ops = ops

    def finalize_weights(self) -> None:
        """Makes one matrix of gate and up."""
        self.gate_up_proj = Linear.fused([self.gate_proj, self.up_proj])
        del self.gate_proj, self.up_proj
        self.gate_up_proj.finalize_weights()
        self.down_proj.finalize_weights()

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, hidden] → [num_tokens, hidden]"""
        return self.down_proj(self._ops.silu_and_mul(self.gate_up_proj(x)))


class DecoderLayer(nn.Module):
    """h = x + attention(norm(x)); out = h + mlp(norm(h))"""

    def __init__(self, config: ModelConfig, rotary: RotaryEmbedding, core: AttentionBackend, ops: Operators) -> None:
        super().__init__()
        self.self_attn = Attention(config, rotary, core, ops)
        self.mlp = MLP(config, ops)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, ops)
        self._ops = ops
        self._decode: Decode | None = None

    def finalize_weights(self) -> None:
        """Fuses and packs the matrices, and switches to the layer's compiled form if this machine has one."""
        self.self_attn.finalize_weights()
        self.mlp.finalize_weights()
        self._decode = self._ops.decode_layer(self)

    def forward(self, x: Tensor, positions: Tensor, layer_cache: Any, metadata: AttentionMetadata) -> Tensor:
        """[num_tokens, hidden] → [num_tokens, hidden]"""
        if self._decode is not None and metadata.num_decodes == x.shape[0]:
            return self._decode(x, positions, layer_cache, metadata)
        h = x + self.self_attn(self.input_layernorm(x), positions, layer_cache, metadata)
        return h + self.mlp(self.post_attention_layernorm(h))
