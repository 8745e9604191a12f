"""An answer to a conversation: rendered, generated, split into reasoning, content and tool calls.

Knows chat templates and the parser; knows nothing of HTTP, nor of the shapes in which an API asks and answers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nano_qwen3_serving.arguments import own_copy
from nano_qwen3_serving.engine.async_llm_engine import AsyncLLMEngine
from nano_qwen3_serving.exceptions import InvalidParametersError
from nano_qwen3_serving.outputs import CompletionOutput, RequestOutput
from nano_qwen3_serving.sampling_params import SamplingParams, StructuredOutputsParams
from nano_qwen3_serving.server.openai.generation import Order, Running, begin
from nano_qwen3_serving.server.openai.parsers import Delta, OutputParser, ToolCallArguments, ToolCallStart, opens_reasoning
from nano_qwen3_serving.server.openai.tools import Thoughts, calls_grammar, check_tools, with_calls_as_templates_know_them

OF_THE_CALL = ("self", "messages", "tokenize", "tools", "chat_template", "add_generation_prompt", "continue_final_message")
"""Names that a client may not use as switches. With a template of its own a client would run a program on the server."""


@dataclass(frozen=True)
class Conversation:
    """The conversation to be answered.

    Attributes:
        messages: dicts as `LLM.chat` takes them.
        tools: `{"type": "function", "function": {"name", …}}`; the model sees them.
        may_call: whether it may call them; if not, what looks like a call is text.
        must_call: functions among the tools; the answer is a call of one of these. Empty: the model decides.
        parallel_calls: whether an answer may have several calls; if not, those after the first are left out.
        add_generation_prompt, continue_final_message: as in `LLM.chat`.
        switches: the template's own, such as `enable_thinking`.
    """

    messages: Sequence[dict[str, Any]]
    tools: Sequence[dict[str, Any]] = ()
    may_call: bool = True
    must_call: Sequence[Mapping[str, Any]] = ()
    parallel_calls: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    switches: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """The new part of one of n answers.

    Attributes:
        index: which of them.
        deltas: its text, split. Empty while the parser holds everything back.
        completion: its tokens and log-probabilities, and how it ended.
        finish_reason: as `completion` has it, or "tool_calls" where a tool was called; None while it goes on.
    """

    index: int
    deltas: list[Delta]
    completion: CompletionOutput
    finish_reason: str | None


async def begin_answer(engine: AsyncLLMEngine, conversation: Conversation, order: Order) -> Answer:
    """Renders the conversation in a text thread and queues it.

    Raises:
        InvalidParametersError: it cannot be rendered, a tool is none, it is too long, or a parameter is not acceptable.
        QueueFullError, RequestTimeoutError, EngineDeadError: as `AsyncLLMEngine.add_request`.
    """
    prompt = await render(engine, conversation)
    if not conversation.must_call:
        return Answer(conversation, prompt, await begin(engine, [prompt], order))
    try:
        order = replace(order, params=calls_only(conversation, prompt, order.params))
        return Answer(conversation, prompt, await begin(engine, [prompt], order))
    except InvalidParametersError as error:
        if error.parameter != "structured_outputs":
            raise
        raise InvalidParametersError(f"tool_choice cannot be enforced: {error}", parameter="tool_choice") from error


async def render(engine: AsyncLLMEngine, conversation: Conversation) -> str:
    """The conversation as the model reads it. Raises `InvalidParametersError` for what the template refuses."""
    tools, switches = own_copy("tools", list(conversation.tools)), own_copy("chat_template_kwargs", dict(conversation.switches))
    check_tools(tools)
    for name in OF_THE_CALL:
        if name in switches:
            raise InvalidParametersError(
                f"chat_template_kwargs has {name!r}, which is no switch of the chat template; leave it out",
                parameter="chat_template_kwargs", value=switches[name])
    return await engine.run_text(
        engine.get_tokenizer().apply_chat_template,
        with_calls_as_templates_know_them(own_copy("messages", list(conversation.messages))),
        tools=tools or None,
        add_generation_prompt=conversation.add_generation_prompt,
        continue_final_message=conversation.continue_final_message,
        **switches)


class Answer:
    """An answer, or n of them, being generated. `async with answer.running` ends it in any case.

    Attributes:
        running: its request in the engine, and the tokens counted so far.
    """

    def __init__(self, conversation: Conversation, prompt: str, running: Running) -> None:
        self.running = running
        self._conversation = conversation
        self._calls = conversation.may_call and bool(conversation.tools)
        self._thinks = conversation.add_generation_prompt and opens_reasoning(prompt)
        self._parsers: dict[int, OutputParser] = {}

    async def parts(self) -> AsyncGenerator[tuple[RequestOutput, Part], None]:
        """The parts as they come, each with the output that it is from. Raises as `Running.outputs`."""
        async for _, output in self.running.outputs():
            for completion in output.outputs:
                yield output, self._part(completion)

    def _part(self, completion: CompletionOutput) -> Part:
        parser = self._parsers.setdefault(completion.index, OutputParser(
            reasoning=True, tools=self._calls, starts_in_reasoning=self._thinks))
        deltas = parser.add(completion.text)
        if completion.finish_reason is not None:
            deltas += parser.finish()
        reason: str | None = completion.finish_reason
        if reason == "stop" and parser.num_calls:
            reason = "tool_calls"
        return Part(completion.index, [delta for delta in deltas if self._is_wanted(delta)], completion, reason)

    def _is_wanted(self, delta: Delta) -> bool:
        is_call = isinstance(delta, (ToolCallStart, ToolCallArguments))
        return not is_call or self._conversation.parallel_calls or delta.index == 0  # type: ignore[union-attr]  # is_call


def calls_only(conversation: Conversation, prompt: str, params: SamplingParams) -> SamplingParams:
    """The parameters, with a grammar whose every text is a call of a function that must be called.

    Thoughts come before it where the prompt has begun them, or may where the client asks for them by `enable_thinking`.

    Raises:
        InvalidParametersError: something else is asked of the answer's form.
    """
    if params.structured_outputs is not None:
        raise InvalidParametersError(
            "tool_choice asks for a call, so the answer cannot have another form; leave response_format and "
            "structured_outputs out", parameter="tool_choice")
    asked = conversation.switches.get("enable_thinking") is True
    thoughts: Thoughts = "opened" if opens_reasoning(prompt) else "optional" if asked else "none"
    grammar = calls_grammar(conversation.must_call, several=conversation.parallel_calls, thoughts=thoughts)
    return params.clone(structured_outputs=StructuredOutputsParams(grammar=grammar))
