"""Wrong solutions of Lab 02, each a mistake somebody makes. This file is read, never imported.

`todo_5_one_after_the_other` takes the place of TODO 5's function in the solution; what it says of
itself is its name, and some test of TODO 5 must fail.
"""
# ruff: noqa: F821


async def todo_1_ignores_how_many_may_run(model="course", max_num_seqs=16):
    return AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model=model))


async def todo_1_ignores_the_model(model="course", max_num_seqs=16):
    return AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="course", max_num_seqs=max_num_seqs))


async def todo_1_returns_the_arguments(model="course", max_num_seqs=16):
    return AsyncEngineArgs(model=model, max_num_seqs=max_num_seqs)


async def todo_1_swallows_the_load_error(model="course", max_num_seqs=16):
    try:
        return AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model=model, max_num_seqs=max_num_seqs))
    except Exception:
        return None


def todo_2_is_constant():
    return "req-1234"


def todo_2_takes_four_random_digits():
    import random

    return f"req-{random.randint(1000, 9999)}"


def todo_2_takes_the_clock():
    return f"req-{int(time.time() * 1000)}"


def todo_2_forgets_the_prefix():
    return uuid.uuid4().hex


def todo_2_counts_without_a_lock():
    number = getattr(new_request_id, "number", 0)
    new_request_id.number = number + 1
    return f"req-{number:06d}"


def todo_3_has_one_id_for_all(engine, prompt, sampling_params, request_id):
    return engine.generate(prompt, sampling_params, "req-1")


def todo_3_has_parameters_of_its_own(engine, prompt, sampling_params, request_id):
    return engine.generate(prompt, SamplingParams(temperature=0.0), request_id)


def todo_3_swaps_prompt_and_id(engine, prompt, sampling_params, request_id):
    return engine.generate(request_id, sampling_params, prompt)


def todo_3_collects_before_it_yields(engine, prompt, sampling_params, request_id):
    async def last_output():
        async for output in engine.generate(prompt, sampling_params, request_id):
            pass
        yield output

    return last_output()


def todo_3_yields_when_all_is_there(engine, prompt, sampling_params, request_id):
    async def replayed():
        for output in [output async for output in engine.generate(prompt, sampling_params, request_id)]:
            yield output

    return replayed()


async def todo_3_awaits_the_stream(engine, prompt, sampling_params, request_id):
    return await engine.generate(prompt, sampling_params, request_id)


async def todo_4_returns_the_first_output(stream, on_text=None):
    async for output in stream:
        if on_text:
            on_text(output.outputs[0].text)
        return output


async def todo_4_stops_before_the_end(stream, on_text=None):
    shown = 0
    async for output in stream:
        text = output.outputs[0].text
        if on_text and len(text) > shown:
            on_text(text[shown:])
            shown = len(text)
        if len(output.outputs[0].token_ids) >= 5:
            break
    return output


async def todo_4_passes_the_whole_text_on_each_time(stream, on_text=None):
    async for output in stream:
        if on_text:
            on_text(output.outputs[0].text)
    return output


async def todo_4_passes_text_on_only_at_the_end(stream, on_text=None):
    async for output in stream:
        pass
    if on_text:
        on_text(output.outputs[0].text)
    return output


async def todo_4_returns_what_is_new_instead_of_all(stream, on_text=None):
    shown = ""
    async for output in stream:
        text = output.outputs[0].text
        output.outputs[0].text = text[len(shown) :]
        if on_text and output.outputs[0].text:
            on_text(output.outputs[0].text)
        shown = text
    return output


async def todo_4_returns_a_string(stream, on_text=None):
    async for output in stream:
        pass
    return output.outputs[0].text


async def todo_4_swallows_the_error(stream, on_text=None):
    shown, output = 0, None
    try:
        async for output in stream:
            text = output.outputs[0].text
            if on_text and len(text) > shown:
                on_text(text[shown:])
                shown = len(text)
    except Exception:
        pass
    return output


async def todo_4_needs_a_listener(stream, on_text=None):
    shown = 0
    async for output in stream:
        text = output.outputs[0].text
        if len(text) > shown:
            on_text(text[shown:])
            shown = len(text)
    return output


async def todo_4_takes_the_old_text_out(stream, on_text=None):
    shown = ""
    async for output in stream:
        text = output.outputs[0].text
        piece = text.replace(shown, "") if shown else text
        if on_text and piece:
            on_text(piece)
        shown = text
    return output


async def todo_4_passes_empty_pieces_on(stream, on_text=None):
    shown = 0
    async for output in stream:
        text = output.outputs[0].text
        if on_text:
            on_text(text[shown:])
        shown = len(text)
    return output


async def todo_5_one_after_the_other(engine, prompts, sampling_params):
    return [await serve_one(engine, prompt, sampling_params, new_request_id()) for prompt in prompts]


async def todo_5_two_at_a_time(engine, prompts, sampling_params):
    done = []
    for first in range(0, len(prompts), 2):
        pair = prompts[first : first + 2]
        done += await asyncio.gather(*(serve_one(engine, p, sampling_params, new_request_id()) for p in pair))
    return done


async def todo_5_awaits_each_before_it_gathers(engine, prompts, sampling_params):
    async def done(output):
        return output

    outputs = [await serve_one(engine, p, sampling_params, new_request_id()) for p in prompts]
    return await asyncio.gather(*map(done, outputs))


async def todo_5_constant_ids(engine, prompts, sampling_params):
    return await asyncio.gather(*(serve_one(engine, p, sampling_params, "req-1") for p in prompts))


async def todo_5_one_id_for_all(engine, prompts, sampling_params):
    request_id = new_request_id()
    return await asyncio.gather(*(serve_one(engine, p, sampling_params, request_id) for p in prompts))


async def todo_5_in_the_order_of_finishing(engine, prompts, sampling_params):
    tasks = [asyncio.create_task(serve_one(engine, p, sampling_params, new_request_id())) for p in prompts]
    return [await task for task in asyncio.as_completed(tasks)]


async def todo_5_returns_errors_as_results(engine, prompts, sampling_params):
    requests = (serve_one(engine, p, sampling_params, new_request_id()) for p in prompts)
    return await asyncio.gather(*requests, return_exceptions=True)


async def todo_5_leaves_out_what_failed(engine, prompts, sampling_params):
    requests = (serve_one(engine, p, sampling_params, new_request_id()) for p in prompts)
    done = await asyncio.gather(*requests, return_exceptions=True)
    return [output for output in done if not isinstance(output, Exception)]


async def todo_5_blocks_the_event_loop(engine, prompts, sampling_params):
    tasks = [asyncio.create_task(serve_one(engine, p, sampling_params, new_request_id())) for p in prompts]
    while not all(task.done() for task in tasks):
        time.sleep(0.01)
        await asyncio.sleep(0)
    return [task.result() for task in tasks]


async def todo_5_waits_for_a_thread_on_the_event_loop(engine, prompts, sampling_params):
    from concurrent.futures import ThreadPoolExecutor

    def work():
        async def everything():
            return await asyncio.gather(*(serve_one(engine, p, sampling_params, new_request_id()) for p in prompts))

        return asyncio.run(everything())

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


async def todo_5_makes_an_engine_for_each_request(engine, prompts, sampling_params):
    engines = [await create_engine("course-draft") for _ in prompts]
    try:
        pairs = zip(engines, prompts, strict=True)
        return await asyncio.gather(*(serve_one(own, p, sampling_params, new_request_id()) for own, p in pairs))
    finally:
        for own in engines:
            own.shutdown()


async def todo_5_serves_each_different_prompt_once(engine, prompts, sampling_params):
    tasks = {p: asyncio.create_task(serve_one(engine, p, sampling_params, new_request_id())) for p in prompts}
    await asyncio.gather(*tasks.values())
    return [task.result() for task in tasks.values()]


async def todo_5_numbers_its_requests_from_zero(engine, prompts, sampling_params):
    requests = (serve_one(engine, p, sampling_params, f"req-{i:04d}") for i, p in enumerate(prompts))
    return await asyncio.gather(*requests)


async def todo_5_raises_a_group(engine, prompts, sampling_params):
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(serve_one(engine, p, sampling_params, new_request_id())) for p in prompts]
    return [task.result() for task in tasks]


async def todo_5_does_not_await_gather(engine, prompts, sampling_params):
    return asyncio.gather(*(serve_one(engine, p, sampling_params, new_request_id()) for p in prompts))
