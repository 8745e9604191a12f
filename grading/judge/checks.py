"""What the judge asks with beside a submission: checks, values that live there, what may be measured there.

`lab` is a `Remote` of the submission's module: what is called on it runs in the worker, what comes back are plain values,
tensors, or further remotes. A check fails by raising `Wrong`, or by what the submission raises.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from grading.sandbox.worker.peer import Exported, Final, Remote, kept


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


def expect(right: bool, otherwise: str) -> None:
    """Raise `Wrong` unless `right`; `otherwise` says what was expected and what came."""
    if not right:
        raise Wrong(otherwise)


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


def shorter(text: str, most: int = 200) -> str:
    """One line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
