"""From the outcomes of single tests to one row per TODO: points, and a state in words.

Knows nothing of pytest and prints nothing.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from labs.harness.catalog import Lab

TOTAL_POINTS = 100
PREDICTION_POINTS = 15
MESSAGE_LENGTH = 400
"""How many characters of an error's message are kept."""
VARYING = re.compile(r"""'[^']*'|"[^"]*"|\[[^\]]*\]?|0x[0-9a-fA-F]+|-?\d+(\.\d+)?(e[-+]?\d+)?""")
"""The parts that differ between messages of one kind: quoted text, lists, numbers."""

SOLVED, PARTLY, FAILING, NOT_STARTED, BLOCKED = "solved", "partly", "failing", "not started", "blocked"
IN_PART = "tested in part"

Tests = dict[int, dict[str, tuple[float, int]]]
"""TODO -> test -> its points, and the number of its cases."""


@dataclass(frozen=True)
class Outcome:
    """How one test of a TODO ended."""

    test: str
    """The test function: its parametrised cases share the points."""
    todo: int
    points: float
    passed: bool
    error: str = ""
    """The class of the error that ended it."""
    unwritten: int | None = None
    """The TODO whose `TodoError` ended it."""
    on_ours: tuple[int, ...] = ()
    """The TODOs for which our code stood in."""
    message: str = ""
    """The first line of the error's message, cut to `MESSAGE_LENGTH`."""

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Outcome":
        """An outcome that the plugin wrote with `--lab-json`."""
        return cls(**{**fields, "on_ours": tuple(fields["on_ours"])})


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    todo: int
    points: float
    of: float
    kind: str
    state: str


def summarise(lab: Lab, outcomes: Iterable[Outcome], tests: Tests | None = None) -> list[Row]:
    """One row per tested TODO. Its maximum counts all its `tests`, even if only some of them ran."""
    outcomes = list(outcomes)
    tested = sorted({outcome.todo for outcome in outcomes})
    rows = []
    for todo in tested:
        own = [outcome for outcome in outcomes if outcome.todo == todo]
        every = (tests or {}).get(todo, {})
        missing = sum(cases for _, cases in every.values()) - len(own)
        rows.append(_row_in_part(todo, own, every, missing) if missing > 0 else _row(todo, own, tested))
    return rows


def _row_in_part(todo: int, outcomes: list[Outcome], every: dict[str, tuple[float, int]], missing: int) -> Row:
    passed = [outcome for outcome in outcomes if outcome.passed]
    earned = sum(every[outcome.test][0] / every[outcome.test][1] for outcome in passed if outcome.test in every)
    state = f"{len(passed)} of {len(outcomes)} tests pass, {missing} not run"
    return Row(todo, round(earned, 1), sum(points for points, _ in every.values()), IN_PART, state)


def _row(todo: int, outcomes: list[Outcome], tested: list[int]) -> Row:
    kind, state = _state(todo, outcomes, tested)
    shares: dict[str, list[bool]] = {}
    worth: dict[str, float] = {}
    for outcome in outcomes:
        shares.setdefault(outcome.test, []).append(outcome.passed)
        worth[outcome.test] = outcome.points
    earned = sum(worth[test] * sum(passed) / len(passed) for test, passed in shares.items())
    return Row(todo, round(earned, 1), sum(worth.values()), kind, state)


def _state(todo: int, outcomes: list[Outcome], tested: list[int]) -> tuple[str, str]:
    passed = sum(outcome.passed for outcome in outcomes)
    ours = sorted({other for outcome in outcomes for other in outcome.on_ours})
    if passed == len(outcomes):
        if blockers := [other for other in ours if other in tested]:
            return BLOCKED, f"blocked by {_todos(blockers)} (passes with our {_todos(blockers)} in place of yours)"
        return SOLVED, f"solved with our {_todos(ours)} in place of yours" if ours else "solved"
    if passed:
        return PARTLY, f"partly: {passed} of {len(outcomes)} tests pass"
    unwritten = {outcome.unwritten for outcome in outcomes if outcome.unwritten is not None}
    if any(outcome.unwritten is None for outcome in outcomes):
        return FAILING, "failing"
    if todo in unwritten:
        return NOT_STARTED, "not started"
    return BLOCKED, f"blocked by {_todos(sorted(unwritten))}"


def _todos(numbers: Iterable[int]) -> str:
    return "TODO " + " and ".join(map(str, numbers))


def points_text(points: float) -> str:
    """Points as text, `12` or `12.5`, without needless decimals."""
    return f"{points:g}"


def prediction_points(attempts: list[dict]) -> float:
    """The points of the best attempt at a lab's predictions."""
    best = max((attempt["right"] / attempt["of"] for attempt in attempts if attempt["of"]), default=0.0)
    return round(PREDICTION_POINTS * best, 1)
