"""`/v1/responses`: an answer as a list of items, and the typed events by which it grows.

    response.created, response.in_progress
    for each item: response.output_item.added
        response.content_part.added                     a message or thoughts: one part, of text
        response.output_text.delta …, .done             or reasoning_text, or function_call_arguments
        response.content_part.done
        response.output_item.done
    response.completed, response.incomplete or response.failed

Knows that shape; what the client asks is read in `responses_request.py`, and answered as a chat is.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from nano_qwen3_serving.arguments import own_copy
from nano_qwen3_serving.exceptions import EngineError, InvalidParametersError
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.server.errors import ApiError, api_error
from nano_qwen3_serving.server.openai.chat import conversation_of
from nano_qwen3_serving.server.openai.conversation import Answer, begin_answer
from nano_qwen3_serving.server.openai.generation import Order, Running
from nano_qwen3_serving.server.openai.parsers import ContentDelta, Delta, ReasoningDelta, ToolCallArguments, ToolCallStart
from nano_qwen3_serving.server.openai.responses_request import ResponsesRequest, as_chat
from nano_qwen3_serving.server.openai.sampling import chat_params
from nano_qwen3_serving.server.serving import Serving

logger = logging.getLogger(__name__)

Event = dict[str, Any]

FIELDS = {"messages": "input", "prompt": "input", "max_tokens": "max_output_tokens", "structured_outputs": "text.format",
          "response_format": "text.format"}
"""What the engine and chats call a field of this body."""


async def begin_response(serving: Serving, request: ResponsesRequest, request_id: str) -> ResponseCall:
    """Queues the request. Raises an error that names the field that is wrong."""
    try:
        for name, value in request.model_dump().items():
            own_copy(name, value)  # fields that are sent back must be text that can be encoded
        chat = as_chat(request)
        params = chat_params(chat, serving.engine.engine.config.model.generation_defaults)
        order = Order(request_id, params, request.priority, request.cache_salt, serving.limits.request_seconds)
        answer = await begin_answer(serving.engine, conversation_of(chat), order)
    except InvalidParametersError as error:
        theirs = FIELDS.get(error.parameter, error.parameter)
        message = str(error)
        error.args = (theirs + message.removeprefix(error.parameter) if message.startswith(error.parameter) else message,)
        error.parameter = theirs
        raise
    return ResponseCall(request, params, answer, serving, f"resp_{request_id}")


# -- items --


@dataclass(frozen=True)
class Kind:
    """How items of one type are written.

    Attributes:
        prefix: of their ids.
        event: the middle of the names of events that write their text.
        part: the type of their only part; None if they have none.
    """

    prefix: str
    event: str
    part: str | None = None


KINDS = {
    "message": Kind("msg", "output_text", "output_text"),
    "reasoning": Kind("rs", "reasoning_text", "reasoning_text"),
    "function_call": Kind("fc", "function_call_arguments"),
}


class Item:
    """One item of the answer, while it is written.

    Args:
        index: its place among the items.
        kind: its type.
        fields: of its own, beside those that all have.
    """

    def __init__(self, index: int, kind: str, **fields: Any) -> None:
        self._kind, self._index, self._pieces = KINDS[kind], index, [""]
        self.fields = {"id": f"{self._kind.prefix}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress", **fields}

    def begin(self) -> Iterator[Event]:
        """The item is there, and is empty."""
        yield {"type": "response.output_item.added", "output_index": self._index, "item": self._as_item("in_progress")}
        if self._kind.part:
            yield self._event("response.content_part.added", part=self._as_part())

    def write(self, text: str) -> Iterator[Event]:
        """More of its text."""
        self._pieces.append(text)
        yield self._event(f"response.{self._kind.event}.delta", delta=text, **self._logprobs())

    def end(self, status: str) -> Iterator[Event]:
        """It is complete, or as much of it as there will be."""
        text = "".join(self._pieces)
        if self._kind.part is None:
            yield self._event(f"response.{self._kind.event}.done", arguments=text, name=self.fields["name"])
        else:
            yield self._event(f"response.{self._kind.event}.done", text=text, **self._logprobs())
            yield self._event("response.content_part.done", part=self._as_part())
        self.fields = self._as_item(status)
        yield {"type": "response.output_item.done", "output_index": self._index, "item": self.fields}

    def _as_item(self, status: str) -> dict[str, Any]:
        """The item as it stands, in OpenAI's shape."""
        if self._kind.part is None:
            return {**self.fields, "arguments": "".join(self._pieces), "status": status}
        parts = [] if status == "in_progress" else [self._as_part()]
        return {**self.fields, "content": parts, "status": status}

    def _as_part(self) -> dict[str, Any]:
        extra: dict[str, Any] = {"annotations": [], "logprobs": []} if self._kind.part == "output_text" else {}
        return {"type": self._kind.part, "text": "".join(self._pieces), **extra}

    def _logprobs(self) -> dict[str, Any]:
        return {"logprobs": []} if self._kind.part == "output_text" else {}

    def _event(self, kind: str, **fields: Any) -> Event:
        place = {"content_index": 0} if self._kind.part else {}
        return {"type": kind, "item_id": self.fields["id"], "output_index": self._index, **place, **fields}


@dataclass
class Output:
    """The items of an answer, in the order in which the model wrote them.

    Attributes:
        items: those that are complete.
        reasoning: what the model thought.
    """

    items: list[dict[str, Any]] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    _open: Item | None = None

    def add(self, delta: Delta) -> Iterator[Event]:
        """The events of one more delta: of an item that it continues, or of one that it begins."""
        match delta:
            case ReasoningDelta(text):
                self.reasoning.append(text)
                yield from self._write("reasoning", text, summary=[])
            case ContentDelta(text):
                yield from self._write("message", text, role="assistant")
            case ToolCallStart(_, call_id, name):
                yield from self._begin("function_call", call_id=call_id, name=name)
            case ToolCallArguments(_, text):
                yield from self._write("function_call", text)

    def end(self, status: str = "completed") -> Iterator[Event]:
        """The item that is open, if one is, will not go on."""
        if self._open is not None:
            yield from self._open.end(status)
            self.items.append(self._open.fields)
            self._open = None

    def _write(self, kind: str, text: str, **fields: Any) -> Iterator[Event]:
        if self._open is None or self._open.fields["type"] != kind:
            yield from self._begin(kind, **fields)
        assert self._open is not None
        yield from self._open.write(text)

    def _begin(self, kind: str, **fields: Any) -> Iterator[Event]:
        yield from self.end()
        self._open = Item(len(self.items), kind, **fields)
        yield from self._open.begin()


# -- the response --


@dataclass
class ResponseCall:
    """One call, its request in flight.

    Attributes:
        request: as the client sent it.
        params: how tokens are chosen.
        work: what comes of it.
        serving: the app's.
        response_id: of the answer.
        created: when it began, in seconds since the epoch.
    """

    request: ResponsesRequest
    params: SamplingParams
    work: Answer
    serving: Serving
    response_id: str
    created: int = field(default_factory=lambda: int(time.time()))
    _output: Output = field(default_factory=Output)

    @property
    def running(self) -> Running:
        """Its request; to be left when the call is over."""
        return self.work.running

    async def answer(self) -> dict[str, Any]:
        """The whole answer at once. Raises as `Running.outputs`."""
        last: Event = {}
        async with aclosing(self._written()) as events:
            async for event in events:
                last = event
        return last["response"]

    async def chunks(self) -> AsyncGenerator[Event, None]:
        """The events of a stream, numbered. What goes wrong is the last of them."""
        number = 0
        yield {"type": "response.created", "sequence_number": 0, "response": self._response("in_progress")}
        try:
            async with aclosing(self._written()) as events:
                async for event in events:
                    yield {**event, "sequence_number": (number := number + 1)}
        except Exception as error:
            if not isinstance(error, (EngineError, ApiError)):
                logger.exception("a response failed")
            what = {"code": "server_error", "message": api_error(error).message}
            yield {"type": "response.failed", "sequence_number": number + 1, "response": self._response("failed", error=what)}

    async def _written(self) -> AsyncGenerator[Event, None]:
        """The events behind the first; the last has the whole response."""
        yield {"type": "response.in_progress", "response": self._response("in_progress")}
        reason = None
        async with aclosing(self.work.parts()) as parts:
            async for _, part in parts:
                for delta in part.deltas:
                    for event in self._output.add(delta):
                        yield event
                reason = part.finish_reason
        status = "completed" if reason in ("stop", "tool_calls") else "incomplete"
        for event in self._output.end(status):
            yield event
        details = {"incomplete_details": {"reason": "max_output_tokens"}} if reason == "length" else {}
        usage = await self._usage()
        yield {"type": f"response.{status}", "response": self._response(status, usage=usage, **details)}

    async def _usage(self) -> dict[str, Any]:
        """Tokens. Those of thoughts are counted in their text, without tags; nothing is written to a cache that must be paid."""
        used = self.running.usage
        thought = await self.serving.engine.run_text(self.serving.engine.get_tokenizer().encode, "".join(self._output.reasoning))
        return {
            "input_tokens": used.prompt_tokens,
            "input_tokens_details": {"cached_tokens": used.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": used.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": min(len(thought), used.completion_tokens)},
            "total_tokens": used.prompt_tokens + used.completion_tokens,
        }

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        """The response as it stands: what was asked, and what was written so far."""
        asked = self.request
        return {
            "id": self.response_id, "object": "response", "created_at": self.created, "status": status,
            "model": asked.model or self.serving.names[0], "output": list(self._output.items),
            "error": None, "incomplete_details": None, "usage": None,
            "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens,
            "temperature": self.params.temperature, "top_p": self.params.top_p,
            "tools": [{"parameters": None, "strict": None, **tool} for tool in asked.tools or ()],
            "tool_choice": asked.tool_choice or "auto", "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "text": {"format": self._format()}, "reasoning": dumped(asked.reasoning, {"effort": None, "summary": None}),
            "metadata": asked.metadata or {}, "user": asked.user, "truncation": "disabled", "background": False,
            "store": False, "previous_response_id": None, **fields,
        }

    def _format(self) -> dict[str, Any]:
        return dumped(self.request.text.format if self.request.text else None, {"type": "text"})


def dumped(fields: Any, otherwise: Mapping[str, Any]) -> dict[str, Any]:
    """A part of the request, to be sent back."""
    return dict(otherwise) if fields is None else fields.model_dump(by_alias=True, exclude_none=True)


async def typed_events(events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    """The events as OpenAI sends them: each with its type as a name, and nothing behind the last."""
    async with aclosing(events):
        async for event in events:
            data = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
            yield f"event: {event['type']}\ndata: {data}\n\n".encode()
