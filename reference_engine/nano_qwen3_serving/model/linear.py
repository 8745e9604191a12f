"""Matrices: products with weights that were rearranged once, at load.

Knows nothing of the network. On CPU a weight can be packed into the order in which oneDNN reads it,
which at few rows reaches the memory bandwidth where `F.linear` reaches a third of it. The packing
operators are private to torch; this is the only file that names them, it checks for them, and
`F.linear` is what happens otherwise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def can_pack(weight: Tensor) -> bool:
    """Whether this torch, processor and dtype have packed products."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    mkldnn = torch.ops.mkldnn
    if not (hasattr(mkldnn, "_reorder_linear_weight") and hasattr(mkldnn, "_linear_pointwise")):
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return False  # float32 and float16 products are no faster packed


class Linear(nn.Module):
    """y = x @ weight.T + bias, with the weight packed by `finalize_weights` where that is faster.

    The parameters have Hugging Face's names, `weight` [out_features, in_features] and `bias`.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight: nn.Parameter | None = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
        self._packed: Tensor | None = None

    @classmethod
    def fused(cls, parts: list[Linear]) -> Linear:
        """One matrix whose outputs are the parts' outputs, one after the other; frees the parts'."""
        with torch.device("meta"):
            fused = cls(parts[0].in_features, sum(p.out_features for p in parts), parts[0].bias is not None)
        fused.weight = nn.Parameter(torch.cat([p.weight for p in parts]), requires_grad=False)
        if parts[0].bias is not None:
            fused.bias = nn.Parameter(torch.cat([p.bias for p in parts]), requires_grad=False)
        for part in parts:
            part.weight = part.bias = None
        return fused

    def finalize_weights(self) -> None:
        """Packs the weight and frees the plain one, if packed products exist here."""
        if self.weight is not None and can_pack(self.weight):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.data)
            self.weight = None

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, in_features] → [num_tokens, out_features]"""
        if self._packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)
