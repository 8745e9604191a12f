"""The labs. A lab is a folder `labNN_name` with a `lab.toml`; nothing else registers it."""

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import labs

_FOLDER = re.compile(r"lab(\d\d)_(\w+)")
_REQUIRED = ("title", "hours", "part", "todo")
_KEYS = {*_REQUIRED, "station", "reference", "allow", "refuse", "replaces"}
_KEYS_OF_TODO = {"title", "points", "needs", "stand_ins"}

STATIONS = ("caller", "server", "async engine", "tokenizer", "scheduler", "block manager", "network", "paged attention",
            "sampler", "text")
"""The parts that a request passes from call to token."""


class LabError(Exception):
    """A mistake in the caller's request, reported in one line."""


@dataclass(frozen=True)
class Todo:
    """One TODO of a lab.

    Attributes:
        number: its place in `lab.toml`, from 1.
        title: as in the README and the hints.
        points: what its tests are worth together.
        needs: the earlier TODOs its tests run on.
        stand_ins: the only functions of those TODOs that ours may replace; if empty, all of them. So a TODO that extends
            an earlier one cannot be solved by calling our code for that one.
    """

    number: int
    title: str
    points: float
    needs: tuple[int, ...] = ()
    stand_ins: tuple[str, ...] = ()

    @property
    def heading(self) -> str:
        """`TODO 3: Growth at the block edge`."""
        return f"TODO {self.number}: {self.title}"


@dataclass(frozen=True)
class Lab:
    """One lab's folder and what its `lab.toml` says."""

    number: int
    folder: Path
    title: str
    hours: str
    part: str
    """What the lab makes, in a few words."""
    todos: tuple[Todo, ...]
    station: str | None = None
    """One of `STATIONS`, the lab's place on the path from call to token; None for a lab beside the path."""
    reference: str | None = None
    """The engine's module with the same part; None for a lab that uses the engine instead of making a part."""
    allow: tuple[str, ...] = ()
    """Dotted names of the engine that a learner's file may import, besides those of `labs.harness.imports`."""
    refuse: tuple[str, ...] = ()
    """Dotted names that a learner's file may read but not import, although they lie inside allowed ones."""
    replaces: tuple[int, ...] = ()
    """Numbers of labs that make the same part: where `--use` names both, this lab's runs."""

    def todo(self, number: int) -> Todo:
        """The TODO of that number. Raises `LabError` if the lab has none."""
        if not 1 <= number <= len(self.todos):
            raise LabError(f"Lab {self.id} has no TODO {number}; it has {', '.join(str(todo.number) for todo in self.todos)}.")
        return self.todos[number - 1]

    @property
    def id(self) -> str:
        """Two digits, such as 06."""
        return f"{self.number:02d}"

    @property
    def starter(self) -> Path:
        """The learner's file."""
        return self.folder / "starter.py"

    @property
    def solution(self) -> Path:
        """Ours; not in the student edition."""
        return self.folder / "solution.py"

    @property
    def untouched(self) -> Path:
        """The starter as it was given; only in the student edition, which has no solution."""
        return self.folder / "untouched.py"

    @property
    def sealed(self) -> Path:
        """Our functions, to stand in for TODOs that others build on; only in the student edition."""
        return self.folder / "ours.sealed"

    @property
    def tests(self) -> Path:
        """The suite that learners run."""
        return self.folder / "test_lab.py"

    @property
    def seam(self) -> Path:
        """How the engine uses the lab's part; missing if the lab makes none."""
        return self.folder / "seam.py"

    @property
    def reference_file(self) -> Path:
        """The engine's part under the lab's names; exists only if the two differ."""
        return self.folder / "reference.py"


def labs_home() -> Path:
    """The folder of labs: `$NANO_LABS_HOME`, or the one this package lies in."""
    return Path(os.environ.get("NANO_LABS_HOME") or Path(labs.__file__).parent).resolve()


def all_labs(home: Path | None = None) -> list[Lab]:
    """Every lab in `home`, by number."""
    home = home or labs_home()
    return [lab_at(path.parent) for path in sorted(home.glob("lab[0-9][0-9]_*/lab.toml"))]


def lab_at(folder: Path) -> Lab:
    """The lab in `folder`. Raises `LabError` if there is none or its `lab.toml` is wrong."""
    named = _FOLDER.fullmatch(folder.name)
    if not named or not (folder / "lab.toml").is_file():
        raise LabError(f"{folder} is not a lab: a lab is a folder labNN_name with a lab.toml.")
    table = tomllib.loads((folder / "lab.toml").read_text(encoding="utf-8"))
    if unknown := set(table) - _KEYS:
        raise LabError(f"{folder.name}/lab.toml: unknown key {', '.join(sorted(unknown))}.")
    if missing := [key for key in _REQUIRED if key not in table]:
        raise LabError(f"{folder.name}/lab.toml: {', '.join(missing)} missing.")
    if (station := table.get("station")) not in (None, *STATIONS):
        raise LabError(f"{folder.name}/lab.toml: there is no station {station!r}; there are {', '.join(STATIONS)}.")
    return Lab(
        number=int(named[1]),
        folder=folder,
        title=table["title"],
        hours=table["hours"],
        part=table["part"],
        todos=_todos(f"{folder.name}/lab.toml", table["todo"]),
        station=station,
        reference=table.get("reference"),
        allow=tuple(table.get("allow", ())),
        refuse=tuple(table.get("refuse", ())),
        replaces=tuple(table.get("replaces", ())),
    )


def _todos(where: str, tables: object) -> tuple[Todo, ...]:
    """The `[[todo]]` tables of a `lab.toml`, numbered. Raises `LabError` naming the first that is wrong."""
    if not isinstance(tables, list) or not tables:
        raise LabError(f"{where}: a [[todo]] for each TODO is missing.")
    todos = []
    for number, table in enumerate(tables, start=1):
        if unknown := set(table) - _KEYS_OF_TODO:
            raise LabError(f"{where}: [[todo]] {number}: unknown key {', '.join(sorted(unknown))}.")
        if missing := {"title", "points"} - set(table):
            raise LabError(f"{where}: [[todo]] {number}: {', '.join(sorted(missing))} missing.")
        needs = tuple(table.get("needs", ()))
        if later := [other for other in needs if other not in range(1, number)]:
            raise LabError(f"{where}: [[todo]] {number} needs TODO {later[0]}, which is not before it.")
        todos.append(Todo(number, table["title"], table["points"], needs, tuple(table.get("stand_ins", ()))))
    return tuple(todos)


def find_lab(name: str, home: Path | None = None) -> Lab:
    """The lab meant by `2`, `02`, `lab02`, `lab02_online_serving` or a path to its folder."""
    present = all_labs(home)
    wanted = Path(name).name if name.strip(".") else Path(name).resolve().name
    number = re.fullmatch(r"(?:lab)?0*(\d+)", wanted, re.IGNORECASE)
    for lab in present:
        if lab.folder.name == wanted or (number and lab.number == int(number[1])):
            return lab
    names = ", ".join(f"{lab.id} ({lab.folder.name})" for lab in present) or "none yet"
    raise LabError(f"There is no lab {name!r}. The labs here: {names}.")
