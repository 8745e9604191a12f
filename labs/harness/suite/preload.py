"""Importing once, ahead of many forked runs, the modules that the runs will import.

Knows files and import statements; knows nothing of the runs. A failed import is ignored here: the test that
needs the module reports it.
"""

import ast
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path


def import_plugins() -> None:
    """pytest's plugins, and the labs' own."""
    for plugin in entry_points(group="pytest11"):
        plugin.load()
    import labs.harness.suite.plugin  # noqa: F401


def import_what_is_imported_by(paths: Iterable[Path]) -> None:
    """Run all import statements of these files, wherever they are in a file."""
    statements = dict.fromkeys(statement for path in paths for statement in _imports(path))
    for statement in statements:
        try:
            exec(statement, {})
        except Exception:  # the run that needs it reports it
            pass


def _imports(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return [ast.unparse(node) for node in found if not getattr(node, "level", 0)]
