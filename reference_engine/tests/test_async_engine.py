"""`AsyncLLMEngine`: vLLM's surface for asyncio. Interleavings and faults are in test_concurrency.py."""

import asyncio
import logging
from collections.abc import Callable

import pytest

from nano_qwen3_serving import AsyncEngineArgs, AsyncLLMEngine, SamplingParams
from nano_qwen3_serving.engine.mailbox import LoopPort
from nano_qwen3_serving.exceptions import EngineDeadError, InvalidParametersError
from nano_qwen3_serving.sampling_params import RequestOutputKind
from nano_qwen3_serving.testing.doubles import (
    StepGate,
    continuation,
    continued_text,
    double_components,
    script,
    serving,
)

CUMULATIVE, DELTA, FINAL = RequestOutputKind.CUMULATIVE, RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY


def greedy(max_tokens=8, **kwargs):
    return SamplingParams(temperature=0, max_tokens=max_tokens, **kwargs)


async def collect(stream):
    return [output async for output in stream]


async def test_generate_takes_prompt_parameters_and_id_and_streams_up_to_a_finished_output():
    async with serving() as server:
        outputs = await collect(server.generate("hello", greedy(), "my id"))
    assert {o.request_id for o in outputs} == {"my id"}
    assert [o.finished for o in outputs] == [False] * (len(outputs) - 1) + [True]
    final = outputs[-1]
    assert final.prompt == "hello" and final.prompt_token_ids == list(b"hello")
    assert final.outputs[0].text == continued_text("hello", 8)
    assert final.outputs[0].token_ids == continuation("hello", 8)
    assert final.metrics.num_generation_tokens == 8


async def test_add_request_takes_the_id_first_and_returns_a_stream():
    async with serving() as server:
        stream = await server.add_request("my id", "hello", greedy())
        final = (await collect(stream))[-1]
    assert (final.request_id, final.outputs[0].text) == ("my id", continued_text("hello", 8))


async def test_generate_does_nothing_until_it_is_iterated():
    async with serving() as server:
        stream = server.generate("hello", greedy(), "A")
        await asyncio.sleep(0)
        assert not server._steps.has_any(["A"])
        await stream.aclose()


@pytest.mark.parametrize(
    "prompt", ["hello", {"prompt": "hello"}, {"prompt_token_ids": list(b"hello")}], ids=["text", "dict", "tokens"])
async def test_prompts_are_text_or_tokens(prompt):
    async with serving() as server:
        assert (await collect(server.generate(prompt, greedy(), "A")))[-1].outputs[0].text == (
            continued_text("hello", 8))


async def test_each_output_kind_tells_the_same_story():
    gate = StepGate()
    async with serving(gate=gate) as server:
        streams = {k: await server.add_request(k.name, "hello", greedy(output_kind=k)) for k in RequestOutputKind}
        tasks = {k: asyncio.create_task(collect(s)) for k, s in streams.items()}
        gate.open()
        outputs = {k: await t for k, t in tasks.items()}
    text = continued_text("hello", 8)
    assert outputs[CUMULATIVE][-1].outputs[0].text == text
    assert "".join(o.outputs[0].text for o in outputs[DELTA]) == text
    assert [t for o in outputs[DELTA] for t in o.outputs[0].token_ids] == continuation("hello", 8)
    assert [o.outputs[0].text for o in outputs[FINAL]] == [text]


async def test_many_requests_at_once_get_their_own_answers():
    async with serving(max_num_seqs=5, num_gpu_blocks_override=17) as server:
        prompts = [f"prompt {i}" for i in range(40)]
        finals = await asyncio.gather(*(collect(server.generate(p, greedy(), p)) for p in prompts))
    assert [f[-1].outputs[0].text for f in finals] == [continued_text(p, 8) for p in prompts]


async def test_abort_takes_one_id_or_several_and_ignores_strangers():
    gate = StepGate()
    async with serving(gate=gate) as server:
        tasks = {n: asyncio.create_task(collect(await server.add_request(n, n, greedy(30)))) for n in "ABC"}
        await gate.at_step(2)
        await server.abort("A")
        await server.abort(name for name in ["B", "stranger"])
        gate.open()
        reasons = {n: (await t)[-1].outputs[0].finish_reason for n, t in tasks.items()}
    assert reasons == {"A": "abort", "B": "abort", "C": "length"}


@pytest.mark.parametrize("kind", [CUMULATIVE, DELTA])
async def test_a_stop_string_ends_the_stream_and_nothing_of_it_is_shown(kind):
    async with serving(double_components(**script("one STOP two"))) as server:
        outputs = await collect(server.generate("|", greedy(50, stop="STOP", output_kind=kind), "A"))
    joined = "".join(o.outputs[0].text for o in outputs) if kind is DELTA else outputs[-1].outputs[0].text
    assert joined == "one "
    assert outputs[-1].outputs[0].stop_reason == "STOP"


async def test_closing_a_stream_early_aborts_its_request_at_once():
    gate = StepGate()
    async with serving(gate=gate) as server:
        stream = server.generate("hello", greedy(100), "A")
        first = asyncio.create_task(anext(stream))
        await gate.at_step(1)
        await first
        (known,) = server._steps.streams_of("A")
        await stream.aclose()
        assert known.aborted  # when aclose() returns, not some time later


async def test_the_state_of_an_engine_through_its_life():
    engine = AsyncLLMEngine.from_engine_args(
        AsyncEngineArgs(model="course", num_gpu_blocks_override=9), start_engine_loop=False,
        components=double_components())
    assert engine.is_running and not engine.is_stopped and not engine.errored
    await collect(engine.generate("hello", greedy(2), "A"))
    assert engine.is_running
    await engine.check_health()
    engine.shutdown()
    assert engine.is_stopped and not engine.is_running and not engine.errored
    assert isinstance(engine.dead_error, EngineDeadError)


async def test_do_log_stats_writes_the_numbers_unless_they_are_off(caplog):
    for off in (False, True):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            async with serving(disable_log_stats=off) as server:
                await server.do_log_stats()
        assert ("num_requests_running" in caplog.text) is not off


async def test_the_tokenizer_is_handed_out_without_awaiting():
    async with serving() as server:
        assert server.get_tokenizer().encode("hi") == [104, 105]


async def test_hits_of_the_prefix_cache_are_reported_to_the_caller():
    async with serving() as server:
        prompt = "a beginning that is shared"
        counts = [(await collect(server.generate(prompt, greedy(2), "A")))[-1].num_cached_tokens for _ in range(2)]
        assert counts == [0, 24]
        assert await server.reset_prefix_cache() is True
        assert (await collect(server.generate(prompt, greedy(2), "A")))[-1].num_cached_tokens == 0


async def test_the_course_model_answers_through_the_async_engine_as_it_does_offline():
    from nano_qwen3_serving import LLM
    from nano_qwen3_serving.components import Components

    prompts = ["What is machine learning?", "What is a token?", "Hello"]
    offline = LLM("course", num_gpu_blocks_override=64).generate(prompts, greedy(12))
    async with serving(Components(), num_gpu_blocks_override=64, block_size=16) as server:
        online = await asyncio.gather(*(collect(server.generate(p, greedy(12), p)) for p in prompts))
    assert [o[-1].outputs[0].token_ids for o in online] == [o.outputs[0].token_ids for o in offline]


async def test_more_completions_than_the_whole_queue_are_refused_at_once():
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="course", max_num_queued_reqs=3))
    try:
        with pytest.raises(InvalidParametersError, match="n must be at most 3.*got 4"):
            await anext(engine.generate("Hello", SamplingParams(n=4), "too-many"))
        assert len(engine.waiting_room) == 0
    finally:
        engine.shutdown()


def test_a_number_of_completions_beyond_reason_is_refused_before_anything_is_built():
    with pytest.raises(InvalidParametersError, match="n must be at most 16384, got 1000000000"):
        SamplingParams(n=10**9)


class Bell:
    """A mailbox of which only the bell is there."""

    def __init__(self, name: str, woken: list[str]) -> None:
        self._name, self._woken = name, woken

    def ring(self) -> None:
        self._woken.append(self._name)


class HandWoundLoop:
    """An event loop whose clock a test sets, and which runs nothing by itself."""

    def __init__(self) -> None:
        self.now = 100.0
        self.soon: list[Callable[[], None]] = []
        self.later: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def is_closed(self) -> bool:
        return False

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        self.later.append((when, callback))

    def run_soon(self) -> None:
        while self.soon:
            self.soon.pop(0)()


def test_mailboxes_of_a_loop_are_woken_once_a_pause_however_many_steps_there_are():
    loop, woken = HandWoundLoop(), []
    port = LoopPort(loop, pause=0.5)
    mailboxes = [Bell(name, woken) for name in "AB"]
    port.wake(mailboxes[:1])
    loop.run_soon()
    assert woken == ["A"] and not loop.later, "the first output does not wait"
    for step in range(20):
        loop.now += 0.01
        port.wake(mailboxes if step % 2 else mailboxes[:1])
        loop.run_soon()
    assert woken == ["A"]
    ((when, deliver),) = loop.later
    assert when == 100.5
    loop.now = when
    deliver()
    assert sorted(woken) == ["A", "A", "B"]
    loop.now += 0.5
    port.wake(mailboxes[1:])
    loop.run_soon()
    assert sorted(woken) == ["A", "A", "B", "B"] and len(loop.later) == 1
