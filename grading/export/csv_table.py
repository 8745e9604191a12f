"""The results as one CSV table, a row for each submission, for an instructor's own reckoning."""

import csv
import io
from collections.abc import Iterable, Sequence

from grading.cohort.journal import Entry
from grading.export.lines import name_of
from grading.judge.show import plain

_BEFORE = ["student", "lab", "submitted", "late_days", "final_score", "score", "max_score"]
_AFTER = ["isolation", "seed", "checks", "digest", "notes"]


def table(entries: Sequence[Entry]) -> str:
    """The file's text; columns for every TODO that any of the labs has."""
    todos = sorted({row.todo for entry in entries for row in entry.report.todos()})
    heading = [*_BEFORE, *(name_of(todo) for todo in todos), *_AFTER]
    return written([heading, *(_row(entry, todos) for entry in entries)])


def _row(entry: Entry, todos: Sequence[int]) -> list:
    report = entry.report
    earned = {row.todo: row.earned for row in report.todos()}
    return [report.student, report.lab, entry.submitted or "", entry.late_days, entry.final_score, report.score, report.max_score,
            *(earned.get(todo, "") for todo in todos), report.isolation, report.seed, report.versions.get("checks", ""),
            report.digest, "; ".join(plain(note) for note in report.notes)]


def written(rows: Iterable[Sequence]) -> str:
    """Rows as CSV. Numbers stay numbers; text that a spreadsheet would take for a formula does not, nor can it begin a row."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerows([[harmless(cell) for cell in row] for row in rows])
    return out.getvalue()


def harmless(cell: object) -> object:
    """A cell that no spreadsheet runs: before text that begins like a formula stands an apostrophe."""
    return "'" + cell if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r", "\n") else cell
