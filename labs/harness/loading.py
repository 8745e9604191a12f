"""Choosing and loading the file a lab's tests run on: starter, solution, reference or a path.

Modules get unique names, so that several labs, and several versions of one, live in one process;
`sys.path` is left alone. A learner's file may read the solution and the reference part it is
building, but not import them.
"""

import ast
import importlib
import importlib.util
import inspect
import itertools
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from labs.harness import given, imports, regions
from labs.harness.catalog import Lab, LabError

_IMPORTING_CALLS = {"import_module", "__import__", "run_path", "run_module", "spec_from_file_location"}
_counter = itertools.count(1)


class ImportRefused(LabError):
    """A learner's file imports the answer."""


def choose(lab: Lab, impl: str, base: Path | None = None) -> Path | str:
    """What `--impl` means for `lab`: a file, or the dotted name of a module of the engine.

    The reference is the lab's `reference.py`, which gives the engine's part the lab's names, or the
    module that `lab.toml` names.

    A relative path is taken from `base` (default: the working folder). Raises `LabError` if there
    is no such thing.
    """
    if impl == "reference":
        if lab.reference_file.is_file():
            return lab.reference_file
        if lab.reference is None:
            raise LabError(f"Lab {lab.id} uses the engine and makes no part of it: there is no reference of it to test.")
        return lab.reference
    if impl in ("starter", "solution"):
        path = lab.starter if impl == "starter" else lab.solution
        if not path.is_file():
            absent = " It is not part of the student edition." if impl == "solution" else ""
            raise LabError(f"There is no {path}.{absent}")
        return path
    path = (base or Path.cwd()) / impl
    for candidate in (path, path / "starter.py", path / lab.folder.name / "starter.py"):
        if candidate.is_file():
            return candidate.resolve()
    raise LabError(f"--impl {impl}: not starter, solution or reference, and neither a file nor a folder with a starter.py.")


def load(lab: Lab, chosen: Path | str, stand_ins: Iterable[int] = ()) -> ModuleType:
    """The module `choose` chose, with our functions for the TODOs in `stand_ins`.

    Raises `LabError` for a file that is no Python, `ImportRefused` for one that imports the answer;
    whatever the module itself raises while it is run comes through.
    """
    if isinstance(chosen, str):
        return importlib.import_module(chosen)
    tree = parse(chosen)
    if chosen not in (lab.solution, lab.reference_file):
        refuse_imports(lab, tree, chosen.name)
    if stand_ins:
        ours = lab.solution.read_text(encoding="utf-8")
        names = [name for todo, found in regions.functions_of(ours).items() if todo in stand_ins for name in found]
        tree = regions.with_stand_ins(tree, ast.parse(ours), names)
    module = ModuleType(f"_lab{lab.id}_{chosen.stem}_{next(_counter)}", ast.get_docstring(tree))
    module.__file__ = str(chosen)
    sys.modules[module.__name__] = module
    try:
        exec(compile(tree, str(chosen), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


def run_file(path: Path, name: str) -> ModuleType:
    """A file of ours as a module; one that nobody else can import."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LabError(f"{path} is no file of Python.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lacking(lab: Lab, module: ModuleType) -> dict[int, list[str]]:
    """TODO → those of its functions that `module` does not have; TODOs of which it has all are left out.

    Where nothing says which functions there should be, nothing is known to be lacking.
    """
    found = {}
    for todo, names in given.functions(lab).items():
        if absent := [name for name in names if not _has(module, name)]:
            found[todo] = absent
    return found


def _has(module: ModuleType, name: str) -> bool:
    """Whether a dotted name is there; what is nested in a function is, if the function is."""
    scope: Any = module
    for part in name.split("."):
        if inspect.isfunction(scope):
            return True
        scope = inspect.getattr_static(scope, part, None) if inspect.isclass(scope) else getattr(scope, part, None)
        if scope is None:
            return False
    return True


def parse(path: Path) -> ast.Module:
    """The syntax tree of `path`. Raises `LabError` naming the line if it is no Python."""
    try:
        return ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError as error:
        raise LabError(f"{path.name} line {error.lineno} is not Python yet: {error.msg}.") from None
    except UnicodeDecodeError:
        raise LabError(f"{path.name} is not text in UTF-8.") from None


def refuse_imports(lab: Lab, tree: ast.AST, name: str) -> None:
    """Raise `ImportRefused` if `tree` imports what `labs.harness.imports` does not allow."""
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.stmt | ast.expr)):
        for imported in _imported_by(node):
            if not imports.may_import(lab, imported):
                raise ImportRefused(f"{name} line {node.lineno} imports {imported}. {imports.why_not(lab, imported)}")


def _imported_by(node: ast.AST) -> list[str]:
    """The dotted names that `node` imports, if it is an import or a call of an importing function."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        return [f"{base}.{alias.name}".strip(".") for alias in node.names]
    if isinstance(node, ast.Call):
        called = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if called in _IMPORTING_CALLS:
            texts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            return [text.removesuffix(".py").replace("/", ".").strip(".") for text in texts]
    return []
