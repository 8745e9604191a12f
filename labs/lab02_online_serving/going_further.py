"""Lab 02, Going Further: one way to do each of the five extensions. Nothing here is worth points.

Write your own in starter.py under the same names, and `pytest test_lab.py -k optional` tests yours.
"""

import asyncio
import uuid
from collections.abc import Sequence

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from nano_qwen3_serving import AsyncLLMEngine, RequestOutput, SamplingParams
from nano_qwen3_serving.exceptions import InvalidParametersError, RequestTimeoutError


async def serve_until(
    engine: AsyncLLMEngine, prompt: str, sampling_params: SamplingParams, request_id: str, cancel: asyncio.Event
) -> RequestOutput:
    """1. Cancellation: the last output, with finish_reason "abort" if `cancel` was set in time."""

    async def abort_when_told() -> None:
        await cancel.wait()
        await engine.abort(request_id)

    watcher = asyncio.create_task(abort_when_told())
    try:
        async for output in engine.generate(prompt, sampling_params, request_id):
            last = output
        return last
    finally:
        watcher.cancel()


async def serve_by_priority(
    engine: AsyncLLMEngine, jobs: Sequence[tuple[str, int]], sampling_params: SamplingParams
) -> list[RequestOutput]:
    """2. Priorities: (prompt, priority) jobs together; the smaller number goes first.

    The engine is one with `scheduling_policy="priority"`.
    """

    async def serve(prompt: str, priority: int) -> RequestOutput:
        request_id = f"req-{uuid.uuid4().hex[:12]}"
        async for output in engine.generate(prompt, sampling_params, request_id, priority=priority):
            last = output
        return last

    return await asyncio.gather(*(serve(prompt, priority) for prompt, priority in jobs))


async def serve_within(
    engine: AsyncLLMEngine, prompt: str, sampling_params: SamplingParams, seconds: float
) -> RequestOutput | None:
    """3. Timeouts: the last output, or what there was of it when `seconds` had passed."""
    request_id = f"req-{uuid.uuid4().hex[:12]}"
    try:
        async for output in engine.generate(prompt, sampling_params, request_id, timeout=seconds):
            last = output
        return last
    except RequestTimeoutError as error:
        return error.partial


class GenerateRequest(BaseModel):
    """The body of `POST /generate`."""

    prompt: str
    max_tokens: int = 32
    stream: bool = False


def create_app(engine: AsyncLLMEngine) -> FastAPI:
    """4. A web service: `POST /generate` answers with `{"request_id", "text"}`, or streams plain text.

    Try it: put `app = create_app(engine)` into a file and start it with `uvicorn`.
    """
    app = FastAPI()

    @app.post("/generate")
    async def generate(body: GenerateRequest):
        request_id = f"req-{uuid.uuid4().hex[:12]}"
        try:
            params = SamplingParams(temperature=0.0, max_tokens=body.max_tokens)
            stream = engine.generate(body.prompt, params, request_id)
            first = await anext(stream)
        except InvalidParametersError as error:
            raise HTTPException(status_code=400, detail=str(error)) from error
        if body.stream:
            return StreamingResponse(text_pieces(first, stream), media_type="text/plain")
        last = first
        async for output in stream:
            last = output
        return {"request_id": request_id, "text": last.outputs[0].text}

    return app


async def text_pieces(first: RequestOutput, stream):
    """The new text of each output, the first one's too."""
    shown = first.outputs[0].text
    yield shown
    async for output in stream:
        text = output.outputs[0].text
        yield text[len(shown) :]
        shown = text


def queue_depths(steps: Sequence[dict]) -> list[tuple[int, int]]:
    """5a. Monitoring: how many requests were (running, waiting) in each step of a `Recorder`."""
    return [(len(step["running"]), len(step["waiting"])) for step in steps]


def times(output: RequestOutput) -> dict[str, float]:
    """5b. Monitoring: where one request's seconds went."""
    metrics = output.metrics
    return {
        "waiting": metrics.scheduled_ts - metrics.arrival_time,
        "to_first_token": metrics.first_token_ts - metrics.arrival_time,
        "generating": metrics.last_token_ts - metrics.first_token_ts,
        "total": metrics.last_token_ts - metrics.arrival_time,
    }
