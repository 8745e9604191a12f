"""One submission's report as a self-contained page: no script, no other file, and every text of a submission escaped."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from grading.cohort.journal import Entry
from grading.export.lines import conditions, dates, decided, lateness, lines_of, lost_lines, name_of
from grading.judge.show import plain, points

SIGNS = {"solved": "●", "partly": "◐", "failing": "○", "not started": "–"}
"""The sign beside a state's colour and pattern."""


def page(entry: Entry, as_student: bool = True, with_seed: bool = False) -> str:
    """The report; `with_seed` only for readers who may know it."""
    report = entry.report
    return templates().get_template("report.html").render(
        entry=entry, report=report, student=plain(report.student), lines=lines_of(report, as_student),
        lost=lost_lines(report, as_student),
        late=lateness(entry), dates=dates(entry), decided=decided(entry), conditions=conditions(report, with_seed))


def templates(*folders: Path) -> Environment:
    """The environment for pages: templates are here and in `folders`, and every inserted value is escaped."""
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, *folders]), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True)
    environment.filters["plainly"] = plain
    environment.globals.update(points=points, name_of=name_of, sign=SIGNS.__getitem__)
    return environment
