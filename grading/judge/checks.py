"""The judge's tools for testing a submission: checks, values that live beside it, measurements there.

`lab` is a `Remote` of the submission's module: calls on it run in the worker and return plain values, tensors, or
further remotes. A check fails if it raises `Wrong`, or if the submission raises.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grading.sandbox.worker.peer import Exported, Final, Remote, kept


class Wrong(Final):
    """What was expected and what came instead. Also raised in our objects that the submission calls; it cannot catch it."""


@dataclass(frozen=True)
class Check:
    """One check of a lab; `grading.judge.report.CheckResult` explains the other fields.

    Attributes:
        repeats: if not empty, the check runs in two processes, one after the other, with the same inputs, and has to return
            the same; if it does not, this is the message. The check gets the number of its run, 0 or 1.
    """

    name: str
    todo: int
    points: float
    hidden: bool
    section: str
    concept: str
    run: Callable[..., Any]
    repeats: str = ""


def expect(right: bool, otherwise: str) -> None:
    """Raise `Wrong` unless `right`; `otherwise` says what was expected and what came."""
    if not right:
        raise Wrong(otherwise)


def hold(lab: Remote, value: Any) -> Remote:
    """A copy of a value that lives in the worker: for instance a tensor that the submission can change in place."""
    return kept(tool(lab, "hold"), value)


def look(remote: Remote) -> Any:
    """The present value of something held in the worker."""
    expect_nothing_replaced(remote, "memory")
    return tool(remote, "look")(remote)


def tool(remote: Remote, name: str) -> Remote:
    """A function of the bench, as it was before the submission was loaded."""
    tools = remote._peer.tools
    return tools[name] if name in tools else getattr(remote._peer.root, name)


def operators_seen(lab: Remote) -> Remote:
    """A log of torch's operators that run in the worker, see `labs.harness.suite.operators`."""
    expect_nothing_replaced(lab, "memory", "operators")
    return tool(lab, "log")()


def expect_nothing_replaced(remote: Remote, *measured: str) -> None:
    """Raises `Wrong` unless Python, torch and the bench are still what they were, so that a measurement in the worker counts.

    Args:
        measured: keys of `grading.sandbox.worker.bench.MEASURED_WITH`.
    """
    for what in measured:
        replaced = tool(remote, "replaced")(what)
        expect(replaced == "", f"the submission has put something of its own in the place of {shorter(str(replaced), 80)}, which "
               "this check needs as it is")


def ours(thing: Any, *names: str) -> Exported:
    """A function of the judge, or an object of which the submission may use `names`: the judge sees every use."""
    return Exported(thing, *names)


def shorter(text: str, most: int = 200) -> str:
    """One line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
