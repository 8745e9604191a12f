"""The house: imports run one way between the folders, and in no circle between files or rooms; no corridor is long."""

import ast
import graphlib
from pathlib import Path

import pytest

from labs.harness.catalog import all_labs

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
HOUSES = {
    "nano_qwen3_serving": PROJECT / "reference_engine" / "nano_qwen3_serving",
    "labs.harness": PROJECT / "labs" / "harness",
    "grading": PROJECT / "grading",
}
NO_ROOMS = {"tests", "cheats", "results", *(f"lab{number:02d}" for number in range(100))}
"""Folders of what is graded, of checks and of tests: nothing else imports them."""


def modules(name: str) -> dict[str, Path]:
    """Dotted name → file, of a house's own modules."""
    home = HOUSES[name]
    found = {}
    for path in home.rglob("*.py"):
        inside = path.relative_to(home)
        if not NO_ROOMS & set(inside.parts):
            parts = [part for part in inside.with_suffix("").parts if part != "__init__"]
            found[".".join([name, *parts])] = path
    return found


def imports(path: Path, at_load: bool = False) -> set[str]:
    """What a file imports, wherever in it; `at_load` leaves out what is imported in a function, or for types only."""
    found, tree = set(), ast.parse(path.read_text(encoding="utf-8"))
    for node in _outside_functions(tree) if at_load else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _outside_functions(node):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _outside_functions(child)


def arrows(name: str) -> dict[str, set[str]]:
    """Module → the modules of its house that it imports when it is loaded."""
    there = modules(name)
    return {module: {other for other in imports(path, at_load=True) if other in there and other not in (module, name)}
            for module, path in there.items()}


@pytest.mark.parametrize("name", HOUSES)
def test_no_module_imports_itself_by_way_of_others(name):
    assert [*graphlib.TopologicalSorter(arrows(name)).static_order()]  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", ["labs.harness", "grading"])
def test_no_room_imports_itself_by_way_of_others(name):
    def room(module: str) -> str:
        inside = module.removeprefix(name + ".").split(".")
        return inside[0] if len(inside) > 1 or (HOUSES[name] / inside[0]).is_dir() else ""

    there, rooms = modules(name), dict[str, set[str]]()
    for module, path in there.items():
        others = {room(other) for other in imports(path) if other in there and other != name}
        rooms.setdefault(room(module), set()).update(others - {room(module)})
    if name == "grading":
        rooms.pop("")  # __main__
    assert len(rooms) > 3
    assert [*graphlib.TopologicalSorter(rooms).static_order()]


def test_the_engine_knows_no_lab_and_the_labs_know_no_judge():
    for house, unknown in (("nano_qwen3_serving", ("labs", "grading")), ("labs.harness", ("grading",))):
        for path in modules(house).values():
            strangers = {module for module in imports(path) if module.split(".")[0] in unknown}
            assert not strangers, f"{path.relative_to(PROJECT)} imports {sorted(strangers)}"


@pytest.mark.parametrize("name", HOUSES)
def test_no_code_names_a_lab_by_its_number(name):
    """Which labs there are, their folders say; a command that needs one is told which."""
    names = {name for lab in all_labs() for name in (lab.id, f"lab{lab.id}", lab.folder.name)}
    found = [f"{path.relative_to(PROJECT)}:{node.lineno} {node.value!r}" for path in modules(name).values()
             for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.Constant) and node.value in names]
    assert not found


@pytest.mark.parametrize("name", ["labs.harness", "grading"])
def test_no_corridor_has_more_than_a_dozen_doors(name):
    doors: dict[Path, int] = {}
    for path in modules(name).values():
        if path.name != "__init__.py":
            doors[path.parent] = doors.get(path.parent, 0) + 1
    assert {folder.relative_to(PROJECT).as_posix(): count for folder, count in doors.items() if count > 12} == {}
