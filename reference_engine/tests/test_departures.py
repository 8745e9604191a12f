"""Every row of the README's "Where vLLM does otherwise" is true; and what is as in vLLM, and was not always."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nano_qwen3_serving import LLM, AsyncLLM, AsyncLLMEngine, EngineArgs, RequestOutput, SamplingParams
from nano_qwen3_serving import exceptions as errors
from nano_qwen3_serving.execution.masks import forbidden_tokens
from nano_qwen3_serving.execution.model_runner import not_finite, sampling_row
from nano_qwen3_serving.interfaces import ScheduledChunk
from nano_qwen3_serving.model.checkpoint import BUNDLED, read_model_config
from nano_qwen3_serving.observe.metrics import Counter, Gauge
from nano_qwen3_serving.sampling_params import RequestOutputKind, StructuredOutputsParams
from nano_qwen3_serving.server.openai.parsers import OutputParser, ParsedOutput, joined
from nano_qwen3_serving.testing.doubles import continued_text, double_components, script, serving

README = Path(__file__).parents[1] / "README.md"
SMALL = {"model": "course", "num_gpu_blocks_override": 33, "block_size": 4}
PARAMS = SamplingParams(temperature=0, max_tokens=6)


def llm(**args) -> LLM:
    return LLM(**SMALL | args, components=double_components())


def refused(call, *args, **kwargs) -> str:
    with pytest.raises(errors.InvalidParametersError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def high_level_class() -> None:
    assert {"generate_batch", "submit_request", "get_result", "chat_stream"} <= set(dir(AsyncLLM)) - set(dir(AsyncLLMEngine))


def no_model() -> None:
    assert EngineArgs(model=None).create_engine_config().model_name == "course"


def device() -> None:
    assert EngineArgs(model="course", device="cpu").create_engine_config().device.type == "cpu"


def only_defaults() -> None:
    for name, value in (("tensor_parallel_size", 2), ("quantization", "awq"), ("speculative_config", {"a": 1})):
        assert name in refused(EngineArgs, **{name: value})


def rotary_overrides() -> None:
    yarn = {"rope_type": "yarn", "factor": 2.0}
    for name in ("rope_scaling", "rope_parameters"):
        model = EngineArgs("course", hf_overrides={name: yarn}).create_engine_config().model
        assert model.rope_scaling is not None and model.rope_theta == read_model_config(BUNDLED / "course").rope_theta
    for other in ({"max_position_embeddings": 4096}, {"architectures": ["X"]}, {"rope_scaling": yarn | {"beta": 1}}):
        assert "hf_overrides" in refused(lambda given=other: EngineArgs("course", hf_overrides=given).create_engine_config())


def unknown_arguments() -> None:
    for name in ("best_of", "use_beam_search", "logits_processors", "extra_args"):
        assert name in refused(SamplingParams, **{name: None})
    assert "lora_request" in refused(llm().generate, "x", PARAMS, lora_request=None)


def remote_code() -> None:
    with pytest.warns(UserWarning, match="never run here"):
        EngineArgs(model="course", trust_remote_code=True).create_engine_config()


def lowered_length() -> None:
    assert llm(max_model_len=2000).llm_engine.config.scheduler.max_model_len == 128


def forms_of_prompts() -> None:
    engine = llm()
    for prompt in ([1, 2], {"prompt": "x", "multi_modal_data": {}}, {"prompt_embeds": []}):
        refused(engine.generate, [prompt], PARAMS)
    assert engine.generate({"prompt_token_ids": [97]}, PARAMS)[0].finished


def surrogates() -> None:
    assert "half of a surrogate pair" in refused(llm().generate, "\ud83d", PARAMS)


def large_values() -> None:
    value: object = 1
    for _ in range(70):
        value = [value]
    refused(StructuredOutputsParams, json={"a": value})
    refused(SamplingParams, max_tokens=2**64)


def progress() -> None:
    assert "use_tqdm" in refused(llm().generate, "x", PARAMS, use_tqdm=list)


def outputs_of_a_stream() -> None:
    engine = LLM(**SMALL, components=double_components(**script("é and more ST, then STOP and the rest"))).llm_engine
    params = SamplingParams(temperature=0, max_tokens=60, stop=["STOP"], output_kind=RequestOutputKind.DELTA)
    engine.add_request("A", "|", params)
    seen = []
    while engine.has_unfinished_requests():
        seen += [output.outputs[0] for output in engine.step()]
    assert all(o.text for o in seen[:-1]) and [len(o.token_ids) for o in seen[:2]] == [2, 1]
    assert "".join(o.text for o in seen) == "é and more ST, then " and seen[-1].stop_reason == "STOP"


def equal_ids() -> None:
    async def both():
        async with serving() as engine:
            streams = [await engine.add_request("A", text, PARAMS) for text in ("x", "y")]
            return [[o async for o in s][-1] for s in streams]

    assert [(o.request_id, o.outputs[0].text) for o in asyncio.run(both())] == [
        ("A", continued_text("x", 6)), ("A", continued_text("y", 6))]


def not_finite_logits() -> None:
    import torch

    assert "bfloat16" in not_finite(torch.float16)  # test_not_finite.py has the rest


def equal_outputs() -> None:
    first, second = (RequestOutput("A", "p", [1], None, [], True, block_indices=[i]) for i in range(2))
    assert first == second and first.error is None


def metrics() -> None:
    engine = llm()
    engine.generate(["hello", "world"], PARAMS)
    found = {(m.name, *m.labels.values()): m.value for m in engine.get_metrics()}
    assert {type(m) for m in engine.get_metrics()} == {Counter, Gauge}
    assert found["vllm:prompt_tokens",] == 10 and found["vllm:generation_tokens",] == 12
    assert found["vllm:request_success", "length"] == 2 and found["vllm:num_requests_running",] == 0
    assert found["vllm:prefix_cache_queries",] == 10 and found["vllm:prefix_cache_hits",] == 0


def not_there() -> None:
    assert not {"encode", "embed", "score", "beam_search", "sleep", "collective_rpc"} & set(dir(LLM))


def tree_of_errors() -> None:
    assert issubclass(errors.InvalidParametersError, ValueError) and issubclass(errors.UnknownArgumentError, TypeError)
    assert issubclass(errors.RequestTimeoutError, TimeoutError)


def answer(text: str) -> ParsedOutput:
    parser = OutputParser(reasoning=True, tools=True)
    return joined(parser.add(text) + parser.finish())


def tags_in_arguments() -> None:
    call = '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>'
    assert [call.arguments for call in answer(call).tool_calls] == ['{"a": "</tool_call>"}']
    assert answer('<tool_call>{"nam": 1}</tool_call>').content == '<tool_call>{"nam": 1}</tool_call>'


def text_behind_calls() -> None:
    assert answer('<tool_call>{"name": "f", "arguments": {}}</tool_call>\n\nWait.').content == "Wait."


def newlines_around_thoughts() -> None:
    parsed = answer("<think>\nHm.\n</think>\n\nYes.")
    assert (parsed.reasoning, parsed.content) == ("Hm.", "Yes.")


def the_server() -> ModuleType:
    """The modules that need FastAPI."""
    pytest.importorskip("fastapi", reason="the server is not installed: pip install 'nano-qwen3-serving[server]'")
    from nano_qwen3_serving.server.openai import chat, responses_request  # noqa: F401 (found through the package)

    return sys.modules["nano_qwen3_serving.server.openai"]


def one_forced_call() -> None:
    chat = the_server().chat
    tools = [{"type": "function", "function": {"name": "f"}}]
    for asked, several in (({}, False), ({"parallel_tool_calls": True}, True)):
        request = chat.ChatRequest(messages=[], tools=tools, tool_choice="required", **asked)
        assert chat.conversation_of(request).parallel_calls is several


def stateless_responses() -> None:
    module = the_server().responses_request
    for asked in ({"previous_response_id": "resp_1"}, {"store": True}, {"background": True}):
        with pytest.raises(module.ApiError, match=next(iter(asked))):
            module.as_chat(module.ResponsesRequest(input="x", **asked))


CHECKS = {
    "`AsyncLLM`": high_level_class, "`model` left out": no_model, "`device`": device,
    "`tensor_parallel_size`, `quantization`, `speculative_config`": only_defaults,
    "`hf_overrides`": rotary_overrides, "arguments that do not exist here": unknown_arguments,
    "`trust_remote_code=True`": remote_code,
    "`max_model_len`": lowered_length, "prompts": forms_of_prompts, "strings with half of a surrogate pair": surrogates,
    "numbers of more than 64 bits, values nested more than 64 deep": large_values, "`use_tqdm`": progress,
    "a stream's outputs": outputs_of_a_stream, "`AsyncLLMEngine.generate` with an id that is in flight": equal_ids,
    "logits that are NaN or infinite": not_finite_logits, "`RequestOutput`": equal_outputs, "`LLM.get_metrics`": metrics,
    "`LLM.encode`, `embed`, `score`, `beam_search`, `sleep`, `collective_rpc`": not_there, "errors": tree_of_errors,
    "`</tool_call>` inside a string of a call's arguments": tags_in_arguments, "text behind a tool call": text_behind_calls,
    "newlines around `<think>` and `</think>`": newlines_around_thoughts, '`tool_choice="required"`': one_forced_call,
    "`/v1/responses`": stateless_responses,
}


def test_the_checks_here_are_those_of_the_table() -> None:
    section = README.read_text(encoding="utf-8").split("## Where vLLM does otherwise")[1].split("\n## ")[0]
    assert re.findall(r"^\| (?!what|---)(.*?) \|", section, re.MULTILINE) == list(CHECKS)


@pytest.mark.parametrize("row", CHECKS)
def test_each_departure_is_as_the_readme_says(row: str) -> None:
    CHECKS[row]()


# --- as in vLLM


def request_of(**params):
    return llm().llm_engine.make_requests("A", "hello", SamplingParams(temperature=0, **params))[0]


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_no_end_of_sequence_is_generated_before_min_tokens(ignore_eos: bool) -> None:
    request = request_of(min_tokens=3, ignore_eos=ignore_eos, stop_token_ids=[7])
    ends = set(llm().llm_engine.config.model.eos_token_ids)
    assert ends and forbidden_tokens(sampling_row(ScheduledChunk.of(request, 0, 5, [1]))) == ends | {7}
    request.output_token_ids = [1, 2, 3]
    assert forbidden_tokens(sampling_row(ScheduledChunk.of(request, 7, 1, [1]))) == set()


def test_the_tokenizers_eos_has_no_stop_reason_and_any_other_eos_has_its_id() -> None:
    from nano_qwen3_serving.scheduling.scheduler import finish_reason

    request = request_of()
    request.eos_token_ids, request.eos_token_id = frozenset({5, 6}), 5
    for last, stop_reason in ((5, None), (6, 6)):
        assert (finish_reason(request, last, 2), request.stop_reason) == ("stop", stop_reason)
    object.__setattr__(request.params, "ignore_eos", True)
    assert finish_reason(request, 6, 2) is None


def test_detokenize_false_leaves_the_tokens_of_log_probabilities_undecoded_too() -> None:
    params = SamplingParams(temperature=0, max_tokens=3, logprobs=2, prompt_logprobs=2, detokenize=False)
    output = llm().generate("hello", params)[0]
    positions = [*output.outputs[0].logprobs, *output.prompt_logprobs[1:]]
    assert {lp.decoded_token for each in positions for lp in each.values()} == {None}
    output = llm().generate("hello", params.clone(detokenize=True))[0]
    positions = [*output.outputs[0].logprobs, *output.prompt_logprobs[1:]]
    assert all(isinstance(lp.decoded_token, str) for each in positions for lp in each.values())


def test_a_stop_string_delays_no_output_whose_text_cannot_become_it() -> None:
    engine = llm().llm_engine
    engine.add_request("A", "hello", SamplingParams(
        temperature=0, max_tokens=6, stop=["\n\nHuman:"], output_kind=RequestOutputKind.DELTA))
    assert [len(engine.step()[0].outputs[0].token_ids) for _ in range(6)] == [1] * 6


def test_an_llm_forgets_its_cache_and_its_engine_when_told() -> None:
    engine = llm()
    engine.generate("hello there", PARAMS)
    assert engine.generate("hello there", PARAMS)[0].num_cached_tokens > 0
    assert engine.reset_prefix_cache()
    assert engine.generate("hello there", PARAMS)[0].num_cached_tokens == 0
    engine.shutdown()
    engine.shutdown()
    for call in (lambda: engine.generate("x", PARAMS), engine.get_metrics, engine.get_tokenizer, engine.reset_prefix_cache):
        with pytest.raises(errors.EngineDeadError, match="make a new one"):
            call()


def test_the_tokenizer_answers_what_scripts_ask_as_transformers_does() -> None:
    from transformers import AutoTokenizer

    from nano_qwen3_serving.model.checkpoint import BUNDLED
    from nano_qwen3_serving.text.tokenizer import Tokenizer

    ours, theirs = Tokenizer.from_folder(BUNDLED / "course"), AutoTokenizer.from_pretrained(BUNDLED / "course")
    for name in ("eos_token", "eos_token_id", "bos_token", "bos_token_id", "pad_token", "pad_token_id", "vocab_size"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs) and ours.get_vocab() == theirs.get_vocab()
    assert set(theirs.all_special_ids) <= set(ours.all_special_ids)
    ids = theirs("What is a KV cache?").input_ids
    assert ours("What is a KV cache?")["input_ids"] == ids
    assert ours(["a", "bc"]) == {"input_ids": theirs(["a", "bc"]).input_ids, "attention_mask": theirs(["a", "bc"]).attention_mask}
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert ours.convert_tokens_to_ids(ours.convert_ids_to_tokens(ids)) == ids
    assert ours.batch_decode([ids, ids[:2]]) == theirs.batch_decode([ids, ids[:2]])
