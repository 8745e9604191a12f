"""A report in Markdown, for a job's summary. Text from a submission is put in fences that it cannot close."""

import re

from grading.cohort.journal import Entry
from grading.export.lines import Line, conditions, dates, decided, lateness, lost_lines, name_of
from grading.judge.show import plain, points


def summary(entry: Entry, as_student: bool = True, with_seed: bool = False) -> str:
    """The report of one submission; `with_seed` only for readers who may know it."""
    report = entry.report
    lines = [f"# Lab {report.lab}: {points(entry.final_score)} of {points(report.max_score)} points", "", coded(report.student),
             "", *([when, ""] if (when := dates(entry)) else [])]
    for decision in decided(entry):
        lines += [coded(decision), ""]
    lines += [late, ""] if (late := lateness(entry)) else []
    lines += ["| | points | state |", "| --- | ---: | --- |"]
    lines += [f"| {name_of(row.todo)} | {points(row.earned)}/{points(row.points)} | {row.state} |" for row in entry.todos()]
    lost = lost_lines(report, as_student)
    if lost:
        lines += ["", "## Where points were lost", ""]
    for line in lost:
        lines += [*_lost_point(line), ""]
    lines += ["", "## How it was graded", "", fenced("\n".join(conditions(report, with_seed)))]
    return "\n".join(lines) + "\n"


def _lost_point(line: Line) -> list[str]:
    """A failed check: heading, message, and what it printed."""
    lines = [f"### {name_of(line.todo)}: -{points(line.points - line.earned)}", "",
             fenced(f"{line.number} {line.title}\n{line.message}")]
    if line.section:
        lines += ["", f"README: {coded(line.section)}"]
    if line.printed:
        lines += ["", "It printed:", "", fenced(line.printed)]
    return lines


def fenced(text: str) -> str:
    """`text` as a literal block: the fence is longer than any row of backticks in the text."""
    fence = "`" * max(3, 1 + _longest(text))
    return f"{fence}text\n{text}\n{fence}"


def coded(text: str) -> str:
    """`text` in a line, shown as it is."""
    line = " ".join(plain(text).split()) or " "
    ticks = "`" * (1 + _longest(line))
    return f"{ticks} {line} {ticks}"


def _longest(text: str) -> int:
    return max((len(row) for row in re.findall("`+", text)), default=0)
