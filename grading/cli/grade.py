"""`python -m grading grade`: one submission of one lab."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from grading.authoring.agreement import cases_of, findings
from grading.cli.progress_bar import bar
from grading.judge.grader import Settings, grader_of
from grading.judge.intake import read_submission
from grading.judge.seeds import read_secret
from grading.judge.show import print_report, words_for
from grading.sandbox.isolation import Limits, strongest_level
from labs.harness.catalog import all_labs, find_lab

Secret = Annotated[Path | None, typer.Option(help="The file with the term secret; without it anybody can work out the inputs.")]
SeedMode = Annotated[str, typer.Option(help="student: inputs of their own for each; cohort: the same for all.")]
Isolation = Annotated[str | None, typer.Option(help="namespaces, limits or none; by default the strongest there is.")]
Predictions = Annotated[bool, typer.Option(help="Whether predictions.json counts.")]
Seconds = Annotated[float, typer.Option(help="That one check may take.", min=1)]


def settings_of(
    secret: Path | None, seed_mode: str, isolation: str | None, predictions: bool, seconds: float, seed: str | None = None
) -> Settings:
    """What the options of a grading command come to. Raises `ValueError` that names a bad one."""
    if seed_mode not in ("student", "cohort"):
        raise ValueError(f"--seed-mode is student or cohort, not {seed_mode!r}")
    limits = Limits(wall_seconds=seconds, cpu_seconds=max(1, int(seconds / 2)))
    level = isolation or strongest_level()
    return Settings(read_secret(secret), seed_mode, seed, level, limits, predictions)


def grade(
    lab: Annotated[str, typer.Argument(help="Such as 06 or lab06.")],
    submission: Annotated[Path, typer.Argument(help="A folder with starter.py, that file, or a zip or tar of them.")],
    student: Annotated[str | None, typer.Option(help="Whose it is; by default the folder's name.")] = None,
    secret: Secret = None,
    seed_mode: SeedMode = "student",
    seed: Annotated[str | None, typer.Option(help="That of a report, to reproduce it.")] = None,
    isolation: Isolation = None,
    predictions: Predictions = True,
    seconds: Seconds = 30.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, and nothing else.")] = False,
    as_student: Annotated[bool, typer.Option(help="Show what the student gets to see.")] = False,
) -> None:
    """Grade one submission of one lab."""
    settings = settings_of(secret, seed_mode, isolation, predictions, seconds, seed)
    chosen = find_lab(lab)
    handed_in = read_submission(submission, student, chosen.folder.name)
    with grader_of(chosen, settings) as grader, bar(len(grader.checks), f"Lab {chosen.id}", quiet=json) as done:
        report = grader.grade(handed_in, lambda check: done())
    if json:
        typer.echo(report.to_json())
    else:
        print_report(report, Console(), as_student)


def agreement(
    names: Annotated[list[str] | None, typer.Argument(metavar="[LAB]...", help="default: every lab")] = None,
    only: Annotated[str | None, typer.Option(help="cases whose name has this in it")] = None,
    jobs: Annotated[int, typer.Option(min=1)] = 2,
    isolation: Isolation = None,
    seed: Annotated[str | None, typer.Option(help="of the inputs")] = None,
    show: Annotated[bool, typer.Option(help="print every lost point")] = False,
) -> None:
    """Does the judge's verdict agree with the labs' tests, on all files whose verdict is known? Else exit status 1."""
    console, wrong = Console(highlight=False), 0
    settings = Settings(level=isolation or strongest_level(), seed=seed, predictions=False)
    for lab in [find_lab(name) for name in names] if names else all_labs():
        cases = [case for case in cases_of(lab) if only is None or only in case.name]
        with bar(len(cases), f"Lab {lab.id}") as done:
            found = findings(lab, cases, settings, jobs, done)
        for finding in found:
            if finding.wrong or show:
                case = finding.case
                console.print(Text(
                    f"Lab {lab.id} {case.kind} {case.name} (TODO {case.todo}): {finding.wrong or 'as the tests say'}"))
                for check in finding.report.checks:
                    if not check.passed and (show or finding.case.kind in ("solution", "alternative")):
                        console.print(Text(f"    TODO {check.todo} {words_for(check, as_student=False)}"))
        kinds = Counter(finding.case.kind for finding in found)
        agreeing = Counter(finding.case.kind for finding in found if not finding.wrong)
        console.print(f"Lab {lab.id}: " + ", ".join(f"{kind} {agreeing[kind]}/{kinds[kind]}" for kind in kinds))
        wrong += sum(bool(finding.wrong) for finding in found)
    if wrong:
        raise typer.Exit(1)
