"""The journal: what counts, and that a process killed at any statement loses and doubles nothing."""

import os
import signal
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest

from grading.cohort.journal import Attempt, Journal
from grading.cohort.late import Policy, Terms
from grading.judge.report import CheckResult, Report

TERMS = Terms(Policy(penalty=0.1, tokens=1), {"06": datetime(2027, 3, 1, tzinfo=UTC), "07": datetime(2027, 3, 8, tzinfo=UTC)})


def report(student: str, digest: str, earned: float, lab: str = "06", checks: str = "v1") -> Report:
    check = CheckResult(1, "a_check", 100.0, earned, False, "" if earned == 100 else "expected more")
    return Report(student, lab, digest, "none", "seed", {"checks": checks}, (check,))


def attempt(student: str, digest: str, day: int, lab: str = "06", source: str = "times") -> Attempt:
    return Attempt(student, lab, digest, f"2027-03-{day:02d}T00:00:00Z", source)


def contents(path: Path) -> dict[str, list]:
    """All that a journal has, but for the numbers of rows."""
    base = sqlite3.connect(path)
    assert base.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    names = {"attempts": "student, lab, digest, submitted, source", "results": "*", "standing": "*", "facts": "*"}
    found = {table: sorted(base.execute(f"SELECT {columns} FROM {table}")) for table, columns in names.items()}
    base.close()
    return found


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "journal.sqlite", create=True) as base:
        yield base


def test_the_latest_hand_in_counts_and_both_are_kept(journal):
    journal.hand_in([attempt("alice", "new", 5), attempt("alice", "old", 2)])
    journal.record("k-old", report("alice", "old", 90))
    journal.record("k-new", report("alice", "new", 60))
    entry, = journal.latest()
    assert (entry.report.score, entry.submitted, entry.attempts) == (60, "2027-03-05T00:00:00Z", 2)
    assert [(one.digest, graded) for one, graded in journal.attempts()] == [("old", True), ("new", True)]


def test_of_two_at_the_same_time_the_one_noted_last_counts(journal):
    journal.hand_in([attempt("alice", "zz", 5), attempt("alice", "aa", 5)])
    assert journal.counting("alice", "06").digest == "aa"


def test_a_hand_in_that_is_not_graded_yet_is_not_replaced_by_an_older_one(journal):
    journal.hand_in([attempt("alice", "old", 2), attempt("alice", "new", 5)])
    journal.record("k-old", report("alice", "old", 90))
    assert journal.latest() == []


def test_the_same_content_again_is_no_new_hand_in_and_keeps_the_files_earliest_time(journal):
    for day in (3, 9, 2, 5):
        journal.hand_in([attempt("alice", "same", day, source="mtime")])
    assert [one.submitted for one, _ in journal.attempts()] == ["2027-03-02T00:00:00Z"]


def test_the_instructors_time_corrects_that_of_the_file(journal):
    journal.hand_in([attempt("alice", "same", 3, source="mtime")])
    journal.hand_in([attempt("alice", "same", 7)])
    journal.hand_in([attempt("alice", "same", 1, source="mtime")])
    assert [(one.submitted, one.source) for one, _ in journal.attempts()] == [("2027-03-07T00:00:00Z", "times")]


def test_going_back_to_an_older_content_is_a_hand_in_of_its_own(journal):
    for digest, day in (("a", 1), ("b", 2), ("a", 3)):
        journal.hand_in([attempt("alice", digest, day)])
    journal.record("k", report("alice", "a", 70))
    entry, = journal.latest()
    assert (entry.submitted, entry.report.digest, entry.attempts) == ("2027-03-03T00:00:00Z", "a", 3)


def test_nobody_is_lowered_unless_asked_for(journal):
    journal.hand_in([attempt("alice", "a", 1)])
    assert journal.record("v1", report("alice", "a", 80))
    assert not journal.record("v2", report("alice", "a", 70, checks="v2"))
    assert journal.latest()[0].report.score == 80
    assert journal.record("v3", report("alice", "a", 85, checks="v3"))
    assert journal.record("v2", report("alice", "a", 70, checks="v2"), allow_lower=True)
    assert (journal.latest()[0].report.score, journal.results()) == (70, 3)


def test_an_equal_result_of_other_checks_stands(journal):
    journal.hand_in([attempt("alice", "a", 1)])
    journal.record("v1", report("alice", "a", 80))
    journal.record("v2", report("alice", "a", 80, checks="v2"))
    assert journal.latest()[0].report.versions == {"checks": "v2"}


def test_what_is_only_stored_does_not_stand(journal):
    journal.hand_in([attempt("alice", "a", 1)])
    journal.store("v1", report("alice", "a", 80))
    assert journal.latest() == [] and journal.result("v1").score == 80


def test_lateness_is_judged_over_all_labs_even_if_one_is_asked_for(journal):
    journal.set_terms(TERMS)
    journal.hand_in([attempt("alice", "a", 2), attempt("alice", "b", 10, lab="07")])
    journal.record("k6", report("alice", "a", 80))
    journal.record("k7", report("alice", "b", 50, lab="07"))
    six, seven = journal.latest()
    assert (six.late_days, six.tokens, six.charged, six.final_score) == (1.0, 1, 0, 80.0)
    assert (seven.late_days, seven.tokens, seven.charged, seven.final_score) == (2.0, 0, 2, 40.0)
    assert journal.latest("07") == [seven]


def test_what_counts_comes_by_lab_and_student_whatever_the_order_of_grading(tmp_path):
    people, texts = ["bob", "Änne", "alice"], []
    for number, order in enumerate((people, people[::-1])):
        with Journal(tmp_path / str(number), create=True) as base:
            base.hand_in(attempt(student, "x", 1, lab) for student in order for lab in ("07", "06"))
            for student in order[::-1]:
                for lab in ("06", "07"):
                    base.record(student + lab, report(student, "x", 50, lab))
            texts.append([(entry.report.to_json(), entry.submitted, entry.final_score) for entry in base.latest()])
            assert [(entry.report.lab, entry.report.student) for entry in base.latest()] == [
                (lab, name) for lab in ("06", "07") for name in sorted(people)]
    assert texts[0] == texts[1]


def test_a_claim_is_kept_by_who_came_first(journal):
    assert [journal.claim("seeds", value) for value in ("one", "two")] == ["one", "one"]


def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path):
    other, text = tmp_path / "other.sqlite", tmp_path / "notes.txt"
    with sqlite3.connect(other) as base:
        base.execute("CREATE TABLE mine (x)")
    text.write_text("dear diary " * 100)
    before = other.read_bytes(), text.read_bytes()
    with pytest.raises(ValueError, match="other.sqlite is no grading journal of this version: it is another SQLite file"):
        Journal(other, create=True)
    with pytest.raises(ValueError, match="notes.txt is no grading journal"):
        Journal(text, create=True)
    with pytest.raises(ValueError, match="there is no journal .*none.sqlite; python -m grading batch makes one"):
        Journal(tmp_path / "none.sqlite")
    assert (other.read_bytes(), text.read_bytes()) == before


def test_only_its_owner_can_read_it(journal):
    assert os.stat(journal._path).st_mode & 0o077 == 0


def write_all(path: Path, fault=lambda where: None) -> None:
    """A small course's journal, from nothing to terms; each step may be done again."""
    with Journal(path, create=True, fault=fault) as base:
        base.claim("seeds", "0123")
        base.hand_in([attempt("alice", "a", 1), attempt("bob", "b", 2, source="mtime"), attempt("alice", "c", 4)])
        base.record("alice-1", report("alice", "a", 80))
        base.record("alice-2", report("alice", "c", 60))
        base.record("bob-1", report("bob", "b", 40))
        base.record("bob-2", report("bob", "b", 70, checks="v2"))
        base.record("alice-3", report("alice", "c", 50, checks="v2"))
        base.store("alice-4", report("alice", "c", 55, checks="v3"))
        base.hand_in([attempt("bob", "b", 3)])
        base.set_terms(TERMS)


def killed_at(path: Path, count: int) -> bool:
    """Whether a process that does all that was killed at its `count`-th moment before or after a statement."""
    child = os.fork()
    if child == 0:
        left = [count]

        def fault(where: str) -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            write_all(path, fault)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.proof
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.slow
def test_killed_before_or_after_any_statement_it_loses_and_doubles_nothing(tmp_path):
    write_all(tmp_path / "whole")
    wanted, count = contents(tmp_path / "whole"), 0
    while killed_at(tmp_path / str(count), count):
        path = tmp_path / str(count)
        if path.stat().st_size:
            with Journal(path, create=True) as base:
                graded = {key for key in ("alice-1", "alice-2", "bob-1") if base.result(key)}
                assert len(base.attempts()) in (0, 3), f"killed at {count}: half of a step's hand-ins"
                standing = {one.digest for one, has in base.attempts() if has}
                assert standing == {{"alice-1": "a", "alice-2": "c", "bob-1": "b"}[key] for key in graded}, (
                    f"killed at {count}: a result without its standing, or the other way round")
        write_all(path)
        assert contents(path) == wanted, f"killed at {count} and done again it has something else"
        count += 1
    assert contents(tmp_path / str(count)) == wanted
    assert count > 100, f"only {count} moments were tried"
