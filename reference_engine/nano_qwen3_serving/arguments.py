"""Checks of arguments, shared by everything a user constructs: types, ranges, unknown names.

Knows nothing of what the arguments mean. Every failure is an `InvalidParametersError` that names
the argument and the value.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from nano_qwen3_serving.exceptions import InvalidParametersError, UnknownArgumentError

F = TypeVar("F", bound=Callable[..., Any])


def invalid(parameter: str, value: Any, must: str) -> InvalidParametersError:
    """The error for `parameter` having `value` where it `must` be something else."""
    return InvalidParametersError(
        f"{parameter} must be {must}, got {value!r}", parameter=parameter, value=value
    )


def check_int(parameter: str, value: Any, *, at_least: int, optional: bool = False) -> None:
    """Refuses what is not an int of at least `at_least` (a bool is not an int here)."""
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        also = " or None" if optional else ""
        raise invalid(parameter, value, f"an int of at least {at_least}{also}")


def check_float(parameter: str, value: Any, *, low: float, high: float, open_low: bool = False) -> None:
    """Refuses what is not a finite number in [low, high], or in (low, high] with `open_low`."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise invalid(parameter, value, f"a finite number in {bracket}{low:g}, {high:g}]")


def check_bool(parameter: str, value: Any) -> None:
    """Refuses what is not True or False."""
    if not isinstance(value, bool):
        raise invalid(parameter, value, "True or False")


def check_choice(parameter: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuses what is not one of `choices`."""
    choices = list(choices)
    if value not in choices:
        raise invalid(parameter, value, "one of " + ", ".join(repr(c) for c in choices))


def refuse_unknown(call: str, names: Iterable[str], given: Iterable[str]) -> None:
    """Refuses argument names that `call` does not have, and offers the nearest one it has."""
    names = list(names)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "it takes " + ", ".join(names)
            raise UnknownArgumentError(
                f"{call} has no argument {name!r}; {hint}", parameter=name
            )


def names_unknown_arguments(target: F) -> F:
    """Decorator of a class or a function: an unknown keyword is an `UnknownArgumentError`."""
    function: Callable[..., Any] = target
    if isinstance(target, type):
        function = target.__init__  # type: ignore[misc]  # of this class: the only one it is called with
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
