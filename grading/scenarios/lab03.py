"""Lab 03: the network, operator by operator, against its formulas in float64.

How far from the truth may a right answer be? A float32 sum of n products is off by at most n * 2**-24 of
their sizes; n < 300 here, so 2e-5 of the largest number is enough for one operator, and 1e-4 for a
network of a few layers. In bfloat16 the roundings are counted.
"""

import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from grading.checks import check, expect, hold, kept, ours, shown
from grading.scenarios.lab03_compare import (
    BF16,
    COLUMNS,
    FLOAT16,
    FLOAT32,
    HEADS,
    LOGITS,
    NETWORK,
    OPERATOR,
    asked,
    elsewhere,
    expect_tensor,
    near,
    strided,
)
from grading.scenarios.lab03_core import Chunk, Core, Step, tables
from grading.scenarios.lab03_network import (
    Network,
    Noise,
    angles_of,
    attention,
    attention_sizes,
    config_of,
    filled,
    in_bfloat16,
    layer_sizes,
    mlp_sizes,
    network_sizes,
    norm,
    random_weights,
    shapes,
    turn,
)
from grading.worker.peer import Remote
from nano_qwen3_serving.config import ModelConfig

# TODO 1

NORM = "TODO 1: RMSNorm in float32"
OF_FIVE = ([2, 4, 4, 8], [1, 1, 7, 7], [1, 5, 5, 7], [1, 3, 3, 9], [5, 5, 5, 5])
"""Rows whose root mean square is 5."""


def norm_of(lab: Remote, weight: Tensor, eps: float = 1e-6) -> Remote:
    return filled(lab.RMSNorm(len(weight), eps), {"weight": weight})


def row_of_five(dice: random.Random) -> list[int]:
    row = [number * dice.choice([1, 1, -1]) for number in dice.choice(OF_FIVE)]
    return dice.sample(row, 4)


@check(todo=1, points=2, section=NORM, concept="a row and its root mean square")
def a_row_whose_root_mean_square_is_5_is_divided_by_5(lab: Remote, dice: random.Random) -> None:
    times = dice.randrange(2, 20)
    rows = [row_of_five(dice), [0, 0, 0, 0], [times * number for number in row_of_five(dice)]]
    weight = torch.tensor([dice.choice([0.5, 1.0, 1.5, -2.0]) for _ in range(4)])
    x = torch.tensor(rows, dtype=torch.float32)
    truth = x / torch.tensor([[5.0], [1.0], [5.0 * times]]) * weight
    got = asked(lab, norm_of(lab, weight), "x", x)
    near(got, truth, f"RMSNorm of {rows} with the weight {weight.tolist()}", axes=("row", "column"))


@check(todo=1, points=2, section=NORM, concept="every row by itself")
def every_row_follows_the_formula(lab: Remote, dice: random.Random) -> None:
    noise = Noise(dice)
    for leading in ((1,), (5,), (3, 4), (2, 3, 5)):
        size = (*leading, dice.randrange(7, 65))
        x, weight = dice.uniform(1, 30) * noise(*size), 1 + 0.5 * noise(size[-1])
        what, module = f"x / sqrt(mean(x²) + eps) * weight, each row of {list(size)} by itself", norm_of(lab, weight)
        near(asked(lab, module, "x", x), norm(x.double(), weight, 1e-6), what)
        near(module(strided(lab, x, 0, 1)), norm(x.double(), weight, 1e-6), f"{what}, not contiguous")


@check(todo=1, points=3, section=NORM, concept="what is computed in float32")
def the_root_is_computed_in_float32_when_bfloat16_comes_in(lab: Remote, dice: random.Random) -> None:
    noise = Noise(dice)
    size = dice.randrange(48, 80)
    x, weight = noise(512, size).bfloat16(), (1 + 0.5 * noise(size)).bfloat16()
    truth = norm(x.double(), weight, 1e-6)
    # two roundings are allowed, of x / rms and of its product with the weight
    got = asked(lab, norm_of(lab, weight), "x", x)
    near(got, truth, "bfloat16, the root in float32", 2.02 * BF16 * truth.abs(), torch.bfloat16)


@check(todo=1, points=2, section=NORM, concept="what eps is added to", hidden=True)
def eps_counts_in_rows_that_are_as_small(lab: Remote, dice: random.Random) -> None:
    noise = Noise(dice)
    for eps in (1e-6, 0.03, dice.uniform(1e-4, 1e-2)):
        x, weight = eps**0.5 * dice.uniform(0.5, 2) * noise(6, 24), 1 + 0.5 * noise(24)
        near(norm_of(lab, weight, eps)(x), norm(x.double(), weight, eps), f"rows about as small as the root of eps, {eps}")


@check(todo=1, points=1, section=NORM, concept="numbers whose square float16 cannot hold", hidden=True)
def float16_can_hold_the_row_and_not_its_square(lab: Remote, dice: random.Random) -> None:
    x = torch.tensor([[dice.choice([1, -1]) * dice.uniform(290, 4000) for _ in range(12)] for _ in range(3)]).half()
    weight = torch.tensor([dice.uniform(0.5, 2) for _ in range(12)]).half()
    truth = norm(x.double(), weight, 1e-6)
    near(norm_of(lab, weight)(x), truth, "float16, the root in float32", 2.02 * FLOAT16 * truth.abs(), torch.float16)


# TODO 2

ROTARY = "TODO 2: Rotary embedding"


def angles_off(positions: Tensor, head_dim: int, theta: float) -> Tensor:
    """How far angles in float32 may be off, [num_tokens, 1, head_dim]: the power multiplies a rounding by log(theta)."""
    off = (8 + 4 * math.log(theta)) * FLOAT32 * angles_of(positions, head_dim, theta) + 1e-6
    return off.repeat(1, 2)[:, None]


def of_both(x: Tensor) -> Tensor:
    """|a| + |b| of each number's pair: an angle that is off by d moves it by at most d times that."""
    first, second = x.double().abs().chunk(2, dim=-1)
    return (first + second).repeat(1, 1, 2)


def expect_turned(lab: Remote, noise: Noise, positions: list[int], heads: int, head_dim: int, theta: float) -> None:
    rotary, places = lab.RotaryEmbedding(head_dim, theta), torch.tensor(positions)
    x = noise(len(positions), heads, head_dim)
    truth, allowed = turn(x.double(), places, theta), angles_off(places, head_dim, theta) * of_both(x)
    what = f"positions {positions}, head_dim {head_dim}, theta {theta:g}"
    near(asked(lab, rotary, "x positions", x, places), truth, what, allowed, axes=HEADS)
    near(rotary(strided(lab, x, 1, 2), hold(lab, places)), truth, f"{what}, not contiguous", allowed, axes=HEADS)


@check(todo=2, points=2, section=ROTARY, concept="a pair and its angle")
def four_numbers_are_two_pairs_that_turn_by_their_angles(lab: Remote, dice: random.Random) -> None:
    place = dice.randrange(1, 10)
    row, places = [1.0, 1.0, 0.0, 0.0], dice.sample([place, 0, 10], 3)
    got = asked(lab, lab.RotaryEmbedding(4, theta=100.0), "x positions", torch.tensor([[row]] * 3), torch.tensor(places))
    truth = torch.tensor([[[math.cos(p), math.cos(p / 10), math.sin(p), math.sin(p / 10)]] for p in places])
    near(got, truth, f"head_dim 4, theta 100: 1 1 0 0 at the positions {places}", axes=HEADS)


@check(todo=2, points=4, section=ROTARY, concept="every pair's own angle")
def every_pair_turns_by_its_own_angle(lab: Remote, dice: random.Random) -> None:
    noise = Noise(dice)
    for head_dim, heads in ((2, 1), (2 * dice.randrange(3, 12), 3), (128, 2)):
        for theta in (100.0, 1e6, dice.uniform(1e3, 1e5)):
            expect_turned(lab, noise, [*range(6), dice.randrange(20, 60)], heads, head_dim, theta)


@check(todo=2, points=1, section=ROTARY, concept="the device of what is made")
def angles_are_made_on_the_device_of_x(lab: Remote, dice: random.Random) -> None:
    elsewhere(lab, lab.RotaryEmbedding(8, theta=100.0), Noise(dice)(3, 2, 8), torch.arange(3))


@check(todo=2, points=3, section=ROTARY, concept="what is computed in float32")
def angles_are_computed_in_float32_when_bfloat16_comes_in(lab: Remote, dice: random.Random) -> None:
    theta = dice.uniform(5e3, 5e4)
    places = torch.tensor([0, 257, 2 * dice.randrange(300, 900) + 1, 4097, 2 * dice.randrange(2100, 2500) + 1])
    x = Noise(dice)(len(places), 3, 32).bfloat16()
    got = asked(lab, lab.RotaryEmbedding(32, theta), "x positions", x, places)
    # three roundings at most: of cos and sin, of the products, of the sum
    allowed = (3.05 * BF16 + angles_off(places, 32, theta)) * of_both(x)
    what = f"bfloat16 heads at the positions {places.tolist()}, angles in float32"
    near(got, turn(x.double(), places, theta), what, allowed, torch.bfloat16, axes=HEADS)


@check(todo=2, points=2, section=ROTARY, concept="any positions in any order", hidden=True)
def positions_come_in_any_order_repeat_and_may_be_far(lab: Remote, dice: random.Random) -> None:
    far = dice.sample(range(100, 40_000), 5)
    places = [*far, far[0], 0, 1, 1, dice.randrange(30_000, 40_000)]
    for theta in (1e4, 1e6):
        expect_turned(lab, Noise(dice), dice.sample(places, len(places)), 2, 2 * dice.randrange(3, 20), theta)


@check(todo=2, points=2, section=ROTARY, concept="what a score depends on", hidden=True)
def the_score_of_a_query_and_a_key_depends_on_their_distance_alone(lab: Remote, dice: random.Random) -> None:
    noise, theta, apart = Noise(dice), dice.uniform(1e3, 1e5), dice.randrange(1, 9)
    q, k, rotary = noise(1, 1, 16), noise(1, 1, 16), lab.RotaryEmbedding(16, theta)
    for distance in (apart, -apart, 0):
        truth = (turn(q.double(), torch.tensor([distance]), theta) * k.double()).sum()
        for shift in (10, dice.randrange(20, 60), dice.randrange(500, 1000)):
            places = [shift + distance], [shift]
            turned = [rotary(x, torch.tensor(place)).double() for x, place in zip((q, k), places, strict=True)]
            off = sum(angles_off(torch.tensor(place), 16, theta) for place in places)
            score, allowed = (turned[0] * turned[1]).sum().float(), (off * of_both(q) * of_both(k)).sum()
            near(score, truth, f"the score of a query and a key at {places}", allowed)


# TODO 3

OF_HEADS = "TODO 3: Heads of queries, keys and values"


def attention_layer(
    lab: Remote, dice: random.Random, config: ModelConfig, dtype: torch.dtype = torch.float32
) -> tuple[Remote, Network, Noise]:
    """A layer without a core, and the same by its formulas."""
    noise = Noise(dice)
    weights = {name: weight.to(dtype) for name, weight in random_weights(attention_sizes(config), noise).items()}
    return filled(lab.Attention(config, 0, None), weights), Network(config, weights), noise


def three(got: Any) -> tuple[Any, Any, Any]:
    expect(isinstance(got, tuple | list) and len(got) == 3, f"heads() returned {shown(got)}; expected q, k and v")
    return tuple(got)


@check(todo=3, points=4, section=OF_HEADS, concept="projected, cut, normalised, turned")
def q_and_k_follow_the_formula_head_by_head(lab: Remote, dice: random.Random) -> None:
    for config in shapes(dice):
        layer, truth, noise = attention_layer(lab, dice, config)
        x, far = noise(7, config.hidden_size), dice.randrange(50, 150)
        places = torch.tensor([0, 1, 2, far, far + 1, 3, 3])
        got = three(asked(lab, layer.heads, "x positions", x, places))
        of = f"{config.num_attention_heads} heads, {config.num_key_value_heads} KV heads, positions {places.tolist()}"
        for name, mine, right in zip("qk", got, truth.heads(x, places), strict=False):
            near(mine, right, f"{name}, {of}", NETWORK, axes=HEADS)


@check(todo=3, points=2, section=OF_HEADS, concept="what is normalised together")
def each_head_is_normalised_by_itself(lab: Remote, dice: random.Random) -> None:
    config = config_of(dice, hidden_size=8, num_attention_heads=2, num_key_value_heads=2, head_dim=4)
    weights = {f"{name}_proj.weight": torch.eye(8) for name in "qkv"}  # each is x itself
    weights |= {"q_norm.weight": torch.ones(4), "k_norm.weight": torch.full((4,), 2.0)}
    layer = filled(lab.Attention(config, 0, None), weights)
    constant, row = dice.randrange(2, 9), row_of_five(dice)
    q, k, _ = three(layer.heads(torch.tensor([[*row, *[constant] * 4]], dtype=torch.float32), torch.tensor([0])))
    truth = torch.tensor([[[number / 5 for number in row], [1.0] * 4]])
    what = f"at position 0, the heads {row} and {[constant] * 4}, normalised"
    near(q, truth, f"q: {what}", axes=HEADS)
    near(k, 2 * truth, f"k: {what}, with a weight of 2", axes=HEADS)


@check(todo=3, points=3, section=OF_HEADS, concept="what happens to v")
def values_are_projected_and_nothing_else(lab: Remote, dice: random.Random) -> None:
    for config in shapes(dice):
        layer, truth, noise = attention_layer(lab, dice, config)
        x, places = noise(3, config.hidden_size), torch.tensor([dice.randrange(5, 50) for _ in range(3)])
        for given, where, what in ((x, places, "v"), (2 * x, 0 * places, "v of 2x, at position 0")):
            right = truth.cut(given, "v_proj", config.num_key_value_heads)
            near(three(layer.heads(given, where))[2], right, f"{what}, projected and cut into heads", NETWORK, axes=HEADS)


@check(todo=3, points=2, section=OF_HEADS, concept="a token alone and in company", hidden=True)
def a_token_has_the_same_heads_alone_and_in_any_company(lab: Remote, dice: random.Random) -> None:
    config = dice.choice(shapes(dice))
    layer, truth, noise = attention_layer(lab, dice, config)
    x, places = noise(5, config.hidden_size), torch.tensor([dice.randrange(60) for _ in range(5)])
    right = truth.heads(x, places)
    for rows in ([0], [1], [4], dice.sample(range(5), 3)):
        for name, mine, want in zip("qkv", three(layer.heads(x[rows], places[rows])), right, strict=True):
            near(mine, want[rows], f"{name} of the rows {rows} of 5", NETWORK, axes=HEADS)


@check(todo=3, points=3, section=OF_HEADS, concept="the dtype of what came in", hidden=True)
def bfloat16_stays_bfloat16(lab: Remote, dice: random.Random) -> None:
    config = config_of(dice, head_dim=20, attention_bias=True)
    layer, truth, noise = attention_layer(lab, dice, config, torch.bfloat16)
    x, places = noise(4, config.hidden_size).bfloat16(), torch.arange(4)
    # roundings: of the projection, of its norm twice, of the turn three times, and one more of the norm's scale. Each is
    # 2**-8 of a number that is at most as large as the head's pair, so of sqrt(2) times the largest
    for name, mine, right in zip("qkv", three(layer.heads(x, places)), truth.heads(x, places), strict=True):
        near(mine, right, f"{name} in bfloat16", 7 * 1.42 * BF16, torch.bfloat16, axes=HEADS)


# TODO 4

ATTENTION = "TODO 4: Grouped causal attention"


def queries(
    noise: Noise, num_queries: int, num_keys: int, num_heads: int, num_kv_heads: int, head_dim: int, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v"""
    sizes = ((num_queries, num_heads), (num_keys, num_kv_heads), (num_keys, num_kv_heads))
    q, k, v = (noise(*size, head_dim) for size in sizes)
    return scale * q, scale * k, v


@check(todo=4, points=2, section=ATTENTION, concept="weights by hand")
def a_few_tokens_by_hand(lab: Remote, dice: random.Random) -> None:
    count = dice.randrange(3, 6)
    weights, numbers = [dice.randrange(1, 6) for _ in range(count)], [dice.randrange(1, 13) for _ in range(count)]
    q, k = torch.tensor([2.0, 0.0, 0.0, 0.0]).repeat(count, 1, 1), torch.zeros(count, 1, 4)
    k[:, 0, 0] = torch.tensor(weights, dtype=torch.float32).log()  # scores: the logarithms of the weights
    v = torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1).repeat(1, 1, 4)
    shares, heavy = torch.tensor(weights, dtype=torch.float64), torch.tensor(numbers, dtype=torch.float64)
    right = (shares * heavy).cumsum(0) / shares.cumsum(0)
    got = asked(lab, lab.causal_attention, "q k v", q, k, v)
    near(got, right.view(-1, 1, 1).repeat(1, 1, 4), f"scores: the logarithms of {weights}; values {numbers}", axes=HEADS)


@check(todo=4, points=3, section=ATTENTION, concept="the formula at every length")
def attention_follows_the_formula_at_every_length(lab: Remote, dice: random.Random) -> None:
    noise = Noise(dice)
    for heads, kv_heads, dim in ((3, 3, 8), (4, 2, 2 * dice.randrange(6, 12)), (8, 2, 12), (4, 1, 2)):
        for length in (1, 2, 3, dice.randrange(4, 8), dice.randrange(14, 20)):
            q, k, v = queries(noise, length, length, heads, kv_heads, dim)
            got = asked(lab, lab.causal_attention, "q k v", q, k, v)
            near(got, attention(q.double(), k, v), f"{length} tokens, {heads} heads, {kv_heads} KV heads", axes=HEADS)
        fused = noise(6, heads + 2 * kv_heads, dim)
        parts = fused.split([heads, kv_heads, kv_heads], dim=1)
        there, starts = hold(lab, fused), (0, heads, heads + kv_heads)
        views = [kept(there.narrow, 1, start, part.shape[1]) for start, part in zip(starts, parts, strict=True)]
        right = attention(*(part.double() for part in parts))
        near(lab.causal_attention(*views), right, "q, k and v that are views of one tensor", axes=HEADS)


@check(todo=4, points=1, section=ATTENTION, concept="the device of what is made")
def what_attention_makes_lies_on_the_device_of_q(lab: Remote, dice: random.Random) -> None:
    elsewhere(lab, lab.causal_attention, *queries(Noise(dice), 2, 5, 4, 2, 8))


@check(todo=4, points=2, section=ATTENTION, concept="whose queries they are")
def queries_are_those_of_the_last_tokens(lab: Remote, dice: random.Random) -> None:
    noise, keys = Noise(dice), dice.randrange(7, 14)
    for num_queries, num_keys in ((1, 4), (1, keys), (2, keys), (keys // 2, keys), (keys - 1, keys)):
        q, k, v = queries(noise, num_queries, num_keys, 4, 2, 8)
        what = f"{num_queries} queries of {num_keys} tokens: the first of them sees {num_keys - num_queries + 1} keys"
        near(asked(lab, lab.causal_attention, "q k v", q, k, v), attention(q.double(), k, v), what, axes=HEADS)


@check(todo=4, points=2, section=ATTENTION, concept="which KV head a query head reads")
def neighbouring_query_heads_share_a_kv_head(lab: Remote, dice: random.Random) -> None:
    noise = Noise(dice)
    for heads, kv_heads in ((2, 2), (4, 2), (8, 2), (6, 3), (dice.randrange(3, 7), 1)):
        q, k, _ = queries(noise, 3, 3, heads, kv_heads, 4)
        numbers = dice.sample(range(1, 20), kv_heads)
        v = torch.tensor(numbers, dtype=torch.float32).view(1, -1, 1).expand(3, -1, 4)  # each KV head holds one number
        right = [numbers[head // (heads // kv_heads)] for head in range(heads)]
        got = lab.causal_attention(q, k, v)
        expect_tensor(got, f"{heads} heads, {kv_heads} KV heads", tuple(q.shape), torch.float32, HEADS)
        read = [round(number, 3) for number in got[2, :, 0].tolist()]
        expect(read == right, f"the KV heads hold {numbers}; the {heads} query heads should read {right}, they read {read}")


@check(todo=4, points=3, section=ATTENTION, concept="the layer and its core")
def the_layer_writes_then_attends_through_the_core_it_was_given(lab: Remote, dice: random.Random) -> None:
    for config in shapes(dice):
        noise, core, count = Noise(dice), Core(config), dice.randrange(5, 8)
        weights = random_weights(attention_sizes(config), noise)
        given, (cache,) = core.exported()
        layer, truth = filled(lab.Attention(config, 0, given), weights), Network(config, weights)
        x, step = noise(count, config.hidden_size), Step([Chunk(0, count, *tables(dice, count))])
        got = core.during(step, asked, lab, layer, "x positions", x, step.positions, cache, step.metadata(lab))
        expect(core.calls == ["write", "forward"], f"expected one write, then one forward of the core; it saw {core.calls}")
        for name, mine, right in zip("kv", core.caches[0].read(step.slots), truth.heads(x, step.positions)[1:], strict=True):
            near(mine, right, f"{name} in the slots {step.slots}", NETWORK, axes=HEADS)
        near(got, truth.attend(x, step.positions), f"{count} tokens in the slots {step.slots}", NETWORK, axes=COLUMNS)


@check(todo=4, points=1, section=ATTENTION, concept="who sees whom", hidden=True)
def no_token_sees_the_future(lab: Remote, dice: random.Random) -> None:
    q, k, v = queries(Noise(dice), 6, 6, 4, 2, 8)
    known = dice.randrange(2, 5)
    before = lab.causal_attention(q, k, v)
    near(before[:1], v[:1].repeat_interleave(2, dim=1), "token 0 sees itself alone, so its output is its value", axes=HEADS)
    k[known:], v[known:] = 100.0, -1000.0
    after = lab.causal_attention(q, k, v)
    what = f"the outputs of the first {known} tokens, after later keys and values were changed"
    near(after[:known], before[:known], what, axes=HEADS)


@check(todo=4, points=1, section=ATTENTION, concept="large scores", hidden=True)
def scores_of_a_thousand(lab: Remote, dice: random.Random) -> None:
    q, k, v = queries(Noise(dice), 5, 5, 4, 2, 8, scale=30.0)
    q, k = q.sign() * (q.abs() + 20), k.sign() * (k.abs() + 20)  # none small, so that some score is of a thousand
    k[0] = q[-1, ::2]  # and this one is for certain
    # a score is a sum of products, off by a few roundings of their sizes; a weight is off by twice as much of itself
    off = 2 * (8 + 4) * FLOAT32 * float((q.abs().amax((0, 1)) * k.abs().amax((0, 1))).sum()) / 8**0.5
    allowed = ((math.expm1(off) + OPERATOR) * v.double().abs().max()).expand(q.shape)
    got, what = lab.causal_attention(q, k, v), "scores of a thousand, whose exp is no float32"
    near(got, attention(q.double(), k, v), what, allowed, axes=HEADS)


@check(todo=4, points=1, section=ATTENTION, concept="what is computed in float32", hidden=True)
def scores_and_weights_of_bfloat16_are_computed_in_float32(lab: Remote, dice: random.Random) -> None:
    # One key scores 0 and the others about -8.03, which would be -8.0 in bfloat16, and their weights larger by 0.03.
    others, more = dice.randrange(35, 50), dice.uniform(0.052, 0.06)
    q, k, v = torch.ones(1, 2, 4), torch.zeros(others + 1, 1, 4), torch.ones(others + 1, 1, 4)
    k[:others, 0, 0], k[:others, 0, 1], v[others] = -16.0, -more, 0.0
    expect_as_near_as_can_be(lab, q, k, v, f"one key scores 0, {others} score -{8 + more / 2:.3f}")
    q, k, v = queries(Noise(dice), 40, 300, 4, 2, 16, scale=3.0)
    expect_as_near_as_can_be(lab, q, k, v, "scores up to 40, over 300 keys")


def expect_as_near_as_can_be(lab: Remote, q: Tensor, k: Tensor, v: Tensor, what: str) -> None:
    """Attention of bfloat16 whose scores and weights were not rounded.

    Three roundings are allowed: of the weights, of their product with v, of the result. Each is 2**-8 of
    numbers that add up to weights @ |v|. A float32 score is off by less than 1e-3.
    """
    q, k, v = (tensor.bfloat16() for tensor in (q, k, v))
    allowed = (3.05 * BF16 + 1e-3) * attention(q.double(), k, v.abs())
    got, what = asked(lab, lab.causal_attention, "q k v", q, k, v), f"bfloat16, {what} (scores and weights in float32)"
    near(got, attention(q.double(), k, v), what, allowed, torch.bfloat16, axes=HEADS)


@check(todo=4, points=2, section=ATTENTION, concept="a request in chunks", hidden=True)
def a_request_computed_in_chunks_gives_what_it_gives_at_once(lab: Remote, dice: random.Random) -> None:
    config = dice.choice(shapes(dice)[1:])
    noise, length = Noise(dice), dice.randrange(7, 12)
    weights, x = random_weights(attention_sizes(config), noise), noise(length, config.hidden_size)
    right = Network(config, weights).attend(x, torch.arange(length))
    cut, last = dice.randrange(2, length - 1), length - 1
    for edges in ([length], [cut, length], [last, length], [*range(1, length + 1)]):
        core, (table,) = Core(config, attend=lab.causal_attention), tables(dice, length)
        given, (cache,) = core.exported()
        layer = filled(lab.Attention(config, 0, given), weights)
        for start, end in zip([0, *edges], edges, strict=False):
            step = Step([Chunk(start, end, table)])
            got = core.during(step, layer, x[start:end], step.positions, cache, step.metadata(lab))
            what = f"the tokens {start} to {end - 1}, in chunks that end before {edges}"
            near(got, right[start:end], what, NETWORK, axes=COLUMNS)


# TODO 5

LAYER = "TODO 5: SwiGLU and the decoder layer"


@check(todo=5, points=2, section=LAYER, concept="two gates by hand")
def swiglu_by_hand(lab: Remote, dice: random.Random) -> None:
    config = config_of(dice, hidden_size=4, intermediate_size=2)
    matrices = {  # gate: the numbers 0 and 1 of x; up: the numbers 2 and 3
        "gate_proj.weight": torch.eye(4)[:2], "up_proj.weight": torch.eye(4)[2:],
        "down_proj.weight": torch.tensor([[1.0, 0], [0, 1], [0, 0], [1, 1]])}
    gates, ups = [0, dice.choice([-3, -2, -1, 1, 2, 3, 4])], [dice.randrange(1, 9), dice.randrange(1, 9)]
    got = asked(lab, filled(lab.MLP(config), matrices), "x", torch.tensor([[*gates, *ups]], dtype=torch.float32))
    down = gates[1] / (1 + math.exp(-gates[1])) * ups[1]  # silu(0) is 0
    near(got, torch.tensor([[0.0, down, 0.0, down]]), f"gate {gates}, up {ups}", axes=COLUMNS)


@check(todo=5, points=3, section=LAYER, concept="the feed-forward network")
def swiglu_follows_the_formula(lab: Remote, dice: random.Random) -> None:
    config, noise = config_of(dice), Noise(dice)
    weights = random_weights(mlp_sizes(config), noise)
    mlp, truth = filled(lab.MLP(config), weights), Network(config, weights)
    for scale, count in ((1, 1), (1, 5), (dice.uniform(20, 60), 3)):
        x = scale * noise(count, config.hidden_size)
        near(asked(lab, mlp, "x", x), truth.mlp(x), f"down(silu(gate(x)) * up(x)) of {count} tokens", NETWORK, axes=COLUMNS)
    got = filled(lab.MLP(config), in_bfloat16(weights))(noise(2, config.hidden_size).bfloat16())
    expect_tensor(got, "the MLP in bfloat16", (2, config.hidden_size), torch.bfloat16, COLUMNS)


def decoder_layer(lab: Remote, config: ModelConfig, weights: dict[str, Tensor]) -> tuple[Remote, Core, Any]:
    """A layer with these weights, its core, and its cache."""
    core = Core(config)
    given, (cache,) = core.exported()
    return filled(lab.DecoderLayer(config, 0, given), weights), core, cache


@check(todo=5, points=3, section=LAYER, concept="what is added to what")
def a_layer_adds_attention_then_the_mlp(lab: Remote, dice: random.Random) -> None:
    for config in shapes(dice):
        noise, count = Noise(dice), dice.randrange(5, 9)
        weights = random_weights(layer_sizes(config), noise)
        layer, core, cache = decoder_layer(lab, config, weights)
        x, step = 3 * noise(count, config.hidden_size), Step([Chunk(0, count, *tables(dice, count))])
        got = core.during(step, asked, lab, layer, "x positions", x, step.positions, cache, step.metadata(lab))
        right = Network(config, weights).layer(x, step.positions)
        near(got, right, "h = x + attention(norm(x)), then h + mlp(norm(h))", NETWORK, axes=COLUMNS)


@check(todo=5, points=2, section=LAYER, concept="a layer that has nothing to add", hidden=True)
def what_comes_in_passes_a_layer_that_has_nothing_to_add(lab: Remote, dice: random.Random) -> None:
    config, noise = config_of(dice), Noise(dice)
    weights = random_weights(layer_sizes(config), noise)
    for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
        weights[name].zero_()
    layer, core, cache = decoder_layer(lab, config, weights)
    x, step = dice.uniform(3, 9) * noise(3, config.hidden_size), Step([Chunk(0, 3, *tables(dice, 3))])
    got = core.during(step, asked, lab, layer, "x positions", x, step.positions, cache, step.metadata(lab))
    near(got, x, "x, when attention and MLP both give zeros", axes=COLUMNS)


@check(todo=5, points=2, section=LAYER, concept="a layer of several requests", hidden=True)
def a_layer_computes_several_requests_at_once(lab: Remote, dice: random.Random) -> None:
    config, noise = config_of(dice, attention_bias=True), Noise(dice)
    weights = random_weights(layer_sizes(config), noise)
    layer, core, cache = decoder_layer(lab, config, weights)
    lengths = [dice.randrange(3, 9), dice.randrange(3, 9)]
    texts, places = [noise(length, config.hidden_size) for length in lengths], tables(dice, *lengths)
    right, cut = [Network(config, weights).layer(text, torch.arange(len(text))) for text in texts], lengths[0] - 1
    for chunks in ([(0, 0, cut)], [(0, cut, cut + 1), (1, 0, lengths[1])]):
        step = Step([Chunk(start, end, places[one]) for one, start, end in chunks])
        x = torch.cat([texts[one][start:end] for one, start, end in chunks])
        got = core.during(step, layer, x, step.positions, cache, step.metadata(lab))
        truth = torch.cat([right[one][start:end] for one, start, end in chunks])
        near(got, truth, f"a step of {step.query_lens} tokens of its requests", NETWORK, axes=COLUMNS)


# TODO 6

OF_LOGITS = "TODO 6: Logits of the last position"


class Model:
    """A submission's network, the same by its formulas, and the core between them.

    Args:
        dtype: of the weights.
        attend: see `Core`.
    """

    def __init__(
        self, lab: Remote, config: ModelConfig, noise: Noise, attend: Callable = attention,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.lab, self.core = lab, Core(config, attend, dtype)
        self.weights = {name: weight.to(dtype) for name, weight in random_weights(network_sizes(config), noise).items()}
        self.truth = Network(config, self.weights)
        given, self.cache = self.core.exported()
        self.network = filled(lab.Qwen3ForCausalLM(config, given), self.weights)

    def last_logits(self, step: Step, texts: Iterable[Tensor]) -> Any:
        """What it says of a step; what it was given must stay as it is."""
        metadata = step.metadata(self.lab)
        got = self.core.during(step, asked, self.lab, self.network.last_logits, "token_ids positions",
                               step.tokens(texts), step.positions, self.cache, metadata)
        lens = metadata.query_lens
        expect(lens == step.query_lens, f"metadata.query_lens was changed in place, {step.query_lens} to {shown(lens)}")
        return got

    def hidden(self, step: Step, texts: Iterable[Tensor]) -> Any:
        """What the engine asks it for."""
        return self.core.during(step, self.network, step.tokens(texts), step.positions, self.cache, step.metadata(self.lab))


@check(todo=6, points=3, section=OF_LOGITS, concept="from rows to logits")
def rows_are_normalised_then_given_to_the_head(lab: Remote, dice: random.Random) -> None:
    noise = Noise(dice)
    for config in (config_of(dice), config_of(dice, rms_norm_eps=0.03)):
        model, count = Model(lab, config, noise), dice.randrange(3, 7)
        hidden = dice.uniform(2, 5) * noise(count, config.hidden_size)
        right, axes = model.truth.logits_of(hidden), ("row", "token id")
        near(asked(lab, model.network.compute_logits, "hidden", hidden), right, "lm_head(norm(hidden))", NETWORK, axes=axes)
        row = dice.randrange(count)
        near(model.network.compute_logits(hidden[[row]]), right[[row]], f"row {row} by itself", NETWORK, axes=axes)


@check(todo=6, points=3, section=OF_LOGITS, concept="whose row is whose")
def logits_follow_the_last_token_of_each_request(lab: Remote, dice: random.Random) -> None:
    config, noise = config_of(dice, layers=2), Noise(dice)
    for padding in (0, dice.randrange(1, 5)):
        model, lengths = Model(lab, config, noise), [1, dice.randrange(7, 12), dice.randrange(3, 6)]
        texts, places = [noise.tokens(length, config) for length in lengths], tables(dice, *lengths)
        cut = dice.randrange(2, 5)
        model.last_logits(Step([Chunk(0, cut, places[1])]), [texts[1]])
        step = Step([Chunk(*one) for one in zip((0, cut, 0), lengths, places, strict=True)], padding)
        got = model.last_logits(step, texts)
        right = torch.stack([model.truth.logits(text)[-1] for text in texts])
        what = f"query_lens {step.query_lens}, {padding} rows of padding: the logits of the rows {step.rows}"
        near(got, right, what, NETWORK, axes=LOGITS)


@check(todo=6, points=2, section=OF_LOGITS, concept="how many rows the head computes")
def only_the_rows_that_are_returned_pass_the_head(lab: Remote, dice: random.Random) -> None:
    config, noise, count = config_of(dice), Noise(dice), dice.randrange(20, 40)
    model, rows = Model(lab, config, noise), []
    watch = ours(lambda module, inputs, output: rows.append(output.numel() // config.vocab_size))
    model.network.lm_head.register_forward_hook(watch)
    got = model.last_logits(Step([Chunk(0, count, *tables(dice, count))]), [noise.tokens(count, config)])
    expect_tensor(got, "logits of one request", (1, config.vocab_size), torch.float32, LOGITS)
    expect(sum(rows) <= 1, f"the head computed {sum(rows)} rows of logits for one request of {count} tokens; one was needed")


@check(todo=6, points=4, section=OF_LOGITS, concept="the whole network")
def the_network_gives_the_logits_of_the_formulas(lab: Remote, dice: random.Random) -> None:
    for config in shapes(dice, layers=3):
        noise = Noise(dice)
        model = Model(lab, config, noise, attend=lab.causal_attention)
        for length, first in ((1, 0), (dice.randrange(12, 20), 0), (dice.randrange(3, 10), dice.randrange(40, 100))):
            text, step = noise.tokens(length, config), Step([Chunk(0, length, *tables(dice, length))], first=first)
            right, what = model.truth.logits(text, first)[-1:], f"logits after {length} tokens, positions from {first}"
            near(model.last_logits(step, [text]), right, what, NETWORK, axes=LOGITS)


@check(todo=6, points=2, section=OF_LOGITS, concept="the network in bfloat16", hidden=True)
def bfloat16_is_as_near_as_it_can_be(lab: Remote, dice: random.Random) -> None:
    config, noise = config_of(dice, layers=2, head_dim=20, attention_bias=True), Noise(dice)
    model = Model(lab, config, noise, attend=lab.causal_attention, dtype=torch.bfloat16)
    rounded, got, theirs, truth = Network(config, model.weights, torch.bfloat16), [], [], []
    for length in (1, 4, 7, 10, 13, 16):
        text = noise.tokens(length, config)
        got.append(model.last_logits(Step([Chunk(0, length, *tables(dice, length))]), [text]))
        expect_tensor(got[-1], "logits in bfloat16", (1, config.vocab_size), torch.bfloat16, LOGITS)
        theirs.append(rounded.logits(text)[-1:])
        truth.append(model.truth.logits(text)[-1:])
    # Two right programs round in different places, so neither is nearer. The ratio of their errors was seen between
    # 0.7 and 1.4, its logarithm spread by 0.15: five times as much is ten times that spread.
    error, usual = (float((torch.cat(one).double() - torch.cat(truth)).square().mean().sqrt()) for one in (got, theirs))
    expect(error <= 5 * usual, f"root mean square error of the logits {error:.4f}; in bfloat16 {usual:.4f} is usual")


@check(todo=6, points=3, section=OF_LOGITS, concept="the network in an engine", hidden=True)
def chunks_of_many_requests_give_what_each_gives_alone(lab: Remote, dice: random.Random) -> None:
    config, noise = dice.choice(shapes(dice, layers=2)), Noise(dice)
    model, lengths = Model(lab, config, noise), [dice.randrange(1, 13) for _ in range(4)]
    texts, places, done = [noise.tokens(length, config) for length in lengths], tables(dice, *lengths), [0] * 4
    right = [model.truth.logits(text) for text in texts]
    while waiting := [one for one in range(4) if done[one] < lengths[one]]:
        chosen = dice.sample(waiting, dice.randint(1, len(waiting)))
        plan = [(one, min(lengths[one], done[one] + dice.choice([1, 1, 3, 5]))) for one in chosen]
        plan.sort(key=lambda one: one[1] - done[one[0]] > 1)  # those of one token first
        step = Step([Chunk(done[one], end, places[one]) for one, end in plan], padding=dice.randrange(4))
        hidden = model.hidden(step, [texts[one] for one, _ in plan])
        expect_tensor(hidden, "hidden states", (len(step.slots), config.hidden_size), torch.float32, COLUMNS)
        truth = torch.stack([right[one][end - 1] for one, end in plan])
        got = model.network.compute_logits(hidden[step.rows])
        near(got, truth, f"a step of {step.query_lens} tokens of its requests", NETWORK, axes=LOGITS)
        for one, end in plan:
            done[one] = end
