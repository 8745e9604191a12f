"""What a caller asks → `Request`s: checked, tokenised, seeded, grammar compiled.

Knows configuration and tokenizer; adds nothing to any queue. May be called from any thread, and is:
long prompts are tokenised in text threads, so that neither the event loop nor a step waits.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from nano_qwen3_serving.arguments import check_float, check_text, invalid
from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.exceptions import InvalidParametersError, PromptTooLongError, shown
from nano_qwen3_serving.outputs import RequestMetrics
from nano_qwen3_serving.prompts import Prompt, parse_prompt
from nano_qwen3_serving.request import Request, member_ids
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.text.grammar import GrammarCompiler


class InputProcessor:
    """Makes requests that the scheduler can take without another question.

    Args:
        config: the engine's.
        tokenizer: of the checkpoint.
        clock: engine time, in seconds.
    """

    def __init__(self, config: EngineConfig, tokenizer: Any, clock: Callable[[], float]) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._clock = clock
        self._seeds = random.Random(config.seed)
        self._eos_token_ids = frozenset(config.model.eos_token_ids)
        self._eos_token_id = next(iter(config.model.eos_token_ids), None)  # the tokenizer's own, if it has one
        self._grammars = GrammarCompiler(tokenizer, config.model.vocab_size, config.model.eos_token_ids)

    def make_requests(
        self, request_id: str, prompt: Prompt, params: SamplingParams, arrival_time: float | None, priority: int
    ) -> list[Request]:
        """One `Request` for each of the n completions.

        Everything of the caller's is looked at, copied and encoded here: steps meet only what is checked.

        Raises:
            InvalidParametersError: the prompt or a parameter is not acceptable here.
        """
        check_arguments(request_id, params, arrival_time, priority)
        params = params.clone()  # it may have been changed since it was checked, and may change again
        text, tokens, salt = parse_prompt(prompt)
        if tokens is None:
            tokens = self._tokenizer.encode(text)
        self._check_prompt(tokens)
        self._check_params(params)
        room = self._config.scheduler.max_model_len - len(tokens)
        seed = params.seed if params.seed is not None else self._seeds.getrandbits(63)
        now = self._clock() if arrival_time is None else arrival_time
        grammar = self._grammars.compile(params.structured_outputs) if params.structured_outputs else None
        bad_words = self._bad_words(params)
        return [
            Request(
                request_id=member_id,
                prompt=text,
                prompt_token_ids=tokens,
                params=params,
                seed=seed + i,
                max_total_tokens=len(tokens) + min(room, params.max_tokens or room),
                priority=priority,
                sample_index=i,
                eos_token_ids=self._eos_token_ids,
                eos_token_id=self._eos_token_id,
                bad_words_token_ids=bad_words,
                cache_salt=salt,
                grammar=grammar.copy() if grammar else None,
                metrics=RequestMetrics(arrival_time=now),
            )
            for i, member_id in enumerate(member_ids(request_id, params.n))
        ]

    def _check_prompt(self, tokens: list[int]) -> None:
        limit = self._config.scheduler.max_model_len
        if not tokens:
            raise InvalidParametersError("the prompt is empty; give at least one token", parameter="prompt", value=tokens)
        if len(tokens) >= limit:
            raise PromptTooLongError(
                f"the prompt has {len(tokens)} tokens; this engine holds at most {limit} of prompt and output "
                f"(max_model_len, which the KV pool of {self._config.cache.capacity} tokens bounds): shorten it, or "
                "start the engine with more", parameter="prompt", value=len(tokens))
        self._check_ids("prompt_token_ids", tokens)

    def _check_params(self, params: SamplingParams) -> None:
        self._check_ids("stop_token_ids", params.stop_token_ids or [])
        self._check_ids("logit_bias", list(params.logit_bias or {}))
        self._check_ids("allowed_token_ids", params.allowed_token_ids or [])
        most = self._config.max_logprobs
        for name in ("logprobs", "prompt_logprobs"):
            asked = getattr(params, name)
            if most != -1 and asked is not None and not 0 <= asked <= most:
                raise InvalidParametersError(
                    f"{name} must be in [0, {most}], the engine's max_logprobs, got {shown(asked)}",
                    parameter=name, value=asked)

    def _check_ids(self, name: str, ids: list[int]) -> None:
        vocab = self._config.model.vocab_size
        bad = next((t for t in ids if not 0 <= t < vocab), None)
        if bad is not None:
            raise InvalidParametersError(
                f"{name} has {shown(bad)}; token ids are in [0, {vocab - 1}]", parameter=name, value=bad)

    def _bad_words(self, params: SamplingParams) -> tuple[tuple[int, ...], ...]:
        """Tokens of each bad word, at the beginning of a text and after a space."""
        words = [w for word in params.bad_words or () for w in (word, " " + word.lstrip())]
        tokens = tuple(dict.fromkeys(tuple(self._tokenizer.encode(word)) for word in words))
        self._check_ids("bad_words", [token_id for word in tokens for token_id in word])
        return tokens


def check_arguments(request_id: Any, params: Any, arrival_time: Any, priority: Any) -> None:
    """Refuses wrong types, and a name that cannot be encoded."""
    if not isinstance(request_id, str) or not request_id:
        raise invalid("request_id", request_id, "a non-empty string")
    check_text("request_id", request_id)
    if not isinstance(params, SamplingParams):
        raise invalid("sampling_params", params, "a SamplingParams")
    if arrival_time is not None:
        check_float("arrival_time", arrival_time, low=-1e300, high=1e300)
    if not isinstance(priority, int) or isinstance(priority, bool):
        raise invalid("priority", priority, "an int")
