"""Choosing and loading the file a lab's tests run on: starter, solution, reference or a path.

Modules get unique names, so that several labs, and several versions of one, can live in one process;
`sys.path` is left alone. A learner's file may read the solution and the reference part it is
building, but not import them.
"""

import ast
import importlib
import importlib.util
import inspect
import itertools
import linecache
import re
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from labs.harness import imports, originals, regions, source
from labs.harness.catalog import Lab, LabError
from labs.harness.todo import TodoError

_IMPORTING_CALLS = {"import_module", "__import__", "run_path", "run_module", "spec_from_file_location"}
_counter = itertools.count(1)


class ImportRefused(LabError):
    """A learner's file imports the answer."""


def choose(lab: Lab, impl: str, base: Path | None = None) -> Path | str:
    """The target of `--impl` for `lab`: a file, or the dotted name of a module of the engine.

    The reference is the lab's `reference.py`, which gives the engine's part the lab's names, or the
    module that `lab.toml` names.

    A relative path starts at `base` (default: the working folder). Raises `LabError` if the file or module
    does not exist.
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


def load(lab: Lab, chosen: Path | str, stand_ins: Iterable[int] = (), only: Sequence[str] | None = None) -> ModuleType:
    """The module that `choose` chose, with our functions for the TODOs in `stand_ins`, or only those in `only`.

    Raises `LabError` for a file that is not Python or raises during loading, `ImportRefused` for a file that
    imports the answer; a `TodoError` of an unwritten TODO called during loading passes through.
    """
    if isinstance(chosen, str):
        return importlib.import_module(chosen)
    tree = parse(chosen)
    if chosen not in (lab.solution, lab.reference_file):
        refuse_imports(lab, tree, chosen.name)
        _refuse_neighbours(tree, chosen)
    names = {name: todo for todo, functions in originals.functions(lab).items() if todo in stand_ins
             for name in functions if only is None or name in only}
    if names:
        ours = originals.our_code(lab)
        if ours is None:
            raise LabError(f"Nothing can stand in for unwritten functions: {lab.sealed} does not exist.")
        tree = regions.with_stand_ins(tree, ast.parse(ours), list(names))
    module = ModuleType(f"_lab{lab.id}_{chosen.stem}_{next(_counter)}", ast.get_docstring(tree))
    module.__file__ = str(chosen)
    sys.modules[module.__name__] = module
    try:
        exec(_as_ours(compile(tree, str(chosen), "exec"), names), module.__dict__)
    except BaseException as error:
        del sys.modules[module.__name__]
        if isinstance(error, Exception | SystemExit) and not isinstance(error, TodoError):
            raise LabError(_while_loaded(error, chosen)) from error
        raise
    return module


def _as_ours(code: CodeType, names: Mapping[str, int]) -> CodeType:
    """`code` with the functions `names` (→ their TODO) in a file of their own, so that no traceback shows a wrong line for them.

    That file's name, in a debugger or a traceback, says that the function is ours.
    """
    name = code.co_qualname.replace(".<locals>", "")
    if name in names:
        return _moved(code, file_of_ours(names[name], name))
    inner = [_as_ours(constant, names) if isinstance(constant, CodeType) else constant for constant in code.co_consts]
    return code.replace(co_consts=tuple(inner))


def _moved(code: CodeType, file: str) -> CodeType:
    lines = [f"(ours: {file[1:-1]})\n"] * max(line or 0 for *_, line in code.co_lines())
    linecache.cache[file] = (1, None, max(lines, linecache.getlines(file), key=len), file)
    inner = [_moved(constant, file) if isinstance(constant, CodeType) else constant for constant in code.co_consts]
    return code.replace(co_filename=file, co_consts=tuple(inner))


def file_of_ours(todo: int, name: str) -> str:
    """The file's name in tracebacks through our `name`, which stands in for the learner's."""
    return f"<our {name}, in place of TODO {todo}>"


def is_ours(file: str) -> bool:
    """Whether a traceback's file is one that `file_of_ours` names."""
    return file.startswith("<our ")


def _while_loaded(error: BaseException, file: Path) -> str:
    """The error that a file raised at module level, and where."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(file)]
    report = "".join(traceback.format_exception_only(error)).strip().splitlines()
    return f"{file.name} line {lines[-1] if lines else '?'}, while it is loaded: {report[-1] if report else type(error).__name__}"


def _refuse_neighbours(tree: ast.Module, file: Path) -> None:
    """Raise `LabError` if a learner's file imports a neighbouring file, because that one is not handed in."""
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)):
        for name in _imported_by(node) if not getattr(node, "level", 0) else ():
            top = name.split(".")[0]
            if any((file.parent / neighbour).is_file() for neighbour in (f"{top}.py", f"{top}/__init__.py")):
                raise LabError(
                    f"{file.name} line {node.lineno} imports {top}, which lies beside it. Only {file.name} is handed in "
                    f"and tested: put what you need of {top} into {file.name}.")


def run_file(path: Path, name: str) -> ModuleType:
    """A file of ours as a module that no other code can import."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LabError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lacking(lab: Lab, module: ModuleType) -> dict[int, list[str]]:
    """TODO → the functions of it that `module` lacks; complete TODOs are left out.

    If no file says which functions there should be, none counts as missing.
    """
    by_todo = {}
    for todo, names in originals.functions(lab).items():
        if absent := [name for name in names if not _has(module, name)]:
            by_todo[todo] = absent
    return by_todo


def _has(module: ModuleType, name: str) -> bool:
    """Whether a dotted name exists in the module; a name nested in a function exists if the function does."""
    scope: Any = module
    for part in name.split("."):
        if inspect.isfunction(scope):
            return True
        scope = inspect.getattr_static(scope, part, None) if inspect.isclass(scope) else getattr(scope, part, None)
        if scope is None:
            return False
    return True


def parse(path: Path) -> ast.Module:
    """The syntax tree of `path`. Raises `LabError` naming the line if it is no Python, or if it is too long to be graded."""
    content = path.read_bytes()
    if len(content) > source.MOST_BYTES:
        raise LabError(f"{path.name} has {len(content) >> 10} KiB; {source.MOST_BYTES >> 10} KiB are allowed.")
    return source.parsed(source.decoded(content, path.name).text, path.name)


_ENGINES = {"LLM", "LLMEngine", "AsyncLLM", "AsyncLLMEngine"}


def runs_when_loaded(file: Path) -> list[str]:
    """A sentence for each line of a learner's file that wrongly starts its program or an engine at module level."""
    try:
        tree = parse(file)
    except (LabError, OSError):
        return []
    sentences = []
    for node in tree.body:
        guarded = isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
        if guarded or isinstance(node, regions.Function | ast.ClassDef):
            continue
        for call in (part for part in ast.walk(node) if isinstance(part, ast.Call)):
            what = ast.unparse(call.func)
            if what in ("main", "run_lab", "asyncio.run") or what.split(".")[0] in _ENGINES:
                sentences.append(
                    f"Line {call.lineno} of {file.name} runs {what}() whenever the file is loaded, and where you hand it in that "
                    'can cost every point: there is no whole engine. Put it under: if __name__ == "__main__":')
    return sentences


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
    if isinstance(node, ast.Attribute) and re.fullmatch(r"torch(\.\w+)+", name := ast.unparse(node)):  # its use imports it
        return [name]
    return []
