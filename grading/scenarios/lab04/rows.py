"""Rows of logits for Lab 04's checks, and how logits are compared. Knows nothing of what a sampler does with them."""

import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grading.judge.checks import expect, hold, kept, look, shown
from grading.sandbox.worker.peer import Remote
from nano_qwen3_serving import SamplingParams
from nano_qwen3_serving.interfaces import SamplingRow

INF = math.inf
LN2 = math.log(2)
WEATHER = tuple(LN2 * power for power in (3, 2, 1, 0, -1, -1))
"""The README's row: probabilities 1/2, 1/4, 1/8, 1/16, 1/32, 1/32."""
EXACT = 4 * 2**-24
"""Relative error of two or three correctly rounded float32 operations, each at most 2**-24."""
CANCELLED = 1e-5
"""What ten roundings of numbers up to 32, each at most 2**-20, leave when the numbers cancel."""
HALF = (torch.bfloat16, torch.float16)


def row(
    seed: int = 0, *, prompt: Sequence[int] = (1, 2, 3), output: Sequence[int] = (), index: int = 0, **params: Any
) -> SamplingRow:
    """A row of logits that wants `params`."""
    return SamplingRow(SamplingParams(**params), list(prompt), list(output), seed, index)


def random_logits(rng: random.Random, num_rows: int, vocab_size: int) -> Tensor:
    """[num_rows, vocab_size], from -10 to 10."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    return (3 * torch.randn(num_rows, vocab_size, generator=generator)).clamp(-10, 10)


def weather(rng: random.Random) -> tuple[Tensor, list[int]]:
    """The README's row with its tokens in another order, and that order: the token of 1/2 first."""
    order = rng.sample(range(6), 6)
    logits = torch.empty(6)
    logits[order] = torch.tensor(WEATHER)
    return logits, order


def across(lab: Remote, logits: Tensor) -> Remote:
    """A tensor of this value, held there, whose rows are not contiguous."""
    return kept(hold(lab, logits.T.contiguous()).t)


def repeated(lab: Remote, logits: Tensor, num_rows: int) -> Remote:
    """One row, held there, as so many equal ones."""
    return kept(hold(lab, logits[None]).expand, num_rows, -1)


def numbers(logits: Tensor) -> str:
    """A row as it is printed."""
    return f"[{', '.join(f'{x:.3f}' for x in logits.tolist())}]"


def expect_logits(found: Any, expected: Any, what: str) -> None:
    """`found` is float32 and `expected` (nested lists or float64) up to float32's rounding."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    right = isinstance(found, Tensor) and found.dtype == torch.float32 and found.shape == expected.shape
    expect(right, f"{what}: expected a tensor of shape {list(expected.shape)}, float32; got {shown(found)}")
    wrong = (~torch.isclose(found.double(), expected, rtol=EXACT, atol=CANCELLED)).nonzero().tolist()
    if wrong:
        i, token = wrong[0]
        expect(False, f"{what}: {len(wrong)} logits are wrong, the first of them that of token {token} in row {i}: "
                      f"expected {expected[i, token]:.6f}, got {found[i, token]:.6f}")


def expect_untouched(held: Remote, before: Tensor, what: str) -> None:
    """The tensor that a function was given there is as it was."""
    expect(torch.equal(look(held), before), f"{what} changed the logits it was given; log-probabilities are still wanted of them")
