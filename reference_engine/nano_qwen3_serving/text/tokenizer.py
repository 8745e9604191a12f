"""Text to tokens and chat messages to text, as the checkpoint's own files say.

Knows the `tokenizers` library and chat templates; knows nothing of requests. transformers is not
imported: it would take longer to import than the engine takes to start.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from jinja2 import TemplateError, meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nano_qwen3_serving.arguments import refuse_unknown
from nano_qwen3_serving.exceptions import InvalidParametersError, ModelLoadError
from nano_qwen3_serving.text.tokenizer_surface import UsualAttributes

ROLES = ("system", "user", "assistant", "tool")
MARK = "CONTINUE_FINAL_MESSAGE_TAG "  # transformers' own; its space shows whether a template trims


class Tokenizer(UsualAttributes):
    """A byte-level BPE tokenizer with its chat template.

    Args:
        backend: the tokenizer itself.
        chat_template: jinja source; None if the checkpoint has none.
        special_token_map: names such as `eos_token` for the template.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, chat_template: str | None, special_token_map: dict[str, str]
    ) -> None:
        self._backend = backend
        self.chat_template = chat_template
        self.special_token_map = special_token_map
        added = backend.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._special = {token_id for token_id, token in added.items() if token.special}

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """From `tokenizer.json`, `tokenizer_config.json` and, if there is one, `chat_template.jinja`.

        Raises:
            ModelLoadError: a file is missing or corrupt, or the vocabulary is not byte-level.
        """
        path = folder / "tokenizer.json"
        if not path.exists():
            raise ModelLoadError(f"{path} is missing; copy it from where the checkpoint came from")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
            kind = json.loads(path.read_text(encoding="utf-8"))["decoder"]["type"]
        except Exception as error:  # the library raises plain Exception for a corrupt file
            raise ModelLoadError(f"{path} is corrupt ({error}); copy or download it again") from error
        if kind != "ByteLevel":
            raise ModelLoadError(f"{path} has a {kind} decoder; only byte-level vocabularies are served")
        config = read_settings(folder / "tokenizer_config.json")
        template = folder / "chat_template.jinja"
        source = template.read_text(encoding="utf-8") if template.exists() else config.get("chat_template")
        names = {k: token_text(config[k]) for k in ("bos_token", "eos_token", "pad_token") if config.get(k)}
        return cls(backend, source, names)

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`; special tokens written in it are recognised, none are added."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`; bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is one such as `<|im_end|>`, left out of the text by default."""
        return token_id in self._special

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to the text, as UTF-8 bytes; an unknown id adds none."""
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._backend.id_to_token(token_id)
        return b"" if token is None else bytes(self._bytes_of_characters[c] for c in token)

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
            chat_template: jinja source to use instead of the checkpoint's.
            kwargs: the template's own switches, such as `enable_thinking`.

        Raises:
            InvalidParametersError: messages are malformed, or there is no template.
            UnknownArgumentError: the template never looks at one of `kwargs`.
        """
        source = chat_template or self.chat_template
        if source is None:
            raise InvalidParametersError(
                "this checkpoint has no chat template; use generate(), or give chat_template=",
                parameter="chat_template")
        messages = checked_messages(messages)
        if kwargs:
            refuse_unknown("the chat template", self._switches(source), kwargs)
        if continue_final_message and add_generation_prompt:
            raise InvalidParametersError(
                "continue_final_message=True needs add_generation_prompt=False: the final message goes on",
                parameter="continue_final_message", value=True)
        if continue_final_message:
            messages[-1] = marked(messages[-1])
        try:
            text = self._environment.from_string(source).render(
                messages=messages, tools=tools, add_generation_prompt=add_generation_prompt,
                **self.special_token_map, **kwargs)
        except TemplateError as error:
            raise InvalidParametersError(
                f"the chat template refuses these messages: {error}", parameter="messages", value=messages) from error
        if continue_final_message:
            text = cut_at_mark(text)
        return self.encode(text) if tokenize else text

    def _switches(self, source: str) -> list[str]:
        """Names that a template looks at and that are its own: `enable_thinking` and the like."""
        ours = {"messages", "tools", "add_generation_prompt", *self.special_token_map, *self._environment.globals}
        return sorted(meta.find_undeclared_variables(self._environment.parse(source)) - ours)

    @cached_property
    def _bytes_of_characters(self) -> dict[str, int]:
        """Byte-level BPE writes each byte as one printable character: this undoes it (GPT-2)."""
        plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
        others = [b for b in range(256) if b not in set(plain)]
        return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}

    @cached_property
    def _environment(self) -> ImmutableSandboxedEnvironment:
        """Jinja as Hugging Face's templates expect it, in a sandbox."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = lambda value, **kwargs: json.dumps(value, ensure_ascii=False, **kwargs)
        environment.globals["raise_exception"] = raise_template_error
        return environment


def read_settings(path: Path) -> dict[str, Any]:
    """`tokenizer_config.json`; nothing if there is none."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (ValueError, OSError) as error:
        raise ModelLoadError(f"{path} is corrupt ({error}); copy or download it again") from error
    if not isinstance(settings, dict):
        raise ModelLoadError(f"{path} is corrupt (it holds no object); copy or download it again")
    return settings


def raise_template_error(message: str) -> None:
    """What a template calls to refuse its input."""
    raise TemplateError(message)


def token_text(token: str | dict[str, Any]) -> str:
    """A special token as written in tokenizer_config.json: a string, or a dict with its content."""
    return token if isinstance(token, str) else token["content"]


def checked_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages if each is a dict with a known role and, but for the assistant's calls, a text.

    A text may be given in parts, as OpenAI's clients do; templates see it as one string.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise InvalidParametersError(
            f"messages must be a non-empty list of dicts with 'role' and 'content', got {messages!r}",
            parameter="messages", value=messages)
    checked = []
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list) and content:
            content = joined_parts(content, f"messages[{i}].content")
            message = {**message, "content": content}
        if role not in ROLES or not (isinstance(content, str) or (role == "assistant" and message.get("tool_calls"))):
            raise InvalidParametersError(
                f"messages[{i}] must be a dict with a 'role' of {', '.join(ROLES)} and a 'content', a string or a list "
                f"of text parts, got {message!r}", parameter=f"messages[{i}]", value=message)
        checked.append(message)
    return checked


def joined_parts(parts: list[Any], where: str) -> str:
    """The text of `[{"type": "text", "text": "…"}, …]`, a line for each part, as vLLM joins them.

    Raises:
        InvalidParametersError: a part is no text; `where` is the list's place in the messages.
    """
    for j, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            what = f"a part of type {kind!r}, and only text is served" if kind not in ("text", None) else f"{part!r}"
            raise InvalidParametersError(
                f"{where}[{j}] must be {{'type': 'text', 'text': '…'}}, got {what}",
                parameter=f"{where}[{j}]", value=part)
    return "\n".join(part["text"] for part in parts)


def marked(message: dict[str, Any]) -> dict[str, Any]:
    """The message with `MARK` at the end of its text: whatever a template adds stands after it."""
    if not isinstance(message.get("content"), str):
        raise InvalidParametersError(
            f"continue_final_message=True needs a final message with a text, got {message!r}",
            parameter="continue_final_message", value=message)
    return {**message, "content": message["content"] + MARK}


def cut_at_mark(text: str) -> str:
    """`text` before the mark; if the template trimmed the message, and so the mark, without its last spaces."""
    start = text.rfind(MARK.strip())
    if start < 0:
        raise InvalidParametersError(
            "the chat template leaves the final message out, so it cannot be continued",
            parameter="continue_final_message", value=True)
    return text[:start] if text.startswith(MARK, start) else text[:start].rstrip()
