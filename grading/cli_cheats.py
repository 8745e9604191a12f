"""`python -m grading cheats`: does every submission that cheats get what its honest part is worth?"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grading.bar import bar
from grading.cheat_corpus import LAB, Cheat, read_cheats
from grading.intake import read_submission
from grading.isolation import LEVELS, Limits, strongest_level, weaknesses
from grading.judge import Settings, grader_of
from grading.model import Report
from grading.show import plain, points
from labs.harness.catalog import find_lab

LIMITS = Limits(wall_seconds=5.0, cpu_seconds=3, memory_bytes=768 << 20)
"""Of one check of a cheat: what is stopped is to be stopped soon."""


MOST = 85


@dataclass(frozen=True)
class Verdict:
    """How a cheat was graded at a level.

    Attributes:
        error: of the judge, which is to have none.
    """

    cheat: Cheat
    level: str
    report: Report | None
    error: str = ""

    @property
    def right(self) -> bool:
        """Whether it lost what it is to lose, at the TODOs that were graded, and nothing else."""
        if self.report is None:
            return False
        lost = {check.todo for check in self.report.checks if not check.passed}
        return lost == set(self.cheat.todos) and self.report.max_score - self.report.score == MOST - self.cheat.worth

    @property
    def happened(self) -> str:
        """What most of the lost points say."""
        if self.report is None:
            return self.error
        said = Counter(check.message for check in self.report.checks
                       if not check.passed and not check.message.startswith("not tried"))
        return said.most_common(1)[0][0] if said else "nothing"


def offered() -> list[str]:
    """The levels that this machine has, the strongest first, but for `none`."""
    return [level for level in LEVELS[LEVELS.index(strongest_level()) :] if level != "none"]


def verdicts(
    cheats: Sequence[Cheat], level: str, done: Callable[[], None] = lambda: None, limits: Limits = LIMITS,
    besides: Sequence[int] = range(1, 7)
) -> Iterator[Verdict]:
    """Each cheat's, in order. The worker is one for all: what a cheat does to it is to do nothing to the next.

    Args:
        besides: TODOs that are graded, besides those at which a cheat loses points.
    """
    settings, lab = Settings(seed="cheats", level=level, limits=limits, predictions=False), find_lab(LAB)
    with tempfile.TemporaryDirectory(prefix="cheats-") as name, grader_of(lab, settings) as grader, grader.sandbox() as shared:
        checks = grader.checks
        for cheat in cheats:
            grader.checks = [check for check in checks if check.todo in (*cheat.todos, *besides)]
            try:
                report = grader.grade(read_submission(cheat.make(Path(name)), lab_folder=lab.folder.name), shared=shared)
                yield Verdict(cheat, level, report)
            except Exception as error:
                yield Verdict(cheat, level, None, f"the judge failed: {type(error).__name__}: {error}")
            done()


def cheats(
    isolation: Annotated[list[str] | None, typer.Option(
        help="A level, may be given again; by default each that the machine has.")] = None,
    only: Annotated[str | None, typer.Option(help="Cheats whose name has this in it.")] = None,
) -> None:
    """Run every cheat at every level of isolation; exit status 1 if one gets more or less than its honest part is worth."""
    levels, chosen = isolation or offered(), [one for one in read_cheats() if only is None or only in one.name]
    if unknown := [level for level in levels if level not in LEVELS]:
        raise ValueError(f"there is no isolation level {unknown[0]!r}; there are {', '.join(LEVELS)}")
    if not chosen:
        raise ValueError(f"there is no cheat with {only!r} in its name")
    found: dict[str, list[Verdict]] = {}
    with bar(len(levels) * len(chosen), "cheats") as done:
        for level in levels:
            found[level] = list(verdicts(chosen, level, done))
    _print(Console(highlight=False), found)
    if not all(one.right for level in levels for one in found[level]):
        raise typer.Exit(1)


def _print(console: Console, found: dict[str, list[Verdict]]) -> None:
    table = Table(title=f"Cheats, Lab {LAB}", title_justify="left")
    for name in ("cheat", "worth", *found, "what the report says"):
        table.add_column(name, justify="left" if name in ("cheat", "what the report says") else "right")
    for row in zip(*found.values(), strict=True):
        scores = [Text("-" if one.report is None else points(one.report.score), style="" if one.right else "bold red")
                  for one in row]
        table.add_row(row[0].cheat.name, points(row[0].cheat.worth), *scores, Text(plain(_said(row), 90).replace("\n", " ")))
    console.print(table)
    wrong = [one for of_level in found.values() for one in of_level if not one.right]
    for one in wrong:
        console.print(Text(f"{one.cheat.name} at {one.level}: worth {one.cheat.worth}; {one.cheat.tries} {plain(one.happened)}"))
    for level in found:
        for weakness in weaknesses(level):
            console.print(Text(f"{level}: {weakness}"))
    console.print(f"{sum(map(len, found.values())) - len(wrong)} of {sum(map(len, found.values()))} as expected")


def _said(row: Sequence[Verdict]) -> str:
    """The words of the first level at which it is wrong, or else of the first."""
    return next((one for one in row if not one.right), row[0]).happened
