"""Lab 04's one suite. It tests what `starter.py` does: functions on rows of logits, then the engine.

All of it: pytest test_lab.py        One TODO: pytest test_lab.py -k todo_3
"""

import functools
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

from labs.harness.catalog import lab_at
from labs.harness.mixed_engine.part import load_seam
from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.interfaces import SamplingRow

INF = math.inf
LN2 = math.log(2)
EXACT = 4 * 2**-24
"""Relative error of two or three correctly rounded float32 operations, each at most 2**-24."""
CANCELLED = 1e-5
"""What a few roundings of numbers up to 32, each at most 2**-20, leave when the numbers cancel."""


def row(seed=0, *, prompt=(1, 2, 3), output=(), index=0, **params) -> SamplingRow:
    """A row of logits that wants `params`."""
    return SamplingRow(SamplingParams(**params), list(prompt), list(output), seed, index)


def weather(*size: int) -> torch.Tensor:
    """The README's row, probabilities 1/2, 1/4, 1/8, 1/16, 1/32, 1/32; with sizes, [*size, 6] such rows.

    A tensor of its own each time: what one test's solution writes into it, no other test sees.
    """
    return (torch.tensor([3.0, 2.0, 1.0, 0.0, -1.0, -1.0]) * LN2).repeat(*size, 1) if size else weather(1)[0]


def random_logits(num_rows: int, vocab_size: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed))


def asked(function, logits: torch.Tensor, *rows) -> torch.Tensor:
    """What the lab's function makes of a copy of these logits: it must be a tensor.

    Whether the function leaves its input as it was is asked once for each TODO, and costs what that test is worth.
    """
    found = function(logits.clone(), *rows)
    missing = ": is a return missing?" if found is None else ""
    assert isinstance(found, torch.Tensor), f"{function.__name__}() returned {found!r}; expected a tensor{missing}"
    return found


def assert_tokens_of(found: torch.Tensor, num_rows: int) -> None:
    """One token per row."""
    assert found.dtype == torch.int64 and found.shape == (num_rows,), (
        f"expected int64 of shape ({num_rows},), one token per row; got {found.dtype} of shape {tuple(found.shape)}")


def assert_unchanged(function, logits: torch.Tensor, *rows) -> torch.Tensor:
    """What the lab's function makes of these logits, which must stay as they are."""
    before = logits.clone()
    found = function(logits, *rows)
    assert torch.equal(logits, before), (
        f"{function.__name__}() changed the logits it was given; log-probabilities are still wanted of them")
    return found


def assert_logits(found, expected, what: str) -> None:
    """`found` is float32 and `expected` (nested lists or float64) up to float32's rounding."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert found.dtype == torch.float32, f"{what}: expected float32, got {found.dtype}"
    assert found.shape == expected.shape, f"{what}: expected shape {tuple(expected.shape)}, got {tuple(found.shape)}"
    torch.testing.assert_close(found.double(), expected, rtol=EXACT, atol=CANCELLED, msg=lambda text: f"{what}\n{text}")


@pytest.fixture(autouse=True)
def quick_manual_seed(monkeypatch):
    """torch.manual_seed without its 2 ms for accelerators that are not used here; the same for the CPU."""
    monkeypatch.setattr(torch, "manual_seed", torch.default_generator.manual_seed)


# TODO 1: greedy


@pytest.mark.todo(1, points=2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_todo_1_takes_the_largest_logit_of_each_row(lab, dtype):
    logits = torch.tensor([[0.5, 2.0, -1.0, 1.0], [7.0, -3.0, 2.0, 6.0], [-9.0, -8.0, -7.0, -6.0]], dtype=dtype)
    found = asked(lab.greedy_tokens, logits)
    assert_tokens_of(found, 3)
    assert found.tolist() == [1, 0, 3], f"the largest logits are those of tokens [1, 0, 3], not {found.tolist()}"
    alone = asked(lab.greedy_tokens, logits[1:2])
    assert alone.shape == (1,) and alone.tolist() == [0], f"a batch of one row gave {alone.tolist()}, expected [0]"


@pytest.mark.todo(1, points=1)
def test_todo_1_of_equal_logits_the_smallest_id_wins(lab):
    for size in (1, 2, 4, 6, 8, 33):  # in rows of a few tokens some functions of torch do not take the first
        found = asked(lab.greedy_tokens, torch.zeros(3, size)).tolist()
        assert found == [0, 0, 0], f"three rows of {size} equal logits: expected tokens [0, 0, 0], the smallest id; got {found}"
    ties = [[5, 3], [4, 1, 2], [4999, 17, 2500, 4000], [0, 4999]]
    logits = random_logits(len(ties), 5000)
    for scores, tied in zip(logits, ties, strict=True):
        scores[tied] = 20.0
    found, smallest = asked(lab.greedy_tokens, logits).tolist(), [min(tied) for tied in ties]
    assert found == smallest, (
        f"in four rows the tokens {ties} share the largest logit: expected {smallest}, the smallest ids; got {found}")


@pytest.mark.todo(1, points=1)
def test_todo_1_compares_logits_and_not_rounded_probabilities(lab):
    logits = torch.full((2, 4), 0.125)
    logits[0, 2] = torch.nextafter(torch.tensor(0.125), torch.tensor(1.0))  # larger by the last bit alone
    logits[1] = torch.tensor([-200.0, -150.0, 200.0, 199.0])
    found = asked(lab.greedy_tokens, logits)
    assert_tokens_of(found, 2)
    assert found.tolist() == [2, 2], (
        f"token 2 has the largest logit of both rows, in the first by the last bit alone: expected [2, 2], got "
        f"{found.tolist()}. Softmax would round these logits to equal probabilities"
    )
    found = asked(lab.greedy_tokens, torch.tensor([[1.0, 1.0 + 2**-40, 1.0 + 2**-41]], dtype=torch.float64)).tolist()
    assert found == [1], (
        f"logits of float64, 1 + 2**-40 the largest: expected [1], got {found}. Compare logits in the float type they come in")


@pytest.mark.todo(1, points=1)
def test_todo_1_takes_any_memory_layout_and_removed_tokens(lab):
    columns = torch.tensor([[-INF, 1.0], [3.0, -INF], [-INF, 2.0], [1.0, -INF]])
    found = asked(lab.greedy_tokens, columns.T).tolist()  # two rows of four tokens, not contiguous
    assert found == [1, 2], f"expected tokens [1, 2] of the transposed rows, got {found}"
    assert_unchanged(lab.greedy_tokens, columns.T)


# TODO 2: temperature


@pytest.mark.todo(2, points=3)
def test_todo_2_divides_each_row_by_its_own_temperature(lab):
    temperatures = [0.5, 1.0, 2.0, 0.01, 1.3]
    logits = random_logits(50, 5).T  # not contiguous: [5, 50]
    rows = [row(temperature=t) for t in temperatures]
    found = asked(lab.apply_temperature, logits, rows)
    expected = logits.double() / torch.tensor(temperatures, dtype=torch.float64)[:, None]
    assert_logits(found, expected,
                  f"rows with temperatures {temperatures}: a low one spreads logits, a high one brings them closer")
    assert_logits(asked(lab.apply_temperature, logits[2:3], rows[2:3]), expected[2:3], "a batch of one row, temperature 2")


@pytest.mark.todo(2, points=3)
def test_todo_2_leaves_greedy_rows_as_they_are(lab):
    found = asked(lab.apply_temperature, weather(3), [row(temperature=0.0), row(temperature=0.5), row(temperature=0.0)])
    assert found.isfinite().all(), "dividing by 0 gives inf, and 0/0 gives nan: a greedy row keeps its logits"
    assert_logits(found, torch.stack([weather(), 2 * weather(), weather()]), "temperatures 0, 0.5 and 0")


@pytest.mark.todo(2, points=1)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_todo_2_divides_in_float32_whatever_comes_in(lab, dtype):
    # A quotient rounded to bfloat16 (float16) is off by up to 2**-9 (2**-12) of itself, some logits of
    # fifty by more than a quarter of that, 1e-4 and more; float32 stays under EXACT and CANCELLED.
    logits = random_logits(1, 50).to(dtype)
    found = asked(lab.apply_temperature, logits, [row(temperature=0.7)])
    assert_logits(found, logits.double() / 0.7, f"{dtype} logits, each divided by the temperature 0.7. If just "
                                                  "the later digits differ: make the logits float32 first, then divide")


@pytest.mark.todo(2, points=1)
def test_todo_2_a_call_knows_nothing_of_those_before_it(lab):
    rows = [row(temperature=0.5), row(temperature=2.0)]
    for temperatures in ([0.5, 2.0], [2.0, 0.5], [0.25, 0.0]):  # the engine may use one list for all steps
        rows[:] = [row(temperature=t) for t in temperatures]
        found = asked(lab.apply_temperature, weather(2), rows)
        expected = torch.stack([weather().double() / (t or 1.0) for t in temperatures])
        assert_logits(found, expected, f"the same list of rows again, which now have the temperatures {temperatures}: "
                                       "what is kept by a list or a number of rows is out of date")


@pytest.mark.todo(2, points=1)
def test_todo_2_does_not_change_what_it_is_given(lab):
    logits = weather(2)
    logits[0, 3] = -INF
    found = assert_unchanged(lab.apply_temperature, logits, [row(temperature=0.5), row(temperature=2.0)])
    assert found[0, 3] == -INF, "a removed token, -inf, stays removed"


# TODO 3: top-k, top-p, min-p


def kept_by_hand(logits: list[float], top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> set[int]:
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


def kept(lab, logits, **params) -> set[int]:
    """The tokens that the lab's keep_top leaves of one row."""
    logits = torch.as_tensor(logits, dtype=torch.float32)[None]
    (found,) = asked(lab.keep_top, logits, [row(**params)])
    return set(found.isfinite().nonzero()[:, 0].tolist())


def log(*probabilities: float) -> list[float]:
    """Logits with these probabilities, shifted, for logits need not be log-probabilities."""
    return [math.log(p) - 2.5 for p in probabilities]


SIX = log(0.10, 0.40, 0.06, 0.25, 0.04, 0.15)


@pytest.mark.todo(3, points=3)
def test_todo_3_top_k_keeps_the_k_likeliest(lab):
    wanted = {1: {1}, 2: {1, 3}, 3: {1, 3, 5}, 5: {0, 1, 2, 3, 5}, 6: set(range(6)), 7: set(range(6)), 5000: set(range(6))}
    for top_k, tokens in wanted.items():
        found = kept(lab, SIX, top_k=top_k)
        assert found == tokens, f"top_k={top_k} of six tokens keeps {tokens}, not {found}"
    for off in (0, -1):
        found = kept(lab, SIX, top_k=off)
        assert found == set(range(6)), f"top_k={off} is off: all six tokens are kept, not {found}"


@pytest.mark.todo(3, points=3)
def test_todo_3_top_p_keeps_the_token_that_crosses_the_border_and_none_after(lab):
    wanted = {0.001: {1}, 0.39: {1}, 0.41: {1, 3}, 0.64: {1, 3}, 0.66: {1, 3, 5}, 0.97: set(range(6))}
    for top_p, tokens in wanted.items():
        found = kept(lab, SIX, top_p=top_p)
        assert found == tokens, (
            f"probabilities .40 .25 .15 .10 .06 .04 of tokens 1 3 5 0 2 4: the smallest set that reaches "
            f"top_p={top_p} is {tokens}, not {found}"
        )


@pytest.mark.todo(3, points=1)
def test_todo_3_top_p_of_one_is_off_however_unlikely_a_token_is(lab):
    logits = torch.zeros(3000)
    logits[7] = 25.0  # has all but 4e-8 of the probability: in float32, everything
    found = kept(lab, logits, top_p=1.0)
    assert len(found) == 3000, f"top_p=1.0 removes nothing; of 3,000 tokens {len(found)} were kept"


@pytest.mark.todo(3, points=3)
def test_todo_3_min_p_is_a_share_of_the_likeliest_tokens_probability(lab):
    wanted = {0.05: set(range(6)), 0.12: {0, 1, 2, 3, 5}, 0.2: {0, 1, 3, 5}, 0.3: {1, 3, 5}, 0.5: {1, 3}, 0.7: {1}, 1.0: {1}}
    for min_p, tokens in wanted.items():
        found = kept(lab, SIX, min_p=min_p)
        assert found == tokens, (
            f"the likeliest token has .40, so min_p={min_p} keeps probabilities from {0.4 * min_p:.3f}: {tokens}, not {found}"
        )


@pytest.mark.todo(3, points=3)
def test_todo_3_top_k_then_top_p_then_min_p(lab):
    sharper = 2 * weather()  # the README's row at temperature 0.5
    found = kept(lab, sharper, top_k=3, top_p=0.95)
    assert found == {0, 1}, f"of the three that top_k=3 keeps, the first two have .952: top_p=0.95 keeps {{0, 1}}, not {found}"
    found = kept(lab, log(0.40, 0.30, 0.10, 0.10, 0.06, 0.04), top_p=0.5, min_p=0.5)
    assert found == {0, 1}, f".40 alone is not 0.5: top_p keeps {{0, 1}}, and then min_p keeps both; got {found}"
    for others in ({"top_k": 2}, {"top_p": 0.7}):
        found = kept(lab, weather(), min_p=0.6, **others)
        assert found == {0}, (
            f"{others} leaves 1/2 and 1/4, that is 2/3 and 1/3. Of these min_p=0.6 keeps what has 0.6 of 2/3: "
            f"expected {{0}}, got {found}"
        )


@pytest.mark.todo(3, points=2)
def test_todo_3_equal_logits_are_kept_or_removed_alike(lab):
    logits = [1.0, 4.0, 2.0, 4.0, 2.0, 2.0, 0.0]
    for params, tokens in [
        ({"top_k": 1}, {1, 3}), ({"top_k": 2}, {1, 3}), ({"top_k": 3}, {1, 2, 3, 4, 5}), ({"top_k": 4}, {1, 2, 3, 4, 5}),
        ({"top_p": 0.1}, {1, 3}), ({"top_p": 0.85}, {1, 2, 3, 4, 5}), ({"min_p": 1.0}, {1, 3}), ({"min_p": 0.1}, {1, 2, 3, 4, 5}),
        # Of the five that top_k leaves, the two fours have .831; of the first three in a sorted row, .937.
        ({"top_k": 3, "top_p": 0.8}, {1, 3}), ({"top_k": 3, "top_p": 0.9}, {1, 2, 3, 4, 5}),
    ]:
        found = kept(lab, logits, **params)
        assert found == tokens, f"logits {logits}, {params}: equals stay together, so {tokens} remain, not {found}"


def clear_filters(logits: list[float], rng: random.Random, top_p: tuple[float, float] | None = None) -> dict:
    """Filters of which rounding cannot change the outcome: a little more or less keeps the same tokens.

    With a range of `top_p`, one of those is all there is.
    """
    borders = top_p
    while True:
        top_k = rng.choice([-1, 0, 1, 3, 7, 20, 100])
        top_p, min_p = rng.choice([1.0, rng.uniform(0.01, 0.99)]), rng.choice([0.0, rng.uniform(0.001, 0.9)])
        if borders is not None:
            top_k, top_p, min_p = 0, rng.uniform(*borders), 0.0
        less = kept_by_hand(logits, top_k, top_p * 0.9999 if top_p < 1 else 1.0, min_p * 0.9999)
        more = kept_by_hand(logits, top_k, top_p * 1.0001 if top_p < 1 else 1.0, min_p * 1.0001)
        if less == more:
            return {"top_k": top_k, "top_p": top_p, "min_p": min_p}


@pytest.mark.todo(3, points=2)
def test_todo_3_in_a_mixed_batch_each_row_obeys_its_own_filters(lab):
    rng, logits = random.Random(4), (random_logits(20, 200, seed=4) / 3).T  # 200 rows of 20 tokens, not contiguous
    logits[5:20, 3] = -INF
    filters = [clear_filters(scores, rng) for scores in logits.tolist()]
    found = asked(lab.keep_top, logits, [row(**wishes) for wishes in filters])
    expected = torch.full_like(logits, -INF)
    for i, wishes in enumerate(filters):
        tokens = kept_by_hand(logits[i].tolist(), **wishes)
        expected[i, list(tokens)] = logits[i, list(tokens)]
        got = set(found[i].isfinite().nonzero()[:, 0].tolist())
        assert got == tokens, f"row {i} of 200 with {wishes}: expected tokens {sorted(tokens)}, got {sorted(got)}"
    assert_logits(found, expected, "kept logits stay as they are, the others are -inf")


@pytest.mark.todo(3, points=1)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_todo_3_filters_in_float32_whatever_comes_in(lab, dtype):
    # 600 tokens, the likeliest of 0.2 %: summed up in bfloat16 (float16), to 8 (11) bits, they reach 0.9 far too early or never
    logits = (random_logits(1, 600, seed=3) / 10).to(dtype)
    wishes = clear_filters(logits[0].tolist(), random.Random(1), top_p=(0.85, 0.95))
    found = asked(lab.keep_top, logits, [row(**wishes)])
    tokens = kept_by_hand(logits[0].tolist(), **wishes)
    expected = torch.full((1, 600), -INF)
    expected[0, list(tokens)] = logits[0, list(tokens)].float()
    assert_logits(found, expected, f"{dtype} logits become float32 before they are filtered; {wishes} keeps {len(tokens)} of 600")


@pytest.mark.todo(3, points=1)
def test_todo_3_a_call_knows_nothing_of_those_before_it(lab):
    rows = [row(top_k=1), row(top_p=0.7)]
    for filters in ([{"top_k": 1}, {"top_p": 0.7}], [{"top_p": 0.7}, {"top_k": 1}], [{"min_p": 0.2}, {"top_k": 5}]):
        rows[:] = [row(**wishes) for wishes in filters]  # the engine may use one list for all steps
        found = [set(scores.isfinite().nonzero()[:, 0].tolist()) for scores in asked(lab.keep_top, weather(2), rows)]
        wanted = [kept_by_hand(weather().tolist(), **wishes) for wishes in filters]
        assert found == wanted, (
            f"the same list of rows again, which now want {filters}: expected the tokens {wanted}, got {found}. What is kept by "
            "a list or a number of rows is out of date")


@pytest.mark.todo(3, points=1)
@pytest.mark.parametrize("wishes", [{"top_k": 2}, {"top_p": 0.7}, {"min_p": 0.3}, {}], ids=str)
def test_todo_3_does_not_change_what_it_is_given(lab, wishes):
    assert_unchanged(lab.keep_top, weather(2), [row(**wishes), row(top_k=1)])


# TODO 4: penalties and logit bias


def adjusted_by_hand(logits: list[float], row: SamplingRow) -> list[float]:
    """Bias, repetition, frequency and presence, token by token."""
    p, found = row.params, []
    for token, logit in enumerate(logits):
        logit += (p.logit_bias or {}).get(token, 0.0)
        if token in row.prompt_token_ids or token in row.output_token_ids:
            logit = logit / p.repetition_penalty if logit > 0 else logit * p.repetition_penalty
        logit -= p.frequency_penalty * row.output_token_ids.count(token)
        logit -= p.presence_penalty * (token in row.output_token_ids)
        found.append(logit)
    return found


@pytest.mark.todo(4, points=3)
def test_todo_4_a_bias_is_added_to_the_logit_and_to_no_other_row(lab):
    logits = torch.tensor([[1.0, -2.0, 0.5, 3.0]] * 3)
    found = asked(lab.apply_penalties, logits, [row(), row(logit_bias={1: 4.0, 3: -100.0}), row(logit_bias={0: -0.5})])
    expected = [[1.0, -2.0, 0.5, 3.0], [1.0, 2.0, 0.5, -97.0], [0.5, -2.0, 0.5, 3.0]]
    assert_logits(found, expected, "biases {1: 4, 3: -100} in the second row, {0: -0.5} in the third")


@pytest.mark.todo(4, points=3)
@pytest.mark.parametrize("penalty", [2.0, 0.5])
def test_todo_4_repetition_makes_tokens_of_prompt_and_output_less_likely_once(lab, penalty):
    logits = torch.tensor([[4.0, -4.0, 3.0, -3.0, 1.0, -1.0, 0.0]])
    found = asked(lab.apply_penalties, logits, [row(repetition_penalty=penalty, prompt=[0, 1, 0, 6], output=[2, 3, 3, 2, 0])])
    expected = [[4 / penalty, -4 * penalty, 3 / penalty, -3 * penalty, 1.0, -1.0, 0.0]]
    assert_logits(found, expected, f"repetition_penalty={penalty}: positive logits are divided, negative multiplied, "
                                   "tokens 0 to 3 and 6 once each however often they occur, 4 and 5 never")


@pytest.mark.todo(4, points=2)
def test_todo_4_frequency_counts_each_occurrence_in_the_output(lab):
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2)
    rows = [row(frequency_penalty=0.5, prompt=[0, 0, 1], output=[1, 3, 1, 1]), row(frequency_penalty=-1.0, output=[2, 2])]
    found = asked(lab.apply_penalties, logits, rows)
    assert_logits(found, [[1.0, 0.5, 3.0, 3.5], [1.0, 2.0, 5.0, 4.0]],
                  "frequency_penalty=0.5, output [1, 3, 1, 1], prompt [0, 0, 1]: three times 0.5 for token 1, once for 3")


@pytest.mark.todo(4, points=2)
def test_todo_4_presence_is_subtracted_once_for_tokens_of_the_output(lab):
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2)
    rows = [row(presence_penalty=0.5, prompt=[0, 0, 1], output=[1, 3, 1, 1]), row(presence_penalty=1.5, prompt=[2], output=[])]
    found = asked(lab.apply_penalties, logits, rows)
    assert_logits(found, [[1.0, 1.5, 3.0, 3.5], [1.0, 2.0, 3.0, 4.0]],
                  "presence_penalty=0.5, output [1, 3, 1, 1], prompt [0, 0, 1]: once for 1 and 3; "
                  "an empty output changes nothing")


def story_of_the_worst(found, expected, logits, rows: list[SamplingRow]) -> str:
    """Of the logit that is off most: whose it is, what was asked for it, and what came."""
    if found.shape != logits.shape:
        return ""
    off = (found.double() - torch.tensor(expected, dtype=torch.float64)).abs().nan_to_num(INF)
    i, token = divmod(int(off.argmax()), logits.shape[1])
    p, prompt, output = rows[i].params, rows[i].prompt_token_ids, rows[i].output_token_ids
    return (
        f"; farthest off is token {token} of row {i}: raw logit {logits[i, token]:.4f}, "
        f"bias {(p.logit_bias or {}).get(token, 0.0):.4f}, {prompt.count(token)} times in the prompt and {output.count(token)} "
        f"in the output, repetition_penalty={p.repetition_penalty}, frequency_penalty={p.frequency_penalty:.4f}, "
        f"presence_penalty={p.presence_penalty:.4f}: expected {expected[i][token]:.4f}, found {found[i, token]:.4f}"
    )


@pytest.mark.todo(4, points=3)
def test_todo_4_all_together_in_the_right_order_for_every_row(lab):
    rng, logits = random.Random(7), random_logits(16, 40, seed=7).T  # 40 rows of 16 tokens, not contiguous
    rows = []
    for _ in range(40):
        prompt, output = ([rng.randrange(16) for _ in range(rng.randrange(low, 12))] for low in (1, 0))
        rows.append(row(prompt=prompt, output=output, logit_bias={rng.randrange(16): rng.uniform(-9, 9) for _ in range(3)},
                        repetition_penalty=rng.choice([0.7, 1.0, 1.8]), frequency_penalty=rng.uniform(-2, 2),
                        presence_penalty=rng.uniform(-2, 2)))
    expected = [adjusted_by_hand(scores, r) for scores, r in zip(logits.double().tolist(), rows, strict=True)]
    found = asked(lab.apply_penalties, logits, rows)
    order = "first the bias, then repetition, then frequency and presence"
    assert_logits(found, expected, order + story_of_the_worst(found, expected, logits, rows))
    alone, one = asked(lab.apply_penalties, logits[9:10], rows[9:10]), expected[9:10]
    assert_logits(alone, one, "row 9 in a batch of one" + story_of_the_worst(alone, one, logits[9:10], rows[9:10]))


@pytest.mark.todo(4, points=1)
def test_todo_4_what_was_generated_since_the_last_step_counts(lab):
    one = row(output=[0], prompt=[5], frequency_penalty=0.5, repetition_penalty=2.0)
    for token in (1, 1, 2):
        found = asked(lab.apply_penalties, torch.full((1, 6), 4.0), [one])
        expected = adjusted_by_hand([4.0] * 6, one)
        assert_logits(found, [expected], f"the same row again, whose output has grown to {one.output_token_ids}")
        one.output_token_ids.append(token)  # the engine's lists grow like this
    for prompt, output in (([5], [3, 4, 4]), ([1], [3, 2, 2])):
        one.prompt_token_ids[:], one.output_token_ids[:] = prompt, output  # another request's, where the first one's lay
        found = asked(lab.apply_penalties, torch.full((1, 6), 4.0), [one])
        assert_logits(found, [adjusted_by_hand([4.0] * 6, one)],
                      f"lists as long as before, with other tokens: prompt {prompt}, output {output}. Of a list that is gone the "
                      "next one may have the place, so what is kept by a list, or by its length, is out of date")
    rows = [row(output=[0], presence_penalty=1.0), row(output=[1], logit_bias={2: 3.0})]
    for _ in range(2):
        rows.reverse()  # the engine may use one list for all steps
        found = asked(lab.apply_penalties, weather(2), rows)
        expected = [adjusted_by_hand(weather().double().tolist(), one) for one in rows]
        assert_logits(found, expected, "two rows, and the same list with the two in the other order")


@pytest.mark.todo(4, points=1)
def test_todo_4_removed_tokens_stay_removed_and_nothing_is_changed_in_place(lab):
    logits = weather(2)
    logits[:, 0] = -INF
    before = logits.clone()
    wishes = {"repetition_penalty": 1.5, "frequency_penalty": 1.0, "presence_penalty": 1.0, "logit_bias": {0: 50.0, 1: 1.0}}
    found = assert_unchanged(lab.apply_penalties, logits, [row(output=[0, 1], **wishes), row()])
    assert found[0, 0] == -INF, f"a removed token, -inf, stays removed; it has {found[0, 0]}"
    assert torch.equal(found[1], before[1]), "a row without penalties must come back as it was"
    for dtype in (torch.bfloat16, torch.float64):
        other = weather(1).to(dtype)
        found = asked(lab.apply_penalties, other, [row(logit_bias={0: 0.001})])
        assert_logits(found, other.double() + torch.tensor([0.001, 0, 0, 0, 0, 0]),
                      f"{dtype} logits become float32 before anything is added")


# TODO 5: seeds
#
# Draws are random, and these tests still have no luck in them. Let F be the true distribution function
# of a token's id and F_n that of n independent draws. The inequality of Dvoretzky, Kiefer and Wolfowitz,
# with Massart's constant, holds for every n and every F:
#
#     P(max |F_n - F| > gap) <= 2 exp(-2 n gap^2)
#
# One comparison rejects a right sampler with probability at most FALSE_ALARM if 2 exp(-2 n gap^2) =
# FALSE_ALARM, so gap = sqrt(ln(2 / FALSE_ALARM) / (2 n)). All of TODOs 5 and 6 together, of which there are
# at most COMPARISONS, do so with probability 1e-9: probabilities of a union at most add up. A sampler that
# draws from another distribution G, with distance = max |G - F| > gap, stays within the gap only if its own
# F_n is more than distance - gap away from G: with probability at most 2 exp(-2 n (distance - gap)^2). With
# n = 10,000 the gap is 0.035, and any distance from 0.055 on is noticed with probability 0.999. The same for
# pairs of draws: a pair of tokens (a, b) is counted as one number. grading/labs/lab04/test_author.py counts the
# comparisons and computes both numbers for wrong samplers.

COMPARISONS = 20
FALSE_ALARM = 1e-9 / COMPARISONS
NUM_DRAWS = 10_000
NUM_PAIRS = 1_000


def allowed_gap(num_draws: int) -> float:
    """How far the frequencies of a right sampler may be off, cumulated."""
    return math.sqrt(math.log(2 / FALSE_ALARM) / (2 * num_draws))


def assert_frequencies(drawn: list[int], probabilities: list[float], what: str) -> None:
    """The tokens drawn are as frequent as their probabilities say; those of probability 0 never come."""
    counts = Counter(drawn)
    never = sorted(token for token in counts if not 0 <= token < len(probabilities) or probabilities[token] == 0)
    assert not never, f"{what}: tokens {never} were drawn, and their probability is 0"
    expected = found = gap = 0.0
    for token, probability in enumerate(probabilities):
        expected += probability
        found += counts[token] / len(drawn)
        gap = max(gap, abs(expected - found))
    shares = [round(counts[token] / len(drawn), 3) for token in range(len(probabilities))]
    assert gap <= allowed_gap(len(drawn)), (
        f"{what}: probabilities {[round(p, 3) for p in probabilities]}, but {len(drawn)} draws gave {shares}"
    )


SEEDS = [(seed, 0, 3) for seed in range(NUM_DRAWS)]
TEXTS = [(seed, index, position) for seed in range(100) for index in range(2) for position in range(3, 53)]
"""(seed, sample index, position): many requests' first draws, and 50 draws in a row of 200 samples."""


def drawn(lab, logits: torch.Tensor, rows: list[SamplingRow]) -> list[int]:
    """The lab's draws, one token per row."""
    tokens = asked(lab.draw, logits, rows)
    assert_tokens_of(tokens, len(rows))
    return tokens.tolist()


def rows_at(places: list[tuple[int, int, int]]) -> list[SamplingRow]:
    """A row for each (seed, sample index, position); rows of one position share their lists."""
    params, outputs = SamplingParams(), {position: [0] * (position - 3) for _, _, position in places}
    return [SamplingRow(params, [1, 2, 3], outputs[position], seed, index) for seed, index, position in places]


@pytest.mark.todo(5, points=2)
@pytest.mark.parametrize("places", [SEEDS, TEXTS], ids=["seeds", "texts"])
def test_todo_5_tokens_are_as_frequent_as_their_probabilities(lab, places):
    found = drawn(lab, weather().expand(len(places), -1), rows_at(places))
    assert_frequencies(found, [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 32], "softmax(logits)")


@pytest.mark.todo(5, points=1)
def test_todo_5_takes_any_float_type_and_memory_layout_and_changes_nothing(lab):
    logits = weather(NUM_DRAWS).bfloat16().T.contiguous().T  # as many rows, not contiguous
    found = drawn(lab, logits, rows_at(SEEDS))
    assert_frequencies(found, logits[0].double().softmax(dim=0).tolist(), "softmax(logits) of bfloat16 logits, not contiguous")
    assert_unchanged(lab.draw, weather(4), rows_at(SEEDS[:4]))


@pytest.mark.todo(5, points=6)
@pytest.mark.parametrize("which", ["seed", "sample index", "position"])
def test_todo_5_seed_index_and_position_each_decide(lab, which):
    step = {"seed": (1, 0, 0), "sample index": (0, 1, 0), "position": (0, 0, 1)}[which]
    places = [(1000 * k, k % 3, 3 + k) for k in range(64)]  # 64 draws of four tokens agree by chance once in 4**64
    moved = [tuple(map(sum, zip(place, step, strict=True))) for place in places]
    first, second = (drawn(lab, torch.zeros(64, 4), rows_at(some)) for some in (places, moved))
    assert first != second, (
        f"64 rows, and 64 whose {which} is one more, drew the same 64 tokens: the {which} must decide what is drawn")


@pytest.mark.todo(5, points=1)
def test_todo_5_removed_tokens_are_never_drawn(lab):
    logits = torch.tensor([-INF, 0.0, -INF, math.log(3), -INF, -INF]).expand(NUM_DRAWS, -1)
    found = drawn(lab, logits, rows_at(SEEDS))
    assert_frequencies(found, [0, 0.25, 0, 0.75, 0, 0], "two tokens are left, one three times as likely")


Place = tuple[int, int, int]


def stepped(first: Place, second: Place) -> list[tuple[Place, Place]]:
    """NUM_PAIRS pairs of places, each these two steps away from a start of its own."""
    starts = [(10 * k, k % 3, 3 + k % 5) for k in range(NUM_PAIRS)]
    return [tuple(tuple(map(sum, zip(start, step, strict=True))) for step in (first, second)) for start in starts]


NEXT_TO_EACH_OTHER = {
    "a seed and the next": stepped((0, 0, 0), (1, 0, 0)),
    "a sample index and the next": stepped((0, 0, 0), (0, 1, 0)),
    "a position and the next": stepped((0, 0, 0), (0, 0, 1)),
    "places with the same seed + position": stepped((1, 0, 0), (0, 0, 1)),
    "places with the same seed + index": stepped((1, 0, 0), (0, 1, 0)),
    "places with the same index + position": stepped((0, 1, 0), (0, 0, 1)),
    "sample indices that differ by 2": stepped((0, 0, 0), (0, 2, 0)),
    "positions that differ by 64": stepped((0, 0, 0), (0, 0, 64)),
    "seeds that differ by 2**32": stepped((0, 0, 0), (2**32, 0, 0)),
    "a seed and its negative": [((s, 0, p), (-s, 0, p)) for s in range(1, 201) for p in range(3, 8)],
    # 7, 1, 13 and 71, 1, 3 have the same digits, whether the index comes first, last or between; and with the
    # position before the seed, 31, 1, 107 and 3, 1, 1107.
    "places with the same digits, seed first": [((s, 1, 10 + p), (10 * s + 1, 1, p)) for s in range(1, 201) for p in range(3, 8)],
    "places with the same digits, position first": [
        ((s, 1, 10 * p + 1), (1000 + s, 1, p)) for s in range(100, 300) for p in range(3, 8)],
}
"""NUM_PAIRS pairs of places each, all places different: (seed, sample index, position)."""


@pytest.mark.todo(5, points=2)
@pytest.mark.parametrize("pairs", NEXT_TO_EACH_OTHER.values(), ids=NEXT_TO_EACH_OTHER)
def test_todo_5_draws_at_different_places_know_nothing_of_each_other(lab, pairs):
    places = [place for pair in pairs for place in pair]
    tokens = drawn(lab, torch.zeros(len(places), 4), rows_at(places))
    both = list(zip(tokens[::2], tokens[1::2], strict=True))
    same, (one, other) = sum(a == b for a, b in both), pairs[1]
    assert_frequencies([4 * a + b for a, b in both], [1 / 16] * 16,
                       f"pairs of places (seed, index, position) such as {one} and {other}, four equal tokens: "
                       "the two draws of a pair must know nothing of each other. "
                       f"Of {NUM_PAIRS} pairs {same} drew one token twice, expected about {NUM_PAIRS // 4}. "
                       "The 16 pairs of tokens (0, 0), (0, 1) ... (3, 3) should be equally frequent")


TEXT = 32
"""Draws in a row of 16 equal tokens: two texts of this length are equal by chance once in 2**128."""
FAR_APART = [2**k for k in range(6, 18)] + [100, 1000, 10_000, 100_000]


def first_repeated(texts: dict[str, list[int]]) -> str:
    """The names of two texts that are equal, or nothing."""
    seen: dict[tuple, str] = {}
    for name, text in texts.items():
        if (other := seen.setdefault(tuple(text), name)) != name:
            return f"{other} and {name}"
    return ""


@pytest.mark.todo(5, points=2)
@pytest.mark.parametrize("which", ["positions in a row", "positions far apart", "sample indices"])
def test_todo_5_nothing_repeats_however_far_one_goes(lab, which):
    lengths = {"positions in a row": range(0, 4608, TEXT), "positions far apart": [0, *FAR_APART], "sample indices": [0] * 256}
    rows = []
    for i, length in enumerate(lengths[which]):
        prompt, index = [0] * (3 + length), i if which == "sample indices" else 0
        rows += [SamplingRow(SamplingParams(), prompt, [0] * k, 7, index) for k in range(TEXT)]
    tokens = drawn(lab, torch.zeros(len(rows), 16), rows)
    step = 1 if which == "positions in a row" else TEXT
    names = [f"sample index {row.sample_index}" if which == "sample indices" else f"position {row.position}" for row in rows]
    texts = {names[i]: tokens[i : i + TEXT] for i in range(0, len(tokens) - TEXT + 1, step)}
    same = first_repeated(texts)
    assert not same, f"the {TEXT} draws of seed 7 from {same} on are the same: where does a number repeat, or lose digits?"


@pytest.mark.todo(5, points=3)
def test_todo_5_a_draw_does_not_depend_on_the_rows_beside_it(lab):
    # Four tokens of exactly 1/4: no rounding can tip a draw. 200 draws agree by chance once in 4**200.
    places = [(seed, index, position) for seed in range(10) for index in range(2) for position in range(3, 13)]
    rows, logits = rows_at(places), torch.zeros(200, 4)
    together = drawn(lab, logits, rows)
    again = drawn(lab, logits, rows)
    assert again == together, f"the same rows again: {differing(again, together)} of 200 draws differ"
    backwards = drawn(lab, logits, rows[::-1])[::-1]
    assert backwards == together, f"with the rows in reverse order {differing(backwards, together)} of 200 draws differ"
    alone = [drawn(lab, logits[:1], [one])[0] for one in rows]
    assert alone == together, f"drawn one at a time, {differing(alone, together)} of 200 draws differ from those of the batch"
    halves = [t for part in (rows[:150], rows[150:]) for t in drawn(lab, logits[: len(part)], part)]
    assert halves == together, f"in batches of 150 and 50 rows {differing(halves, together)} of 200 draws differ"


def differing(a: list, b: list) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


@pytest.mark.todo(5, points=1)
def test_todo_5_of_a_row_seed_index_and_position_count_and_nothing_else(lab):
    def draws(prompt: list[int], output: list[int], **params) -> list[int]:
        rows = [row(seed, prompt=prompt, output=output, **params) for seed in range(64)]
        return drawn(lab, torch.zeros(64, 4), rows)

    first = draws([1, 2, 3], [0] * 6)  # position 9, as in all of them; 64 draws agree by chance once in 4**64
    for found, what in [
        (draws([1, 2, 3, 0, 0, 0], [0] * 3), "a prompt of 6 tokens and an output of 3 instead of 3 and 6, as after a preemption"),
        (draws([7, 8, 9], [5, 4, 3, 2, 1, 0]), "other tokens in prompt and output"),
        (draws([1, 2, 3], [0] * 6, temperature=0.5, presence_penalty=1.0, logprobs=2),
         "other params, which the logits have in them already"),
    ]:
        assert found == first, f"{what}, and the same seed, index and position: {differing(found, first)} of 64 draws differ"


@pytest.mark.todo(5, points=1)
def test_todo_5_torchs_global_generator_is_neither_used_nor_changed(lab):
    rows, logits = rows_at(TEXTS[:200]), torch.zeros(200, 4)
    torch.manual_seed(1)
    state, others = torch.get_rng_state(), (random.getstate(), repr(numpy.random.get_state()))
    first = drawn(lab, logits, rows)
    assert torch.equal(torch.get_rng_state(), state), (
        "torch's global generator was used or seeded: whoever else draws from it now gets other numbers"
    )
    assert (random.getstate(), repr(numpy.random.get_state())) == others, (
        "the generator of random or of numpy that all share was used or seeded: whoever else draws from it now gets other "
        "numbers. random.Random(number) is one of your own")
    torch.manual_seed(2)
    random.seed(2)
    second = drawn(lab, logits, rows)
    assert first == second, (
        "the draws changed with torch.manual_seed() and random.seed(): they depend on something besides the row")


@pytest.mark.todo(5, points=1)
def test_todo_5_any_number_of_64_bits_is_a_seed(lab):
    # among them pairs with one hash() in Python: -1 and -2, 0 and 2**61 - 1
    seeds = [0, -1, -2, 7, -7, -(2**62) - 12345, 2**31, 2**32 - 1, 2**32, 2**61 - 1, 2**63 - 1, 2**63]
    rows = [one for seed in seeds for one in rows_at([(seed, 0, position) for position in range(3, 35)])]
    tokens = drawn(lab, torch.zeros(len(rows), 4), rows)
    texts = {seed: tuple(tokens[32 * i : 32 * i + 32]) for i, seed in enumerate(seeds)}
    # One of the 66 pairs of texts of 32 draws is equal by chance with probability 66 / 4**32 = 4e-18.
    alike = [seed for seed, text in texts.items() if list(texts.values()).count(text) > 1]
    assert not alike, f"the seeds {alike} gave equal texts of 32 draws"


@pytest.mark.todo(5, points=1)
def test_todo_5_random_numbers_are_fine_enough_for_a_real_vocabulary(lab):
    # 2,000 draws from 2,048 equal tokens show about 1,277 different ones. One draw changes that number by
    # at most 1, so by McDiarmid's inequality it is under 1,000 with probability exp(-2 * 277**2 / 2000) < 1e-33.
    # Numbers of 8 bits reach only 256 tokens.
    different = len(set(drawn(lab, torch.zeros(2000, 2048), rows_at(SEEDS[:2000]))))
    assert different >= 1000, f"2,000 draws from 2,048 equal tokens gave {different} different ones, expected about 1,277"


# TODO 6: log-probabilities, and the whole sampler


@pytest.mark.todo(6, points=2)
@pytest.mark.parametrize("count", [0, 1, 3, 40, 100, -1])
def test_todo_6_logprobs_are_log_softmax_of_the_chosen_token_and_the_best(lab, count):
    logits = random_logits(40, 2, seed=6)[:, 0]  # not contiguous
    exact = logits.double().log_softmax(dim=0)
    order = exact.argsort(descending=True).tolist()
    for chosen in (order[0], order[2], order[30]):
        found = lab.logprobs_of(logits, chosen, count)
        best = order if count == -1 else order[:count]
        assert list(found) == list(dict.fromkeys([chosen, *best])), (
            f"logprobs={count}: expected the chosen token {chosen}, then the best {best}; got {list(found)}"
        )
        for token, logprob in found.items():
            # float32: log_softmax adds 40 terms, each rounded by 2**-24, to values of size 10 or less
            assert logprob.logprob == pytest.approx(exact[token].item(), abs=1e-5), f"log-probability of token {token}"
            assert isinstance(logprob.logprob, float), f"expected a Python float, got {type(logprob.logprob)}"


@pytest.mark.todo(6, points=2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_todo_6_a_rank_is_one_plus_the_number_of_likelier_tokens(lab, dtype):
    logits = torch.tensor([1.0, 5.0, 3.0, 5.0, 2.0, 4.0], dtype=dtype)
    ranks = {1: 1, 3: 1, 5: 3, 2: 4, 4: 5, 0: 6}
    for token, rank in ranks.items():
        found = lab.logprobs_of(logits, token, 0)[token].rank
        assert found == rank, (
            f"logits {logits.tolist()}: {rank - 1} are above that of token {token}, so its rank is {rank}, not {found}")
    found = {token: logprob.rank for token, logprob in lab.logprobs_of(logits, 2, -1).items()}
    assert found == ranks, f"logits {logits.tolist()}, all log-probabilities: expected the ranks {ranks}, got {found}"
    close = torch.full((4,), 0.125)
    close[2] = torch.nextafter(close[2], torch.tensor(1.0))  # larger by the last bit, which log_softmax rounds away
    found = lab.logprobs_of(close, 0, 0)[0].rank
    assert found == 2, f"one of four logits is larger than that of token 0, by its last bit: expected rank 2, got {found}"
    close = torch.tensor([1.0, 1.0 + 2**-40, 1.0 + 2**-41], dtype=torch.float64)
    found = {token: logprob.rank for token, logprob in lab.logprobs_of(close, 0, 2).items()}
    assert list(found.items()) == [(0, 3), (1, 1), (2, 2)], (
        f"logits of float64, 1, 1 + 2**-40 and 1 + 2**-41: token 0, then 1 and 2 in this order, with the ranks 3, 1, 2; got "
        f"{found}. Compare logits in the float type they come in; only log_softmax is taken in float32")
    found = lab.logprobs_of(logits, 0, 3)
    assert found[0].rank == 6 and found[5].rank == 3, "the chosen token has its own rank, not its place in the dict"
    exact = logits.double().log_softmax(dim=0)
    # bfloat16 keeps 8 bits: a log_softmax that is rounded to it is off by up to 2**-8 at -5; float32 by 1e-6.
    assert found[0].logprob == pytest.approx(exact[0].item(), abs=1e-5), "log_softmax is taken in float32"


@pytest.mark.todo(6, points=2)
def test_todo_6_the_samplers_logprobs_are_of_the_raw_logits(lab):
    wishes = {"temperature": 0.5, "top_k": 2, "repetition_penalty": 1.7, "presence_penalty": 1.0, "logit_bias": {4: 9.0}}
    rows = [row(seed, output=[0, 0], logprobs=2, **wishes) for seed in range(20)]
    logits = weather(22)
    logits[1::2] = weather().flip(0)  # in every second row the last token is the likeliest
    logits = logits.T.contiguous().T  # not contiguous
    tokens, logprobs = assert_unchanged(lab.Sampler().sample, logits, [*rows, row(1), row(1, logprobs=0)])
    assert [type(token) for token in tokens] == [int] * 22, "sample() returns a list of ints, one per row"
    for i, (token, found) in enumerate(zip(tokens[:20], logprobs[:20], strict=True)):
        exact, best = logits[i].double().log_softmax(dim=0), ([0, 1], [5, 4])[i % 2]
        assert list(found) == list(dict.fromkeys([token, *best])), (
            f"row {i}: expected the chosen token {token}, then the best of its own logits, {best}; got {list(found)}")
        for t, logprob in found.items():
            assert logprob.logprob == pytest.approx(exact[t].item(), abs=1e-5), (
                f"row {i}, token {t}: log-probabilities are of the row's logits as they came, before bias, penalties, "
                "temperature and filters"
            )
    assert logprobs[20] is None, "a row with logprobs=None gets None"
    assert list(logprobs[21]) == [tokens[21]], "a row with logprobs=0 gets the chosen token alone"


CERTAIN = [
    ({"temperature": 0.0}, 0),
    ({"temperature": 0.0, "logit_bias": {4: 9.0}}, 4),
    ({"temperature": 0.0, "output": [0, 0], "frequency_penalty": 1.0}, 1),
    ({"temperature": 0.0, "prompt": [0], "repetition_penalty": 4.0}, 1),
    ({"temperature": 2.0, "top_k": 1}, 0),
    ({"temperature": 1.5, "top_p": 0.01}, 0),
    ({"temperature": 1.0, "min_p": 1.0, "output": [0], "presence_penalty": 2.0}, 1),
    ({"temperature": 0.01, "logit_bias": {2: 2.0}}, 2),  # the second best is behind by 0.6 / 0.01: e**-60
    ({"temperature": 1.0, "logit_bias": {3: 100.0}}, 3),  # by 98: e**-98
]


@pytest.mark.todo(6, points=2)
def test_todo_6_in_a_mixed_batch_each_row_gets_what_it_wants(lab):
    sampler = lab.Sampler()  # the engine has one, and calls it in each step with other rows
    for order in (CERTAIN, CERTAIN[::-1], CERTAIN[::2] + CERTAIN[1::2]):
        rows = [row(seed, **wishes) for seed, (wishes, _) in enumerate(order)]
        tokens, logprobs = sampler.sample(weather(len(rows)), rows)
        for (wishes, wanted), token in zip(order, tokens, strict=True):
            assert token == wanted, f"a row with {wishes} can only get token {wanted}; it got {token}"
        assert logprobs == [None] * len(rows), f"no row asked for log-probabilities, and sample() returned {logprobs}"
    for wishes, wanted in CERTAIN:
        tokens, _ = sampler.sample(weather(1).bfloat16(), [row(**wishes)])
        assert tokens == [wanted], f"alone, in bfloat16, a row with {wishes} can only get token {wanted}; it got {tokens}"
    tokens, _ = lab.Sampler().sample(torch.zeros(64, 4), [row(seed, temperature=0.01) for seed in range(64)])
    assert len(set(tokens)) > 1, (  # 64 draws agree by chance once in 4**63
        "of four equal tokens 64 rows with temperature 0.01 all got the same: only temperature 0 is greedy")


WISHES = {
    "all of them": {"temperature": 1.6, "top_k": 5, "top_p": 0.75, "min_p": 0.3, "output": [0, 0, 1],
                    "frequency_penalty": 0.5, "presence_penalty": -0.3, "repetition_penalty": 1.3, "logit_bias": {3: 1.5}},
    "temperature and top_p": {"temperature": 2.0, "top_p": 0.8},
}


def probabilities_by_hand(logits: list[float], row: SamplingRow) -> list[float]:
    """What each token should be drawn with, from the definitions."""
    p, adjusted = row.params, adjusted_by_hand(logits, row)
    scaled = [logit / p.temperature for logit in adjusted]
    tokens = kept_by_hand(scaled, p.top_k, p.top_p, p.min_p)
    weights = [math.exp(logit) if t in tokens else 0.0 for t, logit in enumerate(scaled)]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.todo(6, points=2)
@pytest.mark.parametrize("name", WISHES)
def test_todo_6_bias_penalties_temperature_filters_draw_in_this_order(lab, name):
    first = row(**WISHES[name])
    rows = [replace(first, seed=seed) for seed in range(NUM_DRAWS)]
    tokens, _ = lab.Sampler().sample(weather().expand(NUM_DRAWS, -1), rows)
    assert_frequencies(tokens, probabilities_by_hand(weather().tolist(), first), f"rows with {WISHES[name]}")


@pytest.mark.todo(6, points=1)
def test_todo_6_greedy_rows_draw_nothing(lab, monkeypatch):
    drawn, draw = [], lab.draw

    def watched(logits, rows):
        drawn.append([one.params.temperature for one in rows])
        return draw(logits, rows)

    monkeypatch.setattr(lab, "draw", watched)
    rows = [row(temperature=t) for t in (0.0, 0.7, 0.0, 1.2)]
    lab.Sampler().sample(weather(4), rows)
    assert 0.0 not in [t for call in drawn for t in call], (
        f"draw() was given rows with temperatures {drawn}; greedy rows need none")
    drawn.clear()
    lab.Sampler().sample(weather(2), rows[::2])
    assert drawn == [], "a batch of greedy rows alone has nothing to draw, and draw() was called"


def engine(lab, model="course", **arguments) -> LLM:
    """The real engine with the lab's sampler in it."""
    seam = load_seam(lab_at(Path(__file__).parent))
    parts = Components().using(sampler=functools.partial(seam.sampler, lab))
    return LLM(str(model), components=parts, num_gpu_blocks_override=64, **arguments)


PROMPTS = ["Once upon a time", "My favourite colour is", "What is a KV cache?"]


def texts(llm: LLM, prompts: list[str], params: list[SamplingParams]) -> list[list[list[int]]]:
    """The tokens of every sample of every prompt."""
    return [[c.token_ids for c in output.outputs] for output in llm.generate(prompts, params, use_tqdm=False)]


@pytest.mark.todo(6, points=2)
def test_todo_6_in_the_engine_a_seed_gives_the_same_text_alone_in_a_batch_and_in_chunks(lab):
    lab.Sampler().sample(weather(1), [row()])
    params = [SamplingParams(temperature=2.0, seed=s, n=2, max_tokens=8, ignore_eos=True) for s in (11, 12, 13)]
    llm = engine(lab, batch_invariant=True)  # the same logits, to the bit, in every batch
    alone = [texts(llm, [prompt], [wishes])[0] for prompt, wishes in zip(PROMPTS, params, strict=True)]
    together = texts(llm, PROMPTS, params)
    assert together == alone, f"three requests with seeds, together {together}, one after the other {alone}"
    chunked = texts(engine(lab, batch_invariant=True, long_prefill_token_threshold=2, block_size=4), PROMPTS, params)
    assert chunked == alone, f"with prompts in chunks of two tokens {chunked}, in one piece {alone}"


@pytest.mark.todo(6, points=2)
def test_todo_6_in_the_engine_greedy_tokens_and_logprobs_equal_transformers(lab, tmp_path):
    lab.Sampler().sample(weather(1), [row(temperature=0.0)])
    from nano_qwen3_serving.testing.checkpoints import write_random_checkpoint
    from nano_qwen3_serving.testing.oracle import Oracle

    llm = engine(lab)
    outputs = llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=8), use_tqdm=False)
    oracle, prompts = Oracle(llm.llm_engine.config.model_path), [output.prompt_token_ids for output in outputs]
    oracle.compare(prompts, oracle.greedy(prompts, 8), [output.outputs[0].token_ids for output in outputs])

    folder = write_random_checkpoint(tmp_path / "random")
    prompt = list(range(40, 51))
    (output,) = engine(lab, folder).generate(
        {"prompt_token_ids": prompt}, SamplingParams(temperature=0.0, max_tokens=4, logprobs=5, ignore_eos=True), use_tqdm=False)
    (answer,) = output.outputs
    exact = Oracle(folder).logits([*prompt, *answer.token_ids])[len(prompt) - 1 :].log_softmax(dim=-1)
    for place, found in enumerate(answer.logprobs):
        for token, logprob in found.items():
            # logits of size 20 that two programs compute in float32 differ by up to about 1e-5
            assert logprob.logprob == pytest.approx(exact[place, token].item(), abs=1e-3), f"token {token} at place {place}"


if __name__ == "__main__":
    raise SystemExit("These are tests. Run them with: pytest test_lab.py")
