"""Lab 04: the sampler, on rows of logits drawn for each submission, against the definitions token by token.

What is random is judged by its distribution alone, with bounds that are worked out in `lab04_draws.py`;
how a submission draws is its own affair.
"""

import itertools
import math
import random
from typing import Any

import torch
from torch import Tensor

from grading.checks import check, expect, hold, ours, shown
from grading.scenarios.lab04_definitions import (
    adjusted,
    by_min_p,
    by_top_k,
    by_top_p,
    chances,
    filtered,
    logits_of,
    mixed_filters,
    percents,
    where_order_matters,
    wishes_where_order_matters,
)
from grading.scenarios.lab04_draws import (
    NUM_DRAWS,
    NUM_PAIRS,
    Place,
    as_tokens,
    called_with_rows,
    drawn,
    equal_tokens,
    expect_frequencies,
    pairs_of_places,
    seeds_from,
    written_texts,
)
from grading.scenarios.lab04_rows import (
    HALF,
    INF,
    across,
    expect_logits,
    expect_untouched,
    numbers,
    random_logits,
    repeated,
    row,
    weather,
)
from grading.scenarios.lab04_sampler import expect_logprobs, generated, prompts_from, sampled
from grading.worker.peer import Remote
from nano_qwen3_serving import SamplingParams
from nano_qwen3_serving.interfaces import SamplingRow

# TODO 1

GREEDY = "TODO 1: Greedy"


def expect_greedy(lab: Remote, given: object, right: list[int], what: str) -> None:
    """greedy_tokens() of these logits is these tokens."""
    found = lab.greedy_tokens(given)
    whole = isinstance(found, Tensor) and found.dtype == torch.int64 and found.shape == (len(right),)
    expect(whole, f"{what}: expected int64 of shape [{len(right)}], one token per row; got {shown(found)}")
    expect(found.tolist() == right, f"{what}: expected the tokens {right}, got {found.tolist()}")


@check(todo=1, points=3, section=GREEDY, concept="the largest logit")
def takes_the_largest_logit_of_each_row(lab: Remote, dice: random.Random) -> None:
    for dtype in (torch.float32, *HALF):
        size = dice.randrange(5, 30)
        places = [dice.sample(range(size), size) for _ in range(dice.randrange(3, 7))]
        logits = (torch.tensor(places) / 2 - dice.randrange(20)).to(dtype)
        right = [one.index(size - 1) for one in places]
        expect_greedy(lab, logits, right, f"{dtype} logits of {len(places)} rows")
        expect_greedy(lab, logits[1:2], right[1:2], f"a batch of the one row {numbers(logits[1])}")


@check(todo=1, points=3, section=GREEDY, concept="equal logits")
def of_equal_logits_the_smallest_id_wins(lab: Remote, dice: random.Random) -> None:
    for size in (1, 2, 4, 6, 8, 33, dice.randrange(9, 60)):  # in short rows some functions of torch take another
        expect_greedy(lab, torch.full((3, size), dice.uniform(-5, 5)), [0, 0, 0],
                      f"three rows of {size} equal logits; the smallest id wins")
    size = dice.randrange(2000, 5000)
    logits, ties = random_logits(dice, 6, size), [dice.sample(range(1, size), dice.randrange(2, 6)) for _ in range(6)]
    for scores, tied in zip(logits, ties, strict=True):
        scores[tied] = 20.0
    expect_greedy(lab, logits, [min(tied) for tied in ties],
                  f"in rows of {size} logits the tokens {ties} share the largest; the smallest id wins")


@check(todo=1, points=1, section=GREEDY, concept="how the tensor lies in memory")
def takes_rows_that_are_not_contiguous(lab: Remote, dice: random.Random) -> None:
    logits = random_logits(dice, 7, 19)
    held = across(lab, logits)
    expect_greedy(lab, held, logits.argmax(dim=1).tolist(), "seven rows of a transposed tensor")
    expect_untouched(held, logits, "greedy_tokens()")


@check(todo=1, points=1, section=GREEDY, concept="tokens that were removed before", hidden=True)
def tokens_that_were_removed_are_not_taken(lab: Remote, dice: random.Random) -> None:
    size = dice.randrange(4, 20)
    left = [dice.randrange(1, size) for _ in range(5)]
    logits = torch.full((5, size), -INF)
    logits[range(5), left] = torch.tensor([dice.uniform(-90, -1) for _ in left])
    expect_greedy(lab, logits, left, f"rows in which all tokens but {left} are removed, -inf")


@check(todo=1, points=2, section=GREEDY, concept="logits that differ by little", hidden=True)
def compares_logits_and_not_rounded_probabilities(lab: Remote, dice: random.Random) -> None:
    size = dice.randrange(4, 12)
    best = [dice.randrange(1, size) for _ in range(4)]
    logits = torch.tensor([[dice.uniform(0.1, 0.2)] * size for _ in best])
    for scores, token in zip(logits, best, strict=True):
        scores[token] = torch.nextafter(scores[token], torch.tensor(1.0))
    expect_greedy(lab, logits, best, f"the tokens {best} are larger than the others, equal ones, by the last bit of float32")


# TODO 2

TEMPERATURE = "TODO 2: Temperature"


def divided(logits: Tensor, temperatures: list[float]) -> Tensor:
    return logits.double() / torch.tensor([t or 1.0 for t in temperatures], dtype=torch.float64)[:, None]


@check(todo=2, points=4, section=TEMPERATURE, concept="each row's own temperature")
def divides_each_row_by_its_own_temperature(lab: Remote, dice: random.Random) -> None:
    temperatures = [0.01, 1.0, *(dice.uniform(0.2, 2) for _ in range(4))]
    dice.shuffle(temperatures)
    logits = random_logits(dice, len(temperatures), dice.randrange(20, 60))
    rows, right = [row(temperature=t) for t in temperatures], divided(logits, temperatures)
    expect_logits(lab.apply_temperature(across(lab, logits), rows), right,
                  f"rows with temperatures {shown(temperatures)}, a transposed tensor")
    for i in (0, 3):
        expect_logits(lab.apply_temperature(logits[i : i + 1], rows[i : i + 1]), right[i : i + 1],
                      f"a batch of one row, temperature {temperatures[i]:.3f}")


@check(todo=2, points=3, section=TEMPERATURE, concept="greedy rows")
def leaves_greedy_rows_as_they_are(lab: Remote, dice: random.Random) -> None:
    temperatures = [0.0, dice.uniform(0.3, 0.9), 0.0, dice.uniform(1.1, 1.9)]
    dice.shuffle(temperatures)
    logits = random_logits(dice, 4, 8)
    logits[:, 5] = 0.0
    found = lab.apply_temperature(logits, [row(temperature=t) for t in temperatures])
    if isinstance(found, Tensor):
        expect(bool(found.isfinite().all()),
               "dividing by 0 gives inf, and 0/0 gives nan: a greedy row, temperature 0, keeps its logits")
    expect_logits(found, divided(logits, temperatures), f"temperatures {shown(temperatures)}, and 0 leaves a row as it is")


@check(todo=2, points=1, section=TEMPERATURE, concept="what is left of the input", hidden=True)
def changes_nothing_that_it_is_given(lab: Remote, dice: random.Random) -> None:
    logits, temperatures = random_logits(dice, 3, 9), [dice.uniform(0.3, 0.9), 0.0, dice.uniform(1.1, 1.9)]
    logits[:, dice.randrange(9)] = -INF
    held = hold(lab, logits)
    found = lab.apply_temperature(held, [row(temperature=t) for t in temperatures])
    expect_untouched(held, logits, "apply_temperature()")
    expect_logits(found, divided(logits, temperatures), "rows with a removed token, -inf, which stays removed")


@check(todo=2, points=2, section=TEMPERATURE, concept="the precision of the quotient", hidden=True)
def divides_in_float32_whatever_comes_in(lab: Remote, dice: random.Random) -> None:
    # Rounded to bfloat16 (float16) a quotient is off by up to 2**-9 (2**-12) of itself: of 400 some by 1e-4 and more.
    for dtype in HALF:
        temperatures = [dice.uniform(0.55, 0.95), dice.uniform(1.05, 1.9)]
        logits = random_logits(dice, 2, 200).to(dtype)
        found = lab.apply_temperature(logits, [row(temperature=t) for t in temperatures])
        expect_logits(found, divided(logits, temperatures),
                      f"{dtype} logits become float32 before they are divided by {shown(temperatures)}")


# TODO 3

FILTERS = "TODO 3: Top-k, top-p, min-p"


def expect_kept(lab: Remote, logits: list[float], why: str, *wishes: dict) -> None:
    """keep_top() leaves of this row what the definition says, for each of these wishes; the rows are one batch."""
    rows = [row(**one) for one in wishes]
    found = lab.keep_top(torch.tensor(logits).repeat(len(rows), 1), rows)
    shape = [len(rows), len(logits)]
    expect(isinstance(found, Tensor) and found.dtype == torch.float32 and list(found.shape) == shape,
           f"keep_top() of {len(rows)} rows: expected a tensor of shape {shape}, float32; got {shown(found)}")
    for one, scores in zip(wishes, found, strict=True):
        right, tokens = filtered(logits, SamplingParams(**one)), set(scores.isfinite().nonzero()[:, 0].tolist())
        expect(tokens == right,
               f"{why}: {one} keeps the tokens {shown(sorted(right))}, and keep_top() kept {shown(sorted(tokens))}")


@check(todo=3, points=3, section=FILTERS, concept="the k likeliest")
def top_k_keeps_the_k_likeliest(lab: Remote, dice: random.Random) -> None:
    shares = percents(dice)
    wishes = [{"top_k": k} for k in (1, 2, 3, 4, 5, 6, 7, dice.randrange(8, 9000), 0, -1)]
    expect_kept(lab, logits_of(shares, dice), f"tokens 0 to 5 have {shares} percent", *dice.sample(wishes, len(wishes)))


@check(todo=3, points=4, section=FILTERS, concept="the token at the border")
def top_p_keeps_the_token_that_crosses_the_border_and_none_after(lab: Remote, dice: random.Random) -> None:
    shares = percents(dice)
    sums = [0, *itertools.accumulate(sorted(shares, reverse=True))]
    wishes = [{"top_p": dice.uniform(low + 0.3, high - 0.3) / 100} for low, high in itertools.pairwise(sums)]
    why = f"tokens 0 to 5 have {shares} percent, and the smallest set that reaches top_p is kept"
    expect_kept(lab, logits_of(shares, dice), why, *dice.sample(wishes, 6), {"top_p": 0.001})


@check(todo=3, points=3, section=FILTERS, concept="a share of the likeliest")
def min_p_is_a_share_of_the_likeliest_tokens_probability(lab: Remote, dice: random.Random) -> None:
    shares = percents(dice)
    ratios = [0.01, *(share / max(shares) for share in sorted(shares))]
    wishes = [{"min_p": dice.uniform(low * 1.005, high * 0.995)} for low, high in itertools.pairwise(ratios)]
    why = f"tokens 0 to 5 have {shares} percent, and min_p keeps what has that share of the likeliest"
    expect_kept(lab, logits_of(shares, dice), why, *dice.sample(wishes, 6), {"min_p": 1.0})


@check(todo=3, points=2, section=FILTERS, concept="the order of the filters")
def each_filter_looks_at_what_the_one_before_has_left(lab: Remote, dice: random.Random) -> None:
    for wrong in ((by_top_p, by_top_k), (by_min_p, by_top_p)) * 3:
        shares, logits, wishes = where_order_matters(dice, *wrong)
        expect_kept(lab, logits,
                    f"tokens 0 to 5 have {shares} percent; top_k is first, then top_p looks at what is left, then min_p", wishes)


@check(todo=3, points=2, section=FILTERS, concept="a filter after another", hidden=True)
def min_p_compares_with_the_likeliest_as_it_is_then(lab: Remote, dice: random.Random) -> None:
    # The likeliest has the share a, the next b, six others 1.75 b: under 0.8 of all is left, so that a min_p just
    # above b / a removes the second, and one that is compared with a probability of before the filters would not.
    for _ in range(4):
        a, b = dice.uniform(0.45, 0.55), dice.uniform(0.12, 0.16)
        others = [b * share / 12 for share in range(1, 7)]
        shares = [share / (a + 2.75 * b) for share in dice.sample([a, b, *others], 8)]
        best, second = sorted(shares, reverse=True)[:2]
        above, below, border = 1.05 * b / a, 0.95 * b / a, best + second / 2
        expect_kept(lab, logits_of(shares, dice), f"the best two of eight tokens have {best:.3f} and {second:.3f}",
                    {"min_p": above, "top_k": 2}, {"min_p": above, "top_p": border}, {"min_p": below, "top_k": 2},
                    {"min_p": below, "top_p": border})


@check(todo=3, points=2, section=FILTERS, concept="equal logits", hidden=True)
def equal_logits_are_kept_or_removed_alike(lab: Remote, dice: random.Random) -> None:
    shift = dice.randrange(-4, 5)
    logits = [level + shift for level in dice.sample([4.0, 4.0, 2.0, 2.0, 2.0, 1.0, 0.0], 7)]
    # The fours have .404 each, together .808 of all and .831 of the five largest; of the first three in a sorted row,
    # .937. The twos have .055 each, so that all that are above 1.0 have .973.
    wishes = [{"top_k": k} for k in (1, 2, 3, 4, 5)] + [{"top_p": p} for p in (0.1, 0.5, 0.85, 0.9, 0.985)] + [
        {"min_p": p} for p in (0.1, 1.0)]
    wishes += [{"top_k": 3, "top_p": 0.8}, {"top_k": 3, "top_p": 0.9}, {"top_k": 1, "top_p": 0.3}]
    expect_kept(lab, logits, f"logits {logits}, of which equal ones stay together", *wishes)


@check(todo=3, points=1, section=FILTERS, concept="filters that are off", hidden=True)
def top_p_of_one_is_off_however_unlikely_a_token_is(lab: Remote, dice: random.Random) -> None:
    logits = [0.0] * dice.randrange(2500, 3500)
    logits[dice.randrange(len(logits))] = dice.uniform(26, 30)  # in float32 it has all of the probability
    expect_kept(lab, logits, f"{len(logits)} tokens, one of them with nearly all of the probability", {"top_p": 1.0})


def expect_mixed(lab: Remote, dice: random.Random, logits: Tensor) -> None:
    """In a batch each row keeps the logits that its own filters keep, as they were, and the input is not changed."""
    wishes, right = mixed_filters(dice, logits), torch.full(logits.shape, -INF)
    for i, one in enumerate(wishes):
        tokens = sorted(filtered(logits[i].tolist(), SamplingParams(**one)))
        right[i, tokens] = logits[i, tokens]
    held = across(lab, logits)
    found = lab.keep_top(held, [row(**one) for one in wishes])
    if isinstance(found, Tensor) and found.shape == right.shape:
        for i in (found.isfinite() != right.isfinite()).any(dim=1).nonzero()[:1, 0].tolist():
            wanted, got = [sorted(one[i].isfinite().nonzero()[:, 0].tolist()) for one in (right, found)]
            expect(False,
                   f"row {i} of {len(right)}, a transposed tensor, with {wishes[i]}: expected the tokens {wanted}, got {got}")
    expect_logits(found, right, "kept logits stay as they are, the others are -inf")
    expect_untouched(held, logits, "keep_top()")


@check(todo=3, points=2, section=FILTERS, concept="each row's own filters")
def in_a_mixed_batch_each_row_obeys_its_own_filters(lab: Remote, dice: random.Random) -> None:
    expect_mixed(lab, dice, random_logits(dice, 100, 20) / 3)


@check(todo=3, points=1, section=FILTERS, concept="tokens that were removed before", hidden=True)
def removed_tokens_do_not_come_back(lab: Remote, dice: random.Random) -> None:
    logits = random_logits(dice, 60, 12) / 3
    for scores in logits:
        scores[dice.sample(range(12), dice.randrange(1, 9))] = -INF
    expect_mixed(lab, dice, logits)


# TODO 4

PENALTIES = "TODO 4: Penalties and logit bias"


def expect_penalties(lab: Remote, logits: Tensor, rows: list[SamplingRow], what: str) -> None:
    """apply_penalties() gives what the definition says, and leaves its input as it was."""
    held = hold(lab, logits)
    found = lab.apply_penalties(held, rows)
    expect_logits(found, [adjusted(scores, one) for scores, one in zip(logits.double().tolist(), rows, strict=True)], what)
    expect_untouched(held, logits, "apply_penalties()")


def eight(dice: random.Random, num_rows: int) -> Tensor:
    """Rows of eight logits of every sign, none of them near 0 but one that is 0."""
    return torch.tensor([dice.sample([4.0, 3.0, 1.5, 0.5, 0.0, -0.5, -2.0, -4.0], 8) for _ in range(num_rows)])


@check(todo=4, points=3, section=PENALTIES, concept="logit bias")
def a_bias_is_added_to_the_logit_and_to_no_other_row(lab: Remote, dice: random.Random) -> None:
    a, b, c = dice.sample(range(8), 3)
    biases = [None, {a: dice.uniform(1, 9), b: -100.0}, {c: -dice.uniform(0.1, 5)}]
    expect_penalties(lab, eight(dice, 3), [row(logit_bias=one) for one in biases], f"three rows with logit_bias {biases}")


@check(todo=4, points=3, section=PENALTIES, concept="the repetition penalty")
def repetition_makes_tokens_of_prompt_and_output_less_likely_once(lab: Remote, dice: random.Random) -> None:
    for penalty in (dice.uniform(1.2, 3), dice.uniform(0.3, 0.8)):
        a, b, c, d, e, f, *_ = dice.sample(range(8), 8)
        one = row(repetition_penalty=penalty, prompt=[a, b, a, c, d], output=[e, f, f, e, a])
        expect_penalties(
            lab, eight(dice, 1), [one],
            f"repetition_penalty={penalty:.3f}, prompt {one.prompt_token_ids}, output {one.output_token_ids}: logits "
            "above 0 are divided, others multiplied, once for each token that occurs in the prompt or the output")


@check(todo=4, points=2, section=PENALTIES, concept="the frequency penalty")
def frequency_counts_each_occurrence_in_the_output(lab: Remote, dice: random.Random) -> None:
    a, b, c, d, *_ = dice.sample(range(8), 8)
    one = row(frequency_penalty=dice.uniform(0.2, 1.5), prompt=[c, c, a], output=[a, b, a, d, d, d, a])
    expect_penalties(
        lab, eight(dice, 1), [one],
        f"frequency_penalty={one.params.frequency_penalty:.3f}, prompt {one.prompt_token_ids}, output {one.output_token_ids}: "
        "once for each occurrence in the output")


@check(todo=4, points=2, section=PENALTIES, concept="the presence penalty")
def presence_is_subtracted_once_for_tokens_of_the_output(lab: Remote, dice: random.Random) -> None:
    a, b, c, d, *_ = dice.sample(range(8), 8)
    one = row(presence_penalty=dice.uniform(0.2, 1.5), prompt=[c, c, a], output=[a, b, a, d, d, d, a])
    none = row(presence_penalty=dice.uniform(0.5, 1.5), prompt=[b])
    expect_penalties(
        lab, eight(dice, 2), [one, none],
        f"presence_penalty={one.params.presence_penalty:.3f}, prompt {one.prompt_token_ids}, output {one.output_token_ids}: "
        "once for each token of the output; in row 1 the output is empty, and nothing changes")


@check(todo=4, points=1, section=PENALTIES, concept="penalties below 0", hidden=True)
def penalties_below_zero_make_tokens_likelier(lab: Remote, dice: random.Random) -> None:
    rows = [row(output=[dice.randrange(8) for _ in range(6)], frequency_penalty=-dice.uniform(0.2, 1.5)),
            row(output=[dice.randrange(8) for _ in range(6)], presence_penalty=-dice.uniform(0.2, 1.5)),
            row(frequency_penalty=-1.0, presence_penalty=-1.0)]
    expect_penalties(lab, eight(dice, 3), rows, "rows with a frequency_penalty or presence_penalty below 0")


@check(todo=4, points=3, section=PENALTIES, concept="bias and penalties together", hidden=True)
def all_together_in_the_right_order_for_every_row(lab: Remote, dice: random.Random) -> None:
    rows = []
    for _ in range(40):
        prompt, output = ([dice.randrange(16) for _ in range(dice.randrange(low, 12))] for low in (1, 0))
        rows.append(row(prompt=prompt, output=output, logit_bias={dice.randrange(16): dice.uniform(-6, 6) for _ in range(3)},
                        repetition_penalty=dice.choice([0.7, 1.0, 1.8]), frequency_penalty=dice.uniform(-2, 2),
                        presence_penalty=dice.uniform(-2, 2)))
    logits = random_logits(dice, 40, 16)
    right = [adjusted(scores, one) for scores, one in zip(logits.double().tolist(), rows, strict=True)]
    order = "first the bias, then repetition, then frequency and presence"
    expect_logits(lab.apply_penalties(across(lab, logits), rows), right, order)
    i = dice.randrange(40)
    expect_logits(lab.apply_penalties(logits[i : i + 1], rows[i : i + 1]), right[i : i + 1], f"a batch of one row: {order}")


@check(todo=4, points=1, section=PENALTIES, concept="tokens that were removed, and the input", hidden=True)
def removed_tokens_stay_removed_and_nothing_is_changed_in_place(lab: Remote, dice: random.Random) -> None:
    wishes: dict[str, Any] = {"repetition_penalty": 1.5, "frequency_penalty": 1.0, "presence_penalty": 1.0}
    logits, (gone, seen) = eight(dice, 2), dice.sample(range(8), 2)
    logits[:, gone] = -INF
    rows = [row(output=[gone, seen], logit_bias={gone: 50.0, seen: 1.0}, **wishes), row()]
    expect_penalties(lab, logits, rows, f"token {gone} has -inf and stays removed; row 1 wants nothing changed")
    half = random_logits(dice, 1, 30).bfloat16()
    expect_penalties(lab, half, [row(logit_bias={t: dice.uniform(0.001, 0.002) for t in range(30)})],
                     "bfloat16 logits become float32 before anything is added")


# TODO 5

SEEDS = "TODO 5: Per-request seeds"


@check(todo=5, points=2, section=SEEDS, concept="frequencies of a token")
def tokens_are_as_frequent_as_their_probabilities(lab: Remote, dice: random.Random) -> None:
    for places, who in ((seeds_from(dice, NUM_DRAWS), "the first tokens of 10,000 requests"),
                        (written_texts(dice, 100, 50), "200 samples of 50 tokens")):
        logits, _ = weather(dice)
        chances = logits.double().softmax(dim=0).tolist()
        expect_frequencies(drawn(lab, repeated(lab, logits + dice.uniform(-3, 3), NUM_DRAWS), places), chances,
                           f"{who}, softmax(logits)")


@check(todo=5, points=1, section=SEEDS, concept="tokens that were removed before", hidden=True)
def removed_tokens_are_never_drawn(lab: Remote, dice: random.Random) -> None:
    left = dice.sample(range(6), 2)
    logits = torch.full((6,), -INF)
    logits[left] = torch.tensor([0.0, math.log(3)]) + dice.uniform(-3, 3)
    tokens = drawn(lab, repeated(lab, logits, NUM_DRAWS), seeds_from(dice, NUM_DRAWS))
    expect_frequencies(tokens, [(0.0, 0.25, 0.75)[1 + left.index(t) if t in left else 0] for t in range(6)],
                       "two tokens of six are left, one three times as likely")


@check(todo=5, points=2, section=SEEDS, concept="draws at different places")
def draws_at_different_places_know_nothing_of_each_other(lab: Remote, dice: random.Random) -> None:
    logits = equal_tokens(lab, 2 * NUM_PAIRS)
    for name, pairs in pairs_of_places(dice).items():
        tokens = drawn(lab, logits, [place for pair in pairs for place in pair])
        both = list(zip(tokens[::2], tokens[1::2], strict=True))
        expect(all(0 <= token < 4 for token in tokens), f"of four equal tokens draw() took {shown(sorted(set(tokens)))}")
        same = sum(a == b for a, b in both)
        expect_frequencies(
            [4 * a + b for a, b in both], [1 / 16] * 16,
            f"four equal tokens, {name}, such as (seed, index, position) {pairs[1][0]} and {pairs[1][1]}: of {NUM_PAIRS} pairs "
            f"{same} drew one token twice, expected about {NUM_PAIRS // 4}; for the 16 pairs of tokens")


def some_texts(dice: random.Random) -> list[Place]:
    """200 places: draws there agree by chance once in 4**200."""
    return written_texts(dice, 10, 10)


def differing(a: list, b: list) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


@check(todo=5, points=3, section=SEEDS, concept="the rows beside it")
def a_draw_does_not_depend_on_the_rows_beside_it(lab: Remote, dice: random.Random) -> None:
    places, logits = some_texts(dice), equal_tokens(lab, 200)
    together = drawn(lab, logits, places)
    again = drawn(lab, logits, places)
    expect(again == together, f"the same rows again: {differing(again, together)} of 200 draws differ")
    backwards = drawn(lab, logits, places[::-1])[::-1]
    expect(backwards == together, f"with the rows in reverse order {differing(backwards, together)} of 200 draws differ")
    draw, one_row = lab.draw, hold(lab, torch.zeros(1, 4))
    singles = [row(seed, index=index, output=[0] * (position - 3)) for seed, index, position in places[:60]]
    alone = [as_tokens(draw(one_row, [single]), 1)[0] for single in singles]
    expect(alone == together[:60],
           f"drawn one at a time, {differing(alone, together[:60])} of 60 draws differ from those of the batch")


@check(todo=5, points=2, section=SEEDS, concept="other batches", hidden=True)
def a_draw_is_the_same_in_any_batch_and_at_any_time(lab: Remote, dice: random.Random) -> None:
    places, part = some_texts(dice), dice.randrange(60, 140)
    together = drawn(lab, equal_tokens(lab, 200), places)
    parts = drawn(lab, equal_tokens(lab, part), places[:part]) + drawn(lab, equal_tokens(lab, 200 - part), places[part:])
    expect(parts == together, f"in batches of {part} and {200 - part} rows {differing(parts, together)} of 200 draws differ")
    order = dice.sample(range(200), 200)
    logits, others = torch.zeros(400, 4), seeds_from(dice, 200)
    logits[1::2] = torch.tensor([dice.uniform(-3, 3) for _ in range(4)])
    mixed = drawn(lab, logits, [place for i, other in zip(order, others, strict=True) for place in (places[i], other)])[::2]
    right = [together[i] for i in order]
    expect(mixed == right,
           f"in another order, each beside a row with other logits, {differing(mixed, right)} of 200 draws differ")


@check(todo=5, points=1, section=SEEDS, concept="what else is in a row")
def of_a_row_seed_index_and_position_count_and_nothing_else(lab: Remote, dice: random.Random) -> None:
    places = [(seed, index, 9) for seed, index, _ in seeds_from(dice, 64)]  # 64 draws agree by chance once in 4**64
    logits = equal_tokens(lab, 64)
    first = drawn(lab, logits, places, row(prompt=[1, 2, 3]))
    for like, what in [
        (row(prompt=[1, 2, 3, 0, 0, 0]), "a prompt of 6 tokens and an output of 3 instead of 3 and 6, as after a preemption"),
        (row(prompt=[dice.randrange(9) for _ in range(3)], output=[dice.randrange(9) for _ in range(6)]),
         "other tokens in prompt and output"),
        (row(temperature=dice.uniform(0.3, 0.9), presence_penalty=1.0, logprobs=2),
         "other params, which the logits have in them already"),
    ]:
        found = drawn(lab, logits, places, like)
        expect(found == first, f"{what}, and the same seed, index and position: {differing(found, first)} of 64 draws differ")


@check(todo=5, points=2, section=SEEDS, concept="torch's global generator")
def torchs_global_generator_is_neither_used_nor_changed(lab: Remote, dice: random.Random) -> None:
    places, logits, torch_there = some_texts(dice), equal_tokens(lab, 200), lab._peer.root.package("torch")
    torch_there.manual_seed(dice.getrandbits(31))
    before = torch_there.get_rng_state()
    first = drawn(lab, logits, places)
    expect(torch.equal(torch_there.get_rng_state(), before),
           "torch's global generator was used or seeded: whoever else draws from it now gets other numbers")
    torch_there.manual_seed(dice.getrandbits(31))
    second = drawn(lab, logits, places)
    expect(second == first,
           f"after torch.manual_seed() {differing(second, first)} of 200 draws differ: they depend on something besides the row")


@check(todo=5, points=1, section=SEEDS, concept="which numbers a seed may be", hidden=True)
def any_number_of_64_bits_is_a_seed(lab: Remote, dice: random.Random) -> None:
    # among them pairs with one hash() in Python: -1 and -2, 0 and 2**61 - 1
    special = [0, -1, -2, 7, -7, 2**31, 2**32 - 1, 2**32, 2**61 - 1, 2**63 - 1, 2**63]
    seeds = list(dict.fromkeys([*special, *(sign * dice.getrandbits(62) for sign in (1, -1, -1))]))
    tokens = drawn(lab, equal_tokens(lab, 32 * len(seeds)), [(seed, 0, position) for seed in seeds for position in range(3, 35)])
    texts = {seed: tokens[32 * i : 32 * i + 32] for i, seed in enumerate(seeds)}
    # One of at most 91 pairs of texts of 32 draws is equal by chance with probability 91 / 4**32 = 5e-18.
    alike = [seed for seed, text in texts.items() if list(texts.values()).count(text) > 1]
    expect(not alike, f"the seeds {alike} gave equal texts of 32 draws")


@check(todo=5, points=1, section=SEEDS, concept="how fine the random numbers are", hidden=True)
def random_numbers_are_fine_enough_for_a_real_vocabulary(lab: Remote, dice: random.Random) -> None:
    # 2,000 draws from 2,048 equal tokens show about 1,277 different ones. One draw changes that number by
    # at most 1, so by McDiarmid's inequality it is under 1,000 with probability exp(-2 * 277**2 / 2000) < 1e-33.
    different = len(set(drawn(lab, equal_tokens(lab, 2000, 2048), seeds_from(dice, 2000))))
    expect(different >= 1000, f"2,000 draws from 2,048 equal tokens gave {different} different ones, expected about 1,277")


# TODO 6

LOGPROBS = "TODO 6: Log-probabilities, and the sampler"


@check(todo=6, points=2, section=LOGPROBS, concept="which tokens have a log-probability")
def logprobs_are_log_softmax_of_the_chosen_token_and_the_best(lab: Remote, dice: random.Random) -> None:
    for count in (0, 1, 3, dice.randrange(4, 30), 40, 100, -1):
        logits = random_logits(dice, 1, 40)[0]
        order = logits.argsort(descending=True).tolist()
        for chosen in (order[0], order[2], order[dice.randrange(30, 40)]):
            expect_logprobs(lab.logprobs_of(logits, chosen, count), logits, chosen, count,
                            f"logprobs_of(40 logits, token_id={chosen}, count={count})")


@check(todo=6, points=2, section=LOGPROBS, concept="how ranks are counted")
def a_rank_is_one_plus_the_number_of_likelier_tokens(lab: Remote, dice: random.Random) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.tensor(dice.sample([1.0, 5.0, 3.0, 5.0, 2.0, 4.0, 2.0], 7)).to(dtype)
        for chosen in range(7):
            count = dice.choice([0, 2, 3, -1])
            # where equal tokens stand at the border of the best, any of them may be among these
            expect_logprobs(lab.logprobs_of(logits, chosen, count), logits, chosen, count,
                            f"logits {logits.tolist()}, {dtype}, token_id={chosen}, count={count}")
        expect_logprobs(lab.logprobs_of(logits, 3, -1), logits, 3, -1, f"logits {logits.tolist()}, {dtype}, token_id=3, count=-1")
    best, other = dice.sample(range(4), 2)
    close = torch.full((4,), dice.uniform(0.1, 0.2))
    close[best] = torch.nextafter(close[best], torch.tensor(1.0))  # larger by the last bit, which log_softmax rounds away
    expect_logprobs(lab.logprobs_of(close, other, 0), close, other, 0,
                    f"the logit of token {best} is larger than three equal ones by its last bit")


@check(todo=6, points=2, section=LOGPROBS, concept="which logits log-probabilities are of")
def the_samplers_logprobs_are_of_the_raw_logits(lab: Remote, dice: random.Random) -> None:
    logits, order = weather(dice)
    wishes: dict[str, Any] = {"temperature": dice.uniform(0.4, 0.7), "top_k": 3, "repetition_penalty": 1.7,
                              "presence_penalty": 1.0, "logit_bias": {order[4]: 9.0}}
    counts = [2] * 10 + [None, 0]
    rows = [row(dice.getrandbits(40), output=[order[0]] * 2, logprobs=count, **wishes) for count in counts] + [
        row(temperature=0.0, logprobs=1)]
    held = hold(lab, logits.repeat(len(rows), 1))
    tokens, logprobs = sampled(lab.Sampler(), held, rows)
    expect_untouched(held, logits.repeat(len(rows), 1), "sample()")
    for token, found, one in zip(tokens, logprobs, rows, strict=True):
        wanted = one.params.logprobs
        if wanted is None:
            expect(found is None, f"a row with logprobs=None gets None, not {shown(found)}")
        else:
            expect(0 <= token < 6, f"sample() chose token {token} of six")
            expect_logprobs(found, logits, token, wanted,
                            f"a row with logprobs={wanted}, logits before bias, penalties, temperature and filters")


def certain(order: list[int], dice: random.Random) -> list[tuple[dict, int]]:
    """Wishes of rows with the README's logits for the tokens in `order`, and the token that alone they can get."""
    a, b, c, d, e, _ = order
    return [
        ({"temperature": 0.0}, a),
        ({"temperature": 0.0, "logit_bias": {e: dice.uniform(6, 12)}}, e),
        ({"temperature": 0.0, "output": [a, a], "frequency_penalty": dice.uniform(0.5, 1)}, b),
        ({"temperature": 0.0, "prompt": [a], "repetition_penalty": dice.uniform(2, 5)}, b),
        ({"temperature": dice.uniform(1, 2), "top_k": 1}, a),
        ({"temperature": dice.uniform(1, 2), "top_p": 0.01}, a),
        ({"temperature": 1.0, "min_p": 1.0, "output": [a], "presence_penalty": dice.uniform(1, 2)}, b),
        ({"temperature": 0.01, "logit_bias": {c: 2.0}}, c),  # the second best is behind by 0.6 / 0.01: e**-60
        ({"temperature": 1.0, "logit_bias": {d: 100.0}}, d),  # by 98: e**-98
    ]


@check(todo=6, points=2, section=LOGPROBS, concept="rows of all kinds in one batch")
def in_a_mixed_batch_each_row_gets_what_it_wants(lab: Remote, dice: random.Random) -> None:
    logits, order = weather(dice)
    cases, sampler = certain(order, dice), lab.Sampler()
    for _ in range(3):
        dice.shuffle(cases)
        tokens, logprobs = sampled(sampler, logits.repeat(len(cases), 1),
                                   [row(dice.getrandbits(40), **wishes) for wishes, _ in cases])
        for (wishes, wanted), token in zip(cases, tokens, strict=True):
            expect(token == wanted, f"logits {numbers(logits)}: a row with {wishes} can only get token {wanted}; it got {token}")
        expect(logprobs == [None] * len(cases), f"no row asked for log-probabilities, and sample() returned {shown(logprobs)}")
    for wishes, wanted in cases:
        tokens, _ = sampled(sampler, logits.bfloat16()[None], [row(**wishes)])
        expect(tokens == [wanted],
               f"alone, logits {numbers(logits)} in bfloat16, a row with {wishes} can only get token {wanted}; it got {tokens}")
    tokens, _ = sampled(sampler, torch.zeros(64, 4), [row(dice.getrandbits(40), temperature=0.01) for _ in range(64)])
    expect(len(set(tokens)) > 1,  # by chance they are the same once in 4**63
           "of four equal tokens 64 rows with temperature 0.01 all got the same: only temperature 0 is greedy")


@check(todo=6, points=2, section=LOGPROBS, concept="the order of the steps", hidden=True)
def bias_penalties_temperature_filters_draw_in_this_order(lab: Remote, dice: random.Random) -> None:
    for everything in (True, False):
        logits, _ = weather(dice)
        one = wishes_where_order_matters(dice, logits.tolist(), everything)
        places = [(seed, 0, 6) for seed, _, _ in seeds_from(dice, NUM_DRAWS)]
        answer = called_with_rows(lab, lab.Sampler().sample, repeated(lab, logits, NUM_DRAWS), places, one)
        expect(isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], list) and len(answer[0]) == NUM_DRAWS,
               f"sample() of {NUM_DRAWS} rows returned {shown(answer)}; expected a token per row, and log-probabilities")
        expect_frequencies(answer[0], list(chances(logits.tolist(), one).values()),
                           f"rows with {one.params}, output {one.output_token_ids}")


@check(todo=6, points=1, section=LOGPROBS, concept="what greedy rows need", hidden=True)
def greedy_rows_draw_nothing(lab: Remote, dice: random.Random) -> None:
    given = []

    def watched(logits: Tensor, rows: Any) -> Tensor:
        """Takes the largest, by which each of these rows is known."""
        given.append(logits)
        return logits.argmax(dim=-1)

    peaks = dice.sample(range(6), 6)
    temperatures = [0.0, 0.0, 0.0, *(dice.uniform(0.5, 1.5) for _ in range(3))]
    dice.shuffle(temperatures)
    logits, rows = 9 * torch.eye(6)[peaks], [row(temperature=t) for t in temperatures]
    lab.draw = ours(watched)
    sampled(lab.Sampler(), logits, rows)
    for_whom = {peaks.index(int(scores.argmax())) for call in given for scores in call}
    wrong = sorted(i for i in for_whom if temperatures[i] == 0)
    expect(not wrong, f"temperatures {shown(temperatures)}: draw() was given the greedy rows {wrong}, which need none")
    given.clear()
    alone = [i for i, t in enumerate(temperatures) if t == 0]
    sampled(lab.Sampler(), logits[alone], [rows[i] for i in alone])
    expect(not given, "a batch of greedy rows alone has nothing to draw, and draw() was called")


@check(todo=6, points=2, section=LOGPROBS, concept="seeds in the engine", hidden=True)
def in_the_engine_a_seed_gives_the_same_text_alone_in_a_batch_and_in_chunks(lab: Remote, dice: random.Random) -> None:
    lab.Sampler().sample(torch.zeros(1, 4), [row()])
    prompts = prompts_from(dice)
    params = [SamplingParams(temperature=2.0, seed=dice.getrandbits(40), n=2, max_tokens=8, ignore_eos=True) for _ in prompts]

    def written(which: slice, **options: Any) -> list[list[list[int]]]:
        return [[one.token_ids for one in outputs]
                for outputs in generated(lab, prompts[which], params[which], batch_invariant=True, **options)]

    together = written(slice(None), block_size=16)
    alone = [text for i in range(3) for text in written(slice(i, i + 1), block_size=16)]
    expect(together == alone, f"three requests with seeds wrote together {shown(together)}, one after the other {shown(alone)}")
    chunked = written(slice(None), block_size=4, long_prefill_token_threshold=2)
    expect(chunked == alone, f"with prompts in chunks of two tokens they wrote {shown(chunked)}, in one piece {shown(alone)}")


@check(todo=6, points=2, section=LOGPROBS, concept="greedy in the engine")
def in_the_engine_greedy_tokens_and_logprobs_are_those_of_its_own_sampler(lab: Remote, dice: random.Random) -> None:
    lab.Sampler().sample(torch.zeros(1, 4), [row(temperature=0.0)])
    prompts = prompts_from(dice)
    params = [SamplingParams(temperature=0.0, max_tokens=8, logprobs=count, ignore_eos=True) for count in (None, 3, 5)]
    for found, right in zip(generated(lab, prompts, params), generated(None, prompts, params), strict=True):
        expect(found[0].token_ids == right[0].token_ids,
               f"greedy in the engine: expected the tokens {right[0].token_ids}, got {found[0].token_ids}")
        for mine, theirs in zip(found[0].logprobs or [], right[0].logprobs or [], strict=True):
            expect(set(mine) == set(theirs),
                   f"log-probabilities in the engine: expected those of the tokens {sorted(theirs)}, got {sorted(mine)}")
            for token, value in theirs.items():
                # log_softmax of logits of size 20 over the whole vocabulary, in two ways
                got, want = mine[token].logprob, value.logprob
                expect(abs(got - want) <= 1e-4,
                       f"log-probability of token {token} in the engine: expected {want:.5f}, got {got:.5f}")
