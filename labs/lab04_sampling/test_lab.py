"""Lab 04's one suite. It tests what `starter.py` does: functions on rows of logits, then the engine.

All of it: pytest test_lab.py        One TODO: pytest test_lab.py -k todo_3

The hand-sized examples are those of the README; what is drawn beside them comes from `rng`, the same in each run.
"""

import itertools
import math
import operator
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from labs.harness.catalog import lab_at
from labs.harness.mixed_engine.part import load_seam
from labs.harness.suite.expecting import kind_of, shown
from labs.harness.suite.first_fault import FirstFault, first_fault
from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.interfaces import SamplingRow
from nano_qwen3_serving.outputs import Logprob

INF = math.inf
LN2 = math.log(2)
EXACT = 4 * 2**-24
"""Relative error of two or three correctly rounded float32 operations, each at most 2**-24."""
CANCELLED = 1e-5
"""What a few roundings of numbers up to 32, each at most 2**-20, leave when the numbers cancel."""


def row(
    seed: int = 0, *, prompt: Sequence[int] = (1, 2, 3), output: Sequence[int] = (), index: int = 0, **params: Any
) -> SamplingRow:
    """A row of logits that wants `params`."""
    return SamplingRow(SamplingParams(**params), list(prompt), list(output), seed, index)


def weather(*size: int) -> Tensor:
    """The README's row, probabilities 1/2, 1/4, 1/8, 1/16, 1/32, 1/32; with sizes, [*size, 6] such rows."""
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0, -1.0, -1.0]) * LN2
    return logits.repeat(*size, 1) if size else logits


def shuffled_weather(rng: random.Random) -> tuple[Tensor, list[int]]:
    """The README's row with its tokens in another order, and that order: the token of 1/2 first."""
    order = rng.sample(range(6), 6)
    logits = torch.empty(6)
    logits[order] = weather()
    return logits, order


def random_logits(rng: random.Random, num_rows: int, vocab_size: int) -> Tensor:
    """[num_rows, vocab_size], from -10 to 10."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    return (3 * torch.randn(num_rows, vocab_size, generator=generator)).clamp(-10, 10)


def across(there, logits: Tensor):
    """The same rows, held where the part is, not contiguous: a column of them lies in one piece."""
    return there.kept(there.hold(logits.T.contiguous()).t)


def repeated(there, logits: Tensor, num_rows: int):
    """One row, held where the part is, as so many equal ones."""
    return there.kept(there.hold(logits[None]).expand, num_rows, -1)


def asked(lab, function: str, logits, *rows) -> Tensor:
    """What the lab's function makes of a copy of these logits: it must be a tensor.

    Whether the function leaves its input as it was is asked once for each TODO, and costs what that test is worth.
    """
    result = getattr(lab, function)(logits.clone() if isinstance(logits, Tensor) else logits, *rows)
    missing = ": is a return missing?" if result is None else ""
    assert isinstance(result, Tensor), f"{function}() returned {shown(result)}; expected a tensor{missing}"
    return result


def unchanged(lab, there, function: str, held, *rows) -> Tensor:
    """What the lab's function makes of these logits, which lie where it is and must stay as they are."""
    before = there.look(held).clone()
    result = getattr(lab, function)(held, *rows)
    assert torch.equal(there.look(held), before), (
        f"{function}() changed the logits it was given; log-probabilities are still wanted of them")
    assert isinstance(result, Tensor), f"{function}() returned {shown(result)}; expected a tensor"
    return result


def assert_logits(result: Tensor, expected, what: str) -> None:
    """`result` is float32 and `expected` (nested lists or float64) up to float32's rounding."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert result.dtype == torch.float32, f"{what}: expected float32, got {result.dtype}"
    assert result.shape == expected.shape, f"{what}: expected shape {tuple(expected.shape)}, got {tuple(result.shape)}"
    off = (~torch.isclose(result.double(), expected, rtol=EXACT, atol=CANCELLED)).nonzero().tolist()
    if off:
        i, token = off[0]
        raise AssertionError(f"{what}: {len(off)} logits are wrong, the first of them that of token {token} in row {i}: "
                             f"expected {expected[i, token]:.6f}, got {result[i, token]:.6f}")


@pytest.fixture(autouse=True)
def quick_manual_seed(monkeypatch):
    """torch.manual_seed without its 2 ms for accelerators that are not used here; the same for the CPU."""
    monkeypatch.setattr(torch, "manual_seed", torch.default_generator.manual_seed)


# TODO 1: greedy


def assert_greedy(lab, logits, expected: list[int], what: str) -> None:
    """greedy_tokens() of these logits is these tokens."""
    tokens = asked(lab, "greedy_tokens", logits)
    assert_tokens_of(tokens, len(expected))
    assert tokens.tolist() == expected, f"{what}: expected the tokens {expected}, got {tokens.tolist()}"


def assert_tokens_of(tokens: Tensor, num_rows: int) -> None:
    """One token per row."""
    assert tokens.dtype == torch.int64 and tokens.shape == (num_rows,), (
        f"expected int64 of shape ({num_rows},), one token per row; got {tokens.dtype} of shape {tuple(tokens.shape)}")


@pytest.mark.todo(1, points=2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_todo_1_takes_the_largest_logit_of_each_row(lab, rng, dtype):
    logits = torch.tensor([[0.5, 2.0, -1.0, 1.0], [7.0, -3.0, 2.0, 6.0], [-9.0, -8.0, -7.0, -6.0]], dtype=dtype)
    assert_greedy(lab, logits, [1, 0, 3], f"rows {logits.tolist()}")
    assert_greedy(lab, logits[1:2], [0], "a batch of one row, 7 -3 2 6")
    size = rng.randrange(5, 30)
    places = [rng.sample(range(size), size) for _ in range(rng.randrange(4, 7))]
    logits = (torch.tensor(places) / 2 - rng.randrange(20)).to(dtype)
    largest = [scores.index(size - 1) for scores in places]
    assert_greedy(lab, logits, largest, f"{dtype} logits of {len(places)} rows")
    assert_greedy(lab, logits[1:2], largest[1:2], f"a batch of the one row {logits[1].tolist()}")


@pytest.mark.todo(1, points=1)
def test_todo_1_of_equal_logits_the_smallest_id_wins(lab, rng):
    for size in (1, 2, 4, 6, 8, 33, rng.randrange(9, 60)):  # in short rows some functions of torch take another
        assert_greedy(lab, torch.zeros(3, size), [0, 0, 0], f"three rows of {size} equal logits; the smallest id wins")
    drawn = [rng.sample(range(1, 5000), rng.randrange(2, 6)) for _ in range(4)]
    ties = [[5, 3], [4, 1, 2], [4999, 17, 2500, 4000], [0, 4999], *drawn]
    logits = random_logits(rng, len(ties), 5000)
    for scores, tied in zip(logits, ties, strict=True):
        scores[tied] = 20.0
    assert_greedy(lab, logits, [min(tied) for tied in ties],
                  f"in {len(ties)} rows the tokens {ties} share the largest logit, and the smallest id wins")


@pytest.mark.todo(1, points=1)
def test_todo_1_compares_logits_and_not_rounded_probabilities(lab, rng):
    logits = torch.full((3, 4), 0.125)
    best = rng.randrange(1, 4)
    for scores, token in zip(logits, (2, best), strict=False):
        scores[token] = torch.nextafter(scores[token], torch.tensor(1.0))  # larger by the last bit alone
    logits[2] = torch.tensor([-200.0, -150.0, 200.0, 199.0])
    assert_greedy(lab, logits, [2, best, 2],
                  "the largest logit of the first two rows is larger by the last bit alone, which softmax would round away")
    closer = 1.0 + 2.0**-40 * torch.tensor([[0, 2, 1], rng.sample(range(3), 3)], dtype=torch.float64)
    assert_greedy(lab, closer, closer.argmax(dim=1).tolist(),
                  "logits of float64, from 1 on by steps of 2**-40. Compare logits in the float type they come in")


@pytest.mark.todo(1, points=1)
def test_todo_1_takes_any_memory_layout_and_removed_tokens(lab, rng, there):
    rows = torch.tensor([[-INF, 3.0, -INF, 1.0], [1.0, -INF, 2.0, -INF]])
    assert_greedy(lab, across(there, rows), [1, 2], "two rows of four tokens, not contiguous")
    size = rng.randrange(4, 20)
    left = [rng.randrange(1, size) for _ in range(7)]
    removed = torch.full((7, size), -INF)
    removed[range(7), left] = torch.tensor([rng.uniform(-90, -1) for _ in left])
    assert_greedy(lab, removed, left, f"rows in which all tokens but {left} are removed, -inf")
    logits = random_logits(rng, 7, 19)
    assert_greedy(lab, across(there, logits), logits.argmax(dim=1).tolist(), "seven rows of a transposed tensor")
    unchanged(lab, there, "greedy_tokens", across(there, logits))


# TODO 2: temperature


def divided(logits: Tensor, temperatures: list[float]) -> Tensor:
    """Each row by its temperature, in float64; a greedy one as it is."""
    return logits.double() / torch.tensor([t or 1.0 for t in temperatures], dtype=torch.float64)[:, None]


def rows_with(temperatures: list[float]) -> list[SamplingRow]:
    """A row for each."""
    return [row(temperature=t) for t in temperatures]


@pytest.mark.todo(2, points=3)
def test_todo_2_divides_each_row_by_its_own_temperature(lab, rng, there):
    temperatures = [0.5, 1.0, 2.0, 0.01, *(rng.uniform(0.2, 2) for _ in range(3))]
    logits, rows = random_logits(rng, 7, rng.randrange(20, 60)), rows_with(temperatures)
    expected = divided(logits, temperatures)
    assert_logits(asked(lab, "apply_temperature", across(there, logits), rows), expected,
                  f"rows with temperatures {shown(temperatures)}: a low one spreads logits, a high one brings them closer")
    for i in (2, 5):
        assert_logits(asked(lab, "apply_temperature", logits[i : i + 1], rows[i : i + 1]), expected[i : i + 1],
                      f"a batch of one row, temperature {temperatures[i]:.3f}")


@pytest.mark.todo(2, points=3)
def test_todo_2_leaves_greedy_rows_as_they_are(lab, rng):
    mixed = rng.sample([0.0, rng.uniform(0.3, 0.9), 0.0, rng.uniform(1.1, 1.9)], 4)
    for logits, temperatures in ((weather(3), [0.0, 0.5, 0.0]), (random_logits(rng, 4, 8), mixed)):
        logits[:, 3] = 0.0
        scaled = asked(lab, "apply_temperature", logits, rows_with(temperatures))
        assert scaled.isfinite().all(), "dividing by 0 gives inf, and 0/0 gives nan: a greedy row keeps its logits"
        assert_logits(scaled, divided(logits, temperatures), f"temperatures {shown(temperatures)}; 0 leaves a row as it is")


@pytest.mark.todo(2, points=1)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_todo_2_divides_in_float32_whatever_comes_in(lab, rng, dtype):
    # A quotient rounded to bfloat16 (float16) is off by up to 2**-9 (2**-12) of itself, some logits of
    # four hundred by more than a quarter of that, 1e-4 and more; float32 stays under EXACT and CANCELLED.
    temperatures = [rng.uniform(0.55, 0.95), rng.uniform(1.05, 1.9)]
    logits = random_logits(rng, 2, 200).to(dtype)
    for own in (temperatures, temperatures[:1], [temperatures[1]] * 2):  # also where all rows have one temperature
        rows = logits[: len(own)]
        assert_logits(asked(lab, "apply_temperature", rows, rows_with(own)), divided(rows, own),
                      f"{dtype} logits, divided by the temperatures {shown(own)}. If just the later digits differ: make the "
                      "logits float32 first, then divide")


@pytest.mark.todo(2, points=1)
def test_todo_2_a_call_that_divides_knows_nothing_of_those_before_it(lab, rng, there):
    rows = there.hold(rows_with([0.5, 2.0]))
    for temperatures in ([0.5, 2.0], [2.0, 0.5], [0.25, 0.0], [rng.uniform(0.3, 1.9), rng.uniform(0.3, 1.9)]):
        rows.clear()  # the engine may use one list for all steps
        rows.extend(rows_with(temperatures))
        assert_logits(asked(lab, "apply_temperature", weather(2), rows), divided(weather(2), temperatures),
                      f"the same list of rows again, which now have the temperatures {shown(temperatures)}: "
                      "what is kept by a list or a number of rows is out of date")


@pytest.mark.todo(2, points=1)
def test_todo_2_dividing_does_not_change_what_it_is_given(lab, rng, there):
    temperatures = [0.5, 0.0, rng.uniform(1.1, 1.9)]
    logits = random_logits(rng, 3, 9)
    logits[:, rng.randrange(9)] = -INF
    scaled = unchanged(lab, there, "apply_temperature", there.hold(logits.clone()), rows_with(temperatures))
    assert_logits(scaled, divided(logits, temperatures), "rows with a removed token, -inf, which stays removed")


# TODO 3: top-k, top-p, min-p


def kept_by_hand(logits: Sequence[float], top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> set[int]:
    """The tokens that remain, one step of the definition after the other."""
    kept = sorted((t for t, logit in enumerate(logits) if logit > -INF), key=lambda t: -logits[t])
    if 0 < top_k < len(kept):
        kept = [t for t in kept if logits[t] >= logits[kept[top_k - 1]]]
    weights = {t: math.exp(logits[t] - logits[kept[0]]) for t in kept}
    if top_p < 1:
        total, reached, last = sum(weights.values()), 0.0, kept[0]
        for last in kept:
            reached += weights[last]
            if reached >= top_p * total:
                break
        kept = [t for t in kept if logits[t] >= logits[last]]
    return {t for t in kept if weights[t] >= min_p}


def left_by_hand(logits: Tensor, **filters: Any) -> Tensor:
    """One row with -inf for the tokens that are removed."""
    left = torch.full_like(logits, -INF)
    tokens = sorted(kept_by_hand(logits.tolist(), **filters))
    left[tokens] = logits[tokens]
    return left


def clear(logits: Sequence[float], **filters: Any) -> bool:
    """Whether rounding cannot change what is kept: a little more or less keeps the same tokens. The README promises it."""
    shares = {name: filters[name] for name in ("top_p", "min_p") if filters.get(name, 1.0) < 1}
    less, more = ({name: value * part for name, value in shares.items()} for part in (0.9998, 1.0002))
    return kept_by_hand(logits, **filters | less) == kept_by_hand(logits, **filters | more)


def percents(rng: random.Random) -> list[int]:
    """Of six tokens, in any order: none under 3, no two closer than 2, 100 in all."""
    while True:
        cuts = sorted(rng.sample(range(1, 100), 5))
        shares = [high - low for low, high in itertools.pairwise([0, *cuts, 100])]
        ordered = sorted(shares)
        if ordered[0] >= 3 and all(high - low >= 2 for low, high in itertools.pairwise(ordered)):
            return shares


def log(*shares: float) -> list[float]:
    """Logits with these probabilities, as float32 has them; shifted, for logits need not be log-probabilities."""
    return torch.tensor([math.log(share / sum(shares)) - 2.5 for share in shares]).tolist()


SIX = (10, 40, 6, 25, 4, 15)
"""Percents of the tokens 0 to 5."""


def kept(lab, logits, **params) -> set[int]:
    """The tokens that the lab's keep_top leaves of one row."""
    left = asked(lab, "keep_top", torch.as_tensor(logits, dtype=torch.float32)[None], [row(**params)])
    assert left.dim() == 2 and left.shape[0] == 1, f"keep_top() of one row returned {shown(left)}"
    return set(left[0].isfinite().nonzero()[:, 0].tolist())


def assert_keeps(lab, logits: list[float], filters: dict, why: str) -> None:
    """keep_top() leaves of one row what the definition says."""
    expected, tokens = kept_by_hand(logits, **filters), kept(lab, logits, **filters)
    assert tokens == expected, f"{why}: {filters} keeps the tokens {shown(sorted(expected))}, not {shown(sorted(tokens))}"


@pytest.mark.todo(3, points=3)
def test_todo_3_top_k_keeps_the_k_likeliest(lab, rng):
    expected = {1: {1}, 2: {1, 3}, 3: {1, 3, 5}, 5: {0, 1, 2, 3, 5}, 6: set(range(6)), 7: set(range(6)), 5000: set(range(6))}
    for top_k, tokens in expected.items():
        left = kept(lab, log(*SIX), top_k=top_k)
        assert left == tokens, f"top_k={top_k} of six tokens keeps {tokens}, not {left}"
    for off in (0, -1):
        left = kept(lab, log(*SIX), top_k=off)
        assert left == set(range(6)), f"top_k={off} is off: all six tokens are kept, not {left}"
    shares = percents(rng)
    for top_k in (1, 2, 3, 4, 5, 6, rng.randrange(8, 9000)):
        assert_keeps(lab, log(*shares), {"top_k": top_k}, f"tokens 0 to 5 have {shares} percent")


@pytest.mark.todo(3, points=3)
def test_todo_3_top_p_keeps_the_token_that_crosses_the_border_and_none_after(lab, rng):
    expected = {0.001: {1}, 0.39: {1}, 0.41: {1, 3}, 0.64: {1, 3}, 0.66: {1, 3, 5}, 0.97: set(range(6))}
    for top_p, tokens in expected.items():
        left = kept(lab, log(*SIX), top_p=top_p)
        assert left == tokens, (
            f"probabilities .40 .25 .15 .10 .06 .04 of tokens 1 3 5 0 2 4: the smallest set that reaches "
            f"top_p={top_p} is {tokens}, not {left}"
        )
    shares = percents(rng)
    for below, at in itertools.pairwise([0, *itertools.accumulate(sorted(shares, reverse=True))]):
        assert_keeps(lab, log(*shares), {"top_p": rng.uniform(below + 0.3, at - 0.3) / 100},
                     f"tokens 0 to 5 have {shares} percent, and the smallest set that reaches top_p is kept")


@pytest.mark.todo(3, points=1)
def test_todo_3_top_p_of_one_is_off_however_unlikely_a_token_is(lab, rng):
    logits = torch.zeros(rng.randrange(2500, 3500))
    logits[rng.randrange(len(logits))] = 25.0  # has all but 5e-8 of the probability: in float32, everything
    left = kept(lab, logits, top_p=1.0)
    assert len(left) == len(logits), f"top_p=1.0 removes nothing; of {len(logits)} tokens {len(left)} were kept"


@pytest.mark.todo(3, points=3)
def test_todo_3_min_p_is_a_share_of_the_likeliest_tokens_probability(lab, rng):
    expected = {0.05: set(range(6)), 0.12: {0, 1, 2, 3, 5}, 0.2: {0, 1, 3, 5}, 0.3: {1, 3, 5}, 0.5: {1, 3}, 0.7: {1}, 1.0: {1}}
    for min_p, tokens in expected.items():
        left = kept(lab, log(*SIX), min_p=min_p)
        assert left == tokens, (
            f"the likeliest token has .40, so min_p={min_p} keeps probabilities from {0.4 * min_p:.3f}: {tokens}, not {left}"
        )
    shares = percents(rng)
    for below, at in itertools.pairwise([0.01, *(share / max(shares) for share in sorted(shares))]):
        assert_keeps(lab, log(*shares), {"min_p": rng.uniform(below * 1.005, at * 0.995)},
                     f"tokens 0 to 5 have {shares} percent, and min_p keeps what has that share of the likeliest")


def where_order_matters(rng: random.Random, first: str, second: str) -> tuple[list[int], dict]:
    """Percents, and two filters that keep other tokens if the second of them runs before the first."""
    while True:
        shares, filters = percents(rng), {"top_k": rng.randrange(2, 6), "top_p": rng.uniform(0.3, 0.95),
                                          "min_p": rng.uniform(0.1, 0.9)}
        filters = {name: filters[name] for name in (first, second)}
        logits = log(*shares)
        backwards = left_by_hand(torch.tensor(logits), **{second: filters[second]}).tolist()
        tokens = kept_by_hand(backwards, **{first: filters[first]})
        if tokens != kept_by_hand(logits, **filters) and clear(logits, **filters):
            return shares, filters


@pytest.mark.todo(3, points=3)
def test_todo_3_top_k_then_top_p_then_min_p(lab, rng):
    sharper = 2 * weather()  # the README's row at temperature 0.5
    left = kept(lab, sharper, top_k=3, top_p=0.95)
    assert left == {0, 1}, f"of the three that top_k=3 keeps, the first two have .952: top_p=0.95 keeps {{0, 1}}, not {left}"
    left = kept(lab, log(40, 30, 10, 10, 6, 4), top_p=0.5, min_p=0.5)
    assert left == {0, 1}, f".40 alone is not 0.5: top_p keeps {{0, 1}}, and then min_p keeps both; got {left}"
    for others in ({"top_k": 2}, {"top_p": 0.7}):
        left = kept(lab, weather(), min_p=0.6, **others)
        assert left == {0}, (
            f"{others} leaves 1/2 and 1/4, that is 2/3 and 1/3. Of these min_p=0.6 keeps what has 0.6 of 2/3: "
            f"expected {{0}}, got {left}"
        )
    for first, second in (("top_k", "top_p"), ("top_p", "min_p")) * 3:
        shares, filters = where_order_matters(rng, first, second)
        assert_keeps(lab, log(*shares), filters, f"tokens 0 to 5 have {shares} percent; {first} comes before {second}")
    assert_min_p_compares_with_what_is_left(lab, rng)


def assert_min_p_compares_with_what_is_left(lab, rng: random.Random) -> None:
    """Under 0.8 of all is left, so a min_p that is compared with a probability of before the filters keeps other tokens.

    The likeliest has the share a, the next b, six others 1.75 b; min_p is just above b / a, and just below.
    """
    for _ in range(3):
        a, b = rng.uniform(0.45, 0.55), rng.uniform(0.12, 0.16)
        shares = rng.sample([a, b, *(b * part / 12 for part in range(1, 7))], 8)
        best, second = (share / sum(shares) for share in (a, b))
        for filters in ({"top_k": 2}, {"top_p": best + second / 2}):
            for near in (1.05, 0.95):
                assert_keeps(lab, log(*shares), {"min_p": near * b / a, **filters},
                             f"the best two of eight tokens have {best:.3f} and {second:.3f}")


@pytest.mark.todo(3, points=2)
def test_todo_3_equal_logits_are_kept_or_removed_alike(lab, rng):
    logits = [1.0, 4.0, 2.0, 4.0, 2.0, 2.0, 0.0]
    shift = rng.randrange(-4, 5)
    shuffled = [logit + shift for logit in rng.sample(logits, 7)]
    for filters, tokens in [
        ({"top_k": 1}, {1, 3}), ({"top_k": 2}, {1, 3}), ({"top_k": 3}, {1, 2, 3, 4, 5}), ({"top_k": 4}, {1, 2, 3, 4, 5}),
        ({"top_p": 0.1}, {1, 3}), ({"top_p": 0.85}, {1, 2, 3, 4, 5}), ({"min_p": 1.0}, {1, 3}), ({"min_p": 0.1}, {1, 2, 3, 4, 5}),
        # Of the five that top_k leaves, the two fours have .831; of the first three in a sorted row, .937.
        ({"top_k": 3, "top_p": 0.8}, {1, 3}), ({"top_k": 3, "top_p": 0.9}, {1, 2, 3, 4, 5}),
    ]:
        left = kept(lab, logits, **filters)
        assert left == tokens, f"logits {logits}, {filters}: equals stay together, so {tokens} remain, not {left}"
        assert_keeps(lab, shuffled, filters, f"logits {shuffled}, of which equal ones stay together")


def clear_filters(rng: random.Random, logits: Sequence[float]) -> dict:
    """Filters of every kind of which rounding cannot change the outcome."""
    while True:
        filters = {"top_k": rng.choice([-1, 0, 1, 3, 7, 20, 100]), "top_p": rng.choice([1.0, rng.uniform(0.01, 0.99)]),
                   "min_p": rng.choice([0.0, rng.uniform(0.001, 0.9)])}
        if clear(logits, **filters):
            return filters


@pytest.mark.todo(3, points=2)
def test_todo_3_in_a_mixed_batch_each_row_obeys_its_own_filters(lab, rng, there):
    logits = random_logits(rng, 160, 20) / 3
    for scores in logits[:60]:
        scores[rng.sample(range(20), rng.randrange(1, 16))] = -INF  # removed before
    filters = [clear_filters(rng, scores) for scores in logits.tolist()]
    expected = torch.stack([left_by_hand(scores, **own) for scores, own in zip(logits, filters, strict=True)])
    left = asked(lab, "keep_top", across(there, logits), [row(**own) for own in filters])
    assert left.shape == logits.shape, f"expected shape {tuple(logits.shape)}, got {tuple(left.shape)}"
    for i in (left.isfinite() != expected.isfinite()).any(dim=1).nonzero()[:, 0].tolist():
        wanted, tokens = (scores[i].isfinite().nonzero()[:, 0].tolist() for scores in (expected, left))
        raise AssertionError(f"row {i} of {len(left)} with {filters[i]}: expected tokens {wanted}, got {tokens}")
    assert_logits(left, expected, "kept logits stay as they are, the others are -inf")


@pytest.mark.todo(3, points=1)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_todo_3_filters_in_float32_whatever_comes_in(lab, rng, dtype):
    # 600 tokens, the likeliest of 0.3 %: summed up in bfloat16 (float16), to 8 (11) bits, they reach 0.9 far too early or never
    logits = (random_logits(rng, 1, 600) / 10).to(dtype)
    top_p = rng.uniform(0.85, 0.95)
    while not clear(logits[0].tolist(), top_p=top_p):
        top_p = rng.uniform(0.85, 0.95)
    expected = left_by_hand(logits[0].float(), top_p=top_p)[None]
    count = int(expected.isfinite().sum())
    assert_logits(asked(lab, "keep_top", logits, [row(top_p=top_p)]), expected,
                  f"{dtype} logits become float32 before they are filtered; top_p={top_p} keeps {count} of 600")


@pytest.mark.todo(3, points=1)
def test_todo_3_a_call_that_filters_knows_nothing_of_those_before_it(lab, rng, there):
    steps = [[{"top_k": 1}, {"top_p": 0.7}], [{"top_p": 0.7}, {"top_k": 1}], [{"min_p": 0.2}, {"top_k": 5}],
             rng.sample([{"top_k": 2}, {"top_p": 0.6}, {"min_p": 1.0}, {"top_k": 4}], 2)]
    rows = there.hold([])  # the engine may use one list for all steps
    for filters in steps:
        rows.clear()
        rows.extend([row(**own) for own in filters])
        left = asked(lab, "keep_top", weather(2), rows)
        assert_logits(left, torch.stack([left_by_hand(weather(), **own) for own in filters]),
                      f"the same list of rows again, which now want {filters}: what is kept by a list or a number of rows is out "
                      "of date")


@pytest.mark.todo(3, points=1)
@pytest.mark.parametrize("wishes", [{"top_k": 2}, {"top_p": 0.7}, {"min_p": 0.3}, {}], ids=str)
def test_todo_3_filtering_does_not_change_what_it_is_given(lab, there, wishes):
    unchanged(lab, there, "keep_top", there.hold(weather(2)), [row(**wishes), row(top_k=1)])


# TODO 4: penalties and logit bias


def adjusted_by_hand(logits: Sequence[float], row: SamplingRow) -> list[float]:
    """Bias, repetition, frequency and presence, token by token."""
    p, adjusted = row.params, []
    for token, logit in enumerate(logits):
        logit += (p.logit_bias or {}).get(token, 0.0)
        if token in row.prompt_token_ids or token in row.output_token_ids:
            logit = logit / p.repetition_penalty if logit > 0 else logit * p.repetition_penalty
        logit -= p.frequency_penalty * row.output_token_ids.count(token)
        logit -= p.presence_penalty * (token in row.output_token_ids)
        adjusted.append(logit)
    return adjusted


def story_of_the_worst(adjusted: Tensor, expected: list[list[float]], logits: Tensor, rows: list[SamplingRow]) -> str:
    """Of the logit that is off most: whose it is, what was asked for it, and what came."""
    if adjusted.shape != logits.shape:
        return ""
    off = (adjusted.double() - torch.tensor(expected, dtype=torch.float64)).abs().nan_to_num(INF)
    i, token = divmod(int(off.argmax()), logits.shape[1])
    p, prompt, output = rows[i].params, rows[i].prompt_token_ids, rows[i].output_token_ids
    return (
        f"; farthest off is token {token} of row {i}: raw logit {logits[i, token]:.4f}, "
        f"bias {(p.logit_bias or {}).get(token, 0.0):.4f}, {prompt.count(token)} times in the prompt and {output.count(token)} "
        f"in the output, repetition_penalty={p.repetition_penalty}, frequency_penalty={p.frequency_penalty:.4f}, "
        f"presence_penalty={p.presence_penalty:.4f}: expected {expected[i][token]:.4f}, got {adjusted[i, token]:.4f}"
    )


def assert_adjusted(adjusted: Tensor, logits: Tensor, rows: list[SamplingRow], what: str) -> None:
    """apply_penalties() has made of these logits what the definition says."""
    expected = [adjusted_by_hand(scores, row) for scores, row in zip(logits.double().tolist(), rows, strict=True)]
    assert_logits(adjusted, expected, what + story_of_the_worst(adjusted, expected, logits, rows))


def assert_penalties(lab, logits: Tensor, rows: list[SamplingRow], what: str) -> None:
    """apply_penalties() gives what the definition says."""
    assert_adjusted(asked(lab, "apply_penalties", logits, rows), logits, rows, what)


def eight(rng: random.Random, num_rows: int) -> Tensor:
    """Rows of eight logits of every sign, none of them near 0 but one that is 0."""
    return torch.tensor([rng.sample([4.0, 3.0, 1.5, 0.5, 0.0, -0.5, -2.0, -4.0], 8) for _ in range(num_rows)])


def history(rng: random.Random) -> tuple[list[int], list[int]]:
    """A prompt and an output with repeated tokens, some of them in both."""
    a, b, c, d, *_ = rng.sample(range(8), 8)
    return [c, c, a], [a, b, a, d, d, d, a]


@pytest.mark.todo(4, points=3)
def test_todo_4_a_bias_is_added_to_the_logit_and_to_no_other_row(lab, rng):
    logits = torch.tensor([[1.0, -2.0, 0.5, 3.0]] * 3)
    adjusted = asked(lab, "apply_penalties", logits, [row(), row(logit_bias={1: 4.0, 3: -100.0}), row(logit_bias={0: -0.5})])
    expected = [[1.0, -2.0, 0.5, 3.0], [1.0, 2.0, 0.5, -97.0], [0.5, -2.0, 0.5, 3.0]]
    assert_logits(adjusted, expected, "biases {1: 4, 3: -100} in the second row, {0: -0.5} in the third")
    a, b, c = rng.sample(range(8), 3)
    biases = [None, {a: rng.uniform(1, 9), b: -100.0}, {c: -rng.uniform(0.1, 5)}]
    assert_penalties(lab, eight(rng, 3), [row(logit_bias=bias) for bias in biases], f"three rows with logit_bias {biases}")


@pytest.mark.todo(4, points=3)
@pytest.mark.parametrize("penalty", [2.0, 0.5])
def test_todo_4_repetition_makes_tokens_of_prompt_and_output_less_likely_once(lab, rng, penalty):
    logits = torch.tensor([[4.0, -4.0, 3.0, -3.0, 1.0, -1.0, 0.0]])
    rows = [row(repetition_penalty=penalty, prompt=[0, 1, 0, 6], output=[2, 3, 3, 2, 0])]
    adjusted = asked(lab, "apply_penalties", logits, rows)
    expected = [[4 / penalty, -4 * penalty, 3 / penalty, -3 * penalty, 1.0, -1.0, 0.0]]
    assert_logits(adjusted, expected, f"repetition_penalty={penalty}: positive logits are divided, negative multiplied, "
                                      "tokens 0 to 3 and 6 once each however often they occur, 4 and 5 never")
    a, b, c, d, e, f, *_ = rng.sample(range(8), 8)
    penalty *= rng.uniform(0.7, 1.5)
    one = row(repetition_penalty=penalty, prompt=[a, b, a, c, d], output=[e, f, f, e, a])
    assert_penalties(lab, eight(rng, 1), [one], f"repetition_penalty={penalty:.3f}, prompt {one.prompt_token_ids}, output "
                                                f"{one.output_token_ids}: once for each token that occurs in either")


@pytest.mark.todo(4, points=2)
def test_todo_4_frequency_counts_each_occurrence_in_the_output(lab, rng):
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2)
    rows = [row(frequency_penalty=0.5, prompt=[0, 0, 1], output=[1, 3, 1, 1]), row(frequency_penalty=-1.0, output=[2, 2])]
    adjusted = asked(lab, "apply_penalties", logits, rows)
    assert_logits(adjusted, [[1.0, 0.5, 3.0, 3.5], [1.0, 2.0, 5.0, 4.0]],
                  "frequency_penalty=0.5, output [1, 3, 1, 1], prompt [0, 0, 1]: three times 0.5 for token 1, once for 3")
    prompt, output = history(rng)
    rows = [row(frequency_penalty=sign * rng.uniform(0.2, 1.5), prompt=prompt, output=output) for sign in (1, -1)]
    assert_penalties(lab, eight(rng, 2), rows, f"prompt {prompt}, output {output}: frequency_penalty, above 0 or below, once for "
                                               "each occurrence in the output")


@pytest.mark.todo(4, points=2)
def test_todo_4_presence_is_subtracted_once_for_tokens_of_the_output(lab, rng):
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2)
    rows = [row(presence_penalty=0.5, prompt=[0, 0, 1], output=[1, 3, 1, 1]), row(presence_penalty=1.5, prompt=[2], output=[])]
    adjusted = asked(lab, "apply_penalties", logits, rows)
    assert_logits(adjusted, [[1.0, 1.5, 3.0, 3.5], [1.0, 2.0, 3.0, 4.0]],
                  "presence_penalty=0.5, output [1, 3, 1, 1], prompt [0, 0, 1]: once for 1 and 3; "
                  "an empty output changes nothing")
    prompt, output = history(rng)
    rows = [row(presence_penalty=sign * rng.uniform(0.2, 1.5), prompt=prompt, output=output) for sign in (1, -1)]
    assert_penalties(lab, eight(rng, 3), [*rows, row(frequency_penalty=-1.0, presence_penalty=1.0, prompt=prompt)],
                     f"prompt {prompt}, output {output}: presence_penalty, above 0 or below, once for each token of the output; "
                     "in row 2 the output is empty, and nothing changes")


@pytest.mark.todo(4, points=3)
def test_todo_4_all_together_in_the_right_order_for_every_row(lab, rng, there):
    rows = []
    for _ in range(40):
        prompt, output = ([rng.randrange(16) for _ in range(rng.randrange(low, 12))] for low in (1, 0))
        rows.append(row(prompt=prompt, output=output, logit_bias={rng.randrange(16): rng.uniform(-9, 9) for _ in range(3)},
                        repetition_penalty=rng.choice([0.7, 1.0, 1.8]), frequency_penalty=rng.uniform(-2, 2),
                        presence_penalty=rng.uniform(-2, 2)))
    logits, order = random_logits(rng, 40, 16), "first the bias, then repetition, then frequency and presence"
    assert_adjusted(asked(lab, "apply_penalties", across(there, logits), rows), logits, rows, order)
    i = rng.randrange(40)
    assert_penalties(lab, logits[i : i + 1], rows[i : i + 1], f"row {i} in a batch of one")


@pytest.mark.todo(4, points=1)
def test_todo_4_what_was_generated_since_the_last_step_counts(lab, rng, there):
    """The engine makes its rows anew for each step, around the request's own lists, which grow."""
    like = row(prompt=[5, 0, 3], output=[0], frequency_penalty=0.5, presence_penalty=rng.uniform(0.3, 1), repetition_penalty=2.0)
    prompt, output = there.hold(list(like.prompt_token_ids)), there.hold(list(like.output_token_ids))
    params = there.hold(like.params)

    def assert_now(read: list[int], written: list[int], what: str) -> None:
        one = there.kept(SamplingRow, params, prompt, output, 0, 0)
        logits = eight(rng, 1)
        assert_adjusted(asked(lab, "apply_penalties", logits, [one]), logits,
                        [replace(like, prompt_token_ids=read, output_token_ids=written)], what)

    written = [0]
    for token in (1, 1, 2, rng.randrange(8)):
        assert_now([5, 0, 3], written, f"the same request again, whose output has grown to {written}")
        output.append(token)
        written = [*written, token]
    for token, other in ((3, 4), rng.sample(range(8), 2)):  # another request's, where the first one's lists lay
        read, written = [token] * 3, [other] * 5
        for held, tokens in ((prompt, read), (output, written)):
            held.clear()
            held.extend(tokens)
        assert_now(read, written, f"lists as long as before, with other tokens: prompt {read}, output {written}. Of a list that "
                                  "is gone the next one may have the place, so what is kept by a list, or by its length, is out "
                                  "of date")
    rows = [row(output=[0], presence_penalty=1.0), row(output=[1], logit_bias={2: 3.0})]
    held = there.hold(list(rows))
    for _ in range(2):
        rows.reverse()
        held.reverse()  # the engine may use one list for all steps
        assert_adjusted(asked(lab, "apply_penalties", weather(2), held), weather(2), rows,
                        "two rows, and the same list with the two in the other order")


@pytest.mark.todo(4, points=1)
def test_todo_4_removed_tokens_stay_removed_and_nothing_is_changed_in_place(lab, rng, there):
    logits, (gone, seen) = eight(rng, 2), rng.sample(range(8), 2)
    logits[:, gone] = -INF
    wishes = {"repetition_penalty": 1.5, "frequency_penalty": 1.0, "presence_penalty": 1.0, "logit_bias": {gone: 50.0, seen: 1.0}}
    rows = [row(output=[gone, seen], **wishes), row()]
    adjusted = unchanged(lab, there, "apply_penalties", there.hold(logits.clone()), rows)
    assert_adjusted(adjusted, logits, rows, f"token {gone} has -inf and stays removed; row 1 has no penalties and stays as it is")
    for dtype in (torch.bfloat16, torch.float64):
        other = random_logits(rng, 1, 30).to(dtype)
        assert_penalties(lab, other, [row(logit_bias={t: rng.uniform(0.001, 0.002) for t in range(30)})],
                         f"{dtype} logits become float32 before anything is added")


# TODO 5: seeds
#
# Draws are random, and these tests still have no luck in them. Let F be the true distribution function
# of a token's number, in an order in which the likeliest comes first, and F_n that of n independent draws. The
# inequality of Dvoretzky, Kiefer and Wolfowitz, with Massart's constant, holds for every n and every F:
#
#     P(max |F_n - F| > gap) <= 2 exp(-2 n gap^2)
#
# One comparison rejects a right sampler with probability at most FALSE_ALARM if 2 exp(-2 n gap^2) =
# FALSE_ALARM, so gap = sqrt(ln(2 / FALSE_ALARM) / (2 n)). All of TODOs 5 and 6 together, of which there are
# at most COMPARISONS, do so with probability 1e-9: probabilities of a union at most add up. A sampler that
# draws from another distribution G, with distance = max |G - F| > gap, stays within the gap only if its own
# F_n is more than distance - gap away from G: with probability at most 2 exp(-2 n (distance - gap)^2). With
# n = 10,000 the gap is 0.035, and any distance from 0.055 on is noticed with probability 0.999. The same for
# pairs of draws: a pair of tokens (a, b) is counted as one number, 4 a + b. What else could go against a right
# sampler is where draws agree, or differ, by chance: once in 4**60 and less, said there. grading/labs/lab04/test_author.py
# counts the comparisons and computes both numbers for wrong samplers.

COMPARISONS = 20
FALSE_ALARM = 1e-9 / COMPARISONS
NUM_DRAWS = 10_000
NUM_PAIRS = 1_000
Place = tuple[int, int, int]
"""Seed, sample index, position."""


def allowed_gap(num_draws: int) -> float:
    """How far the frequencies of a right sampler may be off, cumulated."""
    return math.sqrt(math.log(2 / FALSE_ALARM) / (2 * num_draws))


def distance(some: Sequence[float], others: Sequence[float]) -> float:
    """The largest difference of two distribution functions, the likeliest of `others` first."""
    order = sorted(range(len(others)), key=lambda token: -others[token])
    return max(map(abs, itertools.accumulate(some[token] - others[token] for token in order)))


def assert_frequencies(tokens: list[int], probabilities: Sequence[float], what: str) -> None:
    """The tokens drawn are as frequent as their probabilities say; those of probability 0 never come."""
    counts = Counter(tokens)
    never = sorted(token for token in counts if not 0 <= token < len(probabilities) or probabilities[token] == 0)
    assert not never, f"{what}: the tokens {shown(never)} were drawn, and their probability is 0"
    shares = [counts[token] / len(tokens) for token in range(len(probabilities))]
    assert distance(shares, probabilities) <= allowed_gap(len(tokens)), (
        f"{what}: probabilities {[round(p, 3) for p in probabilities]}, but {len(tokens)} draws gave "
        f"{[round(share, 3) for share in shares]}"
    )


PROMPT_STEP = 64


def rows_at(there, places: Sequence[Place], like: SamplingRow | None = None):
    """A row for each place, like this one; made where the part is, for thousands of rows take long on the way there.

    After the output of `like` come zeros, up to the position; of far positions the most are in the prompt. Equal lists are one.
    """
    like, of, kept = like or row(), there.of, there.kept

    def lists(begin: list[int], zeros: list[int]):
        if not any(zeros):
            return kept(itertools.repeat, begin)
        number = {count: i for i, count in enumerate(dict.fromkeys(zeros))}
        ends = kept(map, of(operator.mul), kept(itertools.repeat, [0]), list(number))
        made = kept(list, kept(map, of(operator.add), kept(itertools.repeat, begin), ends))
        return kept(map, of(operator.getitem), kept(itertools.repeat, made), [number[count] for count in zeros])

    begun = len(like.prompt_token_ids) + len(like.output_token_ids)
    seeds, indices, positions = (list(column) for column in zip(*places, strict=True))
    outputs = [(position - begun) % PROMPT_STEP for position in positions]
    prompts = [position - begun - zeros for position, zeros in zip(positions, outputs, strict=True)]
    return kept(list, kept(
        map, of(SamplingRow), kept(itertools.repeat, there.hold(like.params)), lists(like.prompt_token_ids, prompts),
        lists(like.output_token_ids, outputs), seeds, indices))


def drawn(lab, logits, rows, num_rows: int) -> list[int]:
    """The lab's draws, one token per row."""
    tokens = asked(lab, "draw", logits, rows)
    assert_tokens_of(tokens, num_rows)
    return tokens.tolist()


def drawn_at(lab, there, places: Sequence[Place], vocab_size: int = 4, like: SamplingRow | None = None) -> list[int]:
    """What is drawn at these places of tokens that all have exactly the same probability, so that no rounding can tip a draw."""
    return drawn(lab, repeated(there, torch.zeros(vocab_size), len(places)), rows_at(there, places, like), len(places))


def seeds_from(rng: random.Random, count: int) -> list[Place]:
    """The first draws of requests with seeds that follow each other."""
    first = rng.getrandbits(40)
    return [(first + i, 0, 3) for i in range(count)]


def written_texts(rng: random.Random, num_seeds: int, num_positions: int) -> list[Place]:
    """So many draws in a row of two samples each of requests with seeds that follow each other."""
    first = rng.getrandbits(40)
    return [(first + i, index, 3 + k) for i in range(num_seeds) for index in range(2) for k in range(num_positions)]


@pytest.mark.todo(5, points=2)
@pytest.mark.parametrize("who", ["10,000 requests", "200 samples of 50 tokens"])
def test_todo_5_tokens_are_as_frequent_as_their_probabilities(lab, rng, there, who):
    places = seeds_from(rng, NUM_DRAWS) if who == "10,000 requests" else written_texts(rng, 100, 50)
    logits, order = shuffled_weather(rng)
    tokens = drawn(lab, repeated(there, logits + rng.uniform(-3, 3), NUM_DRAWS), rows_at(there, places), NUM_DRAWS)
    probabilities = [[1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 32][order.index(token)] for token in range(6)]
    assert_frequencies(tokens, probabilities, f"{who}, softmax(logits)")


@pytest.mark.todo(5, points=1)
def test_todo_5_takes_any_float_type_and_memory_layout_and_changes_nothing(lab, rng, there):
    logits = shuffled_weather(rng)[0].bfloat16()
    tokens = drawn(lab, across(there, logits.repeat(NUM_DRAWS, 1)), rows_at(there, seeds_from(rng, NUM_DRAWS)), NUM_DRAWS)
    assert_frequencies(tokens, logits.double().softmax(dim=0).tolist(), "softmax(logits) of bfloat16 logits, not contiguous")
    for few in (there.hold(random_logits(rng, 4, 9)), across(there, weather(4).bfloat16())):
        unchanged(lab, there, "draw", few, rows_at(there, seeds_from(rng, 4)))


@pytest.mark.todo(5, points=6)
@pytest.mark.parametrize("number", ["seed", "sample index", "position"])
def test_todo_5_seed_index_and_position_each_decide(lab, rng, there, number):
    step = {"seed": (1, 0, 0), "sample index": (0, 1, 0), "position": (0, 0, 1)}[number]
    start = rng.getrandbits(31)
    places = [(start + 1000 * k, k % 3, 3 + k) for k in range(64)]  # 64 draws of four tokens agree by chance once in 4**64
    first, second = (drawn_at(lab, there, some) for some in (places, [moved(place, step) for place in places]))
    assert first != second, (
        f"64 rows, and 64 whose {number} is one more, drew the same 64 tokens: the {number} must decide what is drawn")


@pytest.mark.todo(5, points=1)
def test_todo_5_removed_tokens_are_never_drawn(lab, rng, there):
    left = rng.sample(range(6), 2)
    logits = torch.full((6,), -INF)
    logits[left] = torch.tensor([0.0, math.log(3)]) + rng.uniform(-3, 3)
    tokens = drawn(lab, repeated(there, logits, NUM_DRAWS), rows_at(there, seeds_from(rng, NUM_DRAWS)), NUM_DRAWS)
    assert_frequencies(tokens, [{left[0]: 0.25, left[1]: 0.75}.get(token, 0.0) for token in range(6)],
                       f"the tokens {left} are left, one three times as likely")


def moved(place: Place, step: Place) -> Place:
    """The place one step on."""
    return place[0] + step[0], place[1] + step[1], place[2] + step[2]


STEPS = {
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
"""From a start to the one and to the other place of a pair."""
ALIKE = ["a seed and its negative", "places with the same digits, seed first", "places with the same digits, position first"]


def pairs_of_places(rng: random.Random, kind: str) -> list[tuple[Place, Place]]:
    """NUM_PAIRS pairs of this kind, all places different."""
    if kind in STEPS:
        seed = rng.getrandbits(31)
        starts = [(seed + 10 * k, k % 3, 3 + k % 5) for k in range(NUM_PAIRS)]
        return [(moved(start, STEPS[kind][0]), moved(start, STEPS[kind][1])) for start in starts]
    # 7, 1, 13 and 71, 1, 3 have the same digits, whether the index comes first, last or between; and with the position
    # before the seed, 31, 1, 107 and 3, 1, 1107. A seed of three digits is met again neither with a 1 behind it nor with
    # a 1 before it.
    pairs = {
        ALIKE[0]: lambda s, p: ((s, 0, p), (-s, 0, p)),
        ALIKE[1]: lambda s, p: ((s, 1, 10 + p), (10 * s + 1, 1, p)),
        ALIKE[2]: lambda s, p: ((s, 1, 10 * p + 1), (1000 + s, 1, p)),
    }
    return [pairs[kind](s, p) for s in rng.sample(range(100, 900), NUM_PAIRS // 5) for p in range(3, 8)]


@pytest.mark.todo(5, points=2)
@pytest.mark.parametrize("kind", [*STEPS, *ALIKE])
def test_todo_5_draws_at_different_places_know_nothing_of_each_other(lab, rng, there, kind):
    pairs = pairs_of_places(rng, kind)
    tokens = drawn_at(lab, there, [place for pair in pairs for place in pair])
    both = list(zip(tokens[::2], tokens[1::2], strict=True))
    assert all(0 <= token < 4 for token in tokens), f"of four equal tokens draw() took {shown(sorted(set(tokens)))}"
    same, (one, other) = sum(a == b for a, b in both), pairs[1]
    assert_frequencies([4 * a + b for a, b in both], [1 / 16] * 16,
                       f"{kind}, such as (seed, index, position) {one} and {other}, four equal tokens: "
                       "the two draws of a pair must know nothing of each other. "
                       f"Of {NUM_PAIRS} pairs {same} drew one token twice, expected about {NUM_PAIRS // 4}. "
                       "The 16 pairs of tokens (0, 0), (0, 1) ... (3, 3) should be equally frequent")


TEXT = 32
"""Draws in a row of 16 equal tokens: two texts of this length are equal by chance once in 2**128."""


def first_repeated(texts: dict[str, list[int]]) -> str:
    """The names of two texts that are equal, or nothing."""
    seen: dict[tuple, str] = {}
    for name, text in texts.items():
        if (other := seen.setdefault(tuple(text), name)) != name:
            return f"{other} and {name}"
    return ""


@pytest.mark.todo(5, points=2)
@pytest.mark.parametrize("along", ["positions in a row", "positions far apart", "sample indices"])
def test_todo_5_nothing_repeats_however_far_one_goes(lab, rng, there, along):
    far = [0, *(2**k for k in range(6, 18)), *(10**k for k in range(2, 6)), *rng.sample(range(200, 99_999), 4)]
    seed = rng.getrandbits(40)
    starts = {"positions in a row": range(3, 4611, TEXT), "positions far apart": [3 + step for step in far],
              "sample indices": [3] * 256}[along]
    places = [(seed, i if along == "sample indices" else 0, start + k) for i, start in enumerate(starts) for k in range(TEXT)]
    tokens = drawn_at(lab, there, places, vocab_size=16)
    step = 1 if along == "positions in a row" else TEXT
    names = [f"sample index {index}" if along == "sample indices" else f"position {position}" for _, index, position in places]
    texts = {names[i]: tokens[i : i + TEXT] for i in range(0, len(tokens) - TEXT + 1, step)}
    same = first_repeated(texts)
    assert not same, f"the {TEXT} draws of seed {seed} from {same} on are the same: where does a number repeat, or lose digits?"


def differing(some: list, others: list) -> int:
    """How many places of two lists differ."""
    return sum(a != b for a, b in zip(some, others, strict=True))


@pytest.mark.todo(5, points=3)
def test_todo_5_a_draw_does_not_depend_on_the_rows_beside_it(lab, rng, there):
    # Four tokens of exactly 1/4: no rounding can tip a draw. 200 draws agree by chance once in 4**200.
    places = written_texts(rng, 10, 10)
    together = drawn_at(lab, there, places)
    again = drawn_at(lab, there, places)
    assert again == together, f"the same rows again: {differing(again, together)} of 200 draws differ"
    backwards = drawn_at(lab, there, places[::-1])[::-1]
    assert backwards == together, f"with the rows in reverse order {differing(backwards, together)} of 200 draws differ"
    few = rng.sample(range(200), 60)
    alone = [drawn(lab, torch.zeros(1, 4), [row(seed, index=index, output=[0] * (position - 3))], 1)[0]
             for seed, index, position in (places[i] for i in few)]
    beside = [together[i] for i in few]
    assert alone == beside, f"drawn one at a time, {differing(alone, beside)} of 60 draws differ from those of the batch"
    cut = rng.randrange(60, 140)
    parts = drawn_at(lab, there, places[:cut]) + drawn_at(lab, there, places[cut:])
    assert parts == together, f"in batches of {cut} and {200 - cut} rows {differing(parts, together)} of 200 draws differ"


@pytest.mark.todo(5, points=1)
def test_todo_5_of_a_row_seed_index_and_position_count_and_nothing_else(lab, rng, there):
    places = [(seed, index, 9) for seed, index, _ in seeds_from(rng, 64)]  # 64 draws agree by chance once in 4**64
    first = drawn_at(lab, there, places, like=row(prompt=[1, 2, 3]))
    for like, what in [
        (row(prompt=[1, 2, 3, 0, 0, 0]), "a prompt of 6 tokens and an output of 3 instead of 3 and 6, as after a preemption"),
        (row(prompt=[rng.randrange(9) for _ in range(3)], output=[rng.randrange(9) for _ in range(6)]),
         "other tokens in prompt and output"),
        (row(temperature=rng.uniform(0.3, 0.9), presence_penalty=1.0, logprobs=2),
         "other params, which the logits have in them already"),
    ]:
        tokens = drawn_at(lab, there, places, like=like)
        assert tokens == first, f"{what}, and the same seed, index and position: {differing(tokens, first)} of 64 draws differ"


@pytest.mark.todo(5, points=1)
def test_todo_5_torchs_global_generator_is_neither_used_nor_changed(lab, rng, there):
    places, torch_there, as_text = written_texts(rng, 10, 10), there.of(torch), there.of(repr)

    def states_of_others() -> list[str]:
        return [as_text(there.kept(state)) for state in (there.of(random).getstate, there.of(numpy.random).get_state)]

    torch_there.manual_seed(rng.getrandbits(31))
    there.kept(torch_there.rand, rng.randrange(3, 9))  # so that seeding it again does not bring it back
    state, others = there.look(there.kept(torch_there.get_rng_state)), states_of_others()
    first = drawn_at(lab, there, places)
    there.nothing_replaced("numbers")
    assert torch.equal(there.look(there.kept(torch_there.get_rng_state)), state), (
        "torch's global generator was used or seeded: whoever else draws from it now gets other numbers"
    )
    assert states_of_others() == others, (
        "the generator of random or of numpy that all share was used or seeded: whoever else draws from it now gets other "
        "numbers. random.Random(number) is one of your own")
    torch_there.manual_seed(rng.getrandbits(31))
    there.of(random).seed(rng.getrandbits(31))
    second = drawn_at(lab, there, places)
    assert second == first, (
        f"after torch.manual_seed() and random.seed() {differing(second, first)} of 200 draws differ: they depend on something "
        "besides the row")


@pytest.mark.todo(5, points=1)
def test_todo_5_any_number_of_64_bits_is_a_seed(lab, rng, there):
    # among them pairs with one hash() in Python: -1 and -2, 0 and 2**61 - 1
    special = [0, -1, -2, 7, -7, -(2**62) - 12345, 2**31, 2**32 - 1, 2**32, 2**61 - 1, 2**63 - 1, 2**63]
    seeds = list(dict.fromkeys([*special, rng.getrandbits(62), -rng.getrandbits(62)]))
    tokens = drawn_at(lab, there, [(seed, 0, position) for seed in seeds for position in range(3, 35)])
    texts = {seed: tokens[32 * i : 32 * i + 32] for i, seed in enumerate(seeds)}
    # One of at most 91 pairs of texts of 32 draws is equal by chance with probability 91 / 4**32 = 5e-18.
    alike = [seed for seed, text in texts.items() if list(texts.values()).count(text) > 1]
    assert not alike, f"the seeds {alike} gave equal texts of 32 draws"


@pytest.mark.todo(5, points=1)
def test_todo_5_random_numbers_are_fine_enough_for_a_real_vocabulary(lab, rng, there):
    # 2,000 draws from 2,048 equal tokens show about 1,277 different ones. One draw changes that number by
    # at most 1, so by McDiarmid's inequality it is under 1,000 with probability exp(-2 * 277**2 / 2000) < 1e-33.
    # Numbers of 8 bits reach only 256 tokens.
    different = len(set(drawn_at(lab, there, seeds_from(rng, 2000), vocab_size=2048)))
    assert different >= 1000, f"2,000 draws from 2,048 equal tokens gave {different} different ones, expected about 1,277"


# TODO 6: log-probabilities, and the whole sampler


CLOSE = 1e-5
"""log_softmax of few logits in float32: some terms, each rounded by 2**-24, of values up to 20."""


def entries(answer: Any, what: str) -> dict[int, tuple[float, int]]:
    """The log-probabilities and ranks that logprobs_of() returned, or a failure if those are none."""
    assert isinstance(answer, dict), f"{what}: expected a dict from token id to Logprob, got {shown(answer)}"
    values = {}
    for token, entry in answer.items():
        assert type(token) is int, f"{what}: a key of the dict is {shown(token)}; expected a token id, an int"
        assert kind_of(entry) == "Logprob", f"{what}: token {token} has {shown(entry)}; expected a Logprob"
        logprob, rank = values[token] = entry.logprob, entry.rank
        assert type(logprob) is float, f"{what}: the logprob of token {token} is {shown(logprob)}; expected a Python float"
        assert type(rank) is int, f"{what}: the rank of token {token} is {shown(rank)}; expected an int"
    return values


def assert_logprobs(answer: Any, logits: Tensor, chosen: int, count: int, what: str) -> None:
    """The chosen token, then the `count` best, equal ones in any order, with what log_softmax and counting give."""
    exact, scores, values = logits.double().log_softmax(dim=0).tolist(), logits.tolist(), entries(answer, what)
    tokens = list(values)
    assert all(0 <= token < len(scores) for token in tokens), f"{what}: of {len(scores)} tokens these were named: {shown(tokens)}"
    assert tokens[:1] == [chosen], f"{what}: the chosen token, {chosen}, comes first; the tokens were {shown(tokens)}"
    best = sorted(scores, reverse=True)[: len(scores) if count == -1 else count]
    # the chosen token may be one of the best, and then stands there once
    named = [sorted((scores[token] for token in some), reverse=True) for some in (tokens, tokens[1:])]
    assert best in named, f"{what}: expected token {chosen} and the best {len(best)}; the tokens were {shown(tokens)}"
    after = [scores[token] for token in tokens[1:]]
    assert after == sorted(after, reverse=True), (
        f"{what}: after the chosen token the likeliest come first; the tokens were {shown(tokens)}")
    for token, (logprob, rank) in values.items():
        assert abs(logprob - exact[token]) <= CLOSE, (
            f"{what}: token {token} has log-probability {exact[token]:.5f}, not {logprob:.5f}")
        above = sum(other > scores[token] for other in scores)
        assert rank == above + 1, (
            f"{what}: the logits of {above} tokens are above that of token {token}, so its rank is {above + 1}, not {rank}")


@pytest.mark.todo(6, points=2)
@pytest.mark.parametrize("count", [0, 1, 3, 40, 100, -1])
def test_todo_6_logprobs_are_log_softmax_of_the_chosen_token_and_the_best(lab, rng, there, count):
    logits = random_logits(rng, 1, 40)[0]
    order = logits.argsort(descending=True).tolist()
    held = there.kept(across(there, torch.stack([logits, -logits])).select, 0, 0)  # not contiguous
    for chosen in (order[0], order[2], order[rng.randrange(30, 40)]):
        what = f"40 logits, token {chosen}, logprobs={count}"
        assert_logprobs(lab.logprobs_of(held, chosen, count), logits, chosen, count, what)


@pytest.mark.todo(6, points=2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_todo_6_a_rank_is_one_plus_the_number_of_likelier_tokens(lab, rng, dtype):
    logits = torch.tensor([1.0, 5.0, 3.0, 5.0, 2.0, 4.0], dtype=dtype)
    ranks = {1: 1, 3: 1, 5: 3, 2: 4, 4: 5, 0: 6}
    for token, rank in ranks.items():
        _, counted = entries(lab.logprobs_of(logits, token, 0), f"logits {logits.tolist()}, token {token}")[token]
        assert counted == rank, (
            f"logits {logits.tolist()}: {rank - 1} are above that of token {token}, so its rank is {rank}, not {counted}")
    assert_logprobs(lab.logprobs_of(logits, 2, -1), logits, 2, -1, f"logits {logits.tolist()}, token 2, all log-probabilities")
    # bfloat16 keeps 8 bits: a log_softmax that is rounded to it is off by up to 2**-8 at -5; float32 by 1e-6.
    assert_logprobs(lab.logprobs_of(logits, 0, 3), logits, 0, 3, f"logits {logits.tolist()}, {dtype}; log_softmax is taken in "
                                                                 "float32, and the chosen token has its own rank, not its place")
    shuffled = torch.tensor(rng.sample([1.0, 5.0, 3.0, 5.0, 2.0, 4.0, 2.0], 7)).to(dtype)
    for chosen in range(7):  # where equal tokens stand at the border of the best, any of them may be among these
        count = rng.choice([0, 2, 3, -1])
        assert_logprobs(lab.logprobs_of(shuffled, chosen, count), shuffled, chosen, count,
                        f"logits {shuffled.tolist()}, {dtype}, token {chosen}, logprobs={count}")
    best, other = rng.sample(range(4), 2)
    close = torch.full((4,), 0.125)
    close[best] = torch.nextafter(close[best], torch.tensor(1.0))  # larger by the last bit, which log_softmax rounds away
    assert_logprobs(lab.logprobs_of(close, other, 0), close, other, 0,
                    f"the logit of token {best} is larger than three equal ones, by its last bit")
    closer = 1.0 + 2.0**-40 * torch.tensor(rng.sample(range(9), 9), dtype=torch.float64)
    assert_logprobs(lab.logprobs_of(closer, other, 4), closer, other, 4,
                    "logits of float64, from 1 on by steps of 2**-40. Compare logits in the float type they come in; only "
                    "log_softmax is taken in float32")


def sampled(sampler, logits, rows: Sequence[SamplingRow]) -> tuple[list[int], list]:
    """What sample() returns, or a failure if that is not a token for each row, and a dict or None."""
    answer = sampler.sample(logits, rows)
    assert isinstance(answer, tuple) and len(answer) == 2, (
        f"sample() returned {shown(answer)}; expected the tokens and their log-probabilities")
    tokens, logprobs = answer
    assert isinstance(tokens, list) and len(tokens) == len(rows) and all(type(token) is int for token in tokens), (
        f"sample() of {len(rows)} rows gave the tokens {shown(tokens)}; expected a list of ints, one per row")
    assert isinstance(logprobs, list) and len(logprobs) == len(rows), (
        f"sample() of {len(rows)} rows gave the log-probabilities {shown(logprobs)}; expected a list with a dict or None per row")
    return tokens, logprobs


@pytest.mark.todo(6, points=2)
def test_todo_6_the_samplers_logprobs_are_of_the_raw_logits(lab, rng, there):
    wishes = {"temperature": 0.5, "top_k": 2, "repetition_penalty": 1.7, "presence_penalty": 1.0, "logit_bias": {4: 9.0}}
    rows = [row(rng.getrandbits(40), output=[0, 0], logprobs=2, **wishes) for _ in range(12)]
    rows += [row(1), row(1, logprobs=0), row(temperature=0.0, logprobs=1)]
    logits = torch.stack([weather()[rng.sample(range(6), 6)] for _ in rows])  # every row has its tokens in another order
    logits[1] = weather().flip(0)  # one of them in such an order that no token of the best two is drawn
    held = across(there, logits)
    tokens, logprobs = sampled(lab.Sampler(), held, rows)
    assert torch.equal(there.look(held), logits), "sample() changed the logits it was given; log-probabilities are of those"
    for i, (token, answer, own) in enumerate(zip(tokens, logprobs, rows, strict=True)):
        assert 0 <= token < 6, f"sample() chose token {token} of six for row {i}"
        if own.params.logprobs is None:
            assert answer is None, f"a row with logprobs=None gets None, not {shown(answer)}"
        else:
            assert_logprobs(answer, logits[i], token, own.params.logprobs, (
                f"row {i} with logprobs={own.params.logprobs}, its logits as they came, before bias, penalties, temperature and "
                "filters"))


def certain(rng: random.Random, order: list[int]) -> list[tuple[dict, int]]:
    """Wishes of rows with the README's logits for the tokens in `order`, and the token that alone each of them can get."""
    a, b, c, d, e, _ = order
    return [
        ({"temperature": 0.0}, a),
        ({"temperature": 0.0, "logit_bias": {e: rng.uniform(6, 12)}}, e),
        ({"temperature": 0.0, "output": [a, a], "frequency_penalty": rng.uniform(0.5, 1)}, b),
        ({"temperature": 0.0, "prompt": [a], "repetition_penalty": rng.uniform(2, 5)}, b),
        ({"temperature": rng.uniform(1, 2), "top_k": 1}, a),
        ({"temperature": rng.uniform(1, 2), "top_p": 0.01}, a),
        ({"temperature": 1.0, "min_p": 1.0, "output": [a], "presence_penalty": rng.uniform(1, 2)}, b),
        ({"temperature": 0.01, "logit_bias": {c: 2.0}}, c),  # the second best is behind by 0.6 / 0.01: e**-60
        ({"temperature": 1.0, "logit_bias": {d: 100.0}}, d),  # by 98: e**-98
    ]


@pytest.mark.todo(6, points=2)
def test_todo_6_in_a_mixed_batch_each_row_gets_what_it_wants(lab, rng):
    sampler = lab.Sampler()  # the engine has one, and calls it in each step with other rows
    logits, order = shuffled_weather(rng)
    cases = certain(rng, order)
    for _ in range(3):
        rng.shuffle(cases)
        rows = [row(rng.getrandbits(40), **wishes) for wishes, _ in cases]
        tokens, logprobs = sampled(sampler, logits.repeat(len(rows), 1), rows)
        for (wishes, expected), token in zip(cases, tokens, strict=True):
            assert token == expected, (
                f"logits {shown(logits.tolist())}: a row with {wishes} can only get token {expected}; it got {token}")
        assert logprobs == [None] * len(rows), f"no row asked for log-probabilities, and sample() returned {shown(logprobs)}"
    for wishes, expected in cases:
        tokens, _ = sampled(sampler, logits[None].bfloat16(), [row(**wishes)])
        assert tokens == [expected], f"alone, in bfloat16, a row with {wishes} can only get token {expected}; it got {tokens}"
    tokens, _ = sampled(sampler, torch.zeros(64, 4), [row(rng.getrandbits(40), temperature=0.01) for _ in range(64)])
    assert len(set(tokens)) > 1, (  # 64 draws agree by chance once in 4**63
        "of four equal tokens 64 rows with temperature 0.01 all got the same: only temperature 0 is greedy")


WISHES = {
    "all of them": {"temperature": 1.6, "top_k": 5, "top_p": 0.75, "min_p": 0.3, "output": [0, 0, 1],
                    "frequency_penalty": 0.5, "presence_penalty": -0.3, "repetition_penalty": 1.3, "logit_bias": {3: 1.5}},
    "temperature and top_p": {"temperature": 2.0, "top_p": 0.8},
}
"""Of rows with the README's logits: draws are off by 0.08 and more if their steps run in a wrong order."""


def for_tokens(order: Sequence[int], wishes: dict) -> dict:
    """The same wishes where the token of the README's place i is order[i]."""
    changed = {"output": [order[token] for token in wishes.get("output", ())],
               "logit_bias": {order[token]: bias for token, bias in wishes.get("logit_bias", {}).items()} or None}
    return wishes | changed


def probabilities_by_hand(logits: Sequence[float], row: SamplingRow) -> list[float]:
    """What each token should be drawn with, from the definitions."""
    p, adjusted = row.params, adjusted_by_hand(logits, row)
    scaled = [logit / p.temperature for logit in adjusted]
    tokens = kept_by_hand(scaled, p.top_k, p.top_p, p.min_p)
    weights = [math.exp(logit) if t in tokens else 0.0 for t, logit in enumerate(scaled)]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.todo(6, points=2)
@pytest.mark.parametrize("name", WISHES)
def test_todo_6_bias_penalties_temperature_filters_draw_in_this_order(lab, rng, there, name):
    logits, order = shuffled_weather(rng)
    like = row(**for_tokens(order, WISHES[name]))
    rows = rows_at(there, [(seed, 0, 6) for seed, _, _ in seeds_from(rng, NUM_DRAWS)], like)
    tokens, _ = sampled(lab.Sampler(), repeated(there, logits, NUM_DRAWS), rows)
    assert_frequencies(tokens, probabilities_by_hand(logits.tolist(), like),
                       f"rows with {for_tokens(order, WISHES[name])}, tokens from the likeliest on {order}")


@pytest.mark.todo(6, points=1)
def test_todo_6_greedy_rows_draw_nothing(lab, rng, there):
    calls = []

    def watched(logits, rows):
        """Takes the largest, by which each of these rows is known."""
        calls.append(logits.clone())
        return logits.argmax(dim=-1)

    peaks, temperatures = rng.sample(range(6), 6), rng.sample([0.0, 0.0, 0.0, *(rng.uniform(0.5, 1.5) for _ in range(3))], 6)
    greedy = [i for i, t in enumerate(temperatures) if t == 0]
    logits, rows = 9 * torch.eye(6)[peaks], rows_with(temperatures)
    there.put(lab, "draw", watched)
    sampled(lab.Sampler(), logits, rows)
    for_whom = sorted({peaks.index(int(scores.argmax())) for call in calls for scores in call})
    calls.clear()
    sampled(lab.Sampler(), logits[greedy], [rows[i] for i in greedy])
    assert not {*for_whom} & {*greedy}, (
        f"temperatures {shown(temperatures)}: draw() was given the rows {for_whom}; greedy rows need none")
    assert not calls, "a batch of greedy rows alone has nothing to draw, and draw() was called"


class InEngine:
    """The lab's sampler behind its seam as an engine calls it: what it returns is looked at, its first error is kept."""

    def __init__(self, lab, fault: FirstFault) -> None:
        self._sampler, self._fault = load_seam(lab_at(Path(__file__).parent)).sampler(lab, None), fault

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> tuple[list[int], list[dict[int, Logprob] | None]]:
        return self._fault.call(self._sample, logits, rows)

    def _sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> tuple[list[int], list[dict[int, Logprob] | None]]:
        tokens, logprobs = sampled(self._sampler, logits, rows)
        return tokens, [None if answer is None else self._values(answer) for answer in logprobs]

    def _values(self, answer: Any) -> dict[int, Logprob]:
        return {token: Logprob(*entry) for token, entry in entries(answer, "in the engine").items()}


def generated(lab, prompts: Sequence[Any], params: Any, model: str = "course-draft", **arguments: Any) -> list:
    """What the engine writes with the lab's sampler, or with its own if `lab` is None: each request's samples."""
    with first_fault() as fault:
        parts = Components() if lab is None else Components().using(sampler=lambda config: InEngine(lab, fault))
        llm = LLM(str(model), components=parts, device="cpu", dtype="float32", num_gpu_blocks_override=64, **arguments)
        return [output.outputs for output in llm.generate(prompts, params, use_tqdm=False)]


def drawn_prompts(rng: random.Random) -> list[dict[str, list[int]]]:
    """Three prompts of token ids."""
    return [{"prompt_token_ids": [rng.randrange(300, 500) for _ in range(rng.randrange(4, 12))]} for _ in range(3)]


@pytest.mark.todo(6, points=2)
def test_todo_6_in_the_engine_a_seed_gives_one_text_alone_in_a_batch_and_in_chunks(lab, rng):
    lab.Sampler().sample(weather(1), [row()])
    prompts = drawn_prompts(rng)
    params = [SamplingParams(temperature=2.0, seed=rng.getrandbits(40), n=2, max_tokens=8, ignore_eos=True) for _ in prompts]

    def written(which_of_them: slice, **options: Any) -> list[list[list[int]]]:
        """Each request's texts; the logits are the same, to the bit, in every batch."""
        outputs = generated(lab, prompts[which_of_them], params[which_of_them], batch_invariant=True, **options)
        return [[sample.token_ids for sample in samples] for samples in outputs]

    together = written(slice(None))
    alone = [text for i in range(3) for text in written(slice(i, i + 1))]
    assert together == alone, f"three requests with seeds, together {together}, one after the other {alone}"
    chunked = written(slice(None), long_prefill_token_threshold=2, block_size=4)
    assert chunked == alone, f"with prompts in chunks of two tokens {chunked}, in one piece {alone}"


PROMPTS = ["Once upon a time", "My favourite colour is", "What is a KV cache?"]


@pytest.mark.practice  # transformers is not there where labs are graded
@pytest.mark.todo(6, points=2)
def test_todo_6_in_the_engine_greedy_tokens_and_logprobs_equal_transformers(lab, tmp_path):
    lab.Sampler().sample(weather(1), [row(temperature=0.0)])
    from nano_qwen3_serving.model.checkpoint import BUNDLED
    from nano_qwen3_serving.testing.checkpoints import write_random_checkpoint
    from nano_qwen3_serving.testing.oracle import Oracle

    oracle, tokenizer = Oracle(BUNDLED / "course"), LLM("course-draft", num_gpu_blocks_override=64).get_tokenizer()
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    outputs = generated(lab, PROMPTS, SamplingParams(temperature=0.0, max_tokens=8), "course")
    oracle.compare(prompts, oracle.greedy(prompts, 8), [samples[0].token_ids for samples in outputs])

    folder, prompt = write_random_checkpoint(tmp_path / "random"), list(range(40, 51))
    params = SamplingParams(temperature=0.0, max_tokens=4, logprobs=5, ignore_eos=True)
    [[answer]] = generated(lab, [{"prompt_token_ids": prompt}], params, folder)
    exact = Oracle(folder).logits([*prompt, *answer.token_ids])[len(prompt) - 1 :].log_softmax(dim=-1)
    for place, logprobs in enumerate(answer.logprobs):
        for token, entry in logprobs.items():
            # logits of size 20 that two programs compute in float32 differ by up to about 1e-5
            assert entry.logprob == pytest.approx(exact[place, token].item(), abs=1e-3), (
                f"token {token} at place {place}: {exact[place, token]:.4f} in transformers, {entry.logprob:.4f} in the engine")


if __name__ == "__main__":
    raise SystemExit("These are tests. Run them with: pytest test_lab.py")
