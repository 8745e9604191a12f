"""Who handed in what: a roster, a folder of submissions, and a line for everything that does not fit.

Reads; grades nothing and keeps nothing. The submissions' folder has one folder, archive or `.py` file
for each student, named by the student's id; in it, files of several labs lie in folders named like the
labs' own (`lab06_block_manager`).
"""

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from types import MappingProxyType
from unicodedata import normalize

from grading.cohort.journal import Attempt
from grading.cohort.late import moment, stamp
from grading.judge.intake import ALLOWED, Submission, lab_folders, read_submission
from labs.harness.catalog import Lab

FIELDS = ("student", "name", "email", "login", "sis_id", "lms_id", "section", "group")
"""Columns that a roster may have: the id that all code here uses; other names that platforms use for a student; and the
student's section and group."""
NOBODY = ("Points Possible", "Student, Test")
"""Rows of a Canvas gradebook that are not students."""
ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".py")


@dataclass(frozen=True)
class Remark:
    """One line of a run's report.

    Attributes:
        kind: a word or two, such as `no submission`, by which lines are sorted and counted.
        student: empty if the line is about no student.
        lab: its id; empty if the line is about no lab or about all.
        text: a sentence.
    """

    kind: str
    student: str
    lab: str
    text: str


@dataclass(frozen=True)
class Roster:
    """The students of a course: id → columns, in the file's order."""

    students: Mapping[str, dict[str, str]]
    lines: tuple[Remark, ...] = ()

    def called(self, name: str) -> str:
        """The id of the student of this name, else the name.

        macOS writes ü as two characters, and the case of an address does not matter: it is the same student.
        """
        name = normalize("NFC", name)
        same = [student for student in self.students if "@" in name and student.casefold() == name.casefold()]
        return name if name in self.students or len(same) != 1 else same[0]

    def owners(self, name: str) -> list[str]:
        """The owners of a hand-in of this name: a student and the rest of their group, a group, or the students in `ada+ben`.

        Empty for a name that the roster does not have.
        """
        name = self.called(name)
        members = [student for student, row in self.students.items() if row.get("group") == name]
        named = [name] if name in self.students else members or name.split("+")
        if not set(named) <= set(self.students):
            return []
        groups = {self.students[student].get("group") for student in named} - {None, ""}
        return [student for student, row in self.students.items() if student in named or row.get("group") in groups]


@dataclass(frozen=True)
class HandedIn:
    """One submission for one lab, and when it was handed in."""

    submission: Submission
    attempt: Attempt


@dataclass
class Cohort:
    """All hand-ins that were found, and the lines of the report."""

    handed_in: list[HandedIn] = field(default_factory=list)
    lines: list[Remark] = field(default_factory=list)

    def say(self, kind: str, text: str, student: str = "", lab: str = "") -> None:
        """Adds a line to the report."""
        self.lines.append(Remark(kind, student, lab, text))


def table(path: Path, needed: Sequence[str]) -> tuple[list[tuple[str, dict[str, str]]], list[str]]:
    """The rows of a CSV file, each with its place, `roster.csv line 3`; and a sentence for each oddity of the file.

    Names of columns are read in lower case. A byte-order mark, UTF-16, CRLF, a first line `sep=;`, and `;` or a tab for `,`
    do no harm.

    Raises:
        ValueError: if the file is not there or no text, or a needed column is missing.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 (byte {error.start}); save it as CSV UTF-8") from None
    separator, skipped = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader][skipped:]
    except csv.Error as error:
        raise ValueError(f"{path.name} line {reader.line_num} is no CSV: {error}") from None
    header = [name.lower() for name in lines[0][1]] if lines else []
    if missing := [name for name in needed if name.lower() not in header]:
        first = (text.splitlines() or [""])[skipped:][:1] or [""]
        raise ValueError(f"{path.name} has no column {', '.join(missing)}; its first line is {first[0].strip()!r}")
    rows = [(f"{path.name} line {number}", dict(zip(header, row, strict=False))) for number, row in lines[1:] if any(row)]
    return rows, _odd(path.name, data)


def _separator(text: str) -> tuple[str, int]:
    """The separator, and how many lines come before the heading: Excel's `sep=;` is one."""
    if match := re.match(r'"?sep=([,;\t])"?\r?\n', text):
        return match[1], 1
    outside = re.sub(r'"(?:[^"]|"")*"', "", text).partition("\n")[0]  # a comma in quotation marks is no separator
    return max(",;\t", key=outside.count), 0


def _odd(name: str, data: bytes) -> list[str]:
    remarks = [f"{name} begins with a byte-order mark, which was passed over"] if data.startswith(b"\xef\xbb\xbf") else []
    return remarks + ([f"{name} has lines that end in CRLF, which is read as a line's end"] if b"\r\n" in data else [])


def read_roster(path: Path, columns: Mapping[str, str] = MappingProxyType({})) -> Roster:
    """The roster in a CSV file.

    Args:
        columns: field of `FIELDS` → the column's heading; by default its own name. Only `student` is required.

    Raises:
        ValueError: as `table` does; for a Canvas gradebook whose display names are taken for ids.
    """
    headings = {"student": "student", **columns}
    rows, odd = table(path, list(headings.values()))
    is_canvas = bool(rows) and {"student", "id", "sis login id"} <= set(rows[0][1])
    if is_canvas and headings["student"].lower() == "student":
        raise ValueError(f"{path.name} is a gradebook of Canvas, whose column Student has names, and two may have one name; "
                         "name the column of the ids in term.toml, such as SIS Login ID")
    students: dict[str, dict[str, str]] = {}
    seen: dict[str, str] = {}
    lines = [Remark("roster", "", "", remark) for remark in odd]
    for where, row in rows:
        if is_canvas and (row["student"] in NOBODY or not any(row.get(name) for name in ("student", "id", "sis login id"))):
            continue
        row |= {name: row.get(heading.lower(), "") for name, heading in headings.items()}
        student = row["student"] = normalize("NFC", row["student"])
        if not student:
            lines.append(Remark("roster", "", "", f"{where} has no student"))
        elif student in students:
            lines.append(Remark("roster", student, "",
                              f"{where} has {student} again, who is also in {seen[student]}; the first row counts"))
        else:
            students[student], seen[student] = row, where
    if not students:
        lines.append(Remark("roster", "", "", f"{path.name} has no students; every submission is graded as one without a row"))
    return Roster(students, tuple(lines))


def read_times(path: Path, lab_of: Mapping[str, str], zone: tzinfo | None = None) -> dict[tuple[str, str], str]:
    """(student, lab) → when it was handed in, from a CSV file with student, lab, submitted.

    Args:
        zone: the zone of times that name none.

    Raises:
        ValueError: naming a bad row.
    """
    times: dict[tuple[str, str], str] = {}
    for where, row in table(path, ["student", "lab", "submitted"])[0]:
        if (lab := lab_of.get(row.get("lab", ""))) is None:
            raise ValueError(f"{where}: there is no lab {row.get('lab', '')!r}")
        if (row["student"], lab) in times:
            raise ValueError(f"{where}: {row['student']} has a time for lab {lab} already; leave the one of the latest hand-in")
        try:
            times[row["student"], lab] = stamp(moment(row.get("submitted", ""), zone))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return times


def read_cohort(
    folder: Path, labs: Sequence[Lab], roster: Roster | None = None, times: Mapping[tuple[str, str], str] | None = None
) -> Cohort:
    """Every submission in `folder`, for each of `labs`, by student and time, and a line for each oddity.

    Raises:
        ValueError: if there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder of submissions {folder}")
    cohort = Cohort(lines=list(roster.lines if roster else ()))
    if roster and times:
        times = {(roster.called(name), lab): when for (name, lab), when in times.items()}
    by_student = _by_student(folder, cohort, roster)
    for student, entries in by_student.items():
        for lab in labs:
            _hand_in(cohort, student, entries, lab, len(labs) > 1, times or {})
    if times is not None:
        _compare_times(cohort, times, {lab.id for lab in labs}, roster)
    if roster:
        _compare(cohort, roster, by_student)
    return cohort


@dataclass(frozen=True)
class _Entry:
    """An entry of the submissions' folder, and its owner's name: a student's or a group's."""

    owner: str
    path: Path


def _by_student(folder: Path, cohort: Cohort, roster: Roster | None) -> dict[str, list[_Entry]]:
    """Student → the entries named by their id or their group's, in the order of the names."""
    by_student: dict[str, list[_Entry]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), "")
        if path.name.startswith(".") or path.name == "__MACOSX":
            continue
        if path.name in ALLOWED:
            cohort.say("not a submission",
                       f"{path.name} lies in the folder of submissions itself; put it into a folder called by its student")
        elif ending or path.is_dir() or path.is_symlink():
            name = path.name if path.is_dir() else path.name.removesuffix(ending)
            for student in (roster.owners(name) if roster else []) or [name]:
                by_student[student].append(_Entry(roster.called(name) if roster else name, path))
        else:
            cohort.say("not a submission", f"{path.name} is no folder, archive or .py file")
    if not by_student:
        cohort.say("not a submission", f"{folder} has no submissions")
    return dict(sorted(by_student.items()))


def _hand_in(
    cohort: Cohort, student: str, entries: Sequence[_Entry], lab: Lab, several: bool, times: Mapping[tuple[str, str], str]
) -> None:
    """A student's hand-ins for one lab, the earliest first."""
    mine = _timed([entry for entry in entries if not _is_of_another_lab(entry.path, lab, several, student, cohort)], lab, times)
    if len(mine) > 1:
        names = " and ".join(path.name for path, _, _ in mine)
        cohort.say("two submissions", f"{names} are all {student}'s; all are graded, and {mine[-1][0].name}, the latest, counts",
                   student, lab.id)
    for path, when, source in mine:
        submission = read_submission(path, student, lab.folder.name)
        for note in submission.notes:
            cohort.say("submission", f"{path.name}: {note}", student, lab.id)
        cohort.handed_in.append(HandedIn(submission, Attempt(student, lab.id, submission.digest, when, source)))


def _timed(entries: Sequence[_Entry], lab: Lab, times: Mapping[tuple[str, str], str]) -> list[tuple[Path, str, str]]:
    """(path, when it was handed in, source of that time), the earliest first.

    Of several entries of one name the last gets the time in the instructor's file, and no other is later than that.
    """
    ordered = sorted(entries, key=lambda entry: (_changed(entry.path, lab), entry.path.name))
    last = {entry.owner: entry.path for entry in ordered}
    timed = []
    for entry in ordered:
        changed = stamp(datetime.fromtimestamp(_changed(entry.path, lab), UTC))
        noted = times.get((entry.owner, lab.id))
        is_last = entry.path is last[entry.owner]
        when = changed if noted is None else noted if is_last else min(changed, noted)
        timed.append((entry.path, when, "times" if noted and is_last else "mtime"))
    return sorted(timed, key=lambda row: row[1])


def _is_of_another_lab(path: Path, lab: Lab, several: bool, student: str, cohort: Cohort) -> bool:
    """Whether a submission has nothing for this lab; if so, the cohort gets a line."""
    folders = lab_folders(path)
    if folders is None or any(name.startswith(f"lab{lab.id}_") for name in folders) or not (folders or several):
        return False
    if folders:
        cohort.say("no submission", f"{path.name} has nothing in a folder {lab.folder.name}; it has {', '.join(sorted(folders))}",
                   student, lab.id)
    else:
        cohort.say("no submission",
                   f"{path.name} does not say which lab it is of, and several are graded; its files belong into a folder "
                   f"{lab.folder.name}", student, lab.id)
    return True


def _changed(path: Path, lab: Lab) -> float:
    """When the graded files of a submission were last changed, by the file system; for an archive, when the archive was."""
    if path.is_symlink() or not path.is_dir():
        return os.lstat(path).st_mtime
    inside = path / lab.folder.name
    times = [os.lstat(graded).st_mtime for graded in _graded(inside if inside.is_dir() else path)]
    return max(times, default=os.lstat(path).st_mtime)


def _graded(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        yield from (Path(where, name) for name in names if name in ALLOWED)


def _compare(cohort: Cohort, roster: Roster, by_student: Mapping[str, object]) -> None:
    """Reports rows without submissions, and submissions without a row."""
    for student in roster.students:
        if student not in by_student:
            near = next((other for other in by_student if other.casefold() == student.casefold()), None)
            hint = f"; there is one called {near}" if near else ""
            cohort.say("no submission", f"{student} is in the roster and has handed in nothing{hint}", student)
    for student in by_student:
        if student not in roster.students:
            cohort.say("not in roster", f"{student} has handed in and is not in the roster; it is graded nevertheless", student)


def _compare_times(cohort: Cohort, times: Mapping[tuple[str, str], str], labs: set[str], roster: Roster | None) -> None:
    """Reports hand-ins without a time, and times without a hand-in."""
    there = {(hand_in.attempt.student, hand_in.attempt.lab) for hand_in in cohort.handed_in}
    told = {(hand_in.attempt.student, hand_in.attempt.lab) for hand_in in cohort.handed_in if hand_in.attempt.source == "times"}
    for student, lab in sorted(there - told):
        cohort.say("time", "the file of times has none for it; that of the files themselves was taken", student, lab)
    for name, lab in sorted(set(times) - there):
        owners = roster.owners(name) if roster else []
        if lab in labs and not any((student, lab) in there for student in owners):
            cohort.say("time", "the file of times has one for it, and nothing was handed in", name, lab)


