"""What Lab 04's filters, penalties and sampler come to by definition, token by token; and wishes by which a wrong order shows.

Plain Python on one row at a time. Knows nothing of submissions.
"""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grading.scenarios.lab04.rows import INF, row
from nano_qwen3_serving import SamplingParams
from nano_qwen3_serving.interfaces import SamplingRow

Kept = dict[int, float]
"""Tokens and their logits, the largest first."""
Step = Callable[[Kept, SamplingParams], Kept]


def down_to(kept: Kept, token: int) -> Kept:
    """The tokens with the logit of this one, or a larger one."""
    return {t: logit for t, logit in kept.items() if logit >= kept[token]}


def by_top_k(kept: Kept, p: SamplingParams) -> Kept:
    """Of the tokens in order, the first `top_k` and those that tie with the last."""
    return down_to(kept, list(kept)[p.top_k - 1]) if 0 < p.top_k < len(kept) else kept


def by_top_p(kept: Kept, p: SamplingParams) -> Kept:
    """The fewest whose probabilities add up to `top_p`, and those that tie with the last."""
    weights = {t: math.exp(logit - max(kept.values())) for t, logit in kept.items()}
    sums = itertools.accumulate(weights.values())
    reached = (t for t, total in zip(kept, sums, strict=True) if total >= p.top_p * sum(weights.values()))
    return down_to(kept, next(reached)) if p.top_p < 1 else kept


def by_min_p(kept: Kept, p: SamplingParams) -> Kept:
    """Those at least `min_p` times as likely as the likeliest."""
    return {t: logit for t, logit in kept.items() if math.exp(logit - max(kept.values())) >= p.min_p}


IN_ORDER = (by_top_k, by_top_p, by_min_p)


def filtered(logits: Sequence[float], p: SamplingParams, steps: Sequence[Step] = IN_ORDER) -> set[int]:
    """The tokens that remain, one step of the definition after the other."""
    kept = {t: logits[t] for t in sorted(range(len(logits)), key=lambda t: -logits[t]) if logits[t] > -INF}
    for step in steps:
        kept = step(kept, p)
    return set(kept)


def clear(logits: Sequence[float], **wishes: Any) -> bool:
    """Whether rounding cannot change what is kept: a little more or less keeps the same. The README promises it."""
    def with_share(share: float) -> set[int]:
        changed = {name: wishes[name] * share for name in ("top_p", "min_p") if wishes.get(name, 1.0) < 1}
        return filtered(logits, SamplingParams(**wishes | changed))

    return with_share(0.9998) == with_share(1.0) == with_share(1.0002)


def percents(rng: random.Random) -> list[int]:
    """Of six tokens, in any order: none under 3, no two closer than 2, 100 in all."""
    while True:
        cuts = sorted(rng.sample(range(1, 100), 5))
        found = [b - a for a, b in itertools.pairwise([0, *cuts, 100])]
        ordered = sorted(found)
        if ordered[0] >= 3 and all(b - a >= 2 for a, b in itertools.pairwise(ordered)):
            return found


def logits_of(shares: Sequence[float], rng: random.Random) -> list[float]:
    """Logits with these probabilities, shifted, for logits need not be log-probabilities; as float32 has them."""
    shift = rng.uniform(-5, 5)
    return torch.tensor([math.log(share) + shift for share in shares]).tolist()


def where_order_matters(rng: random.Random, *wrong: Step) -> tuple[list[int], list[float], dict]:
    """Percents, their logits, and filters that would keep other tokens if they ran in the order `wrong`."""
    while True:
        shares = percents(rng)
        logits = logits_of(shares, rng)
        wishes: dict[str, Any] = {"top_p": round(rng.uniform(0.3, 0.95), 4)}
        wishes |= {"top_k": rng.randrange(2, 6)} if wrong[-1] is by_top_k else {"min_p": round(rng.uniform(0.1, 0.9), 4)}
        params = SamplingParams(**wishes)
        if clear(logits, **wishes) and filtered(logits, params) != filtered(logits, params, wrong):
            return shares, logits, wishes


def mixed_filters(rng: random.Random, logits: Tensor) -> list[dict]:
    """For each row filters of its own that rounding cannot change."""
    found = []
    for scores in logits.tolist():
        while True:
            wishes = {"top_k": rng.choice([-1, 0, 1, 3, 7, 20, 100]), "top_p": rng.choice([1.0, rng.uniform(0.01, 0.99)]),
                      "min_p": rng.choice([0.0, rng.uniform(0.001, 0.9)])}
            if clear(scores, **wishes):
                break
        found.append(wishes)
    return found


def adjusted(logits: Sequence[float], one: SamplingRow) -> list[float]:
    """Bias, repetition, frequency and presence, token by token."""
    p, found = one.params, []
    for token, logit in enumerate(logits):
        logit += (p.logit_bias or {}).get(token, 0.0)
        if token in one.prompt_token_ids or token in one.output_token_ids:
            logit = logit / p.repetition_penalty if logit > 0 else logit * p.repetition_penalty
        written = one.output_token_ids.count(token)
        found.append(logit - p.frequency_penalty * written - p.presence_penalty * (written > 0))
    return found


def by_temperature(logits: list[float], one: SamplingRow) -> list[float]:
    """Each logit divided by the row's temperature."""
    return [logit / one.params.temperature for logit in logits]


def by_filters(logits: list[float], one: SamplingRow) -> list[float]:
    """The logits, -inf where a filter of the row removes the token."""
    tokens = filtered(logits, one.params)
    return [logit if token in tokens else -INF for token, logit in enumerate(logits)]


RIGHT_ORDER = (adjusted, by_temperature, by_filters)
WRONG_ORDERS = ((adjusted, by_filters, by_temperature), (by_temperature, adjusted, by_filters))


def chances(logits: list[float], one: SamplingRow, steps: Sequence[Callable] = RIGHT_ORDER) -> dict[int, float]:
    """With which probability each token is to be drawn, from the definitions."""
    for step in steps:
        logits = step(logits, one)
    weights = [math.exp(logit) for logit in logits]
    return {token: weight / sum(weights) for token, weight in enumerate(weights)}


def distance(one: dict[int, float], other: dict[int, float], order: Sequence[int]) -> float:
    """The largest difference of two distribution functions of tokens that are numbered in this order."""
    differences = (one.get(token, 0.0) - other.get(token, 0.0) for token in order)
    return max(map(abs, itertools.accumulate(differences)))


def wishes_where_order_matters(rng: random.Random, logits: list[float], everything: bool) -> SamplingRow:
    """A row whose draws would be off by 0.08 and more if its steps ran in a wrong order (without penalties: in the first)."""
    while True:
        wishes: dict[str, Any] = {"temperature": rng.uniform(1.4, 2), "top_p": rng.uniform(0.6, 0.9)}
        if everything:
            wishes |= {"top_k": rng.choice([4, 5]), "min_p": rng.uniform(0.1, 0.4), "frequency_penalty": rng.uniform(0.3, 1),
                       "presence_penalty": rng.uniform(-0.5, 0.5), "repetition_penalty": rng.uniform(1.2, 1.8),
                       "logit_bias": {rng.randrange(6): rng.uniform(1, 2)}}
        one = row(output=[rng.randrange(6) for _ in range(3)], **wishes)
        scaled, right = by_temperature(adjusted(logits, one), one), chances(logits, one)
        order = sorted(right, key=lambda token: -right[token])
        off = [distance(chances(logits, one, steps), right, order) for steps in WRONG_ORDERS[: 2 if everything else 1]]
        if min(off) >= 0.08 and clear(scaled, **{name: wishes[name] for name in ("top_k", "top_p", "min_p") if name in wishes}):
            return one
