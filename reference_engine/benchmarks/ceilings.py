"""What the machine can do at best: bytes read and products made per second."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from nano_qwen3_serving.model.huge_pages import use_huge_pages

GIB = 1 << 30


def best_of(function: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of `repeats` calls, after one that warms up."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def read_bandwidth() -> float:
    """Bytes per second of summing 1 GiB of float32, in huge pages where there are any."""
    data = torch.ones(GIB // 4)
    use_huge_pages()
    return GIB / best_of(data.sum)


def matmul_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Floating-point operations per second of a square product."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / best_of(lambda: a @ b)


def ceilings() -> dict[str, float]:
    """All of them."""
    return {
        "read_bytes_per_second": read_bandwidth(),
        "matmul_bf16_flops": matmul_rate(torch.bfloat16),
        "matmul_float32_flops": matmul_rate(torch.float32),
    }
