"""What a step costs: the roofline of Lab 05, for a step's chunks.

Knows bytes, operations and seconds; knows nothing of requests or clocks, but for `calibrated`, which measures this machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from nano_qwen3_serving.ceilings import matmul_rate, read_bandwidth
from nano_qwen3_serving.model.checkpoint import find_checkpoint

BYTES_STORED = 2
"""Of a parameter in the course's checkpoint, which is bfloat16."""
READ_BYTES = 1 << 28
"""How much is read to measure this machine's bandwidth."""


@dataclass(frozen=True)
class StepCosts:
    """A model on a processor.

    Attributes:
        weight_bytes: read once a step.
        kv_bytes: read for each key that a chunk attends to, once a chunk.
        token_flops: operations for each token, without attention.
        pair_flops: operations of attention for each pair of a token and a key before it.
        bandwidth: bytes per second.
        peak: operations per second.
        fixed: seconds of a step that nothing of this explains: launches, scheduling, sampling.
    """

    weight_bytes: float
    kv_bytes: float
    token_flops: float
    pair_flops: float
    bandwidth: float
    peak: float
    fixed: float

    def seconds(self, chunks: Iterable[tuple[int, int]]) -> float:
        """Seconds of a step that computes chunks of (tokens, tokens computed before them)."""
        tokens = keys = pairs = 0
        for size, start in chunks:
            tokens += size
            keys += start + size
            pairs += size * start + size * (size + 1) // 2
        read = self.weight_bytes + self.kv_bytes * keys
        return max(read / self.bandwidth, (self.token_flops * tokens + self.pair_flops * pairs) / self.peak) + self.fixed


def costs_of(parameters: float, layers: int, heads: int, kv_heads: int, head_dim: int, bandwidth: float, peak: float,
             fixed: float, bytes_each: int = 2) -> StepCosts:
    """The costs of a Qwen3 of this shape, with numbers of `bytes_each` bytes."""
    return StepCosts(
        weight_bytes=bytes_each * parameters, kv_bytes=2.0 * layers * kv_heads * head_dim * bytes_each,
        token_flops=2 * parameters, pair_flops=4.0 * layers * heads * head_dim, bandwidth=bandwidth, peak=peak, fixed=fixed)


PUBLISHED = costs_of(8.2e9, 36, 32, 8, 128, bandwidth=3.35e12, peak=989e12, fixed=0.001)
"""Qwen3-8B (its model card's shape) in bfloat16 on an H100 SXM (its data sheet's rates), and a millisecond a step.

Grades come from these, so that they are the same on every machine."""


def calibrated() -> StepCosts:
    """The course's model in float32 on this machine, whose rates are measured: others in each run."""
    folder = find_checkpoint("course")
    shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    parameters = (folder / "model.safetensors").stat().st_size / BYTES_STORED
    return costs_of(
        parameters, shape["num_hidden_layers"], shape["num_attention_heads"], shape["num_key_value_heads"], shape["head_dim"],
        read_bandwidth(READ_BYTES), matmul_rate(torch.float32, 1024), fixed=PUBLISHED.fixed, bytes_each=4)
