"""A platform's download of an assignment, as zip or folder: the owner, time and files of each part.

    canvas      lovelaceada_LATE_101_55501_starter.py          a file for each file; 101 is the student's number
    moodle      Ada Lovelace_7001_assignsubmission_file_/…     7001 is of this assignment; its grading worksheet knows whose
    gradescope  submission_123/…  submission_metadata.yml      the latter says who and when
    github      lab06-ada-l/…                                  a checkout for each, called after the login

Reads; writes only into a temporary folder, and runs nothing. A part without a certain owner on the roster belongs to nobody.
"""

import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from pathlib import Path
from unicodedata import normalize

from grading.cohort.late import moment, stamp
from grading.cohort.roster import Remark, Roster, table
from grading.judge.intake import ALLOWED, Submission, read_submission
from labs.harness.catalog import Lab

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
MOST_BYTES = 8 << 30
"""The largest size of a download, unpacked."""
PASSED_OVER = {".git", "__pycache__", ".venv", "__MACOSX"}
METADATA = "submission_metadata.yml"
_CANVAS = re.compile(r"(?P<prefix>[^_]*(?P<late>_LATE)?_(?P<number>\d+)_\d+_)(?P<name>.+)")
_MOODLE = re.compile(r"(?P<prefix>(?P<who>.*)_(?P<number>\d+)_assignsubmission_file_?)(?P<name>.*)")
_SLIP = re.compile(r"(?P<stem>starter|predictions)(?: ?\(\d+\)|-\d+)?(?P<ending>\.py|\.json)(?:\.txt)?", re.IGNORECASE)
"""The names that browsers, editors and Canvas give the two files: `starter-1.py`, `Starter (2).py.txt`."""


@dataclass
class Part:
    """One submission of a download.

    Attributes:
        prefix: the beginning of the platform's names for its files; the platform matches feedback by it.
        files: path inside the submission → file.
        submitted: when, ISO 8601 in UTC; None if the download does not say.
        is_late: whether the platform says so.
    """

    prefix: str
    files: dict[str, Path] = field(default_factory=dict)
    submitted: str | None = None
    is_late: bool = False


@dataclass(frozen=True)
class Collected:
    """One submission and its owner: a student's id, a group's name, or `ada+ben`."""

    owner: str
    part: Part
    submission: Submission


def collect(
    download: Path, form: str, lab: Lab, roster: Roster, worksheet: Path | None = None, zone: tzinfo | None = None
) -> tuple[list[Collected], list[Remark]]:
    """The submissions of a download, by owner, and a line for each part without an owner and each file read under another name.

    Args:
        form: one of `FORMS`.
        worksheet: Moodle's grading worksheet of this assignment.
        zone: of the worksheet's times.

    Raises:
        ValueError: if the download does not have this platform's form.
    """
    if form not in FORMS:
        raise ValueError(f"--from is {', '.join(FORMS)}, not {form!r}")
    with _unpacked(download) as folder:
        people = _People(roster, _worksheet(worksheet, zone) if worksheet else {})
        parts, lines = _unwrapped_contents(FORMS[form], folder, people, lab)
        made = []
        for owner, part in sorted(parts.items()):
            submission, remarks = _submission(owner, part, lab)
            made.append(Collected(owner, part, submission))
            lines += [Remark("collected", owner, lab.id, remark) for remark in remarks]
        return made, lines


@contextmanager
def _unpacked(download: Path) -> Iterator[Path]:
    """The downloaded folder, or the contents of the zip."""
    if not download.is_dir() and not zipfile.is_zipfile(download):
        raise ValueError(f"{download} is neither a folder nor a zip; give what the platform gave you")
    with tempfile.TemporaryDirectory(prefix="download-") as name:
        if download.is_dir():
            yield download
            return
        with zipfile.ZipFile(download) as archive:
            if (size := sum(info.file_size for info in archive.infolist())) > MOST_BYTES:
                raise ValueError(f"{download} has {size >> 30} GiB in it; {MOST_BYTES >> 30} GiB are allowed")
            archive.extractall(name)  # extractall follows no link and cannot climb out of the folder
        yield Path(name)


def _inside(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX")


# whose


@dataclass(frozen=True)
class _Person:
    """A row of Moodle's worksheet: a student's names there, and when they handed in."""

    names: tuple[str, ...]
    submitted: str | None


@dataclass(frozen=True)
class _People:
    """Who is who."""

    roster: Roster
    worksheet: Mapping[str, _Person]

    def by(self, value: str, *fields: str) -> str | None:
        """The one student with this value in one of these fields of the roster; None if no student or several have it."""
        wanted = _same(value)
        hits = [student for student, row in self.roster.students.items()
                if wanted and any(_same(row.get(field, "")) == wanted for field in fields)]
        return hits[0] if len(hits) == 1 else None


def _same(text: str) -> str:
    return normalize("NFC", text).strip().casefold().removeprefix("participant ")


def _worksheet(path: Path, zone: tzinfo | None) -> dict[str, _Person]:
    """Moodle's participant number → that person's row."""
    by_number = {}
    for where, row in table(path, ["Identifier"])[0]:
        names = tuple(filter(None, (row.get(field) for field in ("email address", "id number", "username", "full name"))))
        modified = row.get("last modified (submission)", "")
        try:
            when = stamp(moment(modified, zone)) if modified.strip("- ") else None
        except ValueError as error:
            raise ValueError(f"{where}: {error}; download the worksheet with Moodle in English, and give term.toml the time_zone "
                             "that Moodle has") from None
        by_number[_same(row["identifier"])] = _Person(names, when)
    return by_number


# the platforms

Contents = tuple[dict[str, Part], list[Remark]]


def _unwrapped_contents(read: Callable[[Path, _People, Lab], Contents], folder: Path, people: _People, lab: Lab) -> Contents:
    """The contents of a folder; if they are a single folder, the contents of that one."""
    inside = _inside(folder)
    contents: Contents = {}, []
    try:
        contents = read(folder, people, lab)
    except ValueError:
        if len(inside) != 1 or not inside[0].is_dir():
            raise
        return _unwrapped_contents(read, inside[0], people, lab)
    if not contents[0] and len(inside) == 1 and inside[0].is_dir():
        deeper = _unwrapped_contents(read, inside[0], people, lab)
        return deeper if deeper[0] else contents
    return contents


def _canvas(folder: Path, people: _People, lab: Lab) -> Contents:
    parts: dict[str, Part] = {}
    lines = []
    for path in _inside(folder):
        named = _CANVAS.fullmatch(path.name)
        owner = people.by(named["number"], "lms_id") if named else None
        if named is None or owner is None:
            why = f"the roster's lms_id has no {named['number']}" if named else "its name is not as Canvas makes them"
            lines.append(_not_collected(path.name, why, lab))
            continue
        part = parts.setdefault(owner, Part(named["prefix"]))
        part.files[named["name"]] = path
        part.is_late |= bool(named["late"])
    return parts, lines


def _moodle(folder: Path, people: _People, lab: Lab) -> Contents:
    parts: dict[str, Part] = {}
    lines = []
    for path in _inside(folder):
        named = _MOODLE.fullmatch(path.name)
        owner = _of_moodle(named, people) if named else None
        if named is None or owner is None:
            why = ("neither roster nor worksheet says for certain whose it is; --worksheet is the assignment's grading worksheet"
                   if named else "its name is not as Moodle makes them")
            lines.append(_not_collected(path.name, why, lab))
            continue
        person = people.worksheet.get(named["number"])
        prefix = named["prefix"] + "_" * (not named["prefix"].endswith("_"))
        part = parts.setdefault(owner, Part(prefix, submitted=person.submitted if person else None))
        part.files |= _below(path) if path.is_dir() else {named["name"]: path}
    return parts, lines


def _of_moodle(named: re.Match[str], people: _People) -> str | None:
    person = people.worksheet.get(named["number"])
    if person:
        return next((owner for name in person.names
                     if (owner := people.by(name, "student", "email", "sis_id", "login", "name"))), None)
    return people.by(named["number"], "lms_id") or people.by(named["who"], "name")


def _gradescope(folder: Path, people: _People, lab: Lab) -> Contents:
    import yaml  # transformers needs it

    try:
        metadata = yaml.safe_load((folder / METADATA).read_text(encoding="utf-8"))
        known = {name: (entry[":submitters"], entry.get(":created_at")) for name, entry in metadata.items()}
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"that is no export of Gradescope: {METADATA} cannot be used ({error})") from None
    parts: dict[str, Part] = {}
    lines = []
    for path in _inside(folder):
        if path.name == METADATA:
            continue
        submitters, created = known.get(path.name, ([], None))
        owners = [people.by(str(submitter.get(":email") or ""), "student", "email")
                  or people.by(str(submitter.get(":sid") or ""), "student", "sis_id", "lms_id")
                  or people.by(str(submitter.get(":name") or ""), "name") for submitter in submitters]
        if not owners or None in owners:
            lines.append(_not_collected(path.name, f"the roster lacks a student that {METADATA} names", lab))
            continue
        when = stamp(moment(created.isoformat() + ("" if created.tzinfo else "Z"))) if isinstance(created, datetime) else None
        files = _below(path) if path.is_dir() else {path.name: path}
        parts["+".join(sorted(filter(None, owners)))] = Part(f"{path.name}_", files, when)
    return parts, lines


def _github(folder: Path, people: _People, lab: Lab) -> Contents:
    parts: dict[str, Part] = {}
    lines = []
    for path in _inside(folder):
        name = _same(path.name)
        hits = {student: login for student, row in people.roster.students.items()
                if (login := _same(row.get("login") or student)) and (name == login or name.endswith(f"-{login}"))}
        longest = max(map(len, hits.values()), default=0)
        owners = [student for student, login in hits.items() if len(login) == longest]
        if not path.is_dir() or len(owners) != 1:
            lines.append(_not_collected(path.name, "it does not end in the login of one student of the roster", lab))
        else:
            parts[owners[0]] = Part(f"{path.name}_", _below(path))
    return parts, lines


def _not_collected(name: str, why: str, lab: Lab) -> Remark:
    return Remark("not collected", "", lab.id, f"{name}: {why}")


FORMS: dict[str, Callable[[Path, _People, Lab], Contents]] = {
    "canvas": _canvas, "moodle": _moodle, "gradescope": _gradescope, "github": _github}
"""Platforms, by name."""


# what is in it


def _below(folder: Path) -> dict[str, Path]:
    """Every file except those of git and Python; links do not count as files."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.is_symlink() and not PASSED_OVER & set(path.relative_to(folder).parts)}


def _submission(owner: str, part: Part, lab: Lab) -> tuple[Submission, list[str]]:
    """The graded files, and a sentence for each file that is used in spite of its name."""
    remarks = []
    with tempfile.TemporaryDirectory(prefix="collected-") as name:
        folder, archives = Path(name), []
        for inside, path in part.files.items():
            meant = _meant(Path(inside).name)
            target = folder / Path(inside).parent / meant
            if meant != Path(inside).name and not (set(part.files) & {target.relative_to(folder).as_posix()}):
                remarks.append(f"{inside} is taken as {meant}")
            elif meant != Path(inside).name:
                target = folder / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.name in ALLOWED or target.name.endswith(ARCHIVES):
                shutil.copyfile(path, target)
            else:
                target.touch()  # it is only named
            archives += [target] if target.name.endswith(ARCHIVES) else []
        alone = len(archives) == 1 and not any(Path(inside).name == "starter.py" for inside in _below(folder))
        return read_submission(archives[0] if alone else folder, owner, lab.folder.name), remarks


def _meant(name: str) -> str:
    """`starter.py` for `Starter (1).py.txt`; any other name as it is."""
    slip = _SLIP.fullmatch(name)
    meant = (slip["stem"] + slip["ending"]).lower() if slip else name
    return meant if meant in ALLOWED else name


def feedback_names(form: str, prefixes: Mapping[str, str], students: Sequence[str], roster: Roster) -> dict[str, str]:
    """Student → the name that a feedback file must have for the platform to give it to that student.

    Raises:
        ValueError: for a platform that accepts no feedback files.
    """
    if form not in ("canvas", "moodle"):
        raise ValueError(f"{form} takes no feedback files back; Canvas and Moodle do")
    return {student: prefix + "feedback.html" for owner, prefix in prefixes.items()
            for student in (roster.owners(owner) or [owner])[:1] if student in students}
