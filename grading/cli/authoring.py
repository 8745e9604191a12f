"""Commands for authors of labs: a new lab, the checks that it has to pass, and the data of these checks."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from grading.authoring import kill_table
from grading.authoring import machine_mutants as by_machine
from grading.authoring import new_lab as new_labs
from grading.authoring import starter as starters
from grading.authoring import symptoms as symptom_tables
from grading.authoring.alternatives import read_alternatives
from grading.authoring.checklist import CHECKLIST, Passed, Step, walk
from grading.authoring.lab_proofs import UNFINISHED
from grading.authoring.mutants import KINDS, Mutant, read_mutants, some_of
from grading.cli.progress_bar import bar
from labs.harness.catalog import Lab, LabError, all_labs, find_lab
from labs.harness.learner.predictions import make_case

LabNames = Annotated[list[str] | None, typer.Argument(metavar="[LAB]...", help="default: every lab")]
Jobs = Annotated[int | None, typer.Option(min=1, help="runs at a time; default: one per core")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write the table as data, too")]

console = Console(highlight=False)


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
    chosen = []
    for lab in labs:
        all_of_lab = [mutant for mutant in read_mutants(lab) if mutant.kind in kinds]
        if "machine" in kinds:
            made = by_machine.machine_mutants(lab)
            listed = by_machine.equivalents(lab, made)
            all_of_lab += [mutant for key, mutant in made.items() if key not in listed]
        chosen += some_of(all_of_lab, share, f"{seed}:{lab.id}")
    _judge(labs, chosen, jobs, file, (lambda mutant: True) if quick else kill_table.by_machine)


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
        for (operator, line, occurrence), mutant in made.items():
            print(f"TODO {mutant.todo}  {operator} {occurrence}  {mutant.story}"
                  + ("  (equivalent)" * ((operator, line, occurrence) in listed)))
        return
    console.print(f"Lab {lab.id}: {len(made)} machine-made mutants, {len(listed)} of them listed as equivalent")
    chosen = some_of([mutant for key, mutant in made.items() if key not in listed], share, f"{seed}:{lab.id}")
    wrongly = [verdict for verdict in _verdicts([lab], [made[key] for key in listed], jobs) if verdict.caught]
    for verdict in wrongly:
        console.print(f"listed as equivalent, but caught by {verdict.how}: {verdict.mutant.story}", markup=False, soft_wrap=True)
    _judge([lab], chosen, jobs, file, failed=bool(wrongly))


def alternatives(names: LabNames = None, jobs: Jobs = None) -> None:
    """Right solutions that are built differently: exit status 1 if a suite rejects one."""
    labs = _labs(names)
    different = [alternative for lab in labs for alternative in read_alternatives(lab)]
    with bar(len(different), "alternatives") as done:
        results = kill_table.judge_alternatives(labs, different, jobs, done)
    rejected = False
    for alternative, result in zip(different, results, strict=True):
        failing = result.failing()
        bad = bool(failing or result.ended or not result.outcomes)
        rejected |= bad
        says = f"REJECTED {result.ended} {', '.join(failing)}" if bad else f"passes all {len(result.outcomes)} tests"
        console.print(f"Lab {alternative.lab}  {alternative.name}: {says}", markup=False, soft_wrap=True)
    if rejected:
        raise typer.Exit(1)


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
        mutants = read_mutants(lab)
        with bar(len(mutants), f"lab {lab.id}") as done:
            seen = symptom_tables.see(lab, mutants, cache, jobs, done)
        if score:
            scores[lab.id] = symptom_tables.score(lab, seen, most, seed,
                                                  partial(symptom_tables.see, lab, cache=cache, parallel=jobs))
        else:
            in_table = [bug for bug in seen if bug.mutant.kind in symptom_tables.IN_TABLE]
            print(f"wrote {symptom_tables.write_table(lab, in_table, symptom_tables.concepts(lab, mutants))}")
    if score:
        console.print(symptom_tables.score_table(scores))
        raise typer.Exit(not symptom_tables.single(scores).is_enough)


def new_lab(
    number: Annotated[int, typer.Argument(metavar="NN", min=1, max=99)],
    name: Annotated[str, typer.Argument(help="of the folder: continuous_batching")],
    title: Annotated[str, typer.Option(help="of the README; default: made of the name")] = "",
    todos: Annotated[int, typer.Option(min=1, max=new_labs.MOST_TODOS, help="how many it has")] = 2,
) -> None:
    """Write both homes of a lab and its notebook, with every file that a lab needs."""
    for path in new_labs.write(number, name, title, todos):
        print(f"wrote {path}")
    print(f"Replace what stands behind each {UNFINISHED}. What comes next: python -m grading check-lab {number:02d} --quick")


def predictions(
    name: Annotated[str, typer.Argument(metavar="LAB")],
    seed: Annotated[int, typer.Option(min=0, help="what the numbers are drawn from; another seed, other numbers")] = 0,
) -> None:
    """What a lab asks before coding, with the numbers of one seed, and the right answers as the engine gives them."""
    lab = find_lab(name)
    case = make_case(lab, seed)
    console.print(f"Lab {lab.id}, seed {seed}: {', '.join(f'{key} = {value}' for key, value in case.numbers.items())}",
                  markup=False, soft_wrap=True)
    for question in case.questions:
        choices = f" ({', '.join(question.choices)})" if question.choices else ""
        console.print(f"\n{question.id}: {question.text}{choices}\n  {case.truth(question)}: {question.why}",
                      markup=False, soft_wrap=True)


def check_lab(
    name: Annotated[str, typer.Argument(metavar="LAB")],
    quick: Annotated[bool, typer.Option("--quick", help="leave out what takes a while")] = False,
    everything: Annotated[bool, typer.Option(
        "--all", help="run anew, too, what has passed and whose files are the same since")] = False,
) -> None:
    """Tick off what is proved of a lab, in the order in which one makes it, up to the first that is missing: exit status 1."""
    lab = find_lab(name)

    def show(step: Step, missing: str | None, remembered: bool) -> None:
        mark = "[green]✓[/green]" if missing is None else "[red]✗[/red]"
        console.print(f"{mark} {escape(step.says)}{' (unchanged since it passed)' * remembered}", soft_wrap=True)
        if missing is not None:
            console.print(f"  {missing}\n  To do: {step.how.replace('NN', lab.id)}", markup=False, soft_wrap=True)

    steps = [step for step in CHECKLIST if not (quick and step.runs)]
    if not walk(lab, show, steps, Passed(), everything):
        raise typer.Exit(1)
    what_next = "now without --quick" if quick else "all of it is proved; now do it yourself, from its README"
    console.print(f"\nLab {lab.id}: {what_next}.")


def _judge(
    labs: list[Lab], mutants: list[Mutant], jobs: int | None, file: Path | None,
    quick: Callable[[Mutant], bool] = kill_table.by_machine, failed: bool = False,
) -> None:  # fmt: skip
    """Run, print, write; exit status 1 if a mutant survives or costs points at a TODO that does not need its own."""
    verdicts = _verdicts(labs, mutants, jobs, quick)
    kill_table.print_table(console, labs, verdicts)
    if file:
        file.write_text(json.dumps(kill_table.as_json(verdicts), indent=1), encoding="utf-8")
    if failed or not all(verdict.caught and not verdict.spilled for verdict in verdicts):
        raise typer.Exit(1)


def _verdicts(
    labs: list[Lab], mutants: list[Mutant], jobs: int | None, quick: Callable[[Mutant], bool] = kill_table.by_machine
) -> list[kill_table.MutantVerdict]:
    with bar(len(mutants) + len({mutant.lab for mutant in mutants}), "runs") as done:
        return kill_table.judge(labs, mutants, jobs, done, quick)


def _labs(names: list[str] | None) -> list[Lab]:
    return [find_lab(name) for name in names] if names else all_labs()
