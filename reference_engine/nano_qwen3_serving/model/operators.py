"""The operators of a network, in torch or compiled: the small ones between the matrices, products, whole layers.

Knows numbers; of layers, only whether one has a compiled form. A decode step has few rows, so most of its time goes into
starting operators: in torch, RMSNorm and rotary embedding alone take a dozen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.interfaces import AttentionMetadata
from nano_qwen3_serving.kernels.build import cpu_kernels
from nano_qwen3_serving.model.compiled_layer import CompiledLayer
from nano_qwen3_serving.model.products import CompiledProduct, InvariantProduct, OneDNNProduct

Product = Callable[[Tensor, Tensor | None], Tensor]
"""(x, bias) → x @ weight.T + bias"""
Decode = Callable[[Tensor, Tensor, Any, AttentionMetadata], Tensor]
"""(x, positions, layer_cache, metadata) → what a decoder layer makes of requests that compute one token each"""


class Operators:
    """In plain torch, on any device."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight over the last dimension: […, size] → […, size]."""
        return F.rms_norm(x, weight.shape, weight, eps)

    def norm_and_rotate(
        self, heads: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor, positions: Tensor
    ) -> Tensor:
        """RMSNorm of each head, then the rotary embedding.

        Args:
            heads: [num_tokens, heads, head_dim].
            weight: [head_dim], and `eps`: of the norm.
            cos, sin: tables [max_positions, head_dim].
            positions: [num_tokens].
        """
        x = self.rms_norm(heads, weight, eps)
        first, second = x.chunk(2, dim=-1)
        return x * cos[positions][:, None, :] + torch.cat([-second, first], dim=-1) * sin[positions][:, None, :]

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up: [num_tokens, 2 * size] → [num_tokens, size]."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def argmax(self, x: Tensor) -> Tensor:
        """The first place where each row is largest: [rows, size] → [rows]."""
        return x.max(dim=-1).indices

    def product_with(self, weight: Tensor) -> Product | None:
        """A product with `weight` that is faster than torch's plain one; None if there is none."""
        return OneDNNProduct(weight) if OneDNNProduct.takes(weight) else None

    def decode_layer(self, layer: Any) -> Decode | None:
        """A faster form of a `DecoderLayer` with its weights finalized; None if there is none."""
        return None


class InvariantOperators(Operators):
    """In plain torch; a row has the same bits whatever other rows are in the batch."""

    def product_with(self, weight: Tensor) -> Product | None:
        return InvariantProduct(weight)


class CPUOperators(Operators):
    """Compiled, see `kernels/`: each operator rounds once, at its end."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._kernels.rms_norm(x, weight, eps)

    def norm_and_rotate(
        self, heads: Tensor, weight: Tensor, eps: float, cos: Tensor, sin: Tensor, positions: Tensor
    ) -> Tensor:
        return self._kernels.norm_and_rotate(heads, weight, eps, cos, sin, positions)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        return self._kernels.silu_and_mul(gate_up)

    def argmax(self, x: Tensor) -> Tensor:
        return self._kernels.argmax(x)

    def product_with(self, weight: Tensor) -> Product | None:
        if CompiledProduct.takes(self._kernels, weight):
            return CompiledProduct(self._kernels, weight)
        return super().product_with(weight)

    def decode_layer(self, layer: Any) -> Decode | None:
        return CompiledLayer(self._kernels, layer) if CompiledLayer.takes(self._kernels, layer) else None


def operators_for(config: EngineConfig) -> Operators:
    """The operators that an engine of this configuration uses."""
    if config.batch_invariant:
        return InvariantOperators()
    return CPUOperators(cpu_kernels()) if config.cpu_kernels else Operators()
