"""A request inside the engine: what is asked, how far it is, and when things happened to it.

Knows nothing of blocks, tensors or text; the scheduler moves it, the output processor reads it.

There is no prefill and no decode phase. A request knows `num_tokens` tokens (prompt and output) and
the KV cache holds the first `num_computed_tokens` of them; each step lets the second number catch up
with the first, and a step that reaches it samples one more token.

    prompt  p p p p p p | output  o o
            [0 ........ num_computed) [num_computed ... num_tokens)
             in the KV cache            to be computed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, Protocol

from nano_qwen3_serving.outputs import FinishReason, Logprob, RequestMetrics
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.token_counts import TokenCounts


class Grammar(Protocol):
    """Which tokens may come next; see `text/grammar.py`."""

    def allowed(self) -> Any:
        """The tokens that may come next: [vocab_size] bool on the CPU. Changes nothing."""

    def accept(self, token_ids: Sequence[int]) -> None:
        """Moves on by tokens that were generated. Raises ValueError if they were not allowed."""

    def copy(self) -> Grammar:
        """An independent grammar in the same state."""


class RequestStatus(Enum):
    """Where a request is in its life."""

    WAITING = "waiting"  #: holds no block: new, or preempted
    RUNNING = "running"  #: holds the blocks of its computed tokens
    FINISHED = "finished"  #: holds no block and never will


def member_ids(request_id: str, n: int) -> list[str]:
    """Ids of the sequences that a caller's request is made of: its own, or one for each of n."""
    return [request_id] if n == 1 else [f"{i}_{request_id}" for i in range(n)]


@dataclass(eq=False)
class Request:
    """One sequence of tokens on its way through the engine.

    Attributes:
        request_id: unique among the requests in flight.
        prompt: its text, None if tokens were given.
        prompt_token_ids: its tokens, at least one.
        params: how to choose tokens.
        priority: the smaller number goes first.
        arrival_number: order of arrival, unique; breaks ties.
        sample_index: which of n completions of the prompt this is.
        seed: what its draws are seeded with, given by the caller or drawn by the engine.
        max_total_tokens: prompt and output together never exceed this.
        eos_token_ids: the model's tokens that end it, unless `ignore_eos`; not generated before `min_tokens`.
        eos_token_id: the one of them that is the tokenizer's own; the others are named as `stop_reason`.
        bad_words_token_ids: sequences of tokens that must not be completed.
        cache_salt: requests share cached prefixes only with the same salt.
        grammar: where it stands in its structured output.
        prompt_logprobs: position → log-probabilities of the prompt's token there, if asked for.
        draft_token_ids: guesses at the tokens that follow, for its next step.
        block_indices: its block table in its last step; empty once it is preempted.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    max_total_tokens: int
    priority: int = 0
    arrival_number: int = 0
    sample_index: int = 0
    eos_token_ids: frozenset[int] = frozenset()
    eos_token_id: int | None = None
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    cache_salt: str = ""
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_cached_tokens: int | None = None
    grammar: Grammar | None = None
    prompt_logprobs: dict[int, dict[int, Logprob]] = field(default_factory=dict)
    draft_token_ids: list[int] = field(default_factory=list)
    block_indices: tuple[int, ...] = ()
    status: RequestStatus = RequestStatus.WAITING
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    metrics: RequestMetrics = field(default_factory=RequestMetrics)

    @cached_property
    def token_counts(self) -> TokenCounts:
        """How often it has generated each token, for penalties; made when first asked for."""
        return TokenCounts(self.prompt_token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens known: prompt and output."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens known and not yet in the KV cache: 1 when it decodes, more when it prefills."""
        return self.num_tokens - self.num_computed_tokens

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first: the smaller priority number, then who came first."""
        return (self.priority, self.arrival_number)

    def token_ids(self, start: int, stop: int) -> list[int]:
        """Tokens [start, stop) of prompt and output."""
        split = len(self.prompt_token_ids)
        if start >= split:
            return self.output_token_ids[start - split : stop - split]
        if stop <= split:
            return self.prompt_token_ids[start:stop]
        return self.prompt_token_ids[start:] + self.output_token_ids[: stop - split]
