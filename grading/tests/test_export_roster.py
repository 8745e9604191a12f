"""What a roster adds to exports: people are found by whatever a platform calls them, and everybody has a row."""

import csv
import io
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grading.cli.app import app
from grading.cohort.journal import Attempt, Journal
from grading.judge.report import CheckResult, Report

ROSTER = (
    "student,name,email,login,sis_id,lms_id,section\n"
    'ada,"Lovelace, Ada",ada@uni.edu,ada7,30,101,A\nben,"Babbage, Ben",ben@uni.edu,ben7,31,102,B\n'
    "cem,Cem König,cem@uni.edu,cem7,32,103,B\ndee,Dee,dee@uni.edu,dee7,33,104,A\n")
SCORES = {"ada": 9.0, "ben": 4.0, "cem": 7.0}


@pytest.fixture
def term(tmp_path: Path) -> Path:
    (tmp_path / "roster.csv").write_text(ROSTER, encoding="utf-8")
    (tmp_path / "term.toml").write_text('journal = "j.sqlite"\nroster = { file = "roster.csv" }\n')
    with Journal(tmp_path / "j.sqlite", create=True) as base:
        for student, score in SCORES.items():
            base.hand_in([Attempt(student, "06", "d", "2027-02-01T10:00:00Z", "times")])
            check = CheckResult(1, "a", 10.0, score, False, "expected more")
            base.record(student, Report(student, "06", "d", "none", "seed", {"checks": "v"}, (check,)))
    return tmp_path / "term.toml"


def run(*words: object, status: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, done.output
    return done.output


def exported(term: Path, form: str, *more: object) -> str:
    run("export", form, "--out", term.parent / "out", "--term-file", term, *more)
    return (term.parent / "out").read_bytes().decode()


def test_who_handed_in_nothing_has_a_row_without_points(term):
    rows = list(csv.DictReader(io.StringIO(exported(term, "csv"))))
    assert [(row["student"], row["name"], row["section"], row["final_score"], row["TODO 1"]) for row in rows] == [
        ("ada", "Lovelace, Ada", "A", "9.0", "9.0"), ("ben", "Babbage, Ben", "B", "4.0", "4.0"),
        ("cem", "Cem König", "B", "7.0", "7.0"), ("dee", "Dee", "A", "", "")]


def test_a_section_is_exported_and_reported_alone(term):
    rows = list(csv.DictReader(io.StringIO(exported(term, "csv", "--section", "B"))))
    assert [row["student"] for row in rows] == ["ben", "cem"]
    run("report", "cohort", "--lab", "06", "--section", "B", "--out", term.parent / "page.html", "--term-file", term)
    page = (term.parent / "page.html").read_text(encoding="utf-8")
    assert "ben" in page and "cem" in page and "ada" not in page
    with pytest.raises(ValueError, match="--section C: the roster has no such section; it has A, B"):
        exported(term, "csv", "--section", "C")


def test_canvas_finds_people_by_the_number_that_the_roster_has(term):
    (term.parent / "book.csv").write_text(
        "Student,ID,SIS User ID,SIS Login ID,Section,Lab 06 (1)\n    Points Possible,,,,,10\nx,103,,,,\nx,,31,,,\nx,,,ada7,,\n")
    text = exported(term, "canvas", "--fill", term.parent / "book.csv", "--assignment", "1")
    assert text.splitlines()[2:] == ["x,103,,,,7", "x,,31,,,4", "x,,,ada7,,9"]


@pytest.mark.parametrize(("identity", "heading", "wanted"), [
    ("username", "Username", ["ada7", "ben7", "cem7"]), ("email", "Email address", ["ada@uni.edu", "ben@uni.edu", "cem@uni.edu"]),
    ("idnumber", "ID number", ["30", "31", "32"]), ("id", "User ID", ["101", "102", "103"])])
def test_moodles_import_has_what_the_roster_has(term, identity, heading, wanted):
    rows = list(csv.DictReader(io.StringIO(exported(term, "moodle", "--identity", identity))))
    assert [row[heading] for row in rows] == wanted and [row["Lab 06"] for row in rows] == ["9.0", "4.0", "7.0"]


def test_moodles_worksheet_is_filled_by_address_or_full_name(term):
    (term.parent / "sheet.csv").write_text(
        "Identifier,Full name,Email address,Grade,Last modified (grade)\nParticipant 1,Somebody,ada@uni.edu,,-\n"
        "Participant 2,Cem König,other@uni.edu,,-\nParticipant 3,Somebody,ben@uni.edu,,-\n", encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(exported(term, "moodle", "--fill", term.parent / "sheet.csv"))))
    assert [row["Grade"] for row in rows] == ["9", "7", "4"]
