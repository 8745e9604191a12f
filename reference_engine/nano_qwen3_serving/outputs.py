"""The outputs of a request. vLLM's `RequestOutput` and `CompletionOutput`, with the same names.

Knows nothing of how tokens are made. Times are seconds on the engine's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class Logprob:
    """Log-probability of one token: natural logarithm, its rank (1 is the likeliest), its text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class RequestMetrics:
    """When things happened to a request, in seconds on the engine's clock; 0.0 is "not yet"."""

    arrival_time: float = 0.0
    queued_ts: float = 0.0  #: entered the scheduler
    scheduled_ts: float = 0.0  #: first part of it computed
    first_token_ts: float = 0.0
    last_token_ts: float = 0.0
    num_generation_tokens: int = 0
    num_preemptions: int = 0

    def copy(self) -> RequestMetrics:
        """The same, to be changed apart from this."""
        return RequestMetrics(
            self.arrival_time, self.queued_ts, self.scheduled_ts, self.first_token_ts, self.last_token_ts,
            self.num_generation_tokens, self.num_preemptions)

    @property
    def first_token_latency(self) -> float:
        """TTFT: seconds from arrival to the first token."""
        return self.first_token_ts - self.arrival_time


@dataclass
class CompletionOutput:
    """One completion of a prompt.

    Attributes:
        index: which of the request's n completions this is.
        text: generated text; all of it, or with `DELTA` only the new part.
        token_ids: generated tokens, likewise; an end-of-sequence token is among them.
        cumulative_logprob: sum of the chosen tokens' log-probabilities, if asked for.
        logprobs: for each token the log-probabilities asked for.
        finish_reason: "stop" (end of sequence, stop string or stop token), "length", "abort",
            "error"; None while it runs.
        stop_reason: the stop string or stop token that matched; None for end of sequence.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    def finished(self) -> bool:
        """Whether this completion is complete."""
        return self.finish_reason is not None


@dataclass
class RequestOutput:
    """The state of a request, or with `DELTA` what is new since the last output.

    Two outputs are equal if they say the same; times and blocks are not compared.

    Attributes:
        request_id: the caller's id.
        prompt: its text, None if tokens were given.
        prompt_token_ids: its tokens.
        prompt_logprobs: for each token of the prompt, if asked for; None for the first.
        outputs: one `CompletionOutput` per completion.
        finished: whether all of them are complete.
        metrics: when things happened.
        num_cached_tokens: tokens of the prompt that were found in the prefix cache.
        block_indices: the KV blocks that its first completion held in its last step; none once it is preempted.
        error: why the request failed, with finish_reason "error"; async callers get it raised.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics | None = field(default=None, compare=False)
    num_cached_tokens: int | None = None
    error: Exception | None = None
    block_indices: list[int] = field(default_factory=list, compare=False)

    def merged(self, newer: RequestOutput, *, deltas: bool) -> RequestOutput:
        """This output and a newer one merged, for a consumer that did not fetch this one in time.

        With `deltas` text and tokens are joined; otherwise the newer output holds everything already.
        """
        by_index = {o.index: o for o in self.outputs}
        for new in newer.outputs:
            old = by_index.get(new.index)
            by_index[new.index] = joined(old, new) if deltas and old is not None else new
        result = copy(newer)
        result.outputs = [by_index[i] for i in sorted(by_index)]
        return result


class ListOfItsOwn:
    """An attribute that may be given as a tuple, which others share; read first, it becomes a list of the object's own.

    An output is made for every token of a request, and few readers look at its prompt or its blocks: to copy thousands
    of numbers for each would cost more than the rest of the step.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        value = instance.__dict__[self._name]
        if isinstance(value, tuple):
            value = instance.__dict__[self._name] = list(value)
        return value

    def __set__(self, instance: Any, value: Sequence[int]) -> None:
        instance.__dict__[self._name] = value


RequestOutput.prompt_token_ids = ListOfItsOwn("prompt_token_ids")  # type: ignore[assignment]
RequestOutput.block_indices = ListOfItsOwn("block_indices")  # type: ignore[assignment]


def joined(old: CompletionOutput, new: CompletionOutput) -> CompletionOutput:
    """Two deltas of one completion as one delta."""
    return replace(
        new,
        text=old.text + new.text,
        token_ids=old.token_ids + new.token_ids,
        logprobs=None if new.logprobs is None else (old.logprobs or []) + new.logprobs,
    )
