"""Qwen3's text, split while it comes: the same reasoning, content and calls for every way of cutting it.

The oracle is a parser of the whole text, made of regular expressions and searches, that shares nothing with the
engine's.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano_qwen3_serving.server.openai.parsers import (
    CALL,
    ContentDelta,
    Delta,
    OutputParser,
    ParsedOutput,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallStart,
    joined,
    opens_reasoning,
)

Told = tuple[str, str, list[tuple[str, str]]]
"""Reasoning, content, and name and arguments of each call."""

PARIS = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
ROME = '{"name": "get_weather", "arguments": {"city": "Rome"}}'


def called(body: str) -> str:
    """A call as Qwen3 writes it."""
    return f"<tool_call>\n{body}\n</tool_call>"


def deltas(pieces: list[str], **how: bool) -> list[Delta]:
    parser = OutputParser(**{"reasoning": True, "tools": True, **how})
    return [delta for piece in pieces for delta in parser.add(piece)] + parser.finish()


def told(output: ParsedOutput) -> Told:
    return output.reasoning, output.content, [(call.name, call.arguments) for call in output.tool_calls]


def parsed(*pieces: str, **how: bool) -> Told:
    return told(joined(deltas(list(pieces), **how)))


def cuts(text: str, places: tuple[int, ...]) -> list[str]:
    return [text[start:end] for start, end in itertools.pairwise((0, *places, len(text)))]


# -- the oracle --

WS = r"[ \t\r\n]*"
STRING = r'"(?:[^"\\\x00-\x1f]|\\[^\x00-\x1f])*"'
KEY = rf"{WS}{{}}{WS}:{WS}"
NAME_FIRST = re.compile(rf'{WS}{{{KEY.format(chr(34) + "name" + chr(34))}({STRING}){WS},{KEY.format("(" + STRING + ")")}(?={{)')
ARGUMENTS_FIRST = re.compile(rf'{WS}{{{KEY.format("(" + STRING + ")")}(?={{)')
NAME_NEXT = re.compile(rf'{WS},{KEY.format("(" + STRING + ")")}({STRING})')


def unquoted(string: str) -> str | None:
    try:
        text = json.loads(string)
        text.encode()
        return text
    except ValueError:
        return None


def object_end(text: str, start: int) -> tuple[int, bool]:
    """Where the object that begins at `start` ends, and whether its braces are closed."""
    depth, inside, at = 0, False, start
    while at < len(text):
        char = text[at]
        if inside:
            if char == "\\":
                at += 1
            inside = char != '"'
        elif char == '"':
            inside = True
        elif char == "<":
            return at, False
        elif char in "{[":
            depth += 1
        elif char in "}]":
            depth -= 1
            if not depth:
                return at + 1, True
        at += 1
    return len(text), False


def call_at(text: str, start: int) -> tuple[str, str, int] | None:
    """Name, arguments and end of the call whose tag ends at `start`."""
    if (head := NAME_FIRST.match(text, start)) and unquoted(head[2]) == "arguments":
        name, begin = unquoted(head[1]), head.end()
        end, closed = object_end(text, begin)
        arguments, at = text[begin:end], end
    elif (head := ARGUMENTS_FIRST.match(text, start)) and unquoted(head[1]) == "arguments":
        end, closed = object_end(text, head.end())
        arguments = text[head.end():end]
        try:
            json.loads(arguments, parse_constant=int)  # NaN and the like are no JSON, and no int
        except ValueError:
            return None
        if not (tail := NAME_NEXT.match(text, end)) or unquoted(tail[1]) != "name":
            return None
        name, at = unquoted(tail[2]), tail.end()
    else:
        return None
    if not name:
        return None
    if closed and (brace := re.compile(WS + "}").match(text, at)):
        at = brace.end()
    elif closed:
        at = re.compile(WS).match(text, at).end()
    return name, arguments, at


def brute_force(text: str, *, reasoning: bool = True, tools: bool = True, starts_in_reasoning: bool = False) -> Told:
    """What the text says, read with all of it in view."""
    said = {True: "", False: ""}
    calls: list[tuple[str, str]] = []
    thinking, fresh, behind_call, at = reasoning and starts_in_reasoning, reasoning, False, 0
    while at < len(text):
        rest = text[at:]
        if fresh and text[at] in (" \t\r\n" if behind_call else "\n"):
            at += 1
        elif tools and rest.startswith("<tool_call>") and (call := call_at(text, at + 11)):
            calls.append(call[:2])
            at, thinking, fresh, behind_call = call[2], False, True, True
        elif behind_call and rest.startswith("</tool_call>"):
            at += 12
        elif reasoning and fresh and rest.startswith("<think>"):
            at, thinking, behind_call = at + 7, True, False
        elif reasoning and (fresh or thinking) and (end := re.match(r"\n?</think>" if thinking else "</think>", rest)):
            at, thinking, fresh, behind_call = at + end.end(), False, True, False
        else:
            said[thinking] += text[at]
            at, fresh, behind_call = at + 1, False, False
    return said[True], said[False], calls


# -- what is in a text --

TEXTS: dict[str, tuple[str, Told]] = {
    "nothing": ("", ("", "", [])),
    "only content": ("Paris.", ("", "Paris.", [])),
    "thoughts and content": ("<think>\nCapital?\n</think>\n\nParis.", ("Capital?", "Paris.", [])),
    "empty thoughts": ("<think>\n\n</think>\n\nParis.", ("", "Paris.", [])),
    "a call": (called(PARIS), ("", "", [("get_weather", '{"city": "Paris"}')])),
    "thoughts and a call": (
        f"<think>\nAsk.\n</think>\n\n{called(PARIS)}", ("Ask.", "", [("get_weather", '{"city": "Paris"}')])),
    "content before a call keeps its newline": (
        f"I will look.\n{called(PARIS)}", ("", "I will look.\n", [("get_weather", '{"city": "Paris"}')])),
    "two calls": (
        f"{called(PARIS)}\n{called(ROME)}",
        ("", "", [("get_weather", '{"city": "Paris"}'), ("get_weather", '{"city": "Rome"}')])),
    "content behind a call": (f"{called(PARIS)}\n\nWait.", ("", "Wait.", [("get_weather", '{"city": "Paris"}')])),
    "no newlines": (f"<tool_call>{PARIS}</tool_call>", ("", "", [("get_weather", '{"city": "Paris"}')])),
    "no arguments, dropped in vLLM #28806": (called('{"name": "now", "arguments": {}}'), ("", "", [("now", "{}")])),
    "arguments before name": (
        called('{"arguments": {"city": "Paris"}, "name": "get_weather"}'),
        ("", "", [("get_weather", '{"city": "Paris"}')])),
    "nested braces": (
        called('{"name": "f", "arguments": {"a": {"b": [{}, {"c": [1]}]}}}'),
        ("", "", [("f", '{"a": {"b": [{}, {"c": [1]}]}}')])),
    "braces, tags and escaped quotes in a string": (
        called(r'{"name": "f", "arguments": {"a": "}\"</tool_call><tool_call>\\"}}'),
        ("", "", [("f", r'{"a": "}\"</tool_call><tool_call>\\"}')])),
    "characters of all kinds": (
        "<think>\n猫？\n</think>\n\n👩‍🚀é" + called('{"name": "søk", "arguments": {"q": "猫👩‍🚀 \\u00e9"}}'),
        ("猫？", "👩‍🚀é", [("søk", '{"q": "猫👩‍🚀 \\u00e9"}')])),
    "an escape in the name": (called(r'{"name": "f\u00f8", "arguments": {}}'), ("", "", [("fø", "{}")])),
    "a tag opened twice": ("<think>\n<think>hm</think>x", ("hm", "x", [])),
    "a second block of thoughts": ("<think>a</think>\n<think>b</think>\nc", ("ab", "c", [])),
    "</think> where nothing is open": ("</think>\n\nParis.", ("", "Paris.", [])),
    "</think> in content": ("Write </think> then.", ("", "Write </think> then.", [])),
    "<think> in content": ("Write <think> first.", ("", "Write <think> first.", [])),
    "thoughts without an end": ("<think>\nHm, <b", ("Hm, <b", "", [])),
    "thoughts cut within the tag": ("<think>\nHm\n</thin", ("Hm\n</thin", "", [])),
    "content cut within a tag": ("Look: <tool_ca", ("", "Look: <tool_ca", [])),
    "a tag begun twice": ("<<tool_call>{<think", ("", "<<tool_call>{<think", [])),
}


def test_the_texts_with_a_table_of_what_they_say() -> None:
    for name, (text, expected) in TEXTS.items():
        assert parsed(text) == expected, name
        assert brute_force(text) == expected, f"the oracle: {name}"


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_says_the_same_cut_into_any_two_or_three_pieces_or_characters(name: str) -> None:
    text, expected = TEXTS[name]
    assert parsed(*text) == expected
    for places in itertools.chain(
            itertools.combinations(range(len(text) + 1), 1), itertools.combinations(range(0, len(text) + 1, 3), 2)):
        assert parsed(*cuts(text, places)) == expected, places


# -- no call, half a call --

NO_CALLS = {
    "not JSON": "<tool_call>\nnot JSON\n</tool_call>",
    "a list": '<tool_call>[{"name": "f", "arguments": {}}]</tool_call>',
    "no name": '<tool_call>{"arguments": {"a": 1}}</tool_call>',
    "no arguments": '<tool_call>{"name": "f"}</tool_call>',
    "an empty name": '<tool_call>{"name": "", "arguments": {}}</tool_call>',
    "a name that is no string": '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
    "two names": '<tool_call>{"name": "f", "name": "g", "arguments": {}}</tool_call>',
    "another key": '<tool_call>{"name": "f", "parameters": {}}</tool_call>',
    "another key first": '<tool_call>{"id": 1, "name": "f", "arguments": {}}</tool_call>',
    "arguments in a string": r'<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}</tool_call>',
    "arguments in a list": '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
    "an escape that JSON lacks": r'<tool_call>{"name": "\q", "arguments": {}}</tool_call>',
    "half a character for a name": r'<tool_call>{"name": "\ud83d", "arguments": {}}</tool_call>',
    "no number": '<tool_call>{"arguments": {"a": NaN}, "name": "f"}</tool_call>',
    "a line break in the name": '<tool_call>{"name": "f\n", "arguments": {}}</tool_call>',
    "bad arguments before the name": '<tool_call>{"arguments": {a: 1}, "name": "f"}</tool_call>',
    "cut in the name": '<tool_call>\n{"name": "get_wea',
    "cut before the arguments": '<tool_call>\n{"name": "get_weather", "arguments": ',
    "cut in arguments that come first": '<tool_call>{"arguments": {"city": "Par',
}


@pytest.mark.parametrize("name", NO_CALLS)
def test_what_is_no_call_is_content_to_the_letter(name: str) -> None:
    text = NO_CALLS[name]
    assert parsed(text) == parsed(*text) == brute_force(text) == ("", text, [])


@pytest.mark.parametrize("name", NO_CALLS)
def test_what_is_no_call_inside_thoughts_stays_a_thought(name: str) -> None:
    text = NO_CALLS[name]
    assert parsed("<think>", text, "</think>x") == (text, "x", [])


@pytest.mark.parametrize("name", [name for name, text in NO_CALLS.items() if text.endswith("</tool_call>")])
def test_a_call_behind_one_that_is_none_is_found(name: str) -> None:
    text = NO_CALLS[name] + called(PARIS)
    assert parsed(text) == parsed(*text) == ("", NO_CALLS[name], [("get_weather", '{"city": "Paris"}')])


@pytest.mark.parametrize("text, arguments, content", [
    ('<tool_call>{"name": "f", "arguments": {"a": "b', '{"a": "b', ""),
    ('<tool_call>{"name": "f", "arguments": {"a": 1}', '{"a": 1}', ""),
    ('<tool_call>{"name": "f", "arguments": {"a": 1}}', '{"a": 1}', ""),
    ('<tool_call>{"name": "f", "arguments": {"a": 1}}\n</tool_', '{"a": 1}', "</tool_"),
    ('<tool_call>{"name": "f", "arguments": {"a": 1</tool_call>x', '{"a": 1', "x"),
    ('<tool_call>{"name": "f", "arguments": {"a": 1}\n</tool_call>x', '{"a": 1}', "x"),
    ('<tool_call>{"name": "f", "arguments": {"a": 1}}}\n</tool_call>x', '{"a": 1}', "}\n</tool_call>x"),
    ('<tool_call>{"name": "f", "arguments": {"a": 1}, "id": 2}</tool_call>', '{"a": 1}', ', "id": 2}</tool_call>'),
    ("<tool_call>{\"name\": \"f\", \"arguments\": {'a': True}}</tool_call>", "{'a': True}", ""),
])
def test_a_call_that_has_begun_is_never_taken_back_and_what_follows_is_not_lost(text: str, arguments: str, content: str) -> None:
    assert parsed(text) == parsed(*text) == brute_force(text) == ("", content, [("f", arguments)])


# -- every text --

ATOMS = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "\n", " ", "<", "x", "{", "}", "[", "]", '"', "\\", ":", ",", "1", "é",
    '"name"', '"arguments"', '"f"', '{"name": "f", "arguments": ', '{"arguments": {}, "name": ', '{"a": 1}', "猫", "</", "<t",
    '<tool_call>{"name": "f", "arguments": ', '<tool_call>{"arguments": {"a": ', '}, "name": "g"}', "}}</tool_call>",
    '{"name": "f", "arguments": {}}', '<tool_call>\n{"name": "f", "arguments": {"a": "', "tool_call>", "\r\n", "\\u00e9", "null",
]
SWITCHES = [dict(zip(("reasoning", "tools", "starts_in_reasoning"), on, strict=True))
            for on in itertools.product((True, False), repeat=3)]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(ATOMS), max_size=30).map("".join), st.sampled_from(SWITCHES), st.data())
def test_any_text_cut_anyhow_says_what_the_whole_says(text: str, how: dict[str, bool], data: st.DataObject) -> None:
    expected = brute_force(text, **how)
    places = data.draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
    assert parsed(text, **how) == parsed(*text, **how) == parsed(*cuts(text, tuple(places)), **how) == expected


@pytest.mark.parametrize("name", [name for name, (text, _) in TEXTS.items() if len(text) <= 12])
def test_a_short_text_says_the_same_for_every_way_of_cutting_it(name: str) -> None:
    text, expected = TEXTS[name]
    for size in range(len(text)):
        for places in itertools.combinations(range(1, len(text)), size):
            assert parsed(*cuts(text, places)) == expected


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(ATOMS), max_size=40).map("".join), st.sampled_from(SWITCHES))
def test_no_character_is_lost_but_tags_their_white_space_and_the_json_around_a_call(text: str, how: dict[str, bool]) -> None:
    reasoning, content, calls = parsed(text, **how)
    there = "".join([reasoning, content, *(name + arguments for name, arguments in calls)])
    tags = len("<tool_call>") + len('{"name":"","arguments":}') + len("</tool_call>")
    lost = len(re.sub(r"\s|</?think>|</?tool_call>", "", text)) - len(re.sub(r"\s|</?think>|</?tool_call>", "", there))
    assert lost <= len(calls) * tags
    if not calls and not how["reasoning"]:
        assert content == text


# -- what is held back --


def held_back(text: str) -> Iterator[tuple[str, int]]:
    """After each character: what was read, and how much of it was not handed on."""
    parser, given_on = OutputParser(reasoning=True, tools=True), 0
    for at, char in enumerate(text):
        given_on += sum(len(delta.text) for delta in parser.add(char) if not isinstance(delta, ToolCallStart))
        yield text[:at + 1], at + 1 - given_on


@pytest.mark.parametrize("text", [
    "Content with < and <tool and </think> and <think and \n\n newlines.", "<tool_<tool_cal<tool_call", "a" + "\n" * 13 + "b"])
def test_only_what_could_still_become_a_tag_is_held_back(text: str) -> None:
    for read, held in held_back(text):
        assert held <= len(CALL) - 1
        assert held == 0 or CALL.startswith(read[-held:]), read


def test_of_thoughts_a_newline_and_the_beginning_of_their_end_are_held_back() -> None:
    text = "Thought\n\n\n</thi <too </think"
    for read, held in held_back("<think>x" + text):
        if len(read) > len("<think>x"):
            held -= len("<think>")
            assert held <= len(CALL) - 1
            assert held == 0 or CALL.startswith(read[-held:]) or "\n</think>".startswith(read[-held:]) \
                or "</think>".startswith(read[-held:]), read


def test_arguments_are_handed_on_character_by_character_from_their_first_brace_on() -> None:
    parser = OutputParser(reasoning=True, tools=True)
    assert parser.add('<tool_call>\n{"name": "f", "arguments": ') == []
    start, brace = parser.add("{")
    assert isinstance(start, ToolCallStart) and start.name == "f" and start.index == 0
    assert brace == ToolCallArguments(0, "{")
    for char in '"a": "}</tool_call>", "b": [{}]}':
        assert parser.add(char) == [ToolCallArguments(0, char)]
    assert parser.add("}\n</tool_call>") == []


def test_what_turns_out_to_be_no_call_is_handed_on_at_once() -> None:
    for text in ("<tool_call>x", "<tool_call>{}", '<tool_call>{"name": "f\n', '<tool_call>{"arguments": {"a": b'):
        parser = OutputParser(reasoning=True, tools=True)
        assert parser.add(text[:-1]) == [] and parser.add(text[-1]) == [ContentDelta(text)]


def test_neighbours_of_one_kind_come_as_one_delta_and_each_call_has_its_index_and_id() -> None:
    text = f"<think>\nab\n</think>\n\ncd{called(PARIS)}{called(ROME)}ef"
    found = deltas([text])
    assert [type(delta) for delta in found] == [
        ReasoningDelta, ContentDelta, ToolCallStart, ToolCallArguments, ToolCallStart, ToolCallArguments, ContentDelta]
    starts = [delta for delta in found if isinstance(delta, ToolCallStart)]
    assert [start.index for start in starts] == [0, 1] and len({start.id for start in starts}) == 2
    assert all(re.fullmatch(r"call_[0-9a-f]{24}", start.id) for start in starts)


def test_ids_are_the_callers_if_it_makes_them() -> None:
    parser = OutputParser(reasoning=False, tools=True, new_id=lambda: "call_7")
    assert joined(parser.add(called(PARIS))).tool_calls[0].id == "call_7" and parser.num_calls == 1


def test_what_is_switched_off_is_text() -> None:
    text = f"<think>\na</think>{called(PARIS)}"
    assert parsed(text, reasoning=False, tools=False) == ("", text, [])
    assert parsed(text, reasoning=False) == ("", "<think>\na</think>", [("get_weather", '{"city": "Paris"}')])
    assert parsed(text, tools=False) == ("a", called(PARIS), [])


@pytest.mark.parametrize("prompt, opened", [
    ("<|im_start|>assistant\n", False), ("<|im_start|>assistant\n<think>\n", True), ("<|im_start|>assistant\n<think>", True),
    ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False), ("", False)])
def test_the_prompt_says_whether_the_answer_begins_with_thoughts(prompt: str, opened: bool) -> None:
    assert opens_reasoning(prompt) is opened
    expected = ("Hm.", "Hello", []) if opened else ("", "Hello", [])
    assert parsed("Hm.\n</think>\n\nHello" if opened else "Hello", starts_in_reasoning=opens_reasoning(prompt)) == expected


# -- work --


class Counting(OutputParser):
    """Counts the characters it reads, every time that it reads them."""

    num_read = 0

    def _read_text(self, char: str) -> None:
        self.num_read += 1
        super()._read_text(char)

    def _read_call(self, call, char: str) -> None:
        self.num_read += 1
        super()._read_call(call, char)


@pytest.mark.parametrize("unit", [
    "word ", "<", "\n", "<tool_call>", "<tool_call>{", '<tool_call>{"', '<tool_call>{"name": "', '<tool_call>{"arguments":{"a":"',
    '<tool_call>{"arguments":{"a":["', '<tool_call>{"arguments": {', '<tool_call>{"name": "f", "arguments": ', "<tool_call>  ",
    '<tool_call>{"arguments":{"":"', r'<tool_call>{\"name\": \"', called(PARIS), "<think>\n\n</think>", "\n</think",
    '<tool_call>{"a": 1}x<tool_call>{"arguments": {"a": \\"{"name": "f", "arguments": ',
    '<tool_call>{"arguments": {"a": \'"x',
    '<tool_call>{"arguments":{"a":"b"},', '<tool_call>{"arguments":{},"name":"\\',
])
@pytest.mark.parametrize("before", ["", "<think>", "x"])
def test_a_text_of_any_length_is_read_at_most_four_times(before: str, unit: str) -> None:
    for times in (30, 300):
        text = before + unit * times
        parser = Counting(reasoning=True, tools=True)
        parser.add(text)
        parser.finish()
        assert parser.num_read <= 4 * len(text)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(ATOMS), min_size=1, max_size=6).map("".join))
def test_no_repeated_text_is_read_more_often(unit: str) -> None:
    parser = Counting(reasoning=True, tools=True)
    parser.add(unit * 60)
    parser.finish()
    assert parser.num_read <= 4 * len(unit) * 60


# -- reports from people who ran vLLM --


def test_arguments_cut_between_any_two_tokens_arrive_whole() -> None:
    """vLLM #19056, #28297: the first fragments of arguments were lost, or doubled, depending on what one token was."""
    body = '{"name": "outline", "arguments": {"title": "迭代背景", "guide": "阐述 DeepSeek", "pages": 3, "tags": [{"a": true}]}}'
    tokens = re.findall(r'\{"|": |", |"\}|\w+|\W', called(body))
    assert "".join(tokens) == called(body)
    expected = [("outline", '{"title": "迭代背景", "guide": "阐述 DeepSeek", "pages": 3, "tags": [{"a": true}]}')]
    for several in range(1, 9):
        pieces = ["".join(tokens[at:at + several]) for at in range(0, len(tokens), several)]
        assert parsed(*pieces) == ("", "", expected)


@pytest.mark.parametrize("pieces", [
    (called(PARIS) + called(ROME),),
    (called(PARIS)[:-4], called(PARIS)[-4:] + called(ROME)[:30], called(ROME)[30:]),
])
def test_one_piece_may_end_one_call_and_begin_the_next(pieces: tuple[str, ...]) -> None:
    """vLLM #38168, #41967: with several tokens a step, start and end of a call come in one delta."""
    assert parsed(*pieces)[2] == [("get_weather", '{"city": "Paris"}'), ("get_weather", '{"city": "Rome"}')]


def test_a_long_argument_streams_while_it_is_written() -> None:
    """vLLM #30439: a file of thousands of lines, all of it held back until the call was over."""
    parser = OutputParser(reasoning=True, tools=True)
    parser.add('<tool_call>{"name": "write", "arguments": {"text": "')
    for line in range(1000):
        assert parser.add(f"line {line}\\n") == [ToolCallArguments(0, f"line {line}\\n")]


def test_a_call_inside_thoughts_that_were_not_ended_is_a_call() -> None:
    """vLLM #39056: the call was taken for a thought, and the agent's loop ended."""
    text = f"<think>\nI will ask.\n{called(PARIS)}"
    assert parsed(text) == parsed(*text) == ("I will ask.\n", "", [("get_weather", '{"city": "Paris"}')])
    assert parsed(text[8:], starts_in_reasoning=True)[2] == [("get_weather", '{"city": "Paris"}')]
    for end in ("\n</think>\n\nDone.", "\nDone."):
        assert parsed(text + end)[:2] == ("I will ask.\n", "Done.")


def test_thoughts_about_the_tag_are_thoughts() -> None:
    """vLLM #39056, further down: what ended thoughts at the mere word `<tool_call>` cut them off."""
    text = "<think>\nI could write <tool_call> here, or <tool_call></tool_call>.\n</think>\n\nNo."
    assert parsed(text) == parsed(*text) == ("I could write <tool_call> here, or <tool_call></tool_call>.", "No.", [])


def test_an_end_of_thoughts_and_a_call_in_one_piece() -> None:
    """vLLM #45413: the delta in which thoughts end also begins the call."""
    for piece in range(1, 40):
        text = f"<think>\nAsk.\n</think>\n\n{called(PARIS)}"
        assert parsed(*(text[at:at + piece] for at in range(0, len(text), piece))) == (
            "Ask.", "", [("get_weather", '{"city": "Paris"}')])


def test_a_stray_tag_before_the_call_is_content() -> None:
    """vLLM #53638: a tag and chatter before the real call put a brace too many into its arguments."""
    text = f"<tool_call> let me see {called(PARIS)}"
    assert parsed(text) == parsed(*text) == ("", "<tool_call> let me see ", [("get_weather", '{"city": "Paris"}')])


def test_an_opening_tag_at_the_end_of_the_text_is_content_streamed_or_not() -> None:
    """vLLM #47137."""
    for text in ("Look.<tool_call>", "Look.<tool_call", "Look.<tool_call>\n{"):
        assert parsed(text) == parsed(*text) == ("", text, [])


def test_the_end_tag_may_be_missing_between_two_calls() -> None:
    text = f"<tool_call>\n{PARIS}\n<tool_call>\n{ROME}"
    assert parsed(text) == parsed(*text) == ("", "", [("get_weather", '{"city": "Paris"}'), ("get_weather", '{"city": "Rome"}')])


def test_content_with_thinking_switched_off_is_content() -> None:
    """vLLM #40816: all of it came as reasoning, though the prompt had closed the block."""
    assert parsed("Paris", " is it.", starts_in_reasoning=False) == ("", "Paris is it.", [])
