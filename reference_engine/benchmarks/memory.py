"""Memory of loading a checkpoint, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

POOL_BYTES = 1 << 28

CHILD = """
import json, resource, sys, torch

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

before = resident()
from nano_qwen3_serving import LLM
llm = LLM(sys.argv[1], dtype="bfloat16", kv_cache_memory_bytes=int(sys.argv[2]))
held = resident() - before
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
print(json.dumps([held, peak]))
"""


def memory_of_loading(model: Path) -> dict[str, float]:
    """Bytes held and peak, less those after `import torch`; ratios to the checkpoint plus the KV pool.

    Linux only: it reads /proc.
    """
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(model), str(POOL_BYTES)], capture_output=True, text=True, check=True)
    held, peak = json.loads(done.stdout.splitlines()[-1])
    checkpoint = sum(f.stat().st_size for f in model.glob("*.safetensors"))
    return {
        "checkpoint_bytes": checkpoint, "kv_pool_bytes": POOL_BYTES, "held_bytes": held, "peak_bytes": peak,
        "(held - pool) / checkpoint": (held - POOL_BYTES) / checkpoint,
        "(peak - pool) / checkpoint": (peak - POOL_BYTES) / checkpoint,
    }
