"""`AsyncLLM`: the high-level asynchronous interface. Text in, dicts out.

Everything happens in `AsyncLLMEngine`; this gives results the shapes that users of the class know.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from enum import IntEnum
from typing import Any

from nano_qwen3_serving.arguments import check_choice, check_int, invalid, names_unknown_arguments
from nano_qwen3_serving.async_results import Chunk, Result, Totals, chunk_dict, finish, last, result_dict
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.engine.arg_utils import EngineArgs, num_parameters, pick_device
from nano_qwen3_serving.engine.async_llm_engine import AsyncLLMEngine
from nano_qwen3_serving.exceptions import EngineDeadError, EngineError, InvalidParametersError
from nano_qwen3_serving.model.checkpoint import default_model_name, find_checkpoint, read_model_config
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.outputs import RequestOutput
from nano_qwen3_serving.prompts import Prompt
from nano_qwen3_serving.sampling_params import RequestOutputKind, SamplingParams

Message = dict[str, Any]

DEFAULT_MAX_TOKENS = 100
RESULTS_KEPT = 1000  # of submit_request; the oldest finished one expires first


class RequestPriority(IntEnum):
    """Who goes first: the larger number."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    URGENT = 3


class AsyncLLM:
    """Asynchronous text generation.

    Use it as a context manager: `async with AsyncLLM() as llm: await llm.generate("Hello")`.
    Without it, the first call starts the engine and `shutdown()` ends it.

    Args:
        model_name: a bundled name, a folder, or a Hugging Face id; None is $NANO_QWEN3_MODEL or
            the bundled "course". A named model is never replaced by another.
        device: "auto", "cpu", "cuda" or "mps".
        dtype: "auto", "bfloat16", "float16" or "float32".
        max_queue_size: requests that may wait; one more is a `QueueFullError`.
        num_blocks: blocks of the KV cache.
        block_size: tokens in a block.
        max_seq_length: tokens of one request; never more than the model was trained for.
        worker_count: threads that tokenise prompts and render chat templates.
        components, recorder: as for the engine.

    Raises:
        InvalidParametersError, UnknownArgumentError: at once, for a bad argument.
        ModelLoadError: from the first call or `start()`.
    """

    @names_unknown_arguments
    def __init__(
        self,
        model_name: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        max_queue_size: int = 1000,
        num_blocks: int = 1024,
        block_size: int = 16,
        max_seq_length: int = 4096,
        worker_count: int = 2,
        *,
        components: Components | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        check_int("max_queue_size", max_queue_size, at_least=1)
        check_int("num_blocks", num_blocks, at_least=2)
        check_int("max_seq_length", max_seq_length, at_least=2)
        check_int("worker_count", worker_count, at_least=1)
        pick_device(device)
        self.model_name = model_name or default_model_name()
        self._max_seq_length = max_seq_length
        self._worker_count = worker_count
        self._max_queue_size = max_queue_size
        self._args = EngineArgs(
            model=self.model_name, device=device, dtype=dtype, num_gpu_blocks_override=num_blocks,
            block_size=block_size, scheduling_policy="priority", max_num_queued_reqs=max_queue_size)
        self._components, self._recorder = components, recorder
        self._engine: AsyncLLMEngine | None = None
        self._starting: asyncio.Lock | None = None
        self._stopped = False
        self._ids = itertools.count()
        self._submitted: dict[str, asyncio.Task[Result]] = {}
        self._totals = Totals()

    async def __aenter__(self) -> AsyncLLM:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.shutdown()

    async def start(self) -> None:
        """Loads the checkpoint in a thread and starts the engine; a second call does nothing."""
        self._starting = self._starting or asyncio.Lock()
        async with self._starting:
            if self._stopped:
                raise EngineDeadError("this AsyncLLM was shut down; make a new one")
            if self._engine is None:
                engine = await asyncio.to_thread(self._build)
                if self._stopped:
                    engine.shutdown()
                    raise EngineDeadError("this AsyncLLM was shut down while it started; make a new one")
                self._engine, self._totals = engine, Totals()

    async def shutdown(self) -> None:
        """Ends the engine. Whoever still waits gets an `EngineDeadError`."""
        self._stopped = True
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)
        tasks = [t for t in self._submitted.values() if not t.done()]
        await asyncio.gather(*tasks, return_exceptions=True)

    @names_unknown_arguments
    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | None = None,
        priority: RequestPriority = RequestPriority.NORMAL,
        *,
        timeout: float | None = None,
    ) -> Any:
        """A result dict for a prompt, or a list of them, in the order given, for a list.

        If one of several fails the others are aborted and the error is raised. Cancelling aborts.
        """
        if isinstance(prompts, (list, tuple)):
            return await self._gather([self._one(p, sampling_params, priority, timeout) for p in prompts])
        return await self._one(prompts, sampling_params, priority, timeout)

    @names_unknown_arguments
    async def generate_stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        priority: RequestPriority = RequestPriority.NORMAL,
        *,
        timeout: float | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """Chunk dicts as text comes; exactly one, the last, has `finished=True`.

        Closing the iterator or cancelling its consumer aborts the request.
        """
        text, total = "", 0
        async with aclosing(
            self._run(prompt, sampling_params, priority, timeout, RequestOutputKind.DELTA)
        ) as outputs:
            async for output in outputs:
                new = output.outputs[0]
                text, total = text + new.text, total + len(new.token_ids)
                yield chunk_dict(output, text, total)

    async def chat(
        self,
        messages: list[Message],
        sampling_params: SamplingParams | None = None,
        priority: RequestPriority = RequestPriority.NORMAL,
        *,
        timeout: float | None = None,
        **template: Any,
    ) -> Result:
        """Answers a conversation through the checkpoint's own chat template.

        `template` takes the template's switches, such as `enable_thinking=False`.
        """
        return await self._one(await self._render(messages, template), sampling_params, priority, timeout)

    async def chat_stream(
        self,
        messages: list[Message],
        sampling_params: SamplingParams | None = None,
        priority: RequestPriority = RequestPriority.NORMAL,
        *,
        timeout: float | None = None,
        **template: Any,
    ) -> AsyncGenerator[Chunk, None]:
        """Like `generate_stream`, for a conversation."""
        prompt = await self._render(messages, template)
        async with aclosing(self.generate_stream(prompt, sampling_params, priority, timeout=timeout)) as chunks:
            async for chunk in chunks:
                yield chunk

    @names_unknown_arguments
    async def generate_batch(
        self,
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams | None = None,
        batch_size: int = 4,
        priority: RequestPriority = RequestPriority.NORMAL,
        *,
        timeout: float | None = None,
    ) -> list[Result]:
        """Result dicts in prompt order, with at most `batch_size` requests in flight."""
        check_int("batch_size", batch_size, at_least=1)
        if not isinstance(prompts, (list, tuple)):
            raise invalid("prompts", prompts, "a list of prompts")
        places = asyncio.Semaphore(batch_size)

        async def one(prompt: Prompt) -> Result:
            async with places:
                return await self._one(prompt, sampling_params, priority, timeout)

        return await self._gather([one(p) for p in prompts])

    @names_unknown_arguments
    async def submit_request(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        priority: RequestPriority = RequestPriority.NORMAL,
        *,
        timeout: float | None = None,
    ) -> str:
        """Queues a request and returns its id at once; `get_result` has its result.

        Raises what is wrong with the request here: a bad prompt, a full queue.
        """
        engine = await self._started()
        request_id = self._next_id()
        params = self._params(sampling_params, RequestOutputKind.FINAL_ONLY)
        totals = self._totals.begin()
        try:
            stream = await engine.add_request(
                request_id, prompt, params, priority=self._order(priority), timeout=timeout)
        except BaseException:
            totals.failed += 1
            raise
        task = asyncio.create_task(finish(stream, totals), name=f"result-{request_id}")
        task.add_done_callback(retrieve)
        self._submitted[request_id] = task
        self._expire_results()
        return request_id

    async def get_result(self, request_id: str) -> Result:
        """The result of a submitted request, waiting for it.

        It can be fetched again until 1,000 younger ones were submitted. Cancelling the wait does
        not cancel the request.

        Raises:
            InvalidParametersError: nothing of that id was submitted, or its result expired.
        """
        task = self._submitted.get(request_id)
        if task is None:
            raise InvalidParametersError(
                f"no request {request_id!r} is known: it was never submitted here, or its result expired after "
                f"{RESULTS_KEPT} younger ones", parameter="request_id", value=request_id)
        return await asyncio.shield(task)

    async def abort(self, request_id: str) -> None:
        """Ends a request; its result has finish_reason "abort". An unknown id is a no-op."""
        if self._engine is not None:
            await self._engine.abort(request_id)

    async def get_stats(self) -> dict[str, Any]:
        """Counts since the start, and numbers of this moment."""
        engine = await self._started()
        now = await engine.get_stats()
        config = engine.engine.config
        running, waiting = now["num_requests_running"], now["num_requests_waiting"]
        return {
            "async_stats": self._totals.as_dict(),
            "queue_size": len(engine.waiting_room),
            "worker_count": self._worker_count,
            "running": engine.is_running,
            "scheduler_stats": {"num_requests_running": running, "num_requests_waiting": waiting},
            "model_stats": self.get_model_info(),
            "memory_stats": {
                "num_blocks": now["num_total_blocks"], "num_free_blocks": now["num_free_blocks"],
                "block_size": config.cache.block_size, "kv_cache_usage": now["kv_cache_usage"]},
        }

    async def clear_stats(self) -> None:
        """Counts from zero again."""
        self._totals = Totals()

    def get_model_info(self) -> dict[str, Any]:
        """`model_name, device, dtype, num_parameters, max_seq_length`; before the start as planned."""
        config = self._engine.engine.config if self._engine else self._engine_args().create_engine_config()
        return {
            "model_name": self.model_name,
            "device": str(config.device),
            "dtype": str(config.dtype).removeprefix("torch."),
            "num_parameters": num_parameters(config.model),
            "max_seq_length": config.scheduler.max_model_len,
        }

    def get_tokenizer(self) -> Any:
        """The engine's tokenizer; the engine must have been started."""
        if self._engine is None:
            raise EngineError("the engine is not started; await start() first")
        return self._engine.get_tokenizer()

    def _engine_args(self) -> EngineArgs:
        trained = read_model_config(find_checkpoint(self.model_name)).max_position_embeddings
        return replace(self._args, max_model_len=min(self._max_seq_length, trained))

    def _build(self) -> AsyncLLMEngine:
        return AsyncLLMEngine.from_engine_args(
            self._engine_args(), components=self._components, recorder=self._recorder,
            worker_count=self._worker_count)

    async def _started(self) -> AsyncLLMEngine:
        if self._engine is None or self._stopped:
            await self.start()
        assert self._engine is not None
        return self._engine

    def _next_id(self) -> str:
        return f"req-{next(self._ids)}"

    @staticmethod
    def _order(priority: RequestPriority) -> int:
        """The scheduler's number, where the smallest goes first."""
        check_choice("priority", priority, list(RequestPriority))
        return int(RequestPriority.URGENT - priority)

    def _params(self, given: SamplingParams | None, kind: RequestOutputKind) -> SamplingParams:
        """The parameters of one call: one completion, shown as the call needs it."""
        if given is None:
            assert self._engine is not None
            defaults = self._engine.engine.config.model.generation_defaults
            return SamplingParams(**{"max_tokens": DEFAULT_MAX_TOKENS, **defaults, "output_kind": kind})
        if not isinstance(given, SamplingParams):
            raise invalid("sampling_params", given, "a SamplingParams or None")
        if given.n != 1:
            raise invalid("n", given.n, "1: a result dict holds one text; use AsyncLLMEngine for several")
        return given.clone(output_kind=kind)

    async def _render(self, messages: list[Message], template: dict[str, Any]) -> str:
        engine = await self._started()
        return await engine.run_text(engine.get_tokenizer().apply_chat_template, messages, **template)

    async def _run(
        self, prompt: Prompt, params: SamplingParams | None, priority: RequestPriority,
        timeout: float | None, kind: RequestOutputKind,
    ) -> AsyncGenerator[RequestOutput, None]:
        """One counted request's outputs."""
        engine = await self._started()
        order, own = self._order(priority), self._params(params, kind)
        totals = self._totals.begin()
        outputs = engine.generate(prompt, own, self._next_id(), priority=order, timeout=timeout)
        async with aclosing(totals.count(outputs)) as counted:
            async for output in counted:
                yield output

    async def _one(
        self, prompt: Any, params: SamplingParams | None, priority: RequestPriority, timeout: float | None
    ) -> Result:
        outputs = self._run(prompt, params, priority, timeout, RequestOutputKind.FINAL_ONLY)
        return result_dict(await last(outputs))

    @staticmethod
    async def _gather(calls: Sequence[Any]) -> list[Result]:
        """All results in order; at the first error the others are cancelled, and with them aborted."""
        tasks = [asyncio.ensure_future(call) for call in calls]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _expire_results(self) -> None:
        finished = [i for i, task in self._submitted.items() if task.done()]
        for request_id in finished[: max(len(self._submitted) - RESULTS_KEPT, 0)]:
            del self._submitted[request_id]


def retrieve(task: asyncio.Task[Any]) -> None:
    """Looks at a task's error, so that asyncio does not complain if nobody fetches the result."""
    if not task.cancelled():
        task.exception()
