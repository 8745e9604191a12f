"""Matrices: a weight, and the fastest product with it on this machine.

Knows parameters; knows nothing of the network, nor of how products are computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nano_qwen3_serving.model.operators import Operators, Product


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
        self.product: Product | None = None

    @classmethod
    def fused(cls, parts: list[Linear]) -> Linear:
        """One matrix whose outputs are the parts' outputs, one after the other; frees the parts'."""
        first = parts[0]
        with torch.device("meta"):
            fused = cls(first.in_features, sum(p.out_features for p in parts), first.bias is not None, first._ops)
        fused.weight, fused.bias = joined([p.weight for p in parts]), joined([p.bias for p in parts])
        for part in parts:
            part.weight = part.bias = None
        return fused

    def finalize_weights(self) -> None:
        """Rearranges the weight and frees the plain one, if this machine has a faster product."""
        if self.weight is None:
            return
        self.product = self._ops.product_with(self.weight.data)
        if self.product is not None:
            self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, in_features] → [num_tokens, out_features]"""
        if self.product is not None:
            return self.product(x, self.bias)
        weight = self.weight
        assert weight is not None  # only a product frees it, or a fused matrix that took this one's place
        return F.linear(x, weight, self.bias)


def joined(rows: Sequence[nn.Parameter | None]) -> nn.Parameter | None:
    """Parameters concatenated along the first dimension; None if all of them are None."""
    present: list[Tensor] = [p for p in rows if p is not None]
    assert len(present) in (0, len(rows)), "some of the matrices have a bias and some have none"
    return nn.Parameter(torch.cat(present), requires_grad=False) if present else None
