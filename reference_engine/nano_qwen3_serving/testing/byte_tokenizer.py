"""A tokenizer without a vocabulary file: one token per UTF-8 byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

END_OF_TEXT = 256  #: the only token that is no byte


class ByteTokenizer:
    """Tokens 0 to 255 are bytes; 256 is a special token, `<|end|>`.

    Args:
        on_encode: called with each text before it is tokenised.
    """

    chat_template = None

    def __init__(self, on_encode: Callable[[str], object] | None = None) -> None:
        self._on_encode = on_encode

    def __len__(self) -> int:
        return END_OF_TEXT + 1

    def encode(self, text: str) -> list[int]:
        """The bytes of `text`."""
        if self._on_encode is not None:
            self._on_encode(text)
        return list(text.encode())

    def encode_literally(self, text: str) -> list[int]:
        """The bytes of `text`."""
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD."""
        shown = [t for t in token_ids if not (skip_special_tokens and self.is_special(t))]
        return b"".join(map(self.token_bytes, shown)).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to a text; an unknown id adds nothing."""
        if token_id == END_OF_TEXT:
            return b"<|end|>"
        return bytes([token_id]) if token_id < END_OF_TEXT else b""

    def is_special(self, token_id: int) -> bool:
        """Whether it is no byte."""
        return token_id >= END_OF_TEXT

    def token_text(self, token_id: int) -> str:
        """The token as text, for people."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def apply_chat_template(self, messages: Sequence[dict[str, Any]], **switches: Any) -> str:
        """The contents, a line each."""
        return "".join(m["content"] + "\n" for m in messages)
