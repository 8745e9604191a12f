"""Thousands of draws for Lab 04's checks, and what their frequencies prove.

Let F be the true distribution function of a token's number and F_n that of n independent draws. The
inequality of Dvoretzky, Kiefer and Wolfowitz, with Massart's constant, holds for every n and every F:

    P(max |F_n - F| > gap) <= 2 exp(-2 n gap^2)

So gap = sqrt(ln(2 / FALSE_ALARM) / (2 n)) rejects a right sampler with probability at most FALSE_ALARM. There
are 18 comparisons: 4 of frequencies and 12 of pairs in TODO 5, 2 in TODO 6. With FALSE_ALARM = 1e-9 / 20 all
of them together reject one with probability at most 9e-10, for probabilities of a union at most add up. What
else could go against a right sampler is where draws agree, or differ, by chance: 4**-60 and less, said there.

A sampler whose distribution is off by distance > gap stays within the gap with probability at most
2 exp(-2 n (distance - gap)^2). With n = 10,000 the gap is 0.035, and 0.055 is noticed with probability 0.999.
With 1,000 pairs it is 0.110; two draws that are always equal are off by 3/16 and more, noticed with
probability 1 - 2 exp(-2000 * 0.077^2) > 0.9999. A pair of tokens (a, b) counts as the number 4 a + b.
"""

import functools
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grading.judge.checks import expect, hold, kept, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab04.definitions import distance
from grading.scenarios.lab04.rows import repeated, row
from nano_qwen3_serving.interfaces import SamplingRow

FALSE_ALARM = 1e-9 / 20
NUM_DRAWS = 10_000
NUM_PAIRS = 1_000
Place = tuple[int, int, int]
"""Seed, sample index, position."""


def allowed_gap(num_draws: int) -> float:
    """How far the frequencies of a right sampler may be off, cumulated."""
    return math.sqrt(math.log(2 / FALSE_ALARM) / (2 * num_draws))


def expect_frequencies(drawn: list[int], chances: Sequence[float], what: str) -> None:
    """The tokens drawn are as frequent as their probabilities say; those of probability 0 never come."""
    counts, right = Counter(drawn), dict(enumerate(chances))
    never = sorted(token for token in counts if right.get(token, 0.0) == 0)
    expect(not never, f"{what}: the tokens {shown(never)} were drawn, and their probability is 0")
    shares = {token: count / len(drawn) for token, count in counts.items()}
    gap = distance(shares, right, sorted(right, key=lambda token: -right[token]))
    expect(gap <= allowed_gap(len(drawn)),
           f"{what}: the probabilities are {[round(p, 3) for p in chances]}, and {len(drawn)} draws gave "
           f"{[round(shares.get(token, 0.0), 3) for token in right]}")


def called_with_rows(lab: Remote, call: Remote, logits: object, places: Sequence[Place], like: SamplingRow) -> Any:
    """What `call(logits, rows)` returns for rows at these places that are `like` this one.

    The rows are made where the submission is: thousands of them take long on the wire. Their prompt is
    that of `like`; after its output come zeros, up to the position.
    """
    package = lab._peer.root.package
    builtins, operator = package("builtins"), package("operator")
    always, every = package("itertools").repeat, functools.partial(kept, builtins.map)
    prompt, output = like.prompt_token_ids, like.output_token_ids
    seeds, indices, positions = (list(column) for column in zip(*places, strict=True))
    zeros = every(operator.mul, kept(always, [0]), [position - len(prompt) - len(output) for position in positions])
    outputs = every(operator.add, kept(always, output), zeros)
    rows = every(package("nano_qwen3_serving.interfaces").SamplingRow, kept(always, hold(lab, like.params)), kept(always, prompt),
                 outputs, seeds, indices)
    (result,) = builtins.list(every(call, [logits], every(builtins.list, [rows])))
    return result


def drawn(lab: Remote, logits: object, places: Sequence[Place], like: SamplingRow | None = None) -> list[int]:
    """What draw() says for rows at these places."""
    return as_tokens(called_with_rows(lab, lab.draw, logits, places, like or row()), len(places))


def as_tokens(found: Any, num_rows: int) -> list[int]:
    """What draw() returned, which must be so many tokens."""
    expect(isinstance(found, Tensor) and found.dtype == torch.int64 and found.shape == (num_rows,),
           f"draw() of {num_rows} rows: expected a tensor of shape [{num_rows}], int64; got {shown(found)}")
    return found.tolist()


def equal_tokens(lab: Remote, num_rows: int, vocab_size: int = 4) -> Remote:
    """Rows in which each token has exactly the same probability, so that no rounding can tip a draw."""
    return repeated(lab, torch.zeros(vocab_size), num_rows)


def seeds_from(rng: random.Random, count: int) -> list[Place]:
    """The first draws of requests with seeds that follow each other."""
    first = rng.getrandbits(40)
    return [(first + i, 0, 3) for i in range(count)]


def written_texts(rng: random.Random, num_seeds: int, num_positions: int) -> list[Place]:
    """So many draws in a row of two samples each of requests with seeds that follow each other."""
    first = rng.getrandbits(40)
    return [(first + i, index, 3 + k) for i in range(num_seeds) for index in range(2) for k in range(num_positions)]


def stepped(rng: random.Random, first: Place, second: Place) -> list[tuple[Place, Place]]:
    """NUM_PAIRS pairs of places, each these two steps away from a start of its own."""
    seed = rng.getrandbits(31)
    starts = [(seed + 10 * k, k % 3, 3 + k % 5) for k in range(NUM_PAIRS)]
    return [(moved(start, first), moved(start, second)) for start in starts]


def moved(place: Place, step: Place) -> Place:
    """The place one step on."""
    return place[0] + step[0], place[1] + step[1], place[2] + step[2]


def pairs_of_places(rng: random.Random) -> dict[str, list[tuple[Place, Place]]]:
    """NUM_PAIRS pairs of each kind, all places of a kind different."""
    names = {
        "a seed and the next": ((0, 0, 0), (1, 0, 0)),
        "a sample index and the next": ((0, 0, 0), (0, 1, 0)),
        "a position and the next": ((0, 0, 0), (0, 0, 1)),
        "places with the same seed + position": ((1, 0, 0), (0, 0, 1)),
        "places with the same seed + index": ((1, 0, 0), (0, 1, 0)),
        "places with the same index + position": ((0, 1, 0), (0, 0, 1)),
        "sample indices that differ by 2": ((0, 0, 0), (0, 2, 0)),
        "positions that differ by 64": ((0, 0, 0), (0, 0, 64)),
        "seeds that differ by 2**32": ((0, 0, 0), (2**32, 0, 0)),
    }
    short = rng.sample(range(100, 900), NUM_PAIRS // 5)
    # 7, 1, 13 and 71, 1, 3 have the same digits, and so have, with the position before the seed, 31, 1, 107 and
    # 3, 1, 1107. A seed of three digits is met again neither with a 1 behind it nor with a 1 before it.
    return {name: stepped(rng, *steps) for name, steps in names.items()} | {
        "a seed and its negative": [((s, 0, p), (-s, 0, p)) for s in short for p in range(3, 8)],
        "places with the same digits, seed first": [((s, 1, 10 + p), (10 * s + 1, 1, p)) for s in short for p in range(3, 8)],
        "places with the same digits, position first": [
            ((s, 1, 10 * p + 1), (1000 + s, 1, p)) for s in short for p in range(3, 8)],
    }
