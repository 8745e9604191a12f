"""Which tokens a request may not get at all: grammar, allowed tokens, bad words, min_tokens.

These masks run before whatever else a sampler does, and do not depend on which sampler it is. Knows
nothing of temperatures or draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nano_qwen3_serving.interfaces import SamplingRow


def apply_masks(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Logits [num_rows, vocab_size] with every forbidden token at -inf; a copy only if there are any.

    Raises:
        ValueError: some row has no token left.
    """
    changed = [i for i, row in enumerate(rows) if has_masks(row)]
    if not changed:
        return logits
    logits = logits.clone()
    for i in changed:
        logits[i] = masked(logits[i], rows[i])
    return logits


def has_masks(row: SamplingRow) -> bool:
    """Whether the row may forbid a token."""
    p = row.params
    return bool(row.grammar or p.allowed_token_ids or p.bad_words or len(row.output_token_ids) < p.min_tokens)


def masked(logits: Tensor, row: SamplingRow) -> Tensor:
    """One row's logits [vocab_size], which may be changed, with the forbidden tokens at -inf.

    Raises:
        ValueError: every token is forbidden.
    """
    p = row.params
    if row.grammar is not None:
        logits = logits.masked_fill(~row.grammar.allowed().to(logits.device), float("-inf"))
    if p.allowed_token_ids is not None:
        allowed = torch.full_like(logits, float("-inf"))
        allowed[p.allowed_token_ids] = logits[p.allowed_token_ids]
        logits = allowed
    forbidden = forbidden_tokens(row)
    if forbidden:
        logits[sorted(forbidden)] = float("-inf")
    if (row.grammar or p.allowed_token_ids or forbidden) and logits.max() == float("-inf"):
        raise ValueError("no token is allowed: grammar, allowed_token_ids, bad_words and min_tokens together forbid all")
    return logits


def forbidden_tokens(row: SamplingRow) -> set[int]:
    """Tokens that would complete a bad word, and before `min_tokens` those that would end the text."""
    p, output = row.params, row.output_token_ids
    forbidden: set[int] = set()
    for word in row.bad_words_token_ids:
        prefix = list(word[:-1])
        if not prefix or output[-len(prefix):] == prefix:
            forbidden.add(word[-1])
    if len(output) < p.min_tokens:
        forbidden.update(row.eos_token_ids, p.stop_token_ids or ())
    return forbidden
