"""The answers that clients get, as types: OpenAI's, with vLLM's extra fields. `/openapi.json` is made of these.

The answers themselves are plain dicts, since a stream has one for each token; tests hold them against these types.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]


class Reply(BaseModel):
    """A JSON object with exactly these fields; those with a default may be missing."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetails(Reply):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    """Every answer that is an error."""

    error: ErrorDetails


class CachedTokens(Reply):
    """Tokens of the prompt that were not computed again."""

    cached_tokens: int


class UsageReply(Reply):
    """Tokens that a call took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class CompletionLogprobs(Reply):
    """Of each token: its text, its log-probability, the likeliest ones', and where it begins in the text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Reply):
    """One completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class CompletionReply(Reply):
    """The answer of `/v1/completions`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageReply | None = None


class TokenLogprob(Reply):
    """A token, its bytes and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    """A token that was generated, and the likeliest in its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Reply):
    """Of each token of an answer."""

    content: list[ChosenLogprob]
    refusal: None


class CalledFunction(Reply):
    """The function and its arguments: JSON, if the model wrote JSON and finished it."""

    name: str
    arguments: str


class ToolCallReply(Reply):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Reply):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallReply] | None = None


class ChatChoice(Reply):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    token_ids: list[int] | None = None


class ChatReply(Reply):
    """The answer of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReply
    prompt_token_ids: list[int] | None = None


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class TextPart(Reply):
    """What a message says."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[Any]


class ReasoningPart(Reply):
    """What the model thought."""

    type: Literal["reasoning_text"]
    text: str


class MessageItem(Reply):
    """A message, one of the items of a response."""

    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["assistant"]
    content: list[TextPart]


class ReasoningItem(Reply):
    """Thoughts, one of the items of a response."""

    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[Any]
    content: list[ReasoningPart]


class FunctionCallItem(Reply):
    """A call of a function, one of the items of a response."""

    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class InputDetails(Reply):
    """Tokens of the input that were not computed again; writing to the cache is never charged for."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Reply):
    """Tokens of thoughts."""

    reasoning_tokens: int


class ResponseUsage(Reply):
    """Tokens that a response took."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseReply(Reply):
    """The answer of `/v1/responses`; a stream's events have it, too, as far as it is written."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[MessageItem | ReasoningItem | FunctionCallItem]
    error: dict[str, str] | None
    incomplete_details: dict[str, str] | None
    usage: ResponseUsage | None
    instructions: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    text: dict[str, Any]
    reasoning: dict[str, Any]
    metadata: dict[str, str]
    user: str | None
    truncation: Literal["disabled"]
    background: Literal[False]
    store: Literal[False]
    previous_response_id: None


class ModelCard(Reply):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: None
    max_model_len: int


class ModelList(Reply):
    """The models that are served."""

    object: Literal["list"]
    data: list[ModelCard]


class TokenizeReply(Reply):
    """Tokens of a text."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeReply(Reply):
    """Text of tokens."""

    prompt: str


class HealthReply(Reply):
    """The server takes requests."""

    status: Literal["ok"]


class VersionReply(Reply):
    """The package's version."""

    version: str


class StatsReply(Reply):
    """Numbers of this moment."""

    num_requests_running: int
    num_requests_waiting: int
    num_requests_in_flight: int
    num_requests_queued: int
    num_free_blocks: int
    num_total_blocks: int
    kv_cache_usage: float
    draining: bool


Documented = dict[int | str, dict[str, Any]]
ERRORS: Documented = {"4XX": {"model": ErrorReply, "description": "An error of the request."},
                      "5XX": {"model": ErrorReply, "description": "An error of the server, or no room."}}


def or_stream(reply: type[Reply]) -> Documented:
    """For `/openapi.json`: that answer, or with `stream` a chunk of it in each event."""
    return {200: {"model": reply, "content": {"text/event-stream": {"schema": {"type": "string"}}}}, **ERRORS}
