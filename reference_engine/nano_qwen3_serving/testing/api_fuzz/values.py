"""Values that callers pass by mistake or on purpose, and the forms of arguments they are put into."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import torch


class Number(enum.IntEnum):
    """An int with a name."""

    TWO = 2


class Text(str):
    """A string of a class of its own."""


class Rude:
    """An object whose every answer is an error."""

    def _refuse(self, *args: Any) -> Any:
        raise RuntimeError("rude")

    __repr__ = __str__ = __bool__ = __len__ = __iter__ = __eq__ = __lt__ = __getitem__ = __contains__ = _refuse
    __hash__ = object.__hash__


class RudeDict(dict[str, Any]):
    """A dict that cannot be walked."""

    def items(self) -> Any:
        """Fails."""
        raise RuntimeError("rude")


def nested(depth: int) -> Any:
    """Lists and dicts in each other, `depth` of them."""
    value: Any = "leaf"
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


def in_itself() -> list[Any]:
    """A list that holds itself."""
    value: list[Any] = []
    value.append(value)
    return value


def doubled() -> Any:
    """A structure of 2**30 parts, made of thirty."""
    value: Any = 1
    for _ in range(30):
        value = [value, value]
    return value


CONSTANTS: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 2**31, -(2**31), 2**63, 10**30, 0.0, -0.0, 0.5, 1.5, 1e-320, 1e308, -1e308,
    float("nan"), float("inf"), float("-inf"), 1j, "", " ", "x", "\x00", "\ud83d", "half \udcfc", "é😀", "a" * 50_000, b"",
    b"x", (), ("a",), frozenset(), object, len, Number.TWO, Text("text"), decimal.Decimal("NaN"), fractions.Fraction(1, 3),
    datetime.date(2026, 1, 1), np.int64(3), np.float32(0.5), "auto", "json", "course",
]
NEW: list[Callable[[], Any]] = [
    lambda: 10**5000, lambda: [], lambda: [None], lambda: [1.5], lambda: ["", "x"], lambda: ["x", "\udc00"], lambda: [1, -1],
    lambda: [2**63], lambda: [[1], [2]], lambda: {}, lambda: {"a": 1}, lambda: {"\ud800": 1}, lambda: {1: 2},
    lambda: {5: float("nan")}, lambda: {"prompt": "x"}, lambda: {"prompt_token_ids": [1, 2, 3]}, lambda: {"role": "user"},
    lambda: set(), lambda: range(3), lambda: iter("ab"), lambda: (i for i in range(2)), lambda: (lambda: 0),
    lambda: np.array([1, 2]), lambda: torch.tensor([1.0, 2.0]), lambda: torch.tensor(1), bytearray, Rude, lambda: [Rude()],
    lambda: {"a": Rude()}, RudeDict, lambda: RudeDict(a=1), in_itself, doubled, lambda: nested(70), lambda: nested(5000),
    lambda: ["x"] * 5000, lambda: list(range(5000)), Exception,
]


def hostile(random: Random) -> Any:
    """A new hostile value."""
    place = random.randrange(len(CONSTANTS) + len(NEW))
    return CONSTANTS[place] if place < len(CONSTANTS) else NEW[place - len(CONSTANTS)]()


def mixed(random: Random, make_right: Callable[[], Any]) -> Any:
    """A hostile value, alone or put into a value of the right form."""
    wrong = hostile(random)
    form = random.randrange(4)
    if form == 0:
        return wrong
    value = make_right()
    if isinstance(value, list):
        return [*value, wrong]
    if isinstance(value, dict):
        key = random.choice([*value, "another", "\ud83d"]) if value else "another"
        return {**value, key: wrong}
    return [wrong] if form == 1 else wrong
