"""A lab's suite as the judge runs it: the functions of `test_lab.py` and `hidden.py`, on a part that lives in a worker.

`lab` is then a `Remote` of the submission's module, `rng` draws from the student's seed, and `there` keeps values in the
worker. A test that is marked `practice` looks into the learner's process and is left out.

A test of `hidden.py` belongs to one of `test_lab.py`, or to several:

    @hidden("test_todo_6_the_engine_runs_on_your_blocks", concept="in the engine")
    def test_todo_6_the_engine_generates_the_same_tokens(lab, rng): ...

A lab's test shares its points equally with the hidden tests that belong to it; if it is left out, they get all. For a
hidden test the learner sees only the TODO and the concept.

A test that must return the same in any process says so with `repeats`. It runs in two, with the same inputs; `which` is
0, then 1:

    @hidden("test_todo_5_a_draw_does_not_depend_on_the_rows_beside_it", concept="other batches",
            repeats="in another run of the program the same rows gave other tokens")
    def test_todo_5_a_draw_is_the_same_at_any_time(lab, rng, which): ...
"""

import asyncio
import functools
import inspect
import io
import itertools
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from grading.judge.checks import Check, Wrong, expect_nothing_replaced, hold, look, operators_seen, ours
from grading.labs import HOME, authors_folder
from grading.sandbox.worker.peer import Exported, Raised, Remote, kept
from labs.harness import loading
from labs.harness.catalog import Lab
from labs.harness.suite import beside
from labs.harness.suite.expecting import Here


class OverTheWire(Here):
    """The fixture `there` where the part lives in a worker. Nothing is undone: the worker ends with the check."""

    def __init__(self, lab: Remote) -> None:
        super().__init__()
        self._lab = lab
        self._known: dict[Any, Remote] = {}

    def hold(self, value: Any) -> Remote:
        """A copy of the value that lives in the worker."""
        return hold(self._lab, value)

    def look(self, held: Remote) -> Any:
        """The value of something held there, as it is now."""
        return look(held)

    def kept(self, call: Callable[..., Any], *arguments: Any) -> Remote:
        """The result of a call, as an object of the worker."""
        return kept(self.of(call), *arguments)

    def iterator(self, values: Iterable[Any]) -> Remote:
        """An iterator of the worker over values."""
        return kept(self.of(iter), list(values))

    def is_a(self, kind: type, *values: Any) -> bool:
        """Whether all of them are objects of the worker's class of that name."""
        if not all(isinstance(value, Remote) for value in values):
            return False
        self.nothing_replaced("types")
        return all(self.of(isinstance)(value, self.of(kind)) for value in values)

    def of(self, thing: Any) -> Remote:
        """The worker's function, class or module of the same name."""
        if isinstance(thing, Remote):
            return thing
        if thing not in self._known:
            inside = [] if isinstance(thing, ModuleType) else thing.__qualname__.split(".")
            module = self._lab._peer.root.package(thing.__module__ if inside else thing.__name__)
            self._known[thing] = functools.reduce(getattr, inside, module)
        return self._known[thing]

    def lend(self, thing: Any, *names: str) -> Exported:
        """An object of the judge, of which the worker may call the named methods."""
        return ours(thing, *names)

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Replace an attribute there; a function becomes one of the worker's that calls the judge's."""
        placed = value
        if inspect.iscoroutinefunction(value):
            placed = self.of(beside.as_coroutine)(ours(lambda *arguments: asyncio.run(value(*arguments))))
        elif callable(value) and not isinstance(value, Remote):
            placed = self.of(beside.as_function)(ours(value))
        setattr(self.of(owner), name, placed)

    def unawaited(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a call; a coroutine or a stream is an object of the worker."""
        [answer] = self.of(list)(self.of(itertools.starmap)(self.of(call), [list(arguments)]))
        return answer

    def awaited(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """The result of the coroutine that a call returns, run on the worker's event loop."""
        return self.of(beside.awaited)(self.of(call), *arguments, **named)

    def printed(self, run: Callable[[], Any]) -> str:
        """The text printed in the worker while `run` runs."""
        self.of(sys).stdout = heard = kept(self.of(io.StringIO))
        run()
        return heard.getvalue()

    def at_end(self, call: Callable[[], Any]) -> None:
        """Nothing: the worker ends."""

    def operators(self) -> Any:
        """A `labs.harness.suite.operators.Log` of the worker."""
        return operators_seen(self._lab)

    def nothing_replaced(self, *measured: str) -> None:
        """Raises `Wrong` if the submission has replaced a function that is used to measure."""
        expect_nothing_replaced(self._lab, *measured)


@dataclass(frozen=True)
class Hidden:
    """The mark of a hidden test.

    Attributes:
        of: tests of the lab that it belongs to.
        concept: what the learner sees of it.
        repeats: the message if it returns something else in another process; empty if it runs in one process only.
    """

    of: tuple[str, ...]
    concept: str
    repeats: str = ""


def hidden(*of: str, concept: str, repeats: str = "") -> Callable:
    """Makes a function a hidden test that belongs to the tests `of` of the lab, of one TODO; see `Hidden`."""

    def mark(run: Callable[..., Any]) -> Callable[..., Any]:
        run.hidden = Hidden(of, concept, repeats)  # type: ignore[attr-defined]  # a function takes any attribute; `checks_of` looks for it
        return run

    return mark


@functools.cache
def tests_in(folder: Path) -> ModuleType:
    """A lab's `test_lab.py`, whose helpers the tests of `hidden.py` may use, too."""
    return loading.run_file(folder / "test_lab.py", f"_suite_of_{folder.name}")


def checks_of(lab: Lab, home: Path = HOME) -> list[Check]:
    """The judge's checks for a lab, from `test_lab.py` and `hidden.py`, TODO by TODO, in the order of these files.

    Raises `ValueError` for a test that only practice runs and that has no hidden test, because no one could earn its points.
    Also for two tests whose names differ only in the TODO: reports, corrections and regrading know a check by that name.
    """
    tests = {name: (mark, test) for name, test in vars(tests_in(lab.folder)).items() if (mark := _mark(test, "todo")) is not None}
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
    if doubled := [name for name, count in Counter(check.name for check in made).items() if count > 1]:
        raise ValueError(f"Lab {lab.id}: two tests are named {', '.join(doubled)} but for their TODO: name them apart")
    return sorted(made, key=lambda check: check.todo)


def _mark(test: Any, name: str) -> pytest.Mark | None:
    marks = getattr(test, "pytestmark", []) if inspect.isfunction(test) else []
    return next((mark for mark in marks if mark.name == name), None)


def _check(name: str, todo: int, points: float, test: Callable[..., Any], section: str) -> Check:
    mark: Hidden | None = getattr(test, "hidden", None)
    name = name.removeprefix(f"test_todo_{todo}_")
    concept = mark.concept if mark else name.replace("_", " ")
    return Check(name, todo, points, mark is not None, section, concept, _run(test), mark.repeats if mark else "")


def _run(test: Callable[..., Any]) -> Callable[..., list[Any]]:
    """The test with all its cases, and what they return. A failed assertion becomes a `Wrong`; other errors pass through."""
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
