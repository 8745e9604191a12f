"""The forms in which a prompt can be given. vLLM's `TextPrompt` and `TokensPrompt`."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from nano_qwen3_serving.arguments import check_text, invalid
from nano_qwen3_serving.exceptions import InvalidParametersError


class TextPrompt(TypedDict):
    """A prompt as text."""

    prompt: str
    cache_salt: NotRequired[str]


class TokensPrompt(TypedDict):
    """A prompt as tokens; `prompt` may name the text they came from."""

    prompt_token_ids: list[int]
    prompt: NotRequired[str]
    cache_salt: NotRequired[str]


Prompt = str | TextPrompt | TokensPrompt
KEYS = {"prompt", "prompt_token_ids", "cache_salt"}


def parse_prompt(prompt: Any) -> tuple[str | None, list[int] | None, str]:
    """(text, tokens, cache salt) of a prompt in any form; at least one of text and tokens is not None.

    The tokens are a new list. Strings are checked to be encodable, so no later code has to check them.

    Raises:
        InvalidParametersError: the prompt has another form, or is empty.
    """
    fields = {"prompt": prompt} if isinstance(prompt, str) else prompt
    if not isinstance(fields, dict) or not set(fields) <= KEYS or not set(fields) & {"prompt", "prompt_token_ids"}:
        raise invalid("prompt", prompt, "a string, {'prompt': …} or {'prompt_token_ids': […]}")
    text, tokens, salt = fields.get("prompt"), fields.get("prompt_token_ids"), fields.get("cache_salt", "")
    check_text("cache_salt", salt)
    if text is not None:
        check_text("prompt", text)
    if tokens is not None:
        if not isinstance(tokens, list) or any(type(t) is not int for t in tokens):
            raise invalid("prompt_token_ids", tokens, "a list of ints")
        tokens = list(tokens)
    if not (text if tokens is None else tokens):
        raise InvalidParametersError(
            "the prompt is empty; give at least one token", parameter="prompt", value=prompt)
    return text, tokens, salt


def own_prompt(prompt: Any) -> Any:
    """The prompt with its dict and list copied, so that later changes by the caller do not reach it. Takes invalid forms too."""
    if not isinstance(prompt, dict):
        return prompt
    return {key: list(value) if isinstance(value, list) else value for key, value in list(prompt.items())}
