"""What crosses the API has one owner: copied on entry, and the caller's own on exit."""

import asyncio
import copy
import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields

import pytest

from nano_qwen3_serving import (
    LLM,
    AsyncEngineArgs,
    AsyncLLM,
    CompletionOutput,
    EngineArgs,
    LLMEngine,
    RequestOutput,
    SamplingParams,
)
from nano_qwen3_serving import exceptions as errors
from nano_qwen3_serving.outputs import Logprob, RequestMetrics
from nano_qwen3_serving.ownership import snapshot
from nano_qwen3_serving.sampling_params import RequestOutputKind, StructuredOutputsParams
from nano_qwen3_serving.testing.doubles import StepGate, continued_text, double_components, serving

pytestmark = pytest.mark.slow


def params(**kwargs):
    return SamplingParams(**{"temperature": 0, "max_tokens": 8, "ignore_eos": True} | kwargs)


def spoil(given):
    """Changes everything that can be changed in what a caller passed."""
    if isinstance(given, SamplingParams):
        given.max_tokens, given.temperature, given.logit_bias, given.n = 1, "hot", {5: 100.0}, 10**9
        for name in ("stop", "stop_token_ids", "bad_words", "allowed_token_ids"):
            if getattr(given, name):
                getattr(given, name).append("e" if name in ("stop", "bad_words") else 101)
    elif isinstance(given, dict):
        for value in given.values():
            spoil(value)
        given["prompt"] = 5
    elif isinstance(given, list):
        given[:] = [7] * 50


def full():
    return params(stop=["XYZ"], stop_token_ids=[256], bad_words=["QQ"], allowed_token_ids=list(range(256)), logit_bias={1: 0.0})


# --- on entry


def test_parameters_share_no_list_or_dict_with_what_they_were_made_of():
    lists = {"stop": ["a"], "stop_token_ids": [1], "allowed_token_ids": [2], "bad_words": ["b"]}
    schema = {"properties": {"a": [1]}}
    structured = StructuredOutputsParams(json=schema)
    made = SamplingParams(**lists, logit_bias={3: 1.0}, structured_outputs=structured)
    twin = made.clone()
    schema["properties"]["a"].append(2)
    structured.json["more"] = 1
    for value in lists.values():
        value.append("x")
    made.stop.append("y")
    made.logit_bias[9] = 1.0
    made.structured_outputs.json["z"] = 1
    assert (twin.stop, twin.stop_token_ids, twin.allowed_token_ids, twin.bad_words) == (["a"], [1], [2], ["b"])
    assert twin.logit_bias == {3: 1.0}
    assert twin.structured_outputs.json == {"properties": {"a": [1]}}


async def test_what_a_caller_changes_while_its_request_waits_or_runs_changes_nothing():
    gate = StepGate()
    async with serving(gate=gate) as engine:
        prompt, mine = {"prompt_token_ids": list(b"hello")}, full()
        started = asyncio.create_task(engine.add_request("A", prompt, mine))
        await asyncio.sleep(0)
        spoil(prompt), spoil(mine)
        stream = await started
        later = full()
        lazy = engine.generate("world", later, "B")  # read when it is first iterated, owned since it was called
        spoil(later)
        gate.open()
        assert [o async for o in stream][-1].outputs[0].text == continued_text("hello", 8)
        assert [o async for o in lazy][-1].outputs[0].text == continued_text("world", 8)


@pytest.mark.parametrize(
    "call", ["generate", "generate list", "generate_batch", "submit_request", "chat", "chat_stream", "generate_stream"])
async def test_async_llm_ignores_what_callers_change_between_a_call_and_its_first_step(call):
    async with asyncio.timeout(30), AsyncLLM(num_blocks=33, block_size=4, components=double_components()) as llm:
        mine, tokens, message = full(), {"prompt_token_ids": list(b"hello")}, [{"role": "user", "content": "hello"}]

        async def text(stream):
            return [c async for c in stream][-1]["text"]

        pending = {
            "generate": lambda: llm.generate(tokens, mine), "generate list": lambda: llm.generate([tokens], mine),
            "generate_batch": lambda: llm.generate_batch([tokens], mine),
            "submit_request": lambda: llm.submit_request(tokens, mine), "chat": lambda: llm.chat(message, mine),
            "chat_stream": lambda: text(llm.chat_stream(message, mine)),
            "generate_stream": lambda: text(llm.generate_stream(tokens, mine)),
        }[call]()
        spoil(mine), spoil(tokens)
        message[0]["content"] = "changed"
        got = await pending
        got = await llm.get_result(got) if call == "submit_request" else got[0] if isinstance(got, list) else got
        said = got if isinstance(got, str) else got["generated_text"]
        assert said == continued_text("hello\n" if "chat" in call else "hello", 8)


def test_a_synchronous_engine_owns_what_was_added():
    engine = LLMEngine.from_engine_args(EngineArgs("course", num_gpu_blocks_override=33, block_size=4), double_components())
    prompt, mine = {"prompt_token_ids": list(b"hello")}, full()
    engine.add_request("A", prompt, mine)
    spoil(prompt), spoil(mine)
    output = None
    while engine.has_unfinished_requests():
        for output in engine.step():
            spoil(output.prompt_token_ids), spoil(output.outputs[0].token_ids), spoil(output.block_indices)
            text = output.outputs[0].text
            output.outputs.clear()
    assert text == continued_text("hello", 8)


def test_parameters_that_were_spoiled_before_the_call_are_refused_by_name():
    llm = LLM("course", num_gpu_blocks_override=16, components=double_components())
    mine = params()
    mine.temperature = "hot"
    with pytest.raises(errors.InvalidParametersError, match="temperature"):
        llm.generate("x", mine)
    with pytest.raises(errors.InvalidParametersError, match="temperature"):
        llm.llm_engine.add_request("A", "x", mine)


async def test_a_number_of_completions_set_after_the_check_takes_no_memory():
    async with serving() as engine:
        mine = params()
        mine.n = 10**12
        with pytest.raises(errors.InvalidParametersError, match="n must be"):
            await engine.add_request("A", "x", mine)


def test_a_snapshot_shares_nothing_that_changes_and_takes_any_value():
    inner = [1, "a"]
    given = {"list": inner, "again": inner, "tuple": (inner,), "params": full(), "other": object()}
    taken = snapshot(given)
    inner.append(2)
    assert taken["list"] == [1, "a"] or taken["list"] is not inner
    assert taken["list"] is taken["again"] and taken["other"] is given["other"]
    loop = []
    loop.append(loop)
    assert isinstance(snapshot(loop), list)
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert isinstance(snapshot(deep), list)


# --- on exit


@pytest.mark.parametrize("kind", list(RequestOutputKind))
async def test_changing_an_output_reaches_neither_its_request_nor_later_outputs(kind):
    async with serving() as engine:
        mine = params(logprobs=2, prompt_logprobs=1, output_kind=kind)
        tokens, positions = [], 0
        async for output in engine.generate("hello", mine, "A"):
            new = output.outputs[0]
            assert output.prompt_token_ids == list(b"hello")
            assert [p is None or isinstance(next(iter(p.values())), Logprob) for p in output.prompt_logprobs] == [True] * 5
            tokens = [*tokens, *new.token_ids] if kind is RequestOutputKind.DELTA else list(new.token_ids)
            positions = len(new.logprobs) if kind is not RequestOutputKind.DELTA else positions + len(new.logprobs)
            assert all(isinstance(lp, Logprob) for each in new.logprobs for lp in each.values())
            for each in [*new.logprobs, *output.prompt_logprobs[1:]]:
                each.clear()
            spoil(output.prompt_token_ids), spoil(new.token_ids), spoil(output.block_indices)
            new.logprobs.clear(), output.prompt_logprobs.clear()
            output.metrics.arrival_time = output.metrics.num_generation_tokens = -1
        assert bytes(tokens).decode() == continued_text("hello", 8) and positions == 8


async def test_a_result_is_fetched_new_each_time():
    async with asyncio.timeout(30), AsyncLLM(num_blocks=33, block_size=4, components=double_components()) as llm:
        name = await llm.submit_request("hello", params())
        first = await llm.get_result(name)
        kept = copy.deepcopy(first)
        first["block_indices"].clear()
        first["metrics"].arrival_time = -1
        first.clear()
        assert await llm.get_result(name) == kept
        stats = await llm.get_stats()
        for part in stats.values():
            part.clear() if isinstance(part, dict) else None
        assert (await llm.get_stats())["async_stats"]["completed_async_requests"] == 1


def test_default_parameters_are_the_callers_own():
    llm = LLM("course", num_gpu_blocks_override=16, components=double_components())
    before = copy.deepcopy(llm.get_default_sampling_params())
    llm.get_default_sampling_params().max_tokens = 1
    llm.get_default_sampling_params().temperature = 2.0
    assert llm.get_default_sampling_params() == before


def test_two_threads_share_an_llm():
    llm = LLM("course", num_gpu_blocks_override=33, block_size=4, check_invariants=True, components=double_components())
    seen = {}

    def ask(i):
        prompts = [f"{i} {j}" for j in range(5)]
        seen[i] = [o.outputs[0].text for o in llm.generate(prompts, params())] == [continued_text(p, 8) for p in prompts]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen == dict.fromkeys(range(4), True)
    llm.llm_engine.check_invariants()


# --- to other processes, and through copies

OUTPUT = RequestOutput(
    "A", "p", [1], [None], [CompletionOutput(0, "t", [2], -1.0, [{2: Logprob(-1.0, 1, "t")}], "stop", "END")], True,
    RequestMetrics(arrival_time=1.0), 0, errors.GenerationError("cause"), [3])
ERRORS = [
    errors.EngineError("plain"),
    errors.InvalidParametersError("bad", parameter="p", value=[1, {"a": 2}]),
    errors.UnknownArgumentError("unknown", parameter="p"),
    errors.PromptTooLongError("long", parameter="prompt", value=7),
    errors.ModelLoadError("no file"),
    errors.QueueFullError(3, 2.5),
    errors.RequestTimeoutError("late", OUTPUT),
    errors.GenerationError("failed"),
    errors.EngineDeadError("dead"),
]


def all_errors(kind=errors.EngineError):
    return {kind}.union(*(all_errors(k) for k in kind.__subclasses__() if k.__module__ == errors.__name__))


def test_the_list_of_errors_here_is_complete():
    assert {type(e) for e in ERRORS} == all_errors()


@pytest.mark.parametrize("through", [
    lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_every_error_arrives_with_its_message_and_its_attributes(error, through):
    error.add_note("a note")
    twin = through(error)
    assert type(twin) is type(error) and str(twin) == str(error) and twin.args == error.args
    assert {k: v for k, v in vars(twin).items() if k != "partial"} == {k: v for k, v in vars(error).items() if k != "partial"}
    assert getattr(twin, "partial", None) is None or twin.partial.outputs == OUTPUT.outputs
    assert twin.__traceback__ is None
    with pytest.raises(type(error)) as raised:
        raise twin
    assert raised.value is twin


@pytest.mark.parametrize("value", [lambda: 0, threading.Lock(), asyncio.Future], ids=["function", "lock", "class"])
def test_an_error_about_a_value_that_cannot_be_pickled_arrives_with_its_repr(value):
    with pytest.raises(errors.InvalidParametersError) as caught:
        SamplingParams(temperature=value)
    twin = pickle.loads(pickle.dumps(caught.value))
    assert twin.parameter == "temperature" and twin.value in (value, errors.shown(value))
    assert copy.copy(caught.value).value is value
    assert isinstance(copy.deepcopy(caught.value), errors.InvalidParametersError)


@pytest.mark.parametrize("value", [
    full(), SamplingParams(structured_outputs=StructuredOutputsParams(json={"a": [1]}), logit_bias={1: 2.0}),
    StructuredOutputsParams(choice=["a"]), EngineArgs("course", seed=3), AsyncEngineArgs("course"), OUTPUT.outputs[0],
    Logprob(-1.0, 1, "t"), RequestMetrics(1.0), RequestOutputKind.DELTA,
], ids=lambda v: type(v).__name__)  # fmt: skip
def test_every_object_of_the_api_goes_through_pickle_copy_and_deepcopy(value):
    for twin in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
        assert twin == value and type(twin) is type(value)


def test_an_output_goes_through_pickle_with_its_error_times_and_blocks():
    twin = pickle.loads(pickle.dumps(OUTPUT))
    assert [getattr(twin, f.name) for f in fields(OUTPUT) if f.name != "error"] == [
        getattr(OUTPUT, f.name) for f in fields(OUTPUT) if f.name != "error"]
    assert str(twin.error) == "cause"


def test_outputs_that_say_the_same_are_equal_wherever_and_whenever_computed():
    llm = LLM("course", num_gpu_blocks_override=33, block_size=4, enable_prefix_caching=False, components=double_components())
    first, second = (llm.generate(["hello", "world"], params())[1] for _ in range(2))
    second.request_id = first.request_id
    assert first.metrics != second.metrics or first.block_indices != second.block_indices
    assert first == second
    second.outputs[0].text = "other"
    assert first != second


def ask(temperature):
    SamplingParams(temperature=temperature)


def test_an_error_of_a_worker_process_reaches_its_parent():
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as workers, pytest.raises(errors.InvalidParametersError, match="got 9") as caught:
        workers.submit(ask, 9).result(120)
    assert (caught.value.parameter, caught.value.value) == ("temperature", 9)


def test_raising_an_error_of_a_dead_engine_again_and_again_keeps_no_frames():
    async def main():
        async with serving() as engine:
            engine._steps._died = errors.EngineDeadError("dead")
            lengths = []
            for _ in range(3):
                with pytest.raises(errors.EngineDeadError) as caught:
                    await engine.check_health()
                lengths.append(len(caught.traceback))
            engine._steps._died = None
            return lengths

    assert len(set(asyncio.run(main()))) == 1
