"""Threads, event loops, interleavings and faults: everyone is answered, and nothing is left behind.

Time and interleaving are the test's own: the engine's clock is a `ManualClock`, and a `StepGate`
holds the step thread. Every test ends in `serving`, which checks that no block, place in the queue,
task or thread is left; everything is under its time limit, so that a waiter that hangs is a failure.
"""

import asyncio
import contextlib
import gc
import random
import threading
import time
import weakref

import pytest

from nano_qwen3_serving import AsyncEngineArgs, AsyncLLM, AsyncLLMEngine, RequestPriority, SamplingParams
from nano_qwen3_serving.exceptions import (
    EngineDeadError,
    GenerationError,
    QueueFullError,
    RequestTimeoutError,
)
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.sampling_params import RequestOutputKind
from nano_qwen3_serving.scheduling.block_manager import BlockManager
from nano_qwen3_serving.scheduling.scheduler import Scheduler
from nano_qwen3_serving.testing.doubles import (
    ManualClock,
    StepGate,
    continued_text,
    double_components,
    serving,
)
from nano_qwen3_serving.text.detokenizer import make_detokenizer

CUMULATIVE, DELTA, FINAL = RequestOutputKind.CUMULATIVE, RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY
LIMIT = 30.0


def greedy(max_tokens=8, **kwargs):
    return SamplingParams(temperature=0, max_tokens=max_tokens, **kwargs)


async def collect(stream):
    return [output async for output in stream]


async def text_of(stream):
    """The whole text of a stream of any kind."""
    text, output = "", None
    async for output in stream:
        text += output.outputs[0].text
        if output.outputs[0].text.startswith(text):
            text = output.outputs[0].text
    return output.outputs[0].text


def ask(server, prompt, max_tokens=8, **kwargs):
    """A task that gets the text of one request, named after its prompt."""
    return asyncio.create_task(text_of(server.generate(prompt, greedy(max_tokens), prompt, **kwargs)), name=prompt)


# --- abort and cancellation, at every point of a request's life


@pytest.mark.parametrize("kind", [CUMULATIVE, DELTA, FINAL])
@pytest.mark.parametrize("step", range(12))
async def test_an_abort_at_any_step_ends_the_request_and_nobody_else(step, kind):
    gate = StepGate()
    async with serving(gate=gate, max_num_batched_tokens=8, max_num_seqs=4) as server:
        prompt = "several chunks long"
        stream = await server.add_request("A", prompt, greedy(6, output_kind=kind))  # 3 steps of prefill, 6 tokens
        neighbour = ask(server, "hi", 30)
        await gate.at_step(step)
        await server.abort("A")
        gate.open()
        outputs = await collect(stream)
        reason = outputs[-1].outputs[0].finish_reason
        assert reason == "abort" or (reason == "length" and step >= 7)
        joined = "".join(o.outputs[0].text for o in outputs) if kind is DELTA else outputs[-1].outputs[0].text
        assert continued_text(prompt, 6).startswith(joined)
        assert [o.finished for o in outputs] == [False] * (len(outputs) - 1) + [True]
        assert await neighbour == continued_text("hi", 30)
        await server.abort("A")  # it is over: nothing happens


@pytest.mark.parametrize("kind", [DELTA, FINAL])
@pytest.mark.parametrize("step", range(9))
async def test_a_cancellation_at_any_step_frees_the_request(step, kind):
    gate = StepGate()
    async with serving(gate=gate, max_num_batched_tokens=8, max_num_seqs=4) as server:
        stream = await server.add_request("A", "several chunks long", greedy(6, output_kind=kind))
        task = asyncio.create_task(collect(stream))
        neighbour = ask(server, "hi", 30)
        await gate.at_step(step)
        task.cancel()
        gate.open()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert await neighbour == continued_text("hi", 30)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 21, 34, 100, 400])
async def test_a_cancellation_after_any_number_of_event_loop_turns_frees_the_request(turns):
    async with serving() as server:
        task = ask(server, "hello", 30)
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await ask(server, "hello", 5) == continued_text("hello", 5)


class SlowText:
    """Holds the tokenisation of prompts that begin with "slow" until the test lets go."""

    def __init__(self):
        self.tokenising, self.go_on = threading.Event(), threading.Event()

    def __call__(self, text):
        if text.startswith("slow"):
            self.tokenising.set()
            assert self.go_on.wait(LIMIT)


@pytest.mark.parametrize("how", ["cancelled", "closed", "aborted", "timed out"])
async def test_a_request_given_up_while_its_prompt_is_tokenised_never_runs(how):
    slow, clock, gate, recorder = SlowText(), ManualClock(), StepGate(), Recorder()
    async with serving(double_components(on_encode=slow), gate, clock=clock, recorder=recorder) as server:
        stream = server.generate("slow", greedy(20), "A", timeout=5)
        task = asyncio.create_task(collect(stream))
        neighbour = ask(server, "hi", 20)
        await asyncio.to_thread(slow.tokenising.wait)
        await gate.at_step(1)
        if how == "aborted":
            await server.abort("A")
        elif how == "timed out":
            clock.advance(6)
        else:
            task.cancel()
        if how in ("cancelled", "closed"):
            await asyncio.wait([task])
            assert len(server.waiting_room) == 0
        if how == "closed":
            await stream.aclose()
        await gate.at_step(4)
        slow.go_on.set()
        await gate.at_step(8)
        gate.open()
        if how == "aborted":
            assert (await task)[-1].outputs[0].finish_reason == "abort"
        elif how == "timed out":
            with pytest.raises(RequestTimeoutError):
                await task
        assert await neighbour == continued_text("hi", 20)
        # one step may have been under way when an abort arrived together with the request
        assert len(recorder.steps_with("A")) == 0


async def test_a_timed_out_id_can_be_used_again_while_its_old_prompt_is_being_tokenised():
    slow, clock, gate = SlowText(), ManualClock(), StepGate()
    async with serving(double_components(on_encode=slow), gate, clock=clock) as server:
        first = asyncio.create_task(collect(server.generate("slow", greedy(20), "A", timeout=5)))
        neighbour = ask(server, "hi", 20)
        await asyncio.to_thread(slow.tokenising.wait)
        clock.advance(6)
        await gate.at_step(2)
        second = asyncio.create_task(text_of(await server.add_request("A", "another", greedy(9))))
        await gate.at_step(3)
        slow.go_on.set()
        gate.open()
        with pytest.raises(RequestTimeoutError):
            await first
        assert await second == continued_text("another", 9)
        assert await neighbour == continued_text("hi", 20)


async def test_a_late_cancellation_does_not_end_a_younger_request_of_the_same_name():
    async with serving() as server:
        old = await server.add_request("A", "old", greedy(3))
        while server._steps.streams_of("A"):
            await asyncio.sleep(0)  # finished, and nobody fetched its output
        gen = await server.add_request("A", "young", greedy(20))
        task = asyncio.create_task(anext(old))
        task.cancel()
        await asyncio.wait([task])
        await old.aclose()
        assert await text_of(gen) == continued_text("young", 20)


# --- consumers that are slow, vanish, or live elsewhere


@pytest.mark.parametrize("kind", [CUMULATIVE, DELTA])
async def test_a_slow_consumer_gets_merged_outputs(kind):
    gate = StepGate()
    async with serving(gate=gate) as server:
        stream = await server.add_request("A", "hello", greedy(20, output_kind=kind, logprobs=0))
        await gate.at_step(1)
        first = await anext(stream)
        assert len(first.outputs[0].token_ids) == 1
        await gate.at_step(10)
        second = await anext(stream)  # nine steps in one output
        gate.open()
        rest = await collect(stream)
        sizes = [len(o.outputs[0].token_ids) for o in (first, second)]
        assert sizes == ([1, 9] if kind is DELTA else [1, 10])
        assert len(second.outputs[0].logprobs) == sizes[1]
        outputs = [first, second, *rest]
        joined = "".join(o.outputs[0].text for o in outputs) if kind is DELTA else outputs[-1].outputs[0].text
        assert joined == continued_text("hello", 20)


async def test_a_consumer_that_never_looks_holds_one_output_and_delays_nobody():
    async with serving() as server:
        stream = await server.add_request("A", "hello", greedy(20, output_kind=DELTA))
        assert await ask(server, "hi", 25) == continued_text("hi", 25)
        while server._steps.streams_of("A"):
            await asyncio.sleep(0)
        outputs = await collect(stream)
        assert len(outputs) == 1 and outputs[0].finished
        assert outputs[0].outputs[0].text == continued_text("hello", 20)


async def test_a_stream_that_nobody_ever_iterates_runs_out_and_is_forgotten():
    async with serving() as server:
        stream = await server.add_request("A", "hello", greedy(5))
        del stream
        gc.collect()
        while server._steps.has_any(["A"]):
            await asyncio.sleep(0)
        assert await text_of(await server.add_request("A", "hello", greedy(5))) == continued_text("hello", 5)


def in_other_loop(main):
    """Runs a coroutine in an event loop of its own in a thread of its own."""
    result = {}

    def run():
        try:
            result["value"] = asyncio.run(asyncio.wait_for(main(), LIMIT))
        except BaseException as error:
            result["error"] = error

    thread = threading.Thread(target=run)
    thread.start()
    return thread, result


async def test_event_loops_in_several_threads_share_one_engine_and_are_not_kept_alive():
    async with serving(num_gpu_blocks_override=20, max_num_seqs=6) as server:
        loops = []

        def client(number):
            async def main():
                loops.append(weakref.ref(asyncio.get_running_loop()))
                prompts = [f"{number} asks {i}" for i in range(5)]
                return dict(zip(prompts, await asyncio.gather(*(ask(server, p, 12) for p in prompts)), strict=True))

            return main

        threads = [in_other_loop(client(number)) for number in range(4)]
        mine = await asyncio.gather(*(ask(server, f"main asks {i}", 12) for i in range(5)))
        for thread, result in threads:
            await asyncio.to_thread(thread.join)
            assert "error" not in result, result
            assert result["value"] == {p: continued_text(p, 12) for p in result["value"]}
        assert mine == [continued_text(f"main asks {i}", 12) for i in range(5)]
        await ask(server, "one more", 2)  # until then the step thread remembers the last one it served
        gc.collect()
        assert [loop() for loop in loops] == [None] * 4


@pytest.mark.parametrize("kind", [DELTA, FINAL])
async def test_the_requests_of_a_closed_event_loop_end(kind):
    gate = StepGate()
    async with serving(gate=gate) as server:
        started, ended = threading.Event(), threading.Event()

        def careless():
            loop = asyncio.new_event_loop()
            stream = loop.run_until_complete(server.add_request("A", "hello", greedy(100, output_kind=kind)))
            task = loop.create_task(anext(stream))
            loop.run_until_complete(asyncio.sleep(0))
            started.set()
            ended.wait(LIMIT)
            loop.close()  # tasks pending, generators open
            task._log_destroy_pending = False

        thread = threading.Thread(target=careless)
        thread.start()
        await asyncio.to_thread(started.wait)
        neighbour = ask(server, "hi", 25)
        await gate.at_step(3)
        ended.set()
        await asyncio.to_thread(thread.join)
        gate.open()
        assert await neighbour == continued_text("hi", 25)


async def test_an_engine_that_is_dropped_without_shutdown_ends_its_threads():
    engine = AsyncLLMEngine.from_engine_args(
        AsyncEngineArgs(model="course", num_gpu_blocks_override=9), components=double_components())
    async with asyncio.timeout(LIMIT):
        await text_of(engine.generate("hello", greedy(3), "A"))
        thread = engine._steps._thread
        del engine
        gc.collect()
        await asyncio.to_thread(thread.join, LIMIT)
    assert not thread.is_alive()


async def test_no_thread_of_an_engine_is_left_after_shutdown():
    before = set(threading.enumerate())
    async with serving(worker_count=3) as server:
        await asyncio.gather(*(ask(server, f"{i}", 3) for i in range(6)))
        names = {t.name for t in set(threading.enumerate()) - before}
        assert "engine-step" in names and any(n.startswith("engine-text") for n in names)
    left = [t for t in set(threading.enumerate()) - before if t.name.startswith("engine")]
    for thread in left:
        await asyncio.to_thread(thread.join, LIMIT)
    assert not any(t.is_alive() for t in left)


# --- the queue


async def test_the_bound_of_the_queue_is_exact_when_threads_race_for_it():
    gate = StepGate()
    async with serving(gate=gate, max_num_queued_reqs=10) as server:
        barrier = threading.Barrier(4)

        def client(number):
            async def main():
                barrier.wait(LIMIT)
                calls = [server.add_request(f"{number}-{i}", "x", greedy(2)) for i in range(15)]
                results = await asyncio.gather(*calls, return_exceptions=True)
                streams = [r for r in results if not isinstance(r, Exception)]
                full = [r for r in results if isinstance(r, QueueFullError)]
                assert len(streams) + len(full) == 15
                while not done.is_set():
                    await asyncio.sleep(0.001)
                return [await text_of(s) for s in streams]

            return main

        done = threading.Event()
        threads = [in_other_loop(client(number)) for number in range(4)]
        while len(server.waiting_room) < 10:
            await asyncio.sleep(0.001)
        with pytest.raises(QueueFullError):
            await server.add_request("late", "x", greedy(2))
        gate.open()
        done.set()
        accepted = 0
        for thread, result in threads:
            await asyncio.to_thread(thread.join)
            assert "error" not in result, result
            assert set(result["value"]) <= {continued_text("x", 2)}
            accepted += len(result["value"])
        # exactly ten before the first step, and the queue was full until then
        assert accepted >= 10


async def test_the_bound_of_the_queue_counts_who_has_not_run_and_nobody_else():
    gate = StepGate()
    async with serving(gate=gate, max_num_queued_reqs=2, max_num_seqs=2) as server:
        tasks = []

        async def add(name):
            tasks.append(asyncio.create_task(text_of(await server.add_request(name, name, greedy(9)))))

        await add("A")
        await add("B")
        with pytest.raises(QueueFullError):
            await add("C")
        await gate.at_step(2)  # A and B run
        await add("C")
        await add("D")
        with pytest.raises(QueueFullError):
            await add("E")
        tasks.pop().cancel()  # D gives up its place
        while len(server.waiting_room) > 1:
            gate.allow()
            await asyncio.sleep(0)
        await add("E")
        gate.open()
        assert await asyncio.gather(*tasks) == [continued_text(name, 9) for name in "ABCE"]


async def test_a_preempted_request_does_not_count_as_queued():
    gate = StepGate()
    async with serving(gate=gate, num_gpu_blocks_override=8, max_num_queued_reqs=1) as server:
        streams = []
        for name in "AB":
            streams.append(await server.add_request(name, f"{name} begins", greedy(18)))
            while f"{name}" not in [r.request_id for r in server.engine.scheduler.running]:
                await gate.at_step(gate.passed + 1)
        while not server.engine.scheduler.waiting:
            await gate.at_step(gate.passed + 1)
        assert len(server.waiting_room) == 0  # B was preempted and waits
        streams.append(await server.add_request("C", "C begins", greedy(4)))
        gate.open()
        expected = [continued_text(f"{name} begins", n) for name, n in (("A", 18), ("B", 18), ("C", 4))]
        assert [await text_of(s) for s in streams] == expected


async def test_several_completions_take_as_many_places_or_none():
    gate = StepGate()
    async with serving(gate=gate, max_num_queued_reqs=4) as server:
        three = SamplingParams(n=3, seed=1, max_tokens=4)
        first = await server.add_request("A", "x", three)
        with pytest.raises(QueueFullError):
            await server.add_request("B", "x", three)  # one place is left, not three
        assert len(server.waiting_room) == 3
        last = await server.add_request("C", "x", greedy(4))
        gate.open()
        assert len((await collect(first))[-1].outputs) == 3
        assert await text_of(last) == continued_text("x", 4)


async def test_offline_batches_and_preparation_do_not_meet_the_bound():
    async with serving(max_num_queued_reqs=1, max_num_seqs=1) as server:
        for i in range(5):  # one after the other: the queue is empty each time
            assert await ask(server, f"{i}", 3) == continued_text(f"{i}", 3)


# --- several completions as one request


async def test_several_completions_abort_as_one():
    gate = StepGate()
    async with serving(gate=gate) as server:
        stream = await server.add_request("A", "hello", SamplingParams(n=3, seed=1, max_tokens=40))
        await gate.at_step(4)
        await server.abort("A")
        gate.open()
        final = (await collect(stream))[-1]
        assert [o.finish_reason for o in final.outputs] == ["abort"] * 3 and final.finished
        assert [o.index for o in final.outputs] == [0, 1, 2]


async def test_several_completions_time_out_as_one():
    gate, clock = StepGate(), ManualClock()
    async with serving(gate=gate, clock=clock) as server:
        stream = await server.add_request("A", "hello", SamplingParams(n=3, seed=1, max_tokens=40), timeout=5)
        await gate.at_step(4)
        clock.advance(5)
        gate.open()
        with pytest.raises(RequestTimeoutError) as caught:
            await collect(stream)
        lengths = [len(o.token_ids) for o in caught.value.partial.outputs]
        assert lengths == [5, 4, 4]  # the others waited a step for the block that the first computed


async def test_several_completions_fail_as_one():
    def one_in_three(contexts):
        if len(contexts) == 1 and len(contexts[0]) > 8:
            raise RuntimeError("alone again")
        if any(len(c) > 8 for c in contexts):
            raise RuntimeError("fails in a batch too")

    async with serving(double_components(on_forward=one_in_three)) as server:
        with pytest.raises(GenerationError):
            await collect(server.generate("hello", SamplingParams(n=3, seed=1, max_tokens=40), "A"))


async def test_several_completions_finish_when_the_last_does():
    async with serving() as server:
        outputs = await collect(server.generate(
            "hello", SamplingParams(n=4, seed=1, max_tokens=20, stop=["a", "b"], output_kind=DELTA), "A"))
        reasons = {}
        for output in outputs:
            for one in output.outputs:
                assert one.index not in reasons, "a completion goes on after its end"
                if one.finish_reason:
                    reasons[one.index] = one.finish_reason
        assert set(reasons) == {0, 1, 2, 3}
        assert [o.finished for o in outputs] == [False] * (len(outputs) - 1) + [True]


# --- timeouts, on the injected clock


async def test_a_timeout_while_queued_says_so_and_frees_the_place():
    gate, clock = StepGate(), ManualClock()
    async with serving(gate=gate, clock=clock, max_num_seqs=1) as server:
        first = ask(server, "first", 30)
        await gate.at_step(1)
        second = await server.add_request("second", "second", greedy(9), timeout=2.5)
        await gate.at_step(5)
        assert len(server.waiting_room) == 1
        clock.advance(2.5)
        await gate.at_step(7)
        assert len(server.waiting_room) == 0
        with pytest.raises(RequestTimeoutError, match=r"'second'.*2\.5 s") as caught:
            await collect(second)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.partial.request_id == "second"
        assert caught.value.partial.outputs[0].token_ids == []
        gate.open()
        assert await first == continued_text("first", 30)


@pytest.mark.parametrize("kind", [CUMULATIVE, DELTA, FINAL])
async def test_a_timeout_while_running_carries_what_was_generated(kind):
    gate, clock = StepGate(), ManualClock()
    async with serving(gate=gate, clock=clock) as server:
        stream = await server.add_request("A", "hello", greedy(50, output_kind=kind), timeout=10)
        neighbour = ask(server, "hi", 20)
        await gate.at_step(3)
        clock.advance(9.999)
        await gate.at_step(6)
        clock.advance(0.001)
        await gate.at_step(8)
        shown = []
        with pytest.raises(RequestTimeoutError) as caught:
            async for output in stream:
                shown.append(output)
        partial = caught.value.partial.outputs[0]
        assert partial.finish_reason == "abort"
        if kind is not DELTA:
            assert partial.text == continued_text("hello", 7)  # the step under way was the last
        gate.open()
        assert await neighbour == continued_text("hi", 20)


async def test_a_request_that_finishes_in_time_does_not_time_out_later():
    clock = ManualClock()
    async with serving(clock=clock) as server:
        assert await ask(server, "hello", 5, timeout=1) == continued_text("hello", 5)
        clock.advance(100)
        assert await ask(server, "hi", 5, timeout=1) == continued_text("hi", 5)


async def test_a_timeout_counts_from_the_arrival_that_was_given():
    gate, clock = StepGate(), ManualClock(1000)
    async with serving(gate=gate, clock=clock) as server:
        stream = await server.add_request("A", "hello", greedy(50), arrival_time=995, timeout=10)
        await gate.at_step(2)
        clock.advance(5)
        gate.open()
        with pytest.raises(RequestTimeoutError):
            await collect(stream)


async def test_metrics_are_on_the_engines_clock_and_in_order():
    gate, clock = StepGate(), ManualClock(1000)
    async with serving(gate=gate, clock=clock) as server:
        stream = await server.add_request("A", "hello", greedy(3))
        await gate.at_step(0)
        for step in range(1, 3):
            clock.advance(1)
            await gate.at_step(step)
        clock.advance(1)
        gate.open()
        metrics = (await collect(stream))[-1].metrics
    times = (metrics.arrival_time, metrics.queued_ts, metrics.scheduled_ts, metrics.first_token_ts,
             metrics.last_token_ts)  # fmt: skip
    assert times == (1000, 1000, 1001, 1001, 1003)
    assert (metrics.num_generation_tokens, metrics.num_preemptions) == (3, 0)


# --- who goes first


async def test_the_smaller_priority_number_goes_first():
    gate, recorder = StepGate(), Recorder()
    async with serving(gate=gate, recorder=recorder, max_num_seqs=1, scheduling_policy="priority") as server:
        priorities = {"busy": 5, "low": 9, "high": 1, "normal": 5, "urgent": 0}
        tasks = []
        for name, priority in priorities.items():
            stream = await server.add_request(name, name, greedy(3), priority=priority)
            tasks.append(asyncio.create_task(text_of(stream)))
            if name == "busy":
                await gate.at_step(1)  # it runs; the others come while it does
        gate.open()
        assert await asyncio.gather(*tasks) == [continued_text(name, 3) for name in priorities]
    order = list(dict.fromkeys(c["request"] for s in recorder.steps for c in s["chunks"]))
    assert order == ["busy", "urgent", "high", "normal", "low"]


async def test_without_the_priority_policy_who_came_first_goes_first():
    gate, recorder = StepGate(), Recorder()
    async with serving(gate=gate, recorder=recorder, max_num_seqs=1) as server:
        streams = [await server.add_request(n, n, greedy(3), priority=p) for n, p in (("A", 9), ("B", 0), ("C", 5))]
        gate.open()
        for stream in streams:
            await collect(stream)
    assert list(dict.fromkeys(c["request"] for s in recorder.steps for c in s["chunks"])) == ["A", "B", "C"]


async def test_the_priorities_of_async_llm_change_who_goes_first():
    gate, recorder = StepGate(), Recorder()
    parts = double_components(on_forward=lambda contexts: gate())
    llm = AsyncLLM(num_blocks=6, block_size=16, max_seq_length=80, components=parts, recorder=recorder)
    async with asyncio.timeout(LIMIT), llm:
        # the pool has five blocks: one request at a time
        calls = {"busy": RequestPriority.NORMAL, "low": RequestPriority.LOW, "normal": RequestPriority.NORMAL,
                 "high": RequestPriority.HIGH, "urgent": RequestPriority.URGENT}  # fmt: skip
        ids = {}
        for name, priority in calls.items():
            ids[await llm.submit_request(name + "." * 66, greedy(3), priority)] = name
            if name == "busy":
                await asyncio.to_thread(gate._wait_arrived, 1)
        gate.open()
        for request_id in ids:
            assert (await llm.get_result(request_id))["finish_reason"] == "length"
    order = [ids[i] for i in dict.fromkeys(c["request"] for s in recorder.steps for c in s["chunks"])]
    assert order == ["busy", "urgent", "high", "normal", "low"]


# --- faults at every boundary


async def test_a_network_that_fails_once_costs_nobody_anything():
    calls = []

    def once(contexts):
        calls.append(len(contexts))
        if len(calls) == 5:
            raise RuntimeError("out of memory")

    async with serving(double_components(on_forward=once)) as server:
        results = await asyncio.gather(*(ask(server, name, 12) for name in "ABC"))
        assert results == [continued_text(name, 12) for name in "ABC"]


@pytest.mark.parametrize("first", [1, 4])
async def test_a_network_that_always_fails_ends_each_request_with_its_own_error(first):
    calls = []

    def always(contexts):
        calls.append(len(contexts))
        if len(calls) >= first:
            raise RuntimeError("broken")

    async with serving(double_components(on_forward=always)) as server:
        tasks = [ask(server, name, 12) for name in "ABC"]
        await asyncio.wait(tasks)
        for name, task in zip("ABC", tasks, strict=True):
            assert isinstance(task.exception(), GenerationError)
            assert f"'{name}'" in str(task.exception()) and "broken" in str(task.exception())
            assert isinstance(task.exception().__cause__, RuntimeError)
        await server.check_health()


@pytest.mark.parametrize("at", [0, 3, 7])
async def test_a_network_that_fails_for_one_request_ends_that_one(at):
    def choke(contexts):
        if any(c[:3] == list(b"bad") and len(c) >= 3 + at for c in contexts):
            raise RuntimeError("not this one")

    async with serving(double_components(on_forward=choke), num_gpu_blocks_override=16) as server:
        tasks = {name: ask(server, name, 12) for name in ("A", "bad", "B", "C")}
        await asyncio.wait(tasks.values())
        assert isinstance(tasks.pop("bad").exception(), GenerationError)
        assert {n: t.result() for n, t in tasks.items()} == {n: continued_text(n, 12) for n in "ABC"}


class FaultyDetokenizer:
    """Fails where a request's stop string says so."""

    def __init__(self, tokenizer, params):
        self.where = (params.stop or [""])[0]
        if self.where == "in the constructor":
            raise RuntimeError("no detokenizer")
        self.inner = make_detokenizer(tokenizer, params)

    def add(self, token_ids):
        if self.where == "in add":
            raise RuntimeError("no text")
        return self.inner.add(token_ids)

    def finish(self):
        if self.where == "in finish":
            raise RuntimeError("no end")
        return self.inner.finish()


@pytest.mark.parametrize("where", ["in the constructor", "in add", "in finish"])
@pytest.mark.parametrize("end", ["length", "abort", "timeout", "cancel"])
async def test_a_detokenizer_that_fails_ends_its_request_whatever_else_happens(where, end):
    gate, clock = StepGate(), ManualClock()
    async with serving(double_components(detokenizer=FaultyDetokenizer), gate, clock=clock) as server:
        neighbour = ask(server, "hi", 20)
        bad = asyncio.create_task(collect(server.generate("bad", greedy(6, stop=where), "bad", timeout=5)))
        await gate.at_step(3)
        if end == "abort":
            await server.abort("bad")
        elif end == "timeout":
            clock.advance(6)
        elif end == "cancel":
            bad.cancel()
        gate.open()
        await asyncio.wait([bad])
        if not bad.cancelled():
            if bad.exception() is None:  # an abort that came first: the text is what there was
                assert end == "abort" and bad.result()[-1].outputs[0].finish_reason == "abort"
            else:
                assert isinstance(bad.exception(), (GenerationError, RequestTimeoutError, RuntimeError))
                assert not isinstance(bad.exception(), EngineDeadError)
        assert await neighbour == continued_text("hi", 20)
        await server.check_health()


async def test_a_tokenizer_that_fails_is_raised_to_its_caller():
    def choke(text):
        if text == "bad":
            raise UnicodeError("not this text")

    async with serving(double_components(on_encode=choke)) as server:
        good = ask(server, "good", 9)
        with pytest.raises(UnicodeError, match="not this text"):
            await ask(server, "bad")
        assert await good == continued_text("good", 9)


class FaultyScheduler(Scheduler):
    """Fails in one of its methods at its n-th call."""

    def __init__(self, config, block_manager, method, at):
        super().__init__(config.scheduler, block_manager)
        self.method, self.left = method, at

    def _fail_when_due(self, method):
        self.left -= method == self.method
        if method == self.method and self.left == 0:
            raise RuntimeError(f"{method} is broken")

    def add(self, request):
        self._fail_when_due("add")
        super().add(request)

    def schedule(self):
        self._fail_when_due("schedule")
        return super().schedule()

    def update(self, batch, result):
        self._fail_when_due("update")
        return super().update(batch, result)


async def dies_loudly(components, gate=None):
    """Three requests, one of them tokenised late; all must get the error, and so must later calls."""
    async with serving(components, gate) as server:
        tasks = [ask(server, name, 30) for name in "ABC"]
        idle = await server.add_request("nobody looks", "x", greedy(30))
        if gate is not None:
            gate.open()
        await asyncio.wait(tasks)
        for task in tasks:
            assert isinstance(task.exception(), EngineDeadError), task
            assert "is broken" in str(task.exception()) and "start a new engine" in str(task.exception())
        for call in (lambda: collect(idle), server.check_health, server.get_stats, server.reset_prefix_cache,
                     lambda: ask(server, "late")):  # fmt: skip
            with pytest.raises(EngineDeadError, match="is broken"):
                await call()
        await server.abort("A")
        assert server.errored and server.is_stopped and not server.is_running
        assert isinstance(server.dead_error.__cause__, RuntimeError)
        server.engine.block_manager.check_integrity()
        assert len(server.waiting_room) == 0


@pytest.mark.parametrize("at", [1, 2, 9])
@pytest.mark.parametrize("method", ["schedule", "update"])
async def test_a_scheduler_that_fails_ends_the_engine_loudly_and_every_waiter(method, at):
    gate = StepGate()
    await dies_loudly(double_components(scheduler=lambda c, b: FaultyScheduler(c, b, method, at)), gate)


async def test_a_block_manager_that_fails_ends_the_engine_loudly_and_every_waiter():
    class Faulty(BlockManager):
        def commit(self, request_id, token_ids, start=0):
            raise RuntimeError("commit is broken")

    manager = double_components(block_manager=lambda c: Faulty(c.cache.num_blocks, c.cache.block_size))
    await dies_loudly(manager, StepGate())


async def test_a_system_exit_in_a_step_ends_the_engine_and_every_waiter():
    def leave(contexts):
        raise SystemExit("the network is broken")

    async with serving(double_components(on_forward=leave)) as server:
        with pytest.raises(EngineDeadError, match="SystemExit"):
            await ask(server, "A")


async def test_a_scheduler_that_refuses_one_request_ends_that_one():
    parts = double_components(scheduler=lambda c, b: FaultyScheduler(c, b, "add", 2))
    async with serving(parts) as server:
        first = await server.add_request("A", "A", greedy(9))
        second = await server.add_request("B", "B", greedy(9))
        third = await server.add_request("C", "C", greedy(9))
        with pytest.raises(RuntimeError, match="add is broken"):
            await collect(second)
        assert [await text_of(s) for s in (first, third)] == [continued_text("A", 9), continued_text("C", 9)]
        await server.check_health()


async def test_a_scheduler_that_refuses_the_second_of_several_completions_keeps_none():
    parts = double_components(scheduler=lambda c, b: FaultyScheduler(c, b, "add", 2))
    async with serving(parts) as server:
        with pytest.raises(RuntimeError, match="add is broken"):
            await collect(server.generate("x", SamplingParams(n=3, seed=1), "A"))


# --- calls that are no requests


async def test_cancelling_a_question_to_the_step_thread_does_not_kill_the_engine():
    gate = StepGate()
    async with serving(gate=gate) as server:
        task = ask(server, "hello", 9)
        await gate.at_step(1)
        questions = [asyncio.create_task(f()) for f in (server.get_stats, server.reset_prefix_cache, server.get_stats)]
        await asyncio.sleep(0)
        for question in questions[:2]:
            question.cancel()
        await asyncio.wait(questions[:2])
        gate.open()
        assert await task == continued_text("hello", 9)
        assert (await questions[2])["num_total_blocks"] == 32
        await server.check_health()


async def test_stats_are_of_one_moment_between_two_steps():
    gate = StepGate()
    async with serving(gate=gate, max_num_seqs=1) as server:
        stats = await server.get_stats()
        assert (stats["num_requests_running"], stats["num_requests_waiting"]) == (0, 0)
        tasks = [asyncio.create_task(collect(await server.add_request(n, "hello", greedy(4)))) for n in "AB"]
        await gate.at_step(1)
        question = asyncio.create_task(server.get_stats())
        await asyncio.sleep(0)  # it is asked before the step goes on
        await gate.at_step(2)
        stats = await question
        assert (stats["num_requests_running"], stats["num_requests_waiting"]) == (1, 1)
        assert stats["num_free_blocks"] == 30 and stats["kv_cache_usage"] == pytest.approx(2 / 32)
        gate.open()
        await asyncio.gather(*tasks)


async def test_the_prefix_cache_is_not_reset_under_a_running_request():
    gate = StepGate()
    async with serving(gate=gate) as server:
        task = ask(server, "hello hello hello", 5)
        await gate.at_step(1)
        question = asyncio.create_task(server.reset_prefix_cache())
        await asyncio.sleep(0)
        gate.open()
        assert await task == continued_text("hello hello hello", 5)
        assert await question is False
        assert await server.reset_prefix_cache() is True
        final = (await collect(server.generate("hello hello hello", greedy(5), "B")))[-1]
        assert final.num_cached_tokens == 0


async def test_the_engine_can_be_made_without_an_event_loop_and_started_late():
    def make():
        return AsyncLLMEngine.from_engine_args(
            AsyncEngineArgs(model="course", num_gpu_blocks_override=9), False, components=double_components())

    engine = await asyncio.to_thread(make)
    assert engine.is_running and not engine._steps.started
    await engine.check_health()
    assert (await engine.get_stats())["num_total_blocks"] == 8
    async with asyncio.timeout(LIMIT):
        assert await text_of(engine.generate("hello", greedy(3), "A")) == continued_text("hello", 3)
    engine.shutdown()
    assert engine.is_stopped


# --- many of these at once, by seed


@pytest.mark.parametrize("seed", range(8))
async def test_random_interleavings_answer_everybody_and_lose_nothing(seed):
    rng = random.Random(seed)
    gate, clock = StepGate(), ManualClock()

    def sometimes(contexts):
        if any(c[-1:] == list(b"!") for c in contexts):
            raise RuntimeError("a bad prompt")

    async with serving(
        double_components(on_forward=sometimes), gate, clock=clock, num_gpu_blocks_override=12, max_num_seqs=4,
        max_num_batched_tokens=10, max_num_queued_reqs=6, scheduling_policy="priority",
    ) as server:  # fmt: skip
        tasks, outcomes = {}, {}
        for i in range(25):
            name = f"request {i % 9}"  # names come twice, prompts too
            prompt = name + rng.choice(["", "", " and more of it", "!"])
            stream = server.generate(
                prompt, greedy(rng.randrange(1, 12), output_kind=rng.choice([CUMULATIVE, DELTA, FINAL])), name,
                priority=rng.randrange(3), timeout=rng.choice([None, None, 3.0]))
            task = asyncio.create_task(collect(stream))
            tasks[task] = prompt
            await asyncio.sleep(0)
            match rng.randrange(6):
                case 0:
                    rng.choice(list(tasks)).cancel()
                case 1:
                    await server.abort(f"request {rng.randrange(9)}")
                case 2:
                    clock.advance(1.0)
                case _:
                    gate.allow(rng.randrange(4))
            for _ in range(rng.randrange(5)):
                await asyncio.sleep(0)
        gate.open()
        await asyncio.wait(tasks)
        for task, prompt in tasks.items():
            if task.cancelled():
                outcome = "cancelled"
            elif task.exception() is not None:
                outcome = type(task.exception()).__name__
                assert isinstance(task.exception(), (QueueFullError, RequestTimeoutError, GenerationError))
            else:
                outputs = task.result()
                last = outputs[-1].outputs[0]
                outcome = last.finish_reason
                deltas = "".join(o.outputs[0].text for o in outputs)
                count = outputs[-1].metrics.num_generation_tokens
                assert last.text == continued_text(prompt, count) or deltas == continued_text(prompt, count)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        assert sum(outcomes.values()) == 25, outcomes


async def test_two_hundred_requests_with_merged_outputs_and_a_tiny_pool_are_all_right():
    started = time.monotonic()
    async with serving(num_gpu_blocks_override=17, max_num_seqs=8) as server:
        prompts = [f"prompt number {i % 50}" for i in range(200)]
        results = await asyncio.gather(*(
            text_of(server.generate(p, greedy(4 + i % 7), "same id")) for i, p in enumerate(prompts)))
    assert results == [continued_text(p, 4 + i % 7) for i, p in enumerate(prompts)]
    assert time.monotonic() - started < LIMIT


async def test_a_timeout_during_tokenisation_on_an_idle_engine_is_raised_when_it_passes():
    slow = SlowText()
    async with serving(double_components(on_encode=slow)) as server:
        try:
            with pytest.raises(RequestTimeoutError, match="timeout of 0.05 s") as caught:
                await anext(server.generate("slow", greedy(3), "A", timeout=0.05))
            assert caught.value.partial is None
            assert len(server.waiting_room) == 0
        finally:
            slow.go_on.set()
        assert await ask(server, "hi", 5) == continued_text("hi", 5)


async def test_a_timed_out_stream_of_deltas_hands_over_what_its_consumer_had_not_read():
    clock, gate = ManualClock(), StepGate()
    async with serving(double_components(), gate, clock=clock) as server:
        params = SamplingParams(temperature=0, max_tokens=20, output_kind=RequestOutputKind.DELTA)
        stream = await server.add_request("A", "hello", params, timeout=5)
        await gate.at_step(4)  # by now some tokens wait in the mailbox
        clock.advance(6)
        gate.open()
        for _ in range(2):
            await server.get_stats()  # taken between two steps: before the second, timeouts were looked at
        with pytest.raises(RequestTimeoutError) as caught:
            await anext(stream)
        text = caught.value.partial.outputs[0].text
        assert len(text) >= 3 and continued_text("hello", 20).startswith(text)
