"""How a lab's checks are written: functions in `grading/scenarios/labNN/` that drive a submission.

    @check(todo=1, points=3, section="TODO 1: the free list", concept="every block is free once")
    def every_block_but_the_null_block_is_free(lab, rng):
        free = lab.FreeList(rng.randrange(5, 40))
        ...
        expect(len(free) == size - 1, f"...")

`lab` is a `Remote` of the submission's module: what is called on it runs in the worker, what comes
back are plain values, tensors, or further remotes. `rng` gives the inputs. The expected values are
worked out here, by the judge. A check fails by raising `Wrong`, or by what the submission raises.
"""

import importlib
import pkgutil
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from grading.sandbox.worker.peer import Exported, Final, Raised, Remote, kept
from labs.harness.catalog import Lab

__all__ = [
    "Check", "Wrong", "check", "expect", "expect_nothing_replaced", "hold", "kept", "look", "operators_seen", "ours",
    "refusal", "same", "scenarios_of", "shown"]


class Wrong(Final):
    """What was expected and what came instead. Also where the submission calls what is ours: it cannot catch it."""


@dataclass(frozen=True)
class Check:
    """One check of a lab, see `grading.judge.report.CheckResult` for what its fields mean.

    Attributes:
        repeats: if it says something, the check is run in two processes, one after the other, with the same inputs, and what
            it returns has to be the same; else this is what was wrong. It is told which run it is, 0 or 1.
    """

    name: str
    todo: int
    points: float
    hidden: bool
    section: str
    concept: str
    run: Callable[..., Any]
    repeats: str = ""


def check(todo: int, points: float, section: str, concept: str, hidden: bool = False, repeats: str = "") -> Callable:
    """Makes a function `(lab, rng)` a check, or one `(lab, rng, which)` a check that `repeats`."""

    def mark(run: Callable[..., Any]) -> Callable:
        made = Check(run.__name__, todo, points, hidden, section, concept, run, repeats)
        run.check = made  # type: ignore[attr-defined]  # a function takes any attribute; `scenarios_of` looks for this one
        return run

    return mark


def scenarios_of(lab: Lab) -> list[Check]:
    """The checks in the lab's `grading/scenarios/`, TODO by TODO, in the order of their file."""
    package = importlib.import_module(f"grading.scenarios.lab{lab.id}")
    found = []
    for file in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        values = vars(importlib.import_module(file.name)).values()
        found += [value.check for value in values if isinstance(getattr(value, "check", None), Check)]
    return sorted(found, key=lambda one: one.todo)


def expect(right: bool, otherwise: str) -> None:
    """Raise `Wrong` unless `right`; `otherwise` says what was expected and what came."""
    if not right:
        raise Wrong(otherwise)


def refusal(kind: str, call: Callable[..., Any], otherwise: str) -> str:
    """The message of the error, of a class named `kind`, that `call` has to raise; `otherwise` says why."""
    try:
        answer = call()
    except Raised as error:
        if kind in error.kinds:
            return error.text
        if "TodoError" in error.kinds:
            raise
        raise Wrong(f"expected {kind}, and {error.kinds[0]} came ({shorter(error.text)}): {otherwise}") from None
    raise Wrong(f"expected {kind}, and {shown(answer)} came back: {otherwise}")


def same(found: Any, right: Any) -> bool:
    """Whether two values are equal and of the same types, all the way down: 3.0 is not 3, nor is True 1."""
    if type(found) is not type(right):
        return False
    if isinstance(right, list | tuple):
        return len(found) == len(right) and all(map(same, found, right))
    return bool(found == right)


def hold(lab: Remote, value: Any) -> Remote:
    """A copy of a value that lives where the submission is: a tensor that its functions can change in place."""
    return kept(tool(lab, "hold"), value)


def look(remote: Remote) -> Any:
    """The value of something held there, as it is now."""
    expect_nothing_replaced(remote, "memory")
    return tool(remote, "look")(remote)


def tool(remote: Remote, name: str) -> Remote:
    """A function of the bench, as it was before the submission was loaded."""
    tools = remote._peer.tools
    return tools[name] if name in tools else getattr(remote._peer.root, name)


def operators_seen(lab: Remote) -> Remote:
    """What notes which of torch's operators run where the submission is, see `labs.harness.suite.operators`."""
    expect_nothing_replaced(lab, "memory", "operators")
    return tool(lab, "log")()


def expect_nothing_replaced(remote: Remote, *measured: str) -> None:
    """What is `measured` beside the submission counts where Python, torch and the bench are what they were.

    Args:
        measured: keys of `grading.sandbox.worker.bench.MEASURED_WITH`.
    """
    for what in measured:
        replaced = tool(remote, "replaced")(what)
        expect(replaced == "", f"the submission has put something of its own in the place of {shorter(str(replaced), 80)}, which "
               "this check needs as it is")


def ours(thing: Any, *names: str) -> Exported:
    """A function of the judge's, or an object of which the submission may use `names`: every use is seen here."""
    return Exported(thing, *names)


def shown(value: Any) -> str:
    """A value in a line: tensors by shape and dtype, long ones cut."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {list(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Remote):
        return f"an object of class {value._kind}"
    return reprlib.repr(value)


def shorter(text: str, most: int = 200) -> str:
    """One line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
