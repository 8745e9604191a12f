"""The files beside a checkpoint's weights, and every complaint about them.

Knows JSON, encodings and types; knows nothing of what a field means. The code that reads a field says what
it must be; anything else is a `ModelLoadError` at load that names file, field and value.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from nano_qwen3_serving.exceptions import ModelLoadError


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ModelLoadError: it is missing, cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelLoadError(
            f"{path} is missing; a checkpoint folder holds config.json, tokenizer.json and *.safetensors: "
            "copy or download it from where the checkpoint came from") from None
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8, "
                             "or copy or download it again") from error
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read ({error.strerror or error}); copy or download it again") from error


def read_object(path: Path) -> Fields:
    """The JSON object in a file.

    Raises:
        ModelLoadError: it is missing, cannot be read, or holds no JSON object.
    """
    text = read_text(path)
    if text.startswith("\ufeff"):
        raise ModelLoadError(f"{path} is not plain UTF-8: it begins with a byte order mark; save it without one")
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is corrupt: it is no JSON ({error}); copy or download it again") from error
    if not isinstance(parsed, dict):
        raise ModelLoadError(f"{path} is corrupt: it holds no JSON object; copy or download it again")
    return Fields(path, parsed)


class Fields:
    """The fields of a JSON object, each read with the type it must have.

    Args:
        file: where the object comes from, for errors.
        raw: the object.
        within: the objects around it, for errors: "rope_parameters.".
    """

    def __init__(self, file: Path, raw: dict[str, Any], within: str = "") -> None:
        self.file, self.raw, self._within = file, raw, within

    def __contains__(self, name: str) -> bool:
        return name in self.raw

    def get(self, name: str) -> Any:
        """The value as it stands; None for null and for a field that is left out."""
        return self.raw.get(name)

    def wrong(self, name: str, must: str) -> ModelLoadError:
        """The error for a field; `must` completes "it must be …" and names the way out."""
        problem = f"has {self._within}{name}={self.raw[name]!r}" if name in self.raw else f"has no field {self._within + name!r}"
        return ModelLoadError(f"{self.file} {problem}; it must be {must}")

    def integer(self, name: str, default: int | None = None, *, at_least: int = 1) -> int:
        """An int; `default`, if there is one, when the field is left out. A bool or null is refused."""
        value = self.raw.get(name, default)
        if type(value) is not int or value < at_least:
            raise self.wrong(name, f"an int of at least {at_least}")
        return value

    def number(self, name: str, default: float) -> float:
        """A number above 0, int or float; `default` when the field is left out."""
        value = self.raw.get(name, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.wrong(name, "a number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false; `default` when it is left out."""
        value = self.raw.get(name, default)
        if type(value) is not bool:
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str) -> str | None:
        """A text; None when it is left out or null."""
        value = self.raw.get(name)
        if value is not None and not is_text(value):
            raise self.wrong(name, "a string of whole characters, or left out")
        return value

    def section(self, name: str) -> Fields:
        """An object inside this one; an empty one when it is left out or null."""
        value = {} if self.raw.get(name) is None else self.raw[name]
        if not isinstance(value, dict):
            raise self.wrong(name, "an object, or left out")
        return Fields(self.file, value, f"{self._within}{name}.")

    def items(self, name: str) -> list[Any]:
        """A list; an empty one when it is left out or null."""
        value = [] if self.raw.get(name) is None else self.raw[name]
        if not isinstance(value, list):
            raise self.wrong(name, "a list, or left out")
        return value


def is_text(value: Any) -> bool:
    """Whether the value is a string that UTF-8 can encode: JSON can spell half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)
