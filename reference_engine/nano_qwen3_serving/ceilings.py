"""What this machine can do at best: bytes read and products made per second, and how large its cache is."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from nano_qwen3_serving.model.huge_pages import use_huge_pages

GIB = 1 << 30
ASSUMED_CACHE = 32 << 20
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def best_of(function: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of `repeats` calls, after one that warms up."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def read_bandwidth(size: int = GIB) -> float:
    """Bytes per second of summing `size` bytes of float32, in huge pages where there are any."""
    data = torch.ones(size // 4)
    use_huge_pages()
    return size / best_of(data.sum)


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


class CacheSize(NamedTuple):
    """Bytes of the last-level cache, and the source of the figure."""

    num_bytes: int
    source: str


def last_level_cache(sysfs: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> CacheSize:
    """The largest cache that the system names: Linux in /sys, macOS by sysctl. Elsewhere 32 MiB is assumed."""
    named = from_sysfs(sysfs) or from_sysctl()
    return named or CacheSize(ASSUMED_CACHE, f"assumed: this system ({platform.system()}) does not say")


def from_sysfs(folder: Path) -> CacheSize | None:
    """The largest size that Linux lists in `folder`; None if it lists none."""
    sizes = []
    for file in sorted(folder.glob("index*/size")):
        with contextlib.suppress(OSError, ValueError):
            text = file.read_text().strip()  # such as 32768K
            sizes.append(CacheSize(int(text.rstrip("KMG")) * UNITS.get(text[-1:], 1), str(file)))
    return max(sizes, default=None)


def from_sysctl() -> CacheSize | None:
    """The largest size that macOS reports; None elsewhere."""
    sizes = []
    for name in ("hw.l3cachesize", "hw.perflevel0.l2cachesize", "hw.l2cachesize"):
        with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
            run = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=True, timeout=5)
            sizes.append(CacheSize(int(run.stdout), f"sysctl {name}"))
    return max(sizes, default=None)
