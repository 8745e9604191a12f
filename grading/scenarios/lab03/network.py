"""Qwen3 by its formulas, in any dtype, and random weights for it.

Written for being right at a glance: nothing is fused, and nothing of it is a submission's or a solution's.
"""

import random
from typing import Any

import torch
from torch import Tensor

from grading.judge.checks import kept
from grading.sandbox.worker.peer import Remote
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.testing.checkpoints import ParameterShapes, parameter_shapes, random_weight


class Noise:
    """Normal random numbers, the same for the same rng."""

    def __init__(self, rng: random.Random) -> None:
        self.generator = torch.Generator().manual_seed(rng.randrange(2**60))

    def __call__(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator)

    def tokens(self, length: int, config: ModelConfig) -> Tensor:
        """Token ids of the network's vocabulary."""
        return torch.randint(config.vocab_size, (length,), generator=self.generator)


# The network by its formulas


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm, at least in float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide / torch.sqrt((wide * wide).mean(dim=-1, keepdim=True) + eps) * weight.to(wide.dtype)).to(x.dtype)


def angles_of(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """[num_tokens, head_dim / 2], float64"""
    rows = [[place * theta ** (-2 * i / head_dim) for i in range(head_dim // 2)] for place in positions.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


def turn(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Pairs as complex numbers: turning is multiplying."""
    first, second = x.double().chunk(2, dim=-1)
    angles = angles_of(positions, x.shape[-1], theta)[:, None]
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In float64, one query after the other."""
    group, before = q.shape[1] // k.shape[1], len(k) - len(q)
    keys, values = (tensor.double()[:, [head // group for head in range(q.shape[1])]] for tensor in (k, v))
    out = torch.empty(q.shape, dtype=torch.float64)
    for token, query in enumerate(q.double()):
        seen = before + token + 1
        scores = (keys[:seen] * query).sum(dim=-1) / q.shape[2] ** 0.5  # [seen, heads]
        out[token] = (torch.softmax(scores, dim=0)[:, :, None] * values[:seen]).sum(dim=0)
    return out.to(q.dtype)


class Network:
    """Qwen3, or a part of it, with these weights, computed in one dtype.

    Args:
        weights: name → tensor, named from the part on: `q_proj.weight` of an attention layer.
    """

    def __init__(self, config: ModelConfig, weights: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> None:
        self.config, self.dtype = config, dtype
        self.weights = {name: weight.to(dtype) for name, weight in weights.items()}

    def normalised(self, x: Tensor, name: str) -> Tensor:
        """x through the norm of this name."""
        return norm(x.to(self.dtype), self.weights[f"{name}.weight"], self.config.rms_norm_eps)

    def product(self, x: Tensor, name: str) -> Tensor:
        """x times the matrix of this name, plus its bias if it has one."""
        out = x.to(self.dtype) @ self.weights[f"{name}.weight"].T
        return out + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else out

    def cut(self, x: Tensor, name: str, count: int) -> Tensor:
        """A product, head by head."""
        flat, dim = self.product(x, name), self.config.head_dim
        return torch.stack([flat[:, head * dim : (head + 1) * dim] for head in range(count)], dim=1)

    def heads(self, x: Tensor, positions: Tensor, part: str = "") -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v"""
        theta, count, kv_count = self.config.rope_theta, self.config.num_attention_heads, self.config.num_key_value_heads
        q = turn(self.normalised(self.cut(x, f"{part}q_proj", count), f"{part}q_norm"), positions, theta)
        k = turn(self.normalised(self.cut(x, f"{part}k_proj", kv_count), f"{part}k_norm"), positions, theta)
        return q, k, self.cut(x, f"{part}v_proj", kv_count)

    def attend(self, x: Tensor, positions: Tensor, part: str = "") -> Tensor:
        """The attention layer, over one request from its beginning."""
        return self.product(attention(*self.heads(x, positions, part)).flatten(1), f"{part}o_proj")

    def mlp(self, x: Tensor, part: str = "") -> Tensor:
        """The feed-forward network: SwiGLU."""
        gate = self.product(x, f"{part}gate_proj")
        return self.product(gate / (1 + torch.exp(-gate)) * self.product(x, f"{part}up_proj"), f"{part}down_proj")

    def layer(self, x: Tensor, positions: Tensor, part: str = "") -> Tensor:
        """A decoder layer, over one request from its beginning."""
        h = x.to(self.dtype) + self.attend(self.normalised(x, f"{part}input_layernorm"), positions, f"{part}self_attn.")
        return h + self.mlp(self.normalised(h, f"{part}post_attention_layernorm"), f"{part}mlp.")

    def logits_of(self, hidden: Tensor) -> Tensor:
        """The final norm, then the head."""
        return self.product(self.normalised(hidden, "model.norm"), "lm_head")

    def logits(self, token_ids: Tensor, first: int = 0) -> Tensor:
        """After every token of one request, [num_tokens, vocab_size]; it begins at the position `first`."""
        x = self.weights["model.embed_tokens.weight"][token_ids]
        for i in range(self.config.num_hidden_layers):
            x = self.layer(x, torch.arange(first, first + len(token_ids)), f"model.layers.{i}.")
        return self.logits_of(x)


# Weights

def network_shapes(config: ModelConfig) -> ParameterShapes:
    """Of all parameters, a head of its own among them, whether or not the configuration ties it to the embedding."""
    return parameter_shapes(config) | {"lm_head.weight": (config.vocab_size, config.hidden_size)}


def random_weights(sizes: ParameterShapes, noise: Noise) -> dict[str, Tensor]:
    """None of them special: they forgive nothing."""
    return {name: random_weight(name, size, noise.generator) for name, size in sizes.items()}


def in_bfloat16(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """All of them rounded."""
    return {name: weight.bfloat16() for name, weight in weights.items()}


def filled(module: Remote, weights: dict[str, Tensor]) -> Remote:
    """The module with these weights, as a loader fills it, and without gradients."""
    for name, weight in weights.items():
        kept(module.get_parameter, name).data = weight
    module.requires_grad_(False)
    return module


def config_of(rng: random.Random, layers: int = 1, **facts: Any) -> ModelConfig:
    """A small shape; head_dim * heads is not hidden_size."""
    usual = {
        "vocab_size": rng.randrange(90, 130), "hidden_size": rng.choice([44, 52, 60]), "num_hidden_layers": layers,
        "intermediate_size": rng.randrange(50, 100), "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 512, "rope_theta": rng.choice([500.0, 1e4, 1e6]), "tie_word_embeddings": False,
    }
    return ModelConfig(**{**usual, **facts})


def shapes(rng: random.Random, layers: int = 1) -> list[ModelConfig]:
    """One, two and four query heads to a KV head."""
    alone = rng.choice([3, 4])
    return [
        config_of(rng, layers, num_attention_heads=alone, num_key_value_heads=alone, head_dim=rng.choice([8, 10])),
        config_of(rng, layers, head_dim=rng.choice([18, 20, 22]), attention_bias=True),
        config_of(rng, layers, num_attention_heads=8, head_dim=12, rms_norm_eps=0.03),
    ]
