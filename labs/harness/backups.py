"""Putting a starter back as it was, with the work it replaces kept in `.backups/`."""

import os
import tempfile
from datetime import datetime
from pathlib import Path

from labs.harness import regions
from labs.harness.catalog import Lab, LabError


def reset(lab: Lab, todo: int | None = None) -> Path | None:
    """Restore `starter.py`, or only the functions of one TODO; return the backup of what was there.

    None means that nothing differed, or that there was no file. Raises `LabError` if the TODO does
    not exist or its functions cannot be found; then the work is untouched.
    """
    if not lab.solution.is_file():
        raise LabError(f"The starter is made from {lab.solution}, which is not there.")
    source = lab.solution.read_text(encoding="utf-8")
    fresh = regions.make_starter(source, lab.id)
    if not lab.starter.is_file():
        _replace(lab.starter, fresh)
        return None
    work = lab.starter.read_text(encoding="utf-8", errors="surrogateescape")
    if todo is not None:
        functions = regions.functions_of(source)
        if todo not in functions:
            raise LabError(f"Lab {lab.id} has no TODO {todo}; it has {', '.join(map(str, functions))}.")
        fresh = regions.put_back(work, fresh, functions[todo])
    if fresh == work:
        return None
    kept = back_up(lab.starter, lab.folder.parent / ".backups")
    _replace(lab.starter, fresh)
    return kept


def back_up(path: Path, folder: Path) -> Path:
    """Copy `path` into `folder` under the lab's name and the time; never over an earlier copy."""
    folder.mkdir(exist_ok=True)
    stem = f"{path.parent.name}-{path.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    content = path.read_bytes()
    for number in range(1000):
        kept = folder / f"{stem}{f'-{number}' if number else ''}{path.suffix}"
        try:
            with open(kept, "xb") as file:
                file.write(content)
            return kept
        except FileExistsError:
            continue
    raise LabError(f"{folder} already holds a thousand backups of this second.")


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.write(text)
    os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
    os.replace(name, path)
