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

from nano_qwen3_serving.server.parsers import (
    CALL,
    END_CALL,
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
            json.loads(arguments)
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
    "no arguments": (called('{"name": "now", "arguments": {}}'), ("", "", [("now", "{}")])),
    "arguments before name": (
        called('{"arguments": {"city": "Paris"}, "name": "get_weather"}'),
        ("", "", [("get_weather", '{"city": "Paris"}')])),
    "nested braces": (
        called('{"name": "f", "arguments": {"a": {"b": [{}, {"c": [1]}]}}}'), ("", "", [("f", '{"a": {"b": [{}, {"c": [1]}]}}')])),
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
