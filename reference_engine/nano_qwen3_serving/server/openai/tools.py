"""Tools that a model may call: which definitions are valid, how calls come back as history, and how a call is forced.

Knows OpenAI's shapes of tools and calls, and the text that Qwen3 writes; `parsers.py` reads that text. Knows
nothing of HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from nano_qwen3_serving.arguments import invalid
from nano_qwen3_serving.exceptions import InvalidParametersError, UnknownArgumentError, shown
from nano_qwen3_serving.server.openai.parsers import CALL, END_CALL, END_THINK, THINK

FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
OF_A_FUNCTION = ("name", "description", "parameters", "strict")
JSON_FORM = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}
"""JSON as the chat template writes it into a history; white space that is free can go on for ever."""

Thoughts = Literal["none", "optional", "opened"]
"""What may come before a call that is forced: nothing, a block of thoughts, the rest of a block that the prompt has opened."""


# -- definitions --


def check_tools(tools: Sequence[Any]) -> None:
    """Refuses tools that are not functions, two with one name, and parameters that are not the schema of an object.

    Args:
        tools: `{"type": "function", "function": {"name", "description", "parameters", "strict"}}`; all but the name may be
            left out.

    Raises:
        InvalidParametersError: its `parameter` is the field, such as `tools[1].function.name`.
    """
    for number, tool in enumerate(tools):
        if not isinstance(tool, Mapping) or tool.get("type") != "function" or not isinstance(tool.get("function"), Mapping):
            raise invalid(f"tools[{number}]", tool, '{"type": "function", "function": {"name": "…", "parameters": {…}}}')
        refuse_unknown_fields(f"tools[{number}]", ("type", "function"), tool)
    check_functions({f"tools[{number}].function": tool["function"] for number, tool in enumerate(tools)})


def check_functions(functions: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses functions as `check_tools` does; errors name the keys as their places."""
    owners: dict[str, str] = {}
    for where, function in functions.items():
        check_function(where, function)
        name = function["name"]
        if name in owners:
            raise InvalidParametersError(
                f"{where}.name is {name!r}, and so is {owners[name]}.name; give each tool its own",
                parameter=f"{where}.name", value=name)
        owners[name] = where


def check_function(where: str, function: Mapping[str, Any]) -> None:
    """Refuses a function without a proper name, or whose parameters are not the schema of an object; `where` is its place."""
    refuse_unknown_fields(where, OF_A_FUNCTION, function)
    name, schema = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        raise invalid(f"{where}.name", name, "1 to 64 letters, digits, underscores and dashes")
    if not isinstance(function.get("description", ""), str | None):
        raise invalid(f"{where}.description", function["description"], "a string")
    if not isinstance(function.get("strict"), bool | None):
        raise invalid(f"{where}.strict", function["strict"], "True or False")
    if schema is not None and (not isinstance(schema, Mapping) or schema.get("type", "object") != "object"):
        raise invalid(f"{where}.parameters", schema, 'a JSON schema of an object: {"type": "object", "properties": {…}}')


def refuse_unknown_fields(where: str, known: Sequence[str], given: Mapping[str, Any]) -> None:
    """Refuses fields that are not `known`; `where` is the place of what has them."""
    for name in given:
        if name not in known:
            field = f"{where}.{name}"
            raise UnknownArgumentError(f"{field} is not served; {where} has {', '.join(known)}", parameter=field)


# -- history --


def with_calls_as_templates_know_them(messages: Sequence[Any]) -> list[Any]:
    """Messages whose calls have their arguments as a dict.

    OpenAI's clients send arguments back as a string of JSON; Hugging Face's templates want a dict. A string that is not a
    JSON object stays a string: the model wrote it, Qwen's template shows it as it is, and the conversation can go on.

    Raises:
        InvalidParametersError: a call has no name, or other arguments; its `parameter` is the field.
    """
    return [{**message, "tool_calls": checked_calls(f"messages[{number}].tool_calls", message["tool_calls"])}
            if isinstance(message, Mapping) and message.get("tool_calls") is not None else message
            for number, message in enumerate(messages)]


def checked_calls(where: str, calls: Any) -> list[Any]:
    """The calls of one message; `where` is their place."""
    if not isinstance(calls, list | tuple):
        raise invalid(where, calls, "a list of calls")
    return [checked_call(f"{where}[{number}]", call) for number, call in enumerate(calls)]


def checked_call(where: str, call: Any) -> dict[str, Any]:
    """One of them."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise invalid(where, call, '{"id": "…", "type": "function", "function": {"name": "…", "arguments": "…"}}')
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        raise invalid(f"{where}.function.name", name, "the name of the function that was called")
    if not isinstance(arguments, str | Mapping | None):
        raise invalid(f"{where}.function.arguments", arguments, "a string of JSON")
    return {**call, "function": {**function, "arguments": parsed_arguments(arguments)}}


def parsed_arguments(arguments: str | Mapping[str, Any] | None) -> str | Mapping[str, Any]:
    """What a string of arguments stands for; nothing, for functions without parameters, is an empty object."""
    if not isinstance(arguments, str):
        return arguments or {}
    if not arguments.strip():
        return {}
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


# -- calls that are forced --


def callable_functions(
    tools: Sequence[Mapping[str, Any]], choice: Literal["none", "auto", "required"] | str | Mapping[str, Any] | None,
) -> list[Mapping[str, Any]]:
    """The functions of which one must be called; none if the model may choose.

    Args:
        tools: checked.
        choice: OpenAI's `tool_choice`: a word, or `{"type": "function", "function": {"name": "…"}}`.

    Raises:
        InvalidParametersError: there is no such choice, or no such tool.
    """
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    if choice in (None, "none", "auto"):
        return []
    if not functions:
        raise InvalidParametersError(
            f"tool_choice={shown(choice)} needs tools, and there are none", parameter="tool_choice", value=choice)
    if choice == "required":
        return list(functions.values())
    named = choice.get("function") if isinstance(choice, Mapping) and choice.get("type") == "function" else None
    name = named.get("name") if isinstance(named, Mapping) else None
    if name is None:
        raise invalid("tool_choice", choice, '"none", "auto", "required" or {"type": "function", "function": {"name": "…"}}')
    if name not in functions:
        raise invalid("tool_choice", name, f"the name of one of the tools, {', '.join(map(repr, functions))}")
    return [functions[name]]


def calls_grammar(functions: Sequence[Mapping[str, Any]], *, several: bool = False, thoughts: Thoughts = "none") -> str:
    """A grammar, for `StructuredOutputsParams(grammar=…)`, whose texts are calls of these functions and nothing else.

    `<tool_call>`, a name and arguments that match its schema, `</tool_call>`, as the chat template writes them. Each
    schema is a document of its own, so that its `$ref`s begin at its own root.

    Args:
        functions: checked; not empty.
        several: whether more calls may follow the first.
        thoughts: what may come before it.
    """
    before = {"none": "", "optional": "(thoughts)? ", "opened": "thoughts_end "}[thoughts]
    rules = [
        f'start: {before}call{" (" + quoted(chr(10)) + " call)*" if several else ""}',
        f"call: {quoted(CALL + chr(10))} ({' | '.join(f'call_{n}' for n in range(len(functions)))}) {quoted(chr(10) + END_CALL)}"]
    if thoughts != "none":
        rules += [f"thoughts: {quoted(THINK + chr(10))} thoughts_end",
                  rf"thoughts_end[suffix={quoted(END_THINK + chr(10) * 2)}]: /(.|\n)*/"]
    for n, function in enumerate(functions):
        rules += [f"call_{n}: {quoted(json.dumps({'name': function['name']})[:-1] + ', ' + json.dumps('arguments') + ': ')} "
                  f"arguments_{n} {quoted('}')}",
                  f"arguments_{n}: %json {json.dumps(arguments_schema(function))}"]
    return "\n".join(rules)


def arguments_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """What a call's arguments match. A function without parameters takes none."""
    schema = function.get("parameters")
    if not schema:
        schema = {"properties": {}, "additionalProperties": False}
    return {**schema, "type": "object", "x-guidance": JSON_FORM}


def quoted(text: str) -> str:
    """A text as a literal of Lark's notation."""
    return json.dumps(text)
