"""Drafts against logits: which guesses stand, and the token after them.

Knows rows and tokens; knows nothing of who guessed. A draft stands if it is the token that would have been drawn there
anyway. Every draw depends on (seed, sample index, position) alone, so the tokens are the same with drafts and without, and so
is their distribution. (Leviathan et al., 2023, accept more of them by comparing two distributions; then tokens
depend on the drafter.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

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
        """The tokens that follow each row's output: the drafts that stand, and one more.

        Args:
            logits: [sum(len(d) + 1 for d in drafts), vocab_size], not changed. Those of a row lie together: after its
                last known token, then after each of its drafts.
            rows: one for each request.
            drafts: guesses at its next tokens, perhaps none.

        Returns:
            For each row its 1 to len(drafts) + 1 tokens, and their log-probabilities if it asked for them.
        """
        kept: list[int] = []  # rows of the logits at which a token is drawn
        places: list[SamplingRow] = []
        counts: list[int] = []
        first = 0
        for row, guesses in zip(rows, drafts, strict=True):
            along = rows_along(row, guesses) if guesses else [row]
            kept += range(first, first + len(along))
            places += along
            counts.append(len(along))
            first += len(guesses) + 1
        try:
            chosen, logprobs = self._sampler.sample(logits if len(kept) == len(logits) else logits[kept], places)
        except Exception:
            if not any(drafts):
                raise
            return self._without(logits, rows, drafts)
        tokens: list[list[int]] = []
        result: list[list[dict[int, Logprob]] | None] = []
        start = 0
        for guesses, count in zip(drafts, counts, strict=True):
            end = start + 1 + num_equal(chosen[start : start + count - 1], guesses)
            tokens.append(chosen[start:end])
            asked = [entry for entry in logprobs[start:end] if entry is not None]
            result.append(asked or None)
            start += count
        return tokens, result

    def _without(self, logits: Tensor, rows: Sequence[SamplingRow], drafts: Sequence[Sequence[int]]) -> Any:
        """The same, with no draft looked at: a wrong one may lead to where nothing can be drawn."""
        firsts = list(accumulate((len(guesses) + 1 for guesses in drafts[:-1]), initial=0))
        return self.verify(logits[firsts], rows, [()] * len(rows))


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
