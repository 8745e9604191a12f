"""Alternatives to a lab's solution: right, and built differently. Text in, text out; runs nothing.

`grading/labs/labNN/alternatives/NAME.py` is what differs from the solution. It opens with a docstring that says how it is
built. What it defines takes the place of what has that name in the solution; a class that has methods only takes the place
of these methods. Everything else is the solution's.
"""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grading.labs import HOME, authors_folder
from labs.harness.catalog import Lab, LabError
from labs.harness.regions import Function, bound_names, missing_imports


@dataclass(frozen=True)
class Alternative:
    """A right solution, built differently.

    Attributes:
        lab: its id, `02`.
        name: of its file.
        text: the whole solution.
    """

    lab: str
    name: str
    text: str


def read_alternatives(lab: Lab, home: Path = HOME) -> list[Alternative]:
    """The lab's alternatives, by name. Raises `LabError` if one does not say in its docstring how it is built."""
    solution, alternatives = lab.solution.read_text(encoding="utf-8"), []
    for path in sorted((authors_folder(lab, home) / "alternatives").glob("*.py")):
        try:
            difference = ast.parse(path.read_text(encoding="utf-8"))
        except SyntaxError as error:
            raise LabError(f"{path} line {error.lineno}: {error.msg}.") from None
        if not ast.get_docstring(difference):
            raise LabError(f"{path}: its docstring says how it is built, and there is none.")
        alternatives.append(Alternative(lab.id, path.stem, composed(solution, difference)))
    return alternatives


def composed(solution: str, difference: ast.Module) -> str:
    """The solution with the differing parts in place. A part the solution lacks is put before the next part of `difference`."""
    ours = ast.parse(solution)
    imports = missing_imports(ours, difference)
    start = 1 if ast.get_docstring(ours) is not None else 0
    ours.body = _merged(ours.body, [node for node in difference.body if not isinstance(node, ast.Import | ast.ImportFrom)])
    ours.body[start:start] = imports
    return ast.unparse(ast.fix_missing_locations(ours)) + "\n"


def _merged(ours: Sequence[ast.stmt], theirs: Sequence[ast.stmt]) -> list[ast.stmt]:
    """Statements of a module or a class; a statement of `theirs` replaces ours that binds the same name."""
    place = {name: index for index, node in enumerate(ours) for name in bound_names(node)}
    before: dict[int, list[ast.stmt]] = {}
    instead: dict[int, ast.stmt] = {}
    waiting: list[ast.stmt] = []
    for node in theirs:
        index = next((place[name] for name in bound_names(node) if name in place), None)
        if index is not None:
            before[index], waiting = waiting, []
            instead[index] = _whole(ours[index], node)
        elif bound_names(node):
            waiting.append(node)
    last = len(ours) - bool(ours and isinstance(ours[-1], ast.If))  # if __name__ == "__main__"
    before[last] = before.get(last, []) + waiting
    return [node for index in range(len(ours) + 1)
            for node in (*before.get(index, ()), *([instead.get(index, ours[index])] if index < len(ours) else ()))]


def _whole(ours: ast.stmt, theirs: ast.stmt) -> ast.stmt:
    """The statement that replaces ours: theirs, or our class with their methods."""
    if isinstance(ours, ast.ClassDef) and isinstance(theirs, ast.ClassDef) and all(
            isinstance(node, Function | ast.Expr) for node in theirs.body):
        return ast.ClassDef(theirs.name, theirs.bases, theirs.keywords, _merged(ours.body, theirs.body), theirs.decorator_list)
    return theirs
