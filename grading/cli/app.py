"""`python -m grading`: the instructor's command line."""

import sys
from typing import Annotated

import typer

from grading.cli import attempts, authoring, batch, cheats, collect, export, grade, release
from grading.cli import term as term_commands
from grading.edition.at_tag import run_at
from grading.edition.release import COURSE
from grading.sandbox.supervisor import SetupError
from labs.harness.catalog import LabError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

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
        at = next(i for i, argument in enumerate(arguments) if argument == "--term" or argument.startswith("--term="))
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
app.command()(authoring.starter)
app.command()(authoring.mutants)
app.command()(authoring.machine_mutants)
app.command()(authoring.alternatives)
app.command()(authoring.symptoms)
app.command()(authoring.new_lab)
app.command()(authoring.predictions)
app.command()(authoring.check_lab)
export.register(app)


def main() -> None:
    """Run the command line; a mistake in what was asked for is one line and exit status 2."""
    try:
        app()
    except (LabError, SetupError, ValueError) as error:
        print(f"grading: {error}", file=sys.stderr)
        sys.exit(2)
