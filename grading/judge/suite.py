"""A lab's suite as the judge runs it: the functions of `test_lab.py` and `hidden.py`, on a part that lives in a worker.

`lab` is then a `Remote` of the submission's module, `rng` draws from the student's seed, and `there` keeps values in the
worker. A test that is marked `practice` looks into the learner's process and is left out.

A test of `hidden.py` belongs to one of `test_lab.py`, or to several:

    @hidden("test_todo_6_the_engine_runs_on_your_blocks", concept="in the engine")
    def test_todo_6_the_engine_generates_the_same_tokens(lab, rng): ...

What a test of the lab is worth is shared by itself, unless it is left out, and the hidden ones that belong to it. Of a
hidden one the learner is told the TODO and the concept.
"""

import inspect
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from grading.judge.checks import Check, Wrong, hold, look, scenarios_of
from grading.labs import HOME, authors_folder
from grading.sandbox.worker.peer import Raised, Remote, kept
from labs.harness import loading
from labs.harness.catalog import Lab


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
        return kept(self._lab._peer.root.package("builtins").iter, list(values))


@dataclass(frozen=True)
class Hidden:
    """What makes a function a hidden test.

    Attributes:
        of: tests of the lab that it belongs to.
        concept: what the learner is told.
    """

    of: tuple[str, ...]
    concept: str


def hidden(*of: str, concept: str) -> Callable:
    """Makes a function a hidden test that belongs to the tests `of` of the lab, of one TODO."""

    def mark(run: Callable[..., None]) -> Callable[..., None]:
        run.hidden = Hidden(of, concept)  # type: ignore[attr-defined]  # a function takes any attribute; `suite_of` looks for it
        return run

    return mark


def checks_of(lab: Lab) -> list[Check]:
    """What the judge asks of a lab, TODO by TODO: its one suite, or its scenarios where there still are two suites."""
    return suite_of(lab) if (authors_folder(lab) / "hidden.py").is_file() else scenarios_of(lab)


def suite_of(lab: Lab, home: Path = HOME) -> list[Check]:
    """The lab's checks from `test_lab.py` and `hidden.py`, TODO by TODO, in the order of these files.

    Raises `ValueError` for a test that only practice runs and to which no hidden one belongs: its points would be nobody's.
    """
    public = loading.run_file(lab.folder / "test_lab.py", f"_suite_of_lab{lab.id}")
    tests = {name: (mark, test) for name, test in vars(public).items() if (mark := _mark(test, "todo")) is not None}
    belongs = {name: [name] for name, (_, test) in tests.items() if _mark(test, "practice") is None}
    file = authors_folder(lab, home) / "hidden.py"
    more = {name: test for name, test in vars(loading.run_file(file, f"_hidden_of_lab{lab.id}")).items()
            if isinstance(getattr(test, "hidden", None), Hidden)} if file.is_file() else {}
    belongs |= {name: list(test.hidden.of) for name, test in more.items()}
    parts = Counter(name for of in belongs.values() for name in of)
    if missing := set(tests) - set(parts):
        raise ValueError(f"Lab {lab.id}: {', '.join(sorted(missing))} is left out where labs are graded, and has no hidden test")
    made = []
    for name, of in belongs.items():
        todo, points = tests[of[0]][0].args[0], sum(tests[one][0].kwargs["points"] / parts[one] for one in of)
        made.append(_check(name, todo, points, more.get(name) or tests[name][1], lab.todo(todo).heading))
    return sorted(made, key=lambda check: check.todo)


def _mark(test: Any, name: str) -> pytest.Mark | None:
    marks = getattr(test, "pytestmark", []) if inspect.isfunction(test) else []
    return next((mark for mark in marks if mark.name == name), None)


def _check(name: str, todo: int, points: float, test: Callable[..., None], section: str) -> Check:
    mark: Hidden | None = getattr(test, "hidden", None)
    name = name.removeprefix(f"test_todo_{todo}_")
    concept = mark.concept if mark else name.replace("_", " ")
    return Check(name, todo, points, mark is not None, section, concept, _run(test))


def _run(test: Callable[..., None]) -> Callable[[Remote, random.Random], None]:
    """The test with all its cases. What it asserts is told as `Wrong`; what the submission raises passes."""
    wanted = set(inspect.signature(test).parameters)

    def run(lab: Remote, rng: random.Random) -> None:
        fixtures = {"lab": lab, "rng": rng, "there": OverTheWire(lab)}
        for case in _cases(test):
            try:
                test(**{name: value for name, value in fixtures.items() if name in wanted}, **case)
            except (AssertionError, pytest.fail.Exception) as error:
                if isinstance(error, Raised):
                    raise
                raise Wrong(str(error)) from None

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
