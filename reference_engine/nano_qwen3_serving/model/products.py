"""Products with weights that were rearranged once, at load.

Knows matrices; knows nothing of the network. With few rows a product waits for its weights, and a CPU reads
them at the memory's bandwidth only in the order in which they are stored. Two ways: compiled here, see
`kernels/linear.cpp`, or oneDNN's, whose packing operators are private to torch: this is the only file
that names them, and it checks that they exist.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nano_qwen3_serving.config import INVARIANT_ROWS

LANES = 16  # outputs that the compiled product computes at once


class CompiledProduct:
    """x @ weight.T by `kernels/linear.cpp`: a row has the same bits whatever other rows are in the batch."""

    def __init__(self, kernels: Any, weight: Tensor) -> None:
        self._kernels = kernels
        self._outputs = weight.shape[0]
        self.packed = kernels.pack_weight(weight.contiguous())

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """[num_tokens, in_features] → [num_tokens, out_features]"""
        return self._kernels.packed_linear(x if x.stride(-1) == 1 else x.contiguous(), self.packed, bias, self._outputs)

    @staticmethod
    def takes(kernels: Any, weight: Tensor) -> bool:
        """Whether this processor has what the product needs, and the weight's shape fits."""
        outputs, inputs = weight.shape
        fits = outputs % LANES == 0 and inputs % 2 == 0 and weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
        return fits and hasattr(kernels, "packed_linear")


class InvariantProduct:
    """x @ weight.T by torch, always in products of one shape, so that a row has the same bits whatever other rows there are.

    With more rows a library may sum in another order: on some processors from 48 rows on, on others never.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """[num_tokens, in_features] → [num_tokens, out_features]; num_tokens is a multiple of `INVARIANT_ROWS`."""
        return torch.cat([F.linear(rows, self._weight, bias) for rows in x.split(INVARIANT_ROWS)])


class OneDNNProduct:
    """x @ weight.T by oneDNN, with its weight in the order that oneDNN chooses."""

    def __init__(self, weight: Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """[num_tokens, in_features] → [num_tokens, out_features]"""
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, bias, "none", [], "")

    @staticmethod
    def takes(weight: Tensor) -> bool:
        """Whether this torch, processor and dtype have packed products; in float32 and float16 they are no faster."""
        if weight.device.type != "cpu" or weight.dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
            return False
        mkldnn = torch.ops.mkldnn
        if not (hasattr(mkldnn, "_reorder_linear_weight") and hasattr(mkldnn, "_linear_pointwise")):
            return False
        return bool(mkldnn._is_mkldnn_bf16_supported())
