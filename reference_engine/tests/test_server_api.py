"""OpenAI's own client against the server, over a real socket: what comes back is what `LLM` says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from nano_qwen3_serving import LLM, CompletionOutput, SamplingParams
from nano_qwen3_serving.sampling_params import StructuredOutputsParams

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed: pip install -r requirements-dev.txt")

pytestmark = pytest.mark.slow

QUESTION = "What is a KV cache?"
ASK = [{"role": "user", "content": QUESTION}]
WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a city.", "parameters": {
        "type": "object", "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"enum": [1, 2]}},
        "required": ["city", "days"], "additionalProperties": False,
        "$defs": {"city": {"enum": ["Paris", "Oslo"]}}}}}
TIME = {"type": "function", "function": {"name": "the_time"}}


@pytest.fixture(scope="module")
def client(course_server):
    with openai.OpenAI(base_url=f"{course_server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def with_defaults(llm: LLM, params: dict[str, Any]) -> SamplingParams:
    """The parameters, and the checkpoint's own for what is left out."""
    return SamplingParams(**llm.llm_engine.config.model.generation_defaults | params)


def completed(llm: LLM, prompt: Any = QUESTION, **params: Any) -> CompletionOutput:
    """What `LLM.generate` says."""
    return llm.generate(prompt, with_defaults(llm, params), use_tqdm=False)[0].outputs[0]


def chatted(llm: LLM, messages: Any = ASK, **params: Any) -> CompletionOutput:
    """What `LLM.chat` says."""
    return llm.chat(messages, with_defaults(llm, params), use_tqdm=False)[0].outputs[0]


def logprobs_of(token_ids: list[int], logprobs: list[Any]) -> Any:
    """Of each token its own, to be compared."""
    return pytest.approx([each[token_id].logprob for token_id, each in zip(token_ids, logprobs, strict=True)], abs=1e-4)


# -- tokens --


@pytest.mark.parametrize("params", [
    {"temperature": 0, "max_tokens": 30},
    {"temperature": 0.9, "top_p": 0.8, "seed": 7, "max_tokens": 30},
    {"temperature": 0, "max_tokens": 30, "stop": ["stores", "keys"]},
    {"temperature": 0, "max_tokens": 30, "presence_penalty": 1.5, "frequency_penalty": 0.5},
], ids=["greedy", "seeded", "stopped", "penalties"])
def test_a_completion_has_the_tokens_of_llm_generate(client, course_llm, params):
    ours = completed(course_llm, **params)
    got = client.completions.create(model="course", prompt=QUESTION, extra_body={"return_token_ids": True}, **params)
    assert got.choices[0].token_ids == ours.token_ids and got.choices[0].text == ours.text
    assert got.choices[0].finish_reason == ours.finish_reason and got.object == "text_completion"
    assert got.usage.completion_tokens == len(ours.token_ids)
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens


def test_vllms_own_fields_reach_the_sampler(client, course_llm):
    tokens = course_llm.get_tokenizer().encode(QUESTION)
    params = {"temperature": 0.8, "top_k": 5, "min_p": 0.01, "repetition_penalty": 1.3, "seed": 3, "max_tokens": 12,
              "min_tokens": 12, "ignore_eos": True, "stop_token_ids": [7], "bad_words": ["cache"], "logit_bias": {40: -100},
              "skip_special_tokens": False, "include_stop_str_in_output": True}
    ours = completed(course_llm, {"prompt_token_ids": tokens}, **params)
    got = client.completions.create(model="course", prompt=tokens, extra_body={
        "return_token_ids": True, **params, "logit_bias": {"40": -100}, "priority": 3, "cache_salt": "mine"})
    assert got.choices[0].token_ids == ours.token_ids and got.choices[0].prompt_token_ids == tokens


def test_what_is_left_out_is_the_checkpoints_own_default(client, course_llm):
    defaults = course_llm.get_default_sampling_params()
    assert defaults.temperature != 1.0
    ours = course_llm.generate(QUESTION, defaults.clone(seed=5, max_tokens=16), use_tqdm=False)[0].outputs[0]
    assert client.completions.create(model="course", prompt=QUESTION, seed=5).choices[0].text == ours.text


def test_several_prompts_and_several_completions_are_numbered_prompt_by_prompt(client, course_llm):
    prompts = [QUESTION, "Once upon a time", "Count from 1 to 3"]
    params = {"n": 2, "seed": 11, "temperature": 1.0, "max_tokens": 6}
    ours = course_llm.generate(prompts, with_defaults(course_llm, params), use_tqdm=False)
    got = client.completions.create(model="course", prompt=prompts, **params)
    assert [c.index for c in got.choices] == list(range(6))
    assert [c.text for c in got.choices] == [o.text for output in ours for o in output.outputs]
    assert got.usage.prompt_tokens == sum(len(output.prompt_token_ids) for output in ours)
    chunks = list(client.completions.create(model="course", prompt=prompts, stream=True, **params))
    for index, choice in enumerate(got.choices):
        own = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert "".join(c.text for c in own) == choice.text
        assert [c.finish_reason for c in own if c.finish_reason] == [choice.finish_reason]


def test_a_streamed_completion_is_the_whole_one_in_pieces(client):
    params = {"model": "course", "prompt": QUESTION, "temperature": 0, "max_tokens": 20}
    whole = client.completions.create(**params)
    chunks = list(client.completions.create(**params, stream=True, stream_options={"include_usage": True}))
    assert len(chunks) > 5
    assert "".join(c.choices[0].text for c in chunks[:-1]) == whole.choices[0].text
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert {c.id for c in chunks} == {chunks[0].id} and all(c.usage is None for c in chunks[:-1])


def test_usage_says_how_much_of_a_prompt_was_cached(client):
    prompt = "Once upon a time there was a cache. " * 6
    asked = {"model": "course", "prompt": prompt, "max_tokens": 1, "extra_body": {"cache_salt": "usage"}}
    first, again = (client.completions.create(**asked).usage for _ in range(2))
    assert first.prompt_tokens_details.cached_tokens == 0
    assert again.prompt_tokens_details.cached_tokens == (again.prompt_tokens - 1) // 16 * 16 > 0


# -- chat --


def test_a_chat_has_the_tokens_of_llm_chat(client, course_llm):
    ours = chatted(course_llm, temperature=0, max_tokens=None)
    got = client.chat.completions.create(model="course", messages=ASK, temperature=0, extra_body={"return_token_ids": True})
    assert got.choices[0].token_ids == ours.token_ids and got.choices[0].finish_reason == "stop"
    assert got.choices[0].message.content == ours.text and got.choices[0].message.role == "assistant"


def test_a_streamed_chat_begins_with_its_role_and_says_the_same(client, course_llm):
    ours = chatted(course_llm, temperature=0, max_tokens=20)
    chunks = list(client.chat.completions.create(
        model="course", messages=ASK, temperature=0, max_completion_tokens=20, stream=True,
        stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == ours.text
    assert [c.choices[0].finish_reason for c in chunks[:-1] if c.choices[0].finish_reason] == ["length"]
    assert chunks[-1].usage.completion_tokens == 20


def test_templates_switches_and_continued_messages_reach_the_template(client, course_llm):
    tokenizer = course_llm.get_tokenizer()
    for extra, options in [
        ({"chat_template_kwargs": {"enable_thinking": False}}, {"enable_thinking": False}),
        ({"reasoning_effort": "none"}, {"enable_thinking": False}),
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
        ({"continue_final_message": True}, {"add_generation_prompt": False, "continue_final_message": True}),
    ]:
        got = client.chat.completions.create(
            model="course", messages=ASK, max_tokens=1, extra_body={"return_token_ids": True, **extra})
        assert got.prompt_token_ids == tokenizer.apply_chat_template(ASK, tokenize=True, **options)


def test_messages_may_come_in_parts_and_from_a_developer(client, course_llm):
    parts = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    got = client.chat.completions.create(model="course", messages=parts, max_tokens=1, extra_body={"return_token_ids": True})
    same = [{"role": "system", "content": "Be short."}, {"role": "user", "content": QUESTION}]
    assert got.prompt_token_ids == course_llm.get_tokenizer().apply_chat_template(same, tokenize=True)


async def test_the_asynchronous_client_runs_many_chats_at_once(course_server, course_llm):
    questions = ["What is a KV cache?", "What is paged attention?", "Hello!", "Tell me a story"]
    ours = [chatted(course_llm, [{"role": "user", "content": q}], temperature=0, max_tokens=15).text for q in questions]

    async def ask(question: str, stream: bool) -> str:
        asked = client.chat.completions.create(
            model="course", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=15, stream=stream)
        if not stream:
            return (await asked).choices[0].message.content
        return "".join([chunk.choices[0].delta.content or "" async for chunk in await asked])

    async with openai.AsyncOpenAI(base_url=f"{course_server.url}/v1", api_key="none", max_retries=0) as client:
        got = await asyncio.gather(*(ask(q, stream) for q in questions for stream in (False, True)))
    assert got == [text for text in ours for _ in range(2)]


# -- log-probabilities --


def test_a_completions_logprobs_are_the_engines_own(client, course_llm):
    params = {"temperature": 0, "max_tokens": 5, "logprobs": 3}
    ours = completed(course_llm, **params)
    tokenizer = course_llm.get_tokenizer()
    got = client.completions.create(model="course", prompt=QUESTION, **params).choices[0].logprobs
    assert got.tokens == [tokenizer.token_text(t) for t in ours.token_ids]
    assert got.token_logprobs == logprobs_of(ours.token_ids, ours.logprobs)
    assert [len(top) for top in got.top_logprobs] == [3] * 5
    assert got.text_offset == [sum(map(len, got.tokens[:i])) for i in range(5)]
    pieces = [c.choices[0].logprobs for c in client.completions.create(model="course", prompt=QUESTION, stream=True, **params)]
    assert [t for piece in pieces for t in piece.tokens] == got.tokens
    assert [o for piece in pieces for o in piece.text_offset] == got.text_offset


def test_a_chats_logprobs_name_each_token_its_bytes_and_the_likeliest(client, course_llm):
    ours = chatted(course_llm, temperature=0, max_tokens=4, logprobs=2)
    params = {"model": "course", "messages": ASK, "temperature": 0, "max_tokens": 4, "logprobs": True, "top_logprobs": 2}
    got = client.chat.completions.create(**params).choices[0].logprobs.content
    assert b"".join(bytes(one.bytes) for one in got).decode() == ours.text
    assert [one.logprob for one in got] == logprobs_of(ours.token_ids, ours.logprobs)
    assert all(len(one.top_logprobs) == 2 and one.top_logprobs[0].logprob >= one.top_logprobs[1].logprob for one in got)
    pieces = [chunk.choices[0].logprobs for chunk in client.chat.completions.create(**params, stream=True)]
    assert [one.token for piece in pieces if piece for one in piece.content] == [one.token for one in got]
    bare = client.chat.completions.create(**params | {"top_logprobs": None}).choices[0].logprobs.content
    assert all(one.top_logprobs == [] for one in bare)


def test_echo_puts_the_prompt_and_its_logprobs_in_front(client, course_llm):
    wanted = SamplingParams(temperature=0, max_tokens=4, logprobs=1, prompt_logprobs=1)
    whole = course_llm.generate(QUESTION, wanted, use_tqdm=False)[0]
    params = {"model": "course", "prompt": QUESTION, "temperature": 0, "max_tokens": 4, "logprobs": 1, "echo": True}
    got = client.completions.create(**params).choices[0]
    assert got.text == QUESTION + whole.outputs[0].text
    ids = whole.prompt_token_ids
    assert got.logprobs.token_logprobs[0] is None and got.logprobs.top_logprobs[0] is None
    assert got.logprobs.token_logprobs[1:len(ids)] == logprobs_of(ids[1:], whole.prompt_logprobs[1:])
    chunks = [c.choices[0] for c in client.completions.create(**params, stream=True)]
    assert "".join(c.text for c in chunks) == got.text
    assert [o for c in chunks for o in c.logprobs.text_offset] == got.logprobs.text_offset


# -- forms of an answer, and tools --


@pytest.fixture
def structured():
    return pytest.importorskip("llguidance", reason="structured outputs need llguidance: pip install -r requirements.txt")


def test_response_format_makes_json_of_a_schema(client, structured):
    schema = {"type": "object", "properties": {"name": {"enum": ["A", "B"]}}, "required": ["name"], "additionalProperties": False}
    for wanted in ({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}, {"type": "json_object"}):
        got = client.chat.completions.create(model="course", messages=ASK, temperature=0, max_tokens=200, response_format=wanted)
        if got.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(got.choices[0].message.content), dict)
    got = client.completions.create(model="course", prompt="x", extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
    assert got.choices[0].text in ("yes", "no")


def test_structured_outputs_are_those_of_llm(client, course_llm, structured):
    params = {"temperature": 0, "max_tokens": 30}
    ours = completed(course_llm, **params, structured_outputs=StructuredOutputsParams(regex="[a-z]{5}"))
    wanted = {"structured_outputs": {"regex": "[a-z]{5}"}}
    got = client.completions.create(model="course", prompt=QUESTION, **params, extra_body=wanted)
    assert got.choices[0].text == ours.text and len(ours.text) == 5


NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_tool_that_must_be_called_is_called_with_arguments_of_its_schema(client, structured, choice):
    asked = {"model": "course", "messages": ASK, "tools": [WEATHER], "tool_choice": choice, "temperature": 0,
             "parallel_tool_calls": False, "reasoning_effort": "none"}
    got = client.chat.completions.create(**asked).choices[0]
    (call,) = got.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "get_weather" and arguments["city"] in ("Paris", "Oslo") and arguments["days"] in (1, 2)
    assert got.finish_reason == "tool_calls" and got.message.content is None
    pieces = [c.choices[0] for c in client.chat.completions.create(**asked, stream=True)]
    calls = [call for piece in pieces for call in piece.delta.tool_calls or []]
    assert calls[0].function.name == "get_weather" and calls[0].id and not any(call.id for call in calls[1:])
    assert json.loads("".join(call.function.arguments for call in calls)) == arguments
    assert pieces[-1].finish_reason == "tool_calls" and not any(piece.delta.content for piece in pieces)


def test_one_of_several_tools_can_be_named(client, structured):
    named = {"type": "function", "function": {"name": "the_time"}}
    got = client.chat.completions.create(model="course", messages=ASK, tools=[WEATHER, TIME], tool_choice=named,
                                         temperature=0, max_tokens=300)
    assert got.choices[0].message.tool_calls[0].function.name == "the_time"


def test_tools_are_shown_to_the_model_even_if_it_may_call_none(client, course_llm):
    """As in vLLM. They stand at the beginning of a prompt: without them nothing of the conversation would be in the cache."""
    tokenizer = course_llm.get_tokenizer()
    for choice in ("auto", None, "none"):
        got = client.chat.completions.create(
            model="course", messages=ASK, tools=[WEATHER], max_tokens=1,
            **{"tool_choice": choice} if choice else {}, extra_body={"return_token_ids": True})
        assert got.prompt_token_ids == tokenizer.apply_chat_template(ASK, tools=[WEATHER], tokenize=True)


# -- the rest --


def test_models_are_listed_and_found_by_name(client):
    (model,) = client.models.list().data
    assert model.id == "course" and client.models.retrieve("course").max_model_len == 2048
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-7")


def test_fields_of_openais_service_are_taken_and_change_nothing(client):
    asked = {"model": "course", "messages": ASK, "temperature": 0, "max_tokens": 5}
    habits = {"user": "me", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "parallel_tool_calls": True,
              "safety_identifier": "x", "prompt_cache_key": "y", "verbosity": "low", "modalities": ["text"],
              "reasoning_effort": "low"}
    plain, habitual = client.chat.completions.create(**asked), client.chat.completions.create(**asked, **habits)
    assert plain.choices[0].message.content == habitual.choices[0].message.content


def test_the_clients_own_request_id_is_kept(client):
    got = client.completions.create(model="course", prompt="x", max_tokens=1, extra_headers={"X-Request-Id": "mine-7"})
    assert got.id == "cmpl-mine-7" and got._request_id == "mine-7"


def test_errors_are_the_clients_own_exceptions(client):
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="course", prompt="x", temperature=9)
    assert wrong.value.param == "temperature" and wrong.value.code == "invalid_value"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-7", messages=ASK)
    assert unknown.value.code == "model_not_found"
