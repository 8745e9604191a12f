"""Gradescope's `results.json` for one submission.

A check that is not hidden is a visible test. A hidden one is `after_published` (or `hidden`), and
even then shows only its TODO and what it is about; while such a test exists, Gradescope shows a
student no total. The seed comes with the published results.
"""

import json

from grading.cohort.journal import Entry
from grading.export.lines import Line, conditions, decided, lateness, lines_of, name_of
from grading.judge.show import plain

HIDDEN = ("after_published", "hidden")
"""The visibilities that Gradescope can give hidden checks."""


def results(entry: Entry, hidden: str = "after_published", seconds: float | None = None) -> str:
    """The file's text.

    Args:
        hidden: one of `HIDDEN`.
        seconds: how long the run took, if known.
    """
    if hidden not in HIDDEN:
        raise ValueError(f"hidden checks are {' or '.join(HIDDEN)}, not {hidden!r}")
    report = entry.report
    content = {
        "score": entry.final_score,
        "output": _output(entry),
        "output_format": "text",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "extra_data": {
            "student": report.student, "lab": report.lab, "digest": report.digest, "isolation": report.isolation,
            "seed": report.seed, "versions": report.versions, "max_score": report.max_score},
        "tests": [*(_test(line, hidden) for line in lines_of(report)), _receipt(entry)],
    }
    if seconds is not None:
        content["execution_time"] = round(seconds, 1)
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _test(line: Line, hidden: str) -> dict:
    section = f"\nREADME: {line.section}" if line.section and line.message else ""
    printed = f"\nIt printed:\n{line.printed}" if line.printed else ""
    return {
        "name": f"{name_of(line.todo)}: {line.title}",
        "number": line.number,
        "score": line.earned,
        "max_score": line.points,
        "status": "passed" if line.passed else "failed",
        "output": line.message + section + printed,
        "output_format": "text",
        "tags": [name_of(line.todo)],
        "visibility": hidden if line.hidden else "visible",
    }


def _output(entry: Entry) -> str:
    """The text above the tests."""
    report = entry.report
    lab = f"Lab {report.lab}. Part of the checks are hidden: that every test shown here has passed is not yet the whole score."
    late = [words] if (words := lateness(entry)) else []
    return "\n".join([lab, *decided(entry), *late, *conditions(report, with_seed=False)])


def _receipt(entry: Entry) -> dict:
    """The seed that repeats the run; a test, because only tests have a date from which they are shown."""
    return {
        "name": "Receipt", "number": "receipt", "score": 0, "max_score": 0, "status": "passed", "output_format": "text",
        "output": f"seed {entry.report.seed}, student {plain(entry.report.student)}", "tags": [], "visibility": "after_published"}
