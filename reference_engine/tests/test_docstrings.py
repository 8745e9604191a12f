"""Every public name of the project says what it is or does, and this is the rule.

A docstring of its own, or that of what it stands in for: a method of a base class in its file, or of an interface
(a `Protocol`). Three kinds of names speak for themselves: a check of the judge, whose name
is the sentence and whose decorator has the concept; the truth of a question in `predict.toml`; a hook of pytest's.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[2]
NOT_OURS_TO_EXPLAIN = ("tests", "mutants", "alternatives", "cheats")
"""Folders of tests, whose names are sentences, and of what students hand in."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def files() -> list[Path]:
    folders = [PROJECT / name for name in ("reference_engine", "labs", "grading")]
    found = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    return [path for path in found if path.name not in ("starter.py", "test_lab.py") and not path.name.startswith(".")
            and not set(path.relative_to(PROJECT).parts) & {*NOT_OURS_TO_EXPLAIN, ".backups"}]


def definitions(
    node: ast.Module | ast.ClassDef, inside: tuple[ast.ClassDef, ...] = ()
) -> Iterator[tuple[tuple[ast.ClassDef, ...], Definition]]:
    """Public classes, functions and methods of a file, each with the classes that it stands in."""
    for child in node.body:
        if isinstance(child, Definition) and not (child.name.startswith("_") or sets_a_property(child)):
            yield inside, child
            if isinstance(child, ast.ClassDef):
                yield from definitions(child, (*inside, child))


def sets_a_property(one: Definition) -> bool:
    """Whether it is the setter of what another function, which has the docstring, gets."""
    return any(ast.unparse(decorator).endswith(".setter") for decorator in one.decorator_list)


def explained(tree: ast.Module, only_protocols: bool) -> set[str]:
    """Names of methods that have a docstring in some class of the file, or in some interface."""
    return {method.name for classes, method in definitions(tree)
            if classes and ast.get_docstring(method)
            and (not only_protocols or any(ast.unparse(base).startswith("Protocol") for base in classes[-1].bases))}


def test_every_public_name_has_a_docstring() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files()}
    assert len(trees) > 200
    promised = set().union(*(explained(tree, only_protocols=True) for tree in trees.values()))
    missing = []
    for path, tree in trees.items():
        if path.name == "predict.py":
            continue
        above = explained(tree, only_protocols=False)
        for classes, one in definitions(tree):
            stands_in = bool(classes) and (one.name in promised or (classes[-1].bases and one.name in above))
            check = any(ast.unparse(decorator).startswith("check(") for decorator in one.decorator_list)
            if not (ast.get_docstring(one) or stands_in or check or one.name.startswith("pytest_")):
                missing.append(f"{path.relative_to(PROJECT)}:{one.lineno} {'.'.join([*(c.name for c in classes), one.name])}")
    assert not missing, f"{len(missing)} without:\n" + "\n".join(missing)
