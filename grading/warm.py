"""Imported once, by the process from which the workers of `grading.kill` are forked.

It imports what the suites of the labs import, so that no worker has to, and starts no thread: torch
keeps to one, for a forked process has only the thread that forked it.
"""

import ast
import importlib
import os
import sys
from importlib.metadata import entry_points

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import pytest  # noqa: E402, F401
import torch  # noqa: E402

import labs.harness.plugin  # noqa: E402, F401
from labs.harness.catalog import Lab, all_labs  # noqa: E402

torch.set_num_threads(1)

_LATER = {
    "nano_qwen3_serving.testing.oracle": "transformers.models.qwen3.modeling_qwen3",
    "_hypothesis_pytestplugin": "hypothesis",
}
"""What a module imports only once it is used, or at the end."""


def imports_of(lab: Lab) -> list[ast.stmt]:
    """The import statements of the lab's suite, solution and seam, wherever in the file they stand."""
    paths = [path for path in (lab.tests, lab.solution, lab.folder / "seam.py") if path.is_file()]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return [node for node in nodes if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level)]


def warm_up() -> None:
    """Import all that, and pytest's plugins. What cannot be imported is for the test that wants it to report."""
    for plugin in entry_points(group="pytest11"):
        plugin.load()
    wanted = [ast.unparse(node) for lab in all_labs() for node in imports_of(lab)]
    for statement in dict.fromkeys(wanted):
        try:
            exec(statement, {})
        except Exception:  # noqa: S110
            pass
    for used, later in _LATER.items():
        if used in sys.modules:
            importlib.import_module(later)


warm_up()
