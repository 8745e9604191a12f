"""What a learner has done so far, in one small file beside the labs: `.progress.json`.

It may be deleted at any time: it is never needed, only shown. Unreadable parts are left out,
and reported. Writing reads the file again, makes the changes there and replaces it in one move: an
interrupted run leaves the old file whole, and two runs that end together both count.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any

from labs.harness import files
from labs.harness.catalog import LabError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

FILE = ".progress.json"
DAMAGED = ".progress.damaged.json"
LOCK = ".progress.lock"


class Progress:
    """The file's contents; change them through the methods, then `save()`."""

    def __init__(self, home: Path):
        self.path = home / FILE
        self._changes: list[Callable[[dict], None]] = []
        self._content, self.complaint = _read(self.path)
        """The content, and a sentence if the file could not be read, or only in part; else None."""

    @property
    def name(self) -> str | None:
        """The word that seeds this learner's numbers."""
        return self._content.get("name")

    @name.setter
    def name(self, name: str) -> None:
        self._change(lambda content: content.update(name=name))

    def todos(self, lab_id: str) -> dict[int, dict]:
        """TODO -> {"points", "of", "state"} of its last run."""
        return {int(todo): row for todo, row in self._lab(lab_id, "todos", {}).items()}

    def record_todo(self, lab_id: str, todo: int, *, points: float, of: float, state: str) -> None:
        """Notes the result of the last run of a TODO's tests, in place of the earlier one."""
        row = {"points": points, "of": of, "state": state}
        self._change(lambda content: _part(content, lab_id, "todos", {}).update({str(todo): row}))

    def forget_todos(self, lab_id: str, todos: Iterable[int]) -> None:
        """Forgets results and solutions of these TODOs, whose functions are unwritten again."""

        def change(content: dict) -> None:
            for todo in todos:
                _part(content, lab_id, "todos", {}).pop(str(todo), None)
            ours = _part(content, lab_id, "solutions", [])
            ours[:] = [todo for todo in ours if todo not in todos]

        todos = set(todos)
        self._change(change)

    def hints_used(self, lab_id: str, todo: int) -> int:
        """How many of the TODO's hints were shown, from the first."""
        return self._lab(lab_id, "hints", {}).get(str(todo), 0)

    def record_hint(self, lab_id: str, todo: int, used: int) -> None:
        """Notes that the first `used` hints were shown; a smaller number than before changes nothing."""

        def change(content: dict) -> None:
            hints = _part(content, lab_id, "hints", {})
            hints[str(todo)] = max(used, hints.get(str(todo), 0))

        self._change(change)

    def diagnoses_used(self, lab_id: str, todo: int) -> int:
        """How often a diagnosis of the TODO was shown."""
        return self._lab(lab_id, "diagnoses", {}).get(str(todo), 0)

    def record_diagnosis(self, lab_id: str, todo: int) -> None:
        """Notes that one more diagnosis of the TODO was shown."""

        def change(content: dict) -> None:
            diagnoses = _part(content, lab_id, "diagnoses", {})
            diagnoses[str(todo)] = diagnoses.get(str(todo), 0) + 1

        self._change(change)

    def solutions_used(self, lab_id: str) -> list[int]:
        """The TODOs into which our solution was written."""
        return self._lab(lab_id, "solutions", [])

    def record_solution(self, lab_id: str, todos: Iterable[int]) -> None:
        """Notes that our solution was written into these TODOs."""

        def change(content: dict) -> None:
            ours = _part(content, lab_id, "solutions", [])
            ours[:] = sorted({*ours, *todos})

        todos = list(todos)
        self._change(change)

    def predictions(self, lab_id: str) -> list[dict]:
        """One entry per attempt: {"seed", "right", "of"}."""
        return self._lab(lab_id, "predictions", [])

    def record_predictions(self, lab_id: str, *, seed: int, right: int, of: int) -> None:
        """Notes one more attempt at the questions drawn from `seed`: `right` answers of `of`."""
        attempt = {"seed": seed, "right": right, "of": of}
        self._change(lambda content: _part(content, lab_id, "predictions", []).append(attempt))

    def save(self) -> None:
        """Write the file, whole or not at all. If that is impossible, a line on stderr says so, and work goes on."""
        try:
            with files.writing(str(self.path)), _locked(self.path.parent / LOCK):
                content, complaint = _read(self.path)
                if complaint:
                    (self.path.parent / DAMAGED).write_bytes(self.path.read_bytes())
                for change in self._changes:
                    change(content)
                files.replace(self.path, json.dumps(content, indent=1, sort_keys=True).encode())
        except LabError as error:
            print(f"labs: {str(error).removesuffix(' Nothing was changed.')} This run is not remembered.", file=sys.stderr)
            return
        self._content, self._changes = content, []

    def _change(self, change: Callable[[dict], None]) -> None:
        """Make a change now, and once more on what the file then holds, when it is saved."""
        change(self._content)
        self._changes.append(change)

    def _lab(self, lab_id: str, key: str, default: dict | list) -> Any:
        return self._content.get("labs", {}).get(lab_id, {}).get(key, default)


def _part(content: dict, lab_id: str, key: str, empty: dict | list) -> Any:
    """The entry of a lab under `key` in `content`, made if missing."""
    return content.setdefault("labs", {}).setdefault(lab_id, {}).setdefault(key, empty)


def _read(path: Path) -> tuple[dict, str | None]:
    """The valid entries of a file, and a sentence if some are invalid."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}, None
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    sound = _sound(content) if isinstance(content, dict) else {}
    if sound == content:
        return sound, None
    how = "cannot be read in full; the rest" if sound else "cannot be read; it"
    return sound, f"{path} {how} is treated as missing. With the next result the file is kept as {DAMAGED}."


def _sound(content: dict) -> dict:
    """`content` without entries of a shape that this module never writes; keys of other versions stay."""
    sound = {key: value for key, value in content.items() if key not in ("name", "labs")}
    if isinstance(content.get("name"), str):
        sound["name"] = content["name"]
    labs = content.get("labs", {})
    if "labs" in content and isinstance(labs, dict):
        sound["labs"] = {
            lab_id: {key: _SHAPES.get(key, lambda value: value)(value) for key, value in lab.items() if _kind(key, value)}
            for lab_id, lab in labs.items()
            if isinstance(lab, dict)
        }
    return sound


def _kind(key: str, value: object) -> bool:
    return isinstance(value, _KINDS.get(key, object))


def _rows(todos: dict) -> dict:
    return {todo: row for todo, row in todos.items() if todo.isdigit() and _has(row, points=float, of=float, state=str)}


def _counts(counts: dict) -> dict:
    return {todo: count for todo, count in counts.items() if todo.isdigit() and isinstance(count, int)}


def _attempts(attempts: list) -> list:
    return [attempt for attempt in attempts if _has(attempt, seed=int, right=int, of=int)]


def _numbers(numbers: list) -> list:
    return [number for number in numbers if isinstance(number, int)]


def _has(row: object, **wanted: type) -> bool:
    """Whether `row` is a dictionary with these keys and types; a whole number also counts as a float."""
    kinds: dict[type, type | UnionType] = {float: int | float}
    return isinstance(row, dict) and all(isinstance(row.get(key), kinds.get(kind, kind)) for key, kind in wanted.items())


_SHAPES: dict[str, Callable[[Any], Any]] = {
    "todos": _rows, "hints": _counts, "diagnoses": _counts, "predictions": _attempts, "solutions": _numbers,
}
_KINDS: dict[str, type] = {"todos": dict, "hints": dict, "diagnoses": dict, "predictions": list, "solutions": list}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process at a time gets past this; the system opens the lock of one that dies."""
    with open(path, "a+b") as file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        else:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # tries for ten seconds, then raises OSError
            try:
                yield
            finally:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
