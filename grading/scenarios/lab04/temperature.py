"""Lab 04, TODO 2: temperature."""

import random

import torch
from torch import Tensor

from grading.judge.checks import check, expect, hold, kept, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab04.rows import HALF, INF, across, expect_logits, expect_untouched, random_logits, row

TEMPERATURE = "TODO 2: Temperature"


def divided(logits: Tensor, temperatures: list[float]) -> Tensor:
    """Each row by its temperature in float64; a greedy one as it is."""
    return logits.double() / torch.tensor([t or 1.0 for t in temperatures], dtype=torch.float64)[:, None]


@check(todo=2, points=3, section=TEMPERATURE, concept="each row's own temperature")
def divides_each_row_by_its_own_temperature(lab: Remote, rng: random.Random) -> None:
    temperatures = [0.01, 1.0, *(rng.uniform(0.2, 2) for _ in range(4))]
    rng.shuffle(temperatures)
    logits = random_logits(rng, len(temperatures), rng.randrange(20, 60))
    rows, right = [row(temperature=t) for t in temperatures], divided(logits, temperatures)
    expect_logits(lab.apply_temperature(across(lab, logits), rows), right,
                  f"rows with temperatures {shown(temperatures)}, a transposed tensor")
    for i in (0, 3):
        expect_logits(lab.apply_temperature(logits[i : i + 1], rows[i : i + 1]), right[i : i + 1],
                      f"a batch of one row, temperature {temperatures[i]:.3f}")


@check(todo=2, points=3, section=TEMPERATURE, concept="greedy rows")
def leaves_greedy_rows_as_they_are(lab: Remote, rng: random.Random) -> None:
    temperatures = [0.0, rng.uniform(0.3, 0.9), 0.0, rng.uniform(1.1, 1.9)]
    rng.shuffle(temperatures)
    logits = random_logits(rng, 4, 8)
    logits[:, 5] = 0.0
    found = lab.apply_temperature(logits, [row(temperature=t) for t in temperatures])
    if isinstance(found, Tensor):
        expect(bool(found.isfinite().all()),
               "dividing by 0 gives inf, and 0/0 gives nan: a greedy row, temperature 0, keeps its logits")
    expect_logits(found, divided(logits, temperatures), f"temperatures {shown(temperatures)}, and 0 leaves a row as it is")


@check(todo=2, points=1, section=TEMPERATURE, concept="what is left of the input", hidden=True)
def changes_nothing_that_it_is_given(lab: Remote, rng: random.Random) -> None:
    logits, temperatures = random_logits(rng, 3, 9), [rng.uniform(0.3, 0.9), 0.0, rng.uniform(1.1, 1.9)]
    logits[:, rng.randrange(9)] = -INF
    held = hold(lab, logits)
    found = lab.apply_temperature(held, [row(temperature=t) for t in temperatures])
    expect_untouched(held, logits, "apply_temperature()")
    expect_logits(found, divided(logits, temperatures), "rows with a removed token, -inf, which stays removed")


@check(todo=2, points=1, section=TEMPERATURE, concept="one call after another", hidden=True)
def a_call_that_divides_knows_nothing_of_those_before_it(lab: Remote, rng: random.Random) -> None:
    logits, temperatures = random_logits(rng, 3, 9), [rng.uniform(0.3, 0.9), 0.0, rng.uniform(1.1, 1.9)]
    held = hold(lab, [row(temperature=t) for t in temperatures])  # the engine may use one list for all steps
    for _ in range(3):
        expect_logits(lab.apply_temperature(logits, held), divided(logits, temperatures),
                      f"the same list of rows, which now have the temperatures {shown(temperatures)}: what is kept by a list or "
                      "a number of rows is out of date")
        temperatures = [*temperatures[1:], rng.uniform(0.3, 1.9)]
        kept(held.clear)
        kept(held.extend, [row(temperature=t) for t in temperatures])


@check(todo=2, points=1, section=TEMPERATURE, concept="the precision of the quotient", hidden=True)
def divides_in_float32_whatever_comes_in(lab: Remote, rng: random.Random) -> None:
    # Rounded to bfloat16 (float16) a quotient is off by up to 2**-9 (2**-12) of itself: of 400 some by 1e-4 and more.
    for dtype in (*HALF, torch.float64):
        temperatures = [rng.uniform(0.55, 0.95), rng.uniform(1.05, 1.9)]
        logits = random_logits(rng, 2, 200).to(dtype)
        found = lab.apply_temperature(logits, [row(temperature=t) for t in temperatures])
        expect_logits(found, divided(logits, temperatures),
                      f"{dtype} logits become float32 before they are divided by {shown(temperatures)}")
