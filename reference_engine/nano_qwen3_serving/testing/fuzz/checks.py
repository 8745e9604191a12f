"""What a caller got against what it must get.

Every failure is a `Violation` that says in one sentence which request got what.
"""

from __future__ import annotations

from collections.abc import Sequence

from nano_qwen3_serving.exceptions import (
    EngineDeadError,
    GenerationError,
    InvalidParametersError,
    PromptTooLongError,
    QueueFullError,
    RequestTimeoutError,
)
from nano_qwen3_serving.outputs import CompletionOutput
from nano_qwen3_serving.sampling_params import RequestOutputKind
from nano_qwen3_serving.testing.fuzz.caller import Caller
from nano_qwen3_serving.testing.fuzz.faults import InjectedError
from nano_qwen3_serving.testing.fuzz.oracles import Expected, TokenOracle, text_of


class Violation(AssertionError):
    """The engine did something that it must not do."""


def require(condition: bool, message: str) -> None:
    """Raises `Violation` unless `holds`."""
    if not condition:
        raise Violation(message)


def root(error: BaseException) -> str:
    """An error with what caused it."""
    cause = f", because of {type(error.__cause__).__name__}: {error.__cause__}" if error.__cause__ else ""
    return f"{type(error).__name__}: {error}{cause}"


class Checker:
    """Judges callers whose requests are over.

    Args:
        oracle: knows what each request generates when it runs alone.
        max_model_len, queue_limit: the engine's.
    """

    def __init__(self, oracle: TokenOracle, max_model_len: int, queue_limit: int | None) -> None:
        self.oracle = oracle
        self.max_model_len = max_model_len
        self.queue_limit = queue_limit

    def check(self, caller: Caller, stopped: bool) -> None:
        """Raises `Violation` if what the caller got is not what it must get."""
        require(caller.outcome is not None, f"{caller.name} waits for ever")
        if caller.outcome == "error":
            self._check_error(caller, stopped)
        if caller.outputs:
            self._check_outputs(caller)

    def _check_error(self, caller: Caller, stopped: bool) -> None:
        error, op = caller.error, caller.op
        assert error is not None
        too_long = len(caller.prompt_token_ids) >= self.max_model_len
        too_late = caller.deadline is not None and caller.ended_time >= caller.deadline
        allowed = (
            (isinstance(error, PromptTooLongError) and too_long)
            or isinstance(error, QueueFullError)  # judged when it came; see `Places`
            or (type(error) is InvalidParametersError and caller.params.n > (self.queue_limit or caller.params.n))
            or (isinstance(error, InjectedError) and op["broken"])
            or (isinstance(error, GenerationError) and (bool(op["doomed"]) or caller.may_fail or self._is_stuck(caller)))
            or (isinstance(error, EngineDeadError) and stopped)
            or (isinstance(error, RequestTimeoutError) and too_late)
        )
        require(allowed, f"{caller.name} got {root(error)}")
        if isinstance(error, RequestTimeoutError) and error.partial is not None:
            require(error.partial.request_id == op["id"], f"{caller.name}: .partial is of {error.partial.request_id!r}")
            completions = caller.completions(error.partial)
            self._compare(caller, completions)
            received, made = sum(len(c.token_ids) for c in completions), error.partial.metrics.num_generation_tokens
            require(received == made, f"{caller.name} timed out with {received} tokens, .partial included; {made} were generated")

    def _is_stuck(self, caller: Caller) -> bool:
        """Whether one of its completions reaches a point where no token is allowed."""
        answers = self.oracle.expected(caller.prompt_token_ids, caller.params)
        return any(answer.finish_reason == "error" for answer in answers)

    def _check_outputs(self, caller: Caller) -> None:
        deltas = caller.params.output_kind is RequestOutputKind.DELTA
        for output in caller.outputs:
            require(output.request_id == caller.op["id"], f"{caller.name} got an output of {output.request_id!r}")
            require(output.prompt_token_ids == caller.prompt_token_ids, f"{caller.name} got another prompt's output")
            cached = output.num_cached_tokens or 0
            require(cached < len(caller.prompt_token_ids), f"{caller.name}: {cached} tokens cached of its prompt")
        early = [o for o in caller.outputs[:-1] if o.finished]
        require(not early, f"{caller.name} got outputs after the finished one")
        if caller.params.output_kind is RequestOutputKind.FINAL_ONLY:
            require(len(caller.outputs) == 1, f"{caller.name}: {len(caller.outputs)} outputs with FINAL_ONLY")
        if not deltas:
            self._check_growth(caller)
        if caller.outcome == "finished":
            require(caller.outputs[-1].finished, f"{caller.name}: its stream ended before it was finished")
            indexes = [c.index for c in caller.completions()]
            require(indexes == list(range(caller.params.n)), f"{caller.name} got the completions {indexes}")
        self._compare(caller, caller.completions())

    def check_sharing(self, callers: Sequence[Caller]) -> None:
        """The cached part of a prompt was computed before by a request with the same salt.

        Outputs cannot show it: equal tokens have equal keys and values, whatever the salt.
        """
        for caller in callers:
            cached = max((o.num_cached_tokens or 0 for o in caller.outputs), default=0)
            beginning = caller.prompt_token_ids[:cached]
            same_salt = [c for c in callers if c.op["salt"] == caller.op["salt"]]
            sources = [c for c in same_salt if c is not caller or c.params.n > 1]
            has_source = not cached or any(c.prompt_token_ids[:cached] == beginning for c in sources) or any(
                self._begins_with(c, beginning) for c in sources)
            require(has_source, f"{caller.name}: {cached} tokens of its prompt came from another salt's blocks")

    def _begins_with(self, caller: Caller, beginning: list[int]) -> bool:
        """Whether the caller's prompt and an answer to it begin like that."""
        prompt = caller.prompt_token_ids
        if beginning[: len(prompt)] != prompt or len(prompt) >= self.max_model_len:
            return False
        answers = self.oracle.expected(prompt, caller.params)
        return any((prompt + answer.token_ids)[: len(beginning)] == beginning for answer in answers)

    def _check_growth(self, caller: Caller) -> None:
        """Each cumulative output continues the one before."""
        seen: dict[int, CompletionOutput] = {}
        for output in caller.outputs:
            for new in output.outputs:
                old = seen.get(new.index)
                if old is not None:
                    grows = new.text.startswith(old.text) and new.token_ids[: len(old.token_ids)] == old.token_ids
                    require(grows, f"{caller.name}: {old.text!r} {old.token_ids} became {new.text!r} {new.token_ids}")
                seen[new.index] = new

    def _compare(self, caller: Caller, completions: list[CompletionOutput]) -> None:
        """Compares completions with the oracle token by token; one that was cut short must be a prefix of the oracle's."""
        require(len(caller.prompt_token_ids) < self.max_model_len, f"{caller.name} has a prompt that should be refused")
        expected = self.oracle.expected(caller.prompt_token_ids, caller.params)
        for completion in completions:
            want = expected[completion.index]
            where = f"{caller.name}, completion {completion.index}"
            if completion.finish_reason in ("stop", "length"):
                self._check_whole(caller, completion, want, where)
            else:
                self._check_part(caller, completion, want, where)

    def _check_whole(self, caller: Caller, completion: CompletionOutput, want: Expected, where: str) -> None:
        require(completion.token_ids == want.token_ids, f"{where}: tokens {completion.token_ids}, alone {want.token_ids}")
        require(completion.text == want.text, f"{where}: text {completion.text!r}, alone {want.text!r}")
        reasons = (completion.finish_reason, completion.stop_reason)
        require(reasons == (want.finish_reason, want.stop_reason),
                f"{where}: ended by {reasons}, alone by {(want.finish_reason, want.stop_reason)}")
        if want.logprobs is not None:
            chosen = [(t, lp[t].logprob, sorted(lp))
                      for t, lp in zip(completion.token_ids, completion.logprobs or [], strict=True)]
            alone = [(t, lp[t].logprob, sorted(lp)) for t, lp in zip(want.token_ids, want.logprobs, strict=True)]
            require(chosen == alone, f"{where}: log-probabilities {chosen}, alone {alone}")
        doom = caller.op["doomed"]
        swallowed = doom is not None and caller.params.n == 1 and len(want.token_ids) > doom[1]
        require(not swallowed, f"{where} finished, although its {doom and doom[0]} failed")

    def _check_part(self, caller: Caller, completion: CompletionOutput, want: Expected, where: str) -> None:
        count = len(completion.token_ids)
        require(completion.token_ids == want.token_ids[:count], f"{where}: tokens {completion.token_ids}, alone {want.token_ids}")
        if completion.finish_reason == "abort":
            timed_out = caller.outcome == "error"
            require(caller.abort_wanted or timed_out, f"{where} was aborted, but no caller asked for that")
            text = text_of(self.oracle.tokenizer, completion.token_ids, caller.params)
            require(completion.text == text, f"{where}: aborted with text {completion.text!r}, its tokens say {text!r}")
        else:
            require(completion.finish_reason is None, f"{where} ended by {completion.finish_reason!r}")
            require(want.text.startswith(completion.text), f"{where}: text {completion.text!r}, alone {want.text!r}")
