"""What other checks do to scores: winners, losers, the TODO and the reason; nobody is lowered unless asked for."""

import io
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from grading.cohort.batch import Plan, Unit, run_batch
from grading.cohort.journal import Journal
from grading.cohort.regrade import Change, change_table, run_regrade
from grading.cohort.roster import read_cohort
from grading.cohort.worker_pool import Crew, answer_of
from grading.judge.grader import Settings
from grading.judge.report import CheckResult, Report
from labs.harness.catalog import find_lab

LAB = find_lab("06")
V1 = {"alice": {"steady": 5, "a": 0, "b": 4}, "bob": {"steady": 5, "a": 3, "b": 0}, "carol": {"steady": 5, "a": 3, "b": 4}}
V2 = {"alice": {"steady": 5, "a": 3, "b": 4}, "bob": {"steady": 5, "a": 0, "b": 0}, "carol": {"steady": 5, "a": 3, "b": 4}}
WORTH = {"steady": (1, 5), "a": (1, 3), "b": (2, 4)}


def result(name: str, earned: float) -> CheckResult:
    todo, points = WORTH[name]
    return CheckResult(todo, name, points, earned, False, "" if earned == points else f"{name}: expected more")


@dataclass
class Here:
    """A worker in this process that gives what a table says."""

    table: dict
    version: str
    graded: list

    def __hash__(self) -> int:
        return id(self)

    def give(self, unit: Unit) -> None:
        self.unit = unit

    def take(self) -> Report:
        return answer_of(self._grade, self.unit)

    def _grade(self, unit: Unit) -> Report:
        student = unit.submission.student
        self.graded.append(student)
        checks = tuple(result(name, earned) for name, earned in self.table[student].items())
        return Report(student, unit.lab, unit.submission.digest, "none", "seed", {"checks": self.version}, checks)

    def stop(self, why: str = "") -> None:
        pass


class Course:
    """Three submissions, a journal, and checks that come in versions."""

    def __init__(self, home: Path) -> None:
        self.home, self.journal, self.graded = home / "submissions", home / "journal", []
        for student in V1:
            (self.home / student).mkdir(parents=True)
            (self.home / student / "starter.py").write_text(f"name = {student!r}\n")

    def plan(self, version: str) -> Plan:
        return Plan({"06": LAB}, Settings(level="none"), {"06": {"checks": version}})

    def crew(self, table: dict, version: str) -> Crew:
        return Crew(1, lambda: Here(table, version, self.graded), lambda workers: workers, 60.0)

    def batch(self, table: dict, version: str):
        with Journal(self.journal, create=True) as base:
            return run_batch(base, self.plan(version), read_cohort(self.home, [LAB]), self.crew(table, version))

    def regrade(self, table: dict, version: str, dry: bool = False, allow_lower: bool = False, again: tuple[str, ...] = (),
                todo: int | None = None):
        with Journal(self.journal) as base:
            return run_regrade(base, self.plan(version), read_cohort(self.home, [LAB]), self.crew(table, version), dry,
                               allow_lower, again=again, todo=todo)

    def scores(self) -> dict[str, float]:
        with Journal(self.journal) as base:
            return {entry.report.student: entry.report.score for entry in base.latest()}

    def rows(self) -> list:
        with sqlite3.connect(self.journal) as base:
            return [base.execute(f"SELECT * FROM {table}").fetchall() for table in ("attempts", "results", "standing", "facts")]


@pytest.fixture
def course(tmp_path) -> Course:
    made = Course(tmp_path)
    made.batch(V1, "v1")
    return made


def test_a_dry_run_names_gains_and_losses_with_todo_and_reason_and_changes_nothing(course):
    before = course.rows()
    found = course.regrade(V2, "v2", dry=True)
    assert course.rows() == before
    assert [(one.after.student, one.points) for one in found.changes] == [("alice", 3), ("bob", -3), ("carol", 0)]
    assert [(one.todo, one.check, one.points, one.reason) for one in found.winners[0].differences] == [
        (1, "a", 3, "passes now; it failed: a: expected more")]
    assert [(one.todo, one.check, one.points, one.reason) for one in found.losers[0].differences] == [
        (1, "a", -3, "fails now: a: expected more")]


def test_without_dry_run_winners_gain_and_losers_keep_what_they_have(course):
    found = course.regrade(V2, "v2")
    assert found.held == 1 and course.scores() == {"alice": 12, "bob": 8, "carol": 12}
    again = course.regrade(V2, "v2")
    assert [(one.after.student, one.points) for one in again.losers] == [("bob", -3)], "who would lose is still said"


def test_only_allow_lower_lowers(course):
    course.regrade(V2, "v2")
    graded = len(course.graded)
    assert course.regrade(V2, "v2", allow_lower=True).held == 0
    assert course.scores() == {"alice": 12, "bob": 5, "carol": 12}
    assert len(course.graded) == graded, "what is journaled is not graded again"


UNLUCKY = {**V1, "bob": {"steady": 0, "a": 0, "b": 0}}


def test_a_student_is_graded_again_though_nothing_has_changed(tmp_path):
    course = Course(tmp_path)
    course.batch(UNLUCKY, "v1")
    course.graded.clear()
    found = course.regrade(V1, "v1", again=("bob",))
    assert course.graded == ["bob"] and [(one.after.student, one.points) for one in found.winners] == [("bob", 8)]
    assert course.scores() == {"alice": 9, "bob": 8, "carol": 12}
    summary = course.batch(V1, "v1")
    assert course.graded == ["bob"] and not summary.lines, "the run that counts is the one that is known"
    assert course.scores() == {"alice": 9, "bob": 8, "carol": 12}


def test_a_second_run_that_is_worse_does_not_count_unless_lower_is_allowed(course):
    assert course.regrade(UNLUCKY, "v1", again=("bob",)).held == 1 and course.scores()["bob"] == 8
    assert not course.batch(UNLUCKY, "v1").lines and course.scores()["bob"] == 8
    assert course.regrade(UNLUCKY, "v1", again=("bob",), allow_lower=True).held == 0 and course.scores()["bob"] == 0
    assert not course.batch(V1, "v1").lines and course.scores()["bob"] == 0
    with Journal(course.journal) as base:
        assert base.results() == 5, "every run is kept"


def test_a_dry_run_again_changes_nothing(course):
    before = course.rows()
    assert course.regrade(UNLUCKY, "v1", dry=True, again=("bob",)).losers[0].points == -8 and course.rows() == before


def test_a_regrade_that_was_interrupted_and_goes_on_tells_of_every_change(course):
    class Interrupted(Here):
        def take(self):
            if self.unit.submission.student == "carol":
                raise KeyboardInterrupt
            return super().take()

    with Journal(course.journal) as base, pytest.raises(KeyboardInterrupt):
        crew = Crew(1, lambda: Interrupted(V2, "v2", course.graded), lambda workers: workers, 60.0)
        run_regrade(base, course.plan("v2"), read_cohort(course.home, [LAB]), crew, dry=False)
    assert course.scores() == {"alice": 9, "bob": 8, "carol": 12}
    course.graded.clear()
    assert len(course.regrade(V2, "v2").winners) == 1 and course.graded == ["carol"]


def test_what_was_never_graded_is_named_and_left_to_batch(course):
    (course.home / "dave.py").write_text("x = 1\n")
    found = course.regrade(V2, "v2")
    assert [(line.kind, line.student) for line in found.lines] == [("not graded yet", "dave")] and len(found.changes) == 3


def test_a_submission_that_cannot_be_graded_is_an_error_line_and_keeps_its_result(course):
    found = course.regrade({**V2, "alice": None}, "v2")
    assert [(line.kind, line.student) for line in found.lines] == [("error", "alice")] and course.scores()["alice"] == 9


def test_an_older_hand_in_is_not_what_is_compared(course):
    path = course.home / "alice" / "starter.py"
    path.write_text("name = 'alice again'\n")
    os.utime(path, (4_000_000_000, 4_000_000_000))
    course.batch({**V1, "alice": {"steady": 5, "a": 0, "b": 0}}, "v1")
    change, = course.regrade(V2, "v2").winners
    assert (change.before.score, change.after.score) == (5, 12)


def report(*checks: CheckResult) -> Report:
    return Report("alice", "06", "digest", "none", "seed", {}, checks)


def test_new_gone_and_revalued_checks_have_reasons_of_their_own():
    old = report(CheckResult(2, "gone", 2, 2, False), CheckResult(1, "revalued", 2, 2, False),
                 CheckResult(0, "predictions", 15, 5, False, "some"))
    new = report(CheckResult(1, "revalued", 3, 3, False), CheckResult(1, "fresh", 1, 1, False),
                 CheckResult(2, "hard", 4, 0, False, "no"), CheckResult(0, "predictions", 15, 7.5, False, "more"))
    change = Change(old, new)
    assert [(one.todo, one.check, one.points, one.reason) for one in change.differences] == [
        (0, "predictions", 2.5, "7.5 now; it was 5: more"), (1, "revalued", 1, "it is worth 3 now; it was 2"),
        (1, "fresh", 1, "the check is new; passed, 1"), (2, "gone", -2, "the check is gone; it gave 2")]
    assert change.points == round(sum(one.points for one in change.differences), 2)


V3 = {"alice": {"steady": 5, "a": 3, "b": 0}, "bob": {"steady": 5, "a": 0, "b": 4}, "carol": {"steady": 5, "a": 3, "b": 4}}


def test_one_todo_is_graded_again_and_the_others_stay_as_they_are(course):
    before = course.rows()
    dry = course.regrade(V3, "v3", dry=True, todo=1)
    assert course.rows() == before
    found = course.regrade(V3, "v3", todo=1)
    for one in (dry, found):
        assert [(change.after.student, change.points) for change in one.changes] == [("alice", 3), ("bob", -3), ("carol", 0)]
        assert {diff.todo for change in one.changes for diff in change.differences} == {1}
    assert course.scores() == {"alice": 12, "bob": 8, "carol": 12}, "bob is not lowered: his TODO 2 is not counted, TODO 1 was"
    graded = len(course.graded)
    assert course.batch(V3, "v3").known == 3 and len(course.graded) == graded, "a batch finds them, and grades nothing"
    assert course.scores() == {"alice": 12, "bob": 8, "carol": 12}
    with Journal(course.journal) as base:
        report = next(entry.report for entry in base.latest() if entry.report.student == "alice")
    assert [(check.name, check.earned) for check in report.checks] == [("steady", 5), ("a", 3), ("b", 4)]
    assert report.notes == ("TODO 1 was graded again, with checks v3",) and report.versions == {"checks": "v1"}


def test_one_todo_after_another_is_graded_again(course):
    course.regrade(V3, "v3", todo=1)
    found = course.regrade(V3, "v3", todo=2)
    assert [change.points for change in found.changes] == [-4, 4, 0]
    assert course.scores() == {"alice": 12, "bob": 12, "carol": 12}, "bob keeps TODO 1, on which he was not lowered"


def test_after_one_todo_everything_is_graded_only_if_that_is_asked_for(course):
    course.regrade(V3, "v3", todo=1)
    assert [change.points for change in course.regrade(V3, "v3", dry=True).changes] == [0, -3, 0]
    assert [change.points for change in course.regrade(V3, "v3", dry=True, again=("alice", "bob", "carol")).changes] == [-4, 1, 0]


def test_the_table_shows_text_of_submissions_as_text():
    old = report(result("a", 3))
    nasty = report(CheckResult(1, "a", 3, 0, False, "\x1b[31m[bold]red[/bold] \u202egnorw"))
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(change_table([Change(old, nasty)], "who loses"))
    said = console.export_text()
    assert "[bold]red[/bold]" in said and "\x1b" not in said and "\u202e" not in said and "3 → 0" in said
