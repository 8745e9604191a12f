"""Writing into a starter what is not the learner's: as it was, or ours. What it replaces is kept in `.backups/`."""

import ast
import os
import tempfile
from datetime import datetime
from pathlib import Path

from labs.harness import given, regions
from labs.harness.catalog import Lab, LabError

FOLDER = ".backups"


def reset(lab: Lab, todo: int | None = None) -> Path | None:
    """Restore `starter.py`, or only the functions of one TODO; return the backup of what was there.

    None means that nothing differed, or that there was no file. Raises `LabError` if the TODO does
    not exist or its functions cannot be found; then the work is untouched.
    """
    fresh = given.starter_text(lab)
    if todo is not None and lab.starter.is_file():
        fresh = regions.put_back(_work(lab), fresh, _functions(lab, todo))
    return put(lab, fresh)


def write_solution(lab: Lab, todo: int | None = None) -> tuple[list[int], Path | None]:
    """Write our solution, or only ours for one TODO, into `starter.py`; return the TODOs, and the backup as `reset` does.

    Raises `LabError` if there is no solution, no such TODO, or no place for it; then the work is untouched.
    """
    source = _solution(lab)
    if todo is None:
        return list(regions.functions_of(source)), put(lab, _unmarked(source))
    names = _functions(lab, todo)
    if not lab.starter.is_file():
        raise LabError(f"There is no {lab.starter} to write it into: python -m labs reset {lab.id}")
    return [todo], put(lab, regions.put_back(_work(lab), _unmarked(source), names))


def solution_text(lab: Lab, todo: int | None = None) -> str:
    """Our solution, or the functions of one TODO, as they would stand in a starter."""
    source = _solution(lab)
    text = _unmarked(source)
    if todo is None:
        return text
    found, lines = regions.definitions(ast.parse(text)), text.splitlines()
    spans = [regions.span(found[name]) for name in _functions(lab, todo)]
    return "\n\n\n".join("\n".join(lines[first - 1 : last]) for first, last in spans) + "\n"


def put(lab: Lab, text: str) -> Path | None:
    """Make `text` the starter; return the backup of what it replaces, None if there was nothing else."""
    if not lab.starter.is_file():
        replace(lab.starter, text)
        return None
    if text == _work(lab):
        return None
    kept = back_up(lab.starter, lab.folder.parent / FOLDER)
    replace(lab.starter, text)
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


def replace(path: Path, text: str) -> None:
    """Write `text` to `path` in one move, with the rights it had."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.write(text)
    os.chmod(name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
    os.replace(name, path)


def _work(lab: Lab) -> str:
    return lab.starter.read_text(encoding="utf-8", errors="surrogateescape")


def _solution(lab: Lab) -> str:
    if not lab.solution.is_file():
        raise LabError(f"There is no {lab.solution}. It is not part of the student edition.")
    return lab.solution.read_text(encoding="utf-8")


def _functions(lab: Lab, todo: int) -> list[str]:
    functions = given.functions(lab)
    if todo not in functions:
        raise LabError(f"Lab {lab.id} has no TODO {todo}; it has {', '.join(map(str, functions))}.")
    return functions[todo]


def _unmarked(source: str) -> str:
    """A solution without the lines that mark its regions."""
    kept = [line for line in source.splitlines() if line.strip() not in (regions.BEGIN, regions.END)]
    return "\n".join(kept) + "\n"
