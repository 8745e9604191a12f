"""What an instructor decides about a score, with the comment that goes out with it. Knows reports; knows no files.

An override is about a student and a lab, whichever hand-in counts: it stays when a submission is graded again.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from grading.judge.report import Report, TodoResult


@dataclass(frozen=True)
class Override:
    """One decision: what a TODO is worth, what the whole lab is worth, points on top, or a check that everybody has passed.

    Attributes:
        student: empty for everybody, which goes with `check` alone.
        comment: why; the student reads it.
        todo: the TODO whose points are set, 0 for the predictions; None for the lab's final score, whatever lateness costs.
        points: the points that are set; None if points are added.
        bonus: points that are added before lateness is charged; None if points are set.
        check: the check whose points everybody gets, for instance because it was wrong.
    """

    student: str
    lab: str
    comment: str
    todo: int | None = None
    points: float | None = None
    bonus: float | None = None
    check: str = ""

    def words(self) -> str:
        """One line for the student, who may not know which checks exist."""
        if self.check:
            return f"The instructor gave everybody the points of one check: {self.comment}"
        what = "the score" if self.todo is None else "the predictions" if self.todo == 0 else f"TODO {self.todo}"
        done = f"added {self.bonus:g} points" if self.bonus is not None else f"set {what} to {self.points:g} points"
        return f"The instructor {done}: {self.comment}"


def to_json(overrides: Iterable[Override]) -> str:
    """The overrides as the journal keeps them."""
    return json.dumps([asdict(override) for override in overrides], ensure_ascii=False, sort_keys=True)


def from_json(text: str) -> list[Override]:
    """What `to_json` wrote."""
    return [Override(**fields) for fields in json.loads(text)]


def decided_for(overrides: Iterable[Override], student: str, lab: str) -> tuple[Override, ...]:
    """The overrides that concern a student's result in a lab."""
    return tuple(override for override in overrides if override.lab == lab and override.student in ("", student))


def with_checks_given_to_all(report: Report, overrides: Sequence[Override]) -> Report:
    """The report with every check passed whose points everybody gets."""
    names = {override.check for override in overrides if override.check}
    checks = tuple(replace(check, earned=check.points, message="", printed="") if check.name in names else check
                   for check in report.checks)
    return replace(report, checks=checks) if names else report


def todos_with(report: Report, overrides: Sequence[Override]) -> list[TodoResult]:
    """A report's rows, one for each TODO, with the points that were set or given to all."""
    set_to = {override.todo: override.points for override in overrides if override.points is not None}
    return [_worth(row, set_to[row.todo]) if row.todo in set_to else row
            for row in with_checks_given_to_all(report, overrides).todos()]


def _worth(row: TodoResult, earned: float | None) -> TodoResult:
    assert earned is not None
    state = "solved" if earned >= row.points else "partly" if earned else "failing"
    return replace(row, earned=earned, state=state)


def score_with(report: Report, overrides: Sequence[Override]) -> float:
    """Points before lateness is charged."""
    earned = sum(row.earned for row in todos_with(report, overrides))
    return round(earned + sum(override.bonus for override in overrides if override.bonus is not None), 2)


def final_of(overrides: Sequence[Override]) -> float | None:
    """The final score that was set; None if none was."""
    return next((override.points for override in overrides if override.todo is None and override.points is not None), None)
