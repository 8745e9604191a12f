"""Times that people read are by the clock of the term's zone and name it; those that programs read are ISO with an offset."""

import csv
import io
import json
import re
import time
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grading.cli.app import app
from grading.cohort.batch import _older
from grading.cohort.journal import Attempt, Journal
from grading.cohort.roster import Cohort, HandedIn
from grading.cohort.term import read_term
from grading.judge.intake import Submission
from grading.judge.report import CheckResult, Report

TERM = """
journal = "j.sqlite"
time_zone = "America/New_York"
submissions = { folder = "handed in" }
labs = { 06 = { due = 2027-03-14T01:30:00 } }
late = { percent_per_hour = 2, grace_minutes = 15 }
"""
HANDED_IN, DUE = "2027-03-14 04:40 EDT", "2027-03-14 01:30 EST"  # summer time begins at 02:00, so that is 130 minutes later
FOR_PROGRAMS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d")
SAID = f"10 points, 2.17 hours late (due {DUE}, 15 minutes of grace); 2 hours charged: 9.6 count."


@pytest.fixture
def home(tmp_path: Path, monkeypatch) -> Path:
    """A journal with a late hand-in, and one that is not graded yet, on a machine in another zone."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset() if hasattr(time, "tzset") else None
    (tmp_path / "term.toml").write_text(TERM)
    (tmp_path / "handed in").mkdir()
    with Journal(tmp_path / "j.sqlite", create=True) as base:
        base.set_terms(read_term(tmp_path / "term.toml").terms())
        base.hand_in([Attempt("ada", "06", "d", "2027-03-14T08:40:00Z", "times"),
                      Attempt("ben", "06", "e", "2027-03-14T08:40:30Z", "times")])
        base.record("k", Report("ada", "06", "d", "limits", "5eed", {"checks": "v"}, (CheckResult(1, "a", 10, 10, False),)))
    yield tmp_path
    monkeypatch.undo()
    time.tzset() if hasattr(time, "tzset") else None


def run(home: Path, *words: object) -> str:
    done = CliRunner().invoke(app, [*map(str, words), "--term-file", str(home / "term.toml")])
    if done.exception:
        raise done.exception
    return done.output


@pytest.mark.parametrize(("form", "file", "shows"), [
    ("html", "lab06-ada.html", [f"handed in {HANDED_IN}, due {DUE}", SAID]),
    ("markdown", "lab06-ada.md", [f"handed in {HANDED_IN}, due {DUE}", SAID]),
    ("gradescope", "lab06-ada.json", [SAID])])
def test_what_a_student_reads_has_the_terms_clock(home, form, file, shows):
    run(home, "export", form, "--out", home / "out")
    text = (home / "out" / file).read_text(encoding="utf-8")
    assert all(line in text for line in shows) and not FOR_PROGRAMS.search(text), text


def test_the_lines_that_go_to_moodle_have_it_too(home):
    run(home, "export", "moodle", "--out", home / "grades.csv")
    text = (home / "grades.csv").read_text(encoding="utf-8")
    assert SAID in text and not FOR_PROGRAMS.search(text)


@pytest.mark.parametrize(("words", "shows"), [
    (["status"], ["lab 06 is due at 2027-03-14 01:30 EST", "handed in at 2027-03-14 04:40:30 EDT",
                  "late policy: 15 minutes of grace; 2% an hour"]),
    (["attempts", "ada", "--lab", "06"], [f"1. {HANDED_IN}: 10 of 10 points"])])
def test_what_an_instructor_reads_has_it_too(home, words, shows):
    said = run(home, *words)
    assert all(line in said for line in shows) and not FOR_PROGRAMS.search(said), said


def test_a_line_about_a_later_hand_in_has_it_too(home):
    cohort = Cohort()
    cohort.handed_in.append(HandedIn(Submission("ada", {}), Attempt("ada", "06", "other", "2027-03-01T00:00:00Z", "times")))
    with Journal(home / "j.sqlite") as base:
        assert f"{HANDED_IN}, which is later" in _older(base, cohort)[0].text


def test_another_journal_shows_times_by_the_clock_of_its_own_term(home):
    (home / "other.toml").write_text('journal = "k.sqlite"\ntime_zone = "Europe/Berlin"\n')
    done = CliRunner().invoke(app, ["attempts", "ada", "--lab", "06", "--journal", str(home / "j.sqlite"),
                                    "--term-file", str(home / "other.toml")])
    assert HANDED_IN in done.output


def test_a_feedback_page_is_the_students_page(home):
    kept = {"06": {"form": "canvas", "prefixes": {"ada": "lovelaceada_101_55501_"}}}
    (home / "handed in" / ".downloads.json").write_text(json.dumps(kept))
    run(home, "export", "feedback", "--lab", "06", "--out", home / "feedback.zip")
    with zipfile.ZipFile(home / "feedback.zip") as pages:
        text, = (pages.read(name).decode("utf-8") for name in pages.namelist())
    assert f"handed in {HANDED_IN}, due {DUE}" in text and SAID in text and not FOR_PROGRAMS.search(text)


def test_a_table_for_programs_has_times_with_an_offset(home):
    run(home, "export", "csv", "--out", home / "grades.csv")
    row, = csv.DictReader(io.StringIO((home / "grades.csv").read_text(encoding="utf-8")))
    assert row["submitted"] == "2027-03-14T08:40:00Z" and float(row["late_days"]) == round(130 / 60 / 24, 4)
