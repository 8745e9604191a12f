"""What an instructor decides about a score: what counts then, and that the comment is in every export."""

import csv
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grading.cli.app import app
from grading.cohort.journal import Attempt, Journal
from grading.cohort.late import Policy, Terms, moment
from grading.cohort.overrides import Override
from grading.judge.report import CheckResult, Report

COMMENT = "Shown in the office, <b>=really</b>."
WHEN = "2027-03-02T00:00:00Z"
CHECKS = (CheckResult(0, "predictions", 15, 9, False, "60% are right"), CheckResult(1, "a", 12, 12, False),
          CheckResult(5, "b", 9, 9, False), CheckResult(5, "c", 4, 0, True, "B was forgotten", "TODO 5", "free exactly once"))
LATE = Terms(Policy(penalty=0.1), {"06": moment("2027-03-01T00:00Z")})


def ada(todo: int | None = None, points: float | None = None, bonus: float | None = None) -> Override:
    return Override("ada", "06", COMMENT, todo, points, bonus)


def journal_in(path: Path, *overrides: Override, terms: Terms = LATE) -> Path:
    with Journal(path, create=True) as base:
        base.set_terms(terms)
        base.set_overrides(overrides)
        for student in ("ada", "ben"):
            base.hand_in([Attempt(student, "06", "d", WHEN, "times")])
            base.record(student, Report(student, "06", "d", "limits", "5eed", {"checks": "v", "python": "3"}, CHECKS))
    return path


@pytest.mark.parametrize(("overrides", "score", "final"), [
    ((), 30, 27.0), ((ada(5, 13),), 34, 30.6), ((ada(5, 0),), 21, 18.9), ((ada(0, 15), ada(5, 13)), 40, 36.0),
    ((ada(bonus=5),), 35, 31.5), ((ada(5, 13), ada(bonus=5), ada(bonus=1)), 40, 36.0), ((ada(bonus=-3),), 27, 24.3),
    ((ada(None, 20),), 20, 20), ((ada(None, 20), ada(5, 0)), 20, 20),
])  # fmt: skip
def test_set_todo_points_and_bonuses_count_before_lateness_and_a_set_score_as_it_is(tmp_path, overrides, score, final):
    with Journal(journal_in(tmp_path / "j", *overrides)) as base:
        one, other = base.latest()
    assert (one.score, one.final_score, one.report.score) == (score, final, 30)
    assert (other.score, other.final_score) == (30, 27.0), "nobody else's"


def test_a_check_whose_points_everybody_gets_is_passed_by_everybody(tmp_path):
    wrong = Override("", "06", COMMENT, check="c")
    with Journal(journal_in(tmp_path / "j", wrong, ada(0, 15))) as base:
        one, other = base.latest()
        settled = {last.student: (last.score, late.score) for last, late in base.settled()}
        assert base.standing("ben", "06", "d").score == 30, "what was graded stays in the journal"
    assert (one.score, one.final_score, other.score, other.final_score) == (40, 36.0, 34, 30.6)
    assert settled == {"ada": (40, 36.0), "ben": (34, 30.6)}
    assert [check.passed for check in other.report.checks] == [False, True, True, True]


def test_students_are_told_why_and_not_which_check_that_was(tmp_path):
    from grading.export import gradescope, html, markdown

    with Journal(journal_in(tmp_path / "j", Override("", "06", COMMENT, check="c"))) as base:
        entry = base.latest()[1]
    for text in (markdown.summary(entry), html.page(entry), gradescope.results(entry)):
        assert "The instructor gave everybody the points of one check: Shown in the office" in text
        assert "B was forgotten" not in text and "check: c" not in text


def test_a_row_says_what_it_is_worth_now_and_how_that_is_called(tmp_path):
    with Journal(journal_in(tmp_path / "j", ada(5, 13), ada(1, 0))) as base:
        rows = {row.todo: (row.earned, row.points, row.state) for row in base.latest()[0].todos()}
    assert rows == {0: (9, 15, "partly"), 1: (0, 12, "failing"), 5: (13, 13, "solved")}


def test_it_stays_when_the_submission_is_graded_again(tmp_path):
    with Journal(journal_in(tmp_path / "j", ada(5, 13))) as base:
        base.record("again", Report("ada", "06", "d", "limits", "5eed", {"checks": "v2"}, CHECKS[:3]), allow_lower=True)
        assert base.latest()[0].score == 9 + 12 + 13
        base.hand_in([Attempt("ada", "06", "e", "2027-03-03T00:00:00Z", "times")])
        base.record("new", Report("ada", "06", "e", "limits", "5eed", {"checks": "v2"}, CHECKS[:3]))
        assert base.latest()[0].score == 9 + 12 + 13, "whichever hand-in counts"


def exported(tmp_path: Path, form: str, *more: str) -> tuple[str, str]:
    """The files that an export writes, joined, and what it says."""
    journal = journal_in(tmp_path / "j", ada(5, 13), terms=Terms())
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["export", form, "--journal", str(journal), "--out", str(out), *more])
    assert done.exit_code in (0, 1) and (done.exception is None or isinstance(done.exception, SystemExit)), done.exception
    paths = sorted(out.iterdir()) if out.is_dir() else [out]
    return "".join(path.read_text(encoding="utf-8") for path in paths), " ".join(done.output.split())


SAID = f"The instructor set TODO 5 to 13 points: {COMMENT}"


def test_markdown_and_html_have_it(tmp_path):
    text, _ = exported(tmp_path, "markdown")
    assert text.count(SAID) == 1 and "# Lab 06: 34 of 40 points" in text and "| TODO 5 | 13/13 | solved |" in text
    text, _ = exported(tmp_path / "html", "html") if (tmp_path / "html").mkdir() is None else ("", "")
    assert text.count("Shown in the office, &lt;b&gt;=really&lt;/b&gt;.") == 1 and "34 of 40 points" in text


def test_csv_and_junit_have_it(tmp_path):
    text, _ = exported(tmp_path, "csv")
    rows = {row["student"]: row for row in csv.DictReader(io.StringIO(text))}
    assert (rows["ada"]["TODO 5"], rows["ada"]["final_score"], rows["ada"]["comments"]) == ("13", "34.0", SAID)
    assert rows["ben"]["comments"] == ""
    (tmp_path / "junit").mkdir()
    text, _ = exported(tmp_path / "junit", "junit")
    assert text.count('<property name="override" value="The instructor set TODO 5 to 13 points:') == 1


def test_gradescope_and_classroom50_have_it(tmp_path):
    text, _ = exported(tmp_path, "gradescope", "--student", "ada")
    facts = json.loads(text)
    assert facts["score"] == 34 and SAID in facts["output"].splitlines()
    links = dict.fromkeys(("commit", "release", "review"), "x") | {"submission": "submit/1"}
    (tmp_path / "places.json").write_text(json.dumps(
        {"classroom": "c", "assignment": "a", "assignment_type": "individual", "submissions": {"ada": links}}))
    (tmp_path / "50").mkdir()
    text, _ = exported(tmp_path / "50", "classroom50", "--places", str(tmp_path / "places.json"))
    facts = json.loads(text)
    assert facts["score"] == 34 and facts["tests"][-1] == {"test-name": SAID, "passed": True, "score": 0, "max-score": 0}


def test_moodle_has_it_as_feedback_and_where_canvas_has_no_place_it_is_said(tmp_path):
    text, _ = exported(tmp_path, "moodle")
    first, *_ = csv.DictReader(io.StringIO(text))
    assert first["Lab 06"] == "34.0" and first["Lab 06 feedback"] == (
        f"predictions 9/15, TODO 1 12/12, TODO 5 13/13; total 34/40; {SAID}")
    (tmp_path / "book.csv").write_text("Student,ID,SIS Login ID,Lab 06 (1)\nA,1,ada,\nB,2,ben,\n")
    (tmp_path / "canvas").mkdir()
    text, said = exported(tmp_path / "canvas", "canvas", "--fill", str(tmp_path / "book.csv"), "--assignment", "1")
    assert "A,1,ada,34\n" in text and f"ada: a gradebook has no place for this: {SAID}" in said


def test_the_cohorts_page_counts_with_it(tmp_path):
    journal = journal_in(tmp_path / "j", ada(5, 13), terms=Terms())
    words = ["report", "cohort", "--journal", str(journal), "--lab", "06", "--out", str(tmp_path / "p.html")]
    done = CliRunner().invoke(app, words)
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert done.exit_code == 0 and "13/13" in page and "34" in page
    done = CliRunner().invoke(app, [*words, "--anonymous"])
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert done.exit_code == 0 and "student 1" in page and "student 2" in page and "ada" not in page and "ben" not in page


def test_being_late_is_said_with_what_it_cost(tmp_path):
    from grading.export.lines import lateness

    terms = Terms(Policy(penalty=0.1, tokens=1), {"06": moment("2027-02-27T00:00Z")})
    with Journal(journal_in(tmp_path / "j", terms=terms)) as base:
        assert lateness(base.latest()[0]) == (
            "30 points, 3 days late (due 2027-02-27 00:00 UTC); 2 days charged, 1 paid for by tokens: 24 count.")
