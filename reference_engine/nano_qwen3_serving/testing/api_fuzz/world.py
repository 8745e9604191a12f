"""The engines that are called: real ones around a network whose tokens are known, and neighbours that check their own."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

from nano_qwen3_serving.async_llm import AsyncLLM
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.engine.arg_utils import AsyncEngineArgs, EngineArgs
from nano_qwen3_serving.engine.async_llm_engine import AsyncLLMEngine
from nano_qwen3_serving.engine.llm_engine import LLMEngine
from nano_qwen3_serving.llm import LLM
from nano_qwen3_serving.outputs import RequestOutput
from nano_qwen3_serving.prompts import TokensPrompt
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.testing.telltale import LETTERS, TellTaleModel, continuation

SMALL: dict[str, Any] = {
    "model": "course", "device": "cpu", "num_gpu_blocks_override": 33, "block_size": 4, "max_model_len": 64,
    "check_invariants": True}


@dataclass(frozen=True)
class Neighbour:
    """A correct request that knows its tokens."""

    tokens: tuple[int, ...] = tuple(b"What is a neighbour?")
    count: int = 6

    def prompt(self) -> TokensPrompt:
        """Its prompt, a new object."""
        return {"prompt_token_ids": list(self.tokens)}

    def params(self) -> SamplingParams:
        """Its parameters, a new object."""
        return SamplingParams(temperature=0, max_tokens=self.count, ignore_eos=True)

    def expected(self) -> list[int]:
        """The tokens that it gets when it runs alone."""
        return continuation(self.tokens, self.count)


NEIGHBOUR = Neighbour()


def check_neighbour(output: RequestOutput) -> None:
    """Raises AssertionError unless the neighbour's tokens are bitwise its own."""
    token_ids = output.outputs[0].token_ids
    assert token_ids == NEIGHBOUR.expected(), f"a neighbour's tokens are {token_ids}, alone {NEIGHBOUR.expected()}"


class World:
    """One of each: `LLM`, `LLMEngine`, `AsyncLLMEngine`, `AsyncLLM`; with the course checkpoint's tokenizer and templates."""

    def __init__(self) -> None:
        parts = Components(model=lambda config, attention: TellTaleModel(config, attention, LETTERS))
        self.llm = LLM(**SMALL, components=parts)
        self.sync_engine = LLMEngine.from_engine_args(EngineArgs(**SMALL), parts)
        self.engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(**SMALL), components=parts)
        self.async_llm = AsyncLLM("course", "cpu", num_blocks=33, block_size=4, max_seq_length=64, components=parts)
        self._one_at_a_time = threading.Lock()

    def step_through(self, request: dict[str, Any], gone: Any) -> list[RequestOutput]:
        """Adds a request to the synchronous engine beside a neighbour, aborts `gone`, and steps to the end."""
        with self._one_at_a_time:
            engine, done = self.sync_engine, {}
            engine.add_request("neighbour", NEIGHBOUR.prompt(), NEIGHBOUR.params())
            try:
                engine.add_request(**request)
                engine.step()
                engine.abort_request(gone)
            finally:
                while engine.has_unfinished_requests():
                    done.update({output.request_id: output for output in engine.step()})
                check_neighbour(done["neighbour"])
            return list(done.values())

    async def neighbours(self) -> None:
        """One request on each asynchronous engine, checked."""
        async for output in self.engine.generate(NEIGHBOUR.prompt(), NEIGHBOUR.params(), "neighbour"):
            last = output
        check_neighbour(last)
        tokens: list[int] = []
        async for chunk in self.async_llm.generate_stream(NEIGHBOUR.prompt(), NEIGHBOUR.params()):
            tokens += chunk["token_ids"]
        assert tokens == NEIGHBOUR.expected(), f"a neighbour's stream is {tokens}"

    async def check_at_rest(self) -> None:
        """Raises AssertionError unless every engine lives, knows no request any more and has every block free."""
        inner = self.async_llm._engine
        assert inner is not None
        for engine in (self.engine, inner):
            assert await asyncio.to_thread(engine._steps.wait_idle, 30), "an engine never comes to rest"
            assert not engine.is_stopped, f"an engine died: {engine.dead_error}"
            assert len(engine.waiting_room) == 0, "a request is still counted as waiting"
        for sync in (self.llm.llm_engine, self.sync_engine, self.engine.engine, inner.engine):
            assert not sync.has_unfinished_requests()
            assert not sync.scheduler.running and not sync.scheduler.waiting
            sync.check_invariants()

    async def close(self) -> None:
        """Ends all threads."""
        await self.async_llm.shutdown()
        await asyncio.to_thread(self.engine.shutdown)
