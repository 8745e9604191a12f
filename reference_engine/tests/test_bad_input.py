"""What is wrong is refused by name and value, to the caller who made the mistake; others go on."""

import asyncio
import json
import shutil
import threading

import pytest

from nano_qwen3_serving import LLM, AsyncEngineArgs, AsyncLLM, AsyncLLMEngine, EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.exceptions import (
    EngineDeadError,
    EngineError,
    InvalidParametersError,
    ModelLoadError,
    PromptTooLongError,
    QueueFullError,
    UnknownArgumentError,
)
from nano_qwen3_serving.model.checkpoint import BUNDLED
from nano_qwen3_serving.testing.doubles import StepGate, continued_text, double_components

GREEDY = SamplingParams(temperature=0, max_tokens=6)
# capacity: 8 blocks of 4 tokens, so that 31 tokens is the longest prompt with an answer
SMALL = {"model": "course", "num_gpu_blocks_override": 9, "block_size": 4, "check_invariants": True}


def async_engine(gate=None, components=None, **args):
    return AsyncLLMEngine.from_engine_args(
        AsyncEngineArgs(**{**SMALL, **args}), components=components or double_components(), gate=gate)


async def text_of(stream):
    output = None
    async for output in stream:
        pass
    return output.outputs[0].text


# --- the errors: what was wrong, with its value, and a way out

REQUESTS = {
    "an empty prompt": ("", GREEDY, InvalidParametersError, "prompt", ["empty", "at least one token"]),
    "no tokens": ({"prompt_token_ids": []}, GREEDY, InvalidParametersError, "prompt", ["empty"]),
    "a prompt that is a number": (5, GREEDY, InvalidParametersError, "prompt", ["5", "string"]),
    "a prompt that is None": (None, GREEDY, InvalidParametersError, "prompt", ["None", "string"]),
    "a prompt with an unknown key": (
        {"prompt": "x", "prompt_tokens": [1]}, GREEDY, InvalidParametersError, "prompt", ["prompt_tokens"]),
    "a prompt without text or tokens": ({"cache_salt": "s"}, GREEDY, InvalidParametersError, "prompt", ["cache_salt"]),
    "text that is bytes": ({"prompt": b"x"}, GREEDY, InvalidParametersError, "prompt", ["b'x'", "string"]),
    "tokens that are a string": (
        {"prompt_token_ids": "12"}, GREEDY, InvalidParametersError, "prompt_token_ids", ["'12'", "list of ints"]),
    "tokens that are floats": (
        {"prompt_token_ids": [1.0]}, GREEDY, InvalidParametersError, "prompt_token_ids", ["1.0"]),
    "a token outside the vocabulary": (
        {"prompt_token_ids": [1, 999_999]}, GREEDY, InvalidParametersError, "prompt_token_ids", ["999999", "2047"]),
    "a negative token": ({"prompt_token_ids": [-1]}, GREEDY, InvalidParametersError, "prompt_token_ids", ["-1"]),
    "a salt that is no string": (
        {"prompt": "x", "cache_salt": 7}, GREEDY, InvalidParametersError, "cache_salt", ["7", "string"]),
    "a prompt longer than the pool": ("x" * 33, GREEDY, PromptTooLongError, "prompt", ["33", "32", "shorten"]),
    "a prompt that leaves no room for an answer": (
        "x" * 32, GREEDY, PromptTooLongError, "prompt", ["32", "max_model_len"]),
    "parameters that are a dict": (
        "x", {"max_tokens": 5}, InvalidParametersError, "sampling_params", ["max_tokens", "SamplingParams"]),
    "a stop token outside the vocabulary": (
        "x", SamplingParams(stop_token_ids=[2048]), InvalidParametersError, "stop_token_ids", ["2048", "2047"]),
    "a biased token outside the vocabulary": (
        "x", SamplingParams(logit_bias={5000: 1.0}), InvalidParametersError, "logit_bias", ["5000", "2047"]),
    "an allowed token outside the vocabulary": (
        "x", SamplingParams(allowed_token_ids=[5000]), InvalidParametersError, "allowed_token_ids", ["5000", "2047"]),
    "more log-probabilities than the engine gives": (
        "x", SamplingParams(logprobs=21), InvalidParametersError, "logprobs", ["21", "20", "max_logprobs"]),
    "all log-probabilities where the engine gives some": (
        "x", SamplingParams(logprobs=-1), InvalidParametersError, "logprobs", ["-1", "20"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", REQUESTS)
async def test_each_mistake_is_raised_to_its_caller_while_another_request_goes_on(mistake):
    prompt, params, error, parameter, words = REQUESTS[mistake]
    gate = StepGate()
    engine = async_engine(gate)
    try:
        async with asyncio.timeout(20):
            neighbour = await engine.add_request("neighbour", "hello", GREEDY)
            await gate.at_step(2)  # it runs
            with pytest.raises(error) as caught:
                await anext(engine.generate(prompt, params, "mine"))
            with pytest.raises(error):
                await engine.add_request("mine too", prompt, params)
            assert caught.value.parameter == parameter
            for word in words:
                assert word in str(caught.value), f"the message does not say {word!r}: {caught.value}"
            gate.open()
            assert await text_of(neighbour) == continued_text("hello", 6)
            assert len(engine.waiting_room) == 0
    finally:
        gate.open()
        engine.shutdown()
    engine.engine.check_invariants()


@pytest.mark.parametrize("mistake", REQUESTS)
def test_each_mistake_is_raised_by_the_synchronous_engine_and_nothing_was_added(mistake):
    prompt, params, error, _, _ = REQUESTS[mistake]
    engine = LLMEngine.from_engine_args(EngineArgs(**SMALL), double_components())
    with pytest.raises(error):
        engine.add_request("A", prompt, params)
    assert not engine.has_unfinished_requests()


@pytest.mark.parametrize("mistake", REQUESTS)
def test_one_mistake_in_a_batch_is_raised_before_anything_runs(mistake):
    prompt, params, error, _, _ = REQUESTS[mistake]
    steps = []
    llm = LLM(**SMALL, components=double_components(on_forward=steps.append))
    with pytest.raises(error):
        llm.generate(["fine", prompt], [GREEDY, params])
    assert steps == []
    assert llm.generate("fine", GREEDY)[0].outputs[0].text == continued_text("fine", 6)


@pytest.mark.parametrize("request_id", ["", None, 7])
async def test_a_request_id_is_a_string(request_id):
    engine = async_engine()
    try:
        with pytest.raises(InvalidParametersError, match="request_id must be a non-empty string"):
            await anext(engine.generate("x", GREEDY, request_id))
    finally:
        engine.shutdown()


@pytest.mark.parametrize("priority", ["high", 1.5, True, None])
async def test_a_priority_is_an_int(priority):
    engine = async_engine()
    try:
        with pytest.raises(InvalidParametersError, match="priority"):
            await anext(engine.generate("x", GREEDY, "A", priority=priority))
    finally:
        engine.shutdown()


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "1", True])
async def test_a_timeout_is_a_positive_number_of_seconds(timeout):
    engine = async_engine()
    try:
        with pytest.raises(InvalidParametersError, match="timeout"):
            await anext(engine.generate("x", GREEDY, "A", timeout=timeout))
        assert len(engine.waiting_room) == 0
    finally:
        engine.shutdown()


def test_two_requests_of_the_synchronous_engine_cannot_share_an_id():
    engine = LLMEngine.from_engine_args(EngineArgs(**SMALL), double_components())
    engine.add_request("A", "x", GREEDY)
    with pytest.raises(InvalidParametersError, match="'A' is in flight"):
        engine.add_request("A", "y", GREEDY)


def test_an_id_that_a_child_of_another_request_has_is_refused_too():
    engine = LLMEngine.from_engine_args(EngineArgs(**SMALL), double_components())
    engine.add_request("A", "x", SamplingParams(n=2, seed=1, max_tokens=3))  # its children are 0_A and 1_A
    with pytest.raises(InvalidParametersError, match="'0_A' is in flight"):
        engine.add_request("0_A", "y", GREEDY)
    engine.add_request("0_B", "y", GREEDY)
    with pytest.raises(InvalidParametersError, match="'B' is in flight"):
        engine.add_request("B", "x", SamplingParams(n=2, seed=1, max_tokens=3))
    done = []
    while engine.has_unfinished_requests():
        done += [o.request_id for o in engine.step() if o.finished]
    assert sorted(done) == ["0_B", "A"]


# --- LLM


@pytest.mark.parametrize(
    ("prompts", "kwargs", "words"),
    [
        (["a", "b"], {"sampling_params": [GREEDY]}, ["sampling_params", "1", "2"]),
        (["a", "b"], {"sampling_params": []}, ["sampling_params", "0", "2"]),
        (["a"], {"priority": [1, 2]}, ["priority", "2", "1"]),
        (["a"], {"sampling_params": [None]}, ["sampling_params", "None"]),
        ("a", {"sampling_params": {"n": 1}}, ["sampling_params", "'n'"]),
    ],
)
def test_lists_of_llm_that_do_not_fit_the_prompts_are_refused(prompts, kwargs, words):
    llm = LLM(**SMALL, components=double_components())
    with pytest.raises(InvalidParametersError) as caught:
        llm.generate(prompts, **kwargs)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "messages",
    [[], "hello", [{}], [{"role": "user"}], [{"content": "x"}], [{"role": "robot", "content": "x"}],
     [{"role": "user", "content": 5}], ["hello"], None],
    ids=str,
)  # fmt: skip
def test_malformed_messages_are_refused_by_chat(messages):
    llm = LLM(model="course", num_gpu_blocks_override=32)
    with pytest.raises(InvalidParametersError, match="messages"):
        llm.chat(messages, GREEDY)


async def test_what_a_chat_template_never_looks_at_is_refused_by_name():
    async with AsyncLLM(num_blocks=32) as llm:
        with pytest.raises(UnknownArgumentError, match="'enable_thinkin'.*'enable_thinking'"):
            await llm.chat([{"role": "user", "content": "x"}], GREEDY, enable_thinkin=False)
        await llm.chat([{"role": "user", "content": "x"}], GREEDY, enable_thinking=False)


# --- AsyncLLM


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_queue_size", 0), ("num_blocks", 1), ("num_blocks", "many"), ("block_size", 0), ("max_seq_length", 1),
        ("worker_count", 0), ("dtype", "int4"), ("device", "tpu"), ("device", 3), ("model_name", 7),
    ],
)  # fmt: skip
def test_a_bad_argument_of_async_llm_is_raised_at_once(name, value):
    with pytest.raises(InvalidParametersError) as caught:
        AsyncLLM(**{name: value})
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("call", "args", "words"),
    [
        ("get_result", ["req-999"], ["req-999", "never submitted"]),
        ("generate", ["x", {"max_tokens": 3}], ["sampling_params", "max_tokens"]),
        ("generate", ["x", SamplingParams(n=2)], ["n must be", "AsyncLLMEngine"]),
        ("generate", ["x", None, 9], ["priority", "9"]),
        ("generate_batch", ["x"], ["prompts", "list"]),
        ("generate_batch", [["x"], None, 0], ["batch_size", "0"]),
        ("submit_request", [""], ["empty"]),
        ("submit_request", ["x" * 70], ["70", "64"]),
        ("generate", [["fine", ""]], ["empty"]),
        ("chat", [[]], ["messages", "[]"]),
    ],
)
async def test_a_bad_call_of_async_llm_is_raised_and_the_next_one_works(call, args, words):
    async with asyncio.timeout(20), AsyncLLM(num_blocks=17, block_size=4, components=double_components()) as llm:
        if call == "chat":
            llm = AsyncLLM(num_blocks=33)
        with pytest.raises(InvalidParametersError) as caught:
            await getattr(llm, call)(*args)
        for word in words:
            assert word in str(caught.value)
        assert (await llm.generate("x", GREEDY))["tokens_generated"] >= 1
        stats = await llm.get_stats()
        assert stats["scheduler_stats"] == {"num_requests_running": 0, "num_requests_waiting": 0}
        await llm.shutdown()


async def test_an_unknown_id_is_a_no_op_for_abort():
    engine = async_engine()
    try:
        await engine.abort("nobody")
        await engine.abort(["nobody", "else"])
        assert await text_of(engine.generate("x", GREEDY, "A")) == continued_text("x", 6)
    finally:
        engine.shutdown()


# --- checkpoints


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the draft checkpoint, to be damaged."""
    return shutil.copytree(BUNDLED / "course-draft", tmp_path / "copy")


def load(folder):
    return LLM(model=str(folder), num_gpu_blocks_override=16)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named_with_what_to_do(checkpoint, file):
    (checkpoint / file).unlink()
    with pytest.raises(ModelLoadError, match=f"{file} is missing; .*") as caught:
        load(checkpoint)
    assert str(checkpoint) in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["cut short", "garbage", "empty"])
def test_a_corrupt_file_is_named_with_what_to_do(checkpoint, file, damage):
    path = checkpoint / file
    whole = path.read_bytes()
    path.write_bytes({"cut short": whole[: len(whole) // 2], "garbage": b"\x00\xff" * 50, "empty": b""}[damage])
    with pytest.raises(ModelLoadError, match="again") as caught:
        load(checkpoint)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, ["LlamaForCausalLM", "Qwen3ForCausalLM"]),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, ["Qwen3MoeForCausalLM", "dense"]),
        ({"architectures": None, "model_type": "gpt2"}, ["gpt2"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_parameters": None}, ["rope_scaling", "linear"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0.5}, "rope_parameters": None}, ["rope_scaling", "0.5"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"use_sliding_window": True}, ["use_sliding_window"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"hidden_size": None}, ["hidden_size"]),
        ({"num_hidden_layers": 3}, ["layer_types", "num_hidden_layers"]),
        ({"num_hidden_layers": 3, "layer_types": None}, ["lacks", "model.layers"]),
        ({"intermediate_size": 100}, ["shape", "100"]),
    ],
    ids=str,
)
def test_a_configuration_that_would_be_computed_wrongly_is_refused(checkpoint, change, words):
    path = checkpoint / "config.json"
    config = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(ModelLoadError) as caught:
        load(checkpoint)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["no/such/folder", "coarse", "./nowhere"])
def test_a_name_that_is_nothing_says_what_names_there_are(name):
    with pytest.raises(ModelLoadError, match="course") as caught:
        LLM(model=name)
    assert name in str(caught.value)


def test_a_file_where_a_folder_belongs_is_refused(checkpoint):
    with pytest.raises(ModelLoadError, match="give the folder"):
        load(checkpoint / "config.json")


def test_a_hub_that_cannot_be_reached_is_a_clear_error(monkeypatch):
    import huggingface_hub

    def unreachable(name, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ModelLoadError, match="'Qwen/Qwen9-1B'.*network is unreachable.*model='course'"):
        LLM(model="Qwen/Qwen9-1B")


async def test_a_checkpoint_that_is_missing_is_raised_by_the_first_call_and_by_start():
    llm = AsyncLLM("no/such/folder")
    for _ in range(2):
        with pytest.raises(ModelLoadError):
            await llm.generate("x")
    with pytest.raises(ModelLoadError):
        await llm.start()
    await llm.shutdown()


# --- after and during shutdown


async def test_use_after_shutdown_is_an_error_that_says_so_in_every_call():
    engine = async_engine()
    assert await text_of(engine.generate("x", GREEDY, "A")) == continued_text("x", 6)
    engine.shutdown()
    engine.shutdown()
    async with asyncio.timeout(20):
        for call in (
            lambda: anext(engine.generate("x", GREEDY, "A")),
            lambda: engine.add_request("A", "x", GREEDY),
            engine.check_health,
            engine.get_stats,
            engine.reset_prefix_cache,
            lambda: engine.run_text(len, "x"),
        ):
            with pytest.raises(EngineDeadError, match="shut down.*start a new one"):
                await call()
        await engine.abort("A")
    assert engine.is_stopped and not engine.is_running and not engine.errored


async def test_use_of_async_llm_after_shutdown_is_an_error_in_every_call():
    llm = AsyncLLM(components=double_components())
    await llm.generate("x", GREEDY)
    await llm.shutdown()
    message = [{"role": "user", "content": "x"}]
    async with asyncio.timeout(20):
        for call in (
            lambda: llm.generate("x"),
            lambda: llm.generate(["x", "y"]),
            lambda: anext(llm.generate_stream("x")),
            lambda: llm.chat(message),
            lambda: anext(llm.chat_stream(message)),
            lambda: llm.generate_batch(["x"]),
            lambda: llm.submit_request("x"),
            llm.get_stats,
            llm.start,
        ):
            with pytest.raises(EngineDeadError, match="shut down"):
                await call()


async def test_shutdown_while_async_llm_starts_ends_whoever_waits_and_leaves_no_engine():
    building, go_on, before = threading.Event(), threading.Event(), set(threading.enumerate())

    def slow_tokenizer(config):
        building.set()
        assert go_on.wait(20)
        return double_components().tokenizer(config)

    llm = AsyncLLM(components=double_components(tokenizer=slow_tokenizer))
    async with asyncio.timeout(20):
        waiter = asyncio.create_task(llm.generate("x", GREEDY))
        await asyncio.to_thread(building.wait)
        await llm.shutdown()
        go_on.set()
        with pytest.raises(EngineDeadError):
            await waiter
    assert not any(t.name == "engine-step" for t in set(threading.enumerate()) - before)


async def test_shutdown_with_requests_running_waiting_and_tokenised_ends_every_waiter():
    tokenising, go_on = threading.Event(), threading.Event()

    def slow(text):
        if text.startswith("slow"):
            tokenising.set()
            assert go_on.wait(20)

    gate = StepGate()
    engine = async_engine(gate, double_components(on_encode=slow), max_num_seqs=1)
    async with asyncio.timeout(20):
        tasks = {
            name: asyncio.create_task(text_of(engine.generate(name, GREEDY, name)))
            for name in ("running", "waiting")}
        await gate.at_step(1)
        # two text threads: both are busy with the first two, the third's prompt waits for a thread
        for name in ("slow 1", "slow 2", "slow 3"):
            tasks[name] = asyncio.create_task(text_of(engine.generate(name, GREEDY, name)))
        await asyncio.to_thread(tokenising.wait)
        while len(engine.waiting_room) < 4:
            await asyncio.sleep(0)
        closing = asyncio.create_task(asyncio.to_thread(engine.shutdown))
        await asyncio.wait([tasks["running"], tasks["waiting"], tasks["slow 3"]])
        go_on.set()
        gate.open()
        for name, result in zip(tasks, await asyncio.gather(*tasks.values(), return_exceptions=True), strict=True):
            assert isinstance(result, EngineDeadError), f"{name} got {result!r}"
        assert len(engine.waiting_room) == 0
        await closing


async def test_shutdown_of_async_llm_ends_submitted_requests():
    gate = StepGate()
    llm = AsyncLLM(components=double_components(on_forward=lambda contexts: gate()))
    async with asyncio.timeout(20):
        request_id = await llm.submit_request("hello", GREEDY)
        closing = asyncio.create_task(llm.shutdown())
        gate.open()
        await closing
        result = await asyncio.gather(llm.get_result(request_id), return_exceptions=True)
        assert isinstance(result[0], (EngineDeadError, dict))


async def test_shutdown_with_a_timeout_lets_requests_in_flight_finish():
    engine = async_engine()
    async with asyncio.timeout(20):
        task = asyncio.create_task(text_of(engine.generate("x", GREEDY, "A")))
        while not engine._steps.streams_of("A"):
            await asyncio.sleep(0)
        await asyncio.to_thread(engine.shutdown, 10)
        assert await task == continued_text("x", 6)


async def test_shutdown_with_a_timeout_that_passes_ends_who_is_left():
    gate = StepGate()
    engine = async_engine(gate)
    async with asyncio.timeout(20):
        task = asyncio.create_task(text_of(engine.generate("x", GREEDY, "A")))
        await gate.at_step(0)
        closing = asyncio.create_task(asyncio.to_thread(engine.shutdown, 0.01))
        with pytest.raises(EngineDeadError):
            await task
        gate.open()
        await closing


async def test_one_more_than_the_queue_holds_is_refused_at_once_with_when_to_come_back():
    gate = StepGate()
    engine = async_engine(gate, max_num_queued_reqs=2)
    try:
        async with asyncio.timeout(20):
            streams = [await engine.add_request(name, name, GREEDY) for name in ("A", "B")]
            with pytest.raises(QueueFullError, match="2 requests are waiting.*max_num_queued_reqs") as caught:
                await engine.add_request("C", "C", GREEDY)
            assert caught.value.limit == 2 and caught.value.retry_after > 0
            gate.open()
            assert [await text_of(s) for s in streams] == [continued_text(name, 6) for name in ("A", "B")]
            assert await text_of(engine.generate("C", GREEDY, "C")) == continued_text("C", 6)
    finally:
        gate.open()
        engine.shutdown()


def test_every_error_is_an_engine_error_so_that_one_except_catches_them():
    import nano_qwen3_serving.exceptions as exceptions

    errors = [e for e in vars(exceptions).values() if isinstance(e, type) and issubclass(e, BaseException)]
    assert len(errors) == 9 and all(issubclass(e, EngineError) for e in errors)
