"""The tokenizer and the chat template equal transformers'."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from nano_qwen3_serving.exceptions import InvalidParametersError, ModelLoadError
from nano_qwen3_serving.model.checkpoint import BUNDLED
from nano_qwen3_serving.text.tokenizer import Tokenizer

OURS = Tokenizer.from_folder(BUNDLED / "course")
THEIRS = AutoTokenizer.from_pretrained(BUNDLED / "course")

TEXTS = [
    "",
    " ",
    "\n",
    "  two  spaces  ",
    "tab\tand\r\nline",
    "Hello, world!",
    "don't we'll I'D",
    "1234567890 3.14",
    "!?!?...",
    "def f(x):\n    return {'a': [x, *y], \"b\": x**2}  # comment\n",
    "<|im_start|>user\nHi<|im_end|>\n",
    "<|endoftext|>",
    "<think>\n\n</think>\n\n",
    "<tool_call>{}</tool_call><tool_response>",
    "<|im_start",
    "|im_end|>",
    "<|im_end|><|im_end|>",
    "你好，世界！",
    "नमस्ते दुनिया",
    "مرحبا بالعالم",
    "Привет",
    "こんにちは",
    "한국어",
    "🙂🙃👩‍👩‍👧‍👦🏳️‍🌈",
    "e\u0301 é \u00a0\u200b\ufeff",
    "\u0000\u0001\u007f",
    "a" * 300,
    "\ufffd",
    "mixed 你 and 🙂 and <|im_end|> and नमस्ते",
]


@pytest.mark.parametrize("text", TEXTS)
def test_encode_and_decode_equal_transformers(text: str) -> None:
    ids = OURS.encode(text)
    assert ids == THEIRS(text, add_special_tokens=False).input_ids
    for skip in (True, False):
        assert OURS.decode(ids, skip_special_tokens=skip) == THEIRS.decode(ids, skip_special_tokens=skip)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_encoded_as_by_transformers(text: str) -> None:
    assert OURS.encode(text) == THEIRS(text, add_special_tokens=False).input_ids


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, len(THEIRS) - 1), max_size=30), st.booleans())
def test_any_tokens_are_decoded_as_by_transformers(ids: list[int], skip: bool) -> None:
    assert OURS.decode(ids, skip_special_tokens=skip) == THEIRS.decode(ids, skip_special_tokens=skip)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, len(THEIRS) - 1), max_size=30))
def test_bytes_of_tokens_join_to_the_decoded_text(ids: list[int]) -> None:
    joined = b"".join(map(OURS.token_bytes, ids))
    assert joined.decode("utf-8", errors="replace") == OURS.decode(ids, skip_special_tokens=False)


def test_special_tokens_are_qwens() -> None:
    for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        (token_id,) = OURS.encode(token)
        assert OURS.is_special(token_id) and THEIRS.added_tokens_decoder[token_id].special
        assert OURS.token_text(token_id) == token
    for token in ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"):
        (token_id,) = OURS.encode(token)
        assert not OURS.is_special(token_id), f"{token} is part of the text, as in Qwen3"
    assert OURS.eos_token_id == THEIRS.eos_token_id == OURS.encode("<|im_end|>")[0]
    assert len(OURS) == len(THEIRS)


def test_every_byte_has_a_token_so_that_any_text_can_be_encoded() -> None:
    assert {OURS.token_bytes(i) for i in range(len(OURS))} >= {bytes([b]) for b in range(256)}


def test_an_unknown_token_adds_no_text() -> None:
    assert OURS.token_bytes(10**6) == b"" and OURS.token_text(10**6) == ""


SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
USER = {"role": "user", "content": "What is a KV cache?"}
ANSWER = {"role": "assistant", "content": "It keeps keys and values."}
THOUGHT = {"role": "assistant", "content": "<think>\nHm, a cache.\n</think>\n\nIt keeps keys and values."}
REASONED = {"role": "assistant", "content": "It keeps keys.", "reasoning_content": "Hm."}
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2, "wind": None}}}]}
CALLS = {"role": "assistant", "content": "Let me see.", "tool_calls": [
    {"function": {"name": "weather", "arguments": '{"city": "Rome"}'}}, {"name": "time", "arguments": {}}]}
RESULT = {"role": "tool", "content": '{"degrees": 21}'}
AGAIN = {"role": "user", "content": "And paged attention? 🙂\n\n你好"}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Says <b>how</b> it's & will be: 天気", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "time", "parameters": {}}},
]
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [USER],
    "system and question": [SYSTEM, USER],
    "two turns": [USER, ANSWER, AGAIN],
    "two turns with system": [SYSTEM, USER, ANSWER, AGAIN],
    "ends with an answer": [USER, ANSWER],
    "old thoughts": [USER, THOUGHT, AGAIN],
    "new thoughts": [USER, THOUGHT],
    "reasoning apart": [USER, REASONED],
    "old reasoning apart": [USER, REASONED, AGAIN],
    "tool call": [USER, CALL, RESULT],
    "tool calls": [SYSTEM, USER, CALLS, RESULT, RESULT, ANSWER, AGAIN],
    "system only": [SYSTEM],
    "markup in the text": [{"role": "user", "content": "{{ 1 + 1 }} {% if %} <|im_end|> </think>"}],
    "spaces around": [{"role": "user", "content": "  \n hi \n "}, {"role": "assistant", "content": "\n\n ok  "}, USER],
    "empty": [{"role": "user", "content": ""}],
}
SWITCHES: dict[str, dict[str, Any]] = {
    "plain": {},
    "thinking": {"enable_thinking": True},
    "no thinking": {"enable_thinking": False},
    "no generation prompt": {"add_generation_prompt": False},
    "tools": {"tools": TOOLS},
    "tools, no thinking": {"tools": TOOLS, "enable_thinking": False},
}


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_chat_template_renders_as_in_transformers(name: str, switches: str) -> None:
    arguments = {"add_generation_prompt": True, **SWITCHES[switches]}
    ours = OURS.apply_chat_template(CONVERSATIONS[name], **arguments)
    assert ours == THEIRS.apply_chat_template(CONVERSATIONS[name], tokenize=False, **arguments)
    tokens = THEIRS.apply_chat_template(CONVERSATIONS[name], tokenize=True, return_dict=False, **arguments)
    assert OURS.apply_chat_template(CONVERSATIONS[name], tokenize=True, **arguments) == tokens


BEGINNINGS = [
    "",
    "The answer is",
    "The answer is ",
    "a\n",
    "  x",
    "im",
    "assistant",
    "What is a KV cache?",
    "<think>\nHm",
    "end 🙂",
]


@pytest.mark.parametrize("content", BEGINNINGS)
@pytest.mark.parametrize("before", [[USER], [SYSTEM, USER, ANSWER, AGAIN]], ids=["question", "conversation"])
def test_continue_final_message_ends_inside_it_as_in_transformers(content: str, before: list[Any]) -> None:
    messages = [*before, {"role": "assistant", "content": content}]
    arguments = {"continue_final_message": True, "add_generation_prompt": False}
    assert OURS.apply_chat_template(messages, **arguments) == THEIRS.apply_chat_template(messages, tokenize=False, **arguments)


@pytest.mark.parametrize("switches", [{}, {"tools": TOOLS}, {"enable_thinking": False}, {"date": "today"}], ids=str)
def test_another_chat_template_sees_what_transformers_gives_it(switches: dict[str, Any]) -> None:
    template = (
        "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{% for m in messages %}\n    {%- if loop.first %}[{% endif %}\n"
        "{{ m['role'] }}: {{ m.content | trim | upper }} {{ m | tojson }}{% if m.role == 'tool' %}{% continue %}{% endif %};\n"
        "{% endfor %}{{ tools | tojson(indent=2) }}{{ enable_thinking is defined }}{{ date }}{{ add_generation_prompt }}")
    ours = OURS.apply_chat_template([SYSTEM, USER, RESULT], chat_template=template, **switches)
    theirs = THEIRS.apply_chat_template(
        [SYSTEM, USER, RESULT], chat_template=template, tokenize=False, add_generation_prompt=True, **switches)
    assert ours == theirs


@pytest.mark.parametrize("messages", [
    [], None, "hi", [["user", "hi"]], [{"role": "user"}], [{"content": "hi"}], [{"role": "robot", "content": "hi"}],
    [{"role": "user", "content": 3}], [{"role": "user", "content": []}],
    [{"role": "robot", "content": [{"type": "text", "text": "hi"}]}], [USER, {"role": "assistant", "content": None}],
], ids=repr)
def test_malformed_messages_are_refused_by_value(messages: Any) -> None:
    with pytest.raises(InvalidParametersError, match="messages") as caught:
        OURS.apply_chat_template(messages)
    assert caught.value.parameter.startswith("messages")


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def test_a_content_in_text_parts_is_one_text_with_a_line_for_each_part() -> None:
    given = [{**SYSTEM, "content": parts(SYSTEM["content"])}, {"role": "user", "content": parts("Two", "", "lines")}]
    before = repr(given)
    expected = OURS.apply_chat_template([SYSTEM, {"role": "user", "content": "Two\n\nlines"}])
    assert OURS.apply_chat_template(given) == expected
    assert repr(given) == before, "the caller's messages were changed"


def test_a_final_message_in_parts_can_be_continued() -> None:
    arguments = {"continue_final_message": True, "add_generation_prompt": False}
    final = {"role": "assistant", "content": parts("It keeps")}
    assert OURS.apply_chat_template([USER, final], **arguments) == OURS.apply_chat_template(
        [USER, {"role": "assistant", "content": "It keeps"}], **arguments)


@pytest.mark.parametrize(("part", "named"), [
    ({"type": "image_url", "image_url": {"url": "x"}}, "'image_url'"), ({"type": "input_audio"}, "'input_audio'"),
    ({"type": "text"}, "{'type': 'text'}"), ({"type": "text", "text": 3}, "3"), ({"text": "hi"}, "{'text': 'hi'}"),
    ("hi", "'hi'"), (None, "None"),
], ids=repr)
def test_a_part_that_is_no_text_is_refused_by_its_place_and_its_type(part: Any, named: str) -> None:
    with pytest.raises(InvalidParametersError, match=re.escape(named)) as caught:
        OURS.apply_chat_template([USER, {"role": "user", "content": [*parts("hi"), part]}])
    assert caught.value.parameter == "messages[1].content[1]"


def test_a_template_that_refuses_and_one_that_is_broken_are_the_callers_errors() -> None:
    with pytest.raises(InvalidParametersError, match="no system message, please"):
        OURS.apply_chat_template([SYSTEM], chat_template="{{ raise_exception('no system message, please') }}")
    with pytest.raises(InvalidParametersError, match="chat template"):
        OURS.apply_chat_template([USER], chat_template="{% for %}")


@pytest.mark.parametrize("template", [
    "{{ messages.__class__.__mro__[1].__subclasses__() }}", "{{ dict.__class__.__mro__ }}",
    "{{ dict.fromkeys.__globals__.items() }}",
    "{{ namespace.__init__.__globals__.items() }}", "{{ namespace(_a=1) }}", "{{ strftime_now.__globals__.items() }}",
    "{{ messages.append(1) }}",
])
def test_a_template_cannot_reach_python(template: str) -> None:
    with pytest.raises(InvalidParametersError):
        OURS.apply_chat_template([USER], chat_template=template)


CALL_ALONE = {"role": "assistant", "content": None, "tool_calls": CALL["tool_calls"]}
THINKS = [{"role": "assistant", "content": "So.", name: "Hm."} for name in ("thinking", "reasoning")]
IN_THE_WILD = [
    "{{ messages[0] | tojson(ensure_ascii=False) }}", "{{ messages[0] | tojson(true) }}", "{{ messages | tojson(indent=4) }}",
    "{{ messages[0] | tojson(separators=(',', ':'), sort_keys=true) }}", "{{ messages | tojson(false, 2) }}",
    "{{ '<b>&' | tojson }}", "{{ messages | tojson(nonsense=1) }}", "{{ strftime_now('%Y') }}", "{{ strftime_now() }}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}", "{%- generation -%} a {%- endgeneration -%} b",
    "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}", "{% generation %}never closed",
    "{{ documents is none }}{{ documents is defined }}",
    "{% for d in documents or [] %}{{ d.title }}: {{ d['text'] }};{% endfor %}",
    "{{ tools is none }}{{ tools | length if tools else 'none' }}", "{% for t in tools %}{{ t | tojson }}{% endfor %}",
    "{% for m in messages %}{{ m.content }}|{% endfor %}",
    "{% for m in messages %}{{ 'content' in m }}{{ m.content is defined }}{% endfor %}",
    "{% for m in messages %}{{ m.content is none }}{{ m.content is string }}{% endfor %}",
    "{% for m in messages %}{{ m['content'] + '!' }}{% endfor %}", "{% for m in messages %}{{ m.tool_calls or '' }}{% endfor %}",
    "{% for m in messages %}{{ m.reasoning_content }}/{{ m.thinking }}/{{ m.reasoning }};{% endfor %}",
    "{% for m in messages %}{{ m.items() | list }}{% endfor %}", "{{ messages[-1].tool_calls[0].function.arguments.city }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% set ns = namespace(self=1) %}{{ ns.self }}", "{{ dict(a=1, b=2) }}{{ dict.fromkeys(['a']) }}",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "{% macro say(x) %}[{{ x }}]{% endmacro %}{{ say(messages[0].role) }}", "{% call(x) say() %}{% endcall %}",
    "  {% if true %}\n    indented\n  {% endif %}\n", "{{- '\n' -}}  x  \n\n", "{# remark #}x", "{{ bos_token }}{{ eos_token }}",
    "{{ messages[0].content.split('?')[0] | trim | upper }}", "{{ messages[0].content[::-1] }}", "{{ messages[7].content }}",
    "{{ undefined_name.field }}", "{{ undefined_name }}", "{{ 1 // 0 }}", "{{ 'x' + none }}", "{{ 'a' * 10 ** 20 }}",
    "{{ range(10 ** 9) | list }}", "{{ raise_exception('no') }}", "{{ messages | nofilter }}", "{% for %}", "{% include 'x' %}",
    "{{ messages | sort(attribute='role') | map(attribute='role') | join(',') }}", "{{ add_generation_prompt }}",
    "{{ self.__init__ }}", "{{ cycler('a', 'b').next() }}{{ lipsum is defined }}", "{{ messages[0].get('name', 'nobody') }}",
]


def their_text(messages: list[dict[str, Any]], how: dict[str, Any]) -> str | None:
    """transformers' text; None where it raises."""
    try:
        return THEIRS.apply_chat_template(messages, **how)
    except Exception:
        return None


@pytest.mark.parametrize("template", IN_THE_WILD)
def test_templates_in_the_wild_give_transformers_text_or_are_the_callers_error(template: str) -> None:
    """Where transformers raises, whatever it raises, this is an `InvalidParametersError`; but what fails there only for
    want of a content beside tool calls has an empty one, as in vLLM."""
    documents = [{"title": "Köln", "text": "A city."}]
    for messages in ([USER, ANSWER], [USER, CALL_ALONE, RESULT], [*THINKS, USER], [USER, {**ANSWER, "name": None,
        "tool_calls": None}]):
        for more in ({}, {"tools": TOOLS, "documents": documents}):
            how: dict[str, Any] = {"chat_template": template, "add_generation_prompt": False, "tokenize": False, **more}
            expected = their_text(messages, how)
            if expected is None:
                expected = their_text([{**m, "content": m["content"] or ""} for m in messages], how)
            before = repr(messages)
            if expected is None:
                with pytest.raises(InvalidParametersError, match="chat template"):
                    OURS.apply_chat_template(messages, **how)
            else:
                assert OURS.apply_chat_template(messages, **how) == expected
            assert repr(messages) == before, "the caller's messages were changed"


@pytest.mark.parametrize("given", [{"tools": ["x"]}, {"tools": {"a": 1}}, {"documents": "x"}, {"documents": [3]},
                                   {"chat_template": 3}], ids=repr)
def test_tools_documents_and_templates_of_a_wrong_type_are_refused_by_name(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidParametersError) as caught:
        OURS.apply_chat_template([USER], **given)
    assert caught.value.parameter in given


def test_a_switch_may_replace_a_special_tokens_text_as_in_transformers() -> None:
    template = "{{ eos_token }}{{ messages[0].content }}"
    ours = OURS.apply_chat_template([USER], chat_template=template, eos_token="<end>")
    assert ours == THEIRS.apply_chat_template([USER], chat_template=template, eos_token="<end>", tokenize=False)


def test_several_templates_are_chosen_among_by_name_and_by_tools(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools: {{ tools | length }}")
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ documents[0].title }}")
    ours = Tokenizer.from_folder(folder)
    assert ours.apply_chat_template([USER]) == OURS.apply_chat_template([USER])
    assert ours.apply_chat_template([USER], tools=TOOLS) == "tools: 2"
    assert ours.apply_chat_template([USER], chat_template="rag", documents=[{"title": "Köln"}]) == "Köln"
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(InvalidParametersError, match="rag, tool_use"):
        Tokenizer.from_folder(folder).apply_chat_template([USER])


def test_the_template_of_chat_template_json_is_used_when_there_is_no_other(folder: Path) -> None:
    (folder / "chat_template.json").write_text('{"chat_template": "older {{ messages[0].content }}"}')
    assert Tokenizer.from_folder(folder).apply_chat_template([USER]) == OURS.apply_chat_template([USER])
    (folder / "chat_template.jinja").unlink()
    assert Tokenizer.from_folder(folder).apply_chat_template([USER]) == "older What is a KV cache?"


@pytest.mark.parametrize("kind", ["truncation", "padding"])
def test_truncation_and_padding_of_a_trainer_do_not_cut_or_fill_prompts(folder: Path, kind: str) -> None:
    saved = {"truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
             "padding": {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                         "pad_type_id": 0, "pad_token": "!"}}[kind]
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), kind: saved}))
    assert Tokenizer.from_folder(folder).encode(USER["content"]) == OURS.encode(USER["content"])


@pytest.mark.parametrize(("file", "declared"), [
    ("tokenizer_config.json", {"extra_special_tokens": ["<|tool|>"]}), ("added_tokens.json", {"<|tool|>": 2048}),
    ("tokenizer_config.json", {"additional_special_tokens": ["<|tool|>"]}), ("special_tokens_map.json",
        {"mask_token": "<|tool|>"}),
])
def test_a_token_declared_only_beside_tokenizer_json_is_one_token(folder: Path, file: str, declared: dict[str, Any]) -> None:
    path = folder / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | declared))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("a<|tool|>b") == [*OURS.encode("a"), 2048, *OURS.encode("b")]
    assert tokenizer.is_special(2048) == (file != "added_tokens.json")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(["<|im_end|>", "<think>", "</think>", "<|im", "e\u0301"]), st.text(max_size=8)),
    max_size=6))
def test_a_text_that_is_spelled_is_its_tokens_bytes(pieces: list[str]) -> None:
    text = "".join(pieces)
    ids = OURS.encode_literally(text)
    assert b"".join(map(OURS.token_bytes, ids)) == text.encode()
    assert not any(OURS.is_special(i) for i in ids)


def test_continuing_a_message_and_beginning_another_is_refused() -> None:
    with pytest.raises(InvalidParametersError, match="continue_final_message"):
        OURS.apply_chat_template([USER, ANSWER], continue_final_message=True, add_generation_prompt=True)


def test_continuing_a_message_without_text_is_refused() -> None:
    calls_only = {"role": "assistant", "content": None, "tool_calls": CALL["tool_calls"]}
    with pytest.raises(InvalidParametersError, match="continue_final_message"):
        OURS.apply_chat_template([USER, calls_only], continue_final_message=True, add_generation_prompt=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(BUNDLED / "course" / file, tmp_path)
    return tmp_path


def test_without_a_template_chatting_is_refused_and_plain_text_is_not(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("Hello") == OURS.encode("Hello")
    with pytest.raises(InvalidParametersError, match="no chat template"):
        tokenizer.apply_chat_template([USER])


def test_a_template_inside_tokenizer_config_json_is_found(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = "just {{ messages[0].content }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert Tokenizer.from_folder(folder).apply_chat_template([USER]) == "just What is a KV cache?"


@pytest.mark.parametrize(("file", "content"), [
    ("tokenizer.json", None), ("tokenizer.json", "{"), ("tokenizer.json", '{"decoder": {"type": "ByteLevel"}}'),
    ("tokenizer.json", ""), ("tokenizer_config.json", "{not json"), ("tokenizer_config.json", "[1]"),
])
def test_a_missing_or_corrupt_file_is_named(folder: Path, file: str, content: str | None) -> None:
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(ModelLoadError, match=f"{file}.*(copy|download)"):
        Tokenizer.from_folder(folder)


def test_a_vocabulary_that_is_not_byte_level_is_refused(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(ModelLoadError, match="WordPiece"):
        Tokenizer.from_folder(folder)
