"""Lab 02: serve prompts online with AsyncLLMEngine.

Read README.md first; it has the contract of each TODO. Check your work: pytest test_lab.py
What you write runs on vLLM, too: write `vllm` for `nano_qwen3_serving` in the import line. The program's last part counts
steps with this engine's flight recorder, which vLLM lacks.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence

from labs.harness.todo import run_lab
from nano_qwen3_serving import AsyncEngineArgs, AsyncLLMEngine, RequestOutput, SamplingParams
from nano_qwen3_serving.observe.trace import Recorder

SINGLE_PROMPT = "Explain async programming in Python"
PROMPTS = ["What is machine learning?", "How does AI work?", "Explain neural networks"]


async def create_engine(model: str = "course", max_num_seqs: int = 16) -> AsyncLLMEngine:
    """An engine that serves `model` and runs at most `max_num_seqs` requests at once.

    Raises what the engine raises, for example `ModelLoadError` for a model that is not there.
    """
    # TODO 1: describe the engine with AsyncEngineArgs, then build it from them
    ### BEGIN SOLUTION
    engine_args = AsyncEngineArgs(model=model, max_num_seqs=max_num_seqs)
    return AsyncLLMEngine.from_engine_args(engine_args)
    ### END SOLUTION


def new_request_id() -> str:
    """`"req-"` and at least four letters, digits or hyphens; never the same twice, from any thread."""
    # TODO 2: make an id that no other request has
    ### BEGIN SOLUTION
    return f"req-{uuid.uuid4().hex[:12]}"
    ### END SOLUTION


def submit_request(
    engine: AsyncLLMEngine, prompt: str, sampling_params: SamplingParams, request_id: str
) -> AsyncGenerator[RequestOutput, None]:
    """Hand one request to the engine; return the stream of its outputs without waiting for any.

    Each output holds all text generated so far; the last one has `finished == True`.
    """
    # TODO 3: submit the request with the engine's generate() and return its stream
    ### BEGIN SOLUTION
    return engine.generate(prompt, sampling_params, request_id)
    ### END SOLUTION


async def collect_output(
    stream: AsyncGenerator[RequestOutput, None], on_text: Callable[[str], None] | None = None
) -> RequestOutput:
    """Read `stream` to its end and return its last output.

    If `on_text` is given, it is called with each new piece of text as soon as it arrives; the
    pieces joined are the whole text. What the stream raises reaches the caller.
    """
    # TODO 4: iterate over the stream to its end; pass on new text, return the last output
    ### BEGIN SOLUTION
    shown = 0
    async for output in stream:
        text = output.outputs[0].text
        if on_text is not None and len(text) > shown:
            on_text(text[shown:])
            shown = len(text)
    return output
    ### END SOLUTION


async def serve_one(
    engine: AsyncLLMEngine, prompt: str, sampling_params: SamplingParams, request_id: str
) -> RequestOutput:
    """Submit one request and wait for its last output (this one is written for you)."""
    return await collect_output(submit_request(engine, prompt, sampling_params, request_id))


async def serve_many(
    engine: AsyncLLMEngine, prompts: Sequence[str], sampling_params: SamplingParams
) -> list[RequestOutput]:
    """Serve all prompts at the same time, each under an id of its own.

    Returns their last outputs in the order of `prompts`. If a request fails, its error reaches the
    caller.
    """
    # TODO 5: start one serve_one() per prompt and wait for all of them with asyncio.gather()
    ### BEGIN SOLUTION
    return await asyncio.gather(
        *(serve_one(engine, prompt, sampling_params, new_request_id()) for prompt in prompts)
    )
    ### END SOLUTION


async def main() -> None:
    """Serve one prompt, then three at the same time, then the three in three ways."""
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
