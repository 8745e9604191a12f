"""Lab 04, TODO 1: greedy."""

import random

import torch
from torch import Tensor

from grading.judge.checks import check, expect, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab04.rows import HALF, INF, across, expect_untouched, numbers, random_logits

GREEDY = "TODO 1: Greedy"


def expect_greedy(lab: Remote, given: object, right: list[int], what: str) -> None:
    """greedy_tokens() of these logits is these tokens."""
    found = lab.greedy_tokens(given)
    whole = isinstance(found, Tensor) and found.dtype == torch.int64 and found.shape == (len(right),)
    expect(whole, f"{what}: expected int64 of shape [{len(right)}], one token per row; got {shown(found)}")
    expect(found.tolist() == right, f"{what}: expected the tokens {right}, got {found.tolist()}")


@check(todo=1, points=1, section=GREEDY, concept="the largest logit")
def takes_the_largest_logit_of_each_row(lab: Remote, rng: random.Random) -> None:
    for dtype in (torch.float32, torch.float64, *HALF):
        size = rng.randrange(5, 30)
        places = [rng.sample(range(size), size) for _ in range(rng.randrange(3, 7))]
        logits = (torch.tensor(places) / 2 - rng.randrange(20)).to(dtype)
        right = [one.index(size - 1) for one in places]
        expect_greedy(lab, logits, right, f"{dtype} logits of {len(places)} rows")
        expect_greedy(lab, logits[1:2], right[1:2], f"a batch of the one row {numbers(logits[1])}")


@check(todo=1, points=1, section=GREEDY, concept="equal logits")
def of_equal_logits_the_smallest_id_wins(lab: Remote, rng: random.Random) -> None:
    for size in (1, 2, 4, 6, 8, 33, rng.randrange(9, 60)):  # in short rows some functions of torch take another
        expect_greedy(lab, torch.full((3, size), rng.uniform(-5, 5)), [0, 0, 0],
                      f"three rows of {size} equal logits; the smallest id wins")
    size = rng.randrange(2000, 5000)
    logits, ties = random_logits(rng, 6, size), [rng.sample(range(1, size), rng.randrange(2, 6)) for _ in range(6)]
    for scores, tied in zip(logits, ties, strict=True):
        scores[tied] = 20.0
    expect_greedy(lab, logits, [min(tied) for tied in ties],
                  f"in rows of {size} logits the tokens {ties} share the largest; the smallest id wins")


@check(todo=1, points=1, section=GREEDY, concept="how the tensor lies in memory")
def takes_rows_that_are_not_contiguous(lab: Remote, rng: random.Random) -> None:
    logits = random_logits(rng, 7, 19)
    held = across(lab, logits)
    expect_greedy(lab, held, logits.argmax(dim=1).tolist(), "seven rows of a transposed tensor")
    expect_untouched(held, logits, "greedy_tokens()")


@check(todo=1, points=1, section=GREEDY, concept="tokens that were removed before", hidden=True)
def tokens_that_were_removed_are_not_taken(lab: Remote, rng: random.Random) -> None:
    size = rng.randrange(4, 20)
    left = [rng.randrange(1, size) for _ in range(5)]
    logits = torch.full((5, size), -INF)
    logits[range(5), left] = torch.tensor([rng.uniform(-90, -1) for _ in left])
    expect_greedy(lab, logits, left, f"rows in which all tokens but {left} are removed, -inf")


@check(todo=1, points=1, section=GREEDY, concept="logits that differ by little", hidden=True)
def compares_logits_and_not_rounded_probabilities(lab: Remote, rng: random.Random) -> None:
    size = rng.randrange(4, 12)
    best = [rng.randrange(1, size) for _ in range(4)]
    logits = torch.tensor([[rng.uniform(0.1, 0.2)] * size for _ in best])
    for scores, token in zip(logits, best, strict=True):
        scores[token] = torch.nextafter(scores[token], torch.tensor(1.0))
    expect_greedy(lab, logits, best, f"the tokens {best} are larger than the others, equal ones, by the last bit of float32")
    closer = 1.0 + 2.0**-40 * torch.tensor([rng.sample(range(size), size) for _ in best], dtype=torch.float64)
    expect_greedy(lab, closer, closer.argmax(dim=1).tolist(),
                  "logits of float64, from 1 on by steps of 2**-40; compare them in the float type they come in")
