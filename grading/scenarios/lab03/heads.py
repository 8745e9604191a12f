"""Lab 03, TODO 3: heads of queries, keys and values."""

import random
from typing import Any

import torch

from grading.judge.checks import check, expect, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab03.compare import BF16, HEADS, NETWORK, asked, near
from grading.scenarios.lab03.network import Network, Noise, config_of, filled, random_weights, shapes
from grading.scenarios.lab03.norm import row_of_five
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.testing.checkpoints import attention_shapes

OF_HEADS = "TODO 3: Heads of queries, keys and values"


def attention_layer(
    lab: Remote, rng: random.Random, config: ModelConfig, dtype: torch.dtype = torch.float32
) -> tuple[Remote, Network, Noise]:
    """A layer without a core, and the same by its formulas."""
    noise = Noise(rng)
    weights = {name: weight.to(dtype) for name, weight in random_weights(attention_shapes(config), noise).items()}
    return filled(lab.Attention(config, 0, None), weights), Network(config, weights), noise


def three(got: Any) -> tuple[Any, Any, Any]:
    """q, k and v; there must be three."""
    expect(isinstance(got, tuple | list) and len(got) == 3, f"heads() returned {shown(got)}; expected q, k and v")
    return tuple(got)


@check(todo=3, points=4, section=OF_HEADS, concept="projected, cut, normalised, turned")
def q_and_k_follow_the_formula_head_by_head(lab: Remote, rng: random.Random) -> None:
    for config in shapes(rng):
        layer, truth, noise = attention_layer(lab, rng, config)
        x, far = noise(7, config.hidden_size), rng.randrange(50, 150)
        places = torch.tensor([0, 1, 2, far, far + 1, 3, 3])
        got = three(asked(lab, layer.heads, "x positions", x, places))
        of = f"{config.num_attention_heads} heads, {config.num_key_value_heads} KV heads, positions {places.tolist()}"
        for name, mine, right in zip("qk", got, truth.heads(x, places), strict=False):
            near(mine, right, f"{name}, {of}", NETWORK, axes=HEADS)


@check(todo=3, points=2, section=OF_HEADS, concept="what is normalised together")
def each_head_is_normalised_by_itself(lab: Remote, rng: random.Random) -> None:
    config = config_of(rng, hidden_size=8, num_attention_heads=2, num_key_value_heads=2, head_dim=4)
    weights = {f"{name}_proj.weight": torch.eye(8) for name in "qkv"}  # each is x itself
    weights |= {"q_norm.weight": torch.ones(4), "k_norm.weight": torch.full((4,), 2.0)}
    layer = filled(lab.Attention(config, 0, None), weights)
    constant, row = rng.randrange(2, 9), row_of_five(rng)
    q, k, _ = three(layer.heads(torch.tensor([[*row, *[constant] * 4]], dtype=torch.float32), torch.tensor([0])))
    truth = torch.tensor([[[number / 5 for number in row], [1.0] * 4]])
    what = f"at position 0, the heads {row} and {[constant] * 4}, normalised"
    near(q, truth, f"q: {what}", axes=HEADS)
    near(k, 2 * truth, f"k: {what}, with a weight of 2", axes=HEADS)


@check(todo=3, points=3, section=OF_HEADS, concept="what happens to v")
def values_are_projected_and_nothing_else(lab: Remote, rng: random.Random) -> None:
    for config in shapes(rng):
        layer, truth, noise = attention_layer(lab, rng, config)
        x, places = noise(3, config.hidden_size), torch.tensor([rng.randrange(5, 50) for _ in range(3)])
        for given, where, what in ((x, places, "v"), (2 * x, 0 * places, "v of 2x, at position 0")):
            right = truth.cut(given, "v_proj", config.num_key_value_heads)
            near(three(layer.heads(given, where))[2], right, f"{what}, projected and cut into heads", NETWORK, axes=HEADS)


@check(todo=3, points=2, section=OF_HEADS, concept="a token alone and in company", hidden=True)
def a_token_has_the_same_heads_alone_and_in_any_company(lab: Remote, rng: random.Random) -> None:
    config = rng.choice(shapes(rng))
    layer, truth, noise = attention_layer(lab, rng, config)
    x, places = noise(5, config.hidden_size), torch.tensor([rng.randrange(60) for _ in range(5)])
    right = truth.heads(x, places)
    for rows in ([0], [1], [4], rng.sample(range(5), 3)):
        for name, mine, want in zip("qkv", three(layer.heads(x[rows], places[rows])), right, strict=True):
            near(mine, want[rows], f"{name} of the rows {rows} of 5", NETWORK, axes=HEADS)


@check(todo=3, points=3, section=OF_HEADS, concept="the dtype of what came in", hidden=True)
def bfloat16_stays_bfloat16(lab: Remote, rng: random.Random) -> None:
    config = config_of(rng, head_dim=20, attention_bias=True)
    layer, truth, noise = attention_layer(lab, rng, config, torch.bfloat16)
    x, places = noise(4, config.hidden_size).bfloat16(), torch.arange(4)
    # roundings: of the projection, of its norm twice, of the turn three times, and one more of the norm's scale. Each is
    # 2**-8 of a number that is at most as large as the head's pair, so of sqrt(2) times the largest
    for name, mine, right in zip("qkv", three(layer.heads(x, places)), truth.heads(x, places), strict=True):
        near(mine, right, f"{name} in bfloat16", 7 * 1.42 * BF16, torch.bfloat16, axes=HEADS)
