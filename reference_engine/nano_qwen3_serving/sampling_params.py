"""How one request wants its tokens chosen. vLLM's `SamplingParams`: same names, defaults, ranges.

Knows nothing of logits or tokenizers.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from nano_qwen3_serving.arguments import (
    check_bool,
    check_choice,
    check_float,
    check_int,
    check_texts,
    invalid,
    names_unknown_arguments,
    own_copy,
)
from nano_qwen3_serving.exceptions import shown

MAX_N = 16_384  # as in vLLM
MIN_TEMPERATURE = 0.01  # below this, float16 logits overflow when divided by it
MIN_PENALTY = 1e-30  # below this, float32 logits do


class RequestOutputKind(IntEnum):
    """What an output of a stream holds."""

    CUMULATIVE = 0  #: everything generated so far
    DELTA = 1  #: what is new since the last output
    FINAL_ONLY = 2  #: nothing until the request is finished


@names_unknown_arguments
@dataclass
class StructuredOutputsParams:
    """What the output must look like: exactly one of these. Needs the extra `[structured]`.

    Args:
        json: a JSON schema, as a dict or as text.
        regex: a regular expression that the whole text matches.
        choice: the text is one of these.
        grammar: a context-free grammar in Lark's notation.
        json_object: any JSON object.
    """

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def __post_init__(self) -> None:
        constraints = {k: v for k, v in vars(self).items() if v is not None}
        if len(constraints) != 1:
            raise invalid("structured_outputs", constraints, "exactly one of json, regex, choice, grammar, json_object")
        kinds: dict[str, type | tuple[type, ...]] = {
            "json": (dict, str), "regex": str, "grammar": str, "json_object": bool, "choice": list}
        for name, value in constraints.items():
            well_formed = isinstance(value, kinds[name]) and value not in ("", [], False)
            if not well_formed or (name == "choice" and not all(isinstance(c, str) and c for c in value)):
                raise invalid(f"structured_outputs.{name}", value, "non-empty, and of its type")
            setattr(self, name, own_copy(f"structured_outputs.{name}", value))


@names_unknown_arguments
@dataclass
class SamplingParams:
    """Parameters of one request; every violation names the parameter and the value.

    Args:
        n: number of completions of the prompt.
        presence_penalty: subtracted once from the logit of each token generated before, [-2, 2].
        frequency_penalty: subtracted once per occurrence of a generated token, [-2, 2].
        repetition_penalty: divides (if positive) or multiplies (if negative) the logits of tokens
            in the prompt or the output; above 0 (from 1e-30 to 1e30), 1 is off.
        temperature: divides the logits, [0, 2]; 0 is greedy.
        top_p: keep the smallest set of tokens whose probability reaches this, (0, 1].
        top_k: keep this many tokens; 0 and -1 are off.
        min_p: keep tokens at least this fraction as likely as the likeliest, [0, 1].
        seed: gives the request draws of its own: the same tokens whatever other requests run.
        stop: strings that end the text; not part of it unless `include_stop_str_in_output`.
        stop_token_ids: tokens that end it.
        ignore_eos: go on after the model's end-of-sequence tokens.
        max_tokens: at most this many tokens; None means up to the model's length.
        min_tokens: no end of sequence and no stop before this many.
        logprobs: log-probabilities of the chosen token and of this many of the likeliest (-1: all).
        prompt_logprobs: the same for each token of the prompt.
        detokenize: produce text.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: accepted as in vLLM; byte-level vocabularies, the only ones
            served, never put a space there.
        include_stop_str_in_output: keep the stop string in the text.
        output_kind: what each streamed output holds.
        structured_outputs: a `StructuredOutputsParams`: the output matches a schema, regex, choice.
        logit_bias: token id → number in [-100, 100] added to its logit.
        allowed_token_ids: only these tokens can be generated.
        bad_words: strings whose tokens must not be completed.

    Raises:
        InvalidParametersError: a type or range is violated.
        UnknownArgumentError: there is no such parameter.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = field(default=None)

    def __post_init__(self) -> None:
        self._own()
        self._check_numbers()
        self._check_lengths()
        self._check_stops()
        self._check_token_rules()
        self._normalise()

    @classmethod
    def greedy(cls, **kwargs: Any) -> SamplingParams:
        """The likeliest token every time."""
        return cls(**{"temperature": 0.0, **kwargs})

    @classmethod
    def balanced(cls, **kwargs: Any) -> SamplingParams:
        """Varied but sober: temperature 0.7, top_p 0.9, top_k 40."""
        return cls(**{"temperature": 0.7, "top_p": 0.9, "top_k": 40, **kwargs})

    @classmethod
    def creative(cls, **kwargs: Any) -> SamplingParams:
        """More daring: temperature 0.8, top_p 0.9, top_k 50."""
        return cls(**{"temperature": 0.8, "top_p": 0.9, "top_k": 50, **kwargs})

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken every time."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """Whether tokens that were there before get other logits."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        return self.stop if isinstance(self.stop, list) else []

    def clone(self, **changes: Any) -> SamplingParams:
        """A copy that shares no list or dict with this object; all of it is checked like new arguments."""
        return replace(self, **changes)

    def _check_numbers(self) -> None:
        check_int("n", self.n, at_least=1)
        if self.n > MAX_N:
            raise invalid("n", self.n, f"at most {MAX_N}")
        check_float("presence_penalty", self.presence_penalty, low=-2, high=2)
        check_float("frequency_penalty", self.frequency_penalty, low=-2, high=2)
        check_float("repetition_penalty", self.repetition_penalty, low=MIN_PENALTY, high=1 / MIN_PENALTY)
        check_float("temperature", self.temperature, low=0, high=2)
        check_float("top_p", self.top_p, low=0, high=1, open_low=True)
        check_int("top_k", self.top_k, at_least=-1)
        check_float("min_p", self.min_p, low=0, high=1)
        if self.seed is not None and (not isinstance(self.seed, int) or isinstance(self.seed, bool)):
            raise invalid("seed", self.seed, "an int or None")

    def _check_lengths(self) -> None:
        check_int("max_tokens", self.max_tokens, at_least=1, optional=True)
        check_int("min_tokens", self.min_tokens, at_least=0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise invalid("min_tokens", self.min_tokens, f"at most max_tokens={self.max_tokens}")
        check_int("logprobs", self.logprobs, at_least=-1, optional=True)
        check_int("prompt_logprobs", self.prompt_logprobs, at_least=-1, optional=True)
        check_choice("output_kind", self.output_kind, list(RequestOutputKind))
        self.output_kind = RequestOutputKind(self.output_kind)

    def _check_stops(self) -> None:
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        if self.stop is not None:
            check_texts("stop", self.stop, "a non-empty string or a list of non-empty strings")
            if self.stop and not self.detokenize:
                raise invalid("stop", self.stop, "left out when detokenize=False: stop strings need text")
        for name in ("ignore_eos", "detokenize", "skip_special_tokens",
                     "spaces_between_special_tokens", "include_stop_str_in_output"):
            check_bool(name, getattr(self, name))
        check_token_ids("stop_token_ids", self.stop_token_ids)

    def _check_token_rules(self) -> None:
        if self.structured_outputs is not None:
            if not isinstance(self.structured_outputs, StructuredOutputsParams):
                raise invalid("structured_outputs", self.structured_outputs, "a StructuredOutputsParams or None")
            if self.ignore_eos:
                raise invalid("ignore_eos", True, "False with structured_outputs: the grammar decides where the text ends")
        check_token_ids("allowed_token_ids", self.allowed_token_ids)
        if self.allowed_token_ids == []:
            raise invalid("allowed_token_ids", [], "None or a list with at least one token id")
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, dict):
                raise invalid("logit_bias", self.logit_bias, "a dict of token id to number")
            check_token_ids("logit_bias", list(self.logit_bias))
            for token_id, bias in self.logit_bias.items():
                check_float(f"logit_bias[{shown(token_id)}]", bias, low=-100, high=100)
        if self.bad_words is not None:
            check_texts("bad_words", self.bad_words, "a list of non-empty strings")

    def _own(self) -> None:
        """Copies the caller's lists and dicts: otherwise a list that grows later would change a running request."""
        for name in ("stop", "stop_token_ids", "logit_bias", "allowed_token_ids", "bad_words"):
            value = getattr(self, name)
            if isinstance(value, (list, dict)):
                setattr(self, name, list(value) if isinstance(value, list) else dict(value))
        if isinstance(self.structured_outputs, StructuredOutputsParams):
            self.structured_outputs = replace(self.structured_outputs)

    def _normalise(self) -> None:
        if 0 < self.temperature < MIN_TEMPERATURE:
            warnings.warn(
                f"temperature {self.temperature} was raised to {MIN_TEMPERATURE}: smaller ones "
                "overflow; use 0 for greedy", stacklevel=5)
            self.temperature = MIN_TEMPERATURE
        self.top_k = max(self.top_k, 0)
        if self.is_greedy:
            if self.n > 1:
                raise invalid("n", self.n, "1 when temperature is 0: greedy completions are all equal")
            self.top_p, self.top_k, self.min_p = 1.0, 0, 0.0


def check_token_ids(parameter: str, ids: Any) -> None:
    """Refuses what is not None or a list of ints of at least 0."""
    if ids is None:
        return
    if not isinstance(ids, list):
        raise invalid(parameter, ids, "a list of token ids")
    for token_id in ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise invalid(parameter, token_id, "token ids: ints of at least 0")
