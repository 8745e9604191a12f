"""Logits to tokens: a pure function of the logits and of each row's parameters.

Knows nothing of requests or steps. Every draw depends on (seed, sample index, position) and on the
row's own logits only, so a seeded request gives the same tokens whatever is sampled beside it, on
any device. The draw is one uniform number against the cumulated probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nano_qwen3_serving.execution.logprobs import logprobs_of
from nano_qwen3_serving.execution.masks import has_masks, masked
from nano_qwen3_serving.interfaces import SamplingRow
from nano_qwen3_serving.model.operators import Operators
from nano_qwen3_serving.outputs import Logprob
from nano_qwen3_serving.token_counts import TokenCounts

MASK_64 = (1 << 64) - 1
FEW = 1024  # tokens among which those that a filter leaves are looked for
EQUALS = 64  # more than top_k, because logits may be equal at its edge: in bfloat16 they often are
GROUP = 128  # tokens of which the largest is found at once


class Sampler:
    """The reference sampler.

    Args:
        max_logprobs: an upper bound of `SamplingParams.logprobs`, checked before requests come here.
        ops: finds the best tokens.
    """

    def __init__(self, max_logprobs: int = 20, ops: Operators | None = None) -> None:
        self.max_logprobs = max_logprobs
        self._ops = ops or Operators()

    def sample(
        self, logits: Tensor, rows: Sequence[SamplingRow]
    ) -> tuple[list[int], list[dict[int, Logprob] | None]]:
        """One token per row.

        Args:
            logits: [num_rows, vocab_size], not changed.
            rows: whose they are.

        Returns:
            The tokens, and for each row its log-probabilities if it asked for them. Those are of
            the raw logits, before penalties and temperature.
        """
        if all(asks_for_the_best(row) for row in rows):
            return self._ops.argmax(logits).tolist(), [None] * len(rows)  # no copy in float32
        adjusted = apply_processors(logits, rows)
        tokens = torch.empty(len(rows), dtype=torch.long, device=logits.device)
        greedy = [i for i, row in enumerate(rows) if row.params.is_greedy]
        drawing = [i for i, row in enumerate(rows) if not row.params.is_greedy]
        if greedy:
            tokens[greedy] = adjusted[greedy].argmax(dim=-1)
        if drawing:
            tokens[drawing] = draw(adjusted if len(drawing) == len(rows) else adjusted[drawing], [rows[i] for i in drawing])
        chosen = tokens.tolist()
        return chosen, [
            logprobs_of(logits[i].float(), chosen[i], row.params.logprobs) if row.params.logprobs is not None else None
            for i, row in enumerate(rows)
        ]


def asks_for_the_best(row: SamplingRow) -> bool:
    """Whether the row wants the token of its highest logit, and nothing else."""
    return row.params.is_greedy and row.params.logprobs is None and not has_processors(row)


def apply_processors(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Logits after masks, bias and penalties; a copy, in float32, only if some row asks for any of them."""
    changed = [i for i, row in enumerate(rows) if has_processors(row)]
    if not changed:
        return logits
    logits = logits.to(torch.float32, copy=True)
    for i in changed:
        logits[i] = processed(logits[i], rows[i])
    return logits


def has_processors(row: SamplingRow) -> bool:
    """Whether the row's logits change before temperature."""
    p = row.params
    return bool(
        has_masks(row) or p.logit_bias or p.has_penalties
    )


def processed(logits: Tensor, row: SamplingRow) -> Tensor:
    """One row's logits [vocab_size] after masks, bias and penalties.

    Raises:
        ValueError: every token is forbidden.
    """
    logits = masked(logits, row)
    for token_id, bias in (row.params.logit_bias or {}).items():
        logits[token_id] += bias
    return penalised(logits, row)


def penalised(logits: Tensor, row: SamplingRow) -> Tensor:
    """Repetition penalty over prompt and output, presence and frequency over the output."""
    p = row.params
    if not p.has_penalties:
        return logits
    ids, counts = (row.token_counts or TokenCounts(row.prompt_token_ids)).upto(row.output_token_ids)
    ids, counts = ids.to(logits.device), counts.to(logits.device)
    if p.repetition_penalty != 1.0:
        values = logits[ids]
        logits[ids] = torch.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
    if p.presence_penalty or p.frequency_penalty:
        logits[ids] -= p.frequency_penalty * counts + p.presence_penalty * (counts > 0)
    return logits


def draw(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """One token per row from its filtered distribution: [num_rows].

    Rows with equal filters are drawn together, and others never touch them. Probabilities are cumulated in the order
    of token ids, whatever the filters, so that the same number drawn picks the same token.

    Raises:
        FloatingPointError: a logit is NaN or infinite.
    """
    tokens = torch.empty(len(rows), dtype=torch.long, device=logits.device)
    alike: dict[tuple[int, float], list[int]] = {}
    for i, row in enumerate(rows):
        alike.setdefault((row.params.top_k, row.params.top_p), []).append(i)
    for (top_k, top_p), group in alike.items():
        picked = logits if len(group) == len(rows) else logits[group]
        members = [rows[i] for i in group]
        few = 0 < top_k <= FEW or (top_p < 1.0 and not top_k)
        tokens[group] = (draw_of_few if few and logits.shape[-1] > 2 * FEW else draw_of_all)(picked, members, top_k, top_p)
    return tokens


def draw_of_all(logits: Tensor, rows: Sequence[SamplingRow], top_k: int, top_p: float) -> Tensor:
    """One token per row, [num_rows]; looks at every token."""
    scaled = logits.float() / column([r.params.temperature for r in rows], logits)
    return pick(torch.softmax(keep_top(scaled, top_k, top_p), dim=-1), rows)


def draw_of_few(logits: Tensor, rows: Sequence[SamplingRow], top_k: int, top_p: float) -> Tensor:
    """The same for filters that leave few tokens: one pass over the vocabulary finds them, the rest is about them alone.

    A row that may keep more than those, because its distribution is flat or too many logits are equal at the edge, is drawn
    from all tokens.
    """
    values, ids = largest(logits, top_k + EQUALS if top_k else FEW)
    temperature = column([r.params.temperature for r in rows], logits)
    scaled = values.float() / temperature
    counted = scaled[:, :top_k] if top_k else scaled
    lowest = counted[:, -1:]
    if top_p < 1.0:
        total = torch.logsumexp(counted if top_k else logits.float() / temperature, dim=-1, keepdim=True)
        lowest = counted.gather(-1, num_in_nucleus((counted - total).exp(), top_p) - 1)
    kept = scaled.masked_fill(scaled < lowest, float("-inf"))
    order = ids.argsort(dim=-1)
    places = pick(torch.softmax(kept.gather(-1, order), dim=-1), rows)
    tokens = ids.gather(-1, order.gather(-1, places[:, None])).squeeze(-1)
    for i in (lowest == scaled[:, -1:]).nonzero()[:, 0].tolist():
        tokens[i] = draw_of_all(logits[i : i + 1], rows[i : i + 1], top_k, top_p)
    return tokens


def pick(probs: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Where each row's random number falls among its probabilities, [num_rows, tokens], after min_p: [num_rows].

    Raises:
        FloatingPointError: a probability is NaN.
    """
    if not probs[:, 0].isfinite().all():  # one NaN or infinity makes all of its row's probabilities NaN
        raise FloatingPointError("probabilities are NaN: some logit is NaN or infinite")
    if any(r.params.min_p for r in rows):
        probs = torch.where(probs >= column([r.params.min_p for r in rows], probs) * probs.amax(dim=-1, keepdim=True), probs, 0.0)
    cumulated = probs.cumsum(dim=-1)
    total = cumulated[:, -1:].contiguous()
    numbers = column([uniform(r.seed, r.sample_index, r.position) for r in rows], probs)
    index = torch.searchsorted(cumulated, numbers * total, right=True)
    first_of_total = torch.searchsorted(cumulated, total)  # rounding must not reach a zero at the end
    return torch.minimum(index, first_of_total).squeeze(-1)


def largest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest logits of each row, the largest first, and their token ids: [rows, count] each.

    They lie in the groups of tokens whose own largest logits are the largest, so one pass finds these groups, and only they
    are sorted.
    """
    vocab = logits.shape[-1]
    whole = vocab // GROUP * GROUP
    if whole // GROUP <= 2 * count:
        return torch.topk(logits, count, dim=-1)
    groups = torch.topk(logits[:, :whole].unflatten(-1, (-1, GROUP)).amax(dim=-1), count, dim=-1).indices
    ids = (groups[:, :, None] * GROUP + torch.arange(GROUP, device=logits.device)).flatten(1)
    ids = torch.cat([ids, torch.arange(whole, vocab, device=logits.device).expand(len(ids), -1)], dim=-1)
    values, places = torch.topk(logits.gather(-1, ids), count, dim=-1)
    return values, ids.gather(-1, places)


def keep_top(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits [rows, vocab_size] with those that the filters drop at -inf. Equal logits are kept or dropped alike."""
    if not top_k and top_p == 1.0:
        return logits
    return logits.masked_fill(logits < lowest_kept(logits, top_k, top_p), float("-inf"))


def lowest_kept(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """The smallest logit of each row that top_k, and then top_p over what it kept, leave: [rows, 1]."""
    vocab = logits.shape[-1]
    values = torch.topk(logits, min(top_k or vocab, vocab), dim=-1).values
    if top_p == 1.0:
        return values[:, -1:]
    return values.gather(-1, num_in_nucleus(torch.softmax(values, dim=-1), top_p) - 1)


def num_in_nucleus(probs: Tensor, top_p: float) -> Tensor:
    """How many of the likeliest tokens reach `top_p` together, of [rows, tokens] in order, at least one: [rows, 1]."""
    before = probs.cumsum(dim=-1) - probs
    return (before < top_p).sum(dim=-1, keepdim=True).clamp(min=1)


def column(numbers: Sequence[float], like: Tensor) -> Tensor:
    """[len(numbers), 1] in float32, where `like` is."""
    return torch.tensor(numbers, dtype=torch.float32, device=like.device)[:, None]


def uniform(seed: int, sample_index: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone (SplitMix64, Steele et al., 2014)."""
    x = 0
    for part in (seed, sample_index, position):
        x = (x ^ (part & MASK_64)) + 0x9E3779B97F4A7C15 & MASK_64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK_64
        x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK_64
        x ^= x >> 31
    return (x >> 40) / (1 << 24)  # 24 bits: exact in float32, and never 1.0

