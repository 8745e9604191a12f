"""The forms in which a prompt can be given. vLLM's `TextPrompt` and `TokensPrompt`."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

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
    """(text, tokens, cache salt) of a prompt in any form; at least one of the first two is given.

    Raises:
        InvalidParametersError: another form, or an empty prompt.
    """
    fields = {"prompt": prompt} if isinstance(prompt, str) else prompt
    if not isinstance(fields, dict) or not set(fields) <= KEYS or not set(fields) & {"prompt", "prompt_token_ids"}:
        raise InvalidParametersError(
            f"a prompt is a string, {{'prompt': …}} or {{'prompt_token_ids': […]}}, got {prompt!r}",
            parameter="prompt", value=prompt)
    text, tokens, salt = fields.get("prompt"), fields.get("prompt_token_ids"), fields.get("cache_salt", "")
    if not isinstance(salt, str):
        raise InvalidParametersError(f"cache_salt must be a string, got {salt!r}", parameter="cache_salt", value=salt)
    if text is not None and not isinstance(text, str):
        raise InvalidParametersError(f"the prompt must be a string, got {text!r}", parameter="prompt", value=text)
    if tokens is not None and (not isinstance(tokens, list) or any(type(t) is not int for t in tokens)):
        raise InvalidParametersError(
            f"prompt_token_ids must be a list of ints, got {tokens!r}", parameter="prompt_token_ids", value=tokens)
    if not (text if tokens is None else tokens):
        raise InvalidParametersError(
            "the prompt is empty; give at least one token", parameter="prompt", value=prompt)
    return text, tokens, salt
