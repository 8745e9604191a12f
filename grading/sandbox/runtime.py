"""The folder from which a worker runs: the parts of the engine that the lab's file may use, and only the names of the rest.

Nothing in it shows how a TODO is done: no solution, no tests, no checks. A module of the engine that `labs.harness.imports`
does not allow keeps its names, so that allowed modules can import it, and loses its code.
"""

import ast
import contextlib
import functools
import re
import shutil
from importlib import metadata
from pathlib import Path

import nano_qwen3_serving
from labs.harness.catalog import Lab
from labs.harness.imports import ANSWERS, ENGINE, NOT_GIVEN, works_there

PACKAGE = Path(nano_qwen3_serving.__file__).parent
LABS = Path(__file__).parents[2] / "labs"
WORKER = Path(__file__).parent / "worker"
STUDENTS_HAVE = (
    "torch", "numpy", "safetensors", "tokenizers", "jinja2", "matplotlib", "ipython", "pytest", "hypothesis", "rich", "tqdm",
    "psutil", "einops", "scipy", "pandas", "setuptools")
"""Distributions that a file may import: those that students install with the course, and common ones."""


def make_runtime(lab: Lab, folder: Path, checkpoints: bool = True) -> list[str]:
    """Fill an empty folder; return the names of the installed packages that a worker may have."""
    package = folder / ENGINE
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", *([] if checkpoints else ["checkpoints"]))
    shutil.copytree(PACKAGE, package, ignore=ignored)
    shutil.copytree(WORKER, folder / "worker", ignore=ignored)
    _copy_what_labs_import(lab, folder)
    for path in PACKAGE.rglob("*"):
        inside = path.relative_to(PACKAGE)
        if inside.parts[0] != "checkpoints" and path.is_file() and not works_there(lab, ".".join([ENGINE, *_module(inside)])):
            _leave_names(package / inside, path)
    for name in lab.refuse:
        _leave_out(package, name.split(".")[1:])
    return libraries()


@functools.cache
def libraries() -> list[str]:
    """The packages that a worker has: the installed ones of `STUDENTS_HAVE` and all that these need, without answers.

    Other imports of a submission get empty stand-ins, see `worker.absent`.
    """
    needed, waiting = set(), list(STUDENTS_HAVE)
    while waiting:
        name = canonical(waiting.pop())
        if name not in needed:
            needed.add(name)
            with contextlib.suppress(metadata.PackageNotFoundError):
                waiting += [match[0] for requirement in metadata.requires(name) or []
                            if "extra ==" not in requirement and (match := re.match(r"[\w.-]+", requirement))]
    there = metadata.packages_distributions().items()
    packages = {package for package, made_by in there if needed & set(map(canonical, made_by))}
    return sorted((packages | needed) - set(ANSWERS))  # needed, too: pillow's libraries lie in pillow.libs


def canonical(distribution: str) -> str:
    """The name of a distribution in the form for comparisons: `Typing_Extensions` is `typing-extensions`."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _module(path: Path) -> list[str]:
    """The parts of a module's name."""
    return [part for part in path.with_suffix("").parts if part != "__init__"]


def _leave_names(path: Path, original: Path) -> None:
    """A file of the engine that is not allowed: keeps a Python file's names; any other file is left out."""
    if path.suffix == ".py":
        path.write_text(_emptied(original.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        path.unlink(missing_ok=True)


def _copy_what_labs_import(lab: Lab, folder: Path) -> None:
    """Copies the modules that starters import, the lab's own modules, and those that its tests use beside the submission."""
    (folder / "labs" / "harness" / "suite").mkdir(parents=True)
    (folder / "labs" / "harness" / "event_log").mkdir()
    for name in ("", "harness", "harness/suite", "harness/event_log"):
        shutil.copy(LABS / name / "__init__.py", folder / "labs" / name)
    for name in ("harness/todo.py", "harness/suite/beside.py", "harness/suite/operators.py",
                 "harness/event_log/play.py", "harness/event_log/by_hand.py"):
        shutil.copy(LABS / name, folder / "labs" / name)
    lab_folder = folder / "labs" / lab.folder.name
    lab_folder.mkdir()
    for path in lab.folder.glob("*.py"):
        if path.stem not in NOT_GIVEN:
            shutil.copy(path, lab_folder / path.name)


def _leave_out(package: Path, names: list[str]) -> None:
    """Strips a module, a folder of modules, or a function: the names stay importable, the code goes."""
    target = package.joinpath(*names)
    paths = list(target.rglob("*")) if target.is_dir() else [target.with_suffix(".py")]
    if target.is_dir() or paths[0].is_file():
        for path in paths:
            if path.is_file():
                _leave_names(path, path)
    else:
        path = package.joinpath(*names[:-1]).with_suffix(".py")
        path.write_text(_emptied(path.read_text(encoding="utf-8"), names[-1]), encoding="utf-8")


@functools.cache
def _emptied(text: str, name: str | None = None) -> str:
    """A module without the bodies of its functions, or without the body of the named one."""
    tree = ast.parse(text)
    nodes = ast.walk(tree) if name is None else tree.body
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and name in (None, node.name)]
    if name is not None and not functions:
        raise ValueError(f"no function {name}, which lab.toml refuses")
    ours = _of_the_engine(tree)
    for node in functions:
        node.decorator_list = [decorator for decorator in node.decorator_list if _root(decorator) not in ours]
        node.body = ast.parse(f"raise NotImplementedError('{node.name}() is not there where submissions are graded')").body
    return ast.unparse(tree) + "\n"


def _of_the_engine(tree: ast.Module) -> set[str]:
    """Names in a module that are functions of the engine: used as decorators, they would be called during loading."""
    imported = [node for node in tree.body if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == ENGINE]
    return ({alias.asname or alias.name for node in imported for alias in node.names}
            | {node.name for node in tree.body if isinstance(node, ast.FunctionDef)})


def _root(decorator: ast.expr) -> str:
    """The first name of a decorator: `copies` of `@copies.all(deep=True)`."""
    while isinstance(decorator, ast.Call | ast.Attribute):
        decorator = decorator.func if isinstance(decorator, ast.Call) else decorator.value
    return getattr(decorator, "id", "")
