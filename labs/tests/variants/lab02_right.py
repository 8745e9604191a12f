"""Right solutions of Lab 02 that are built differently from ours. This file is read, never imported."""
# ruff: noqa: F821


async def todo_1_sets_more_than_was_asked(model="course", max_num_seqs=16):
    args = AsyncEngineArgs(model, max_num_seqs=max_num_seqs, enable_prefix_caching=False)
    engine = AsyncLLMEngine.from_engine_args(args, start_engine_loop=False)
    await engine.check_health()
    return engine


def todo_2_counts(numbers=__import__("itertools").count(1000)):  # noqa: B008
    return f"req-{next(numbers)}"


async def todo_3_is_itself_an_async_generator(engine, prompt, sampling_params, request_id):
    async for output in engine.generate(prompt, sampling_params, request_id=request_id):
        yield output


async def todo_4_keeps_what_was_said(stream, on_text=None):
    said, last = "", None
    async for last in stream:
        new = last.outputs[0].text.removeprefix(said)
        said += new
        if on_text is not None and new != "":
            on_text(new)
    assert last is not None
    return last


async def todo_5_awaits_tasks(engine, prompts, sampling_params):
    tasks = []
    for prompt in prompts:
        tasks.append(asyncio.create_task(serve_one(engine, prompt, sampling_params, new_request_id())))
    try:
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
