"""Lab 03, TODO 1: RMSNorm."""

import random

import torch
from torch import Tensor

from grading.judge.checks import check
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab03.compare import BF16, FLOAT16, asked, near, strided
from grading.scenarios.lab03.network import Noise, filled, norm

NORM = "TODO 1: RMSNorm in float32"

OF_FIVE = ([2, 4, 4, 8], [1, 1, 7, 7], [1, 5, 5, 7], [1, 3, 3, 9], [5, 5, 5, 5])
"""Rows whose root mean square is 5."""


def norm_of(lab: Remote, weight: Tensor, eps: float = 1e-6) -> Remote:
    """The submission's RMSNorm with this weight."""
    return filled(lab.RMSNorm(len(weight), eps), {"weight": weight})


def row_of_five(rng: random.Random) -> list[int]:
    """Four whole numbers whose root mean square is 5."""
    row = [number * rng.choice([1, 1, -1]) for number in rng.choice(OF_FIVE)]
    return rng.sample(row, 4)


@check(todo=1, points=2, section=NORM, concept="a row and its root mean square")
def a_row_whose_root_mean_square_is_5_is_divided_by_5(lab: Remote, rng: random.Random) -> None:
    times = rng.randrange(2, 20)
    rows = [row_of_five(rng), [0, 0, 0, 0], [times * number for number in row_of_five(rng)]]
    weight = torch.tensor([rng.choice([0.5, 1.0, 1.5, -2.0]) for _ in range(4)])
    x = torch.tensor(rows, dtype=torch.float32)
    truth = x / torch.tensor([[5.0], [1.0], [5.0 * times]]) * weight
    got = asked(lab, norm_of(lab, weight), "x", x)
    near(got, truth, f"RMSNorm of {rows} with the weight {weight.tolist()}", axes=("row", "column"))


@check(todo=1, points=2, section=NORM, concept="every row by itself")
def every_row_follows_the_formula(lab: Remote, rng: random.Random) -> None:
    noise = Noise(rng)
    for leading in ((1,), (5,), (3, 4), (2, 3, 5)):
        size = (*leading, rng.randrange(7, 65))
        x, weight = rng.uniform(1, 30) * noise(*size), 1 + 0.5 * noise(size[-1])
        what, module = f"x / sqrt(mean(x²) + eps) * weight, each row of {list(size)} by itself", norm_of(lab, weight)
        near(asked(lab, module, "x", x), norm(x.double(), weight, 1e-6), what)
        near(module(strided(lab, x, 0, 1)), norm(x.double(), weight, 1e-6), f"{what}, not contiguous")


@check(todo=1, points=3, section=NORM, concept="what is computed in float32")
def the_root_is_computed_in_float32_when_bfloat16_comes_in(lab: Remote, rng: random.Random) -> None:
    noise = Noise(rng)
    size = rng.randrange(48, 80)
    x, weight = noise(512, size).bfloat16(), (1 + 0.5 * noise(size)).bfloat16()
    truth = norm(x.double(), weight, 1e-6)
    # two roundings are allowed, of x / rms and of its product with the weight
    got = asked(lab, norm_of(lab, weight), "x", x)
    near(got, truth, "bfloat16, the root in float32", 2.02 * BF16 * truth.abs(), torch.bfloat16)


@check(todo=1, points=2, section=NORM, concept="what eps is added to", hidden=True)
def eps_counts_in_rows_that_are_as_small(lab: Remote, rng: random.Random) -> None:
    noise = Noise(rng)
    for eps in (1e-6, 0.03, rng.uniform(1e-4, 1e-2)):
        x, weight = eps**0.5 * rng.uniform(0.5, 2) * noise(6, 24), 1 + 0.5 * noise(24)
        near(norm_of(lab, weight, eps)(x), norm(x.double(), weight, eps), f"rows about as small as the root of eps, {eps}")


@check(todo=1, points=1, section=NORM, concept="numbers whose square float16 cannot hold", hidden=True)
def float16_can_hold_the_row_and_not_its_square(lab: Remote, rng: random.Random) -> None:
    x = torch.tensor([[rng.choice([1, -1]) * rng.uniform(290, 4000) for _ in range(12)] for _ in range(3)]).half()
    weight = torch.tensor([rng.uniform(0.5, 2) for _ in range(12)]).half()
    truth = norm(x.double(), weight, 1e-6)
    near(norm_of(lab, weight)(x), truth, "float16, the root in float32", 2.02 * FLOAT16 * truth.abs(), torch.float16)
