"""Lab 03, TODO 2: the rotary embedding."""

import math
import random

import torch
from torch import Tensor

from grading.judge.checks import check, hold, kept
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab03.compare import BF16, FLOAT32, HEADS, asked, elsewhere, near, strided
from grading.scenarios.lab03.network import Noise, angles_of, turn

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
    """Random heads at these positions are turned as by the formula, contiguous or not."""
    rotary, places = lab.RotaryEmbedding(head_dim, theta), torch.tensor(positions)
    x = noise(len(positions), heads, head_dim)
    truth, allowed = turn(x.double(), places, theta), angles_off(places, head_dim, theta) * of_both(x)
    what = f"positions {positions}, head_dim {head_dim}, theta {theta:g}"
    near(asked(lab, rotary, "x positions", x, places), truth, what, allowed, axes=HEADS)
    near(rotary(strided(lab, x, 1, 2), hold(lab, places)), truth, f"{what}, not contiguous", allowed, axes=HEADS)


@check(todo=2, points=2, section=ROTARY, concept="a pair and its angle")
def four_numbers_are_two_pairs_that_turn_by_their_angles(lab: Remote, rng: random.Random) -> None:
    place = rng.randrange(1, 10)
    row, places = [1.0, 1.0, 0.0, 0.0], rng.sample([place, 0, 10], 3)
    got = asked(lab, lab.RotaryEmbedding(4, theta=100.0), "x positions", torch.tensor([[row]] * 3), torch.tensor(places))
    truth = torch.tensor([[[math.cos(p), math.cos(p / 10), math.sin(p), math.sin(p / 10)]] for p in places])
    near(got, truth, f"head_dim 4, theta 100: 1 1 0 0 at the positions {places}", axes=HEADS)


@check(todo=2, points=3, section=ROTARY, concept="every pair's own angle")
def every_pair_turns_by_its_own_angle(lab: Remote, rng: random.Random) -> None:
    noise = Noise(rng)
    for head_dim, heads in ((2, 1), (2 * rng.randrange(3, 12), 3), (128, 2)):
        for theta in (100.0, 1e6, rng.uniform(1e3, 1e5)):
            expect_turned(lab, noise, [*range(6), rng.randrange(20, 60)], heads, head_dim, theta)


@check(todo=2, points=1, section=ROTARY, concept="the device of what is made")
def angles_are_made_on_the_device_of_x(lab: Remote, rng: random.Random) -> None:
    elsewhere(lab, lab.RotaryEmbedding(8, theta=100.0), Noise(rng)(3, 2, 8), torch.arange(3))


@check(todo=2, points=2, section=ROTARY, concept="what is computed in float32")
def angles_are_computed_in_float32_when_bfloat16_comes_in(lab: Remote, rng: random.Random) -> None:
    theta = rng.uniform(5e3, 5e4)
    places = torch.tensor([0, 257, 2 * rng.randrange(300, 900) + 1, 4097, 2 * rng.randrange(2100, 2500) + 1])
    x = Noise(rng)(len(places), 3, 32).bfloat16()
    got = asked(lab, lab.RotaryEmbedding(32, theta), "x positions", x, places)
    # three roundings at most: of cos and sin, of the products, of the sum
    allowed = (3.05 * BF16 + angles_off(places, 32, theta)) * of_both(x)
    what = f"bfloat16 heads at the positions {places.tolist()}, angles in float32"
    near(got, turn(x.double(), places, theta), what, allowed, torch.bfloat16, axes=HEADS)


@check(todo=2, points=2, section=ROTARY, concept="any positions in any order", hidden=True)
def positions_come_in_any_order_repeat_and_may_be_far(lab: Remote, rng: random.Random) -> None:
    far = rng.sample(range(100, 40_000), 5)
    places = [*far, far[0], 0, 1, 1, rng.randrange(30_000, 40_000)]
    for theta in (1e4, 1e6):
        expect_turned(lab, Noise(rng), rng.sample(places, len(places)), 2, 2 * rng.randrange(3, 20), theta)


@check(todo=2, points=2, section=ROTARY, concept="one call after another", hidden=True)
def a_call_knows_nothing_of_those_before_it(lab: Remote, rng: random.Random) -> None:
    theta, noise = rng.uniform(5e3, 5e4), Noise(rng)
    rotary, x, last = lab.RotaryEmbedding(32, theta), noise(4, 3, 32), rng.randrange(3, 40)
    rotary(x.bfloat16(), torch.arange(4))
    for first in ([0, 1, 2], rng.sample(range(50), 3), rng.sample(range(2000), 3), [rng.randrange(2000)] * 3):
        places = torch.tensor([*first, last])  # as many tokens each time, and the same last one
        what = f"float32, positions {places.tolist()}, after a call in bfloat16 and other positions"
        near(rotary(x, places), turn(x.double(), places, theta), what, angles_off(places, 32, theta) * of_both(x), axes=HEADS)
    held = hold(lab, torch.arange(4))  # engines keep one tensor for all steps, and write the positions into it
    kept(rotary, x, held)
    later = torch.tensor(rng.sample(range(5, 2000), 4))
    kept(held.copy_, later)
    what = f"the same tensor, which held the positions 0 to 3 before and holds {later.tolist()} now"
    near(rotary(x, held), turn(x.double(), later, theta), what, angles_off(later, 32, theta) * of_both(x), axes=HEADS)


@check(todo=2, points=2, section=ROTARY, concept="what a score depends on", hidden=True)
def the_score_of_a_query_and_a_key_depends_on_their_distance_alone(lab: Remote, rng: random.Random) -> None:
    noise, theta, apart = Noise(rng), rng.uniform(1e3, 1e5), rng.randrange(1, 9)
    q, k, rotary = noise(1, 1, 16), noise(1, 1, 16), lab.RotaryEmbedding(16, theta)
    for distance in (apart, -apart, 0):
        truth = (turn(q.double(), torch.tensor([distance]), theta) * k.double()).sum()
        for shift in (10, rng.randrange(20, 60), rng.randrange(500, 1000)):
            places = [shift + distance], [shift]
            turned = [rotary(x, torch.tensor(place)).double() for x, place in zip((q, k), places, strict=True)]
            off = sum(angles_off(torch.tensor(place), 16, theta) for place in places)
            score, allowed = (turned[0] * turned[1]).sum().float(), (off * of_both(q) * of_both(k)).sum()
            near(score, truth, f"the score of a query and a key at {places}", allowed)
