"""The parts an engine is made of: `--use mine:03,06 --use solution:07` becomes a `Components`.

Fields that no lab fills come from the reference. Every part is watched at its seam (`guard.py`), so that
an error can be traced to the part whose code it is (`blame.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labs.harness import loading, originals, regions
from labs.harness.catalog import Lab, LabError, find_lab
from labs.harness.mixed_engine.guard import Watch, guarded
from labs.harness.mixed_engine.part import FIELDS, MINE, REFERENCE, SOLUTION, Part, labs_with_seam, load_seam, seam_fields
from nano_qwen3_serving.components import Components


@dataclass(frozen=True)
class Choice:
    """A lab and the implementation of its part to run; nothing is loaded yet."""

    lab: Lab
    impl: str
    """`mine`, `solution`, `reference`, or a path as it was typed."""
    file: Path | None
    """What will be loaded; None for the reference."""
    stand_ins: tuple[int, ...] = ()
    """The TODOs for which our functions stand in."""


@dataclass(frozen=True)
class Engine:
    """The components to build an engine from, and the labs' parts among them."""

    components: Components
    parts: tuple[Part, ...]
    watch: Watch

    def in_words(self) -> list[str]:
        """One line per lab, "Lab 06, the block manager: your starter.py"; then one about the rest."""
        lines = [f"Lab {part.lab.id}, {part.lab.part}: {part.owner_in_words()}" for part in self.parts]
        filled = {field for part in self.parts for field in part.fields}
        rest = [field.replace("_", " ") for field in FIELDS if field not in filled]
        return [*lines, f"reference: {', '.join(rest)}"] if rest else lines

    def compare_command(self) -> str:
        """The command that finds where an engine with these parts and the reference first differ."""
        return "python -m labs compare " + " ".join(f"--use {part.impl}:{part.lab.id}" for part in self.parts)


def engine_of(
    uses: Sequence[str], *, base: str | None = None, home: Path | None = None, folder: Path | None = None
) -> Engine:
    """Loads the parts that `--use` names. Raises `LabError`, before anything is loaded, if that is impossible.

    Args:
        uses: such as `mine:03,06`, `solution:all`, `path/to/file.py:06`.
        base: "solution" makes our functions stand in for unwritten TODOs.
        home: the folder of labs.
        folder: where relative paths start; by default the working folder.
    """
    return build(load_parts(read_uses(uses, base=base, home=home, folder=folder)))


def read_uses(
    uses: Sequence[str], *, base: str | None = None, home: Path | None = None, folder: Path | None = None
) -> list[Choice]:
    """The choices that `--use` makes; a lab that another one replaces is left out. A `LabError` names an impossible one."""
    if base not in (None, SOLUTION):
        raise LabError(f"--base {base}: only --base solution exists.")
    choices: dict[int, Choice] = {}
    owners: dict[str, Lab] = {}
    pairs = [pair for use in uses for pair in _pairs(use, home)]
    replaced = {number for impl, lab in pairs if impl != REFERENCE for number in lab.replaces}
    for impl, lab in pairs:
        if lab.number in replaced:
            continue
        if lab.number in choices:
            raise LabError(
                f"Lab {lab.id} is named twice, as {choices[lab.number].impl} and as {impl}. Name it once.")
        for field in seam_fields(lab, load_seam(lab)):
            if field in owners:
                raise LabError(
                    f"Lab {owners[field].id} and Lab {lab.id} both make the engine's {field.replace('_', ' ')}, "
                    "and it has only one. Leave one of them out.")
            owners[field] = lab
        choices[lab.number] = _choose(lab, impl, folder)
    return [with_stand_ins(choice, base) for choice in choices.values()]


def with_stand_ins(choice: Choice, base: str | None = None) -> Choice:
    """`choice`, with our functions for unwritten TODOs if `base` says so; otherwise a `LabError` names these TODOs."""
    if choice.file is None or choice.file == choice.lab.solution:
        return choice
    missing = unwritten(choice)
    if not missing:
        return choice
    if base == SOLUTION:
        return replace(choice, stand_ins=tuple(missing))
    todos = "TODO " + ", ".join(map(str, missing))
    way_out = " With --base solution our functions stand in for unwritten ones." if originals.our_code(choice.lab) else ""
    raise LabError(
        f"Lab {choice.lab.id}: {todos} of {choice.file.name} {'is' if len(missing) == 1 else 'are'} not written yet.{way_out}")


def unwritten(choice: Choice) -> list[int]:
    """The unwritten TODOs of the chosen file. Raises `LabError` if it is not Python or has a refused import."""
    if choice.file is None:
        return []
    tree = loading.parse(choice.file)
    if choice.file != choice.lab.solution:
        loading.refuse_imports(choice.lab, tree, choice.file.name)
    return sorted(regions.unwritten_todos(tree))


def is_begun(lab: Lab) -> bool:
    """Whether some TODO of the lab's starter is written; True if the file is not Python, so that loading it reports that."""
    try:
        return set(unwritten(_choose(lab, MINE, None))) != set(originals.functions(lab))
    except LabError:
        return True


def finished_labs(home: Path | None = None) -> list[Lab]:
    """The labs that make a part and whose starter is Python without an unwritten TODO."""

    def finished(lab: Lab) -> bool:
        try:
            return not unwritten(_choose(lab, MINE, None))
        except LabError:
            return False

    return [lab for lab in labs_with_seam(home) if finished(lab)]


def load_parts(choices: Sequence[Choice]) -> list[Part]:
    """The chosen parts; the reference's need no loading and are left out."""
    return [
        Part(choice.lab, choice.impl, loading.load(choice.lab, choice.file, choice.stand_ins),
             load_seam(choice.lab), choice.stand_ins)
        for choice in choices if choice.file is not None
    ]


def build(parts: Sequence[Part]) -> Engine:
    """`Components` with `parts` in their places, each checked at its seam."""
    watch = Watch()
    made = {field: _factory(part, field, watch) for part in parts for field in part.fields}
    return Engine(Components().using(**made), tuple(parts), watch)


def _factory(part: Part, field: str, watch: Watch) -> Callable[..., Any]:
    make = getattr(part.seam, field)

    def factory(*arguments: Any) -> Any:
        return guarded(make(part.module, *arguments), part, field, watch, arguments[0])

    return factory


def _pairs(use: str, home: Path | None) -> list[tuple[str, Lab]]:
    """`mine:03,06` → [("mine", Lab 03), ("mine", Lab 06)]. A path may hold a colon; labs follow the last one."""
    impl, colon, names = use.rpartition(":")
    if not colon or not impl or not names:
        raise LabError(f"--use {use}: write whose and which labs, such as mine:03,06, solution:07 or my_file.py:06.")
    if names.strip() == "all":
        if not (labs := labs_with_seam(home)):
            raise LabError(f"--use {use}: no lab here makes a part of the engine.")
        if impl == MINE and not (labs := [lab for lab in labs if is_begun(lab)]):
            raise LabError(f"--use {use}: you have not written anything yet in a lab that makes a part of the engine.")
        return [(impl, lab) for lab in labs]
    return [(impl, find_lab(name, home)) for name in re.split(r"\s*,\s*", names.strip())]


def _choose(lab: Lab, impl: str, folder: Path | None) -> Choice:
    if impl == REFERENCE:
        return Choice(lab, impl, None)
    if impl not in (MINE, SOLUTION) and not ((folder or Path.cwd()) / impl).exists():
        raise LabError(f"--use {impl}:{lab.id}: {impl} is not mine, solution or reference, nor a file or folder.")
    return Choice(lab, impl, Path(loading.choose(lab, "starter" if impl == MINE else impl, folder)))
