"""Matrices: a weight, and the product with it that is the fastest here.

Knows parameters; knows nothing of the network, nor of how products are computed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nano_qwen3_serving.model.operators import Operators


class Linear(nn.Module):
    """y = x @ weight.T + bias, with the weight rearranged by `finalize_weights` where that is faster.

    The parameters have Hugging Face's names, `weight` [out_features, in_features] and `bias`.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, ops: Operators) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight: nn.Parameter | None = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
        self._ops = ops
        self._product = None

    @classmethod
    def fused(cls, parts: list[Linear]) -> Linear:
        """One matrix whose outputs are the parts' outputs, one after the other; frees the parts'."""
        first = parts[0]
        with torch.device("meta"):
            fused = cls(first.in_features, sum(p.out_features for p in parts), first.bias is not None, first._ops)
        fused.weight = nn.Parameter(torch.cat([p.weight for p in parts]), requires_grad=False)
        if first.bias is not None:
            fused.bias = nn.Parameter(torch.cat([p.bias for p in parts]), requires_grad=False)
        for part in parts:
            part.weight = part.bias = None
        return fused

    def finalize_weights(self) -> None:
        """Rearranges the weight and frees the plain one, if there is a faster product here."""
        if self.weight is None:
            return
        self._product = self._ops.product_with(self.weight.data)
        if self._product is not None:
            self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, in_features] → [num_tokens, out_features]"""
        if self._product is not None:
            return self._product(x, self.bias)
        return F.linear(x, self.weight, self.bias)
