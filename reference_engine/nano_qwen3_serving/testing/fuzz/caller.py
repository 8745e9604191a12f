"""One caller of the engine under test: how it submits, reads and gives up, and what it got.

An eager caller reads all the time. A slow one reads when an operation says so, and between two
reads no task of its exists, so that its stream can be closed, or dropped without a word.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator
from typing import Any

from nano_qwen3_serving.outputs import CompletionOutput, RequestOutput
from nano_qwen3_serving.sampling_params import RequestOutputKind, SamplingParams
from nano_qwen3_serving.testing.fuzz.episode import Operation

caller_of_task: contextvars.ContextVar[Caller | None] = contextvars.ContextVar("caller", default=None)


class Caller:
    """A request's client. Its methods are called on its own event loop.

    Attributes:
        submitted: set when the engine has the request, or has refused it.
        outcome: None while it waits; "finished", "gone", or "error".
        ended_at, ended_time: the driver's step number and the engine's time at that moment.
        abort_wanted: an operation aborted a request of its id while it was in flight.
        may_fail: a step that failed for good had it in its batch.
    """

    def __init__(self, op: Operation, prompt: Any, params: SamplingParams, prompt_token_ids: list[int]) -> None:
        self.op = op
        self.prompt = prompt
        self.params = params
        self.prompt_token_ids = prompt_token_ids
        self.submitted = asyncio.Event()
        self.outputs: list[RequestOutput] = []
        self.error: BaseException | None = None
        self.outcome: str | None = None
        self.ended_at: int | None = None
        self.ended_time = 0.0
        self.abort_wanted = False
        self.may_fail = False
        self.deadline: float | None = None
        self.task: asyncio.Task[None] | None = None
        self._stream: AsyncGenerator[RequestOutput, None] | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return f"request {self.op['key']} (id {self.op['id']!r})"

    @property
    def running(self) -> bool:
        """Whether one of its tasks waits for the engine."""
        return self.task is not None and not self.task.done()

    async def start(self, engine: Any, wait: bool = True) -> None:
        """Submits, in a task; an eager caller goes on reading in it. With `wait`, until it is submitted."""
        context = contextvars.copy_context()
        context.run(caller_of_task.set, self)
        self.task = asyncio.create_task(self._guarded(self._submit(engine)), name=self.name, context=context)
        if wait:
            await self.submitted.wait()

    async def fetch(self) -> None:
        """Reads one output, in a task, unless it is reading already."""
        if self.outcome is None and not self.running and self._stream is not None:
            self.task = asyncio.create_task(self._guarded(self._read(once=True)), name=self.name)

    async def vanish(self, how: str) -> None:
        """Gives up: cancels its task if there is one, else closes its stream or just forgets it."""
        if self.outcome is not None:
            return
        if self.task is not None and self.running:
            self.task.cancel()
        elif how == "drop":
            self._stream, self.outcome = None, "gone"
        else:
            self.task = asyncio.create_task(self._guarded(self._close()), name=self.name)

    async def _submit(self, engine: Any) -> None:
        op = self.op
        more = {"priority": op["priority"], "timeout": op["timeout"]}
        if op["via"] == "generate":
            self._stream = engine.generate(self.prompt, self.params, op["id"], **more)
        else:
            self._stream = await engine.add_request(op["id"], self.prompt, self.params, **more)
        if op["eager"] or op["via"] == "generate":
            await self._read(once=not op["eager"])

    async def _read(self, once: bool) -> None:
        stream = self._stream
        while stream is not None and self.outcome is None:
            try:
                self.outputs.append(await anext(stream))
            except StopAsyncIteration:
                self.outcome = "finished"
            if once:
                return

    async def _close(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()
        self.outcome = "gone"

    async def _guarded(self, work: Any) -> None:
        """Runs `work`; however it ends, the outcome says so."""
        try:
            await work
        except asyncio.CancelledError:
            self.outcome = "gone"
        except Exception as error:
            self.error, self.outcome = error, "error"
        finally:
            self.submitted.set()

    async def end(self) -> None:
        """Ends its task, whatever it was doing."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])

    def completions(self, last: RequestOutput | None = None) -> list[CompletionOutput]:
        """Its completions, from its outputs and `last`: deltas joined, otherwise the latest output of each."""
        outputs = self.outputs if last is None else [*self.outputs, last]
        if not outputs:
            return []
        whole = outputs[0]
        for output in outputs[1:]:
            whole = whole.merged(output, deltas=self.params.output_kind is RequestOutputKind.DELTA)
        return whole.outputs
