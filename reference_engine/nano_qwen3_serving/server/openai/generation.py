"""The engine's requests for one call of the API: one or several, begun together and ended together.

Knows the engine's streams and counts tokens; knows nothing of HTTP, JSON or chat.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from nano_qwen3_serving.engine.async_llm_engine import AsyncLLMEngine
from nano_qwen3_serving.exceptions import InvalidParametersError
from nano_qwen3_serving.outputs import RequestOutput
from nano_qwen3_serving.prompts import Prompt
from nano_qwen3_serving.sampling_params import SamplingParams

Outputs = AsyncGenerator[RequestOutput, None]


@dataclass(frozen=True)
class Order:
    """What is common to the requests of one call.

    Attributes:
        request_id: the call's name; requests are named after it.
        params: how to choose tokens.
        priority: the smaller number first.
        cache_salt: prefixes are shared only with the same salt.
        timeout: seconds until they are ended, waiting included; None is no bound.
    """

    request_id: str
    params: SamplingParams
    priority: int = 0
    cache_salt: str | None = None
    timeout: float | None = None


@dataclass
class Usage:
    """Tokens of one call, counted as its outputs come."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    _prompts: set[int] = field(default_factory=set)

    def count(self, number: int, output: RequestOutput) -> None:
        """Adds an output of the call's request `number`, which holds what is new or everything at once."""
        if number not in self._prompts:
            self._prompts.add(number)
            self.prompt_tokens += len(output.prompt_token_ids)
            self.cached_tokens += output.num_cached_tokens or 0
        self.completion_tokens += sum(len(completion.token_ids) for completion in output.outputs)

    def as_dict(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Running:
    """The requests of one call, in flight. `async with running` aborts what still runs when the block is left.

    Args:
        streams: of the engine, begun.

    Attributes:
        usage: tokens counted so far.
    """

    def __init__(self, streams: Sequence[Outputs]) -> None:
        self._streams = streams
        self.usage = Usage()

    async def __aenter__(self) -> Running:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for stream in self._streams:
            await stream.aclose()

    async def outputs(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """Each output as it comes, with the number of the prompt that it belongs to.

        Raises:
            GenerationError, RequestTimeoutError, EngineDeadError: one of the requests ended so; the others are aborted.
        """
        async with aclosing(self._merged()) as merged:
            async for number, output in merged:
                self.usage.count(number, output)
                yield number, output

    async def _merged(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        if len(self._streams) == 1:  # as nearly always: without a task and a wait for each token
            async for output in self._streams[0]:
                yield 0, output
            return
        waits = {asyncio.ensure_future(anext(stream)): number for number, stream in enumerate(self._streams)}
        try:
            while waits:
                done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in sorted(done, key=lambda wait: waits[wait]):
                    number, output = waits[wait], wait.result()
                    del waits[wait]
                    if not output.finished:
                        waits[asyncio.ensure_future(anext(self._streams[number]))] = number
                    yield number, output
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


async def begin(engine: AsyncLLMEngine, prompts: Sequence[Prompt], order: Order) -> Running:
    """Queues a request for each prompt, or none.

    Raises:
        InvalidParametersError: a prompt or a parameter is not acceptable, or there are more prompts than can wait.
        QueueFullError, RequestTimeoutError, EngineDeadError: as `AsyncLLMEngine.add_request`.
    """
    limit = engine.waiting_room.limit
    if limit is not None and len(prompts) > limit:
        raise InvalidParametersError(
            f"prompt has {len(prompts)} prompts, and at most {limit} requests can wait; send them in several calls",
            parameter="prompt", value=len(prompts))
    streams: list[Outputs] = []
    try:
        for number, prompt in enumerate(prompts):
            request_id = order.request_id if len(prompts) == 1 else f"{order.request_id}-{number}"
            streams.append(await engine.add_request(
                request_id, salted(prompt, order.cache_salt), order.params, priority=order.priority, timeout=order.timeout))
    except BaseException:
        for stream in streams:
            await stream.aclose()
        raise
    return Running(streams)


def salted(prompt: Prompt, salt: str | None) -> Prompt:
    """The prompt, which shares prefixes only under `salt`."""
    if salt is None:
        return prompt
    if isinstance(prompt, str):
        return {"prompt": prompt, "cache_salt": salt}
    return {**prompt, "cache_salt": salt}  # type: ignore[return-value]  # either form may have a salt
