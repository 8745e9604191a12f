"""Writing the original text or our solution into a starter. The replaced file is kept in `.backups/`."""

import ast
from datetime import datetime
from pathlib import Path

from labs.harness import files, originals, regions, source
from labs.harness.catalog import Lab, LabError

FOLDER = ".backups"


def reset(lab: Lab, todo: int | None = None) -> Path | None:
    """Restore `starter.py`, or only the functions of one TODO; return the backup of the replaced file.

    None means that nothing differed, or that there was no file. Raises `LabError` if the TODO does
    not exist or its functions cannot be found, and then leaves the work untouched.
    """
    fresh = originals.starter_text(lab)
    if todo is None or not lab.starter.is_file():
        return put(lab, fresh.encode())
    return put(lab, _with_functions(lab, fresh, _functions(lab, todo)))


def write_solution(lab: Lab, todo: int | None = None) -> tuple[list[int], Path | None]:
    """Write our solution, or only ours for one TODO, into `starter.py`; return the TODOs, and the backup as `reset` does.

    Raises `LabError` if there is no solution, no such TODO, or no place for it, and then leaves the work untouched.
    """
    ours = _solution(lab)
    if todo is None:
        return list(regions.functions_of(ours)), put(lab, _unmarked(ours).encode())
    names = _functions(lab, todo)
    if not lab.starter.is_file():
        raise LabError(f"There is no {lab.starter} to write it into: python -m labs reset {lab.id}")
    return [todo], put(lab, _with_functions(lab, _unmarked(ours), names))


def solution_text(lab: Lab, todo: int | None = None) -> str:
    """Our solution, or the functions of one TODO, in the form they have in a starter."""
    ours = _solution(lab)
    text = _unmarked(ours)
    if todo is None:
        return text
    functions, lines = regions.definitions(ast.parse(text)), source.lines_of(text)
    spans = [regions.span(functions[name]) for name in _functions(lab, todo)]
    return "\n\n\n".join("\n".join(lines[first - 1 : last]) for first, last in spans) + "\n"


def put(lab: Lab, content: bytes) -> Path | None:
    """Make `content` the starter; return the backup of the replaced file, None if there was none or it was the same."""
    if not lab.starter.is_file():
        files.replace(lab.starter, content)
        return None
    if _same(lab.starter.read_bytes(), content):
        return None
    kept = back_up(lab.starter, lab.folder.parent / FOLDER)
    files.replace(lab.starter, content)
    return kept


def back_up(path: Path, folder: Path) -> Path:
    """Copy `path` into `folder` under the lab's name and the time; never over an earlier copy."""
    stem = f"{path.parent.name}-{path.stem}-{datetime.now():%Y%m%d-%H%M%S}"
    return files.write_new(folder, stem, path.suffix, path.read_bytes())


def _with_functions(lab: Lab, text: str, names: list[str]) -> bytes:
    """The learner's file, in its own encoding and line ends, with the functions `names` as in `text`."""
    work = source.read(lab.starter)
    try:
        return work.with_text(regions.put_back(work.text, text, names))
    except LabError as error:
        raise LabError(f"{lab.starter}: {error}") from None


def _same(content: bytes, other: bytes) -> bool:
    """Whether two files are equal except for line ends."""
    return content.replace(b"\r\n", b"\n") == other.replace(b"\r\n", b"\n")


def _solution(lab: Lab) -> str:
    if not lab.solution.is_file():
        raise LabError(f"There is no {lab.solution}. It is not part of the student edition.")
    return lab.solution.read_text(encoding="utf-8")


def _functions(lab: Lab, todo: int) -> list[str]:
    functions = originals.functions(lab)
    if todo not in functions:
        raise LabError(f"Lab {lab.id} has no TODO {todo}; it has {', '.join(map(str, functions))}.")
    return functions[todo]


def _unmarked(text: str) -> str:
    """A solution without the lines that mark its regions."""
    kept = [line for line in source.lines_of(text) if line.strip() not in (regions.BEGIN, regions.END)]
    return "\n".join(kept) + "\n"
