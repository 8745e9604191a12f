"""What a request generates when it runs alone: the same tokens, text and reasons.

For the toy model that is plain Python without a cache, a scheduler or a batch. For the course
checkpoint it is a second engine that runs each request alone, from one chunk, with no prefix cache.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from nano_qwen3_serving.config import CacheConfig, EngineConfig, SchedulerConfig
from nano_qwen3_serving.engine.llm_engine import LLMEngine
from nano_qwen3_serving.execution.sampler import Sampler
from nano_qwen3_serving.interfaces import SamplingRow
from nano_qwen3_serving.outputs import Logprob, RequestOutput
from nano_qwen3_serving.sampling_params import RequestOutputKind, SamplingParams
from nano_qwen3_serving.testing.byte_tokenizer import ByteTokenizer
from nano_qwen3_serving.testing.fuzz.grammars import ByteGrammar, ByteGrammarCompiler
from nano_qwen3_serving.testing.telltale import prefix_states, telltale_logits


@dataclass(frozen=True)
class Expected:
    """One completion as it must be; its finish_reason is "error" if it ends where no token is allowed."""

    token_ids: list[int]
    text: str
    finish_reason: str
    stop_reason: str | int | None
    logprobs: list[dict[int, Logprob]] | None


class TokenOracle(Protocol):
    """The interface that the checks use."""

    tokenizer: Any

    def expected(self, prompt: list[int], params: SamplingParams) -> list[Expected]:
        """All n completions of a request that runs alone."""


class ToyOracle:
    """Of the `TellTaleModel`.

    Args:
        config: of the engine under test.
        alphabet: tokens that the model generates.
        grammars: as the engine's.
    """

    def __init__(self, config: EngineConfig, alphabet: Sequence[int], grammars: ByteGrammarCompiler) -> None:
        self.tokenizer = ByteTokenizer()
        self._alphabet = alphabet
        self._grammars = grammars
        self._vocab_size = config.model.vocab_size
        self._eos = frozenset(config.model.eos_token_ids)
        self._max_model_len = config.scheduler.max_model_len
        self._sampler = Sampler(config.max_logprobs)

    def expected(self, prompt: list[int], params: SamplingParams) -> list[Expected]:
        """All n completions."""
        return [self._completion(prompt, params, i) for i in range(params.n)]

    def _completion(self, prompt: list[int], params: SamplingParams, index: int) -> Expected:
        most = min(params.max_tokens or self._max_model_len, self._max_model_len - len(prompt))
        grammar = self._grammars.compile(params.structured_outputs) if params.structured_outputs else None
        tokens: list[int] = []
        logprobs: list[Any] = []
        ended: tuple[str, str, str | int | None] | None = None
        while ended is None:
            try:
                token, logprob = self._next(prompt, tokens, params, index, grammar)
            except ValueError:  # no token is allowed
                ended = text_of(self.tokenizer, tokens, params), "error", None
                break
            tokens.append(token)
            logprobs.append(logprob)
            if grammar is not None:
                grammar.accept([token])
            ended = self._ended(tokens, params, most)
        text, reason, stop = ended
        return Expected(tokens, text, reason, stop, None if params.logprobs is None else logprobs)

    def _next(
        self, prompt: list[int], tokens: list[int], params: SamplingParams, index: int, grammar: ByteGrammar | None
    ) -> tuple[int, Any]:
        state = torch.tensor(prefix_states(prompt + tokens)[-1:])
        row = SamplingRow(
            params, prompt, tokens, (params.seed or 0) + index, index, self._eos, self._bad_words(params), grammar)
        logits = telltale_logits(state, self._alphabet, self._vocab_size)
        (token,), (logprob,) = self._sampler.sample(logits, [row])
        return token, logprob

    def _bad_words(self, params: SamplingParams) -> list[list[int]]:
        return [self.tokenizer.encode(w) for word in params.bad_words or () for w in (word, " " + word)]

    def _ended(self, tokens: list[int], params: SamplingParams, most: int) -> tuple[str, str, str | int | None] | None:
        """(text, finish reason, stop reason) if the last token ends it."""
        last, enough = tokens[-1], len(tokens) >= params.min_tokens
        is_eos = enough and last in self._eos and not params.ignore_eos
        is_stop = enough and last in (params.stop_token_ids or ())
        shown = tokens[:-1] if (is_eos or is_stop) and not params.include_stop_str_in_output else tokens
        stop_match = find_stop(self.tokenizer, shown, params) if len(shown) == len(tokens) else None
        if stop_match is not None:
            return stop_match[0], "stop", stop_match[1]
        text = text_of(self.tokenizer, shown, params)
        if is_eos or is_stop:
            return text, "stop", None if is_eos else last
        return (text, "length", None) if len(tokens) >= most else None


class AloneOracle:
    """Of a checkpoint: runs each request in an engine of the reference's parts, alone."""

    def __init__(self, config: EngineConfig) -> None:
        longest = config.scheduler.max_model_len
        self.engine = LLMEngine(replace(
            config, cache=CacheConfig(4 * longest, 1, False),
            scheduler=SchedulerConfig(8, 8 * longest, longest), max_num_queued_reqs=None, stream_interval=1))
        self.tokenizer = self.engine.get_tokenizer()

    def expected(self, prompt: list[int], params: SamplingParams) -> list[Expected]:
        """All n completions."""
        completions = []
        for i in range(params.n):
            alone = params.clone(n=1, seed=(params.seed or 0) + i, output_kind=RequestOutputKind.FINAL_ONLY)
            (request,) = self.engine.make_requests("alone", {"prompt_token_ids": prompt}, alone)
            request.sample_index = i
            self.engine.add([request])
            outputs: list[RequestOutput] = []
            while self.engine.has_unfinished_requests():
                outputs += self.engine.step()
            (c,) = outputs[-1].outputs
            completions.append(Expected(c.token_ids, c.text, c.finish_reason or "", c.stop_reason, c.logprobs))
        return completions


def text_of(tokenizer: Any, tokens: Sequence[int], params: SamplingParams, final: bool = True) -> str:
    """The tokens' text; not `final`, an incomplete character at the end is left out."""
    if not params.detokenize:
        return ""
    pieces = [tokenizer.token_bytes(t) for t in tokens
              if not (params.skip_special_tokens and tokenizer.is_special(t))]
    return codecs.getincrementaldecoder("utf-8")(errors="replace").decode(b"".join(pieces), final)


def find_stop(tokenizer: Any, tokens: Sequence[int], params: SamplingParams) -> tuple[str, str] | None:
    """(text, stop string) if the last token completed one, and enough tokens came before."""
    if len(tokens) <= params.min_tokens or not params.detokenize:
        return None
    before = len(text_of(tokenizer, tokens[:-1], params, final=False))
    text = text_of(tokenizer, tokens, params, final=False)
    ends = [(end, -len(stop), stop) for stop in params.stop_strings for end in range(before + 1, len(text) + 1)
            if text[:end].endswith(stop)]
    if not ends:
        return None
    end, _, stop = min(ends)
    return text[: end if params.include_stop_str_in_output else end - len(stop)], stop
