"""From what was handed in to what is graded: the allow-listed files, and a named line for all that is wrong.

Reads folders, single files, zip and tar archives; never unpacks one to disk, follows no link, runs
nothing. What is not taken is said; a submission that cannot be used is one with notes and without
`starter.py`, so that it is reported like every other.
"""

import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from grading.model import digest_of

ALLOWED = ("starter.py", "predictions.json")
MOST_BYTES = 256 << 10
"""Of one file: ten times the longest solution."""
MOST_ENTRIES = 10_000
"""Looked at in one submission."""
SHOWN = 5
"""Names of files that were not taken."""
UNREADABLE = (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError, RuntimeError, NotImplementedError, zlib.error)
"""What a damaged, encrypted or strange archive raises."""
_LAB_FOLDER = re.compile(r"lab\d\d_\w+")


@dataclass(frozen=True)
class Submission:
    """What somebody handed in.

    Attributes:
        student: who.
        files: name → content, allow-listed names only.
        notes: what is wrong with it, a sentence each.
    """

    student: str
    files: dict[str, bytes]
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of what is graded."""
        return digest_of(self.files.items())

    def text(self) -> str | None:
        """`starter.py`; None if there is none that is text."""
        return self.files["starter.py"].decode("utf-8-sig") if "starter.py" in self.files else None


def read_submission(path: Path, student: str | None = None, lab_folder: str = "") -> Submission:
    """The submission at `path`: a folder, a `starter.py`, or an archive.

    Args:
        student: by default the name of the folder or archive.
        lab_folder: such as `lab06_block_manager`: in a submission of several labs only files in a folder
            of this name count.
    """
    student = student or (path.parent.resolve().name if path.name in ALLOWED else _without_endings(path.resolve().name))
    try:
        entries = list(_entries(path))
    except UNREADABLE as error:
        return Submission(student, {}, (f"{path.name} cannot be read: {_words(error)}",))
    if not entries:
        return Submission(student, {}, (f"{path.name} is empty",))
    if lab_folder and (folders := set().union(*map(_labs_in, entries))):
        entries = [entry for entry in entries if lab_folder in entry.path.parts]
        if not entries:
            return Submission(student, {}, (f"there is nothing in a folder {lab_folder}, only in {', '.join(sorted(folders))}",))
    return _checked(student, entries)


def lab_folders(path: Path) -> set[str] | None:
    """The folders in a submission that are called as labs' are; None if it is empty or cannot be read."""
    try:
        entries = list(_entries(path))
    except UNREADABLE:
        return None
    return set().union(*map(_labs_in, entries)) if entries else None


def _labs_in(entry: "_Entry") -> set[str]:
    return {part for part in entry.path.parts[:-1] if _LAB_FOLDER.fullmatch(part)}


@dataclass(frozen=True)
class _Entry:
    """A file that is there: its path inside the submission, and what is wrong with it or what is in it."""

    path: PurePosixPath
    content: bytes = b""
    wrong: str = ""


def _checked(student: str, entries: list[_Entry]) -> Submission:
    files, notes, others = {}, [], []
    for entry in sorted(entries, key=lambda one: (len(one.path.parts), str(one.path))):
        name = entry.path.name
        if name not in ALLOWED:
            others.append(str(entry.path))
        elif entry.wrong:
            notes.append(f"{entry.path}: {entry.wrong}")
        elif name in files:
            notes.append(f"{entry.path} is not taken: there is another {name} nearer the top")
        elif wrong := _wrong_with(entry.content):
            notes.append(f"{entry.path}: {wrong}")
        else:
            files[name] = entry.content
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        notes.append(f"not taken: {', '.join(others[:SHOWN])}{more} (only {' and '.join(ALLOWED)} are)")
    if "starter.py" not in files:
        notes.insert(0, "there is no starter.py to grade")
    return Submission(student, files, tuple(notes))


def _wrong_with(content: bytes) -> str:
    if b"\0" in content:
        return "it is binary, not text"
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return f"it is not text in UTF-8 (byte {error.start})"
    return ""


def _entries(path: Path) -> Iterator[_Entry]:
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        raise ValueError("it is a symbolic link")
    if stat.S_ISDIR(mode):
        yield from _in_folder(path)
    elif zipfile.is_zipfile(path):
        yield from _in_zip(path)
    elif tarfile.is_tarfile(path):
        yield from _in_tar(path)
    elif path.suffix in (".zip", ".tar", ".gz", ".tgz"):
        raise ValueError("it is no archive, or a damaged one")
    else:
        yield _of_file(path, PurePosixPath("starter.py" if path.suffix == ".py" else path.name))


def _in_folder(folder: Path) -> Iterator[_Entry]:
    seen = 0
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in (".git", "__pycache__", ".venv"))
        for name in sorted(names):
            if (seen := seen + 1) > MOST_ENTRIES:
                raise ValueError(f"it has more than {MOST_ENTRIES} files")
            path = Path(where, name)
            yield _of_file(path, PurePosixPath(path.relative_to(folder).as_posix()))


def _of_file(path: Path, inside: PurePosixPath) -> _Entry:
    facts = os.lstat(path)
    if stat.S_ISLNK(facts.st_mode):
        return _Entry(inside, wrong="it is a symbolic link, and links are not followed")
    if not stat.S_ISREG(facts.st_mode):
        return _Entry(inside, wrong="it is no file")
    if inside.name not in ALLOWED:
        return _Entry(inside)
    if facts.st_size > MOST_BYTES:
        return _Entry(inside, wrong=_too_large(facts.st_size))
    return _Entry(inside, path.read_bytes())


def _in_zip(path: Path) -> Iterator[_Entry]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist()[:MOST_ENTRIES]:
            if info.is_dir():
                continue
            link = stat.S_ISLNK(info.external_attr >> 16)
            yield _member(info.filename, link, info.file_size, lambda info=info: archive.open(info).read(MOST_BYTES + 1))


def _in_tar(path: Path) -> Iterator[_Entry]:
    with tarfile.open(path) as archive:
        for number, info in enumerate(archive):
            if number >= MOST_ENTRIES:
                return
            if not info.isdir():
                yield _member(info.name, not info.isreg(), info.size, lambda info=info: archive.extractfile(info).read(MOST_BYTES + 1))


def _member(name: str, link: bool, size: int, read) -> _Entry:
    """One member of an archive. A path that climbs is a fault of its own, whatever it is called."""
    inside = PurePosixPath(name.replace("\\", "/"))
    if inside.is_absolute() or ".." in inside.parts:
        return _Entry(PurePosixPath(inside.name), wrong=f"its path in the archive, {name!r}, climbs out of it")
    if inside.name not in ALLOWED:
        return _Entry(inside)
    if link:
        return _Entry(inside, wrong="it is a link, and links are not followed")
    content = read() if size <= MOST_BYTES else b""
    if size > MOST_BYTES or len(content) > MOST_BYTES:
        return _Entry(inside, wrong=_too_large(size))
    return _Entry(inside, content)


def _too_large(size: int) -> str:
    return f"it has {size >> 10} KiB; {MOST_BYTES >> 10} KiB are allowed"


def _words(error: Exception) -> str:
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__


def _without_endings(name: str) -> str:
    for ending in (".zip", ".tar.gz", ".tgz", ".tar", ".py"):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return name


def with_note(submission: Submission, note: str) -> Submission:
    """The same submission with one more thing to be said of it."""
    return replace(submission, notes=(*submission.notes, note))
