"""Checks and copies of arguments, shared by everything a user constructs or calls: types, ranges, unknown names.

Knows nothing of what the arguments mean. Every failure is an `InvalidParametersError` that names
the argument and the value.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from nano_qwen3_serving.exceptions import InvalidParametersError, UnknownArgumentError, shown

F = TypeVar("F", bound=Callable[..., Any])

MAX_DEPTH = 64  # levels of nesting: far below Python's recursion limit, and above any schema in use
MAX_NODES = 1_000_000
MAX_INT = 2**63 - 1


def invalid(parameter: str, value: Any, must: str) -> InvalidParametersError:
    """The error for `parameter` having `value` where it `must` be something else."""
    return InvalidParametersError(
        f"{parameter} must be {must}, got {shown(value)}", parameter=parameter, value=value
    )


def check_int(parameter: str, value: Any, *, at_least: int, optional: bool = False) -> None:
    """Refuses what is not an int of at least `at_least` and of 64 bits (a bool is not an int here)."""
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value <= MAX_INT:
        also = " or None" if optional else ""
        most = "" if not isinstance(value, int) or value <= MAX_INT else f" and at most {MAX_INT}"
        raise invalid(parameter, value, f"an int of at least {at_least}{most}{also}")


def check_float(parameter: str, value: Any, *, low: float, high: float, open_low: bool = False) -> None:
    """Refuses what is not a finite number in [low, high], or in (low, high] with `open_low`."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or not math.isfinite(value) or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise invalid(parameter, value, f"a finite number in {bracket}{low:g}, {high:g}]")


def check_bool(parameter: str, value: Any) -> None:
    """Refuses what is not True or False."""
    if not isinstance(value, bool):
        raise invalid(parameter, value, "True or False")


def check_choice(parameter: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuses what is not one of `choices`."""
    choices = list(choices)  # strings, or members of an IntEnum
    if not isinstance(value, (int, str)) or isinstance(value, bool) or value not in choices:
        raise invalid(parameter, value, "one of " + ", ".join(repr(c) for c in choices))


def check_text(parameter: str, text: Any) -> None:
    """Refuses what is not a string, and a string with half of a surrogate pair, which UTF-8 cannot encode.

    Such strings come from JSON's "\\ud83d", from command-line arguments that are not UTF-8, and from UTF-16 that was cut.
    """
    if not isinstance(text, str):
        raise invalid(parameter, text, "a string")
    try:
        str.encode(text)
    except UnicodeEncodeError as error:
        raise InvalidParametersError(
            f"{parameter} has half of a surrogate pair, {text[error.start]!r} at position {error.start}, which is no "
            f"character; decode the text anew, or clean it: text.encode('utf-8', 'replace').decode()",
            parameter=parameter, value=text) from None


def check_texts(parameter: str, texts: Any, must: str) -> None:
    """Refuses what is not a list of non-empty strings that can be encoded."""
    if not isinstance(texts, list) or not all(isinstance(t, str) and t for t in texts):
        raise invalid(parameter, texts, must)
    for text in texts:
        check_text(parameter, text)


def own_copy(parameter: str, value: Any) -> Any:
    """A deep copy of a caller's JSON value: dicts, lists, strings and numbers are copied, other objects are kept as they are.

    Later changes by the caller do not reach the copy. Every string is checked.

    Raises:
        InvalidParametersError: a string cannot be encoded, or `value` is nested deeper than 64 levels, within
            itself, or has more than a million parts.
    """
    nodes = itertools.count(1)

    def copied(part: Any, depth: int) -> Any:
        if depth > MAX_DEPTH or next(nodes) > MAX_NODES:
            raise invalid(parameter, value, f"nested at most {MAX_DEPTH} deep, with at most {MAX_NODES:,} parts")
        if isinstance(part, dict):
            items = list(dict.items(part))  # not part.items(): a subclass may override it
            return {copied(k, depth + 1): copied(v, depth + 1) for k, v in items}
        if isinstance(part, (list, tuple)):
            each = [copied(element, depth + 1) for element in list(part)]
            return each if isinstance(part, list) else tuple(each)
        if isinstance(part, str):
            check_text(parameter, part)
        return part

    return copied(value, 0)


def refuse_unknown(call: str, names: Iterable[str], passed: Iterable[str]) -> None:
    """Refuses argument names that `call` does not have, and offers the nearest one it has."""
    names = list(names)
    for name in passed:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "it takes " + ", ".join(names)
            raise UnknownArgumentError(
                f"{call} has no argument {shown(name)}; {hint}", parameter=name
            )


def names_unknown_arguments(target: F) -> F:
    """Decorator of a class or a function: an unknown keyword is an `UnknownArgumentError`."""
    function: Callable[..., Any] = target
    if isinstance(target, type):
        function = target.__init__  # type: ignore[misc]  # the class' own __init__: no other is called
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.name not in ("self", "cls") and p.kind is not p.VAR_KEYWORD]

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        refuse_unknown(f"{target.__name__}()", names, kwargs)
        return function(*args, **kwargs)

    if not isinstance(target, type):
        return cast(F, checked)
    target.__init__ = checked  # type: ignore[misc]  # a method is replaced on purpose
    return target
