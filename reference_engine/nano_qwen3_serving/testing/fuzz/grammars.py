"""Structured outputs for a vocabulary of bytes, without a library: two languages simple enough to see.

`ByteGrammarCompiler` takes the place of `text/grammar.py`'s compiler. It knows a choice of words, and
a regular expression that is a repeated row of letter classes, such as `([abc][xyz])*`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from nano_qwen3_serving.sampling_params import StructuredOutputsParams


class Language(Protocol):
    """Which bytes may follow a text."""

    def following(self, text: bytes) -> set[int]:
        """The bytes that may come next."""

    def is_whole(self, text: bytes) -> bool:
        """Whether the text may end here."""


class Choice:
    """One of some words."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = [word.encode() for word in words]

    def following(self, text: bytes) -> set[int]:
        """The next bytes of the words that begin with `text`."""
        return {w[len(text)] for w in self.words if w.startswith(text) and len(w) > len(text)}

    def is_whole(self, text: bytes) -> bool:
        """Whether the text may end here."""
        return text in self.words


class Classes:
    """A row of letter classes, repeated as often as one likes."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = [set(letters.encode()) for letters in classes]

    def following(self, text: bytes) -> set[int]:
        """The class whose turn it is."""
        return self.classes[len(text) % len(self.classes)]

    def is_whole(self, text: bytes) -> bool:
        """Whether the last row is complete."""
        return len(text) % len(self.classes) == 0


class ByteGrammar:
    """Where one request stands: the text that it was told of. A `request.Grammar`."""

    def __init__(self, language: Language, vocab_size: int, end: int, text: bytes = b"") -> None:
        self._language, self._vocab_size, self._end, self._text = language, vocab_size, end, text

    def copy(self) -> ByteGrammar:
        """An independent grammar in the same state."""
        return ByteGrammar(self._language, self._vocab_size, self._end, self._text)

    def allowed(self) -> Tensor:
        """[vocab_size] bool: the tokens that may come next. Changes nothing."""
        tokens = self._language.following(self._text) | ({self._end} if self._language.is_whole(self._text) else set())
        mask = torch.zeros(self._vocab_size, dtype=torch.bool)
        mask[sorted(tokens)] = True
        return mask

    def accept(self, token_ids: Sequence[int]) -> None:
        """Moves on by tokens that were generated; ValueError if they are not allowed."""
        for token_id in token_ids:
            if not self.allowed()[token_id]:
                raise ValueError(f"token {token_id} does not follow {self._text!r}")
            if token_id != self._end:
                self._text += bytes([token_id])


class ByteGrammarCompiler:
    """Makes grammars.

    Args:
        vocab_size: columns of the logits.
        end: the token that ends a text.
    """

    def __init__(self, vocab_size: int, end: int) -> None:
        self._vocab_size, self._end = vocab_size, end

    def compile(self, params: StructuredOutputsParams) -> ByteGrammar:
        """A grammar at its beginning; ValueError for a form that is not known here."""
        if params.choice is not None:
            return ByteGrammar(Choice(params.choice), self._vocab_size, self._end)
        if params.regex is None or not re.fullmatch(r"\((\[[a-z ]+\])+\)\*", params.regex):
            raise ValueError(f"neither a choice nor a row of letter classes: {params}")
        return ByteGrammar(Classes(re.findall(r"\[(.*?)\]", params.regex)), self._vocab_size, self._end)
