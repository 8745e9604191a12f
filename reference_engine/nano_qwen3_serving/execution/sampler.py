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

MASK_64 = (1 << 64) - 1


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
        raw = logits.float()
        adjusted = apply_processors(raw, rows)
        tokens = adjusted.argmax(dim=-1)
        drawing = [i for i, row in enumerate(rows) if not row.params.is_greedy]
        if drawing:
            picked = adjusted if len(drawing) == len(rows) else adjusted[drawing]
            drawn = draw(picked, [rows[i] for i in drawing])
            tokens[drawing] = drawn
        chosen = tokens.tolist()
        return chosen, [
            logprobs_of(raw[i], chosen[i], row.params.logprobs) if row.params.logprobs is not None else None
            for i, row in enumerate(rows)
        ]


def asks_for_the_best(row: SamplingRow) -> bool:
    """Whether the row wants the token of its highest logit, and nothing else."""
    return row.params.is_greedy and row.params.logprobs is None and not has_processors(row)


def apply_processors(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Logits after masks, bias and penalties; a copy only if some row asks for any of them."""
    changed = [i for i, row in enumerate(rows) if has_processors(row)]
    if not changed:
        return logits
    logits = logits.clone()
    for i in changed:
        logits[i] = processed(logits[i], rows[i])
    return logits


def has_processors(row: SamplingRow) -> bool:
    """Whether the row's logits change before temperature."""
    p = row.params
    return bool(
        has_masks(row) or p.logit_bias
        or p.presence_penalty or p.frequency_penalty or p.repetition_penalty != 1.0
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
    if p.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*row.prompt_token_ids, *row.output_token_ids}), device=logits.device)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
    if (p.presence_penalty or p.frequency_penalty) and row.output_token_ids:
        counts = torch.bincount(torch.tensor(row.output_token_ids), minlength=logits.shape[0]).to(logits)
        logits = logits - p.frequency_penalty * counts - p.presence_penalty * (counts > 0)
    return logits


def draw(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """One token per row from its filtered distribution: [num_rows].

    Probabilities are cumulated in the order of token ids, whatever the filters, so that the same
    number drawn picks the same token.

    Raises:
        FloatingPointError: a logit is NaN or infinite.
    """
    device = logits.device
    temperature = torch.tensor([[r.params.temperature] for r in rows], device=device)
    probs = torch.softmax(keep_top(logits / temperature, rows), dim=-1)
    if any(r.params.min_p for r in rows):
        min_p = torch.tensor([[r.params.min_p] for r in rows], device=device)
        probs = torch.where(probs >= min_p * probs.amax(dim=-1, keepdim=True), probs, 0.0)
    cumulated = probs.cumsum(dim=-1)
    if not cumulated[:, -1].isfinite().all():
        raise FloatingPointError("probabilities are NaN: some logit is NaN or infinite")
    u = torch.tensor([[uniform(r.seed, r.sample_index, r.position)] for r in rows], device=device)
    index = torch.searchsorted(cumulated, u * cumulated[:, -1:], right=True)
    last = (probs > 0).cumsum(dim=-1).argmax(dim=-1, keepdim=True)  # rounding must not reach a zero
    return torch.minimum(index, last).squeeze(-1)


def keep_top(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Logits with those outside each row's top_k and top_p masked.

    Rows with equal parameters are filtered together, and others never touch them. Equal logits are
    kept or masked alike.
    """
    alike: dict[tuple[int, float], list[int]] = {}
    for i, row in enumerate(rows):
        if row.params.top_k or row.params.top_p < 1.0:
            alike.setdefault((row.params.top_k, row.params.top_p), []).append(i)
    for (top_k, top_p), group in alike.items():
        chosen = logits[group]
        logits[group] = chosen.masked_fill(chosen < lowest_kept(chosen, top_k, top_p), float("-inf"))
    return logits


def lowest_kept(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """The smallest logit of each row that top_k, and then top_p over what it kept, leave: [rows, 1]."""
    vocab = logits.shape[-1]
    values = torch.topk(logits, min(top_k or vocab, vocab), dim=-1).values
    if top_p == 1.0:
        return values[:, -1:]
    probs = torch.softmax(values, dim=-1)
    before = probs.cumsum(dim=-1) - probs  # 0 for the likeliest token, which is always kept
    return values.gather(-1, (before < top_p).sum(dim=-1, keepdim=True) - 1)


def uniform(seed: int, sample_index: int, position: int) -> float:
    """A number in [0, 1) that depends on its arguments alone (SplitMix64, Steele et al., 2014)."""
    x = 0
    for part in (seed, sample_index, position):
        x = (x ^ (part & MASK_64)) + 0x9E3779B97F4A7C15 & MASK_64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK_64
        x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK_64
        x ^= x >> 31
    return (x >> 40) / (1 << 24)  # 24 bits: exact in float32, and never 1.0

