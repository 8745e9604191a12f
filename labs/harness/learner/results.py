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
"""Characters of an error's message that are kept."""
VARYING = re.compile(r"""'[^']*'|"[^"]*"|\[[^\]]*\]?|0x[0-9a-fA-F]+|-?\d+(\.\d+)?(e[-+]?\d+)?""")
"""What differs from one message of a kind to the next: quoted text, lists, numbers."""

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
    """How the error's message begins: its first line, cut to `MESSAGE_LENGTH`."""

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> "Outcome":
        """An outcome that the plugin wrote with `--lab-json`."""
        return cls(**{**facts, "on_ours": tuple(facts["on_ours"])})


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    todo: int
    points: float
    of: float
    kind: str
    state: str


def summarise(lab: Lab, outcomes: Iterable[Outcome], tests: Tests | None = None) -> list[Row]:
    """One row per TODO that was tested. Its points are of all its `tests`, also if only some of them ran."""
    outcomes = list(outcomes)
    tested = sorted({outcome.todo for outcome in outcomes})
    rows = []
    for todo in tested:
        own = [one for one in outcomes if one.todo == todo]
        every = (tests or {}).get(todo, {})
        missing = sum(cases for _, cases in every.values()) - len(own)
        rows.append(_row_in_part(todo, own, every, missing) if missing > 0 else _row(todo, own, tested))
    return rows


def _row_in_part(todo: int, outcomes: list[Outcome], every: dict[str, tuple[float, int]], missing: int) -> Row:
    earned = sum(every[one.test][0] / every[one.test][1] for one in outcomes if one.passed and one.test in every)
    passed = sum(one.passed for one in outcomes)
    state = f"{passed} of {len(outcomes)} tests pass, {missing} not run"
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
    """`12`, or `12.5`: no needless decimals."""
    return f"{points:g}"


def prediction_points(attempts: list[dict]) -> float:
    """What the best attempt at a lab's predictions is worth."""
    best = max((attempt["right"] / attempt["of"] for attempt in attempts if attempt["of"]), default=0.0)
    return round(PREDICTION_POINTS * best, 1)
