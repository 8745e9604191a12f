"""`/v1/chat/completions`: OpenAI's shape of a conversation and of its answer.

Knows that shape; rendering, generating and splitting are `conversation.py`'s.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from nano_qwen3_serving.exceptions import InvalidParametersError
from nano_qwen3_serving.server.openai.conversation import Answer, Conversation, Part, begin_answer
from nano_qwen3_serving.server.openai.generation import Order, Running
from nano_qwen3_serving.server.openai.logprobs import chat_logprobs
from nano_qwen3_serving.server.openai.parsers import (
    ContentDelta,
    Delta,
    ParsedOutput,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
    joined,
)
from nano_qwen3_serving.server.openai.protocol import ChatRequest, TemplateFields
from nano_qwen3_serving.server.openai.sampling import chat_params
from nano_qwen3_serving.server.openai.tools import callable_functions, check_tools
from nano_qwen3_serving.server.serving import Serving


async def begin_chat(serving: Serving, request: ChatRequest, request_id: str) -> ChatCall:
    """Queues the request. Raises an error that names the field that is wrong."""
    with named_as_in(request):
        params = chat_params(request, serving.engine.engine.config.model.generation_defaults)
        order = Order(request_id, params, request.priority, request.cache_salt, serving.limits.request_seconds)
        answer = await begin_answer(serving.engine, conversation_of(request), order)
    return ChatCall(request, answer, serving, request_id)


@contextmanager
def named_as_in(request: ChatRequest) -> Iterator[None]:
    """Renames the fields in errors: the engine has other names for them than the body."""
    names = {"prompt": "messages", "logprobs": "top_logprobs"}
    if request.max_completion_tokens is not None:
        names["max_tokens"] = "max_completion_tokens"
    try:
        yield
    except InvalidParametersError as error:
        error.parameter = names.get(error.parameter, error.parameter)
        raise


def conversation_of(request: ChatRequest) -> Conversation:
    """The conversation that the request asks about.

    With tool_choice="none" the prompt has the tools all the same: they stand at its beginning, so without them nothing
    of the conversation would be found in the prefix cache. A forced answer is a single call, unless parallel_tool_calls=true: a
    model that does not know when to stop would call for ever.
    """
    tools = request.tools or []
    check_tools(tools)
    must_call = callable_functions(tools, request.tool_choice)
    several = request.parallel_tool_calls is not False
    if must_call:
        several = request.tool_choice == "required" and request.parallel_tool_calls is True
    conversation = templated(request, request.messages, tools)
    switches = dict(conversation.switches)
    if request.reasoning_effort == "none":
        switches.setdefault("enable_thinking", False)
    return replace(conversation, may_call=request.tool_choice != "none", must_call=must_call, parallel_calls=several,
                   switches=switches)


def templated(fields: TemplateFields, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> Conversation:
    """A conversation, to be rendered as `fields` say."""
    continued = fields.continue_final_message is True
    return Conversation(
        [as_templates_know_it(message) for message in messages], tools,
        add_generation_prompt=not continued if fields.add_generation_prompt is None else fields.add_generation_prompt,
        continue_final_message=continued,
        switches=fields.chat_template_kwargs or {})


def as_templates_know_it(message: dict[str, Any]) -> dict[str, Any]:
    """Renames the role `developer`, OpenAI's newer word for `system`: Qwen's templates know the older one."""
    return {**message, "role": "system"} if message.get("role") == "developer" else message


@dataclass
class ChatCall:
    """One call, its request in flight.

    Attributes:
        request: as the client sent it.
        work: what comes of it.
        serving: the app's.
        request_id: of the answer.
        created: when it began, in seconds since the epoch.
    """

    request: ChatRequest
    work: Answer
    serving: Serving
    request_id: str
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def running(self) -> Running:
        """Its request; to be left when the call is over."""
        return self.work.running

    async def answer(self) -> dict[str, Any]:
        """The whole answer at once."""
        choices, last = [], None
        async for output, part in self.work.parts():
            last = output
            choice: dict[str, Any] = {
                "index": part.index, "message": self._message(joined(part.deltas)), **self._end(part)}
            if self.request.return_token_ids:
                choice["token_ids"] = part.completion.token_ids
            choices.append(choice)
        assert last is not None, "an answer without an output"
        body = {**self._body("chat.completion", choices), "usage": self.running.usage.as_dict()}
        return body | ({"prompt_token_ids": last.prompt_token_ids} if self.request.return_token_ids else {})

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """The answer as it is generated."""
        options = self.request.stream_options
        usage = self.running.usage
        begun: set[int] = set()
        async for output, part in self.work.parts():
            for chunk in self._chunks_of(part, part.index not in begun):
                if self.request.return_token_ids and part.index not in begun:
                    chunk["prompt_token_ids"] = output.prompt_token_ids
                begun.add(part.index)
                if options is not None and options.include_usage:
                    chunk["usage"] = usage.as_dict() if options.continuous_usage_stats else None
                yield chunk
        if options is not None and options.include_usage:
            yield self._body("chat.completion.chunk", []) | {"usage": usage.as_dict()}

    def _chunks_of(self, part: Part, is_first: bool) -> Iterator[dict[str, Any]]:
        """A chunk for each delta; the last also has the part's tokens, their log-probabilities, and how it ends."""
        deltas = [self._delta(delta) for delta in part.deltas if self._is_shown(delta)]
        says_tokens = self.request.logprobs or self.request.return_token_ids
        if part.finish_reason or (says_tokens and not deltas):
            deltas.append({})
        if is_first:
            deltas.insert(0, {"role": "assistant", "content": ""})
        for number, delta in enumerate(deltas, 1):
            choice = {"index": part.index, "delta": delta, "logprobs": None, "finish_reason": None}
            if number == len(deltas):
                choice |= self._end(part)
                if self.request.return_token_ids:
                    choice["token_ids"] = part.completion.token_ids
            yield self._body("chat.completion.chunk", [choice])

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.request_id, "object": kind, "created": self.created,
                "model": self.request.model or self.serving.names[0], "choices": choices}

    def _end(self, part: Part) -> dict[str, Any]:
        """What a choice says beside its text."""
        logprobs = None
        if self.request.logprobs:
            logprobs = chat_logprobs(part.completion.token_ids, part.completion.logprobs or [],
                                     self.serving.engine.get_tokenizer(), self.request.top_logprobs or 0)
        return {"logprobs": logprobs, "finish_reason": part.finish_reason, "stop_reason": part.completion.stop_reason}

    def _is_shown(self, delta: Delta) -> bool:
        return self.request.include_reasoning is not False or not isinstance(delta, ReasoningDelta)

    def _message(self, parsed: ParsedOutput) -> dict[str, Any]:
        calls = [{"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                 for call in parsed.tool_calls]
        message: dict[str, Any] = {"role": "assistant", "content": parsed.content if parsed.content or not calls else None,
                                   "refusal": None}
        if parsed.reasoning and self.request.include_reasoning is not False:
            message["reasoning_content"] = parsed.reasoning
        return message | ({"tool_calls": calls} if calls else {})

    @staticmethod
    def _delta(delta: Delta) -> dict[str, Any]:
        match delta:
            case ContentDelta(text):
                return {"content": text}
            case ReasoningDelta(text):
                return {"reasoning_content": text}
            case ToolCallStart(index, call_id, name):
                return {"tool_calls": [{"index": index, "id": call_id, "type": "function",
                                        "function": {"name": name, "arguments": ""}}]}
            case ToolCallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
