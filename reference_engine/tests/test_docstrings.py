"""Every public name of the project says what it is or does, and this is the rule.

A docstring of its own, or that of the method it stands in for: of a base class, or of an interface of `STANDS_IN`.
Three kinds of names speak for themselves: a check of the judge, whose name is the sentence and whose decorator has
the concept; the truth of a question, which stands in `predict.toml`; a hook of pytest's.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
NO_PART_OF_IT = {"tests", "alternatives", "cheats", ".backups"}
"""Folders of tests, whose names are sentences, and of solutions that are wrong, other, or cheat."""
STANDS_IN = {
    "Actor": "Worker", "Process": "Worker",
    "AskingSampler": "Sampler", "SamplerChecks": "Sampler",
    "AttentionChecks": "AttentionBackend", "AttentionThere": "AttentionBackend", "WholeBackend": "AttentionBackend",
    "BlockManagerChecks": "BlockManager", "WholeBlockManager": "BlockManager",
    "DetokenizerChecks": "Detokenizer", "ModelChecks": "Model", "SchedulerChecks": "Scheduler",
}
"""Class → the interface whose calls it takes, though it does not name it: a Protocol."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def files() -> list[Path]:
    """Where the project's names are."""
    found = [path for name in ("reference_engine", "labs", "grading") for path in sorted((PROJECT / name).rglob("*.py"))]
    return [path for path in found if path.name not in ("starter.py", "test_lab.py", "hidden.py", "test_author.py")
            and not NO_PART_OF_IT & set(path.relative_to(PROJECT).parts)]


def definitions(node: ast.AST, inside: tuple[ast.ClassDef, ...] = ()) -> Iterator[tuple[tuple[ast.ClassDef, ...], Definition]]:
    """Public classes, functions and methods of a file, each with the classes that it stands in."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            if not child.name.startswith("_") and not sets_a_property(child):
                yield inside, child
            if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
                yield from definitions(child, (*inside, child))
        elif isinstance(child, ast.If | ast.Try):
            yield from definitions(child, inside)


def sets_a_property(one: Definition) -> bool:
    """Whether it is the setter of what another function, which has the docstring, gets."""
    return any(ast.unparse(decorator).endswith(".setter") for decorator in one.decorator_list)


def speaks_for_itself(path: Path, one: Definition) -> bool:
    """Whether it is one of the three kinds."""
    if path.name == "predict.py":
        asked = tomllib.loads(path.with_suffix(".toml").read_text(encoding="utf-8"))["question"]
        return one.name in {"case", *(question["id"] for question in asked)}
    return one.name.startswith("pytest_") or any(ast.unparse(d).startswith("check(") for d in one.decorator_list)


def explained(name: str, classes: dict[str, list[ast.ClassDef]]) -> set[str]:
    """Methods that have a docstring in a class of this name, in a base of it, or in the interface that it stands in for."""
    found = {method.name for one in classes.get(name, []) for method in one.body
             if isinstance(method, Definition) and ast.get_docstring(method)}
    above = {ast.unparse(base).rpartition(".")[2] for one in classes.get(name, []) for base in one.bases}
    return found.union(*(explained(other, classes) for other in {*above, STANDS_IN.get(name, "")} - {name, ""}))


def test_every_public_name_has_a_docstring() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files()}
    assert len(trees) > 200
    classes: dict[str, list[ast.ClassDef]] = {}
    for tree in trees.values():
        for one in ast.walk(tree):
            if isinstance(one, ast.ClassDef):
                classes.setdefault(one.name, []).append(one)
    assert set(STANDS_IN) | set(STANDS_IN.values()) <= set(classes)
    missing = [
        f"{path.relative_to(PROJECT)}:{one.lineno} {'.'.join([*(each.name for each in around), one.name])}"
        for path, tree in trees.items() for around, one in definitions(tree)
        if not (ast.get_docstring(one) or speaks_for_itself(path, one)
                or (around and one.name in explained(around[-1].name, classes)))]
    assert not missing, f"{len(missing)} without:\n" + "\n".join(missing)
