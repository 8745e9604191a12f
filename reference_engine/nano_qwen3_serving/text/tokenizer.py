"""Text to tokens and chat messages to text, as the checkpoint's own files say.

Knows the `tokenizers` library and chat templates; knows nothing of requests. transformers is not
imported: it would take longer to import than the engine takes to start.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from nano_qwen3_serving.exceptions import InvalidParametersError
from nano_qwen3_serving.text.chat_template import (
    Templates,
    checked_messages,
    choose,
    cut_at_mark,
    marked,
    read_templates,
    render,
)
from nano_qwen3_serving.text.tokenizer_files import read_tokenizer_files
from nano_qwen3_serving.text.tokenizer_surface import UsualAttributes


class Tokenizer(UsualAttributes):
    """A byte-level BPE tokenizer with its chat template.

    Args:
        backend: the tokenizer itself.
        chat_template: jinja source, one or several by name; None if the checkpoint has none.
        special_token_map: names such as `eos_token` for the template.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, chat_template: Templates, special_token_map: dict[str, str]
    ) -> None:
        self._backend = backend
        self.chat_template = chat_template
        self.special_token_map = special_token_map
        added = backend.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        self._added = {token.content: token_id for token_id, token in added.items() if not token.special}

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """From the files that lie there: `tokenizer.json` and what trainers save beside it.

        Raises:
            ModelLoadError: a file is missing, corrupt or contradicts another, or the vocabulary is not byte-level.
        """
        files = read_tokenizer_files(folder)
        return cls(files.backend, read_templates(folder, files.settings), files.special_token_map)

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`; special tokens written in it are recognised, none are added."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_literally(self, text: str) -> list[int]:
        """Tokens that spell `text`: nothing is normalised, and special tokens written in it are plain text.

        Other added tokens, such as `<think>`, are recognised: they are part of what a model says.
        """
        ids: list[int] = []
        for piece in self._added_text.split(text):
            if piece in self._added:
                ids.append(self._added[piece])
            elif piece:
                splits = self._backend.pre_tokenizer.pre_tokenize_str(piece) if self._backend.pre_tokenizer else [(piece, ())]
                ids += [token.id for split, _ in splits for token in self._backend.model.tokenize(split)]
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`; bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is one such as `<|im_end|>`, left out of the text by default."""
        return token_id in self._special

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to the text, as UTF-8 bytes; an unknown id adds none."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        try:
            return bytes([self._bytes_of_characters[c] for c in token])
        except KeyError:  # not written in the alphabet of bytes: it means its own characters
            return token.encode()

    def token_text(self, token_id: int) -> str:
        """The token as text, for people: incomplete UTF-8 becomes U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def apply_chat_template(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """The conversation as the checkpoint was trained to read it.

        Args:
            messages: dicts with `role` and `content`, a string or a list of text parts.
            tokenize: return tokens instead of text.
            add_generation_prompt: end with the beginning of the assistant's answer.
            continue_final_message: end inside the last message, for the model to go on.
            tools: function descriptions for templates that know tools.
            documents: texts for templates that know documents.
            chat_template: jinja source to use instead of the checkpoint's, or the name of one of its templates.
            kwargs: the template's own switches, such as `enable_thinking`.

        Raises:
            InvalidParametersError: messages are malformed, there is no template, or it refuses them.
            UnknownArgumentError: the template never looks at one of `kwargs`.
        """
        source = choose(self.chat_template, chat_template, tools)
        messages = checked_messages(messages)
        if continue_final_message and add_generation_prompt:
            raise InvalidParametersError(
                "continue_final_message=True needs add_generation_prompt=False: the final message goes on",
                parameter="continue_final_message", value=True)
        if continue_final_message:
            messages[-1] = marked(messages[-1])
        text = render(source, messages, self.special_token_map, tools, documents, add_generation_prompt, kwargs)
        if continue_final_message:
            text = cut_at_mark(text)
        return self.encode(text) if tokenize else text

    @cached_property
    def _bytes_of_characters(self) -> dict[str, int]:
        """Byte-level BPE writes each byte as one printable character: this undoes it (GPT-2)."""
        plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
        others = [b for b in range(256) if b not in set(plain)]
        return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}

    @cached_property
    def _added_text(self) -> re.Pattern[str]:
        """Finds added tokens that are not special; the longer one where two begin alike."""
        longest_first = sorted(self._added, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else "(?!)")
