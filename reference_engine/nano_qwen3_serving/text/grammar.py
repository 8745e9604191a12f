"""Structured outputs: which tokens a JSON schema, regex, choice or grammar allows next.

The llguidance library does the work; it is an extra, imported when first needed. Knows token ids and
bytes of the vocabulary; knows nothing of logits. A grammar's state belongs to one request and advances
only by tokens that were really generated, so it survives preemption and repeated steps.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nano_qwen3_serving.exceptions import InvalidParametersError
from nano_qwen3_serving.interfaces import Tokenizer
from nano_qwen3_serving.sampling_params import StructuredOutputsParams


class Grammar:
    """Where one request stands in its grammar.

    Args:
        matcher: llguidance's.
        vocab_size: columns of the logits.
    """

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def copy(self) -> Grammar:
        """An independent grammar in the same state."""
        return Grammar(self._matcher.deep_copy(), self._vocab_size)

    def allowed(self) -> Tensor:
        """[vocab_size] bool on the CPU: the tokens that may come next. Changes nothing."""
        packed = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8)
        return (bits & 1).bool().flatten()[: self._vocab_size]

    def accept(self, token_ids: Sequence[int]) -> None:
        """Moves on by tokens that were generated.

        Raises:
            ValueError: the grammar does not allow them.
        """
        for token_id in token_ids:
            if not self._matcher.consume_token(token_id):
                raise ValueError(f"token {token_id} is not what the grammar allows: {self._matcher.get_error()}")


class GrammarCompiler:
    """Makes grammars for one vocabulary. May be called from any thread.

    Args:
        tokenizer: says which bytes a token adds to the text, and how a text is spelled.
        vocab_size: columns of the logits.
        eos_token_ids: allowed where the grammar may end.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._lock = threading.Lock()

    def compile(self, params: StructuredOutputsParams) -> Grammar:
        """A grammar at its beginning.

        Raises:
            InvalidParametersError: the grammar is malformed, or llguidance is not installed.
        """
        try:
            import llguidance
        except ImportError:
            raise InvalidParametersError(
                "structured_outputs needs the llguidance library: pip install 'nano-qwen3-serving[structured]'",
                parameter="structured_outputs", value=params) from None
        if not self._eos_token_ids:
            raise InvalidParametersError(
                "structured_outputs needs an end-of-sequence token, and this checkpoint names none: give its "
                "tokenizer_config.json an eos_token, or its generation_config.json an eos_token_id",
                parameter="structured_outputs", value=params)
        with self._lock:
            vocabulary = self._vocabulary
        try:
            source = grammar_source(llguidance.LLMatcher, params)
            matcher = llguidance.LLMatcher(vocabulary, source)
            error = matcher.get_error() if matcher.is_error() else ""
        except ValueError as problem:
            error = str(problem)
        if error:
            raise InvalidParametersError(
                f"structured_outputs is not a grammar: {error.splitlines()[0]}",
                parameter="structured_outputs", value=params)
        return Grammar(matcher, self._vocab_size)

    @functools.cached_property
    def _vocabulary(self) -> Any:
        """llguidance's view of the tokenizer; made once, it takes a moment for a large one."""
        import llguidance

        spelled = Spelling(self._tokenizer, self._vocab_size, self._eos_token_ids)
        return llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(spelled), n_vocab=self._vocab_size, eos_token=self._eos_token_ids)


class Spelling:
    """A tokenizer as llguidance asks for one: bytes of each token, and tokens that spell a text.

    llguidance could read `tokenizer.json` itself, but would then normalise text first and take every added
    token for special. A grammar is about the text that comes out, so here a token is the bytes that it
    adds to that text, and a special token, which adds none, is not used to spell any.

    Attributes:
        tokens: bytes of each token in [0, vocab_size).
        special_token_ids: tokens that spell nothing.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.tokens = [tokenizer.token_bytes(i) for i in range(vocab_size)]
        self.special_token_ids = sorted({*(i for i in range(vocab_size) if tokenizer.is_special(i)), *eos_token_ids})
        self.eos_token_id, self.bos_token_id = eos_token_ids[0], None
        silent = set(self.special_token_ids)
        self._ids = {token: i for i, token in reversed(list(enumerate(self.tokens))) if token and i not in silent}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: str) -> list[int]:
        """Tokens whose bytes are those of `text`: the tokenizer's own if they are, else the longest that fit."""
        if not isinstance(text, str):
            raise TypeError("text is spelled, not bytes")  # llguidance tries both
        wanted = text.encode("utf-8")
        ids = self._tokenizer.encode_literally(text)
        fits = all(i < len(self.tokens) for i in ids) and b"".join(self.tokens[i] for i in ids) == wanted
        return ids if fits else self._longest_fits(wanted)

    def _longest_fits(self, text: bytes) -> list[int]:
        ids = []
        while text:
            size = next(n for n in range(min(self._longest, len(text)), 0, -1) if text[:n] in self._ids)
            ids.append(self._ids[text[:size]])
            text = text[size:]
        return ids


def grammar_source(matcher: Any, params: StructuredOutputsParams) -> str:
    """The parameters in llguidance's own language. JSON comes without free white space, in which a
    small model could go on for ever."""
    if params.regex is not None:
        return matcher.grammar_from_regex(params.regex)
    if params.choice is not None:
        return matcher.grammar_from_lark("start: " + " | ".join(json.dumps(c) for c in params.choice))
    if params.grammar is not None:
        return matcher.grammar_from_lark(params.grammar)
    schema = {"type": "object"} if params.json_object else params.json
    return matcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
