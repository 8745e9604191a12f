"""A lab's suite as the judge runs it: the functions of `test_lab.py` and `hidden.py`, on a part that lives in a worker.

`lab` is then a `Remote` of the submission's module, `rng` draws from the student's seed, and `there` keeps values in the
worker. A test that is marked `practice` looks into the learner's process and is left out.

A test of `hidden.py` belongs to one of `test_lab.py`, or to several:

    @hidden("test_todo_6_the_engine_runs_on_your_blocks", concept="in the engine")
    def test_todo_6_the_engine_generates_the_same_tokens(lab, rng): ...

What a test of the lab is worth is shared by itself, unless it is left out, and the hidden ones that belong to it. Of a
hidden one the learner is told the TODO and the concept.

One that must return the same in any process says so. It is run in two, with the same inputs; `which` is 0, then 1:

    @hidden("test_todo_5_a_draw_does_not_depend_on_the_rows_beside_it", concept="other batches",
            repeats="in another run of the program the same rows gave other tokens")
    def test_todo_5_a_draw_is_the_same_at_any_time(lab, rng, which): ...
"""

import functools
import inspect
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from grading.judge.checks import Check, Wrong, expect_nothing_replaced, hold, look, operators_seen, ours, scenarios_of
from grading.sandbox.worker.peer import Exported, Raised, Remote, kept
from labs.harness import loading
from labs.harness.catalog import Lab

HOME = Path(__file__).parents[1] / "labs"


class OverTheWire:
    """The fixture `there` where the part lives in a worker, see `labs.harness.suite.expecting.Here`."""

    def __init__(self, lab: Remote) -> None:
        self._lab = lab

    def hold(self, value: Any) -> Remote:
        """A copy of the value that lives in the worker."""
        return hold(self._lab, value)

    def look(self, held: Remote) -> Any:
        """The value of something held there, as it is now."""
        return look(held)

    def kept(self, call: Remote, *arguments: Any) -> Remote:
        """What a call returns, as an object of the worker."""
        return kept(call, *arguments)

    def iterator(self, values: Iterable[Any]) -> Remote:
        """An iterator of the worker over values."""
        return kept(self.package("builtins").iter, list(values))

    def lend(self, thing: Any, *names: str) -> Exported:
        """A function of the judge's, or an object of which the submission may use `names`."""
        return ours(thing, *names)

    def package(self, name: str) -> Remote:
        """A module of the worker."""
        return self._lab._peer.root.package(name)

    def operators(self) -> Remote:
        """A `labs.harness.suite.operators.Log` of the worker."""
        return operators_seen(self._lab)

    def nothing_replaced(self, *measured: str) -> None:
        """Raises `Wrong` where the submission has replaced what is measured with."""
        expect_nothing_replaced(self._lab, *measured)


@dataclass(frozen=True)
class Hidden:
    """What makes a function a hidden test.

    Attributes:
        of: tests of the lab that it belongs to.
        concept: what the learner is told.
        repeats: what was wrong if it returns something else in another process; empty if it is run in one.
    """

    of: tuple[str, ...]
    concept: str
    repeats: str = ""


def hidden(*of: str, concept: str, repeats: str = "") -> Callable:
    """Makes a function a hidden test that belongs to the tests `of` of the lab, of one TODO; see `Hidden`."""

    def mark(run: Callable[..., Any]) -> Callable[..., Any]:
        run.hidden = Hidden(of, concept, repeats)  # type: ignore[attr-defined]  # a function takes any attribute; `suite_of` looks for it
        return run

    return mark


def checks_of(lab: Lab) -> list[Check]:
    """What the judge asks of a lab, TODO by TODO: its one suite, or its scenarios where there still are two suites."""
    return suite_of(lab) if (HOME / f"lab{lab.id}").is_dir() else scenarios_of(lab)


@functools.cache
def tests_in(folder: Path) -> ModuleType:
    """A lab's `test_lab.py`: what its tests are made of may be used by those of `hidden.py`, too."""
    return loading.run_file(folder / "test_lab.py", f"_suite_of_{folder.name}")


def suite_of(lab: Lab) -> list[Check]:
    """The lab's checks from `test_lab.py` and `hidden.py`, TODO by TODO, in the order of these files.

    Raises `ValueError` for a test that only practice runs and to which no hidden one belongs: its points would be nobody's.
    """
    tests = {name: (mark, test) for name, test in vars(tests_in(lab.folder)).items() if (mark := _mark(test, "todo")) is not None}
    belongs = {name: [name] for name, (_, test) in tests.items() if _mark(test, "practice") is None}
    file = HOME / f"lab{lab.id}" / "hidden.py"
    more = {name: test for name, test in vars(loading.run_file(file, f"_hidden_of_lab{lab.id}")).items()
            if isinstance(getattr(test, "hidden", None), Hidden)} if file.is_file() else {}
    belongs |= {name: list(test.hidden.of) for name, test in more.items()}
    parts = Counter(name for of in belongs.values() for name in of)
    if missing := set(tests) - set(parts):
        raise ValueError(f"Lab {lab.id}: {', '.join(sorted(missing))} is left out where labs are graded, and has no hidden test")
    made, headings = [], _headings(lab)
    for name, of in belongs.items():
        todo, points = tests[of[0]][0].args[0], sum(tests[one][0].kwargs["points"] / parts[one] for one in of)
        made.append(_check(name, todo, points, more.get(name) or tests[name][1], headings[todo]))
    return sorted(made, key=lambda check: check.todo)


def _mark(test: Any, name: str) -> pytest.Mark | None:
    marks = getattr(test, "pytestmark", []) if inspect.isfunction(test) else []
    return next((mark for mark in marks if mark.name == name), None)


def _headings(lab: Lab) -> dict[int, str]:
    """TODO → the heading of its section in the README."""
    readme = (lab.folder / "README.md").read_text(encoding="utf-8")
    return {int(number): heading for heading, number in re.findall(r"^#+ (TODO (\d+): .+)$", readme, re.MULTILINE)}


def _check(name: str, todo: int, points: float, test: Callable[..., Any], section: str) -> Check:
    mark: Hidden | None = getattr(test, "hidden", None)
    name = name.removeprefix(f"test_todo_{todo}_")
    concept = mark.concept if mark else name.replace("_", " ")
    return Check(name, todo, points, mark is not None, section, concept, _run(test), mark.repeats if mark else "")


def _run(test: Callable[..., Any]) -> Callable[..., list[Any]]:
    """The test with all its cases, and what they return. What it asserts is told as `Wrong`; what else is raised passes."""
    wanted = set(inspect.signature(test).parameters)

    def run(lab: Remote, rng: random.Random, which: int = 0) -> list[Any]:
        fixtures, returned = {"lab": lab, "rng": rng, "there": OverTheWire(lab), "which": which}, []
        for case in _cases(test):
            try:
                returned.append(test(**{name: value for name, value in fixtures.items() if name in wanted}, **case))
            except (AssertionError, pytest.fail.Exception) as error:
                if isinstance(error, Raised):
                    raise
                raise Wrong(str(error)) from None
        return returned

    return run


def _cases(test: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """Values for a test's parameters, one of each `parametrize` in all combinations."""
    cases: list[dict[str, Any]] = [{}]
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize":
            names = [name.strip() for name in mark.args[0].split(",")]
            values = [value if len(names) > 1 else (value,) for value in mark.args[1]]
            cases = [{**case, **dict(zip(names, given, strict=True))} for given in values for case in cases]
    yield from cases
