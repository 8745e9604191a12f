"""The attributes that scripts expect of a transformers tokenizer, for a class that has `encode`, `decode` and a backend.

Knows names; every answer comes from the tokenizer itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any


class UsualAttributes(ABC):
    """What scripts use of a tokenizer beside `encode` and `decode`. A base class; `_backend` is the `tokenizers` object."""

    _backend: Any
    special_token_map: dict[str, str]

    def __len__(self) -> int:
        """Tokens, added ones among them."""
        return self._backend.get_vocab_size()

    def __call__(self, text: str | Sequence[str], add_special_tokens: bool = False) -> dict[str, Any]:
        """`input_ids` and `attention_mask` of a text, or of each of several; lists, never padded."""
        texts = [text] if isinstance(text, str) else text
        ids = [self.encode(each) for each in texts]
        mask = [[1] * len(each) for each in ids]
        if isinstance(text, str):
            return {"input_ids": ids[0], "attention_mask": mask[0]}
        return {"input_ids": ids, "attention_mask": mask}

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Tokens of a text; a tokenizer has its own."""

    @abstractmethod
    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of tokens; a tokenizer has its own."""

    def batch_decode(self, sequences: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> list[str]:
        """The text of each sequence of tokens."""
        return [self.decode(token_ids, skip_special_tokens) for token_ids in sequences]

    def get_vocab(self) -> dict[str, int]:
        """Each token as the vocabulary writes it → its id; added tokens among them."""
        return self._backend.get_vocab()

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary without added ones, as transformers counts them."""
        return self._backend.get_vocab_size(with_added_tokens=False)

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> Any:
        """An id, or each of several, as the vocabulary writes it; None for an unknown one."""
        return self._backend.id_to_token(ids) if isinstance(ids, int) else [self._backend.id_to_token(i) for i in ids]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or of each of several, as the vocabulary writes it; None for an unknown one."""
        return self._backend.token_to_id(tokens) if isinstance(tokens, str) else [self._backend.token_to_id(t) for t in tokens]

    @property
    def eos_token(self) -> str | None:
        """The end of sequence, as text."""
        return self.special_token_map.get("eos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The tokenizer's end-of-sequence token."""
        return self._id_of("eos_token")

    @property
    def bos_token(self) -> str | None:
        """The beginning of a sequence, as text; Qwen3 has none."""
        return self.special_token_map.get("bos_token")

    @property
    def bos_token_id(self) -> int | None:
        """The beginning of a sequence."""
        return self._id_of("bos_token")

    @property
    def pad_token(self) -> str | None:
        """The padding, as text; the engine pads nothing."""
        return self.special_token_map.get("pad_token")

    @property
    def pad_token_id(self) -> int | None:
        """The padding."""
        return self._id_of("pad_token")

    @property
    def all_special_ids(self) -> list[int]:
        """The special tokens, left out of texts by default, in the order of their ids."""
        return sorted(i for i, token in self._backend.get_added_tokens_decoder().items() if token.special)

    @property
    def all_special_tokens(self) -> list[str]:
        """The same as text."""
        return [self._backend.id_to_token(i) for i in self.all_special_ids]

    def _id_of(self, name: str) -> int | None:
        token = self.special_token_map.get(name)
        return None if token is None else self._backend.token_to_id(token)
