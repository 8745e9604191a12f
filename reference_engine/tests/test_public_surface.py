"""The names, defaults, ranges and normalisations that users of vLLM rely on, one by one."""

import dataclasses
import inspect
import math
import subprocess
import sys
import warnings

import pytest

import nano_qwen3_serving
from nano_qwen3_serving import (
    LLM,
    AsyncEngineArgs,
    AsyncLLM,
    AsyncLLMEngine,
    CompletionOutput,
    EngineArgs,
    LLMEngine,
    RequestOutput,
    SamplingParams,
    TextPrompt,
    TokensPrompt,
)
from nano_qwen3_serving.exceptions import InvalidParametersError, UnknownArgumentError
from nano_qwen3_serving.outputs import Logprob, RequestMetrics
from nano_qwen3_serving.sampling_params import RequestOutputKind
from nano_qwen3_serving.testing.doubles import double_components

SAMPLING_DEFAULTS = {
    "n": 1, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "temperature": 1.0,
    "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": None, "stop": None, "stop_token_ids": None,
    "ignore_eos": False, "max_tokens": 16, "min_tokens": 0, "logprobs": None, "prompt_logprobs": None,
    "detokenize": True, "skip_special_tokens": True, "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False, "output_kind": RequestOutputKind.CUMULATIVE,
    "structured_outputs": None, "logit_bias": None, "allowed_token_ids": None, "bad_words": None,
}  # fmt: skip
ENGINE_DEFAULTS = {
    "tokenizer": None, "dtype": "auto", "trust_remote_code": False, "seed": 0, "max_model_len": None,
    "block_size": None, "enable_prefix_caching": None, "gpu_memory_utilization": 0.92,
    "kv_cache_memory_bytes": None, "num_gpu_blocks_override": None, "max_num_batched_tokens": None,
    "max_num_seqs": None, "enable_chunked_prefill": None, "enforce_eager": False, "tensor_parallel_size": 1,
    "scheduling_policy": "fcfs", "max_logprobs": 20, "stream_interval": 1, "stream_pause": 0.0,
    "max_num_queued_reqs": None, "disable_log_stats": False, "hf_overrides": {},
    "quantization": None, "speculative_config": None, "device": "auto",
}  # fmt: skip


# --- imports


@pytest.mark.parametrize(
    "line",
    [
        "from nano_qwen3_serving import LLM, SamplingParams, AsyncLLMEngine, AsyncEngineArgs, EngineArgs, "
        "LLMEngine, RequestOutput, CompletionOutput, TextPrompt, TokensPrompt",
        "from nano_qwen3_serving import AsyncLLM",
        "from nano_qwen3_serving.engine.arg_utils import AsyncEngineArgs, EngineArgs",
        "from nano_qwen3_serving.engine.async_llm_engine import AsyncLLMEngine",
        "from nano_qwen3_serving.engine.llm_engine import LLMEngine",
        "from nano_qwen3_serving.sampling_params import SamplingParams, RequestOutputKind",
        "from nano_qwen3_serving.outputs import RequestOutput, CompletionOutput",
    ],
)
def test_the_import_lines_of_vllm_work_with_the_package_name_changed(line):
    exec(line, {})


def test_the_package_imports_lazily_so_that_naming_it_loads_no_torch_and_no_part():
    code = (
        "import sys, nano_qwen3_serving\n"
        "loaded = {'torch', 'tokenizers', 'transformers', 'nano_qwen3_serving.llm'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "nano_qwen3_serving.SamplingParams\n"
        "assert 'torch' not in sys.modules and 'nano_qwen3_serving.llm' not in sys.modules\n"
        "nano_qwen3_serving.LLM\n"
        "parts = ['scheduling.scheduler', 'scheduling.block_manager', 'attention.torch_paged', 'model.qwen3',\n"
        "         'execution.sampler', 'text.detokenizer', 'text.tokenizer']\n"
        "loaded = {p for p in parts if 'nano_qwen3_serving.' + p in sys.modules}\n"
        "assert not loaded, loaded\n"
        "assert 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_listed_and_an_unknown_one_is_an_attribute_error():
    for name in nano_qwen3_serving.__all__:
        assert name in dir(nano_qwen3_serving)
        assert getattr(nano_qwen3_serving, name).__name__ == name
    with pytest.raises(AttributeError, match="LLLM"):
        nano_qwen3_serving.LLLM  # noqa: B018


# --- SamplingParams


def test_sampling_params_have_vllms_fields_in_vllms_order_and_no_others():
    assert [f.name for f in dataclasses.fields(SamplingParams)] == list(SAMPLING_DEFAULTS)


@pytest.mark.parametrize(("name", "value"), SAMPLING_DEFAULTS.items())
def test_the_default_of_each_sampling_parameter_is_vllms(name, value):
    assert getattr(SamplingParams(), name) == value


@pytest.mark.parametrize(
    "given",
    [
        {"n": 1}, {"n": 64}, {"presence_penalty": -2}, {"presence_penalty": 2.0}, {"frequency_penalty": -2.0},
        {"frequency_penalty": 2}, {"repetition_penalty": 0.01}, {"repetition_penalty": 50.0},
        {"temperature": 0}, {"temperature": 2}, {"temperature": 0.01}, {"top_p": 1}, {"top_p": 1e-9},
        {"top_k": -1}, {"top_k": 0}, {"top_k": 5_000_000}, {"min_p": 0}, {"min_p": 1}, {"seed": 0}, {"seed": -5},
        {"max_tokens": 1}, {"max_tokens": None}, {"min_tokens": 16}, {"min_tokens": 99, "max_tokens": None},
        {"stop": "x"}, {"stop": ["x", "yz"]}, {"stop": []}, {"stop": [], "detokenize": False},
        {"stop_token_ids": []}, {"stop_token_ids": [0, 7]}, {"logprobs": 0}, {"logprobs": -1},
        {"logit_bias": {3: -100, 4: 100.0}}, {"allowed_token_ids": [1]}, {"bad_words": ["x"]}, {"bad_words": []},
        {"output_kind": RequestOutputKind.DELTA}, {"output_kind": 2},
    ],
    ids=str,
)  # fmt: skip
def test_the_edge_of_each_range_is_accepted(given):
    params = SamplingParams(**given)
    assert all(getattr(params, name) is not None for name in given if given[name] is not None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0), ("n", -1), ("n", 1.0), ("n", "2"), ("n", True), ("n", None),
        ("presence_penalty", 2.01), ("presence_penalty", -2.01), ("presence_penalty", "0"),
        ("frequency_penalty", 2.01), ("frequency_penalty", -2.01), ("frequency_penalty", None),
        ("repetition_penalty", 0), ("repetition_penalty", -1.0), ("repetition_penalty", math.inf),
        ("repetition_penalty", math.nan), ("repetition_penalty", 1e-146),
        ("temperature", -0.1), ("temperature", 2.01), ("temperature", math.inf),
        ("temperature", math.nan), ("temperature", "hot"), ("temperature", True), ("temperature", None),
        ("top_p", 0), ("top_p", 1.01), ("top_p", -0.5), ("top_p", math.nan), ("top_k", -2), ("top_k", 1.5),
        ("top_k", True), ("min_p", -0.01), ("min_p", 1.01), ("seed", 1.5), ("seed", "1"), ("seed", False),
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 1.0), ("min_tokens", -1), ("min_tokens", 17),
        ("min_tokens", None), ("logprobs", -2), ("logprobs", 1.0), ("logprobs", True), ("prompt_logprobs", -2),
        ("stop", ""), ("stop", ["a", ""]), ("stop", [1]), ("stop", ("a",)), ("stop", b"a"),
        ("stop_token_ids", 3), ("stop_token_ids", [-1]), ("stop_token_ids", ["1"]), ("stop_token_ids", [1.0]),
        ("ignore_eos", 1), ("detokenize", None), ("skip_special_tokens", "yes"),
        ("spaces_between_special_tokens", 0), ("include_stop_str_in_output", "no"), ("output_kind", 3),
        ("output_kind", "delta"), ("structured_outputs", 5), ("logit_bias", [1]),
        ("logit_bias", {-1: 1.0}), ("logit_bias", {"1": 1.0}), ("allowed_token_ids", []),
        ("allowed_token_ids", [-1]), ("allowed_token_ids", (1,)), ("bad_words", "x"), ("bad_words", [""]),
        ("bad_words", [1]),
    ],
)  # fmt: skip
def test_a_value_outside_the_range_is_refused_with_its_name_and_value(name, value):
    with pytest.raises(InvalidParametersError) as caught:
        SamplingParams(**{name: value})
    assert isinstance(caught.value, ValueError)
    assert caught.value.parameter == name
    assert name in str(caught.value)
    shown = [value, *value] if isinstance(value, (list, dict)) else [value]
    assert any(repr(v) in str(caught.value) for v in shown)


@pytest.mark.parametrize("bias", [-100.5, 101, math.nan, "1"])
def test_a_logit_bias_outside_its_range_is_refused_with_its_token(bias):
    with pytest.raises(InvalidParametersError, match=r"logit_bias\[7\]"):
        SamplingParams(logit_bias={7: bias})


def test_stop_strings_need_text():
    with pytest.raises(InvalidParametersError, match="detokenize"):
        SamplingParams(stop="END", detokenize=False)


def test_temperatures_that_overflow_are_raised_to_a_hundredth_with_a_warning():
    with pytest.warns(UserWarning, match="0.005"):
        assert SamplingParams(temperature=0.005).temperature == 0.01


def test_the_warning_points_at_the_callers_line():
    with pytest.warns(UserWarning) as caught:
        SamplingParams(temperature=0.005)
    assert caught[0].filename == __file__


def test_a_hundredth_itself_needs_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SamplingParams(temperature=0.01).temperature == 0.01


def test_temperature_zero_is_greedy_and_resets_the_filters():
    params = SamplingParams(temperature=0, top_p=0.5, top_k=7, min_p=0.3)
    assert params.is_greedy
    assert (params.top_p, params.top_k, params.min_p) == (1.0, 0, 0.0)


def test_several_greedy_completions_are_refused_because_they_would_be_equal():
    with pytest.raises(InvalidParametersError, match="n must be 1 when temperature is 0"):
        SamplingParams(n=2, temperature=0)


def test_minus_one_is_top_k_off():
    assert SamplingParams(top_k=-1).top_k == 0


def test_one_stop_string_becomes_a_list():
    assert SamplingParams(stop="END").stop == ["END"]


@pytest.mark.parametrize(
    ("name", "expected"), [("greedy", (0.0, 1.0, 0)), ("balanced", (0.7, 0.9, 40)), ("creative", (0.8, 0.9, 50))]
)
def test_the_named_presets_are_what_users_of_async_llm_know(name, expected):
    params = getattr(SamplingParams, name)(max_tokens=5)
    assert (params.temperature, params.top_p, params.top_k) == expected
    assert params.max_tokens == 5
    assert getattr(SamplingParams, name)(temperature=1.5).temperature == 1.5


def test_a_clone_is_checked_like_new_arguments_and_leaves_the_original_alone():
    params = SamplingParams(max_tokens=5)
    assert params.clone(max_tokens=6).max_tokens == 6 and params.max_tokens == 5
    with pytest.raises(InvalidParametersError):
        params.clone(max_tokens=0)


def test_output_kinds_have_vllms_numbers():
    assert {k.name: int(k) for k in RequestOutputKind} == {"CUMULATIVE": 0, "DELTA": 1, "FINAL_ONLY": 2}


# --- EngineArgs


@pytest.mark.parametrize("kind", [EngineArgs, AsyncEngineArgs])
@pytest.mark.parametrize(("name", "value"), ENGINE_DEFAULTS.items())
def test_the_default_of_each_engine_argument_is_vllms(kind, name, value):
    assert getattr(kind(), name) == value


def test_what_none_means_is_decided_once_and_is_vllms():
    config = EngineArgs(model="course").create_engine_config()
    assert config.cache.block_size == 16
    assert config.cache.enable_prefix_caching is True
    assert config.scheduler.max_num_batched_tokens == 2048
    assert config.scheduler.max_num_seqs == 128
    assert config.scheduler.enable_chunked_prefill is True
    assert config.scheduler.max_model_len == config.model.max_position_embeddings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", ""), ("model", 5), ("tokenizer", ""), ("tokenizer", 1.0), ("dtype", "int8"), ("dtype", None),
        ("trust_remote_code", 1), ("seed", -1), ("seed", None), ("seed", 0.5),
        ("max_model_len", 0), ("max_model_len", 10.0), ("block_size", 0), ("block_size", -16), ("block_size", "16"),
        ("enable_prefix_caching", 1), ("gpu_memory_utilization", 0), ("gpu_memory_utilization", 1.5),
        ("gpu_memory_utilization", "0.9"), ("kv_cache_memory_bytes", 0), ("num_gpu_blocks_override", 1),
        ("num_gpu_blocks_override", 0), ("max_num_batched_tokens", 0), ("max_num_seqs", 0), ("max_num_seqs", True),
        ("enable_chunked_prefill", "yes"), ("long_prefill_token_threshold", -1), ("enforce_eager", 1),
        ("tensor_parallel_size", 2), ("tensor_parallel_size", 0), ("scheduling_policy", "random"),
        ("max_logprobs", -2), ("stream_interval", 0), ("stream_pause", -1), ("max_num_queued_reqs", 0),
        ("disable_log_stats", None),
        ("quantization", "awq"), ("speculative_config", {}), ("check_invariants", 1),
        ("hf_overrides", None), ("hf_overrides", "yarn"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [EngineArgs, AsyncEngineArgs])
def test_an_engine_argument_outside_its_range_is_refused_with_its_name_and_value(kind, name, value):
    with pytest.raises(InvalidParametersError) as caught:
        kind(**{name: value})
    assert caught.value.parameter == name
    assert name in str(caught.value) and repr(value) in str(caught.value)


def test_a_script_that_trusts_remote_code_runs_with_one_warning():
    with pytest.warns(UserWarning, match="never run here") as caught:
        assert LLM(model="course", trust_remote_code=True, num_gpu_blocks_override=16, components=double_components())
    assert len(caught) == 1


@pytest.mark.parametrize(("given", "words"), [
    ({"num_gpu_blocks_override": 10**12}, "memory has"), ({"kv_cache_memory_bytes": 2**62}, "memory has"),
    ({"block_size": 2**62}, "two blocks"), ({"model": "a" * 300}, "255 bytes"), ({"model": "a/" * 3000}, "4096 characters"),
    ({"tokenizer": "half \ud83d"}, "surrogate"), ({"max_num_seqs": 2**70}, "at most 9223372036854775807"),
])  # fmt: skip
def test_what_no_machine_has_room_for_is_refused_before_it_is_allocated(given, words):
    with pytest.raises(InvalidParametersError, match=words) as caught:
        EngineArgs(**{"model": "course"} | given).create_engine_config()
    assert caught.value.parameter in (*given, "kv_cache_memory_bytes")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"max_model_len": 1_000_000}, "max_model_len"),
        ({"max_num_batched_tokens": 4, "max_num_seqs": 8}, "max_num_batched_tokens"),
        ({"max_num_batched_tokens": 256, "enable_chunked_prefill": False}, "max_num_batched_tokens"),
        ({"long_prefill_token_threshold": 8, "enable_chunked_prefill": False}, "long_prefill_token_threshold"),
        ({"kv_cache_memory_bytes": 100}, "kv_cache_memory_bytes"),
        ({"device": "tpu"}, "device"),
        ({"device": 5}, "device"),
    ],
)
def test_arguments_that_do_not_fit_together_or_this_machine_are_refused(given, name):
    with pytest.raises(InvalidParametersError) as caught:
        EngineArgs(model="course", **given).create_engine_config()
    assert caught.value.parameter == name
    assert str(given[name]) in str(caught.value)


def test_a_device_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(InvalidParametersError, match="'cpu'"):
        EngineArgs(model="course", device="tpu").create_engine_config()


def test_a_pool_smaller_than_the_models_length_bounds_the_length():
    config = EngineArgs(model="course", num_gpu_blocks_override=9, block_size=4).create_engine_config()
    assert config.scheduler.max_model_len == 8 * 4  # one block is the null block


def test_kv_memory_in_bytes_is_what_the_pool_takes_at_most():
    config = EngineArgs(model="course", kv_cache_memory_bytes=1_000_000).create_engine_config()
    block = 2 * config.model.num_hidden_layers * 16 * config.model.num_key_value_heads * config.model.head_dim * 4
    assert config.cache.num_blocks == 1_000_000 // block


def test_auto_is_float32_for_the_bundled_checkpoints():
    assert str(EngineArgs(model="course").create_engine_config().dtype) == "torch.float32"


def test_the_model_left_out_is_the_environments_or_the_bundled_one(monkeypatch):
    monkeypatch.delenv("NANO_QWEN3_MODEL", raising=False)
    assert EngineArgs().create_engine_config().model_name == "course"
    monkeypatch.setenv("NANO_QWEN3_MODEL", "course-draft")
    assert EngineArgs().create_engine_config().model_name == "course-draft"
    assert AsyncLLM().model_name == "course-draft"


# --- unknown arguments


@pytest.fixture(scope="module")
def llm():
    return LLM(model="course", num_gpu_blocks_override=32, components=double_components())


@pytest.fixture
def async_engine():
    engine = AsyncLLMEngine.from_engine_args(
        EngineArgs(model="course", num_gpu_blocks_override=32), components=double_components()
    )
    yield engine
    engine.shutdown()


@pytest.mark.parametrize(
    ("construct", "given", "meant"),
    [
        (SamplingParams, "temprature", "temperature"),
        (SamplingParams, "best_of", None),
        (SamplingParams, "use_beam_search", None),
        (SamplingParams.greedy, "max_token", "max_tokens"),
        (EngineArgs, "block_sizes", "block_size"),
        (AsyncEngineArgs, "max_num_seq", "max_num_seqs"),
        (LLM, "max_model_length", "max_model_len"),
        (AsyncLLM, "max_queue", "max_queue_size"),
        (AsyncLLM, "model", "model_name"),
    ],
)
def test_an_unknown_argument_of_a_constructor_is_an_error_that_names_it(construct, given, meant):
    with pytest.raises(UnknownArgumentError, match=repr(given)) as caught:
        construct(**{given: 1})
    assert isinstance(caught.value, TypeError)
    assert caught.value.parameter == given
    if meant:
        assert repr(meant) in str(caught.value)


@pytest.mark.parametrize("construct", [LLMEngine.from_engine_args, AsyncLLMEngine.from_engine_args])
def test_an_unknown_argument_of_from_engine_args_is_an_error_that_names_it(construct):
    with pytest.raises(UnknownArgumentError, match="'recoder'.*'recorder'"):
        construct(EngineArgs(model="course"), recoder=None)


@pytest.mark.parametrize("call", ["generate", "chat"])
def test_an_unknown_argument_of_llm_is_an_error_that_names_it(llm, call):
    given = {"generate": "hello", "chat": [{"role": "user", "content": "hello"}]}[call]
    with pytest.raises(UnknownArgumentError, match="'max_tokens'"):
        getattr(llm, call)(given, max_tokens=5)
    assert not llm.llm_engine.has_unfinished_requests()


@pytest.mark.parametrize("call", ["generate", "add_request"])
async def test_an_unknown_argument_of_the_async_engine_is_an_error_that_names_it(async_engine, call):
    with pytest.raises(UnknownArgumentError, match="'lora_request'"):
        getattr(async_engine, call)("a", "b", SamplingParams(), lora_request=None)


@pytest.mark.parametrize(
    "call", ["generate", "generate_stream", "chat_stream", "chat", "generate_batch", "submit_request"]
)
async def test_an_unknown_argument_of_async_llm_is_an_error_that_names_it(call):
    async with AsyncLLM(num_blocks=32) as llm:
        given = [{"role": "user", "content": "hello"}] if "chat" in call else "hello"
        with pytest.raises(UnknownArgumentError, match="'max_tokens'"):
            result = getattr(llm, call)(given, max_tokens=5)
            if inspect.isasyncgen(result):
                await anext(result)
            else:
                await result


# --- outputs


def test_outputs_have_vllms_fields():
    assert [f.name for f in dataclasses.fields(CompletionOutput)] == [
        "index", "text", "token_ids", "cumulative_logprob", "logprobs", "finish_reason", "stop_reason"]  # fmt: skip
    assert [f.name for f in dataclasses.fields(RequestOutput)][:8] == [
        "request_id", "prompt", "prompt_token_ids", "prompt_logprobs", "outputs", "finished", "metrics",
        "num_cached_tokens"]  # fmt: skip
    assert [f.name for f in dataclasses.fields(Logprob)] == ["logprob", "rank", "decoded_token"]
    assert {f.name for f in dataclasses.fields(RequestMetrics)} >= {
        "arrival_time", "queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts", "num_generation_tokens",
        "num_preemptions"}  # fmt: skip


def test_finished_is_a_method_of_a_completion_and_an_attribute_of_a_request():
    completion = CompletionOutput(0, "", [], finish_reason="stop")
    assert completion.finished() is True
    assert CompletionOutput(0, "", []).finished() is False
    assert RequestOutput("A", "p", [1], None, [completion], finished=True).finished is True


def test_prompts_are_dicts_with_vllms_keys():
    assert TextPrompt(prompt="x") == {"prompt": "x"}
    assert TokensPrompt(prompt_token_ids=[1]) == {"prompt_token_ids": [1]}


# --- signatures


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (AsyncLLMEngine.generate, ["prompt", "sampling_params", "request_id", "priority"]),
        (AsyncLLMEngine.add_request, ["request_id", "prompt", "params", "arrival_time", "priority"]),
        (AsyncLLMEngine.abort, ["request_id"]),
        (AsyncLLMEngine.shutdown, ["timeout"]),
        (AsyncLLMEngine.from_engine_args, ["engine_args", "start_engine_loop"]),
        (LLMEngine.add_request, ["request_id", "prompt", "params", "arrival_time", "priority"]),
        (LLM.generate, ["prompts", "sampling_params", "use_tqdm", "priority"]),
        (LLM.chat, ["messages", "sampling_params", "use_tqdm", "chat_template", "add_generation_prompt",
                    "continue_final_message"]),
    ],
)  # fmt: skip
def test_the_arguments_of_each_call_are_vllms_in_vllms_order(function, names):
    found = [p for p in inspect.signature(function).parameters if p != "self"]
    assert found[: len(names)] == names


@pytest.mark.parametrize("name", ["is_running", "is_stopped", "errored", "dead_error"])
def test_the_state_of_an_async_engine_is_in_properties(name):
    assert isinstance(inspect.getattr_static(AsyncLLMEngine, name), property)
