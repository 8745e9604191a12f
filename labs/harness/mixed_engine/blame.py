"""Whose error is it? From an exception in an engine to the lab, TODO, function and line it is about.

Four kinds of evidence, the strongest first: a line of a part's own file is in the traceback; a part
broke a promise at its seam (`guard.py`); a part returned an impossible result, such as NaN, at which the
engine did not stop at once; the engine, whose own code is not in doubt, failed right after a
call into a part. Any other error belongs to no part.
"""

from __future__ import annotations

import ast
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

from labs.harness import loading, regions
from labs.harness.mixed_engine.guard import BrokenPromise, Call, shown
from labs.harness.mixed_engine.part import Part
from labs.harness.mixed_engine.parts import Engine
from nano_qwen3_serving.exceptions import InvalidParametersError, ModelLoadError, QueueFullError, RequestTimeoutError

CALLERS_ERRORS = (InvalidParametersError, ModelLoadError, QueueFullError, RequestTimeoutError)


@dataclass(frozen=True)
class Blame:
    """A failure inside an engine, described for the author of the part it belongs to."""

    part: Part
    function: str
    """The dotted name in the part's file; if it is not there, the name in the engine's interface."""
    line: int | None
    what: str
    """What happened, in words."""
    todo: int | None = None
    perhaps: tuple[int, ...] = ()
    """If the function belongs to no TODO: the TODOs whose functions it calls."""

    @property
    def on_ours(self) -> bool:
        """Whether it failed in a function of ours that stands in for an unwritten one."""
        return self.todo is not None and self.todo in self.part.stand_ins

    def __str__(self) -> str:
        part, todo = self.part, f", TODO {self.todo}" if self.todo is not None else ""
        if self.perhaps:
            todo = f", TODO {' or '.join(map(str, self.perhaps))}"
        place = f"{part.file}, line {self.line}" if self.line else f"{part.file}"
        place = f"called by {place}" if self.on_ours and self.line else place
        whose = "ours, in place of yours; what was it given?" if self.on_ours else part.owner_in_words()
        after = f"\n  check it: pytest test_lab.py -k todo_{self.todo}   (in {part.lab.folder.name})" if self.todo else ""
        return (
            f"The engine stopped in Lab {part.lab.id}{todo}: {self.function}\n"
            f"  {self.what}\n"
            f"  {place} ({whose}){'' if self.on_ours else after}")


def blame(error: BaseException, engine: Engine) -> Blame | None:
    """The part that `error` belongs to; None if it belongs to none."""
    chain = list(causes(error))
    for cause in reversed(chain):
        if blamed := _from_frames(cause, engine.parts):
            return blamed
    for cause in reversed(chain):
        if isinstance(cause, BrokenPromise):
            return _from_promise(cause)
    nobodys = any(isinstance(cause, CALLERS_ERRORS) for cause in chain) or isinstance(error, KeyboardInterrupt)
    if engine.watch.suspect is not None and not nobodys:
        return _from_promise(engine.watch.suspect)
    for cause in reversed(chain):
        if blamed := _from_seam(cause, engine.parts):
            return blamed
    if nobodys:
        return None
    last = _last_call(chain[-1], engine)
    return _from_last_call(chain[-1], last) if last else None


def earlier(error: BaseException, engine: Engine) -> Blame | None:
    """A part's failure before `error` that the engine recovered from; None if there was none, or it is `error` itself."""
    first = engine.watch.first_error
    if first is None or first in causes(error):
        return None
    blamed = blame(first, engine)
    return None if blamed == blame(error, engine) else blamed


def causes(error: BaseException) -> Iterator[BaseException]:
    """`error`, then the errors it was raised from or during, back to the first."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _from_frames(error: BaseException, parts: Sequence[Part]) -> Blame | None:
    """The innermost frame in a part's own file."""
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    for at in range(len(frames) - 1, -1, -1):
        frame, _ = frames[at]
        part = next((part for part in parts if _is_of(frame, part)), None)
        if part is None:
            continue
        callers = [(function_of(other), number) for other, number in frames[at::-1] if _is_of(other, part)]
        todo = next((todo for todo in map(part.todo_of, dict(callers)) if todo is not None), None)
        did = "was interrupted" if isinstance(error, KeyboardInterrupt) else f"raised {in_words(error)}"
        own = (number for other, number in frames[at::-1] if other.f_code.co_filename == str(part.file))
        return Blame(part, function_of(frame), next(own, None), did, todo)
    return None


def _is_of(frame: FrameType, part: Part) -> bool:
    """Whether a frame belongs to the part's file, or to a function of ours that stands in inside its module."""
    file = frame.f_code.co_filename
    return file == str(part.file) or (loading.is_ours(file) and frame.f_globals is vars(part.module))


def _from_promise(error: BrokenPromise) -> Blame:
    return _of_method(error.part, error.method, error.owner, str(error).partition(": ")[2])


def _of_method(part: Part, method: str, owner: str, what: str) -> Blame:
    """A failure of a method as a whole, not of a line that ran."""
    function, line = find_method(part, method, owner)
    todo = part.todo_of(function)
    near = () if todo is not None else todos_called(part, function)
    return Blame(part, function, line, what, near[0] if len(near) == 1 else todo, near if len(near) > 1 else ())


def _from_seam(error: BaseException, parts: Sequence[Part]) -> Blame | None:
    """A failure in the seam around a part: a name that the part lacks, an answer that is None.

    A caller's error that a seam's own line raises is none: the seam refuses what the part is not asked to compute.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        for part in parts:
            if frame.f_code.co_filename == str(part.lab.seam):
                if frame is frames[-1] and isinstance(error, CALLERS_ERRORS):
                    return None
                return _of_method(part, frame.f_code.co_name, "", f"what it gave could not be used: {in_words(error)}")
    return None


def _last_call(error: BaseException, engine: Engine) -> Call | None:
    """The call that is responsible: the engine's assertions are about blocks and batches only."""
    if isinstance(error, AssertionError):
        calls = engine.watch.last_of
        return calls.get("block_manager") or calls.get("scheduler")
    return engine.watch.last


def _from_last_call(error: BaseException, last: Call) -> Blame:
    what = f"the engine failed right after this returned {shown(last.result)}: {in_words(error)}"
    return _of_method(last.part, last.method, last.owner, what)


def function_of(frame: FrameType) -> str:
    """The dotted name of a frame's function, as `regions` writes it: without `<locals>` and comprehensions."""
    return ".".join(name for name in frame.f_code.co_qualname.split(".") if not name.startswith("<"))


def find_method(part: Part, method: str, owner: str) -> tuple[str, int | None]:
    """The function in a part's file that implements a method of the interface, and its line.

    It is the method of class `owner` if the file has it, else the only function of that name.
    """
    name = {"call": "forward", "__call__": "forward"}.get(method, method)
    there = _definitions(part)
    alike = [function for function in there if function.rpartition(".")[2] == name]
    if f"{owner}.{name}" in there:
        alike = [f"{owner}.{name}"]
    return (alike[0], there[alike[0]].lineno) if len(alike) == 1 else (name, None)


def todos_called(part: Part, function: str) -> tuple[int, ...]:
    """The TODOs of the functions that `function` of a part's file names."""
    there = _definitions(part)
    body = there.get(function)
    named = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(body)} if body else set()
    todos = {part.todo_of(other) for other in there if other != function and other.rpartition(".")[2] in named}
    return tuple(sorted(todo for todo in todos if todo is not None))


def _definitions(part: Part) -> dict[str, regions.Function]:
    return regions.definitions(ast.parse(part.file.read_text(encoding="utf-8")))


def in_words(error: BaseException) -> str:
    """`KeyError: 'A'`; only the first line of a long message."""
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
