"""New tokens → text → `RequestOutput`; finds stop strings.

Knows detokenizers and output kinds; knows nothing of blocks or steps. A caller's request is a group
of n sequences that end, abort and fail as one; each has its own text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from nano_qwen3_serving.exceptions import GenerationError
from nano_qwen3_serving.interfaces import Detokenizer, RequestUpdate, StoppedRequest, Tokenizer
from nano_qwen3_serving.outputs import (
    CompletionOutput,
    FinishReason,
    Logprob,
    RequestMetrics,
    RequestOutput,
)
from nano_qwen3_serving.request import Request
from nano_qwen3_serving.sampling_params import RequestOutputKind, SamplingParams

MakeDetokenizer = Callable[[Tokenizer, SamplingParams], Detokenizer]
OnEnd = Callable[[RequestOutput, list[str]], None]


@dataclass
class Completion:
    """One completion of a prompt as it grows: what is known, and how much of it was shown."""

    request: Request
    detokenizer: Detokenizer | None
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    shown_text: int = 0
    shown_tokens: int = 0
    shown_finish: bool = False

    def take(self, update: RequestUpdate) -> None:
        """Adds an update's tokens and text, and ends the sequence where they say so."""
        self.finish_reason, self.stop_reason = self.request.finish_reason, self.request.stop_reason
        new = update.new_token_ids[: self._take_text(update.new_token_ids)]
        if self.request.grammar is not None and self.finish_reason is None:
            self.request.grammar.accept(new)
        self.token_ids += new
        for token_id, logprobs in zip(new, update.logprobs or [], strict=False):
            self.logprobs.append(logprobs)
            self.cumulative_logprob += logprobs[token_id].logprob
        self.request.metrics.num_generation_tokens = len(self.token_ids)

    def _take_text(self, token_ids: Sequence[int]) -> int:
        """Adds the text of new tokens; how many of them belong to the output, for a stop string may end it before the last."""
        if self.detokenizer is None:
            return len(token_ids)
        ends_by_token = self.finish_reason == "stop"  # its text is not part of the output
        delta = self.detokenizer.add(token_ids[:-1] if ends_by_token and not self._keeps_stop else token_ids)
        self.text += delta.text
        if delta.stop_reason is None:
            self.text += self.detokenizer.finish().text if self.finish_reason is not None else ""
            return len(token_ids)
        self.finish_reason, self.stop_reason = "stop", delta.stop_reason
        return len(token_ids) if delta.num_tokens is None else delta.num_tokens

    def end(self, reason: FinishReason) -> None:
        """Ends it from outside: what was kept back is shown."""
        if self.finish_reason is None:
            self.finish_reason = reason
            if self.detokenizer is not None and reason != "error":
                self.text += self.detokenizer.finish().text

    @property
    def _keeps_stop(self) -> bool:
        return self.request.params.include_stop_str_in_output

    @property
    def has_news(self) -> bool:
        """Whether there is something to show: text, the end, or without text a token."""
        textless = self.detokenizer is None and len(self.token_ids) > self.shown_tokens
        return textless or len(self.text) > self.shown_text or (self.finish_reason is not None and not self.shown_finish)

    def completion(self, deltas: bool) -> CompletionOutput:
        """What to show now, and notes that it was shown."""
        text_from, token_from = (self.shown_text, self.shown_tokens) if deltas else (0, 0)
        wants_logprobs = self.request.params.logprobs is not None
        self.shown_text, self.shown_tokens = len(self.text), len(self.token_ids)
        self.shown_finish = self.finish_reason is not None
        return CompletionOutput(
            index=self.request.sample_index,
            text=self.text[text_from:],
            token_ids=self.token_ids[token_from:],
            cumulative_logprob=self.cumulative_logprob if wants_logprobs else None,
            logprobs=[dict(each) for each in self.logprobs[token_from:]] if wants_logprobs else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )


@dataclass
class Group:
    """A caller's request: its n sequences and how it wants to see them."""

    request_id: str
    sequences: list[Completion]
    stream_interval: int
    prompt_token_ids: tuple[int, ...]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    error: Exception | None = None

    @property
    def finished(self) -> bool:
        """Whether every sequence is complete."""
        return None not in [s.finish_reason for s in self.sequences]

    def output(self, finished: bool) -> RequestOutput | None:
        """What to show the caller now, if there is anything; `finished` is the property, asked once."""
        first = self.sequences[0].request
        kind = first.params.output_kind
        if kind is RequestOutputKind.FINAL_ONLY and not finished:
            return None
        news = [s for s in self.sequences if s.has_news]
        if not finished and not self._is_due(news):
            return None
        deltas = kind is RequestOutputKind.DELTA
        return RequestOutput(  # with lists of its own: what the caller does to them reaches nobody
            request_id=self.request_id,
            prompt=first.prompt,
            prompt_token_ids=self.prompt_token_ids,  # type: ignore[arg-type]  # a list once somebody reads it
            prompt_logprobs=self.prompt_logprobs and [each and dict(each) for each in self.prompt_logprobs],
            outputs=[s.completion(deltas) for s in (news if deltas else self.sequences)],
            finished=finished,
            metrics=self.metrics(),
            num_cached_tokens=first.num_cached_tokens,
            error=self.error,
            block_indices=first.block_indices,  # type: ignore[arg-type]  # likewise
        )

    def _is_due(self, news: Sequence[Completion]) -> bool:
        """Whether one of those with news has its first token, or enough of them for another output."""
        interval = self.stream_interval
        return any(not s.shown_tokens or len(s.token_ids) - s.shown_tokens >= interval for s in news)

    def metrics(self) -> RequestMetrics:
        """When things happened to the group: its first start, its last token, its sums."""
        result = self.sequences[0].request.metrics.copy()
        for sequence in self.sequences[1:]:
            other = sequence.request.metrics
            result.scheduled_ts = earlier(result.scheduled_ts, other.scheduled_ts)
            result.first_token_ts = earlier(result.first_token_ts, other.first_token_ts)
            result.last_token_ts = max(result.last_token_ts, other.last_token_ts)
            result.num_generation_tokens += other.num_generation_tokens
            result.num_preemptions += other.num_preemptions
        return result


def earlier(time: float, other: float) -> float:
    """The smaller of two times; 0.0 is one that has not come."""
    return min(time, other) if time and other else time or other


class OutputProcessor:
    """Holds what callers will see of the requests in flight.

    Args:
        tokenizer: given to the detokenizers.
        make_detokenizer: makes one per sequence.
        on_end: told the last output of each caller's request, and how each of its completions ended.
        stream_interval: tokens between two outputs of a request, after its first.
    """

    def __init__(
        self, tokenizer: Tokenizer, make_detokenizer: MakeDetokenizer, on_end: OnEnd, stream_interval: int = 1,
    ) -> None:
        self._tokenizer = tokenizer
        self._make_detokenizer = make_detokenizer
        self._on_end = on_end
        self._stream_interval = stream_interval
        self._groups: dict[str, Group] = {}
        self._members: dict[str, tuple[Group, Completion]] = {}
        self._failed: list[RequestOutput] = []  # last outputs that the next `process` returns

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._groups or request_id in self._members

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def request_ids(self) -> list[str]:
        """Callers' requests in flight."""
        return list(self._groups)

    def add(self, request_id: str, requests: Sequence[Request]) -> None:
        """Begins a caller's request made of `requests`, one per completion."""
        make = self._make_detokenizer
        sequences = [Completion(r, make(self._tokenizer, r.params) if r.params.detokenize else None) for r in requests]
        group = self._groups[request_id] = Group(
            request_id, sequences, self._stream_interval, tuple(requests[0].prompt_token_ids))
        self._members.update((s.request.request_id, (group, s)) for s in sequences)

    def process(self, updates: Sequence[RequestUpdate]) -> tuple[list[RequestOutput], list[StoppedRequest]]:
        """Outputs to show after a step, those that failed in it first, and the requests that ended by their text.

        A request whose text cannot be made fails alone.
        """
        failed, self._failed = self._failed, []
        touched: dict[str, Group] = {}
        stopped: list[StoppedRequest] = []
        for update in updates:
            member = self._members.get(update.request.request_id)
            if member is None:
                continue
            group, sequence = member
            if sequence.finish_reason is not None:
                continue  # another completion of its group failed in this step, and the group with it
            touched[group.request_id] = group
            try:
                sequence.take(self._with_text(update))
                if group.prompt_logprobs is None:
                    group.prompt_logprobs = self._prompt_logprobs(group.sequences[0].request)
            except Exception as error:
                stopped += self._fail(group, error)
                continue
            if sequence.finish_reason is not None and update.request.finish_reason is None:
                stopped.append(StoppedRequest(
                    update.request.request_id, "stop", sequence.stop_reason, len(sequence.token_ids)))
        return failed + self._show(touched.values()), stopped

    def fail(self, member_id: str, error: Exception) -> list[StoppedRequest]:
        """Ends the caller's request that owns `member_id` with an error: its members. The next `process` shows it."""
        if member_id not in self._members:
            return []
        group, _ = self._members[member_id]
        stopped = self._fail(group, error)
        self._failed += self._show([group])
        return stopped

    def abort(self, request_id: str) -> tuple[RequestOutput | None, list[StoppedRequest]]:
        """Ends a caller's request as aborted: its last output, and its members. Unknown: nothing."""
        group = self._groups.get(request_id)
        if group is None:
            return None, []
        stopped = [StoppedRequest(s.request.request_id, "abort") for s in group.sequences if not s.finish_reason]
        for sequence in group.sequences:
            with suppress(Exception):  # text that cannot be made any more: the caller gave up anyway
                sequence.end("abort")
        outputs = self._show([group])
        return outputs[0], stopped

    def _fail(self, group: Group, error: Exception) -> list[StoppedRequest]:
        group.error = GenerationError(
            f"request {group.request_id!r} failed ({type(error).__name__}: {error}); others are not affected")
        group.error.__cause__ = error
        stopped = [StoppedRequest(s.request.request_id, "error") for s in group.sequences]
        for sequence in group.sequences:
            sequence.finish_reason = "error"
        return stopped

    def _show(self, groups: Iterable[Group]) -> list[RequestOutput]:
        """The groups' outputs; forgets those that are finished."""
        outputs = []
        for group in groups:
            finished = group.finished
            output = group.output(finished)
            if output is not None:
                outputs.append(output)
            if finished:
                if output is not None:
                    self._on_end(output, [s.finish_reason or "" for s in group.sequences])
                del self._groups[group.request_id]
                for sequence in group.sequences:
                    del self._members[sequence.request.request_id]
        return outputs

    def _with_text(self, update: RequestUpdate) -> RequestUpdate:
        """The update with each log-probability's token as text."""
        if update.logprobs is None or not update.request.params.detokenize:
            return update
        return replace(update, logprobs=[self._decoded(position) for position in update.logprobs])

    def _prompt_logprobs(self, request: Request) -> list[dict[int, Logprob] | None] | None:
        """For each token of the prompt, None for the first; None altogether if nobody asked."""
        if request.params.prompt_logprobs is None:
            return None
        known = request.prompt_logprobs
        if request.params.detokenize:
            known = {i: self._decoded(logprobs) for i, logprobs in known.items()}
        return [known.get(i) for i in range(request.num_prompt_tokens)]

    def _decoded(self, logprobs: dict[int, Logprob]) -> dict[int, Logprob]:
        return {i: replace(lp, decoded_token=self._tokenizer.token_text(i)) for i, lp in logprobs.items()}
