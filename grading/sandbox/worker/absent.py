"""Stand-ins for libraries that a submission imports and that are missing here, so that an import costs no points.

A file that draws with matplotlib in `main()` imports it at the top, and perhaps sets a style. A call into such a library
does nothing, and its result raises where a value is needed. An import in a `try` is left alone: its author has thought
of machines without the library.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NoReturn


class Absent:
    """An object of a missing library. It can be called, set and entered, and nothing happens."""

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def __getattr__(self, name: str) -> "Absent":
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Absent(f"{self._name}.{name}")

    def __call__(self, *arguments: Any, **named: Any) -> "Absent":
        return Absent(f"{self._name}()")

    def __getitem__(self, key: Any) -> "Absent":
        return Absent(f"{self._name}[]")

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __setattr__(self, name: str, value: Any) -> None: ...

    def __enter__(self) -> "Absent":
        return self

    def __exit__(self, *error: object) -> None: ...

    def __bool__(self) -> bool:
        return False

    def __iter__(self) -> NoReturn:
        raise ModuleNotFoundError(f"{self._name} is used, which is not there where submissions are graded")

    def __mro_entries__(self, bases: tuple) -> tuple:
        return ()


class AbsentModule(ModuleType):
    """A module of a missing library."""

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")


def provide(text: str) -> None:
    """Put stand-ins in place of the modules that a text imports and that are missing here."""
    for name in _imported(ast.parse(text)):
        parts = name.split(".")
        if isinstance(sys.modules.get(parts[0]), AbsentModule) or not _is_here(parts[0]):
            _put([".".join(parts[:end]) for end in range(1, len(parts) + 1)])


def _put(names: list[str]) -> None:
    """Modules of these names, each in the one before it."""
    outer = None
    for name in names:
        module = sys.modules.setdefault(name, AbsentModule(name))
        module.__path__ = []
        if outer is not None:
            setattr(outer, name.rpartition(".")[2], module)
        outer = module


def _is_here(name: str) -> bool:
    if name in sys.modules:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _imported(node: ast.AST) -> Iterator[str]:
    """The modules that are imported under a node, except those in a `try`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Try):
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            yield child.module
        yield from _imported(child)
