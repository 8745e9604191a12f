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


def remarks(cohort: Cohort, kind: str) -> list[str]:
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
    assert remarks(cohort, "no submission") == [
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
    lines = remarks(cohort, "submission") + (remarks(cohort, "no submission") if len(labs) > 1 else [])
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
    assert remarks(cohort, "two submissions") == [
        "alice: alice.zip and alice are all alice's; all are graded, and alice, the latest, counts"]
    timed = read_cohort(home, [LAB], times={("alice", "06"): "2027-01-15T08:00:00Z"})
    assert [one.attempt.submitted for one in timed.handed_in] == ["2027-01-15T08:00:00Z"] * 2, (
        "the earlier is not later than the instructor's time")


def test_what_is_no_submission_is_said(home):
    put(home / "starter.py")
    put(home / "grades.xlsx")
    put(home / ".DS_Store")
    assert [line.partition(": ")[2].split()[0] for line in remarks(read_cohort(home, [LAB]), "not a submission")] == [
        "grades.xlsx", "starter.py", str(home)]
    with pytest.raises(ValueError, match="there is no folder of submissions"):
        read_cohort(home / "none", [LAB])


def test_roster_and_submissions_are_compared_both_ways(home):
    put(home / "alice" / "starter.py")
    put(home / "Bob" / "starter.py")
    roster = read_roster(csv_file(home.parent / "roster.csv", "student,name\nalice,A\nbob,B\ncarol,C\n"))
    cohort = read_cohort(home, [LAB], roster)
    assert remarks(cohort, "no submission") == ["bob: bob is in the roster and has handed in nothing; there is one called Bob",
                                             "carol: carol is in the roster and has handed in nothing"]
    assert remarks(cohort, "not in roster") == ["Bob: Bob has handed in and is not in the roster; it is graded nevertheless"]
    assert [one.submission.student for one in cohort.handed_in] == ["Bob", "alice"]


@pytest.mark.parametrize(("content", "students", "line"), [
    (b"student\n", [], "has no students; every submission is graded"),
    (b"student\nalice\nbob\nalice\n", ["alice", "bob"],
     "roster.csv line 4 has alice again, who is also in roster.csv line 2; the first row counts"),
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


CANVAS = (
    "Student,ID,SIS User ID,SIS Login ID,Section,Lab 06 (4712)\n,,,,,Manual Posting\n    Points Possible,,,,,100\n"
    '"Müller, Jörg",101,s-1,mueller1,A,\n"Müller, Jörg",102,s-2,mueller2,B,\n"Student, Test",199,,4f2a,A,\n')
MOODLE = "First name;Last name;ID number;Email address;Groups\nÄnne;Müller;7;aenne@uni;T1\n"
GRADESCOPE = "First Name,Last Name,SID,Email,Role,Sections\nAda,Lovelace,30,Ada@Uni,Student,A\n"
CLASSROOM = '"identifier","github_username","github_id","name"\n"ada@uni","ada-l","42","Ada"\n'


@pytest.mark.parametrize(("content", "columns", "wanted"), [
    (CANVAS, {"student": "SIS Login ID", "name": "Student", "lms_id": "ID", "section": "Section"},
     {"mueller1": ("Müller, Jörg", "101", "A"), "mueller2": ("Müller, Jörg", "102", "B")}),
    (MOODLE, {"student": "Email address", "name": "Last name", "sis_id": "id number", "group": "Groups"},
     {"aenne@uni": ("Müller", None, None)}),
    (GRADESCOPE, {"student": "Email", "name": "Last Name", "lms_id": "SID", "section": "Sections"},
     {"Ada@Uni": ("Lovelace", "30", "A")}),
    (CLASSROOM, {"student": "identifier", "login": "github_username", "name": "name"}, {"ada@uni": ("Ada", None, None)}),
], ids=["canvas", "moodle", "gradescope", "github"])
@pytest.mark.parametrize("form", [
    lambda text: text.encode(), lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    lambda text: text.encode("utf-16"),
], ids=["utf-8", "windows", "utf-16"])
def test_rosters_are_read_as_platforms_export_them(tmp_path, content, columns, wanted, form):
    roster = read_roster(csv_file(tmp_path / "roster.csv", form(content)), columns)
    found = {student: (row.get("name"), row.get("lms_id"), row.get("section")) for student, row in roster.students.items()}
    assert found == wanted
    assert all(row[field] for row in roster.students.values() for field in columns)


def test_names_in_a_canvas_gradebook_are_not_taken_for_ids(tmp_path):
    with pytest.raises(ValueError, match="is a gradebook of Canvas, whose column Student has names, and two may have one name"):
        read_roster(csv_file(tmp_path / "roster.csv", CANVAS))


@pytest.mark.parametrize("content", [
    'student;"name, full"\nalice;"A, B"\n', "sep=;\r\nstudent;name, full\r\nalice;A, B\r\n",
    'student\t"name, full"\nalice\tA, B\n'])
def test_the_separator_is_what_stands_between_the_headings(tmp_path, content):
    roster = read_roster(csv_file(tmp_path / "roster.csv", content))
    assert roster.students == {"alice": {"student": "alice", "name, full": "A, B"}}


def test_a_name_that_macos_wrote_in_two_characters_is_the_rosters(home):
    put(home / "mu\u0308ller" / "starter.py")
    roster = read_roster(csv_file(home.parent / "roster.csv", "student\nm\u00fcller\n"))
    cohort = read_cohort(home, [LAB], roster, {("m\u00fcller", "06"): "2027-01-15T08:00:00Z"})
    one, = cohort.handed_in
    assert (one.submission.student, one.attempt.submitted, one.attempt.source) == ("m\u00fcller", "2027-01-15T08:00:00Z", "times")
    assert not cohort.lines


def test_an_address_in_other_letters_is_the_rosters_and_an_id_is_not(home):
    put(home / "Ada@Uni.edu" / "starter.py")
    put(home / "Ben" / "starter.py")
    roster = read_roster(csv_file(home.parent / "roster.csv", "student\nada@uni.edu\nben\n"))
    cohort = read_cohort(home, [LAB], roster, {("ADA@uni.edu", "06"): "2027-01-20T08:00:00Z"})
    assert [(one.submission.student, one.attempt.source) for one in cohort.handed_in] == [
        ("Ben", "mtime"), ("ada@uni.edu", "times")]


GROUPS = "student,group\nada,one\nben,one\ncem,two\ndee,\n"


@pytest.mark.parametrize("name", ["one", "ada", "ben", "ben+ada"])
def test_what_a_group_or_one_of_it_hands_in_is_each_members(home, name):
    put(home / name / "starter.py")
    put(home / "dee" / "starter.py", "alone = 1\n")
    roster = read_roster(csv_file(home.parent / "roster.csv", GROUPS))
    cohort = read_cohort(home, [LAB], roster, {(name, "06"): "2027-01-20T08:00:00Z", ("dee", "06"): "2027-01-21T08:00:00Z"})
    assert [(one.submission.student, one.attempt.submitted, one.submission.text()) for one in cohort.handed_in] == [
        ("ada", "2027-01-20T08:00:00Z", GOOD), ("ben", "2027-01-20T08:00:00Z", GOOD),
        ("dee", "2027-01-21T08:00:00Z", "alone = 1\n")]
    assert [line.text for line in cohort.lines] == ["cem is in the roster and has handed in nothing"]


def test_of_two_members_hand_ins_the_later_counts_for_both_by_the_instructors_times(home):
    put(home / "ada" / "starter.py", "late = 1\n", when=1_800_000_000)
    put(home / "ben" / "starter.py", "early = 1\n", when=1_800_000_900)
    roster = read_roster(csv_file(home.parent / "roster.csv", GROUPS))
    cohort = read_cohort(home, [LAB], roster, {("ada", "06"): "2027-01-22T08:00:00Z", ("ben", "06"): "2027-01-20T08:00:00Z"})
    assert [(one.submission.student, one.submission.text()) for one in cohort.handed_in] == [
        ("ada", "early = 1\n"), ("ada", "late = 1\n"), ("ben", "early = 1\n"), ("ben", "late = 1\n")]
    assert "ada: ben and ada are all ada's; all are graded, and ada, the latest, counts" in remarks(cohort, "two submissions")


def test_ada_plus_somebody_whom_the_roster_does_not_have_is_nobody_elses(home):
    put(home / "ada+zoe" / "starter.py")
    cohort = read_cohort(home, [LAB], read_roster(csv_file(home.parent / "roster.csv", GROUPS)))
    assert [one.submission.student for one in cohort.handed_in] == ["ada+zoe"]


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
    assert remarks(cohort, "time") == ["bob: the file of times has none for it; that of the files themselves was taken",
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
