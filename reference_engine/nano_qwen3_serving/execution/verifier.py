"""Drafts against logits: which guesses stand, and the token after them.

Knows rows and tokens; knows nothing of who guessed. A draft stands if it is the token that would have been drawn there
anyway. Every draw depends on (seed, sample index, position) alone, so the tokens are the same with drafts and without, and so
is their distribution. (Leviathan et al., 2023, accept more of them by comparing two distributions; then tokens
depend on the drafter.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, chain

from torch import Tensor

from nano_qwen3_serving.interfaces import Sampler, SamplingRow
from nano_qwen3_serving.outputs import Logprob


class SamplingVerifier:
    """Samples each position as if there were no drafts.

    Args:
        sampler: chooses tokens.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def verify(
        self, logits: Tensor, rows: Sequence[SamplingRow], drafts: Sequence[Sequence[int]]
    ) -> tuple[list[list[int]], list[list[dict[int, Logprob]] | None]]:
        """As `Verifier.verify`; a draft is accepted if it is the token drawn in its place."""
        if not any(drafts):
            chosen, logprobs = self._sampler.sample(logits, rows)
            return [[token] for token in chosen], [None if entry is None else [entry] for entry in logprobs]
        along = [rows_along(row, guesses) for row, guesses in zip(rows, drafts, strict=True)]
        firsts = list(accumulate((len(guesses) + 1 for guesses in drafts[:-1]), initial=0))
        kept = [first + i for first, places in zip(firsts, along, strict=True) for i in range(len(places))]
        try:
            chosen, logprobs = self._sampler.sample(logits[kept], list(chain.from_iterable(along)))
        except Exception:
            return self.verify(logits[firsts], rows, [()] * len(rows))  # a wrong draft may lead to where nothing can be drawn
        tokens: list[list[int]] = []
        result: list[list[dict[int, Logprob]] | None] = []
        start = 0
        for guesses, places in zip(drafts, along, strict=True):
            end = start + 1 + num_equal(chosen[start : start + len(places) - 1], guesses)
            tokens.append(chosen[start:end])
            asked = [entry for entry in logprobs[start:end] if entry is not None]
            result.append(asked or None)
            start += len(places)
        return tokens, result


def rows_along(row: SamplingRow, drafts: Sequence[int]) -> list[SamplingRow]:
    """The row, and what it would be after each of its drafts, up to the first that its grammar does not allow."""
    rows, output, grammar = [row], list(row.output_token_ids), row.grammar
    for draft in drafts:
        if grammar is not None:
            grammar = grammar.copy()
            try:
                grammar.accept([draft])
            except ValueError:
                break
        output = [*output, draft]
        rows.append(replace(
            row, output_token_ids=output, grammar=grammar, position=rows[-1].position + 1, token_counts=None))
    return rows


def num_equal(tokens: Sequence[int], drafts: Sequence[int]) -> int:
    """How many of the first tokens are the drafts."""
    for count, (token, draft) in enumerate(zip(tokens, drafts, strict=False)):
        if token != draft:
            return count
    return min(len(tokens), len(drafts))
