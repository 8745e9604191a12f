"""From a hand-in to a submission: the allow-listed files, and a note for everything that is wrong.

Reads folders, single files, zip and tar archives; never unpacks one to disk, follows no link, runs
nothing. A note names each file that is left out; an unusable submission has notes and no
`starter.py`, so that it is reported like every other.
"""

import gzip
import io
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from grading.judge.report import digest_of
from labs.harness import source
from labs.harness.catalog import LabError
from labs.harness.source import MOST_BYTES

ALLOWED = ("starter.py", "predictions.json")
MOST_ENTRIES = 10_000
"""How many entries of one submission are looked at."""
MOST_COPIES = 50
"""How many files of an allowed name one submission may have; the one nearest the top is taken."""
MOST_UNPACKED = 128 << 20
"""The largest size of an archive, and of the contents of an archive that is compressed as a whole."""
SHOWN = 5
"""How many names of files left out a note lists."""
UNREADABLE = (
    OSError, zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError, RuntimeError, LookupError, ArithmeticError, MemoryError,
    struct.error, zlib.error)
"""The errors that a damaged, encrypted or strange archive raises."""
_LAB_FOLDER = re.compile(r"lab\d\d_\w+")


@dataclass(frozen=True)
class Submission:
    """A student's submission.

    Attributes:
        student: who handed it in.
        files: name → content, allow-listed names only.
        notes: what is wrong with the submission, one sentence each.
    """

    student: str
    files: dict[str, bytes]
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the graded files."""
        return digest_of(self.files.items())

    def text(self) -> str | None:
        """`starter.py`, read as practice reads it; None if there is none. Raises `LabError` if it is no text."""
        return source.decoded(self.files["starter.py"], "starter.py").text if "starter.py" in self.files else None


def read_submission(path: Path, student: str | None = None, lab_folder: str = "") -> Submission:
    """The submission at `path`: a folder, a `starter.py`, or an archive.

    Args:
        student: by default the name of the folder or archive.
        lab_folder: such as `lab06_block_manager`: in a submission of several labs only files in a folder
            of this name count, if there is one, and never those of another lab.
    """
    student = student or (path.parent.resolve().name if path.name in ALLOWED else _without_endings(path.resolve().name))
    student = _name(student)
    try:
        entries = _all_entries(path)
    except UNREADABLE as error:
        return Submission(student, {}, (f"{_name(path.name)} cannot be read: {_words(error)}",))
    if not entries:
        return Submission(student, {}, (f"{_name(path.name)} is empty",))
    of_lab = _of_lab(entries, lab_folder)
    if not of_lab:
        folders = ", ".join(sorted(set().union(*map(_labs_in, entries))))
        return Submission(student, {}, (f"there is nothing in a folder {lab_folder}, only in {folders}",))
    return _checked(student, of_lab)


def lab_folders(path: Path) -> set[str] | None:
    """The folders in a submission that have a lab's name; None if the submission is empty or cannot be read."""
    try:
        entries = _all_entries(path)
    except UNREADABLE:
        return None
    return set().union(*map(_labs_in, entries)) if entries else None


def _labs_in(entry: "_Entry") -> set[str]:
    return {part for part in entry.path.parts[:-1] if _LAB_FOLDER.fullmatch(part)}


def _of_lab(entries: list["_Entry"], lab_folder: str) -> list["_Entry"]:
    """The files in the lab's folder, if there is one; else the files that lie in no other lab's folder."""
    if any(lab_folder in entry.path.parts for entry in entries):
        return [entry for entry in entries if lab_folder in entry.path.parts]
    number = lab_folder[: len("lab06_")]
    return [entry for entry in entries if not number or all(name.startswith(number) for name in _labs_in(entry))]


@dataclass(frozen=True)
class _Entry:
    """A file: its path inside the submission, and its content or what is wrong with it."""

    path: PurePosixPath
    content: bytes = b""
    wrong: str = ""


def _checked(student: str, entries: list[_Entry]) -> Submission:
    files, notes, others = {}, [], []
    for entry in sorted(entries, key=lambda entry: (len(entry.path.parts), str(entry.path))):
        name = entry.path.name
        if name not in ALLOWED:
            others.append(str(entry.path))
        elif entry.wrong:
            notes.append(f"{entry.path}: {entry.wrong}")
        elif name in files:
            notes.append(f"{entry.path} is not taken: there is another {name} nearer the top")
        elif wrong := _wrong_with(entry.content, str(entry.path)):
            notes.append(wrong)
        else:
            files[name] = entry.content
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        notes.append(f"not taken: {', '.join(others[:SHOWN])}{more} (only {' and '.join(ALLOWED)} are)")
    if "starter.py" not in files:
        notes.insert(0, "there is no starter.py to grade")
    return Submission(student, files, tuple(notes))


def _wrong_with(content: bytes, name: str) -> str:
    """Why a file's bytes are no text; empty if they are. A `starter.py` is read as practice reads it."""
    try:
        if name.endswith(".py"):
            source.decoded(content, name)
        else:
            content.decode("utf-8-sig")
    except LabError as error:
        return str(error)
    except UnicodeDecodeError as error:
        return f"{name}: it is not text in UTF-8 (byte {error.start})"
    return f"{name}: it is binary, not text" if b"\0" in content else ""


def _all_entries(path: Path) -> list[_Entry]:
    entries, copies = [], 0
    for entry in _entries(path):
        copies += entry.path.name in ALLOWED
        if copies > MOST_COPIES:
            raise ValueError(f"it has more than {MOST_COPIES} files called {' or '.join(ALLOWED)}")
        entries.append(entry)
    return entries


def _entries(path: Path) -> Iterator[_Entry]:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        raise ValueError("it is a symbolic link")
    if stat.S_ISDIR(status.st_mode):
        yield from _in_folder(path)
    elif not stat.S_ISREG(status.st_mode):
        raise ValueError("it is neither a file nor a folder")
    elif status.st_size > MOST_UNPACKED:
        raise ValueError(f"it has {status.st_size >> 20} MiB; {MOST_UNPACKED >> 20} MiB are allowed")
    elif path.suffix == ".py":
        yield _of_file(path, PurePosixPath("starter.py"))
    elif zipfile.is_zipfile(path):
        yield from _in_zip(path)
    elif tar := _unpacked_tar(path):
        yield from _in_tar(tar)
    elif path.suffix in (".zip", ".tar", ".gz", ".tgz"):
        raise ValueError("it is no zip, tar or tar.gz archive, or a damaged one")
    else:
        yield _of_file(path, PurePosixPath(path.name))


def _in_folder(folder: Path) -> Iterator[_Entry]:
    seen = 0
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in (".git", "__pycache__", ".venv"))
        if (seen := seen + len(names) + len(folders)) > MOST_ENTRIES:
            raise ValueError(f"it has more than {MOST_ENTRIES} files and folders")
        for name in sorted(names):
            path = Path(where, name)
            yield _of_file(path, PurePosixPath(_name(path.relative_to(folder).as_posix())))


def _of_file(path: Path, inside: PurePosixPath) -> _Entry:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        return _Entry(inside, wrong="it is a symbolic link, and links are not followed")
    if not stat.S_ISREG(status.st_mode):
        return _Entry(inside, wrong="it is no file")
    if inside.name not in ALLOWED:
        return _Entry(inside)
    if status.st_size > MOST_BYTES:
        return _Entry(inside, wrong=_too_large(status.st_size))
    return _Entry(inside, path.read_bytes())


def _in_zip(path: Path) -> Iterator[_Entry]:
    if _bytes_of_the_list(path) > MOST_ENTRIES * 256:
        raise ValueError(f"it has more than {MOST_ENTRIES} files")
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist()[:MOST_ENTRIES]:
            if info.is_dir():
                continue
            link = stat.S_ISLNK(info.external_attr >> 16)
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{_name(info.filename)} is packed in a way that is not read here; zip it anew")
            yield _member(info.filename, link, info.file_size, lambda info=info: archive.open(info).read(MOST_BYTES + 1))


def _bytes_of_the_list(path: Path) -> int:
    """The length of its list of entries, as a zip archive gives it."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 16) - 22))
        last = file.read()
    at = last.rfind(b"PK\5\6")
    return int.from_bytes(last[at + 12 : at + 16], "little") if at >= 0 else 0


def _unpacked_tar(path: Path) -> bytes | None:
    """A tar archive's bytes; None if the file is no tar archive."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        start = file.read(512)
        if start[257:262] != b"ustar":
            return None
        content = start + file.read(MOST_UNPACKED)
    if len(content) > MOST_UNPACKED:
        raise ValueError(f"it has more than {MOST_UNPACKED >> 20} MiB in it")
    return content


def _in_tar(content: bytes) -> Iterator[_Entry]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
        for number, info in enumerate(archive):
            if number >= MOST_ENTRIES:
                return
            if not info.isdir():
                yield _member(info.name, not info.isreg(), info.size, partial(_content, archive, info))


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    return file.read(MOST_BYTES + 1) if file else b""


def _member(name: str, link: bool, size: int, read: Callable[..., bytes]) -> _Entry:
    """One member of an archive. A path that climbs out of the archive is a fault, whatever the file's name."""
    name = _name(name)
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


def _name(name: str) -> str:
    """A file's name; bytes in it that are not UTF-8 as `\\x80`."""
    return name.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="backslashreplace")


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
    """The same submission with one more note."""
    return replace(submission, notes=(*submission.notes, note))
