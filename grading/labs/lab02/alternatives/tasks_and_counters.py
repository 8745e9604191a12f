"""Lab 02 with a shared counter for ids, a stream that is an async generator of its own, and tasks that are awaited in order.

TODO 1 sets more than was asked for; TODO 4 remembers the text that was said instead of its length.
"""

import itertools

_numbers = itertools.count(1000)


async def create_engine(model: str = "course", max_num_seqs: int = 16) -> AsyncLLMEngine:
    """An engine whose loop starts with its first request."""
    args = AsyncEngineArgs(model, max_num_seqs=max_num_seqs, enable_prefix_caching=False)
    engine = AsyncLLMEngine.from_engine_args(args, start_engine_loop=False)
    await engine.check_health()
    return engine


def new_request_id() -> str:
    """next() on a count is one instruction: no other thread gets in between."""
    return f"req-{next(_numbers)}"


async def submit_request(
    engine: AsyncLLMEngine, prompt: str, sampling_params: SamplingParams, request_id: str
) -> AsyncGenerator[RequestOutput, None]:
    """An async generator, which is a stream as well: nothing happens before it is iterated over."""
    async for output in engine.generate(prompt, sampling_params, request_id=request_id):
        yield output


async def collect_output(
    stream: AsyncGenerator[RequestOutput, None], on_text: Callable[[str], None] | None = None
) -> RequestOutput:
    """The last output; what was said before is a prefix of what is said now."""
    said, last = "", None
    async for last in stream:
        new = last.outputs[0].text.removeprefix(said)
        said += new
        if on_text is not None and new != "":
            on_text(new)
    assert last is not None
    return last


async def serve_many(
    engine: AsyncLLMEngine, prompts: Sequence[str], sampling_params: SamplingParams
) -> list[RequestOutput]:
    """One task per prompt; the tasks run while the first of them is awaited."""
    tasks = []
    for prompt in prompts:
        tasks.append(asyncio.create_task(serve_one(engine, prompt, sampling_params, new_request_id())))
    try:
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
