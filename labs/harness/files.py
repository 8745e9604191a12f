"""Writing a learner's files: whole or not at all, with the permissions they had. Knows nothing of their contents."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from labs.harness.catalog import LabError


@contextmanager
def writing(what: str) -> Iterator[None]:
    """An `OSError` in the block becomes a `LabError` that says `what` could not be written, and why."""
    try:
        yield
    except OSError as error:
        raise LabError(f"{what} cannot be written: {error.strerror or error}. Nothing was changed.") from None


def replace(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one move. Raises `LabError` if that is impossible, and then leaves `path` as it was."""
    with writing(str(path)):
        target = path.resolve()  # a link stays a link
        staged = beside(target, content)
        _move(staged, target)


def replace_all(contents: Mapping[Path, bytes]) -> None:
    """Writes all of these files or none; missing folders are made.

    New and old contents are both written beside the files before the first file is replaced, so a full
    disk stops this before anything changes, and undoing needs no space. Raises `LabError`.
    """
    new: dict[Path, Path] = {}
    old: dict[Path, Path | None] = {}
    done: list[Path] = []
    try:
        with writing("The new version"):
            for path, content in contents.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                new[path] = beside(path, content)
                old[path] = beside(path, path.read_bytes()) if path.exists() else None
            for path, staged in new.items():
                os.replace(staged, path)
                done.append(path)
    except BaseException:
        for path in done:
            kept = old[path]
            path.unlink() if kept is None else os.replace(kept, path)
        raise
    finally:
        for left in (*new.values(), *old.values()):
            if left is not None:
                left.unlink(missing_ok=True)


def write_new(folder: Path, stem: str, suffix: str, content: bytes) -> Path:
    """Writes a new file in `folder`, which is made if missing; never over an existing file. Raises `LabError`."""
    with writing(f"A copy in {folder}"):
        folder.mkdir(exist_ok=True)
        for number in range(1000):
            kept = folder / f"{stem}{f'-{number}' if number else ''}{suffix}"
            try:
                with open(kept, "xb") as file:
                    _fill(file, content)
            except FileExistsError:
                continue
            return kept
    raise LabError(f"{folder} already holds a thousand copies of this second.")


def _fill(file: BinaryIO, content: bytes) -> None:
    """Write into a new file, or remove it."""
    try:
        file.write(content)
        file.flush()
    except BaseException:
        Path(file.name).unlink()
        raise


def beside(path: Path, content: bytes) -> Path:
    """A new file in the folder of `path`, with its rights. Raises `OSError`, and then leaves nothing behind."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut after the move may leave an empty file
        os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
    except BaseException:
        os.unlink(name)
        raise
    return Path(name)


def _move(staged: Path, target: Path) -> None:
    try:
        os.replace(staged, target)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
