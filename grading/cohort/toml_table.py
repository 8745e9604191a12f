"""A table of a TOML file whose keys are read one by one; a mistake is noted with key, value and way out, and reading goes on.

Knows TOML's kinds of values; knows nothing of what they mean.
"""

import json
from collections.abc import Sequence
from datetime import date, time
from difflib import get_close_matches
from typing import Any


class Table:
    """One table of the file. Keys are taken one by one, mistakes in them are noted, and keys left over are unknown."""

    def __init__(self, entries: dict[str, Any], where: str, wrong: list[str]) -> None:
        self.entries, self.where, self.wrong = entries, where, wrong
        self.known: list[str] = []

    def say(self, key: str, what: str) -> None:
        """Notes a mistake at a key."""
        self.wrong.append(f"{self.where}{key}{_shown(self.entries[key]) if key in self.entries else ''}: {what}")

    def take(self, key: str, kinds: type | tuple[type, ...], default: Any = None, wanted: str = "") -> Any:
        """The value of a key; `default` if the key is missing or its value is of another kind."""
        self.known.append(key)
        value = self.entries.get(key, default)
        allowed = kinds if isinstance(kinds, tuple) else (kinds,)
        if key in self.entries and (not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)):
            self.say(key, f"it has to be {wanted or _WORDS[allowed[-1]]}")
            return default
        return value

    def number(self, key: str, default: float | None = None, least: float = 0.0, most: float = 1e6) -> float | None:
        """A number within bounds."""
        value = self.take(key, (int, float), default)
        if value is not None and not least <= value <= most:
            self.say(key, f"it has to be a number from {least:g} to {most:g}")
            return default
        return None if value is None else float(value)

    def one_of(self, key: str, choices: Sequence[str], default: str | None) -> str | None:
        """A value that has to be one of some words."""
        value = self.take(key, str, default)
        if value != default and value not in choices:
            self.say(key, f"it is {', '.join(choices[:-1])} or {choices[-1]}")
            return default
        return value

    def table(self, key: str) -> "Table":
        """A table in this one; an empty one if it is not there."""
        return Table(self.take(key, dict, {}), f"{self.where}{key}.", self.wrong)

    def tables(self, key: str) -> list["Table"]:
        """An array of tables."""
        entries = self.take(key, list, [], "an array of tables, [[" + key + "]]")
        tables = [entry for entry in entries if isinstance(entry, dict)]
        if len(tables) < len(entries):
            self.say(key, f"it has to be an array of tables, [[{key}]]")
        return [Table(table, f"{self.where}{key}, the {_nth(number)}: ", self.wrong) for number, table in enumerate(tables, 1)]

    def end(self, *more: str) -> None:
        """Notes a mistake for each key that was not taken; `more` are further keys that exist, for the hint."""
        known = [*self.known, *more]
        for key in self.entries:
            if key not in known:
                near = get_close_matches(key, known, 1)
                hint = f"; is {near[0]} meant?" if near else f"; there are {', '.join(known)}"
                self.wrong.append(f"{self.where}{key}: there is no such key{hint}")


_WORDS: dict[type, str] = {
    str: 'text in "quotation marks"', int: "a whole number", float: "a number", bool: "true or false", dict: "a table"}


def _shown(value: Any) -> str:
    """A value as the file has it; nothing of tables and arrays."""
    if isinstance(value, date | time):
        return f" = {value}"
    return "" if isinstance(value, dict | list) else f" = {json.dumps(value, ensure_ascii=False)}"


def _nth(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
