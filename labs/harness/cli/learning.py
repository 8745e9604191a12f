"""`python -m labs watch|update|solution|diagnose`: working on a lab, and getting help with it."""

import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.syntax import Syntax

from labs.harness.catalog import Lab, LabError, all_labs, find_lab, labs_home
from labs.harness.learner import backups, learning_path
from labs.harness.learner.progress import Progress

app = typer.Typer()
console = Console(highlight=False, markup=False, soft_wrap=True)

LabName = Annotated[str, typer.Argument(metavar="LAB", help="2, 02, lab02 or the folder's name")]
OptionalLab = Annotated[str | None, typer.Argument(metavar="[LAB]", help="default: the lab that is next")]


@app.command()
def watch(
    name: OptionalLab = None,
    todo: Annotated[int | None, typer.Option(help="only its tests; default: of the TODO you changed")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="end after this many runs")] = None,
) -> None:
    """Run the tests of the TODO you work on, whenever starter.py is saved. Ctrl-C ends it."""
    from labs.harness.suite import watch as watching

    lab = find_lab(name) if name is not None else _next_lab()
    if todo is not None and todo not in learning_path.functions(lab):
        raise LabError(f"Lab {lab.id} has no TODO {todo}; it has {', '.join(map(str, learning_path.functions(lab)))}.")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # even if a script started this in the background
    try:
        watching.watch(lab, todo, rounds, console.print)
    except KeyboardInterrupt:
        console.print()


def _next_lab() -> Lab:
    following = learning_path.next_todo(Progress(labs_home()))
    if following is None:
        raise LabError("Every TODO of every lab is solved. To watch one anyway, name it: watch 06")
    return following[0]


@app.command()
def update(
    source: Annotated[Path, typer.Option("--from", metavar="FOLDER", help="a newer version of the course, unpacked")],
) -> None:
    """Bring the course to a newer version. What you wrote in starter.py stays; what is replaced is kept."""
    from labs.harness.learner.update import update as run

    home = labs_home()
    changes, kept = run(home, source)
    if not changes:
        console.print("You already have that version; nothing was changed.")
    for change in changes:
        console.print(f"{'changed' if change.replaces else 'new'}  {change.shown(home)}")
        for note in change.notes:
            console.print(f"         {note}")
    if kept:
        console.print(f"\nWhat was there before: {kept}")


@app.command()
def solution(
    name: LabName,
    todo: Annotated[int | None, typer.Option(help="only the functions of this TODO")] = None,
    show: Annotated[bool, typer.Option("--show", help="print it; starter.py stays as it is")] = False,
) -> None:
    """Write our solution into starter.py, for those who study alone. It is noted; your work is kept in labs/.backups."""
    lab = find_lab(name)
    if show:
        text = backups.solution_text(lab, todo)
        if console.is_terminal:
            console.print(Syntax(text, "python", background_color="default"))
        else:
            console.print(text, end="")
        return
    todos, kept = backups.write_solution(lab, todo)
    progress = Progress(labs_home())
    progress.record_solution(lab.id, todos)
    progress.save()
    what = f"TODO {todo} of {lab.starter.name}" if todo is not None else lab.starter.name
    console.print(f"{what} is our solution now." + (f" Your work: {kept}" if kept else ""))
    if todo is not None:
        console.print(f"Its tests: pytest test_lab.py -k todo_{todo}")


@app.command()
def practice(
    names: Annotated[list[str] | None, typer.Argument(metavar="[LAB]...", help="default: every lab")] = None,
    summary: Annotated[Path | None, typer.Option(help="append a summary in Markdown to this file")] = None,
) -> None:
    """Run the labs' tests on your starters, as a fork's automatic runs do. Always advisory: exit status 0."""
    from labs.harness.suite import practice as practising

    results = practising.run_labs([find_lab(name) for name in names] if names else all_labs())
    text = practising.summary(results)
    if summary is None:
        console.print(f"\n{text}", end="")
    else:
        with open(summary, "a", encoding="utf-8") as file:
            file.write(text)


@app.command()
def diagnose(
    name: LabName,
    todo: Annotated[int | None, typer.Option(help="only of this TODO")] = None,
) -> None:
    """Run the tests and say what is probably wrong, or which message says most. Finding it yourself comes first."""
    from labs.harness import loading
    from labs.harness.learner import diagnosis

    lab = find_lab(name)
    if todo is not None and todo not in learning_path.functions(lab):
        raise LabError(f"Lab {lab.id} has no TODO {todo}; it has {', '.join(map(str, learning_path.functions(lab)))}.")
    table = diagnosis.read_table(lab)
    loading.refuse_imports(lab, loading.parse(lab.starter), lab.starter.name)
    outcomes = diagnosis.run_tests(lab, todo)
    if message := diagnosis.same_everywhere(outcomes):
        console.print(f"Lab {lab.id}: every test fails with the same message:\n  {message}")
        return
    diagnoses = diagnosis.diagnose(table, outcomes)
    progress = Progress(labs_home())
    for number in sorted({outcome.todo for outcome in outcomes}):
        telling = diagnosis.most_telling(outcomes, number)
        for line in diagnosis.in_words(lab, number, outcomes, diagnoses.get(number), telling):
            console.print(line)
        if number in diagnoses:
            progress.record_diagnosis(lab.id, number)
    progress.save()
