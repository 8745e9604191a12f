"""`python -m labs`: the learner's command line. Each command is a few lines over the harness' other files."""

import os
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.prompt import Prompt

from labs.harness import doctor
from labs.harness.catalog import Lab, LabError, all_labs, find_lab, labs_home
from labs.harness.cli import engine, learning
from labs.harness.learner import backups, learning_path, predictions, results
from labs.harness.learner.hints import HINTS_PER_TODO, read_hints
from labs.harness.learner.progress import Progress
from labs.harness.learner.results import points_text

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Your labs.")
app.add_typer(learning.app)
app.add_typer(engine.app)
console = Console(highlight=False)

LabName = Annotated[str, typer.Argument(metavar="LAB", help="2, 02, lab02 or the folder's name")]
Todo = Annotated[int | None, typer.Argument(metavar="[TODO]", help="its number")]


def main() -> None:
    """Run the command line; a mistake in what was asked for is one line and exit status 2."""
    try:
        app()
    except LabError as error:
        sys.exit(_complain(error))


@app.command("list")
def list_labs() -> None:
    """The labs that exist, and how long each takes."""
    present = all_labs()
    if not present:
        raise LabError(f"There are no labs in {labs_home()}.")
    for lab in present:
        console.print(f"{lab.id}  {escape(lab.title)}  [dim]{lab.hours} hours[/dim]  {_in_words(lab)}")


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(metavar="[LAB]", help="only of this lab")] = None,
) -> None:
    """Points per TODO, which part of the path from call to token is yours, what is next."""
    only = find_lab(name) if name is not None else None
    progress = Progress(labs_home())
    if progress.complaint:
        console.print(escape(progress.complaint), style="yellow", soft_wrap=True)
    for lab in [only] if only is not None else all_labs():
        _show_lab(lab, progress)
    if only is None:
        _show_path(progress)
    console.print("\nNext: " + "\nthen: ".join(map(escape, _next_in_words(progress, only))), soft_wrap=True)


def _show_lab(lab: Lab, progress: Progress) -> None:
    console.print(f"\n[bold]Lab {lab.id}[/bold]  {escape(lab.title)}")
    for todo, names in learning_path.functions(lab).items():
        what = f"TODO {todo}  {', '.join(names)}".rstrip()
        console.print(f"  {escape(what)}: {escape(_todo_in_words(lab, todo, progress))}")
    console.print(f"  predictions  {_predictions_in_words(lab, progress)}")


def _show_path(progress: Progress) -> None:
    parts: dict[str, list[str]] = {learning_path.YOURS: [], learning_path.PARTLY: [], learning_path.OURS: []}
    for lab in all_labs():
        parts[learning_path.authorship(lab, progress)].append(lab.part)
    parts[learning_path.OURS].append("the engine")
    console.print("\n[bold]From call to token[/bold]")
    console.print(f"  {escape(learning_path.path_line(progress))}", soft_wrap=True)
    console.print(f"  yours: {escape(', '.join(parts[learning_path.YOURS])) or 'nothing yet'}", soft_wrap=True)
    if parts[learning_path.PARTLY]:
        console.print(f"  partly yours: {escape(', '.join(parts[learning_path.PARTLY]))}", soft_wrap=True)
    console.print(f"  ours:  {escape(', '.join(parts[learning_path.OURS]))}", soft_wrap=True)


@app.command()
def hint(
    name: LabName,
    todo: Todo = None,
    every: Annotated[bool, typer.Option("--all", help="all hints of the TODO")] = False,
) -> None:
    """The next hint for a TODO, from a question to nearly the answer. Which you read is noted."""
    lab = find_lab(name)
    progress = Progress(labs_home())
    hints = read_hints(lab)
    todo = todo if todo is not None else _first_open(lab, progress)
    if todo not in hints:
        raise LabError(f"Lab {lab.id} has no TODO {todo}; it has {', '.join(map(str, hints))}.")
    number = len(hints[todo]) if every else min(progress.hints_used(lab.id, todo) + 1, len(hints[todo]))
    for shown in range(1 if every else number, number + 1):
        console.print(f"\n[bold]Lab {lab.id}, TODO {todo}, hint {shown} of {len(hints[todo])}[/bold]")
        console.print(Markdown(hints[todo][shown - 1]))
    if number == len(hints[todo]):
        also = " solution.py may be read; importing it is refused." if lab.solution.is_file() else ""
        console.print(f"\n[dim]That is the last one.{also}[/dim]")
    progress.record_hint(lab.id, todo, number)
    progress.save()


@app.command()
def predict(
    name: LabName,
    answers: Annotated[str | None, typer.Option(help="answer without being asked: steps=4,reason=length")] = None,
    seed: Annotated[int | None, typer.Option(help="the numbers of this seed; does not count")] = None,
    learner: Annotated[str | None, typer.Option("--name", help="any word; your numbers follow from it")] = None,
    again: Annotated[bool, typer.Option("--again", help="once more with new numbers; the best attempt counts")] = False,
    show: Annotated[bool, typer.Option("--show", help="print the questions and stop")] = False,
) -> None:
    """Questions to answer before coding. The reference engine is then run and asked for the truth."""
    lab = find_lab(name)
    progress = Progress(labs_home())
    if seed is None and learner is None and progress.name is None and answers is None and not show:
        learner = Prompt.ask("A name or any word (your numbers follow from it)", default="learner")
    if learner is not None:
        progress.name = learner.strip() or "learner"
    attempt = len(progress.predictions(lab.id))
    counted = seed is None and (attempt == 0 or again)
    if seed is None:
        seed = predictions.seed_of(progress.name or "learner", lab, attempt if counted else attempt - 1)
    case = predictions.make_case(lab, seed)
    if show:
        _show_questions(case)
        return
    answered = _ask(case) if answers is None else predictions.parse_answers(answers, case.questions)
    correct = _compare(case, answered)
    if counted:
        progress.record_predictions(lab.id, seed=seed, right=correct, of=len(case.questions))
        predictions.save_attempt(lab, seed, answered)
    if counted or learner is not None:
        progress.save()
    _close_predictions(lab, correct, len(case.questions), counted, progress)


@app.command()
def reset(
    name: LabName,
    todo: Annotated[int | None, typer.Option(help="only the functions of this TODO")] = None,
) -> None:
    """Put starter.py back as it was. What it replaces is kept in labs/.backups."""
    lab = find_lab(name)
    kept = backups.reset(lab, todo)
    progress = Progress(labs_home())
    if kept is not None and (done := learning_path.functions(lab)):
        progress.forget_todos(lab.id, [todo] if todo is not None else done)
        progress.save()
    what = f"TODO {todo} of {lab.starter.name}" if todo is not None else str(lab.starter.name)
    if kept is None:
        console.print(f"{what} is as it was at the start; nothing to reset.")
    else:
        console.print(f"{what} is as it was at the start. Your work: {escape(str(kept))}", soft_wrap=True)


@app.command("doctor")
def examine() -> None:
    """Is this machine ready, and if not, what to do? Works before anything is installed."""
    raise typer.Exit(doctor.main())


def _complain(error: LabError) -> int:
    print(f"labs: {error}", file=sys.stderr)
    return 2


def _in_words(lab: Lab) -> str:
    todos = Progress(labs_home()).todos(lab.id)
    solved = sum(row["points"] >= row["of"] for row in todos.values())
    return f"{solved} of {len(learning_path.functions(lab))} TODOs solved"


def _first_open(lab: Lab, progress: Progress) -> int:
    open_ones = learning_path.open_todos(lab, progress)
    if not open_ones:
        raise LabError(f"Every TODO of lab {lab.id} is solved. For a hint anyway, name one: hint {lab.id} 1")
    return open_ones[0]


def _todo_in_words(lab: Lab, todo: int, progress: Progress) -> str:
    """Points and state, and the help that was taken."""
    row = progress.todos(lab.id).get(todo)
    text = f"{points_text(row['points'])}/{points_text(row['of'])}  {row['state']}" if row else "not tested yet"
    hints, diagnoses = progress.hints_used(lab.id, todo), progress.diagnoses_used(lab.id, todo)
    help_taken = [f"{hints} of {HINTS_PER_TODO} hints read"] if hints else []
    help_taken += [f"diagnosed {diagnoses} time{'s' * (diagnoses > 1)}"] if diagnoses else []
    help_taken += ["our solution was written in"] if todo in progress.solutions_used(lab.id) else []
    return text + (f"  ({', '.join(help_taken)})" if help_taken else "")


def _next_in_words(progress: Progress, only: Lab | None = None) -> list[str]:
    """The next open predictions, and the next open TODO."""
    steps = []
    if (asking := learning_path.unanswered(progress, only)) is not None:
        steps.append(f"Lab {asking.id}, predictions: python -m labs predict {asking.id}")
    if (following := learning_path.next_todo(progress, only)) is not None:
        lab, todo = following
        go = "" if _shown(lab) == "." else f"cd {_shown(lab)}, then "
        steps.append(f"Lab {lab.id}, TODO {todo}: {go}pytest test_lab.py -k todo_{todo}")
    return steps or [f"every TODO of {'this lab' if only is not None else 'every lab'} is solved"]


def _shown(lab: Lab) -> str:
    """The lab's folder, as a path from the folder where the command was started."""
    try:
        return os.path.relpath(lab.folder)
    except ValueError:  # another drive
        return str(lab.folder)


def _predictions_in_words(lab: Lab, progress: Progress) -> str:
    attempts = progress.predictions(lab.id)
    if not attempts:
        return f"0/{results.PREDICTION_POINTS}  not answered yet: python -m labs predict {lab.id}"
    points = results.prediction_points(attempts)
    more = f"; more with new numbers: python -m labs predict {lab.id} --again" if points < results.PREDICTION_POINTS else ""
    return f"{points_text(points)}/{results.PREDICTION_POINTS}{more}"


def _show_questions(case: predictions.PredictionCase) -> None:
    for question in case.questions:
        console.print(f"\n[bold]{question.id}[/bold]  {escape(question.text)}")
        if question.choices:
            console.print(f"  one of: {', '.join(question.choices)}")


def _ask(case: predictions.PredictionCase) -> dict[str, str | int]:
    """Ask each question until the answer is valid; an empty answer skips it."""
    answers = {}
    for number, question in enumerate(case.questions, start=1):
        console.print(f"\n[bold]{number} of {len(case.questions)}[/bold]  {escape(question.text)}")
        while answer := Prompt.ask("  " + " / ".join(question.choices or ("a number",)), default="", show_default=False):
            try:
                answers[question.id] = question.read(answer)
                break
            except LabError as error:
                console.print(f"  [yellow]{escape(str(error))}[/yellow]")
    return answers


def _compare(case: predictions.PredictionCase, answers: dict[str, str | int]) -> int:
    """Print each answer beside the truth; return how many are right."""
    console.print("\nRunning the reference engine ...")
    correct = 0
    for question in case.questions:
        truth = case.truth(question)
        answer = answers.get(question.id)
        correct += answer == truth
        if answer == truth:
            console.print(f"  [green]right[/green]  {question.id}: {truth}")
        else:
            yours = "no answer" if answer is None else f"you said {answer}"
            console.print(f"  [red]wrong[/red]  {question.id}: {yours}, the engine {truth}. {escape(question.why)}")
    return correct


def _close_predictions(lab: Lab, correct: int, of: int, counted: bool, progress: Progress) -> None:
    points = points_text(results.prediction_points(progress.predictions(lab.id)))
    console.print(f"\n{correct} of {of} right.", end=" ")
    if counted:
        console.print(f"Your best attempt is worth {points} of {results.PREDICTION_POINTS} points.", end=" ")
    else:
        console.print("This attempt does not count: you had already seen its numbers.", end=" ")
    if correct < of:
        console.print(f"With new numbers: python -m labs predict {lab.id} --again", end="")
    console.print()
