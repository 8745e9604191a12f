"""What a caller passes belongs to the call from then on: copied as it is at that moment.

Knows the shapes in which arguments come; checks nothing. Whoever reads the copy checks it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

from nano_qwen3_serving.arguments import MAX_DEPTH
from nano_qwen3_serving.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

UNCHANGEABLE = frozenset({type(None), bool, int, float, str, RequestOutputKind})
"""Types of most sampling parameters; they need no copy."""

F = TypeVar("F", bound=Callable[..., Any])


def snapshot(value: Any) -> Any:
    """A deep copy of dicts, lists, tuples and sampling parameters; any other object is returned as it is.

    Never raises. A value nested too deep to be accepted, or within itself, is copied only down to there.
    """
    known: dict[int, Any] = {}

    def copied(part: Any, depth: int) -> Any:
        if depth > MAX_DEPTH or id(part) in known:
            return known.get(id(part), part)
        if isinstance(part, list):
            return remember(part, list(part) if is_tokens(part) else [copied(item, depth + 1) for item in list(part)])
        if isinstance(part, tuple):
            return remember(part, tuple(copied(item, depth + 1) for item in part))
        if isinstance(part, dict):
            return remember(part, {key: copied(item, depth + 1) for key, item in list(dict.items(part))})
        if isinstance(part, (SamplingParams, StructuredOutputsParams)):
            with suppress(Exception):  # a subclass may refuse to be copied
                twin = copy.copy(part)
                twin.__dict__.update({
                    key: copied(item, depth + 1) for key, item in list(vars(part).items()) if type(item) not in UNCHANGEABLE})
                return remember(part, twin)
        return part

    def remember(part: Any, twin: Any) -> Any:
        known[id(part)] = twin
        return twin

    return copied(value, 0)


def is_tokens(part: list[Any]) -> bool:
    """Whether a list begins like one of token ids, which need no copies of their own."""
    return bool(part) and type(part[0]) is int


def copies_arguments(function: F) -> F:
    """Decorator of a call that returns before it reads its arguments, a coroutine or a stream: they are copied at once."""

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return function(*map(snapshot, args), **{name: snapshot(value) for name, value in kwargs.items()})

    return cast(F, called)
