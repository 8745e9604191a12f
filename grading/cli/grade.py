"""`python -m grading grade`: one submission of one lab."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from grading.authoring.agreement import cases_of, findings
from grading.cli.progress_bar import bar
from grading.cli.term import Isolation, TermFile, settings_of
from grading.cohort.term import find_term
from grading.judge.grader import Settings, grader_of
from grading.judge.intake import read_submission
from grading.judge.show import print_report, words_for
from grading.sandbox.isolation import strongest_level
from labs.harness.catalog import all_labs, find_lab


def grade(
    lab: Annotated[str, typer.Argument(help="Such as 06 or lab06.")],
    submission: Annotated[Path, typer.Argument(help="A folder with starter.py, that file, or a zip or tar of them.")],
    student: Annotated[str | None, typer.Option(help="Whose it is; by default the folder's name.")] = None,
    seed: Annotated[str | None, typer.Option(help="That of a report, to reproduce it.")] = None,
    isolation: Isolation = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, and nothing else.")] = False,
    as_student: Annotated[bool, typer.Option(help="Show what the student gets to see.")] = False,
    term_file: TermFile = None,
) -> None:
    """Grade one submission of one lab."""
    settings = settings_of(find_term(term_file), isolation, seed)
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
            judgements = findings(lab, cases, settings, jobs, done)
        for finding in judgements:
            if finding.wrong or show:
                case = finding.case
                console.print(Text(
                    f"Lab {lab.id} {case.kind} {case.name} (TODO {case.todo}): {finding.wrong or 'as the tests say'}"))
                for check in finding.report.checks:
                    if not check.passed and (show or finding.case.kind in ("solution", "alternative")):
                        console.print(Text(f"    TODO {check.todo} {words_for(check, as_student=False)}"))
        kinds = Counter(finding.case.kind for finding in judgements)
        agreeing = Counter(finding.case.kind for finding in judgements if not finding.wrong)
        console.print(f"Lab {lab.id}: " + ", ".join(f"{kind} {agreeing[kind]}/{kinds[kind]}" for kind in kinds))
        wrong += sum(bool(finding.wrong) for finding in judgements)
    if wrong:
        raise typer.Exit(1)
