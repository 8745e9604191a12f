"""Lab 04, TODO 3: top-k, top-p and min-p."""

import itertools
import random

import torch
from torch import Tensor

from grading.judge.checks import check, expect, hold, kept, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab04.definitions import (
    by_min_p,
    by_top_k,
    by_top_p,
    clear,
    filtered,
    logits_of,
    mixed_filters,
    percents,
    where_order_matters,
)
from grading.scenarios.lab04.rows import HALF, INF, across, expect_logits, expect_untouched, random_logits, row
from nano_qwen3_serving import SamplingParams

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
def top_k_keeps_the_k_likeliest(lab: Remote, rng: random.Random) -> None:
    shares = percents(rng)
    wishes = [{"top_k": k} for k in (1, 2, 3, 4, 5, 6, 7, rng.randrange(8, 9000), 0, -1)]
    expect_kept(lab, logits_of(shares, rng), f"tokens 0 to 5 have {shares} percent", *rng.sample(wishes, len(wishes)))


@check(todo=3, points=3, section=FILTERS, concept="the token at the border")
def top_p_keeps_the_token_that_crosses_the_border_and_none_after(lab: Remote, rng: random.Random) -> None:
    shares = percents(rng)
    sums = [0, *itertools.accumulate(sorted(shares, reverse=True))]
    wishes = [{"top_p": rng.uniform(low + 0.3, high - 0.3) / 100} for low, high in itertools.pairwise(sums)]
    why = f"tokens 0 to 5 have {shares} percent, and the smallest set that reaches top_p is kept"
    expect_kept(lab, logits_of(shares, rng), why, *rng.sample(wishes, 6), {"top_p": 0.001})


@check(todo=3, points=3, section=FILTERS, concept="a share of the likeliest")
def min_p_is_a_share_of_the_likeliest_tokens_probability(lab: Remote, rng: random.Random) -> None:
    shares = percents(rng)
    ratios = [0.01, *(share / max(shares) for share in sorted(shares))]
    wishes = [{"min_p": rng.uniform(low * 1.005, high * 0.995)} for low, high in itertools.pairwise(ratios)]
    why = f"tokens 0 to 5 have {shares} percent, and min_p keeps what has that share of the likeliest"
    expect_kept(lab, logits_of(shares, rng), why, *rng.sample(wishes, 6), {"min_p": 1.0})


@check(todo=3, points=2, section=FILTERS, concept="the order of the filters")
def each_filter_looks_at_what_the_one_before_has_left(lab: Remote, rng: random.Random) -> None:
    for wrong in ((by_top_p, by_top_k), (by_min_p, by_top_p)) * 3:
        shares, logits, wishes = where_order_matters(rng, *wrong)
        expect_kept(lab, logits,
                    f"tokens 0 to 5 have {shares} percent; top_k is first, then top_p looks at what is left, then min_p", wishes)


@check(todo=3, points=1, section=FILTERS, concept="a filter after another", hidden=True)
def min_p_compares_with_the_likeliest_as_it_is_then(lab: Remote, rng: random.Random) -> None:
    # The likeliest has the share a, the next b, six others 1.75 b: under 0.8 of all is left, so that a min_p just
    # above b / a removes the second, and one that is compared with a probability of before the filters would not.
    for _ in range(4):
        a, b = rng.uniform(0.45, 0.55), rng.uniform(0.12, 0.16)
        others = [b * share / 12 for share in range(1, 7)]
        shares = [share / (a + 2.75 * b) for share in rng.sample([a, b, *others], 8)]
        best, second = sorted(shares, reverse=True)[:2]
        above, below, border = 1.05 * b / a, 0.95 * b / a, best + second / 2
        expect_kept(lab, logits_of(shares, rng), f"the best two of eight tokens have {best:.3f} and {second:.3f}",
                    {"min_p": above, "top_k": 2}, {"min_p": above, "top_p": border}, {"min_p": below, "top_k": 2},
                    {"min_p": below, "top_p": border})


@check(todo=3, points=2, section=FILTERS, concept="equal logits", hidden=True)
def equal_logits_are_kept_or_removed_alike(lab: Remote, rng: random.Random) -> None:
    shift = rng.randrange(-4, 5)
    logits = [level + shift for level in rng.sample([4.0, 4.0, 2.0, 2.0, 2.0, 1.0, 0.0], 7)]
    # The fours have .404 each, together .808 of all and .831 of the five largest; of the first three in a sorted row,
    # .937. The twos have .055 each, so that all that are above 1.0 have .973.
    wishes = [{"top_k": k} for k in (1, 2, 3, 4, 5)] + [{"top_p": p} for p in (0.1, 0.5, 0.85, 0.9, 0.985)] + [
        {"min_p": p} for p in (0.1, 1.0)]
    wishes += [{"top_k": 3, "top_p": 0.8}, {"top_k": 3, "top_p": 0.9}, {"top_k": 1, "top_p": 0.3}]
    expect_kept(lab, logits, f"logits {logits}, of which equal ones stay together", *wishes)


@check(todo=3, points=1, section=FILTERS, concept="filters that are off", hidden=True)
def top_p_of_one_is_off_however_unlikely_a_token_is(lab: Remote, rng: random.Random) -> None:
    logits = [0.0] * rng.randrange(2500, 3500)
    logits[rng.randrange(len(logits))] = rng.uniform(26, 30)  # in float32 it has all of the probability
    expect_kept(lab, logits, f"{len(logits)} tokens, one of them with nearly all of the probability", {"top_p": 1.0})


@check(todo=3, points=1, section=FILTERS, concept="the precision of the filters", hidden=True)
def filters_in_float32_whatever_comes_in(lab: Remote, rng: random.Random) -> None:
    # 600 tokens, the likeliest of 0.3 %: their sum, in 8 or 11 bits, reaches the border far too early or never
    for dtype in (*HALF, torch.float64):
        logits = (random_logits(rng, 1, 600) / 10).to(dtype)
        top_p = rng.uniform(0.85, 0.95)
        while not clear(logits[0].tolist(), top_p=top_p):
            top_p = rng.uniform(0.85, 0.95)
        tokens = sorted(filtered(logits[0].tolist(), SamplingParams(top_p=top_p)))
        right = torch.full((1, 600), -INF)
        right[0, tokens] = logits[0, tokens].float()
        expect_logits(lab.keep_top(logits, [row(top_p=top_p)]), right,
                      f"{dtype} logits become float32 before they are filtered by top_p={top_p}; {len(tokens)} of 600 stay")


@check(todo=3, points=1, section=FILTERS, concept="one call after another", hidden=True)
def a_call_that_filters_knows_nothing_of_those_before_it(lab: Remote, rng: random.Random) -> None:
    shares = percents(rng)
    logits, held = logits_of(shares, rng), hold(lab, [])  # the engine may use one list for all steps
    largest = sorted(shares, reverse=True)
    wishes: list[dict] = [{"top_k": 2}, {"top_p": (largest[0] + 0.5) / 100}, {"min_p": 1.0}, {"top_k": 4}]
    for _ in range(3):
        rng.shuffle(wishes)
        kept(held.clear)
        kept(held.extend, [row(**one) for one in wishes])
        found = lab.keep_top(torch.tensor(logits).repeat(4, 1), held)
        right = torch.full((4, 6), -INF)
        for i, one in enumerate(wishes):
            tokens = sorted(filtered(logits, SamplingParams(**one)))
            right[i, tokens] = torch.tensor(logits)[tokens]
        expect_logits(found, right, f"the same list of rows, which now want {wishes}: what is kept by a list or a number of rows "
                                    "is out of date")


def expect_mixed(lab: Remote, rng: random.Random, logits: Tensor) -> None:
    """In a batch each row keeps the logits that its own filters keep, as they were, and the input is not changed."""
    wishes, right = mixed_filters(rng, logits), torch.full(logits.shape, -INF)
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
def in_a_mixed_batch_each_row_obeys_its_own_filters(lab: Remote, rng: random.Random) -> None:
    expect_mixed(lab, rng, random_logits(rng, 100, 20) / 3)


@check(todo=3, points=1, section=FILTERS, concept="tokens that were removed before", hidden=True)
def removed_tokens_do_not_come_back(lab: Remote, rng: random.Random) -> None:
    logits = random_logits(rng, 60, 12) / 3
    for scores in logits:
        scores[rng.sample(range(12), rng.randrange(1, 9))] = -INF
    expect_mixed(lab, rng, logits)
