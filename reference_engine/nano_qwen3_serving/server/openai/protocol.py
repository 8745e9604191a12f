"""What clients send: OpenAI's bodies, with vLLM's extra fields.

Knows names and types. Ranges are the engine's to check: it has them already, and names the value. A field that
is not here is refused by name, so that nobody gets other tokens than asked for without a word. A few fields of
OpenAI's say something about their service and nothing about tokens; those are accepted, see `NoEffect`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nano_qwen3_serving.arguments import refuse_unknown


class Body(BaseModel):
    """A JSON object with known fields, each of its own type: "5" is no number here."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_fields(cls, fields: Any) -> Any:
        if isinstance(fields, dict):
            names = [field.alias or name for name, field in cls.model_fields.items()]
            refuse_unknown("this request", names, fields)
        return fields


class NoEffect(Body):
    """Fields that clients send by habit, and that mean nothing to one model on one machine.

    Nothing is stored, there is one tier of service, and what is generated does not depend on who asks.
    """

    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None


class StreamOptions(Body):
    """What a stream adds to its text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(Body):
    """A schema that an answer matches."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class CommonFields(NoEffect):
    """What every route that generates has: how tokens are chosen, under the names of `SamplingParams`, and vLLM's fields
    besides. What is left out is the checkpoint's own default."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int = 0
    cache_salt: str | None = None


class SamplingFields(CommonFields):
    """What completions and chats have besides."""

    n: int | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    structured_outputs: dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    return_token_ids: bool | None = None


class CompletionRequest(SamplingFields):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None
    echo: bool | None = None


class TemplateFields(Body):
    """How the checkpoint's chat template turns a conversation into a prompt."""

    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ChatRequest(SamplingFields, TemplateFields):
    """`POST /v1/chat/completions`.

    `reasoning_effort="none"` is `enable_thinking=False` of the chat template; the other efforts have no effect.
    """

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: str | None = None


class TokenizeRequest(TemplateFields):
    """`POST /tokenize`: a prompt, or a conversation. `add_special_tokens` has no effect: Qwen's tokenizers add none."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Body):
    """`POST /detokenize`."""

    model: str | None = None
    tokens: list[int]
