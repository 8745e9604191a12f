"""A report for a person at a terminal. Whatever came from a submission is shown as text, never as markup or control."""

import builtins
import re
import unicodedata

from rich.console import Console
from rich.table import Table
from rich.text import Text

from grading.judge.report import CheckResult, Report

CHECKED_AT = {"namespaces": "in namespaces of its own", "limits": "under limits, without namespaces",
              "none": "in a plain process"}


def plain(text: str, most: int = 500) -> str:
    """`text` without control sequences, directional marks and the like, cut to `most` characters."""
    text = re.sub(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])", "", text)
    text = "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def words_for(check: CheckResult, as_student: bool) -> str:
    """The line about a check that lost points; for a hidden check a student sees only what it is about."""
    if as_student and check.hidden:
        return f"a hidden check failed; it is about: {check.concept}"
    if as_student and check.on_ours:
        return f"{check.name.replace('_', ' ')}: {message_on_ours(check)}"
    return f"{check.name.replace('_', ' ')}: {plain(check.message)}"


def message_on_ours(check: CheckResult) -> str:
    """The message for a student about a check that ran on our code: the error's class, and our own words.

    Any other part of a message may contain that code, which the submission could read.
    """
    if check.unwritten:
        return f"TODO {check.todo} is not written yet"
    kind = re.match(r"\w+", check.message)
    known = kind is not None and isinstance(getattr(builtins, kind[0], None), type)
    todos = ", ".join(map(str, check.on_ours))
    raised = f" and raised {kind[0]}" if kind and known else ""
    return (f"failed with our TODO {todos} in place of yours{raised}; it is about: {check.concept}. "
            f"The tests of TODO {check.todo} say more")


def points(value: float) -> str:
    """Points as text, without a fraction if they are whole."""
    return f"{value:g}"


def print_report(report: Report, console: Console, as_student: bool = False) -> None:
    """Points per TODO, then a line for each lost point."""
    table = Table(title=f"Lab {report.lab}, {plain(report.student)}", title_justify="left")
    for name in ("TODO", "points", "state"):
        table.add_column(name, justify="right" if name == "points" else "left")
    for row in report.todos():
        table.add_row("predictions" if row.todo == 0 else str(row.todo), f"{points(row.earned)}/{points(row.points)}", row.state)
    table.add_section()
    table.add_row("total", f"{points(report.score)}/{points(report.max_score)}", "")
    console.print(table)
    for check in report.lost():
        where = f" (README: {check.section})" if check.section and not (as_student and check.hidden) else ""
        line = f"-{points(check.points - check.earned)}  {words_for(check, as_student)}{where}"
        console.print(Text(("" if check.todo == 0 else f"TODO {check.todo}  ") + line))
        if check.printed and not as_student:
            console.print(Text("    it printed: " + plain(check.printed, 200).replace("\n", "\n    "), style="dim"))
    for note in report.notes:
        console.print(Text(f"note: {plain(note)}"))
    seed = "" if as_student else f" seed {report.seed};"
    console.print(Text(f"Graded {CHECKED_AT[report.isolation]} ({report.isolation});{seed} checks {report.versions['checks']}.",
                       style="dim"))
