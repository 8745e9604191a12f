"""Tools: what is refused by name, calls that come back as history, and calls that a grammar forces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import AutoTokenizer

from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.exceptions import InvalidParametersError
from nano_qwen3_serving.model.checkpoint import BUNDLED
from nano_qwen3_serving.sampling_params import StructuredOutputsParams
from nano_qwen3_serving.server.openai.parsers import OutputParser, ParsedOutput, joined
from nano_qwen3_serving.server.openai.tools import (
    arguments_schema,
    callable_functions,
    calls_grammar,
    check_tools,
    with_calls_as_templates_know_them,
)
from nano_qwen3_serving.text.grammar import GrammarCompiler
from nano_qwen3_serving.text.tokenizer import Tokenizer

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": 'Says "how" it is: 天気', "parameters": {
        "$defs": {"City": {"type": "string", "enum": ["Paris", "Rome"]}},
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["city", "days"], "additionalProperties": False}}}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
NAMED = {"type": "function", "function": {"name": "now"}}
FUNCTIONS: list[Any] = [tool["function"] for tool in TOOLS]

# -- definitions --


def function(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", **fields}}


@pytest.mark.parametrize("tools", [
    [], TOOLS, [function(description=None, parameters=None, strict=None)], [function(parameters={})],
    [function(name="a" * 64)], [function(name="A-z_0")], [function(parameters={"properties": {"a": {}}})],
    [function(strict=True)],
])
def test_good_tools_pass(tools: list[Any]) -> None:
    check_tools(tools)


@pytest.mark.parametrize("tool, field", [
    ("f", "tools[1]"), ({}, "tools[1]"), ({"type": "retrieval"}, "tools[1]"), ({"type": "function"}, "tools[1]"),
    ({"type": "function", "function": "f"}, "tools[1]"), ({"type": "custom", "function": {"name": "f"}}, "tools[1]"),
    ({"type": "function", "function": {}}, "tools[1].function.name"),
    ({**NOW, "cache_control": {}}, "tools[1].cache_control"), (function(defer=True), "tools[1].function.defer"),
    (function(name=""), "tools[1].function.name"), (function(name="a b"), "tools[1].function.name"),
    (function(name="a" * 65), "tools[1].function.name"), (function(name="é"), "tools[1].function.name"),
    (function(name="f\n"), "tools[1].function.name"), (function(name=3), "tools[1].function.name"),
    (function(name="now"), "tools[1].function.name"),
    (function(description=3), "tools[1].function.description"), (function(strict="yes"), "tools[1].function.strict"),
    (function(parameters=[]), "tools[1].function.parameters"),
    (function(parameters={"type": "array"}), "tools[1].function.parameters"),
    (function(parameters={"type": ["object", "null"]}), "tools[1].function.parameters"),
], ids=str)
def test_a_bad_tool_is_refused_and_the_error_names_the_field(tool: Any, field: str) -> None:
    with pytest.raises(InvalidParametersError) as caught:
        check_tools([NOW, tool])
    assert caught.value.parameter == field and str(caught.value).startswith(field)


@pytest.mark.parametrize("choice, names", [
    (None, []), ("none", []), ("auto", []), ("required", ["get_weather", "now"]), (NAMED, ["now"])])
def test_a_choice_says_which_functions_may_be_called_by_force(choice: Any, names: list[str]) -> None:
    assert [function["name"] for function in callable_functions(TOOLS, choice)] == names


@pytest.mark.parametrize("choice", [
    "always", "now", 3, {"type": "function"}, {"type": "function", "function": {"name": "f"}},
    {"type": "function", "name": "now"}, {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}])
def test_a_choice_that_is_none_is_refused(choice: Any) -> None:
    with pytest.raises(InvalidParametersError, match="tool_choice") as caught:
        callable_functions(TOOLS, choice)
    assert caught.value.parameter == "tool_choice"


def test_a_choice_without_tools_is_refused() -> None:
    with pytest.raises(InvalidParametersError, match="needs tools"):
        callable_functions([], "required")
    assert callable_functions([], "auto") == []


# -- history --

THEIRS = AutoTokenizer.from_pretrained(BUNDLED / "course")
OURS = Tokenizer.from_folder(BUNDLED / "course")

USER = {"role": "user", "content": "How is the weather?"}


def asked(*arguments: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, **fields, "tool_calls": [
        {"id": f"call_{number}", "type": "function", "function": {"name": "get_weather", "arguments": one}}
        for number, one in enumerate(arguments)]}


def result(number: int, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": text}


@pytest.mark.parametrize("arguments", [
    {}, {"city": "Paris", "days": 2}, {"a": {"b": [1, {"c": None}], "d": "}\"</tool_call>"}, "é": "天気 👩‍🚀 <b>&'"},
    {"x": 1.5, "y": True}])
@pytest.mark.parametrize("fields", [{}, {"content": "Let me see."}, {"reasoning_content": "Ask."}], ids=str)
def test_a_call_renders_as_transformers_renders_its_arguments_as_a_dict(arguments: dict, fields: dict) -> None:
    def conversation(one: Any) -> list[dict[str, Any]]:
        return [USER, asked(one, one, **fields), result(0, "Sun."), result(1, "Rain."),
                {"role": "assistant", "content": "Mixed."}]

    sent = conversation(json.dumps(arguments, separators=(",", ":")))
    expected = THEIRS.apply_chat_template(conversation(arguments), tools=TOOLS, tokenize=False, add_generation_prompt=True)
    assert OURS.apply_chat_template(with_calls_as_templates_know_them(sent), tools=TOOLS) == expected
    assert json.dumps({"name": "get_weather", "arguments": arguments}, ensure_ascii=False) in expected
    assert sent == conversation(json.dumps(arguments, separators=(",", ":"))), "what the client sent was changed"


@pytest.mark.parametrize("arguments, rendered", [
    ("", "{}"), (" \n", "{}"), (None, "{}"), ('{"city": "Par', '{"city": "Par'), ("[1,2]", "[1,2]"), ("not JSON", "not JSON"),
    ({"a": 1}, '{"a": 1}'), ("[" * 100_000, "[" * 100_000)])
def test_arguments_that_are_no_object_render_as_the_model_wrote_them(arguments: Any, rendered: str) -> None:
    text = OURS.apply_chat_template(with_calls_as_templates_know_them([USER, asked(arguments)]), tools=TOOLS)
    assert f'{{"name": "get_weather", "arguments": {rendered}}}\n</tool_call>' in text


@pytest.mark.parametrize("calls, field", [
    ("f", "messages[1].tool_calls"), ({}, "messages[1].tool_calls"), (["f"], "messages[1].tool_calls[0]"),
    ([{"name": "f"}], "messages[1].tool_calls[0]"), ([{"function": {"name": ""}}], "messages[1].tool_calls[0].function.name"),
    ([{"function": {"name": "f", "arguments": 3}}], "messages[1].tool_calls[0].function.arguments"),
    ([{"function": {"name": "f"}}, {"function": {"name": None}}], "messages[1].tool_calls[1].function.name"),
], ids=str)
def test_a_call_that_is_none_is_refused_and_the_error_names_the_field(calls: Any, field: str) -> None:
    with pytest.raises(InvalidParametersError) as caught:
        with_calls_as_templates_know_them([USER, {"role": "assistant", "tool_calls": calls}])
    assert caught.value.parameter == field


# -- calls that are forced --


def forced(
    llm: LLM, functions: list[Any], seed: int = 0, prompt: str = "How is the weather?", **how: Any,
) -> tuple[str, ParsedOutput]:
    """What the model writes, and what the parser makes of it."""
    pytest.importorskip("llguidance", reason="a grammar needs llguidance: pip install 'nano-qwen3-serving[structured]'")
    grammar = calls_grammar(functions, **how)
    params = SamplingParams(
        temperature=1.0, seed=seed, max_tokens=200, structured_outputs=StructuredOutputsParams(grammar=grammar))
    completion = llm.generate(prompt, params, use_tqdm=False)[0].outputs[0]
    assert completion.finish_reason == "stop"
    parser = OutputParser(reasoning=True, tools=True)
    return completion.text, joined(parser.add(completion.text) + parser.finish())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_model_that_knows_no_tools_calls_one_and_its_arguments_match_the_schema(course_llm: LLM, seed: int) -> None:
    _, parsed = forced(course_llm, FUNCTIONS, seed)
    (call,) = parsed.tool_calls
    assert (parsed.reasoning, parsed.content) == ("", "")
    arguments = json.loads(call.arguments)
    if call.name == "now":
        assert arguments == {}
    else:
        assert call.name == "get_weather" and arguments.keys() == {"city", "days"}
        assert arguments["city"] in ("Paris", "Rome") and arguments["days"] in range(10)


@pytest.mark.slow
def test_each_of_the_tools_can_be_called_and_a_named_one_always_is(course_llm: LLM) -> None:
    assert {forced(course_llm, FUNCTIONS, seed)[1].tool_calls[0].name for seed in range(12)} == {"get_weather", "now"}
    for seed in range(4):
        assert [call.name for call in forced(course_llm, FUNCTIONS[1:], seed)[1].tool_calls] == ["now"]


@pytest.mark.slow
def test_several_calls_are_allowed_if_asked_for(course_llm: LLM) -> None:
    counts = {len(forced(course_llm, FUNCTIONS, seed, several=True)[1].tool_calls) for seed in range(6)}
    assert 1 in counts and max(counts) > 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_forced_call_comes_back_in_the_next_prompt_letter_for_letter(course_llm: LLM, seed: int) -> None:
    """So the blocks of the whole conversation so far are found in the prefix cache."""
    prompt = OURS.apply_chat_template([USER], tools=TOOLS)
    text, parsed = forced(course_llm, FUNCTIONS, seed, prompt=prompt)
    calls = [{"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
             for call in parsed.tool_calls]
    history = [USER, {"role": "assistant", "content": parsed.content, "tool_calls": calls}, result(0, "Sun.")]
    again = OURS.apply_chat_template(with_calls_as_templates_know_them(history), tools=TOOLS)
    assert again.startswith(prompt + text + "<|im_end|>")


def allows(grammar: str, text: str) -> bool:
    """Whether `text` is one of the grammar's, by the engine's own compiler."""
    pytest.importorskip("llguidance", reason="a grammar needs llguidance: pip install 'nano-qwen3-serving[structured]'")
    (eos,) = OURS.encode("<|im_end|>")
    state = GrammarCompiler(OURS, len(OURS), [eos]).compile(StructuredOutputsParams(grammar=grammar))
    for token in OURS.encode(text):
        if not state.allowed()[token]:
            return False
        state.accept([token])
    return bool(state.allowed()[eos])


A_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize("thoughts, text, good", [
    ("none", A_CALL, True), ("none", f"<think>\nHm.\n</think>\n\n{A_CALL}", False), ("none", "", False),
    ("optional", A_CALL, True), ("optional", f"<think>\nHm.\n</think>\n\n{A_CALL}", True), ("optional", "Hm.", False),
    ("optional", f"<think>\nHm.\n{A_CALL}", False),
    ("opened", f"Hm <b>.\n</think>\n\n{A_CALL}", True), ("opened", f"\n</think>\n\n{A_CALL}", True), ("opened", A_CALL, False),
    ("none", f"{A_CALL}\n{A_CALL}", False), ("none", f"{A_CALL} ", False),
    ("none", A_CALL.replace("now", "then"), False), ("none", A_CALL.replace("{}", '{"a": 1}'), False),
    ("none", A_CALL.replace('"now"', '"get_weather"').replace("{}", '{"city": "Rome", "days": 3}'), True),
    ("none", A_CALL.replace('"now"', '"get_weather"').replace("{}", '{"city":"Rome","days":3}'), False),
    ("none", A_CALL.replace('"now"', '"get_weather"').replace("{}", '{"city": "Oslo", "days": 3}'), False),
])
def test_the_grammar_allows_calls_as_the_template_writes_them_and_nothing_else(thoughts: Any, text: str, good: bool) -> None:
    assert allows(calls_grammar(FUNCTIONS, thoughts=thoughts), text) is good


def test_a_function_without_parameters_takes_no_arguments_and_the_tool_is_unchanged() -> None:
    assert arguments_schema(FUNCTIONS[1])["additionalProperties"] is False
    before = json.dumps(WEATHER)
    calls_grammar(FUNCTIONS)
    assert json.dumps(WEATHER) == before

