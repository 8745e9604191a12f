"""Mutants of a lab's solution: text in, text out.

A mutant is the solution with one realistic bug, written as a `[[mutant]]` of `grading/labs/labNN/mutants/todo_N.toml`.
This module reads, checks and applies them. It runs nothing.
"""

import ast
import copy
import functools
import math
import random
import re
import textwrap
import tomllib
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grading.labs import HOME, authors_folder
from labs.harness.catalog import Lab, LabError
from labs.harness.regions import END, definitions, functions_of, span

KINDS = ("author", "blind", "machine")
"""By the lab's author; by a person who had seen only README and starter; made by `grading.authoring.machine_mutants`."""

_FILE = re.compile(r"todo_(\d+)\.toml")
_NEEDED = {"name": str, "story": str, "kind": str, "symptom": str, "hint": int, "replace": list}
_OPTIONAL = {"source": str, "only": str, "spills": list}
_REPLACEMENTS = ({"old", "new"}, {"function", "new"})


@dataclass(frozen=True)
class Mutant:
    """One wrong solution."""

    lab: str
    """The lab's id, `02`."""
    name: str
    todo: int
    kind: str
    story: str
    text: str
    """The whole mutated solution."""
    symptom: str = ""
    """What goes wrong, as the failing tests show it."""
    hint: int | None = None
    """Which of the TODO's hints helps, 1 to 3."""
    source: str = ""
    only: str | None = None
    """The one test that catches it: without that test it survives."""
    spills: tuple[int, ...] = ()
    """TODOs that lose points too, though they do not need this one."""


def read_mutants(lab: Lab, home: Path = HOME) -> list[Mutant]:
    """The lab's mutants, by name. Raises `LabError` naming the file, the mutant and what is wrong with it."""
    solution, mutants = lab.solution.read_text(encoding="utf-8"), {}
    for path in _files(lab, home):
        for entry in _entries(path):
            try:
                mutant = mutant_of(entry, lab.id, solution)
                if mutant.name in mutants:
                    raise LabError("there is another mutant of that name.")
            except LabError as error:
                raise LabError(f"{path}: {entry.get('name', 'a mutant without a name')}: {error}") from None
            mutants[mutant.name] = mutant
    return [mutants[name] for name in sorted(mutants)]


def entries_of(lab: Lab, home: Path = HOME) -> dict[str, dict[str, Any]]:
    """Name → what is written of a mutant, and its `todo`; nothing is checked but that the files can be read."""
    return {entry["name"]: entry for path in _files(lab, home) for entry in _entries(path)}


def mutant_of(entry: dict[str, Any], lab_id: str, solution: str) -> Mutant:
    """The mutant that an entry makes of the text of the solution. Raises `LabError` if it is not valid."""
    _check_keys(entry)
    _check_values(entry, _about(solution).todos)
    text = solution
    for replacement in entry["replace"]:
        text = _replaced(text, replacement)
    _check_result(text, solution, entry["todo"])
    needed = {key: entry[key] for key in ("name", "todo", "kind", "story", "symptom", "hint")}
    return Mutant(lab=lab_id, text=text, source=entry.get("source", ""), only=entry.get("only"),
                  spills=tuple(entry.get("spills", ())), **needed)


def _files(lab: Lab, home: Path) -> list[Path]:
    """The files of mutants, one for each TODO."""
    return sorted(path for path in (authors_folder(lab, home) / "mutants").glob("*.toml") if path.name != "equivalent.toml")


def _entries(path: Path) -> list[dict[str, Any]]:
    """The mutants in a file, with the TODO that its name says."""
    named = _FILE.fullmatch(path.name)
    if named is None:
        raise LabError(f"{path}: a file of mutants is named after their TODO: todo_3.toml.")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise LabError(f"{path}: {error}") from None
    if set(content) != {"mutant"} or not isinstance(content["mutant"], list):
        raise LabError(f"{path}: it holds [[mutant]] tables and nothing else; there is {', '.join(content) or 'nothing'}.")
    return [{**entry, "todo": int(named[1])} for entry in content["mutant"]]


def some_of(mutants: Sequence[Mutant], share: float, seed: str) -> list[Mutant]:
    """A `share` of the mutants, rounded up, chosen by `seed`; in their order."""
    count = min(len(mutants), math.ceil(len(mutants) * share))
    chosen = random.Random(seed).sample(range(len(mutants)), count)
    return [mutants[index] for index in sorted(chosen)]


def _check_keys(entry: dict) -> None:
    if unknown := sorted(set(entry) - set(_NEEDED) - set(_OPTIONAL) - {"todo"}):
        raise LabError(f"unknown key {', '.join(unknown)}.")
    if missing := sorted(set(_NEEDED) - set(entry)):
        raise LabError(f"it lacks {', '.join(missing)}.")
    for key, kind in (_NEEDED | _OPTIONAL).items():
        if key in entry and not isinstance(entry[key], kind):
            raise LabError(f"{key} should be of type {kind.__name__}, not {entry[key]!r}.")
    for replacement in entry["replace"]:
        if set(replacement) not in _REPLACEMENTS:
            has = ", ".join(sorted(replacement))
            raise LabError(f"a [[mutant.replace]] has old and new, or function and new; this one has {has}.")


def _check_values(entry: dict, functions: dict[int, list[str]]) -> None:
    if entry["kind"] not in KINDS:
        raise LabError(f"kind is one of {', '.join(KINDS)}, not {entry['kind']!r}.")
    if entry["hint"] not in (1, 2, 3):
        raise LabError(f"hint is 1, 2 or 3, not {entry['hint']}.")
    for todo in (entry["todo"], *entry.get("spills", ())):
        if todo not in functions:
            raise LabError(f"the solution has no TODO {todo}; it has {', '.join(map(str, functions))}.")
    for key in ("story", "symptom"):
        if not entry[key].strip():
            raise LabError(f"{key} is empty.")
    if "only" in entry and not entry["only"].startswith(f"test_todo_{entry['todo']}_"):
        raise LabError(f"only names a test of TODO {entry['todo']}, test_todo_{entry['todo']}_...; it is {entry['only']!r}.")
    if not entry["replace"]:
        raise LabError("there is no [[mutant.replace]].")


def _replaced(text: str, replacement: dict[str, str]) -> str:
    """`text` with one replacement made."""
    if "function" in replacement:
        return _with_function(text, replacement["function"], replacement["new"])
    old = replacement["old"]
    if (count := text.count(old) if old else 0) != 1:
        where = "does not stand in the solution" if not count else f"stands in the solution {count} times"
        raise LabError(f"this text {where}; it has to once:\n{old}")
    return text.replace(old, replacement["new"])


def _with_function(text: str, name: str, new: str) -> str:
    """`text` with the function `name` (dotted), decorators and all, replaced by `new`, indented as the old one."""
    try:
        functions = definitions(ast.parse(text))
    except SyntaxError as error:
        raise LabError(f"line {error.lineno} of the mutated solution: {error.msg}.") from None
    if name not in functions:
        raise LabError(f"the solution has no function {name}.")
    node = functions[name]
    fresh = textwrap.indent(textwrap.dedent(new).strip("\n"), " " * node.col_offset)
    lines = text.splitlines()
    first, last = span(node)
    if lines[last : last + 1] and lines[last].strip() == END:
        last += 1
    lines[first - 1 : last] = fresh.splitlines()
    return "\n".join(lines) + "\n"


def _check_result(text: str, solution: str, todo: int) -> None:
    """A mutant parses, differs in a function of its TODO, and can be called as before."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise LabError(f"line {error.lineno} of the mutated solution: {error.msg}.") from None
    before, after = _about(solution), definitions(tree)
    for name, arguments in before.arguments.items():
        if name not in after or _arguments(after[name]) != arguments:
            raise LabError(f"{name} has to keep its name and its arguments ({arguments}).")
    names = before.todos[todo]
    if all(name in after and ast.dump(after[name]) == before.meanings[name] for name in names):
        raise LabError(f"nothing changes in TODO {todo}, that is in {', '.join(names)}.")


@dataclass(frozen=True)
class _About:
    """The facts about a solution that every mutant is checked against."""

    todos: dict[int, list[str]]
    arguments: dict[str, str]
    """Function -> its arguments, for public functions."""
    meanings: dict[str, str]
    """Function -> its syntax tree as text, for all functions."""


@functools.cache
def _about(solution: str) -> _About:
    functions = definitions(ast.parse(solution))
    arguments = {name: _arguments(node) for name, node in functions.items() if _is_public(name, functions)}
    return _About(functions_of(solution), arguments, {name: ast.dump(node) for name, node in functions.items()})


def _is_public(name: str, functions: Container[str]) -> bool:
    """Whether callers know the function; one inside another, or whose name begins with one `_`, is its writer's own."""
    outer, _, last = name.rpartition(".")
    return outer not in functions and (not last.startswith("_") or last.endswith("__"))


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Names, order and defaults of the arguments."""
    bare = copy.deepcopy(node.args)
    for part in ast.walk(bare):
        if isinstance(part, ast.arg):
            part.annotation = None
    return ast.unparse(bare)
