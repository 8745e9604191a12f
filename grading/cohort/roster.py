"""Who handed in what: a roster, a folder of submissions, and a named line for all that does not fit.

Reads; grades nothing and keeps nothing. The submissions' folder has one folder, archive or `.py` file
for each student, called by the student's id; in it files of several labs lie in folders called as the
labs' are (`lab06_block_manager`).
"""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from grading.cohort.journal import Attempt
from grading.cohort.late import moment, stamp
from grading.judge.intake import ALLOWED, Submission, lab_folders, read_submission
from labs.harness.catalog import Lab

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".py")


@dataclass(frozen=True)
class Line:
    """Something to be known about a run.

    Attributes:
        kind: in a word or two, `no submission`, by which lines are sorted and counted.
        student: empty if it is about none.
        lab: its id; empty if it is about none or all.
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
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True)
class HandedIn:
    """One submission for one lab, and when it was handed in."""

    submission: Submission
    attempt: Attempt


@dataclass
class Cohort:
    """All that was found."""

    handed_in: list[HandedIn] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def say(self, kind: str, text: str, student: str = "", lab: str = "") -> None:
        """Adds a line to the report."""
        self.lines.append(Line(kind, student, lab, text))


def table(path: Path, needed: Sequence[str]) -> tuple[list[tuple[str, dict[str, str]]], list[str]]:
    """The rows of a CSV file, each with where it stands, `roster.csv line 3`; and what is odd about the file.

    Names of columns are read in lower case. A byte-order mark, CRLF and `;` for `,` do no harm.

    Raises:
        ValueError: if the file is not there or no text, or a needed column is missing.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 (byte {error.start}); save it as CSV UTF-8") from None
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=";" if ";" in first and "," not in first else ",", strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path.name} line {reader.line_num} is no CSV: {error}") from None
    header = [name.lower() for name in lines[0][1]] if lines else []
    if missing := [name for name in needed if name not in header]:
        raise ValueError(f"{path.name} has no column {', '.join(missing)}; its first line is {first.strip()!r}")
    rows = [(f"{path.name} line {number}", dict(zip(header, row, strict=False))) for number, row in lines[1:] if any(row)]
    return rows, _odd(path.name, data)


def _odd(name: str, data: bytes) -> list[str]:
    said = [f"{name} begins with a byte-order mark, which was passed over"] if data.startswith(b"\xef\xbb\xbf") else []
    return said + ([f"{name} has lines that end in CRLF, which is read as a line's end"] if b"\r\n" in data else [])


def read_roster(path: Path) -> Roster:
    """The roster in a CSV file. Only the column `student` is needed. Raises `ValueError` as `table` does."""
    rows, odd = table(path, ["student"])
    students: dict[str, dict[str, str]] = {}
    seen: dict[str, str] = {}
    lines = [Line("roster", "", "", said) for said in odd]
    for where, row in rows:
        student = row["student"]
        if not student:
            lines.append(Line("roster", "", "", f"{where} has no student"))
        elif student in students:
            lines.append(Line("roster", student, "",
                              f"{where} has {student} again, who stands in {seen[student]}; the first row counts"))
        else:
            students[student], seen[student] = row, where
    if not students:
        lines.append(Line("roster", "", "", f"{path.name} has no students; every submission is graded as one without a row"))
    return Roster(students, tuple(lines))


def read_times(path: Path, lab_of: Mapping[str, str]) -> dict[tuple[str, str], str]:
    """(student, lab) → when it was handed in, from a CSV file with student, lab, submitted.

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
            times[row["student"], lab] = stamp(moment(row.get("submitted", "")))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return times


def read_cohort(
    folder: Path, labs: Sequence[Lab], roster: Roster | None = None, times: Mapping[tuple[str, str], str] | None = None
) -> Cohort:
    """Every submission in `folder`, for each of `labs`, by student and time, and a line for all that is odd.

    Raises:
        ValueError: if there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder of submissions {folder}")
    cohort = Cohort(lines=list(roster.lines if roster else ()))
    found = _by_student(folder, cohort)
    for student, paths in found.items():
        for lab in labs:
            _hand_in(cohort, student, paths, lab, len(labs) > 1, times or {})
    if times is not None:
        _compare_times(cohort, times, {lab.id for lab in labs})
    if roster:
        _compare(cohort, roster, found)
    return cohort


def _by_student(folder: Path, cohort: Cohort) -> dict[str, list[Path]]:
    """Student → what is called by their id, in the order of the names."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), "")
        if path.name.startswith(".") or path.name == "__MACOSX":
            continue
        if path.name in ALLOWED:
            cohort.say("not a submission",
                       f"{path.name} lies in the folder of submissions itself; put it into a folder called by its student")
        elif ending or path.is_dir() or path.is_symlink():
            found[path.name if path.is_dir() else path.name.removesuffix(ending)].append(path)
        else:
            cohort.say("not a submission", f"{path.name} is no folder, archive or .py file")
    if not found:
        cohort.say("not a submission", f"{folder} has no submissions")
    return dict(sorted(found.items()))


def _hand_in(
    cohort: Cohort, student: str, paths: Sequence[Path], lab: Lab, several: bool, times: Mapping[tuple[str, str], str]
) -> None:
    """What a student handed in for one lab, the earliest first; the last has the time that the instructor's file says."""
    mine = sorted((path for path in paths if not _is_of_others(path, lab, several, student, cohort)),
                  key=lambda path: (_changed(path, lab), path.name))
    if len(mine) > 1:
        names = " and ".join(path.name for path in mine)
        cohort.say("two submissions", f"{names} are all {student}'s; all are graded, and {mine[-1].name}, the latest, counts",
                   student, lab.id)
    said = times.get((student, lab.id))
    for path in mine:
        submission = read_submission(path, student, lab.folder.name)
        for note in submission.notes:
            cohort.say("submission", f"{path.name}: {note}", student, lab.id)
        changed = stamp(datetime.fromtimestamp(_changed(path, lab), UTC))
        last = path is mine[-1]
        when = changed if said is None else said if last else min(changed, said)
        attempt = Attempt(student, lab.id, submission.digest, when, "times" if said and last else "mtime")
        cohort.handed_in.append(HandedIn(submission, attempt))


def _is_of_others(path: Path, lab: Lab, several: bool, student: str, cohort: Cohort) -> bool:
    """Whether a submission has nothing for this lab, which is said."""
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
    """When the graded files of a submission were last changed, by the file system; of an archive, when itself was."""
    if path.is_symlink() or not path.is_dir():
        return os.lstat(path).st_mtime
    inside = path / lab.folder.name
    times = [os.lstat(one).st_mtime for one in _graded(inside if inside.is_dir() else path)]
    return max(times, default=os.lstat(path).st_mtime)


def _graded(folder: Path) -> Iterator[Path]:
    for where, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        yield from (Path(where, name) for name in names if name in ALLOWED)


def _compare(cohort: Cohort, roster: Roster, found: Mapping[str, object]) -> None:
    """Rows without submissions, and submissions without a row."""
    for student in roster.students:
        if student not in found:
            near = next((other for other in found if other.casefold() == student.casefold()), None)
            hint = f"; there is one called {near}" if near else ""
            cohort.say("no submission", f"{student} is in the roster and has handed in nothing{hint}", student)
    for student in found:
        if student not in roster.students:
            cohort.say("not in roster", f"{student} has handed in and is not in the roster; it is graded nevertheless", student)


def _compare_times(cohort: Cohort, times: Mapping[tuple[str, str], str], labs: set[str]) -> None:
    """Hand-ins without a time, and times without one."""
    there = {(one.attempt.student, one.attempt.lab) for one in cohort.handed_in}
    for student, lab in sorted(there - set(times)):
        cohort.say("time", "the file of times has none for it; that of the files themselves was taken", student, lab)
    for student, lab in sorted(set(times) - there):
        if lab in labs:
            cohort.say("time", "the file of times has one for it, and nothing was handed in", student, lab)


