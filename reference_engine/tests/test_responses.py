"""`/v1/responses` with OpenAI's own client, over a real socket: the chats' answers as items, and events in their order."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed: pip install -r requirements-dev.txt")
for needed in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed, reason="the server is not installed: pip install 'nano-qwen3-serving[server]'")

import httpx  # noqa: E402
from openai.types import responses as shapes  # noqa: E402
from pydantic import TypeAdapter  # noqa: E402

from nano_qwen3_serving import AsyncEngineArgs, AsyncLLMEngine  # noqa: E402
from nano_qwen3_serving.exceptions import InvalidParametersError  # noqa: E402
from nano_qwen3_serving.server.app import create_app  # noqa: E402
from nano_qwen3_serving.server.errors import ApiError  # noqa: E402
from nano_qwen3_serving.server.openai.parsers import ContentDelta, ReasoningDelta, ToolCallArguments, ToolCallStart  # noqa: E402
from nano_qwen3_serving.server.openai.replies import ResponseReply  # noqa: E402
from nano_qwen3_serving.server.openai.responses import Output  # noqa: E402
from nano_qwen3_serving.server.openai.responses_request import ResponsesRequest, as_chat  # noqa: E402
from nano_qwen3_serving.testing.loopback import served, wait_until  # noqa: E402

slow = pytest.mark.slow

QUESTION = "What is a KV cache?"
WEATHER = {
    "type": "function", "name": "get_weather", "description": "The weather of a city.", "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Oslo"]}}, "required": ["city"],
                   "additionalProperties": False}}
GREEDY: dict[str, Any] = {"model": "course", "temperature": 0}


@pytest.fixture(scope="module")
def client(course_server):
    with openai.OpenAI(base_url=f"{course_server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def structured():
    return pytest.importorskip("llguidance", reason="grammars need llguidance: pip install 'nano-qwen3-serving[structured]'")


def posted(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/responses", json={**GREEDY, **body}, timeout=60)


def streamed(url: str, **body: Any) -> list[dict[str, Any]]:
    """The events of a stream as they come over the wire, each with the name that is sent beside it."""
    frames = posted(url, stream=True, **body).text.split("\n\n")
    assert frames.pop() == "", "a frame was cut, or something stands behind the last"
    events = []
    for frame in frames:
        name, data = frame.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


# -- what is answered --


@slow
def test_the_text_is_the_chats(client) -> None:
    chat = client.chat.completions.create(**GREEDY, messages=[{"role": "user", "content": QUESTION}], max_tokens=60)
    got = client.responses.create(**GREEDY, input=QUESTION, max_output_tokens=60)
    assert got.output_text == chat.choices[0].message.content
    assert (got.usage.input_tokens, got.usage.output_tokens, got.usage.total_tokens) == (
        chat.usage.prompt_tokens, chat.usage.completion_tokens, chat.usage.total_tokens)
    assert got.usage.output_tokens_details.reasoning_tokens == 0
    (message,) = got.output
    assert message.type == "message" and message.role == "assistant" and message.status == got.status


@slow
def test_instructions_are_the_system_message_and_items_the_conversation(client) -> None:
    chat = client.chat.completions.create(**GREEDY, max_tokens=20, messages=[
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "It keeps keys."}, {"role": "user", "content": "And values?"}])
    got = client.responses.create(**GREEDY, max_output_tokens=20, instructions="Be brief.", input=[
        {"role": "user", "content": [{"type": "input_text", "text": QUESTION}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
            {"type": "output_text", "text": "It keeps keys.", "annotations": []}]},
        {"role": "user", "content": "And values?"}])
    assert got.output_text == chat.choices[0].message.content and got.usage.input_tokens == chat.usage.prompt_tokens


@slow
def test_a_response_has_openais_shape_and_says_what_was_asked(course_server) -> None:
    body = posted(course_server.url, input=QUESTION, max_output_tokens=8, instructions="Be brief.", metadata={"a": "b"},
                  store=False, tools=[WEATHER], user="me", reasoning={"effort": "low"}, parallel_tool_calls=False,
                  include=["reasoning.encrypted_content"], truncation="disabled").json()
    assert ResponseReply.model_validate(body, strict=True)
    got = shapes.Response.model_validate(body)
    assert (got.status, got.incomplete_details.reason, got.output[0].status) == ("incomplete", "max_output_tokens", "incomplete")
    assert got.id.startswith("resp_") and got.object == "response" and got.model == "course" and got.error is None
    assert (got.instructions, got.metadata, got.user, got.max_output_tokens) == ("Be brief.", {"a": "b"}, "me", 8)
    assert (got.temperature, got.tools[0].name, got.tool_choice, got.parallel_tool_calls) == (0, "get_weather", "auto", False)
    assert got.text.format.type == "text" and got.reasoning.effort == "low" and got.previous_response_id is None


@slow
def test_the_prefix_cache_is_told_of(client) -> None:
    asked = {**GREEDY, "input": "Once upon a time there was a cache. " * 6, "max_output_tokens": 1,
             "extra_body": {"cache_salt": "r"}}
    first, again = (client.responses.create(**asked).usage for _ in range(2))
    assert first.input_tokens_details.cached_tokens == 0
    assert again.input_tokens_details.cached_tokens == (again.input_tokens - 1) // 16 * 16 > 0


@slow
def test_a_forced_call_is_an_item_and_its_result_goes_back_as_one(client, structured) -> None:
    question: list[Any] = [{"role": "user", "content": "How is the weather?"}]
    for choice in ("required", {"type": "function", "name": "get_weather"}):
        got = client.responses.create(**GREEDY, input=question, tools=[WEATHER], tool_choice=choice)
        (call,) = got.output
        assert (got.status, call.type, call.name, call.status) == ("completed", "function_call", "get_weather", "completed")
        assert json.loads(call.arguments)["city"] in ("Paris", "Oslo") and call.call_id != call.id
    history = [*question, *got.output, {"type": "function_call_output", "call_id": call.call_id, "output": "Sun."}]
    again = client.responses.create(**GREEDY, input=history, tools=[WEATHER], tool_choice="none", max_output_tokens=10)
    chat = client.chat.completions.create(**GREEDY, max_tokens=10, tools=[WEATHER_OF_CHATS], tool_choice="none", messages=[
        *question,
        {"role": "assistant", "tool_calls": [{"id": call.call_id, "type": "function", "function": {
            "name": call.name, "arguments": call.arguments}}]},
        {"role": "tool", "tool_call_id": call.call_id, "content": "Sun."}])
    assert again.output_text == chat.choices[0].message.content and again.usage.input_tokens == chat.usage.prompt_tokens


WEATHER_OF_CHATS = {"type": "function", "function": {name: value for name, value in WEATHER.items() if name != "type"}}


@slow
def test_what_the_model_thinks_is_an_item_of_its_own_and_is_counted(course_server, structured, course_llm) -> None:
    (think,) = course_llm.get_tokenizer().encode("<think>")
    body = {"input": QUESTION, "tools": [WEATHER], "tool_choice": "required", "chat_template_kwargs": {"enable_thinking": True},
            "logit_bias": {str(think): 30}, "frequency_penalty": 2, "presence_penalty": 2, "max_output_tokens": 60}
    events = streamed(course_server.url, **body)
    thought = "".join(event["delta"] for event in events if event["type"] == "response.reasoning_text.delta")
    last = events[-1]["response"]
    item = last["output"][0]
    assert item["type"] == "reasoning" and item["content"] == [{"type": "reasoning_text", "text": thought}] and thought
    assert item["summary"] == [] and 0 < last["usage"]["output_tokens_details"]["reasoning_tokens"] <= 60


@slow
def test_a_form_of_the_text_is_kept_and_parsed_by_the_client(client, structured) -> None:
    import pydantic

    class Blocks(pydantic.BaseModel):
        state: bool
        kind: str = pydantic.Field(pattern="^[ab]$")

    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    form = {"type": "json_schema", "name": "x", "schema": schema}
    got = client.responses.create(**GREEDY, input=QUESTION, text={"format": form})
    assert json.loads(got.output_text) in ({"n": 1}, {"n": 2}) and got.text.format.name == "x"
    parsed = client.responses.parse(**GREEDY, input=QUESTION, text_format=Blocks, max_output_tokens=60)
    assert parsed.output_parsed.kind in ("a", "b")


# -- streams --


@slow
def test_a_streams_events_come_in_openais_order_and_add_up_to_the_whole(course_server) -> None:
    whole = posted(course_server.url, input=QUESTION, max_output_tokens=12).json()
    events = streamed(course_server.url, input=QUESTION, max_output_tokens=12)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert len(deltas) > 3
    assert kinds == ["created", "in_progress", "output_item.added", "content_part.added", *["output_text.delta"] * len(deltas),
                     "output_text.done", "content_part.done", "output_item.done", "incomplete"]
    text = whole["output"][0]["content"][0]["text"]
    assert "".join(deltas) == events[-4]["text"] == events[-3]["part"]["text"] == text
    assert events[0]["response"]["status"] == events[1]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == [] and events[-2]["item"] == events[-1]["response"]["output"][0]
    last = events[-1]["response"]
    assert last["usage"] == whole["usage"] | {"input_tokens_details": last["usage"]["input_tokens_details"]}
    assert {name for name in last if last[name] != whole[name]} <= {"id", "created_at", "output", "usage"}


@slow
@pytest.mark.parametrize("body", [{"max_output_tokens": 5}, {"tools": [WEATHER], "tool_choice": "required"}], ids=str)
def test_every_event_has_openais_shape(course_server, structured, body) -> None:
    shape = TypeAdapter(shapes.ResponseStreamEvent)
    for event in streamed(course_server.url, input=QUESTION, **body):
        shape.validate_python(event)
        if "response" in event:
            ResponseReply.model_validate(event["response"], strict=True)


@slow
def test_a_call_streams_its_arguments_and_the_clients_helper_puts_it_together(client, structured) -> None:
    asked = {**GREEDY, "input": QUESTION, "tools": [WEATHER], "tool_choice": "required"}
    with client.responses.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.type for event in events if event.type != "response.function_call_arguments.delta"] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.function_call_arguments.done",
        "response.output_item.done", "response.completed"]
    fragments = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert len(fragments) > 2 and "".join(fragments) == final.output[0].arguments
    assert final.output[0].parsed_arguments == json.loads(final.output[0].arguments)
    added, done = (event.item for event in events if event.type.startswith("response.output_item"))
    assert (added.arguments, added.status, added.id, added.call_id) == ("", "in_progress", done.id, done.call_id)


@slow
async def test_asynchronous_clients_stream_together_and_each_reads_its_own(course_server) -> None:
    questions = [QUESTION, "Count from 1 to 3", "Once upon a time"]

    async def ask(client: Any, question: str, stream: bool) -> str:
        if not stream:
            return (await client.responses.create(**GREEDY, input=question, max_output_tokens=15)).output_text
        async with client.responses.stream(**GREEDY, input=question, max_output_tokens=15) as events:
            return "".join([event.delta async for event in events if event.type == "response.output_text.delta"])

    async with openai.AsyncOpenAI(base_url=f"{course_server.url}/v1", api_key="none", max_retries=0) as client:
        got = await asyncio.gather(*(ask(client, q, stream) for q in questions for stream in (False, True)))
    assert got[::2] == got[1::2] and len(set(got)) == 3 and all(got)


@slow
def test_a_stream_that_is_left_ends_its_request(client, course_server) -> None:
    asked = {"input": QUESTION, "max_output_tokens": 1500, "stream": True, "extra_body": {"ignore_eos": True}}
    with client.responses.create(**GREEDY, **asked) as events:
        assert next(iter(events)).type == "response.created"
    wait_until(lambda: not course_server.engine.engine.has_unfinished_requests(), "the request goes on")


@slow
def test_a_request_that_fails_while_it_streams_says_so_in_the_last_event() -> None:
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="course", dtype="float32", device="cpu"))
    body = {**GREEDY, "input": QUESTION, "stream": True, "max_output_tokens": 2000, "ignore_eos": True}
    with served(create_app(engine)) as url, httpx.stream("POST", f"{url}/v1/responses", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        assert any(line == "event: response.output_text.delta" for line in lines)
        engine.shutdown()
        *_, last = (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: "))
    failed = TypeAdapter(shapes.ResponseStreamEvent).validate_python(last)
    assert failed.type == "response.failed" and failed.response.status == "failed"
    assert failed.response.error.code == "server_error" and failed.response.error.message


# -- items and their events, by hand --


def events_of(*deltas: Any, status: str = "completed") -> tuple[list[str], list[dict[str, Any]]]:
    output = Output()
    events = [event for delta in deltas for event in output.add(delta)] + list(output.end(status))
    assert all(event["output_index"] < len(output.items) for event in events)
    return [f"{event['output_index']} {event['type'].removeprefix('response.')}" for event in events], output.items


def test_thoughts_text_and_calls_are_items_in_the_order_in_which_they_came() -> None:
    kinds, items = events_of(
        ReasoningDelta("Hm"), ReasoningDelta("."), ContentDelta("Let me see."), ToolCallStart(0, "call_1", "f"),
        ToolCallArguments(0, '{"a": '), ToolCallArguments(0, "1}"), ToolCallStart(1, "call_2", "g"), ToolCallArguments(1, "{}"),
        ContentDelta("So."), status="incomplete")
    assert kinds == [
        "0 output_item.added", "0 content_part.added", "0 reasoning_text.delta", "0 reasoning_text.delta",
        "0 reasoning_text.done", "0 content_part.done", "0 output_item.done",
        "1 output_item.added", "1 content_part.added", "1 output_text.delta", "1 output_text.done", "1 content_part.done",
        "1 output_item.done",
        "2 output_item.added", "2 function_call_arguments.delta", "2 function_call_arguments.delta",
        "2 function_call_arguments.done", "2 output_item.done",
        "3 output_item.added", "3 function_call_arguments.delta", "3 function_call_arguments.done", "3 output_item.done",
        "4 output_item.added", "4 content_part.added", "4 output_text.delta", "4 output_text.done", "4 content_part.done",
        "4 output_item.done"]
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call", "function_call", "message"]
    assert [item["status"] for item in items] == ["completed"] * 4 + ["incomplete"]
    assert items[0]["content"] == [{"type": "reasoning_text", "text": "Hm."}] and items[0]["summary"] == []
    assert (items[2]["arguments"], items[2]["call_id"], items[3]["name"]) == ('{"a": 1}', "call_1", "g")
    assert len({item["id"] for item in items}) == 5
    for item in items:
        TypeAdapter(shapes.ResponseOutputItem).validate_python(item)


def test_an_answer_without_a_word_has_no_items() -> None:
    assert events_of() == ([], [])


def test_a_call_without_arguments_yet_is_an_item() -> None:
    kinds, items = events_of(ToolCallStart(0, "call_1", "f"), status="incomplete")
    assert kinds == ["0 output_item.added", "0 function_call_arguments.done", "0 output_item.done"]
    assert items[0]["arguments"] == ""


# -- what is asked --


def messages(*items: Any, **fields: Any) -> list[dict[str, Any]]:
    return as_chat(ResponsesRequest.model_validate({"input": list(items), **fields})).messages


USER = {"role": "user", "content": "Hi"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}]}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": "{}", "status": "completed"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "7"}
A_CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "7"}


def test_what_the_assistant_did_in_one_go_is_one_message() -> None:
    assert messages(USER, THOUGHT, SAID, CALL, OUTPUT, SAID, USER) == [
        USER, {"role": "assistant", "reasoning_content": "Hm.", "content": "Let me see.", "tool_calls": [A_CALL]}, RESULT,
        {"role": "assistant", "content": "Let me see."}, USER]
    second, other = {**CALL, "call_id": "call_2"}, {**A_CALL, "id": "call_2"}
    assert messages(USER, CALL, second, OUTPUT)[1:] == [{"role": "assistant", "tool_calls": [A_CALL, other]}, RESULT]
    assert messages(USER, CALL, OUTPUT, second)[1:] == [
        {"role": "assistant", "tool_calls": [A_CALL]}, RESULT, {"role": "assistant", "tool_calls": [other]}]


def test_what_the_assistant_said_twice_is_two_messages_and_thoughts_alone_are_one() -> None:
    said = {"role": "assistant", "content": "Let me see."}
    assert messages(USER, SAID, SAID) == [USER, said, said]
    assert messages(USER, THOUGHT, USER) == [USER, {"role": "assistant", "reasoning_content": "Hm.", "content": ""}, USER]
    assert messages(USER, SAID, THOUGHT, CALL)[2] == {
        "role": "assistant", "reasoning_content": "Hm.", "tool_calls": [A_CALL]}


def test_summaries_stand_for_thoughts_that_are_not_there_and_secret_ones_say_nothing() -> None:
    summary = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "In short."}]}
    assert messages(USER, summary, SAID)[1]["reasoning_content"] == "In short."
    assert messages(USER, {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}, SAID)[1] == {
        "role": "assistant", "content": "Let me see."}


def test_parts_of_an_output_are_joined_as_those_of_a_message() -> None:
    parts = [{"type": "input_text", "text": "7"}, {"type": "input_text", "text": "8"}]
    assert messages(USER, CALL, {**OUTPUT, "output": parts})[2]["content"] == "7\n8"


@pytest.mark.parametrize("fields, param", [
    ({"previous_response_id": "resp_1"}, "previous_response_id"), ({"conversation": "c"}, "conversation"),
    ({"background": True}, "background"), ({"store": True}, "store"), ({"prompt": {"id": "p"}}, "prompt"),
    ({"max_tool_calls": 3}, "max_tool_calls"), ({"truncation": "auto"}, "truncation"), ({"top_logprobs": 2}, "top_logprobs"),
    ({"include": ["message.output_text.logprobs"]}, "include[0]"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [WEATHER, {"type": "custom", "name": "x"}]}, "tools[1].type"),
    ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
    ({"input": [USER, {"type": "computer_call", "id": "x"}]}, "input[1].type"), ({"input": [{"content": "x"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
])
def test_what_is_not_served_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        as_chat(ResponsesRequest.model_validate({"input": "x", **fields}))
    assert caught.value.param == param and caught.value.message.startswith(param.partition("=")[0]) and caught.value.status == 400


@pytest.mark.parametrize("fields, param", [
    ({"input": []}, "input"), ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"), ({"input": [{**CALL, "arguments": {}}]}, "input[0].arguments"),
    ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
    ({"input": [USER, OUTPUT]}, "input[1].call_id"), ({"input": [OUTPUT, CALL]}, "input[0].call_id"),
    ({"input": [CALL, {**OUTPUT, "output": 7}]}, "input[1].output"),
    ({"tools": [{**WEATHER, "defer_loading": True}]}, "tools[0].defer_loading"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].name"), ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
    ({"tools": [{**WEATHER, "parameters": {"type": "string"}}]}, "tools[0].parameters"),
    ({"tool_choice": "always"}, "tool_choice"),
], ids=str)
def test_what_is_malformed_is_refused_and_the_error_names_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidParametersError) as caught:
        as_chat(ResponsesRequest.model_validate({"input": "x", **fields}))
    assert caught.value.parameter == param and str(caught.value).startswith(param)


@slow
@pytest.mark.parametrize("fields, param", [
    ({"max_output_tokens": 0}, "max_output_tokens"), ({"temperature": 9}, "temperature"), ({"input": "x " * 5000}, "input"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice"),
    ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "nothing"}}}}, "text.format"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"), ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"tools": [{**WEATHER, "parameters": {"properties": {"a": {"type": "x"}}}}], "tool_choice": "required"}, "tool_choice"),
    ({"metadata": {"a": "\ud83d"}}, "metadata"), ({"instructions": "\ud83d"}, "instructions"), ({"max_tokens": 3}, "max_tokens"),
    ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
], ids=str)
def test_the_engines_own_refusals_name_this_bodys_fields(course_server, structured, fields, param) -> None:
    answer = httpx.post(f"{course_server.url}/v1/responses", content=json.dumps({**GREEDY, "input": "x", **fields}),
                        headers={"Content-Type": "application/json"}, timeout=60)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param, error
