"""The folder from which a worker runs: the package without the part that a lab has the learner write.

Nothing in it tells how a TODO is done: no solution, no tests, no checks. What `lab.toml` refuses is
left out, modules as files, single functions out of their modules.
"""

import ast
import shutil
from pathlib import Path

import nano_qwen3_serving
from labs.harness.catalog import Lab

PACKAGE = Path(nano_qwen3_serving.__file__).parent
LABS = Path(__file__).parents[1] / "labs"
WORKER = Path(__file__).parent / "worker"
_LEFT_OUT = {
    "solution.py", "starter.py", "test_lab.py", "seam.py", "reference.py", "predict.py", "going_further.py", "__init__.py"}
"""Files of a lab that submissions do not get; its other modules are given to the learner."""


def make_runtime(lab: Lab, folder: Path, checkpoints: bool = True) -> list[str]:
    """Fill an empty folder; return the names of the installed packages that have to be hidden."""
    package = folder / "nano_qwen3_serving"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc", *([] if checkpoints else ["checkpoints"]))
    shutil.copytree(PACKAGE, package, ignore=ignored)
    shutil.copytree(WORKER, folder / "worker", ignore=ignored)
    _copy_what_labs_import(lab, folder)
    hidden = ["grading", "labs", "nano_qwen3_serving"]
    for name in lab.refuse:
        if name.split(".")[0] == "nano_qwen3_serving":
            _leave_out(package, name.split(".")[1:])
        else:
            hidden.append(name.split(".")[0])
    return hidden


def _copy_what_labs_import(lab: Lab, folder: Path) -> None:
    harness = folder / "labs" / "harness"
    harness.mkdir(parents=True)
    for path in (LABS / "__init__.py", LABS / "harness" / "__init__.py", LABS / "harness" / "todo.py"):
        shutil.copy(path, folder / path.relative_to(LABS.parent))
    given = folder / "labs" / lab.folder.name
    given.mkdir()
    for path in lab.folder.glob("*.py"):
        if path.name not in _LEFT_OUT:
            shutil.copy(path, given / path.name)


def _leave_out(package: Path, names: list[str]) -> None:
    """Of a module, a folder of them, or a function: leave what others may import by name, and nothing of what it does."""
    target = package.joinpath(*names)
    if target.is_dir():
        for path in target.rglob("*"):
            if path.suffix == ".py":
                _empty(path)
            elif path.is_file():
                path.unlink()
    elif target.with_suffix(".py").is_file():
        _empty(target.with_suffix(".py"))
    else:
        _empty(package.joinpath(*names[:-1]).with_suffix(".py"), names[-1])


def _empty(path: Path, name: str | None = None) -> None:
    """Take what it does from every function of a module, or from the one of this name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if name is None else tree.body
    found = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and name in (None, node.name)]
    if name is not None and not found:
        raise ValueError(f"{path.name} has no function {name}, which lab.toml refuses")
    for node in found:
        node.body = ast.parse(f"raise NotImplementedError('{node.name}() is not there where submissions are graded')").body
    path.write_text(ast.unparse(tree) + "\n", encoding="utf-8")
