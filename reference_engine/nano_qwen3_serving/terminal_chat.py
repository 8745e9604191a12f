"""`python -m nano_qwen3_serving chat`: a conversation at a terminal, its commands, and what is forgotten of it.

Knows one engine and one console; knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from rich.console import Console

from nano_qwen3_serving.engine.arg_utils import AsyncEngineArgs
from nano_qwen3_serving.engine.async_llm_engine import AsyncLLMEngine
from nano_qwen3_serving.exceptions import EngineDeadError, EngineError, PromptTooLongError
from nano_qwen3_serving.outputs import RequestMetrics, RequestOutput
from nano_qwen3_serving.sampling_params import RequestOutputKind, SamplingParams

BLOCKS, BLOCK_SIZE = 1024, 16  # of the KV pool: one conversation needs no more

Message = dict[str, str]


@dataclass(frozen=True)
class Answered:
    """What an answer cost.

    Attributes:
        tokens: generated.
        prompt_tokens: of the conversation before it.
        cached_tokens: of those, found in the prefix cache.
        metrics: when it was generated.
    """

    tokens: int
    prompt_tokens: int
    cached_tokens: int
    metrics: RequestMetrics

    def __str__(self) -> str:
        seconds = self.metrics.last_token_ts - self.metrics.first_token_ts
        speed = f"then {(self.tokens - 1) / seconds:.1f} tokens/s" if seconds > 0 else "and none after it"
        return (f"{self.tokens} tokens, the first after {self.metrics.first_token_latency:.3f} s, {speed}; "
                f"{self.cached_tokens} of {self.prompt_tokens} prompt tokens came from the prefix cache")


class Chat:
    """One conversation.

    Args:
        engine: answers; not owned.
        params: how it chooses tokens.
        console: where everything is printed.

    Attributes:
        messages: the conversation so far.
        last: what the last answer cost; None before the first.
    """

    def __init__(self, engine: AsyncLLMEngine, params: SamplingParams, console: Console) -> None:
        self._engine, self._console = engine, console
        self._params = params.clone(output_kind=RequestOutputKind.DELTA)
        self.messages: list[Message] = []
        self.last: Answered | None = None
        self.commands: dict[str, Callable[[], Awaitable[None]]] = {
            "/stats": self.show_stats, "/reset": self.reset, "/help": self.show_help}

    async def enter(self, typed: str) -> None:
        """Does what a person typed: a command, or a message. Two slashes begin a message that begins with one."""
        if typed.startswith("/") and not typed.startswith("//"):
            if (command := self.commands.get(typed)) is None:
                return self._say(f"There is no command {typed.split()[0]}; there are {', '.join(self.commands)}. "
                                 f"To send this text to the model, double its slash: /{typed}")
            return await command()
        await self.turn(typed.removeprefix("/") if typed.startswith("//") else typed)

    async def show_stats(self) -> None:
        """The last answer's tokens and times; tokens of the conversation."""
        self._say(f"Last answer: {self.last}." if self.last else "Nothing has been answered yet.")
        text = await self._rendered(self.messages, add_generation_prompt=False) if self.messages else ""
        tokens = await self._engine.run_text(self._engine.get_tokenizer().encode, text)
        self._say(f"The conversation has {len(tokens)} tokens; the model's context holds "
                  f"{self._engine.engine.config.scheduler.max_model_len}.")

    async def reset(self) -> None:
        """Forgets the conversation."""
        self.messages, self.last = [], None
        self._say("The conversation is forgotten.")

    async def show_help(self) -> None:
        """The commands."""
        for name, command in self.commands.items():
            self._say(f"{name:8} {(command.__doc__ or '').strip()}")
        self._say("//       Two slashes begin a message that begins with one. Ctrl-D ends.")

    async def turn(self, question: str) -> None:
        """Answers a message as the next of the conversation.

        What no longer fits into the model's context is forgotten, the oldest question and answer first. A message that
        cannot be answered is reported and left out; the conversation goes on.
        """
        messages = [*self.messages, {"role": "user", "content": question}]
        while True:
            try:
                self.messages = [*messages, {"role": "assistant", "content": await self._answer(messages)}]
                return
            except EngineDeadError:
                raise
            except EngineError as error:
                if not isinstance(error, PromptTooLongError) or len(messages) == 1:
                    self._console.print(f"error: {error}", style="red")
                    self.messages = messages[:-1]
                    return
            self._say("(The conversation is longer than the model's context; its beginning is forgotten.)")
            messages = messages[2:]

    async def _answer(self, messages: list[Message]) -> str:
        """Prints an answer as it is generated; returns it."""
        text, tokens = "", 0
        async with aclosing(self._outputs(messages)) as outputs:
            async for output in outputs:
                if not tokens:
                    self._console.print("Model:", style="bold cyan", end=" ")
                new = output.outputs[0]
                print(new.text, end="", flush=True)
                text, tokens = text + new.text, tokens + len(new.token_ids)
        print("\n")
        assert output.metrics is not None
        self.last = Answered(tokens, len(output.prompt_token_ids), output.num_cached_tokens or 0, output.metrics)
        return text

    async def _outputs(self, messages: list[Message]) -> AsyncGenerator[RequestOutput, None]:
        prompt = await self._rendered(messages, add_generation_prompt=True)
        async with aclosing(self._engine.generate(prompt, self._params, "chat")) as outputs:
            async for output in outputs:
                yield output

    async def _rendered(self, messages: list[Message], add_generation_prompt: bool) -> str:
        """The messages as the model reads them."""
        template = self._engine.get_tokenizer().apply_chat_template
        return await self._engine.run_text(template, messages, add_generation_prompt=add_generation_prompt)

    def _say(self, text: str) -> None:
        self._console.print(text, style="dim")


def converse(questions: list[str] | None, params: SamplingParams, console: Console, **engine_args: str | None) -> None:
    """Answers the given questions, each on its own, or what is typed at a prompt, as one conversation.

    Args:
        engine_args: of `AsyncEngineArgs`: model, device, dtype.
    """
    engine = AsyncLLMEngine.from_engine_args(
        AsyncEngineArgs(**engine_args, num_gpu_blocks_override=BLOCKS, block_size=BLOCK_SIZE))  # type: ignore[arg-type]
    try:
        asyncio.run(ask_each(engine, questions, params, console) if questions else ask_on(engine, params, console))
    finally:
        engine.shutdown()


async def ask_each(engine: AsyncLLMEngine, questions: list[str], params: SamplingParams, console: Console) -> None:
    """Answers each question on its own. What begins with a slash is a question, too."""
    for question in questions:
        console.print("You:", style="bold", end=" ")
        console.print(question)
        await Chat(engine, params, console).turn(question)


async def ask_on(engine: AsyncLLMEngine, params: SamplingParams, console: Console) -> None:
    """Does what a person types, until the end of input."""
    chat = Chat(engine, params, console)
    while (typed := await asyncio.to_thread(ask, console)) is not None:
        await chat.enter(typed)


def ask(console: Console) -> str | None:
    """The next line that a person types; None at the end of input."""
    try:
        while True:
            console.print("You (/help, Ctrl-D ends):", style="bold", end=" ")
            if typed := input().strip():
                return typed
    except EOFError:
        return None
