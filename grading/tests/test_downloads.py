"""Platforms' downloads: each submission comes to its student or is named as nobody's, and feedback finds its way back."""

import json
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grading.cli.app import app
from grading.cohort.downloads import collect
from grading.cohort.journal import Attempt, Journal
from grading.cohort.roster import Roster, read_cohort, read_roster
from grading.judge.report import CheckResult, Report
from labs.harness.catalog import find_lab

LAB = find_lab("06")
GOOD = b"answer = 42\n"
ROSTER = (
    "student,name,email,login,sis_id,lms_id,group\n"
    "ada,Ada Lovelace,ada@uni.edu,ada-l,30,101,\nben,Ben Babbage,ben@uni.edu,l,31,102,\n"
    "cem,Müller,cem@uni.edu,cem_x,32,103,\ndee,Müller,dee@uni.edu,dee,33,104,\n")


@pytest.fixture
def roster(tmp_path) -> Roster:
    (tmp_path / "roster.csv").write_text(ROSTER, encoding="utf-8")
    return read_roster(tmp_path / "roster.csv")


def laid(folder: Path, **files: bytes) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def packed(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def in_zip(tmp_path: Path, files: dict[str, bytes]) -> bytes:
    return packed(tmp_path / "inner.zip", files).read_bytes()


def as_folder(tmp_path: Path, files: dict[str, bytes]) -> Path:
    return laid(tmp_path / "download", **files)


def as_zip(tmp_path: Path, files: dict[str, bytes]) -> Path:
    return packed(tmp_path / "submissions.zip", files)


def files_by_owner(found) -> dict[str, dict[str, bytes]]:
    return {one.owner: one.submission.files for one in found}


forms = pytest.mark.parametrize("form", [as_folder, as_zip], ids=["folder", "zip"])


@forms
def test_canvas_names_a_files_student_by_number_and_several_files_are_one_submission(tmp_path, roster, form):
    found, lines = collect(form(tmp_path, {
        "lovelaceada_101_55501_starter.py": GOOD, "lovelaceada_101_55502_predictions.json": b"{}",
        "babbageben_LATE_102_55503_starter-2.py": b"x = 1\n",
        "mller_103_55504_work.zip": in_zip(tmp_path, {"a/starter.py": GOOD}),
        "who_999_55505_starter.py": GOOD, "lovelaceada_101_text.html": b"hello"}), "canvas", LAB, roster)
    assert files_by_owner(found) == {"ada": {"starter.py": GOOD, "predictions.json": b"{}"}, "ben": {"starter.py": b"x = 1\n"},
                          "cem": {"starter.py": GOOD}}
    assert [(one.owner, one.part.is_late, one.part.prefix) for one in found] == [
        ("ada", False, "lovelaceada_101_55501_"), ("ben", True, "babbageben_LATE_102_55503_"), ("cem", False, "mller_103_55504_")]
    assert [f"{line.kind}: {line.text}" for line in lines] == [
        "not collected: lovelaceada_101_text.html: its name is not as Canvas makes them",
        "not collected: who_999_55505_starter.py: the roster's lms_id has no 999",
        "collected: starter-2.py is taken as starter.py"]


MOODLE = {"Ada Lovelace_7001_assignsubmission_file_/starter.py": GOOD,
          "Müller_7003_assignsubmission_file_/starter.py": b"three = 3\n",
          "Müller_7004_assignsubmission_file_/Starter (1).py.txt": b"four = 4\n"}
WORKSHEET = (
    'Identifier,"Full name","Email address",Status,Grade,"Last modified (submission)","Last modified (grade)"\n'
    'Participant 7001,"Ada Lovelace",ada@uni.edu,Submitted,,"Monday, 1 February 2027, 10:00 PM",-\n'
    "Participant 7003,Müller,cem@uni.edu,Submitted,,-,-\nParticipant 7004,Müller,dee@uni.edu,Submitted,,"
    '"Tuesday, 2 February 2027, 8:30 AM",-\n')


@forms
def test_moodles_submissions_are_whose_name_one_has_and_of_the_same_name_nobodys(tmp_path, roster, form):
    found, lines = collect(form(tmp_path, MOODLE), "moodle", LAB, roster)
    assert files_by_owner(found) == {"ada": {"starter.py": GOOD}} and found[0].part.submitted is None
    assert len(lines) == 2 and all("give" not in line.text and "--worksheet" in line.text for line in lines)


@forms
def test_moodles_worksheet_says_whose_each_is_and_when_it_came(tmp_path, roster, form):
    from zoneinfo import ZoneInfo

    (tmp_path / "worksheet.csv").write_text(WORKSHEET, encoding="utf-8")
    found, lines = collect(form(tmp_path, MOODLE), "moodle", LAB, roster, tmp_path / "worksheet.csv", ZoneInfo("Europe/Berlin"))
    texts = {owner: files["starter.py"] for owner, files in files_by_owner(found).items()}
    assert texts == {"ada": GOOD, "cem": b"three = 3\n", "dee": b"four = 4\n"}
    assert [one.part.submitted for one in found] == ["2027-02-01T21:00:00Z", None, "2027-02-02T07:30:00Z"]
    assert [line.text for line in lines] == ["Starter (1).py.txt is taken as starter.py"]


def test_a_worksheet_in_another_language_or_without_the_terms_zone_says_so(tmp_path, roster):
    german = WORKSHEET.replace("Monday, 1 February", "Montag, 1. Februar")
    for text, said in ((WORKSHEET, "has no time zone"), (german, "is no time")):
        (tmp_path / "worksheet.csv").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=f"worksheet.csv line 2: .*{said}.*Moodle in English, and give term.toml"):
            collect(laid(tmp_path / "d", **MOODLE), "moodle", LAB, roster, tmp_path / "worksheet.csv")


def test_moodles_files_without_folders_are_read_too(tmp_path, roster):
    found, _ = collect(as_folder(tmp_path, {"Ada Lovelace_7001_assignsubmission_file_starter.py": GOOD,
                                            "Ben Babbage_7002_assignsubmission_file_starter.py": GOOD}), "moodle", LAB, roster)
    assert files_by_owner(found) == {"ada": {"starter.py": GOOD}, "ben": {"starter.py": GOOD}}


METADATA = """---
submission_1:
  :submitters:
  - :name: Ada Lovelace
    :sid: '30'
    :email: Ada@Uni.edu
  :created_at: 2027-02-01 21:00:00.250000000 Z
  :score: 10.0
submission_2:
  :submitters:
  - :name: Nobody
    :sid: '31'
    :email: other@uni.edu
  - :name: Nobody
    :sid:
    :email: dee@uni.edu
  :created_at: 2027-02-02 08:00:00.000000000 -05:00
submission_3:
  :submitters:
  - :name: "Müller"
    :sid:
    :email:
  :created_at: 2027-02-02 08:00:00.000000000 Z
""".encode()


@forms
def test_gradescope_says_who_and_when_and_groups_are_named_by_all(tmp_path, roster, form):
    files = {f"assignment_4_export/submission_{number}/{LAB.folder.name}/starter.py": GOOD for number in (1, 2, 3)}
    files |= {"assignment_4_export/submission_metadata.yml": METADATA}
    found, lines = collect(form(tmp_path, files), "gradescope", LAB, roster)
    assert files_by_owner(found) == {"ada": {"starter.py": GOOD}, "ben+dee": {"starter.py": GOOD}}
    assert [one.part.submitted for one in found] == ["2027-02-01T21:00:00Z", "2027-02-02T13:00:00Z"]
    assert [line.text for line in lines] == ["submission_3: the roster lacks a student that submission_metadata.yml names"]
    with pytest.raises(ValueError, match="that is no export of Gradescope: submission_metadata.yml cannot be used"):
        collect(laid(tmp_path / "other", **{"a.py": GOOD, "b.py": GOOD}), "gradescope", LAB, roster)


@forms
def test_github_checkouts_end_in_the_login_and_the_longest_is_meant(tmp_path, roster, form):
    files = {"ada-l/labs/lab06_block_manager/starter.py": GOOD, "ada-l/labs/lab07_paged_attention/starter.py": b"no\n",
             "ada-l/.git/starter.py": b"no\n", "CEM_X/starter.py": b"three = 3\n", "zoe/starter.py": b"no\n"}
    files = {f"lab06-submissions/lab06-{name}": text for name, text in files.items()}
    found, lines = collect(form(tmp_path, files), "github", LAB, roster)
    assert files_by_owner(found) == {
        "ada": {"starter.py": GOOD}, "cem": {"starter.py": b"three = 3\n"}}, "not ben, whose login is l"
    assert [line.text for line in lines] == ["lab06-zoe: it does not end in the login of one student of the roster"]


@pytest.mark.parametrize(("platform", "name", "owner"), [
    ("github", "lab06-ada-l", "ada"), ("moodle", "Ada Lovelace_7001_assignsubmission_file_", "ada"),
    ("github", "lab06-submissions/lab06-ada-l", "ada"), ("moodle", "export/Ada Lovelace_7001_assignsubmission_file_", "ada")])
@pytest.mark.parametrize("inside", ["starter.py", "labs/lab06_block_manager/starter.py"])
def test_a_download_of_one_submission_is_read_like_one_of_many(tmp_path, roster, platform, name, owner, inside):
    found, lines = collect(as_zip(tmp_path, {f"{name}/{inside}": GOOD}), platform, LAB, roster)
    assert files_by_owner(found) == {owner: {"starter.py": GOOD}} and not lines


def test_what_is_no_download_is_refused(tmp_path, roster):
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    with pytest.raises(ValueError, match=r"x.rar is neither a folder nor a zip"):
        collect(tmp_path / "x.rar", "canvas", LAB, roster)
    with pytest.raises(ValueError, match="--from is canvas, moodle, gradescope, github, not 'blackboard'"):
        collect(tmp_path, "blackboard", LAB, roster)


# the command, what it writes, and the way back

TERM = """
journal = "j.sqlite"
time_zone = "Europe/Berlin"
submissions = { folder = "submissions", times = "times.csv" }
roster = { file = "roster.csv" }
labs = { 06 = {} }
"""


def run(*words: object, status: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, done.output
    return done.output


@pytest.fixture
def term(tmp_path, roster) -> Path:
    (tmp_path / "term.toml").write_text(TERM)
    return tmp_path / "term.toml"


def test_collect_lays_each_where_batch_reads_it_with_its_time(tmp_path, term):
    (tmp_path / "worksheet.csv").write_text(WORKSHEET, encoding="utf-8")
    (tmp_path / "times.csv").write_text("student,lab,submitted\nada,6,2027-01-01T00:00Z\nada,05,2027-01-01 00:00\n")
    words = ["collect", as_folder(tmp_path, MOODLE), "--lab", "06", "--from", "moodle", "--worksheet", tmp_path / "worksheet.csv",
             "--term-file", term]
    assert "3 submissions of lab 06 are in" in run(*words)
    assert (tmp_path / "times.csv").read_text() == (
        "student,lab,submitted\nada,05,2027-01-01 00:00\nada,06,2027-02-01T21:00:00Z\ndee,06,2027-02-02T07:30:00Z\n")
    # a later download replaces what is there
    (tmp_path / "download" / "Ada Lovelace_7001_assignsubmission_file_" / "starter.py").write_bytes(b"new = 1\n")
    (tmp_path / "download" / "Müller_7004_assignsubmission_file_" / "Starter (1).py.txt").rename(tmp_path / "gone")
    laid(tmp_path / "download", **{"Müller_7004_assignsubmission_file_/essay.docx": b"PK"})
    run(*words)
    cohort = read_cohort(tmp_path / "submissions", [LAB])
    assert [(one.submission.student, one.submission.text()) for one in cohort.handed_in] == [
        ("ada", "new = 1\n"), ("cem", "three = 3\n"), ("dee", None)]
    assert (tmp_path / "submissions" / "dee" / LAB.folder.name / "collected.txt").read_text().startswith(
        "there is no starter.py to grade\nnot taken: essay.docx")


def graded(tmp_path: Path, *students: str) -> None:
    with Journal(tmp_path / "j.sqlite", create=True) as base:
        for student in students:
            checks = (CheckResult(1, "a", 12.0, 6.0, False, "expected more"),)
            base.hand_in([Attempt(student, "06", "d", None)])
            base.record(student, Report(student, "06", "d", "none", "seed", {"checks": "v"}, checks))


@pytest.mark.parametrize(("form", "files", "wanted"), [
    ("canvas", {"lovelaceada_101_55501_starter.py": GOOD, "babbageben_LATE_102_55503_starter.py": GOOD},
     {"lovelaceada_101_55501_feedback.html": "ada", "babbageben_LATE_102_55503_feedback.html": "ben"}),
    ("moodle", {"Ada Lovelace_7001_assignsubmission_file_/starter.py": GOOD,
                "Ben Babbage_7002_assignsubmission_file_/starter.py": GOOD},
     {"Ada Lovelace_7001_assignsubmission_file_feedback.html": "ada",
      "Ben Babbage_7002_assignsubmission_file_feedback.html": "ben"}),
])
def test_feedback_goes_back_under_the_names_that_the_platform_knows(tmp_path, term, form, files, wanted):
    run("collect", as_folder(tmp_path, files), "--lab", "06", "--from", form, "--term-file", term)
    graded(tmp_path, "ada", "ben", "zoe")
    said = run("export", "feedback", "--lab", "06", "--out", tmp_path / "feedback.zip", "--term-file", term, status=1)
    assert "not written: zoe: the download had no submission by this student" in said
    with zipfile.ZipFile(tmp_path / "feedback.zip") as archive:
        pages = {name: archive.read(name).decode() for name in archive.namelist()}
    whose = {name: next(who for who in ("ada", "ben", "zoe") if f"Lab 06, {who}<" in page) for name, page in pages.items()}
    assert whose == wanted
    first = (tmp_path / "feedback.zip").read_bytes()
    run("export", "feedback", "--lab", "06", "--out", tmp_path / "feedback.zip", "--term-file", term, status=1)
    assert (tmp_path / "feedback.zip").read_bytes() == first
    kept = json.loads((tmp_path / "submissions" / ".downloads.json").read_text(encoding="utf-8"))
    assert kept["06"]["form"] == form


def test_feedback_without_a_download_says_what_to_do(tmp_path, term):
    graded(tmp_path, "ada")
    with pytest.raises(ValueError, match="feedback is of one lab whose submissions came by python -m grading collect"):
        run("export", "feedback", "--out", tmp_path / "x.zip", "--term-file", term)


def test_attempts_are_listed_and_compared_though_the_file_is_gone(tmp_path, term):
    texts = {"d1": b"one = 1\ntwo = 2\n", "d2": b"one = 1\ntwo = 3\n"}
    with Journal(tmp_path / "j.sqlite", create=True) as base:
        for day, (digest, text) in enumerate(texts.items(), 1):
            base.keep({digest: {"starter.py": text}})
            base.hand_in([Attempt("ada", "06", digest, f"2027-02-0{day}T00:00:00Z", "times")])
        base.record("k", Report("ada", "06", "d1", "none", "s", {"checks": "v"}, (CheckResult(1, "a", 12.0, 6.0, False, "x"),)))
    said = run("attempts", "ada", "--lab", "06", "--diff", "--term-file", term)
    assert said.splitlines() == [
        "1. 2027-02-01 01:00 CET: 6 of 12 points; d1", "2. 2027-02-02 01:00 CET: not graded yet, which counts; d2",
        "--- before/starter.py", "+++ after/starter.py", "@@ -1,2 +1,2 @@", " one = 1", "-two = 2", "+two = 3"]
    with pytest.raises(ValueError, match="has no hand-in of zoe in lab 06"):
        run("attempts", "zoe", "--lab", "06", "--term-file", term)
