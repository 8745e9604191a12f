"""One `AsyncLLM` or `AsyncLLMEngine` for all threads, event loops and processes of a program."""

import asyncio
import os
import threading

import pytest

from nano_qwen3_serving import AsyncEngineArgs, AsyncLLM, AsyncLLMEngine, SamplingParams
from nano_qwen3_serving.exceptions import EngineDeadError, ModelLoadError, QueueFullError
from nano_qwen3_serving.testing.doubles import StepGate, continued_text, double_components

PARAMS = SamplingParams(temperature=0, max_tokens=6)


def async_llm(**kwargs):
    made = []

    def tokenizer(config):
        made.append(threading.current_thread().name)
        return double_components().tokenizer(config)

    llm = AsyncLLM(num_blocks=65, block_size=4, components=double_components(tokenizer=tokenizer, **kwargs))
    return llm, made


def in_threads(count, function):
    """What `function(i)` returns or raises in each of so many threads, by number."""
    seen = {}

    def run(i):
        try:
            seen[i] = function(i)
        except BaseException as error:
            seen[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread waits for ever"
    return seen


def test_threads_with_event_loops_of_their_own_start_one_engine_and_all_are_answered():
    llm, made = async_llm()
    seen = in_threads(8, lambda i: asyncio.run(llm.generate(f"hi {i}", PARAMS))["generated_text"])
    assert seen == {i: continued_text(f"hi {i}", 6) for i in range(8)}
    assert made == ["engine-build"]
    stats = asyncio.run(llm.get_stats())
    assert stats["async_stats"]["completed_async_requests"] == 8
    assert stats["memory_stats"]["num_free_blocks"] == 64
    asyncio.run(llm.shutdown())


def test_a_result_is_submitted_in_one_event_loop_and_fetched_in_others():
    llm, _ = async_llm()
    name = asyncio.run(llm.submit_request("hello", PARAMS))
    seen = in_threads(4, lambda i: asyncio.run(llm.get_result(name))["generated_text"])
    assert seen == dict.fromkeys(range(4), continued_text("hello", 6))
    asyncio.run(llm.shutdown())
    assert asyncio.run(llm.get_result(name))["generated_text"] == continued_text("hello", 6)
    with pytest.raises(EngineDeadError):
        asyncio.run(llm.submit_request("hello", PARAMS))


def test_a_result_that_was_not_ready_at_shutdown_is_an_error_and_never_a_wait():
    gate = StepGate()
    llm, _ = async_llm(on_forward=lambda contexts: gate())
    name = asyncio.run(llm.submit_request("hello", SamplingParams(temperature=0, max_tokens=50)))
    opens = threading.Timer(0.2, gate.open)
    opens.start()
    asyncio.run(llm.shutdown())
    opens.join()
    try:
        result = asyncio.run(asyncio.wait_for(llm.get_result(name), 20))
        assert result["tokens_generated"] == 50  # the step it was in was its last
    except EngineDeadError:
        pass


def test_a_failed_build_fails_for_every_waiting_caller_and_the_next_one_tries_again():
    broken = [True]

    def tokenizer(config):
        if broken[0]:
            raise ModelLoadError("no tokenizer today")
        return double_components().tokenizer(config)

    llm = AsyncLLM(num_blocks=33, block_size=4, components=double_components(tokenizer=tokenizer))
    seen = in_threads(3, lambda i: asyncio.run(llm.generate("hi", PARAMS)))
    assert {str(e) for e in seen.values()} == {"no tokenizer today"}
    broken[0] = False
    assert asyncio.run(llm.generate("hi", PARAMS))["generated_text"] == continued_text("hi", 6)
    asyncio.run(llm.shutdown())


async def test_who_gives_up_waiting_for_the_start_leaves_the_others_their_engine():
    entered, go_on = threading.Event(), threading.Event()

    def tokenizer(config):
        entered.set()
        assert go_on.wait(20)
        return double_components().tokenizer(config)

    llm = AsyncLLM(num_blocks=33, block_size=4, components=double_components(tokenizer=tokenizer))
    first, second = (asyncio.create_task(llm.generate("hi", PARAMS)) for _ in range(2))
    await asyncio.to_thread(entered.wait, 20)
    first.cancel()
    await asyncio.wait([first])
    go_on.set()
    assert (await second)["generated_text"] == continued_text("hi", 6)
    await llm.shutdown()


def test_streams_of_many_loops_are_counted_once_each():
    llm, _ = async_llm()

    async def read(i):
        return [chunk["token"] async for chunk in llm.generate_stream(f"{i}", PARAMS)]

    seen = in_threads(6, lambda i: "".join(asyncio.run(read(i))))
    assert seen == {i: continued_text(f"{i}", 6) for i in range(6)}
    totals = asyncio.run(llm.get_stats())["async_stats"]
    assert (totals["total_async_requests"], totals["completed_async_requests"], totals["failed_async_requests"]) == (6, 6, 0)
    asyncio.run(llm.shutdown())


def test_submitted_requests_that_do_not_fit_are_refused_on_any_thread():
    gate = StepGate()
    llm = AsyncLLM(num_blocks=33, block_size=4, max_queue_size=2, components=double_components(on_forward=lambda c: gate()))
    seen = in_threads(8, lambda i: asyncio.run(llm.submit_request(f"{i}", PARAMS)))
    gate.open()
    names = [name for name in seen.values() if isinstance(name, str)]
    assert all(isinstance(e, str | QueueFullError) for e in seen.values()) and len(names) >= 2
    for name in names:
        assert asyncio.run(llm.get_result(name))["tokens_generated"] == 6
    assert asyncio.run(llm.get_stats())["queue_size"] == 0
    asyncio.run(llm.shutdown())


# --- fork

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def in_a_fork(function):
    """What `function()` says in a child: its text, or the error's name. A child that hangs fails the test."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = function()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, str(said).encode())
        os._exit(0)
    os.close(writer)
    watchdog = threading.Timer(30, lambda: os.kill(child, 9))
    watchdog.start()
    with os.fdopen(reader, encoding="utf-8") as file:
        said = file.read()
    watchdog.cancel()
    os.waitpid(child, 0)
    return said


CALLS = {
    "generate": lambda e: asyncio.run(anext(e.generate("hi", PARAMS, "r"))),
    "add_request": lambda e: asyncio.run(e.add_request("r", "hi", PARAMS)),
    "check_health": lambda e: asyncio.run(e.check_health()),
    "get_stats": lambda e: asyncio.run(e.get_stats()),
    "reset_prefix_cache": lambda e: asyncio.run(e.reset_prefix_cache()),
    "run_text": lambda e: asyncio.run(e.run_text(len, "abc")),
}


@pytest.mark.share(1)
@needs_fork
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("held", [False, True], ids=["idle", "its locks held"])
def test_a_forked_child_is_told_at_once_that_the_engine_stayed_behind(call, held):
    engine = AsyncLLMEngine.from_engine_args(
        AsyncEngineArgs("course", num_gpu_blocks_override=33, block_size=4), components=double_components())
    if held:
        engine._steps._wakeup.acquire(), engine._lock.acquire(), engine.waiting_room._lock.acquire()
    try:
        assert in_a_fork(lambda: CALLS[call](engine)).startswith("EngineDeadError: the engine runs in process")
        assert in_a_fork(lambda: (engine.is_running, engine.errored, engine.is_stopped)) == "(False, True, True)"
        assert in_a_fork(lambda: (asyncio.run(engine.abort("r")), engine.shutdown(), engine.shutdown(5))) == "(None, None, None)"
    finally:
        if held:
            engine._steps._wakeup.release(), engine._lock.release(), engine.waiting_room._lock.release()

    async def read():
        return [o async for o in engine.generate("hi", PARAMS, "r")][-1].outputs[0].text

    assert asyncio.run(read()) == continued_text("hi", 6)  # the parent goes on
    engine.shutdown()


@needs_fork
def test_an_async_llm_started_before_a_fork_says_so_and_another_starts_in_the_child():
    started, _ = async_llm()
    asyncio.run(started.generate("hi", PARAMS))
    unused, _ = async_llm()
    for call in (lambda: asyncio.run(started.generate("hi", PARAMS)), lambda: asyncio.run(started.submit_request("hi", PARAMS)),
                 lambda: asyncio.run(started.get_stats()), lambda: asyncio.run(anext(started.generate_stream("hi", PARAMS)))):
        assert in_a_fork(call).startswith("EngineDeadError: the engine runs in process")
    assert in_a_fork(lambda: asyncio.run(unused.generate("hi", PARAMS))["generated_text"]) == continued_text("hi", 6)
    assert asyncio.run(started.generate("hi", PARAMS))["generated_text"] == continued_text("hi", 6)
    asyncio.run(started.shutdown())


@needs_fork
def test_a_fork_while_the_engine_is_built_does_not_wait_for_it():
    entered, go_on = threading.Event(), threading.Event()

    def tokenizer(config):
        entered.set()
        go_on.wait(20)
        return double_components().tokenizer(config)

    llm = AsyncLLM(num_blocks=33, block_size=4, components=double_components(tokenizer=tokenizer))
    first = threading.Thread(target=lambda: asyncio.run(llm.start()), daemon=True)
    first.start()
    entered.wait(20)
    assert in_a_fork(lambda: asyncio.run(llm.start())).startswith("EngineDeadError: this process was forked")
    go_on.set()
    first.join(20)
    asyncio.run(llm.shutdown())
