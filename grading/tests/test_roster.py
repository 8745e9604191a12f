"""Who handed in what: every oddity of rosters and submissions is a line that names it, and nothing is lost."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from grading.cohort.roster import Cohort, read_cohort, read_roster, read_times
from grading.judge.intake import MOST_BYTES
from labs.harness.catalog import find_lab

LAB, OTHER = find_lab("06"), find_lab("07")
NAMES = {"06": "06", "07": "07"}
GOOD = "def answer():\n    return 42\n"


def put(path: Path, content: str | bytes = GOOD, when: int = 1_800_000_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.utime(path, (when, when))
    return path


def zipped(path: Path, when: int = 1_800_000_000, **members: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/").replace("_py", ".py"), content)
    os.utime(path, (when, when))
    return path


def said(cohort: Cohort, kind: str) -> list[str]:
    return [f"{line.student}: {line.text}" for line in cohort.lines if line.kind == kind]


def csv_file(path: Path, text: str | bytes) -> Path:
    return put(path, text)


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "submissions").mkdir()
    return tmp_path / "submissions"


def test_a_folder_an_archive_and_a_file_are_each_a_submission(home):
    put(home / "alice" / "starter.py")
    zipped(home / "bob.zip", starter_py=GOOD)
    put(home / "carol.py")
    with tarfile.open(home / "dave.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("work/starter.py")
        info.size = len(GOOD)
        archive.addfile(info, io.BytesIO(GOOD.encode()))
    cohort = read_cohort(home, [LAB])
    assert [one.submission.student for one in cohort.handed_in] == ["alice", "bob", "carol", "dave"]
    assert {one.submission.text() for one in cohort.handed_in} == {GOOD} and not cohort.lines


def test_several_labs_come_from_the_folders_of_their_names(home):
    put(home / "alice" / LAB.folder.name / "starter.py", "six = 6\n")
    put(home / "alice" / OTHER.folder.name / "starter.py", "seven = 7\n")
    put(home / "bob" / LAB.folder.name / "starter.py", "six = 6\n")
    put(home / "carol" / "starter.py")
    cohort = read_cohort(home, [LAB, OTHER])
    assert [(one.submission.student, one.attempt.lab, one.submission.text()) for one in cohort.handed_in] == [
        ("alice", "06", "six = 6\n"), ("alice", "07", "seven = 7\n"), ("bob", "06", "six = 6\n")]
    assert said(cohort, "no submission") == [
        f"bob: bob has nothing in a folder {OTHER.folder.name}; it has {LAB.folder.name}",
        *("carol: carol does not say which lab it is of, and several are graded; "
          f"its files belong into a folder {lab.folder.name}" for lab in (LAB, OTHER))]


def test_another_labs_starter_is_never_graded_for_this_one(home):
    put(home / "alice" / OTHER.folder.name / "starter.py")
    assert not read_cohort(home, [LAB]).handed_in


@pytest.mark.parametrize(("make", "wanted"), [
    (lambda home: put(home / "alice" / "notes.txt", "hello"), "there is no starter.py to grade"),
    (lambda home: (home / "alice").mkdir(), "alice is empty"),
    (lambda home: put(home / "alice" / "starter.py", "#" * (MOST_BYTES + 1)), "starter.py: it has 256 KiB; 256 KiB are allowed"),
    (lambda home: put(home / "alice" / "starter.py", b"\x7fELF\0\0"), "starter.py line 1 has a NUL byte: it is binary"),
    (lambda home: put(home / "alice" / "starter.py", b"caf\xe9 = 1"), "starter.py line 1 is not text in UTF-8 (byte 3)"),
    (lambda home: (home / "alice").mkdir() or os.symlink("/etc/passwd", home / "alice" / "starter.py"),
     "it is a symbolic link, and links are not followed"),
    (lambda home: os.symlink("/etc", home / "alice"), "alice cannot be read: it is a symbolic link"),
    (lambda home: zipped(home / "alice.zip", **{"..__..__starter_py": GOOD}),
     "its path in the archive, '../../starter.py', climbs out of it"),
    (lambda home: put(home / "alice.zip", b"PK\3\4 broken"),
     "alice.zip cannot be read: it is no zip, tar or tar.gz archive, or a damaged one"),
    (lambda home: put(home / "alice.zip", b""), "alice.zip cannot be read"),
])  # fmt: skip
@pytest.mark.parametrize("labs", [[LAB], [LAB, OTHER]], ids=["one lab", "two labs"])
def test_a_submission_that_cannot_be_used_is_there_with_a_line_that_says_why(home, make, wanted, labs):
    make(home)
    cohort = read_cohort(home, labs)
    lines = said(cohort, "submission") + (said(cohort, "no submission") if len(labs) > 1 else [])
    assert any(wanted in line for line in lines) or (len(labs) > 1 and lines), (
        f"expected a line with {wanted!r}, found {cohort.lines}")
    assert all(one.submission.text() is None for one in cohort.handed_in)
    assert len(labs) > 1 or [one.submission.student for one in cohort.handed_in] == ["alice"]


def test_two_submissions_of_one_student_are_both_attempts_and_the_later_counts(home):
    put(home / "alice" / "starter.py", "second = 2\n", when=1_800_000_500)
    zipped(home / "alice.zip", when=1_800_000_100, starter_py="first = 1\n")
    cohort = read_cohort(home, [LAB])
    assert [one.submission.text() for one in cohort.handed_in] == ["first = 1\n", "second = 2\n"]
    assert [one.attempt.submitted for one in cohort.handed_in] == ["2027-01-15T08:01:40Z", "2027-01-15T08:08:20Z"]
    assert said(cohort, "two submissions") == [
        "alice: alice.zip and alice are all alice's; all are graded, and alice, the latest, counts"]
    timed = read_cohort(home, [LAB], times={("alice", "06"): "2027-01-15T08:00:00Z"})
    assert [one.attempt.submitted for one in timed.handed_in] == ["2027-01-15T08:00:00Z"] * 2, (
        "the earlier is not later than the instructor's time")


def test_what_is_no_submission_is_said(home):
    put(home / "starter.py")
    put(home / "grades.xlsx")
    put(home / ".DS_Store")
    assert [line.partition(": ")[2].split()[0] for line in said(read_cohort(home, [LAB]), "not a submission")] == [
        "grades.xlsx", "starter.py", str(home)]
    with pytest.raises(ValueError, match="there is no folder of submissions"):
        read_cohort(home / "none", [LAB])


def test_roster_and_submissions_are_compared_both_ways(home):
    put(home / "alice" / "starter.py")
    put(home / "Bob" / "starter.py")
    roster = read_roster(csv_file(home.parent / "roster.csv", "student,name\nalice,A\nbob,B\ncarol,C\n"))
    cohort = read_cohort(home, [LAB], roster)
    assert said(cohort, "no submission") == ["bob: bob is in the roster and has handed in nothing; there is one called Bob",
                                             "carol: carol is in the roster and has handed in nothing"]
    assert said(cohort, "not in roster") == ["Bob: Bob has handed in and is not in the roster; it is graded nevertheless"]
    assert [one.submission.student for one in cohort.handed_in] == ["Bob", "alice"]


@pytest.mark.parametrize(("content", "students", "line"), [
    (b"student\n", [], "has no students; every submission is graded"),
    (b"student\nalice\nbob\nalice\n", ["alice", "bob"],
     "roster.csv line 4 has alice again, who stands in roster.csv line 2; the first row counts"),
    (b"\xef\xbb\xbfstudent,name\nalice,A\n", ["alice"], "begins with a byte-order mark"),
    (b"student,name\r\nalice,A\r\n", ["alice"], "lines that end in CRLF"),
    (b"student,name\n,Nobody\nalice,A\n", ["alice"], "roster.csv line 2 has no student"),
])  # fmt: skip
def test_an_odd_roster_is_read_and_the_oddity_said(tmp_path, content, students, line):
    roster = read_roster(csv_file(tmp_path / "roster.csv", content))
    assert list(roster.students) == students
    assert len(roster.lines) == 1 and line in roster.lines[0].text


def test_columns_are_kept_whatever_their_order_case_and_separator(tmp_path):
    roster = read_roster(csv_file(tmp_path / "roster.csv", 'Name;Student;Email\n"Doe; A";alice;a@example.org\n\n'))
    assert roster.students == {"alice": {"name": "Doe; A", "student": "alice", "email": "a@example.org"}} and not roster.lines


@pytest.mark.parametrize(("content", "said_of_it"), [
    (b"", "has no column student"), (b"id,name\n1,A\n", "has no column student; its first line is 'id,name'"),
    (b"student\n\xff\n", "not text in UTF-8"), (b'student\n"alice\n', "is no CSV"),
])  # fmt: skip
def test_a_roster_that_cannot_be_read_is_an_error_that_says_why(tmp_path, content, said_of_it):
    with pytest.raises(ValueError, match=said_of_it):
        read_roster(csv_file(tmp_path / "roster.csv", content))


def test_times_come_from_the_instructors_file_and_what_lacks_is_said(home):
    for student in ("alice", "bob"):
        put(home / student / "starter.py")
    times = read_times(csv_file(home.parent / "times.csv",
                                "student,lab,submitted\nalice,06,2027-03-01T12:00+01:00\ncarol,06,2027-03-01T12:00Z\n"), NAMES)
    cohort = read_cohort(home, [LAB], times=times)
    assert [(one.attempt.submitted, one.attempt.source) for one in cohort.handed_in] == [
        ("2027-03-01T11:00:00Z", "times"), ("2027-01-15T08:00:00Z", "mtime")]
    assert said(cohort, "time") == ["bob: the file of times has none for it; that of the files themselves was taken",
                                    "carol: the file of times has one for it, and nothing was handed in"]


@pytest.mark.parametrize(("row", "wanted"), [
    ("alice,12,2027-03-01T12:00Z", "times.csv line 2: there is no lab '12'"),
    ("alice,06,noon", "times.csv line 2: 'noon' is no time"), ("alice,06,2027-03-01T12:00", "has no time zone"),
    ("alice,06,2027-03-01T12:00Z\nalice,06,2027-03-02T12:00Z", "line 3: alice has a time for lab 06 already"),
    ("alice", "there is no lab ''"),
])  # fmt: skip
def test_a_row_of_times_that_cannot_be_used_is_an_error_naming_it(tmp_path, row, wanted):
    with pytest.raises(ValueError, match=wanted):
        read_times(csv_file(tmp_path / "times.csv", f"student,lab,submitted\n{row}\n"), NAMES)
