"""What clients send to `/v1/responses`, and the chat that it asks for.

Knows OpenAI's items: messages, function calls, their outputs, reasoning. The server keeps nothing between two calls, so
every field that would need it to is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from nano_qwen3_serving.arguments import invalid
from nano_qwen3_serving.exceptions import InvalidParametersError, shown
from nano_qwen3_serving.server.errors import ApiError
from nano_qwen3_serving.server.openai.protocol import Body, ChatRequest, CommonFields, NoEffect
from nano_qwen3_serving.server.openai.tools import check_functions

SAME_IN_CHAT = (
    *(name for name in CommonFields.model_fields if name not in NoEffect.model_fields and name != "stream_options"),
    "parallel_tool_calls", "chat_template_kwargs")

STATELESS = "this server keeps nothing between two calls; send the whole conversation as input"
REFUSED = {
    "previous_response_id": STATELESS,
    "conversation": STATELESS,
    "background": "there is nothing that could be asked for the answer later; use stream",
    "prompt": "no prompts are stored here; send its text as instructions or input",
    "max_tool_calls": "the client calls the tools, and can count them",
    "context_management": "the conversation is taken as it is; shorten the input",
    "moderation": "nothing here moderates",
    "top_logprobs": "log-probabilities come with /v1/chat/completions",
}
"""Field → why it must be left out, or say nothing: null, false, 0."""


class TextFormat(Body):
    """The form of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextFields(Body):
    """The form of an answer. `verbosity` has no effect."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ReasoningFields(Body):
    """How much the model thinks. The effort "none" turns thinking off, if the chat template has a switch for it. Summaries
    are not made; the thoughts come as they are."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponsesRequest(CommonFields):
    """`POST /v1/responses`."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextFields | None = None
    reasoning: ReasoningFields | None = None
    include: list[str] | None = None
    truncation: str | None = None
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None
    prompt: Any = None
    max_tool_calls: Any = None
    context_management: Any = None
    moderation: Any = None
    top_logprobs: Any = None
    chat_template_kwargs: dict[str, Any] | None = None


def as_chat(request: ResponsesRequest) -> ChatRequest:
    """The chat that the request asks for.

    Raises:
        ApiError: it asks for something that is not served.
        InvalidParametersError: a field is malformed; its `parameter` is the field.
    """
    check_served(request)
    tools = chat_tools(request.tools or ())
    fields = {name: getattr(request, name) for name in SAME_IN_CHAT}
    return ChatRequest.model_validate({
        **{name: value for name, value in fields.items() if value is not None},
        "messages": messages_of(request),
        "max_completion_tokens": request.max_output_tokens,
        "tools": tools,
        "tool_choice": chat_tool_choice(request.tool_choice),
        "response_format": chat_format(request.text),
        "reasoning_effort": request.reasoning.effort if request.reasoning else None,
    })


def check_served(request: ResponsesRequest) -> None:
    """Refuses what this server cannot do, by name."""
    for name, why in REFUSED.items():
        if value := getattr(request, name):
            raise unsupported(name, f"{name}={shown(value)} is not served: {why}")
    if request.store:
        raise unsupported("store", f"store=true is not served: {STATELESS}, and store=false or nothing")
    if request.truncation not in (None, "disabled"):
        raise unsupported("truncation", f"truncation={shown(request.truncation)} is not served; shorten the input")
    for number, what in enumerate(request.include or ()):
        if what != "reasoning.encrypted_content":  # reasoning comes in the open
            raise unsupported(f"include[{number}]", f"include[{number}]={shown(what)} is not served; leave it out")


def unsupported(param: str, message: str) -> ApiError:
    """The error for a field that asks for what is not served."""
    return ApiError(400, message, "unsupported_parameter", param)


# -- tools and forms --


def chat_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tools as chats have them: the function in a field of its own."""
    for number, tool in enumerate(tools):
        where = f"tools[{number}]"
        if tool.get("type") != "function":
            raise unsupported(f"{where}.type", f"{where}.type={shown(tool.get('type'))} is not served; only functions are")
    functions = [{name: value for name, value in tool.items() if name != "type"} for tool in tools]
    check_functions({f"tools[{number}]": function for number, function in enumerate(functions)})
    return [{"type": "function", "function": {name: value for name, value in function.items() if value is not None}}
            for function in functions]


def chat_tool_choice(choice: str | Mapping[str, Any] | None) -> Any:
    """`tool_choice` as chats have it."""
    if isinstance(choice, Mapping):
        if choice.get("type") != "function" or not isinstance(choice.get("name"), str):
            raise unsupported("tool_choice", f"tool_choice={shown(choice)} is not served; it may be none, auto, required, or "
                              '{"type": "function", "name": "…"}')
        return {"type": "function", "function": {"name": choice["name"]}}
    if choice not in (None, "none", "auto", "required"):
        raise invalid("tool_choice", choice, '"none", "auto", "required" or {"type": "function", "name": "…"}')
    return choice


def chat_format(text: TextFields | None) -> dict[str, Any] | None:
    """`text.format` as chats have it, where it is `response_format`."""
    wanted = text.format if text else None
    if wanted is None or wanted.type != "json_schema":
        return None if wanted is None else {"type": wanted.type}
    if wanted.schema_ is None:
        raise ApiError(400, "text.format.schema is missing; json_schema needs it", "missing_field", "text.format.schema")
    return {"type": wanted.type, "json_schema": wanted.model_dump(by_alias=True, exclude={"type"})}


# -- input --


def messages_of(request: ResponsesRequest) -> list[dict[str, Any]]:
    """The conversation: instructions, and then what the items say."""
    messages = [{"role": "system", "content": request.instructions}] if request.instructions else []
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    if not request.input:
        raise invalid("input", request.input, "a text, or a list of at least one item")
    return messages + Items().read(request.input)


@dataclass
class Items:
    """Turns items into messages. An assistant's thoughts, text and calls in one turn are several items, and one message.

    Attributes:
        messages: so far.
        call_ids: of the calls so far.
    """

    messages: list[dict[str, Any]] = field(default_factory=list)
    call_ids: set[str] = field(default_factory=set)

    def read(self, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The messages of all items.

        Raises:
            ApiError: an item is of a kind that is not served.
            InvalidParametersError: an item is malformed; its `parameter` is the field.
        """
        readers = {"message": self._message, "function_call": self._call, "function_call_output": self._output,
                   "reasoning": self._reasoning}
        for number, item in enumerate(items):
            where, kind = f"input[{number}]", item.get("type", "message" if "role" in item else None)
            if kind not in readers:
                why = f"; {STATELESS}" if kind == "item_reference" else f"; there are {', '.join(readers)}"
                raise unsupported(f"{where}.type", f"{where}.type={shown(kind)} is not served{why}")
            readers[kind](where, item)
        for message in self.messages:
            if "tool_calls" not in message:
                message.setdefault("content", "")  # thoughts without a text
        return self.messages

    def _message(self, where: str, item: Mapping[str, Any]) -> None:
        role = item.get("role")
        if role not in ("user", "assistant", "system", "developer"):
            raise invalid(f"{where}.role", role, "user, assistant, system or developer")
        text = text_of(f"{where}.content", item.get("content"))
        if role == "assistant":
            self._assistant("content", "tool_calls")["content"] = text
        else:
            self.messages.append({"role": role, "content": text})

    def _reasoning(self, where: str, item: Mapping[str, Any]) -> None:
        parts = item.get("content") or item.get("summary")
        if parts:  # an item that another service has encrypted cannot be read here
            thoughts = text_of(f"{where}.content", parts)
            self._assistant("reasoning_content", "content", "tool_calls")["reasoning_content"] = thoughts

    def _call(self, where: str, item: Mapping[str, Any]) -> None:
        call_id, name, arguments = (string_of(where, item, name) for name in ("call_id", "name", "arguments"))
        self.call_ids.add(call_id)
        self._assistant().setdefault("tool_calls", []).append(
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}})

    def _output(self, where: str, item: Mapping[str, Any]) -> None:
        call_id = string_of(where, item, "call_id")
        if call_id not in self.call_ids:
            raise InvalidParametersError(
                f"{where}.call_id is {shown(call_id)}, and no function_call before it has this id; {STATELESS}",
                parameter=f"{where}.call_id", value=call_id)
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": text_of(f"{where}.output", item.get("output"))})

    def _assistant(self, *absent: str) -> dict[str, Any]:
        """The assistant's last message, if nobody spoke since and it has none of these fields; otherwise a new one."""
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != "assistant" or any(name in last for name in absent):
            self.messages.append({"role": "assistant"})
        return self.messages[-1]


def string_of(where: str, item: Mapping[str, Any], name: str) -> str:
    """A field that must be a string."""
    value = item.get(name)
    if not isinstance(value, str):
        raise invalid(f"{where}.{name}", value, "a string")
    return value


def text_of(where: str, content: Any) -> str:
    """A text, or the text of its parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(where, content, "a text, or a list of parts with a text each")
    for number, part in enumerate(content):
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            what = part.get("type") if isinstance(part, Mapping) else part
            raise unsupported(f"{where}[{number}]", f"{where}[{number}] is {shown(what)}, which is not served; only text is")
    return "\n".join(part["text"] for part in content)
