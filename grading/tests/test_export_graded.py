"""From submissions that were really graded, through the journal and the command line, to every format and back."""

import csv
import io
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
from typer.testing import CliRunner

from grading.authoring.mutants import read_mutants
from grading.cli import export
from grading.cohort.journal import Attempt, Journal
from grading.judge.grader import Settings, grader_of
from grading.judge.intake import Submission
from labs.harness.catalog import find_lab

pytestmark = pytest.mark.proof

LAB = find_lab("06")
WRONG = {"ben": ("rounds_down", 2), "cem": ("forgets_the_last_block", 1)}
WHEN = "2027-02-01T10:00:00Z"

app = typer.Typer(pretty_exceptions_enable=False)
export.register(app)


@pytest.fixture(scope="module")
def reports():
    texts = {one.name: one.text for one in read_mutants(LAB)}
    given = {"ada": LAB.solution.read_text(), **{who: texts[name] for who, (name, _) in WRONG.items()},
             "dora": LAB.starter.read_text()}
    with grader_of(LAB, Settings(predictions=False)) as grader, grader.sandbox() as shared:
        return {who: grader.grade(Submission(who, {"starter.py": text.encode()}), shared=shared) for who, text in given.items()}


@pytest.fixture(scope="module")
def journal(reports, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("journal") / "journal.sqlite"
    with Journal(path, create=True) as opened:
        opened.hand_in([Attempt(who, "06", report.digest, WHEN, "times") for who, report in reports.items()])
        for who, report in reports.items():
            opened.record(f"key of {who}", report)
    return path


def run(*words, status=0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, done.output
    return done.output


def test_the_reports_are_what_the_files_deserve(reports):
    lost = {who: [row.todo for row in report.todos() if row.earned < row.points] for who, report in reports.items()}
    assert lost == {"ada": [], "ben": [2], "cem": [1], "dora": [1, 2, 3, 4, 5, 6]}


def test_gradescope_gets_a_file_for_each_with_their_score(journal, reports, tmp_path):
    run("export", "gradescope", "--journal", journal, "--lab", "06", "--out", tmp_path / "out")
    for who, report in reports.items():
        facts = json.loads((tmp_path / "out" / f"lab06-{who}.json").read_text())
        *tests, _ = facts["tests"]
        assert facts["score"] == report.score == sum(test["score"] for test in tests)
        assert [test["status"] == "passed" for test in tests] == [check.passed for check in report.checks]
        said = json.dumps([tests, facts["output"]])
        hidden = [check for check in report.checks if check.hidden and not check.unwritten]
        assert hidden or who == "dora"
        assert not [check.name for check in hidden if check.message and check.message in said]
        for check in hidden:
            words = check.name.replace("_", " ")
            assert words in check.concept or words not in said, f"students are told that there is a check {check.name}"


def test_classroom50_gets_those_of_whom_it_knows_and_lists_the_others(journal, tmp_path):
    links = {"submission": "submit/1", "commit": "a", "release": "b", "review": "c"}
    places = tmp_path / "places.json"
    places.write_text(json.dumps({"classroom": "serving", "assignment": "lab06", "assignment_type": "individual",
                                  "submissions": {"ada": links, "ben": links}}))
    said = run("export", "classroom50", "--journal", journal, "--lab", "06", "--out", tmp_path / "out", "--places", places,
               status=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["lab06-ada.json", "lab06-ben.json"]
    assert "not written: cem:" in said and "not written: dora:" in said
    facts = json.loads((tmp_path / "out" / "lab06-ada.json").read_text())
    assert (facts["score"], facts["max-score"], facts["owner"], facts["datetime"]) == (85, 85, "ada", WHEN)
    with pytest.raises(ValueError, match="needs --places FILE"):
        run("export", "classroom50", "--journal", journal, "--out", tmp_path / "no")


def test_canvas_and_moodle_are_filled_in(journal, reports, tmp_path):
    (tmp_path / "canvas.csv").write_bytes(
        b"Student,ID,SIS Login ID,Section,Lab 06 (4712)\r\n    Points Possible,,,,85\r\n"
        b'"A, Ada",1,ada,x,\r\n"C, Cem",3,cem,x,\r\n')
    said = run("export", "canvas", "--journal", journal, "--lab", "06", "--out", tmp_path / "new.csv",
               "--fill", tmp_path / "canvas.csv", "--assignment", "Lab 06", status=1)
    rows = list(csv.reader(io.StringIO((tmp_path / "new.csv").read_bytes().decode())))
    assert [row[4] for row in rows] == ["Lab 06 (4712)", "85", "85", f"{reports['cem'].score:g}"]
    assert "not entered: ben:" in said and "not entered: dora:" in said
    (tmp_path / "moodle.csv").write_text("Identifier,Username,Grade,Last modified (grade)\n"
                                         + "".join(f"Participant {n},{who},,-\n" for n, who in enumerate(reports)))
    run("export", "moodle", "--journal", journal, "--out", tmp_path / "sheet.csv", "--fill", tmp_path / "moodle.csv")
    assert [row["Grade"] for row in csv.DictReader((tmp_path / "sheet.csv").open())] == [
        f"{report.score:g}" for report in reports.values()]
    run("export", "moodle", "--journal", journal, "--out", tmp_path / "import.csv", "--identity", "email")
    assert {row["Email address"]: float(row["Lab 06"]) for row in csv.DictReader((tmp_path / "import.csv").open())} == {
        who: report.score for who, report in reports.items()}
    with pytest.raises(ValueError, match="canvas needs --fill FILE"):
        run("export", "canvas", "--journal", journal, "--out", tmp_path / "x.csv")


def test_junit_and_csv_count_as_the_reports_do(journal, reports, tmp_path):
    run("export", "junit", "--journal", journal, "--out", tmp_path / "all.xml")
    suites = {suite.get("name"): suite for suite in ElementTree.parse(tmp_path / "all.xml").getroot()}
    for who, report in reports.items():
        suite = suites[f"lab06.{who}"]
        assert int(suite.get("failures")) == len(suite.findall("testcase/failure")) == sum(
            not check.passed for check in report.checks)
    run("export", "csv", "--journal", journal, "--out", tmp_path / "all.csv")
    assert {row["student"]: float(row["final_score"]) for row in csv.DictReader((tmp_path / "all.csv").open())} == {
        who: report.score for who, report in reports.items()}


def test_one_students_report_is_one_file_and_the_same_each_time(journal, reports, tmp_path):
    for form in ("markdown", "html", "gradescope"):
        for name in ("one", "two"):
            run("export", form, "--journal", journal, "--student", "dora", "--out", tmp_path / f"{form}.{name}")
        assert (tmp_path / f"{form}.one").read_bytes() == (tmp_path / f"{form}.two").read_bytes()
    page = (tmp_path / "html.one").read_text()
    lost = [check for check in reports["dora"].checks if not check.passed]
    assert all((check.name.replace("_", " ") in page) != check.hidden for check in lost) and any(check.hidden for check in lost)


def test_the_cohorts_page_names_clusters_and_verified_comments_are_written(journal, tmp_path):
    run("report", "cohort", "--journal", journal, "--lab", "06", "--out", tmp_path / "cohort.html",
        "--comments", tmp_path / "comments.csv")
    page = (tmp_path / "cohort.html").read_text()
    assert (all(who in page for who in ("ada", "ben", "cem", "dora"))
            and "Tokens are turned into blocks with the wrong rounding." in page)
    assert (tmp_path / "comments.csv").read_text().split() == ["student,todo,comment"], "nothing was verified"
    with pytest.raises(ValueError, match="no cluster|CLUSTER=student"):
        run("report", "cohort", "--journal", journal, "--lab", "06", "--out", tmp_path / "x.html", "--verified", "nonsense")


def test_similar_submissions_are_told(tmp_path):
    pytest.importorskip("copydetect")
    for who, text in (("ada", LAB.solution.read_text()), ("ben", LAB.solution.read_text().replace("num_tokens", "n")),
                      ("dora", LAB.starter.read_text())):
        (tmp_path / "all" / who).mkdir(parents=True)
        (tmp_path / "all" / who / "starter.py").write_text(text)
    run("similarity", tmp_path / "all", "--lab", "06", "--out", tmp_path / "pairs.csv")
    rows = list(csv.reader((tmp_path / "pairs.csv").open()))[1:]
    assert {frozenset((row[0], row[3])) for row in rows} == {frozenset(pair) for pair in (
        ("ada", "ben"), ("ada", "the solution"), ("ben", "the solution"))}


def test_what_is_asked_wrongly_is_said(journal, tmp_path):
    for words, told in ((("pdf", "--journal", journal), "no format 'pdf'; there are gradescope"),
                        (("csv", "--journal", tmp_path / "none"), "there is no journal"),
                        (("html", "--journal", journal, "--student", "zoe"), "no results of zoe")):
        with pytest.raises(ValueError, match=told):
            run("export", *words, "--out", tmp_path / "x")
