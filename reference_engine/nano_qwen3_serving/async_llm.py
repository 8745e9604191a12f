"""`AsyncLLM`: the high-level asynchronous interface. Text in, dicts out.

Everything happens in `AsyncLLMEngine`; this gives results the shapes that users of the class know.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import replace
from enum import IntEnum
from typing import Any

from nano_qwen3_serving.arguments import check_choice, check_int, check_text, invalid, names_unknown_arguments, own_copy
from nano_qwen3_serving.async_results import Chunk, Result, Totals, chunk_dict, last, result_dict
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.engine.arg_utils import EngineArgs, num_parameters, pick_device
from nano_qwen3_serving.engine.async_llm_engine import AsyncLLMEngine
from nano_qwen3_serving.exceptions import EngineDeadError, EngineError, InvalidParametersError, shown
from nano_qwen3_serving.model.checkpoint import default_model_name, find_checkpoint, read_model_config
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.outputs import RequestOutput
from nano_qwen3_serving.ownership import copies_arguments
from nano_qwen3_serving.prompts import Prompt
from nano_qwen3_serving.sampling_params import RequestOutputKind, SamplingParams

Message = dict[str, Any]

DEFAULT_MAX_TOKENS = 100
RESULTS_KEPT = 1000  # of submit_request; the oldest finished one expires first


class RequestPriority(IntEnum):
    """Which request is scheduled first: the one with the larger number."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    URGENT = 3


class AsyncLLM:
    """Asynchronous text generation.

    Use it as a context manager: `async with AsyncLLM() as llm: await llm.generate("Hello")`.
    Without it, the first call starts the engine and `shutdown()` ends it. One object serves calls from any number of
    threads and event loops. What a call is given is copied at once, and what it returns is the caller's own.

    Args:
        model_name: a bundled name, a folder, or a Hugging Face id; None is $NANO_QWEN3_MODEL or
            the bundled "course". A named model is never replaced by another.
        device: "auto", "cpu", "cuda" or "mps".
        dtype: "auto", "bfloat16", "float16" or "float32".
        max_queue_size: requests that may wait; one more is a `QueueFullError`.
        num_blocks: blocks of the KV cache.
        block_size: tokens in a block.
        max_seq_length: tokens of one request; never more than the model was trained for, or YaRN stretches that to.
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
        if model_name is None or (isinstance(model_name, str) and not model_name):
            model_name = default_model_name()
        self._max_seq_length = max_seq_length
        self._worker_count = worker_count
        self._max_queue_size = max_queue_size
        self._args = EngineArgs(
            model=model_name, device=device, dtype=dtype, num_gpu_blocks_override=num_blocks,
            block_size=block_size, scheduling_policy="priority", max_num_queued_reqs=max_queue_size)
        self.model_name = str(model_name)
        self._components, self._recorder = components, recorder
        self._engine: AsyncLLMEngine | None = None
        self._lock = threading.Lock()
        self._starting: Future[AsyncLLMEngine] | None = None
        self._process = os.getpid()
        self._stopped = False
        self._ids = itertools.count()
        self._submitted: dict[str, Future[RequestOutput]] = {}
        self._totals = Totals()

    async def __aenter__(self) -> AsyncLLM:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.shutdown()

    async def start(self) -> None:
        """Loads the checkpoint in a thread and starts the engine; a second call does nothing.

        Calls made meanwhile, on any thread and event loop, wait for the same engine. Cancelling one call does not stop the
        build for the others.
        """
        await self._started()

    async def shutdown(self) -> None:
        """Ends the engine. Calls that still wait raise an `EngineDeadError`; so does fetching a result that was not ready."""
        self._stopped = True
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)

    @names_unknown_arguments
    @copies_arguments
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
            return await self._gather([self._result(p, sampling_params, priority, timeout) for p in prompts])
        return await self._result(prompts, sampling_params, priority, timeout)

    @names_unknown_arguments
    @copies_arguments
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

    @copies_arguments
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
        return await self._result(await self._render(messages, template), sampling_params, priority, timeout)

    @copies_arguments
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
    @copies_arguments
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

        async def limited(prompt: Prompt) -> Result:
            async with places:
                return await self._result(prompt, sampling_params, priority, timeout)

        return await self._gather([limited(p) for p in prompts])

    @names_unknown_arguments
    @copies_arguments
    async def submit_request(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        priority: RequestPriority = RequestPriority.NORMAL,
        *,
        timeout: float | None = None,
    ) -> str:
        """Queues a request and returns its id at once; `get_result` returns its result.

        A bad prompt or a full queue raises here, not in `get_result`.
        """
        engine = await self._started()
        request_id = self._next_id()
        params = self._params(sampling_params, RequestOutputKind.FINAL_ONLY)
        totals = self._totals.begin()
        try:
            future = await engine.submit(request_id, prompt, params, self._order(priority), timeout)
        except BaseException:
            totals.end(None)
            raise
        future.add_done_callback(totals.end_of)
        with self._lock:
            self._submitted[request_id] = future
            self._expire_results()
        return request_id

    async def get_result(self, request_id: str) -> Result:
        """The result of a submitted request, waiting for it; on any thread and in any event loop.

        It can be fetched again until 1,000 younger ones were submitted. Cancelling the wait does
        not cancel the request.

        Raises:
            InvalidParametersError: nothing of that id was submitted, or its result expired.
        """
        check_text("request_id", request_id)
        future = self._submitted.get(request_id)
        if future is None:
            raise InvalidParametersError(
                f"no request {shown(request_id)} is known: it was never submitted here, or its result expired after "
                f"{RESULTS_KEPT} younger ones", parameter="request_id", value=request_id)
        return result_dict(await asyncio.shield(asyncio.wrap_future(future)))

    async def abort(self, request_id: str) -> None:
        """Ends a request; its result has finish_reason "abort". An unknown id is a no-op."""
        if self._engine is not None:
            await self._engine.abort(request_id)

    async def get_stats(self) -> dict[str, Any]:
        """Counts since the start, and current values."""
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
        """`model_name, device, dtype, num_parameters, max_seq_length`; before the start, the planned values."""
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
        trained = read_model_config(find_checkpoint(self.model_name)).derived_max_model_len
        return replace(self._args, max_model_len=min(self._max_seq_length, trained))

    async def _started(self) -> AsyncLLMEngine:
        """The engine, which the first call builds while the others wait.

        The build is a plain future of a thread: an asyncio lock belongs to one event loop, and calls come from many.
        """
        if self._stopped:
            raise EngineDeadError("this AsyncLLM was shut down; make a new one")
        if self._engine is None:
            await asyncio.shield(asyncio.wrap_future(self._start_once()))
        assert self._engine is not None
        return self._engine

    def _start_once(self) -> Future[AsyncLLMEngine]:
        """The build that is under way, or a new one if there is none or it failed."""
        if self._starting is not None and os.getpid() != self._process:
            raise EngineDeadError("this process was forked while its parent started the engine; make an AsyncLLM after the fork")
        with self._lock:
            if self._starting is None or (self._starting.done() and self._starting.exception()):
                self._starting, self._process = Future(), os.getpid()
                self._starting.set_running_or_notify_cancel()
                threading.Thread(target=self._build, args=[self._starting], name="engine-build", daemon=True).start()
            return self._starting

    def _build(self, built: Future[AsyncLLMEngine]) -> None:
        """Builds the engine, and wakes every call that waits for it."""
        try:
            engine = AsyncLLMEngine.from_engine_args(
                self._engine_args(), components=self._components, recorder=self._recorder,
                worker_count=self._worker_count)
            if self._stopped:
                engine.shutdown()
                raise EngineDeadError("this AsyncLLM was shut down while it started; make a new one")
            self._engine, self._totals = engine, Totals()
            built.set_result(engine)
        except BaseException as error:
            built.set_exception(error)

    def _next_id(self) -> str:
        return f"req-{next(self._ids)}"

    @staticmethod
    def _order(priority: RequestPriority) -> int:
        """The scheduler's priority number; the smallest goes first."""
        check_choice("priority", priority, list(RequestPriority))
        return int(RequestPriority.URGENT - priority)

    def _params(self, sampling_params: SamplingParams | None, kind: RequestOutputKind) -> SamplingParams:
        """The parameters of one call: one completion, shown as the call needs it."""
        if sampling_params is None:
            assert self._engine is not None
            defaults = self._engine.engine.config.model.generation_defaults
            return SamplingParams(**{"max_tokens": DEFAULT_MAX_TOKENS, **defaults, "output_kind": kind})
        if not isinstance(sampling_params, SamplingParams):
            raise invalid("sampling_params", sampling_params, "a SamplingParams or None")
        if sampling_params.n != 1:
            raise invalid("n", sampling_params.n, "1: a result dict holds one text; use AsyncLLMEngine for several")
        return sampling_params.clone(output_kind=kind)

    async def _render(self, messages: list[Message], template: dict[str, Any]) -> str:
        engine = await self._started()
        messages, template = own_copy("messages", messages), own_copy("chat_template_kwargs", template)
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

    async def _result(
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
        """Forgets the oldest results beyond `RESULTS_KEPT`; never one that is still being computed."""
        finished = [i for i, future in self._submitted.items() if future.done()]
        for request_id in finished[: max(len(self._submitted) - RESULTS_KEPT, 0)]:
            del self._submitted[request_id]
