"""`python -m grading`: the instructor's command line."""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from grading.authoring import kill_table
from grading.authoring import machine_mutants as by_machine
from grading.authoring import starter as starters
from grading.authoring import symptoms as symptom_tables
from grading.authoring.alternatives import read_alternatives
from grading.authoring.mutants import KINDS, Mutant, read_mutants, some_of
from grading.cli import attempts, batch, cheats, collect, export, grade, release
from grading.cli import term as term_commands
from grading.cli.progress_bar import bar
from grading.edition.at_tag import run_at
from grading.edition.release import COURSE
from grading.sandbox.supervisor import SetupError
from labs.harness.catalog import Lab, LabError, all_labs, find_lab

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

LabNames = Annotated[list[str] | None, typer.Argument(metavar="[LAB]...", help="default: every lab")]
Jobs = Annotated[int | None, typer.Option(min=1, help="runs at a time; default: one per core")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write the table as data, too")]

console = Console(highlight=False)


@app.callback()
def _commands(
    context: typer.Context,
    term: Annotated[str | None, typer.Option(
        metavar="NAME", help="run the command as the tag term/NAME has it; a term.toml is named after the command, by --term-file"
    )] = None,
) -> None:
    """What instructors run."""
    if term is not None:
        arguments = sys.argv[1:]
        at = next(i for i, one in enumerate(arguments) if one == "--term" or one.startswith("--term="))
        raise typer.Exit(run_at(term, arguments[:at] + arguments[at + (1 if "=" in arguments[at] else 2) :], COURSE))


app.command()(term_commands.init)
app.command()(grade.grade)
app.command()(grade.agreement)
app.command()(collect.collect)
app.command()(batch.batch)
app.command()(batch.status)
app.command()(attempts.attempts)
app.command()(batch.regrade)
app.command()(batch.synthetic)
app.command()(cheats.cheats)
app.command()(release.release)
app.command()(release.workflow)
export.register(app)


@app.command()
def starter(
    names: LabNames = None,
    check: Annotated[bool, typer.Option("--check", help="write nothing; exit 1 if a starter is stale")] = False,
) -> None:
    """Make each lab's starter.py from its solution.py."""
    chosen = _labs(names)
    stale = [lab for lab in chosen if starters.is_stale(lab)]
    for lab in stale:
        if check:
            print(f"stale: {lab.starter}")
        else:
            starters.write(lab)
            print(f"wrote {lab.starter}")
    if not stale:
        print(f"{len(chosen)} starter{'s' if len(chosen) != 1 else ''} up to date")
    elif check:
        print("To make them anew: python -m grading starter")
        raise typer.Exit(1)


@app.command()
def mutants(
    names: LabNames = None,
    kind: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(KINDS)}; default: author and blind")] = None,
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="how many of them")] = 1.0,
    seed: Annotated[str, typer.Option(help="which of them, if not all")] = "0",
    quick: Annotated[bool, typer.Option("--quick", help="only the tests of a mutant's TODO, to the first that fails")] = False,
    jobs: Jobs = None,
    file: Json = None,
) -> None:
    """The kill table: does a test of its TODO catch each wrong solution, and is that all it costs? Else exit status 1."""
    kinds = kind or ["author", "blind"]
    if unknown := sorted(set(kinds) - set(KINDS)):
        raise LabError(f"--kind is one of {', '.join(KINDS)}, not {', '.join(unknown)}.")
    labs = _labs(names)
    found = []
    for lab in labs:
        all_of_lab = [one for one in read_mutants(lab) if one.kind in kinds]
        if "machine" in kinds:
            made = by_machine.machine_mutants(lab)
            listed = by_machine.equivalents(lab, made)
            all_of_lab += [one for key, one in made.items() if key not in listed]
        found += some_of(all_of_lab, share, f"{seed}:{lab.id}")
    _judge(labs, found, jobs, file, (lambda mutant: True) if quick else kill_table.by_machine)


@app.command()
def machine_mutants(
    name: Annotated[str, typer.Argument(metavar="LAB")],
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="how many of them")] = 1.0,
    seed: Annotated[str, typer.Option(help="which of them, if not all")] = "0",
    jobs: Jobs = None,
    file: Json = None,
    show: Annotated[bool, typer.Option("--show", help="print what would be run, and stop")] = False,
) -> None:
    """Mutants of a solution's regions made by cosmic-ray. Survivors want a test, or a reason in equivalent.toml."""
    lab = find_lab(name)
    made = by_machine.machine_mutants(lab)
    listed = by_machine.equivalents(lab, made)
    if show:
        for (operator, line, occurrence), one in made.items():
            print(f"TODO {one.todo}  {operator} {occurrence}  {one.story}"
                  + ("  (equivalent)" * ((operator, line, occurrence) in listed)))
        return
    console.print(f"Lab {lab.id}: {len(made)} machine-made mutants, {len(listed)} of them listed as equivalent")
    chosen = some_of([one for key, one in made.items() if key not in listed], share, f"{seed}:{lab.id}")
    wrongly = [one for one in _verdicts([lab], [made[key] for key in listed], jobs) if one.caught]
    for verdict in wrongly:
        console.print(f"listed as equivalent, but caught by {verdict.how}: {verdict.mutant.story}", markup=False, soft_wrap=True)
    _judge([lab], chosen, jobs, file, failed=bool(wrongly))


@app.command()
def alternatives(names: LabNames = None, jobs: Jobs = None) -> None:
    """Right solutions that are built differently: exit status 1 if a suite rejects one."""
    labs = _labs(names)
    found = [one for lab in labs for one in read_alternatives(lab)]
    with bar(len(found), "alternatives") as done:
        results = kill_table.judge_alternatives(labs, found, jobs, done)
    rejected = False
    for one, result in zip(found, results, strict=True):
        failing = result.failing()
        bad = bool(failing or result.ended or not result.outcomes)
        rejected |= bad
        says = f"REJECTED {result.ended} {', '.join(failing)}" if bad else f"passes all {len(result.outcomes)} tests"
        console.print(f"Lab {one.lab}  {one.name}: {says}", markup=False, soft_wrap=True)
    if rejected:
        raise typer.Exit(1)


@app.command()
def symptoms(
    names: LabNames = None,
    check: Annotated[bool, typer.Option("--check", help="run and write nothing; exit 1 if a table is stale")] = False,
    score: Annotated[bool, typer.Option(
        "--score", help="write nothing; how often is `labs diagnose` right? exit 1 if too seldom")] = False,
    most: Annotated[int, typer.Option(min=0, help="with --score: pairs, and mutants in alternatives, for each lab")] = 12,
    seed: Annotated[str, typer.Option(help="with --score: which of them")] = "0",
    cache: Annotated[Path | None, typer.Option(
        metavar="FOLDER", help="keep runs there, and use those of the same suite and text")] = None,
    jobs: Jobs = None,
) -> None:
    """Make each lab's symptoms.json from runs of its mutants."""
    labs, scores = _labs(names), {}
    if check:
        stale = [lab for lab in labs if not symptom_tables.is_current(lab)]
        print("\n".join(f"stale: {lab.folder / symptom_tables.FILE}" for lab in stale) or "every symptoms.json is up to date")
        raise typer.Exit(bool(stale))
    for lab in labs:
        found = read_mutants(lab)
        with bar(len(found), f"lab {lab.id}") as done:
            seen = symptom_tables.see(lab, found, cache, jobs, done)
        if score:
            scores[lab.id] = symptom_tables.score(lab, seen, most, seed,
                                                  partial(symptom_tables.see, lab, cache=cache, parallel=jobs))
        else:
            in_table = [one for one in seen if one.mutant.kind in symptom_tables.IN_TABLE]
            print(f"wrote {symptom_tables.write_table(lab, in_table, symptom_tables.concepts(lab, found))}")
    if score:
        console.print(symptom_tables.score_table(scores))
        raise typer.Exit(not symptom_tables.single(scores).is_enough)


def _judge(
    labs: list[Lab], found: list[Mutant], jobs: int | None, file: Path | None,
    quick: Callable[[Mutant], bool] = kill_table.by_machine, failed: bool = False,
) -> None:  # fmt: skip
    """Run, print, write; exit status 1 if one survives or costs points where nothing needs it."""
    verdicts = _verdicts(labs, found, jobs, quick)
    kill_table.print_table(console, labs, verdicts)
    if file:
        file.write_text(json.dumps(kill_table.as_json(verdicts), indent=1), encoding="utf-8")
    if failed or not all(one.caught and not one.spilled for one in verdicts):
        raise typer.Exit(1)


def _verdicts(
    labs: list[Lab], found: list[Mutant], jobs: int | None, quick: Callable[[Mutant], bool] = kill_table.by_machine
) -> list[kill_table.MutantVerdict]:
    with bar(len(found) + len({one.lab for one in found}), "runs") as done:
        return kill_table.judge(labs, found, jobs, done, quick)


def _labs(names: list[str] | None) -> list[Lab]:
    return [find_lab(name) for name in names] if names else all_labs()


def main() -> None:
    """Run the command line; a mistake in what was asked for is one line and exit status 2."""
    try:
        app()
    except (LabError, SetupError, ValueError) as error:
        print(f"grading: {error}", file=sys.stderr)
        sys.exit(2)
