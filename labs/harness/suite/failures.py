"""From the exception that ended a test to its report: the lab's words, and the learner's line.

Of a traceback the report shows only the learner's line, and whether the error passed through our code: never the
harness's source.
"""

import linecache
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from labs.harness.catalog import LabError
from labs.harness.learner.results import VARYING
from labs.harness.loading import is_ours
from labs.harness.suite.patience import WaitsForEver
from labs.harness.suite.telling import Failure
from labs.harness.todo import TodoError

WIDTH = 300
"""How many characters of a line the report shows."""
_LINES = 8


def failure_of(error: BaseException, todo: int, test: str, case: str, own: Path | None, suite: Path) -> Failure:
    """The report on a test that `error` ended.

    Args:
        own: the learner's file, if it could be chosen.
        suite: the file with the test.
    """
    if isinstance(error, TodoError):
        return Failure(todo, test, case, f"todo {error.args[0]}", tuple(str(error).splitlines()), waits=True)
    if isinstance(error, LabError | WaitsForEver):
        return Failure(todo, test, case, str(error), tuple(_cut(str(error))), waits=True)
    said, plain = _message(error), isinstance(error, AssertionError)
    chain = list(_causes(error))
    culprit = next((one for one in reversed(chain) if _frames_in(one, own)), None)
    lines = list(said)
    if culprit is not None:
        if culprit is not error:
            lines += [f"it began with {_named(culprit)}"]
        lines += _place_in(culprit, own)
    elif not plain or not said or said[0].startswith("assert "):
        lines += _statement(error, suite)
    kind = f"{todo} {VARYING.sub('#', said[0] if said else '')}"
    if culprit is not None and not isinstance(culprit, AssertionError):
        kind = f"{type(culprit).__name__} {_frames_in(culprit, own)[-1]}"
    return Failure(todo, test, case, kind, tuple(lines))


def _message(error: BaseException) -> list[str]:
    """An error's words. An assertion's message alone, if it has one; otherwise pytest's explanation of its values."""
    text = str(getattr(error, "msg", None) or error) if type(error).__name__ == "Failed" else str(error)
    if not isinstance(error, AssertionError) and type(error).__name__ != "Failed":
        return _cut(_named(error))
    lines = text.splitlines()
    values = next((number for number, line in enumerate(lines) if line.startswith("assert ")), len(lines))
    words = [line for line in lines[:values] if line.strip()]
    return _cut("\n".join(words or [line for line in lines if "<function " not in line and "<module " not in line]))


def _named(error: BaseException) -> str:
    text = "".join(traceback.format_exception_only(error)).strip()
    return text.partition(".")[2] if re.match(r"_lab\d\d_\w+\.\w", text) else text


def _cut(text: str) -> list[str]:
    lines = [line[:WIDTH] + "…" * (len(line) > WIDTH) for line in text.splitlines()]
    return lines if len(lines) <= _LINES else [*lines[: _LINES - 1], f"… ({len(lines) - _LINES + 1} more lines)"]


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error`, and the errors it was raised from, back to the first."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _frames_in(error: BaseException, own: Path | None) -> list[int]:
    """The lines of the learner's file in a traceback."""
    return [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(own)]


def _place_in(error: BaseException, own: Path | None) -> list[str]:
    """The learner's innermost line, and the function of ours that it called into, if it did."""
    found: list[str] = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if file == str(own):
            code = linecache.getline(file, line).strip()
            found = [f"{Path(file).name} line {line}, in {frame.f_code.co_qualname.replace('.<locals>', '')}: {code[:WIDTH]}"]
        elif is_ours(file):
            by = f", called by your line {_frames_in(error, own)[-1]}" if found else ""
            found = [*found[:1], f"it went wrong in {file[1:-1]}{by}: look at what that line passes to it"]
    return found


def _statement(error: BaseException, suite: Path) -> list[str]:
    """The test's own line; none if the line only reports the failure."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == str(suite)]
    texts = [(line, linecache.getline(str(suite), line).strip()) for line in lines]
    return [f"{suite.name} line {line}: {text[:WIDTH]}" for line, text in texts if not text.startswith("pytest.fail(")][-1:]
