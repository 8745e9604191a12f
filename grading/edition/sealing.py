"""The stand-ins for TODOs in the student edition: our functions, sealed, so that no one reads them by accident.

This keeps no secret: anyone determined can undo it, just as they can read another student's solution. Docstrings and
comments are removed, local variables lose their names, and the rest is packed. It stays source text, because compiled
code runs on one version of Python only, and the reference engine's parts have other names, shapes and callers than a lab's.
`labs.harness.originals` opens it.
"""

import ast
import builtins
from collections.abc import Iterator
from itertools import count

from labs.harness import originals, regions
from labs.harness.catalog import Lab
from labs.harness.regions import Function, definitions


def seal(lab: Lab) -> str:
    """The sealed functions of all TODOs of `lab`, as text."""
    return originals.closed(bare(lab.solution.read_text(encoding="utf-8")))


def bare(solution: str) -> str:
    """The functions that learners fill in, and the imports at the top; nothing else, and nothing that explains them."""
    tree = ast.parse(solution)
    wanted = [name for names in regions.functions_of(solution).values() for name in names]
    inside = {id(part) for name in wanted for part in list(ast.walk(definitions(tree)[name]))[1:]}
    taken = {name for node in ast.walk(tree) if id(node) not in inside for name in _names_of(node)}
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    kept = ast.Module([*imports, *_only(tree.body, wanted, "")], [])
    for function in (function for name, function in definitions(kept).items() if name in wanted):
        _drop_docstrings(function)
        _rename_locals(function, taken)
    return ast.unparse(ast.fix_missing_locations(kept))


def _only(body: list[ast.stmt], wanted: list[str], prefix: str) -> Iterator[ast.stmt]:
    """The wanted functions of a body; of a class or function that contains some, only its name and those."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef):
            name = prefix + node.name
            if name in wanted:
                yield node
            elif any(other.startswith(f"{name}.") for other in wanted):
                yield ast.ClassDef(node.name, [], [], list(_only(node.body, wanted, f"{name}.")), [])


def _drop_docstrings(function: Function) -> None:
    for node in ast.walk(function):
        if isinstance(node, Function) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]


def _rename_locals(function: Function, taken: set[str]) -> None:
    """New names for a function's own variables; parameters keep their names, because callers may pass them by name."""
    nodes = list(ast.walk(function))
    kept = taken | set(dir(builtins)) | {name for node in nodes if not isinstance(node, ast.Name) for name in _names_of(node)}
    assigned = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    unused = (name for number in count() if (name := f"v{number}") not in kept)
    names = {name: next(unused) for name in dict.fromkeys(assigned) if name not in kept}
    for node in nodes:
        if isinstance(node, ast.Name):
            node.id = names.get(node.id, node.id)


def _names_of(node: ast.AST) -> list[str]:
    """The identifiers that one node of a syntax tree has, not counting the nodes in it."""
    match node:
        case ast.Name(id=name) | ast.arg(arg=name) | ast.ClassDef(name=name):
            return [name]
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [name]
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            return [name]
        case ast.Global(names=names) | ast.Nonlocal(names=names):
            return names
        case ast.alias(name=name, asname=other):
            return [(other or name).split(".")[0]]
    return []
