"""The results as one CSV table, a row for each submission, for an instructor's own calculations."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from grading.cohort.journal import Entry
from grading.export.lines import decided, name_of
from grading.judge.show import plain

_BEFORE = ["student", "lab", "submitted", "late_days", "final_score", "score", "max_score"]
_AFTER = ["isolation", "seed", "checks", "digest", "notes", "comments"]
_OF_ROSTER = ["name", "email", "section"]


def table(
    entries: Sequence[Entry], missing: Sequence[tuple[str, str]] = (),
    roster: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> str:
    """The file's text; columns for every TODO that any of the labs has.

    Args:
        missing: (student, lab) without a result, which get rows without points.
        roster: student → their row of the roster; the table has columns for name, email and section if the roster does.
    """
    todos = sorted({row.todo for entry in entries for row in entry.todos()})
    about = [name for name in _OF_ROSTER if any(row.get(name) for row in roster.values())]
    heading = [*_BEFORE, *(name_of(todo) for todo in todos), *_AFTER, *about]
    rows = {(entry.report.lab, entry.report.student): _row(entry, todos) for entry in entries}
    rows |= {(lab, student): [student, lab, *[""] * (len(_BEFORE) + len(todos) + len(_AFTER) - 2)] for student, lab in missing}
    return written([heading, *([*row, *(roster.get(student, {}).get(name, "") for name in about)]
                               for (_, student), row in sorted(rows.items()))])


def _row(entry: Entry, todos: Sequence[int]) -> list:
    report = entry.report
    earned = {row.todo: row.earned for row in entry.todos()}
    return [report.student, report.lab, entry.submitted or "", entry.late_days, entry.final_score, entry.score, report.max_score,
            *(earned.get(todo, "") for todo in todos), report.isolation, report.seed, report.versions.get("checks", ""),
            report.digest, "; ".join(plain(note) for note in report.notes), " ".join(decided(entry))]


def written(rows: Iterable[Sequence]) -> str:
    """Rows as CSV. Numbers stay numbers; text that looks like a formula is defused, and cannot begin a row."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows([[harmless(cell) for cell in row] for row in rows])
    return out.getvalue()


def harmless(cell: object) -> object:
    """A cell that no spreadsheet runs: text that begins like a formula gets an apostrophe in front."""
    return "'" + cell if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") else cell
