"""What this machine's ceilings allow an engine: the roofline (Williams et al., 2009)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nano_qwen3_serving.ceilings import matmul_rate, read_bandwidth

READ_BYTES = 512 << 20
PRODUCT = 1024


@dataclass(frozen=True)
class Ceilings:
    """The processor's ceilings, with the threads that torch uses now."""

    bytes_per_second: float
    flops_per_second: float
    """float32."""

    def step_seconds(self, weight_bytes: float, flops: float) -> float:
        """The least time of a step that reads the weights once and does this many operations."""
        return max(weight_bytes / self.bytes_per_second, flops / self.flops_per_second)


def measure() -> Ceilings:
    """Reads half a GiB, multiplies two matrices; the best of a few times each. A second or two."""
    return Ceilings(read_bandwidth(READ_BYTES), matmul_rate(torch.float32, PRODUCT))
