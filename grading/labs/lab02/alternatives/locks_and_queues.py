"""Lab 02 with a counter under a lock, anext() instead of `async for`, and workers that fill a list of places.

TODO 2 counts from a time that was read once; TODO 3 passes everything by name; TODO 5 uses asyncio.wait.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from labs.harness.todo import run_lab
from nano_qwen3_serving import AsyncEngineArgs, AsyncLLMEngine, RequestOutput, SamplingParams
from nano_qwen3_serving.observe.trace import Recorder

SINGLE_PROMPT = "Explain async programming in Python"
PROMPTS = ["What is machine learning?", "How does AI work?", "Explain neural networks"]

_STARTED = time.time_ns()
_lock = threading.Lock()
_count = 0


async def create_engine(model: str = "course", max_num_seqs: int = 16) -> AsyncLLMEngine:
    """The engine is built in a thread, so that the event loop stays free while the weights are read."""
    args = AsyncEngineArgs()
    args.model, args.max_num_seqs = model, max_num_seqs
    return await asyncio.to_thread(AsyncLLMEngine.from_engine_args, args)


def new_request_id() -> str:
    """The time of the first call, and a number that only one thread at a time may raise."""
    global _count
    with _lock:
        _count += 1
        return f"req-{_STARTED:x}-{_count:06d}"


def submit_request(
    engine: AsyncLLMEngine, prompt: str, sampling_params: SamplingParams, request_id: str
) -> AsyncGenerator[RequestOutput, None]:
    """The engine's own stream, all arguments by name."""
    return engine.generate(request_id=request_id, sampling_params=sampling_params, prompt=prompt)


async def collect_output(
    stream: AsyncGenerator[RequestOutput, None], on_text: Callable[[str], None] | None = None
) -> RequestOutput:
    """Asks for the next output until there is none."""
    listener = (lambda piece: None) if on_text is None else on_text
    last, length = None, 0
    while True:
        try:
            last = await anext(stream)
        except StopAsyncIteration:
            return last
        piece = last.outputs[0].text[length:]
        length += len(piece)
        if piece:
            listener(piece)


async def serve_one(
    engine: AsyncLLMEngine, prompt: str, sampling_params: SamplingParams, request_id: str
) -> RequestOutput:
    """Submit one request and wait for its last output (this one is written for you)."""
    return await collect_output(submit_request(engine, prompt, sampling_params, request_id))


async def serve_many(
    engine: AsyncLLMEngine, prompts: Sequence[str], sampling_params: SamplingParams
) -> list[RequestOutput]:
    """Each request puts its output into its own place; the first error ends the waiting, and the others."""
    places: list[RequestOutput] = [None] * len(prompts)

    async def fill(index: int) -> None:
        places[index] = await serve_one(engine, prompts[index], sampling_params, new_request_id())

    tasks = [asyncio.ensure_future(fill(index)) for index in range(len(prompts))]
    done, rest = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION) if tasks else ((), ())
    for task in rest:
        task.cancel()
    for task in done:
        task.result()
    return places


async def main() -> None:
    """Serve one prompt, then three at the same time."""
    print("=== vLLM Async Online Serving Lab ===\n")
    print("Initializing AsyncLLMEngine...")
    engine = await create_engine()
    try:
        print("Engine initialized successfully!\n")
        sampling_params = SamplingParams(temperature=0.0, max_tokens=64)
        await show_single_request(engine, sampling_params)
        await show_concurrent_requests(engine, sampling_params)
        await show_three_ways(engine, sampling_params)
    finally:
        engine.shutdown()


async def show_single_request(engine: AsyncLLMEngine, sampling_params: SamplingParams) -> None:
    """Print the answer to one prompt while it is generated."""
    print("Processing single request...")
    request_id = new_request_id()
    print(f"Request ID: {request_id}")
    print(f"Prompt: {SINGLE_PROMPT}")
    print("Generated: ", end="", flush=True)
    stream = submit_request(engine, SINGLE_PROMPT, sampling_params, request_id)
    said = ""

    def show(piece: str) -> None:
        nonlocal said
        piece = piece if said else piece.lstrip()
        said += piece
        print(piece, end="", flush=True)

    await collect_output(stream, on_text=show)
    print("\n")


async def show_concurrent_requests(engine: AsyncLLMEngine, sampling_params: SamplingParams) -> None:
    """Print how long three prompts take together."""
    print("Processing concurrent requests...")
    started = time.perf_counter()
    outputs = await serve_many(engine, PROMPTS, sampling_params)
    seconds = time.perf_counter() - started
    for number, output in enumerate(outputs, start=1):
        print(f"Request {number} ({output.request_id}): {'Complete' if output.finished else 'Incomplete'}")
    print(f"\nAll {len(outputs)} requests completed in {seconds:.2f} seconds")
    print(f"Throughput: {len(outputs) / seconds:.2f} requests/second")


async def show_three_ways(engine: AsyncLLMEngine, sampling_params: SamplingParams) -> None:
    """Print what the same prompts take one after the other, at the same time, and where only one may run."""
    print(f"\nThe same {len(PROMPTS)} prompts in three ways")
    await show_way("one after the other", one_by_one, engine, sampling_params)
    await show_way("at the same time", serve_many, engine, sampling_params)
    narrow = await create_engine("course", 1)
    try:
        await show_way("at the same time, max_num_seqs=1", serve_many, narrow, sampling_params)
    finally:
        narrow.shutdown()


async def one_by_one(
    engine: AsyncLLMEngine, prompts: Sequence[str], sampling_params: SamplingParams
) -> list[RequestOutput]:
    """What many a first attempt at serve_many() does: right answers, each awaited before the next is asked for."""
    return [await serve_one(engine, prompt, sampling_params, new_request_id()) for prompt in prompts]


async def show_way(name: str, serve: Callable, engine: AsyncLLMEngine, sampling_params: SamplingParams) -> None:
    """Print what one way takes; this engine's flight recorder counts the steps."""
    engine.engine.recorder = recorder = Recorder()
    started = time.perf_counter()
    outputs = await serve(engine, PROMPTS, sampling_params)
    seconds = time.perf_counter() - started
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    print(f"  {name:34}{seconds:.2f} seconds, {tokens / len(recorder.steps):.2f} tokens a step")


if __name__ == "__main__":
    run_lab(main)
