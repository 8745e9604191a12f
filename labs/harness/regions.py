"""The learner's regions of a lab: finding them in `solution.py`, making `starter.py`, putting one back.

A region lies in a function and is announced by a comment, which stays in the starter:

    # TODO 3: add the two numbers
    ### BEGIN SOLUTION
    return a + b
    ### END SOLUTION

In the starter the lines from BEGIN to END become `raise TodoError("TODO 3: add the two …", lab="02")`.
This module works on source text alone; it knows no files and never imports the code it is given.
"""

import ast
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from labs.harness.catalog import LabError
from labs.harness.source import lines_of, parsed

BEGIN = "### BEGIN SOLUTION"
END = "### END SOLUTION"
_ANNOUNCED = re.compile(r"\s*# TODO (\d+): *(.+?)\s*$")
_IMPORT = re.compile(r"^from labs\.harness\.todo import (.+)$", re.MULTILINE)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Region:
    """Lines `[begin, end]` of a solution, counted from 1, markers included."""

    todo: int
    goal: str
    begin: int
    end: int
    where: str
    """The function that contains it, dotted: `Scheduler.step`, `outer.inner`."""


def find_regions(source: str) -> list[Region]:
    """The regions of a solution, in order. Raises `LabError` naming the line of a malformed one."""
    lines = lines_of(source)
    functions = definitions(ast.parse(source))
    regions, begin = [], None
    for number, line in enumerate(lines, start=1):
        if line.strip() == BEGIN:
            if begin is not None:
                raise LabError(f"line {number}: a region begins inside the one from line {begin}.")
            begin = number
        elif line.strip() == END:
            if begin is None:
                raise LabError(f"line {number}: {END} without {BEGIN}.")
            todo, goal = _announcement(lines, begin)
            regions.append(Region(todo, goal, begin, number, _enclosing(functions, begin)))
            begin = None
    if begin is not None:
        raise LabError(f"line {begin}: a region begins and never ends.")
    _check_one_todo_per_function(regions)
    return regions


def functions_of(source: str) -> dict[int, list[str]]:
    """TODO -> the dotted names of the functions a learner fills in for it."""
    functions: dict[int, list[str]] = {}
    for region in find_regions(source):
        names = functions.setdefault(region.todo, [])
        if region.where not in names:
            names.append(region.where)
    return dict(sorted(functions.items()))


def functions_of_starter(source: str) -> dict[int, list[str]]:
    """The result of `functions_of` for a solution, computed from the starter that was made of it."""
    functions: dict[int, list[str]] = {}
    for name, function in definitions(ast.parse(source)).items():
        inner = {id(part) for other in definitions(function).values() for part in ast.walk(other)}
        for node in ast.walk(function):
            if (todo := _unwritten(node)) is not None and id(node) not in inner and name not in functions.setdefault(todo, []):
                functions[todo].append(name)
    return dict(sorted(functions.items()))


def make_starter(source: str, lab_id: str) -> str:
    """The starter of a solution. A generator stays one: if a region held its last `yield`, an
    unreachable `yield` follows the raise.
    """
    regions = find_regions(source)
    bare = _without_solution(source, regions, lab_id, keep_yield=set())
    before, after = definitions(ast.parse(source)), definitions(ast.parse(bare))
    broken = {name for name in after if is_generator(before[name]) and not is_generator(after[name])}
    return _importing_todo_error(_without_solution(source, regions, lab_id, keep_yield=broken))


def definitions(tree: ast.AST, prefix: str = "") -> dict[str, Function]:
    """Every function in `tree` by its dotted name, methods and nested functions too."""
    functions: dict[str, Function] = {}
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            functions[prefix + node.name] = node
        functions |= definitions(node, f"{prefix}{node.name}." if isinstance(node, Function | ast.ClassDef) else prefix)
    return functions


def is_generator(function: Function) -> bool:
    """Whether `function` itself, not one defined in it, contains a `yield`."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return True
        if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))
    return False


def put_back(work: str, original: str, names: list[str]) -> str:
    """`work` with the text of the functions `names` as in `original`.

    Raises `LabError` if `work` does not parse or lacks one of them, or if the rest of it would change its
    meaning: then only a reset of the whole file helps.
    """
    whole = "leave out --todo to have the whole file replaced."
    try:
        mine = definitions(parsed(work, "the file"))
    except LabError as error:
        raise LabError(f"{error} Mend that, or {whole}") from None
    if missing := [name for name in names if name not in mine]:
        raise LabError(f"there is no function {missing[0]} any more: {whole}")
    theirs = definitions(ast.parse(original))
    lines, original_lines = lines_of(work), lines_of(original)
    for name in sorted(names, key=lambda name: -mine[name].lineno):
        first, last = extent(mine[name], lines)
        their_first, their_last = extent(theirs[name], original_lines)
        lines[first - 1 : last] = original_lines[their_first - 1 : their_last]
    restored = "\n".join(lines) + "\n"
    try:
        restored = restored if _imports_todo_error(restored) else _importing_todo_error(restored)
        kept = meaning(ast.parse(work), names) == meaning(ast.parse(restored), names)
    except SyntaxError:
        kept = False
    if not kept or not _mean_the_same(restored, original, names):
        raise LabError(f"{names[0]} cannot be replaced on its own: something else in the file would change with it. "
                       f"Nothing was changed; {whole}")
    return restored


def meaning(tree: ast.AST, without: Iterable[str] = ()) -> list[str]:
    """A tree's meaning: equal lists, equal code. The functions `without` and the import of the harness' names do not count.

    Written without recursion, because a submission's trees may be deep.
    """
    cut, words = set(without), []
    pending: list[tuple[Any, str]] = [(tree, "")]
    while pending:
        node, prefix = pending.pop()
        if isinstance(node, Function | ast.ClassDef):
            if prefix + node.name in cut:
                words.append(f"left aside: {prefix}{node.name}")
                continue
            prefix += f"{node.name}."
        if isinstance(node, ast.AST):
            words.append(type(node).__name__)
            pending += [(value, prefix) for _, value in ast.iter_fields(node)]
        elif isinstance(node, list):
            kept = [child for child in node if getattr(child, "module", "") != "labs.harness.todo"]
            words.append(f"{len(kept)} of")
            pending += [(child, prefix) for child in kept]
        else:
            words.append(f"{type(node).__name__} {node:x}" if isinstance(node, int) else repr(node))  # decimals have a limit
    return words


def _mean_the_same(text: str, other: str, names: Iterable[str]) -> bool:
    """Whether two texts define the functions `names` in the same way."""
    first, second = definitions(ast.parse(text)), definitions(ast.parse(other))
    return all(name in first and meaning(first[name]) == meaning(second[name]) for name in names)


def with_stand_ins(work: ast.Module, solution: ast.Module, names: list[str]) -> ast.Module:
    """`work` with the functions `names` taken from `solution`, and the imports they may need; their callers stay `work`'s."""
    theirs = definitions(solution)

    class _Swap(ast.NodeTransformer):
        def __init__(self) -> None:
            self.prefix = ""

        def _visit_scope(self, node: Function | ast.ClassDef) -> ast.AST:
            name = self.prefix + node.name
            if name in names and isinstance(node, Function):
                return theirs[name]
            outer, self.prefix = self.prefix, name + "."
            visited = self.generic_visit(node)
            self.prefix = outer
            return visited

        visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _visit_scope

    swapped = _Swap().visit(work)
    after = 1 if ast.get_docstring(swapped) is not None else 0
    while after < len(swapped.body) and getattr(swapped.body[after], "module", "") == "__future__":
        after += 1
    swapped.body[after:after] = missing_imports(swapped, solution)
    return ast.fix_missing_locations(swapped)


def with_our_functions(work: str, solution: str, todos: Iterable[int], only: Sequence[str] | None = None) -> str:
    """`work` as text, with our functions for `todos`, or only those in `only`. Comments and line numbers are lost."""
    names = [name for todo, functions in functions_of(solution).items() if todo in todos for name in functions
             if only is None or name in only]
    return ast.unparse(with_stand_ins(ast.parse(work), ast.parse(solution), names)) + "\n"


def missing_imports(work: ast.Module, solution: ast.Module) -> list[ast.stmt]:
    """The imports at the top of `solution` that bind a name which no statement at the top of `work` binds."""
    present = {name for node in work.body for name in bound_names(node)}
    missing: list[ast.stmt] = []
    for node in solution.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            kept = [alias for alias in node.names if (alias.asname or alias.name.split(".")[0]) not in present]
            if kept:
                missing.append(
                    ast.ImportFrom(node.module, kept, node.level) if isinstance(node, ast.ImportFrom) else ast.Import(kept)
                )
    return missing


def bound_names(node: ast.stmt) -> list[str]:
    """The names that a statement at the top of a module binds."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, Function | ast.ClassDef):
        return [node.name]
    return [part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]


def unwritten_todos(tree: ast.AST) -> set[int]:
    """The TODOs that still have their `raise TodoError("TODO n: …")`."""
    return {todo for node in ast.walk(tree) if (todo := _unwritten(node)) is not None}


def _unwritten(node: ast.AST) -> int | None:
    """The TODO of a `raise TodoError("TODO n: …")`; None for any other node."""
    if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
        return None
    called, text = node.exc.func, node.exc.args[0]
    name = getattr(called, "id", getattr(called, "attr", ""))
    number = re.match(r"TODO (\d+)", str(getattr(text, "value", "")))
    return int(number[1]) if name == "TodoError" and number else None


def span(node: Function) -> tuple[int, int]:
    """The first and last line of a function, decorators included, counted from 1."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]), node.end_lineno or node.lineno


def extent(node: Function, lines: list[str]) -> tuple[int, int]:
    """`span`, and the comments after the last statement that are indented like the function's body."""
    first, last = span(node)
    for number in range(last, len(lines)):
        text = lines[number].strip()
        if text.startswith("#") and len(lines[number]) - len(lines[number].lstrip()) > node.col_offset:
            last = number + 1
        elif text:
            break
    return first, last


def _announcement(lines: list[str], begin: int) -> tuple[int, str]:
    """The TODO number and goal from the comment lines right above line `begin`."""
    for line in reversed(lines[: begin - 1]):
        if match := _ANNOUNCED.match(line):
            return int(match[1]), match[2]
        if not line.strip().startswith("#"):
            break
    raise LabError(f"line {begin}: no comment '# TODO n: goal' stands above this region.")


def _enclosing(functions: dict[str, Function], line: int) -> str:
    around = [name for name, node in functions.items() if node.lineno < line <= (node.end_lineno or 0)]
    if not around:
        raise LabError(f"line {line}: a region lies outside of every function, so the starter could not be imported.")
    return max(around, key=lambda name: functions[name].lineno)


def _check_one_todo_per_function(regions: list[Region]) -> None:
    owner: dict[str, int] = {}
    for region in regions:
        for name, todo in owner.items():
            shared = name == region.where or name.startswith(region.where + ".") or region.where.startswith(name + ".")
            if shared and todo != region.todo:
                raise LabError(f"line {region.begin}: {region.where} holds TODO {todo} and TODO {region.todo}.")
        owner[region.where] = region.todo


def _without_solution(source: str, regions: list[Region], lab_id: str, keep_yield: set[str]) -> str:
    lines = lines_of(source)
    kept: set[str] = set()
    for region in reversed(regions):
        marker = lines[region.begin - 1]
        indent = marker[: len(marker) - len(marker.lstrip())]
        text = json.dumps(f"TODO {region.todo}: {region.goal}", ensure_ascii=False)
        stub = [f'{indent}raise TodoError({text}, lab="{lab_id}")']
        if region.where in keep_yield - kept:
            stub.append(f"{indent}yield  # delete this line too: until then it keeps the function a generator")
            kept.add(region.where)
        lines[region.begin - 1 : region.end] = stub
    return "\n".join(lines) + "\n"


def _imports_todo_error(source: str) -> bool:
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return any(alias.name == "TodoError" for node in imports for alias in node.names)


def _importing_todo_error(source: str) -> str:
    """`source` with `TodoError` among what it imports."""
    match = _IMPORT.search(source)
    if match:
        names = sorted({"TodoError", *re.split(r",\s*", match[1])}, key=lambda name: (name.islower(), name))
        return source[: match.start()] + "from labs.harness.todo import " + ", ".join(names) + source[match.end() :]
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
    first_code = [node for node in ast.parse(source).body if not isinstance(node, ast.Expr)]
    lines = lines_of(source)
    at = imports[-1].end_lineno or 0 if imports else (first_code[0].lineno - 1 if first_code else 0)
    lines.insert(at, "from labs.harness.todo import TodoError")
    return "\n".join(lines) + "\n"
