"""A body's fields → `SamplingParams`.

Knows how OpenAI spells what the engine does; ranges are checked there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nano_qwen3_serving.exceptions import shown
from nano_qwen3_serving.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from nano_qwen3_serving.server.errors import ApiError
from nano_qwen3_serving.server.openai.protocol import ChatRequest, CompletionRequest, ResponseFormat, SamplingFields

AS_THEY_ARE = (
    "n", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed",
    "stop", "stop_token_ids", "ignore_eos", "max_tokens", "min_tokens", "allowed_token_ids", "bad_words",
    "skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output")


def completion_params(request: CompletionRequest, defaults: Mapping[str, Any]) -> SamplingParams:
    """The parameters of a completion.

    Args:
        request: as the client sent it.
        defaults: the checkpoint's own, for what is left out.

    Raises:
        InvalidParametersError, ApiError: a field has a value that it cannot have.
    """
    known = {"logprobs": request.logprobs} if request.logprobs is not None else {}
    if request.echo and request.logprobs is not None:
        known["prompt_logprobs"] = request.logprobs
    return sampling_params(request, defaults, **known)


def chat_params(request: ChatRequest, defaults: Mapping[str, Any]) -> SamplingParams:
    """The parameters of a chat; without a bound an answer may be as long as the model's context. Raises likewise."""
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, f"top_logprobs={request.top_logprobs} needs logprobs=true", "invalid_value", "top_logprobs")
    if None not in (request.max_tokens, request.max_completion_tokens):
        raise ApiError(400, "max_tokens is the older name of max_completion_tokens; give one of them", "invalid_value",
                       "max_tokens")
    known: dict[str, Any] = {}
    if request.max_tokens is None:
        asked = request.max_completion_tokens
        known["max_tokens"] = defaults.get("max_tokens") if asked is None else asked
    if request.logprobs:
        known["logprobs"] = request.top_logprobs or 0
    return sampling_params(request, defaults, **known)


def sampling_params(request: SamplingFields, defaults: Mapping[str, Any], **known: Any) -> SamplingParams:
    """The parameters that both have, and those in `known`."""
    explicit = {name: getattr(request, name) for name in AS_THEY_ARE if getattr(request, name) is not None}
    if request.logit_bias is not None:
        explicit["logit_bias"] = {token_id(key): bias for key, bias in request.logit_bias.items()}
    explicit["structured_outputs"] = structured_outputs(request)
    explicit["output_kind"] = RequestOutputKind.DELTA if request.stream else RequestOutputKind.FINAL_ONLY
    return SamplingParams(**{**defaults, **explicit, **known})


def token_id(key: str) -> int:
    """The number that a key of `logit_bias` is."""
    if not (key.isascii() and key.isdecimal() and len(key) < 20):
        raise ApiError(400, f"logit_bias maps token ids to numbers, and {shown(key)} is no token id", "invalid_value",
                       "logit_bias")
    return int(key)


def structured_outputs(request: SamplingFields) -> StructuredOutputsParams | None:
    """The form of the answer, from either field that may say it."""
    by_format = of_format(request.response_format)
    if request.structured_outputs is None:
        return by_format
    if by_format is not None:
        raise ApiError(400, "response_format and structured_outputs both say what the answer looks like; give one of them",
                       "invalid_value", "response_format")
    return StructuredOutputsParams(**request.structured_outputs)


def of_format(wanted: ResponseFormat | None) -> StructuredOutputsParams | None:
    """What OpenAI's `response_format` asks for."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return StructuredOutputsParams(json_object=True)
    if wanted.json_schema is None:
        raise ApiError(400, 'response_format of type "json_schema" needs the field json_schema', "missing_field",
                       "response_format.json_schema")
    return StructuredOutputsParams(json=wanted.json_schema.schema_)
