"""`python -m grading cheats`: does every submission that cheats get what it is to get, at every level of isolation?"""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grading.cli.progress_bar import bar
from grading.judge.show import plain, points
from grading.red_team import disposable
from grading.red_team.corpus import read_cheats
from grading.red_team.trial import TrialResult, verdicts
from grading.sandbox.isolation import LEVELS, strongest_level, weaknesses
from grading.sandbox.supervisor import NOT_HERE, SetupError


def levels_for_cheats() -> list[str]:
    """The levels at which cheats can be run on this machine, the strongest first.

    At `none` they run only inside a throwaway that bubblewrap makes.

    Raises:
        SetupError: cheats can run at no level here.
    """
    if strongest_level() == "none":
        raise SetupError(NOT_HERE)
    return list(LEVELS) if strongest_level() == "namespaces" else ["limits"]


def cheats(
    isolation: Annotated[list[str] | None, typer.Option(
        help="A level, may be given again; by default each at which they can be run here.")] = None,
    only: Annotated[str | None, typer.Option(help="Cheats whose name has this in it.")] = None,
) -> None:
    """Run every cheat at every level of isolation; exit status 1 if one gets what it is not to get.

    That is what its honest part is worth; at `none`, for those that need more to be stopped, all or the end of the judge.
    """
    levels, chosen = isolation or levels_for_cheats(), [cheat for cheat in read_cheats() if only is None or only in cheat.name]
    if unknown := [level for level in levels if level not in LEVELS]:
        raise ValueError(f"there is no isolation level {unknown[0]!r}; there are {', '.join(LEVELS)}")
    if not chosen:
        raise ValueError(f"there is no cheat with {only!r} in its name")
    by_level: dict[str, list[TrialResult]] = {}
    with bar(len(levels) * len(chosen), "cheats") as done:
        for level in levels:
            by_level[level] = list(disposable.verdicts(chosen, done) if level == "none" else verdicts(chosen, level, done))
    _print(Console(highlight=False), by_level)
    if not all(trial.right for level in levels for trial in by_level[level]):
        raise typer.Exit(1)


def _print(console: Console, by_level: dict[str, list[TrialResult]]) -> None:
    table = Table(title="Cheats", title_justify="left")
    for name in ("lab", "cheat", "worth", *by_level, "what the report says"):
        table.add_column(name, justify="left" if name in ("lab", "cheat", "what the report says") else "right")
    for row in zip(*by_level.values(), strict=True):
        scores = [Text("-" if trial.report is None else points(trial.report.score), style="" if trial.right else "bold red")
                  for trial in row]
        cheat, happened = row[0].cheat, plain(_outcome_in_words(row), 90).replace("\n", " ")
        table.add_row(cheat.lab, cheat.name, points(cheat.worth), *scores, Text(happened))
    console.print(table)
    wrong = [trial for of_level in by_level.values() for trial in of_level if not trial.right]
    for trial in wrong:
        cheat = trial.cheat
        console.print(Text(f"{cheat.name} at {trial.level}: worth {cheat.worth}; {cheat.tries} {plain(trial.happened)}"))
    if any(trial.report is None for of_level in by_level.values() for trial in of_level):
        console.print("-: there is no report, for the judge was ended or failed")
    for level in by_level:
        for weakness in weaknesses(level):
            console.print(Text(f"{level}: {weakness}"))
    console.print(f"{sum(map(len, by_level.values())) - len(wrong)} of {sum(map(len, by_level.values()))} as expected")


def _outcome_in_words(row: Sequence[TrialResult]) -> str:
    """What happened at the first level whose result is wrong, or else at the first level."""
    return next((trial for trial in row if not trial.right), row[0]).happened
