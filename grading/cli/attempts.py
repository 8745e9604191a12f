"""`python -m grading attempts`: what one student handed in for a lab, each time, and what changed."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from grading.cli.term import JournalFile, TermFile, open_journal
from grading.cohort.late import shown
from grading.cohort.term import find_term
from grading.judge.show import plain, points
from labs.harness.catalog import find_lab

console = Console(highlight=False)


def attempts(
    student: Annotated[str, typer.Argument(help="Their id.")],
    lab: Annotated[str, typer.Option(help="Such as 06.")],
    diff: Annotated[bool, typer.Option("--diff", help="Show what changed from each to the next.")] = False,
    journal: JournalFile = None,
    term_file: TermFile = None,
) -> None:
    """Every hand-in of a student, with its points. The journal still has files that a later hand-in overwrote."""
    term, chosen = find_term(term_file), find_lab(lab)
    with open_journal(term, journal) as base:
        mine = [attempt for attempt, _ in base.attempts() if (attempt.student, attempt.lab) == (student, chosen.id)]
        if not mine:
            raise ValueError(f"{journal or term.journal} has no hand-in of {student} in lab {chosen.id}")
        before: Mapping[str, bytes] | None = None
        zone = base.terms().zone
        for number, attempt in enumerate(mine, 1):
            report = base.standing(student, chosen.id, attempt.digest)
            score = f"{points(report.score)} of {points(report.max_score)} points" if report else "not graded yet"
            counts = ", which counts" if number == len(mine) else ""
            when = shown(attempt.submitted, zone) if attempt.submitted else "at an unknown time"
            _say(f"{number}. {when}: {score}{counts}; {attempt.digest[:12]}")
            files = base.files(attempt.digest)
            if diff and files is None:
                _say("   its files are not in the journal, which an older version of the course made")
            elif diff and files is not None and before is not None:
                for line in changes(before, files):
                    _say(line)
            before = files


def changes(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> Iterator[str]:
    """The lines of a unified diff, file by file."""
    for name in sorted({*before, *after}):
        old, new = (files.get(name, b"").decode("utf-8", errors="replace").splitlines() for files in (before, after))
        yield from difflib.unified_diff(old, new, f"before/{name}", f"after/{name}", lineterm="")


def _say(line: str) -> None:
    console.print(Text(plain(line)), soft_wrap=True)
