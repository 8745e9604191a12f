"""An agent as one writes it with OpenAI's client: ask, call tools, send their results back, ask again.

The bundled model knows no tools, so its calls are forced; everything around them is as it is with a model that does:
calls are parsed, histories rendered, and each turn finds the last one's blocks in the prefix cache.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed: pip install -r requirements-dev.txt")
for needed in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed, reason="the server is not installed: pip install 'nano-qwen3-serving[server]'")
pytest.importorskip("llguidance", reason="forced calls need llguidance: pip install 'nano-qwen3-serving[structured]'")

pytestmark = pytest.mark.slow

BLOCK_SIZE = 16
WEATHER = {
    "name": "get_weather", "description": "The weather of a city.", "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"enum": [1, 2, 3]}},
        "required": ["city", "days"], "additionalProperties": False}}
ADD = {
    "name": "add", "description": "The sum of two digits.", "parameters": {
        "type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9},
                                         "b": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["a", "b"], "additionalProperties": False}}
TOOLS: list[Any] = [{"type": "function", "function": WEATHER}, {"type": "function", "function": ADD}]
TURNS = ["add", "get_weather", None, "required", "add", None, "get_weather", "required", None]
"""Which tool is forced in each turn; None is a turn in which the model answers."""


def run_tool(name: str, arguments: str) -> str:
    """What a client's own functions say; fails if the arguments do not match."""
    given = json.loads(arguments)
    if name == "add":
        return str(given["a"] + given["b"])
    assert name == "get_weather" and given["city"] in ("Paris", "Oslo")
    return f"Sun in {given['city']} for {given['days']} days. 天気 ☀️"


def choice_of(turn: str | None) -> Any:
    return "none" if turn is None else turn if turn == "required" else {"type": "function", "function": {"name": turn}}


@dataclass
class Turn:
    """One answer: what the tests look at."""

    text: str
    calls: list[tuple[str, str]]
    finish_reason: str
    usage: tuple[int, int]
    cached_tokens: int
    prompt_token_ids: list[int]
    token_ids: list[int]


def whole_answer(client: Any, asked: dict[str, Any]) -> tuple[dict[str, Any], Turn]:
    """The message to remember, and the turn."""
    got = client.chat.completions.create(**asked)
    choice, message, usage = got.choices[0], got.choices[0].message, got.usage
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]
    return message.model_dump(exclude_none=True), Turn(
        message.content or "", calls, choice.finish_reason, (usage.prompt_tokens, usage.completion_tokens),
        usage.prompt_tokens_details.cached_tokens, got.prompt_token_ids, choice.token_ids)


def streamed_answer(client: Any, asked: dict[str, Any]) -> tuple[dict[str, Any], Turn]:
    """The same, put together from the fragments of a stream."""
    *chunks, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    text, calls = "", []
    for delta in (chunk.choices[0].delta for chunk in chunks):
        text += delta.content or ""
        for fragment in delta.tool_calls or []:
            if fragment.id:
                assert fragment.index == len(calls)
                named = {"name": fragment.function.name, "arguments": ""}
                calls.append({"id": fragment.id, "type": "function", "function": named})
            calls[fragment.index]["function"]["arguments"] += fragment.function.arguments
    message: dict[str, Any] = {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}
    return message, Turn(
        text, [(call["function"]["name"], call["function"]["arguments"]) for call in calls],
        chunks[-1].choices[0].finish_reason, (last.usage.prompt_tokens, last.usage.completion_tokens),
        last.usage.prompt_tokens_details.cached_tokens, chunks[0].prompt_token_ids,
        [token for chunk in chunks for token in getattr(chunk.choices[0], "token_ids", [])])


def run_agent(client: Any, answer: Any, salt: str) -> list[Turn]:
    """The loop."""
    messages: list[Any] = [{"role": "system", "content": "You are an agent."}, {"role": "user", "content": "Plan a trip."}]
    turns = []
    for number, turn in enumerate(TURNS):
        asked = {"model": "course", "messages": messages, "tools": TOOLS, "temperature": 0, "max_tokens": 120,
                 "extra_body": {"cache_salt": salt, "return_token_ids": True}}
        if turn is not None:
            asked["tool_choice"] = choice_of(turn)
        else:
            asked["max_tokens"] = 12
        message, got = answer(client, asked)
        turns.append(got)
        messages.append(message)
        messages += [{"role": "tool", "tool_call_id": call["id"], "content": run_tool(
            call["function"]["name"], call["function"]["arguments"])} for call in message.get("tool_calls", [])]
        if turn is None:
            messages.append({"role": "user", "content": f"And then? {number}"})
    return turns


@pytest.fixture(scope="module")
def client(course_server):
    with openai.OpenAI(base_url=f"{course_server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def whole_turns(client) -> list[Turn]:
    return run_agent(client, whole_answer, "whole")


def test_forced_turns_call_and_free_turns_answer(whole_turns: list[Turn]) -> None:
    for turn, got in zip(TURNS, whole_turns, strict=True):
        if turn is None:
            assert got.calls == [] and got.text and got.finish_reason in ("stop", "length")
        else:
            ((name, arguments),) = got.calls
            assert name == turn if turn != "required" else name in ("add", "get_weather")
            assert (got.text, got.finish_reason) == ("", "tool_calls")
            assert arguments == json.dumps(json.loads(arguments)), "the template would write this otherwise"


def test_each_turn_computes_only_what_is_new(whole_turns: list[Turn]) -> None:
    """Full blocks of the last prompt and of its answer are found again, as far as a text has one spelling in tokens."""
    assert whole_turns[0].cached_tokens == 0
    for before, got in pairwise(whole_turns):
        computed = before.prompt_token_ids + before.token_ids[:-1]  # the last token was sampled, and never computed with
        same = next((i for i, (one, other) in enumerate(zip(computed, got.prompt_token_ids, strict=False)) if one != other),
                    len(computed))
        assert same >= len(before.prompt_token_ids), "the history is not rendered as before"
        assert got.cached_tokens == same // BLOCK_SIZE * BLOCK_SIZE
        assert got.usage == (len(got.prompt_token_ids), len(got.token_ids))
    cached = [turn.cached_tokens for turn in whole_turns]
    assert cached == sorted(set(cached)), "it grows with every turn"


def test_an_answer_stands_in_the_next_prompt_letter_for_letter(course_llm, whole_turns: list[Turn]) -> None:
    decode = partial(course_llm.get_tokenizer().decode, skip_special_tokens=False)
    for before, got in pairwise(whole_turns):
        said = decode(before.prompt_token_ids + before.token_ids).removesuffix("<|im_end|>")
        assert decode(got.prompt_token_ids).startswith(said + "<|im_end|>")


def test_calls_and_results_are_in_every_later_prompt(course_llm, whole_turns: list[Turn]) -> None:
    """Results of tools and calls are where the template puts them, arguments as JSON."""
    texts = [course_llm.get_tokenizer().decode(turn.prompt_token_ids, skip_special_tokens=False) for turn in whole_turns]
    assert all(text.count("<tool_response>") == number for text, number in zip(texts, results_before(), strict=True))
    for name, arguments in [call for turn in whole_turns[:-1] for call in turn.calls]:
        assert f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>' in texts[-1]
        assert f"<tool_response>\n{run_tool(name, arguments)}\n</tool_response>" in texts[-1]


def results_before() -> list[int]:
    """How many results each turn has seen."""
    return [sum(turn is not None for turn in TURNS[:number]) for number in range(len(TURNS))]


@pytest.mark.proof
def test_the_same_agent_streams_and_comes_to_the_same(client, whole_turns: list[Turn]) -> None:
    assert run_agent(client, streamed_answer, "streamed") == whole_turns


@pytest.mark.proof
def test_an_agent_of_responses_goes_as_far(client) -> None:
    """The same loop with items: what came out goes back in as it is."""
    tools: list[Any] = [{"type": "function", **WEATHER}, {"type": "function", **ADD}]
    items: list[Any] = [{"role": "user", "content": "Plan a trip."}]
    cached = []
    for turn in TURNS:
        choice: Any = {None: "none", "required": "required"}.get(turn, {"type": "function", "name": turn})
        got = client.responses.create(
            model="course", input=items, tools=tools, tool_choice=choice, temperature=0, store=False,
            max_output_tokens=12 if turn is None else 120, extra_body={"cache_salt": "items"})
        cached.append(got.usage.input_tokens_details.cached_tokens)
        items += got.output
        calls = [item for item in got.output if item.type == "function_call"]
        assert len(calls) == (turn is not None) and (calls or got.output_text)
        items += [{"type": "function_call_output", "call_id": call.call_id, "output": run_tool(call.name, call.arguments)}
                  for call in calls]
    assert cached[0] == 0 and cached == sorted(cached) and len(set(cached)) >= 6
