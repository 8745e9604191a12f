"""`python -m grading`: the instructor's command line."""

import sys
from typing import Annotated

import typer

from grading import starter as starters
from labs.harness.catalog import LabError, all_labs, find_lab

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _commands() -> None:
    """What instructors run."""


@app.command()
def starter(
    names: Annotated[list[str] | None, typer.Argument(metavar="[LAB]...", help="default: every lab")] = None,
    check: Annotated[bool, typer.Option("--check", help="write nothing; exit 1 if a starter is stale")] = False,
) -> None:
    """Make each lab's starter.py from its solution.py."""
    chosen = [find_lab(name) for name in names] if names else all_labs()
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


def main() -> None:
    """Run the command line; a mistake in what was asked for is one line and exit status 2."""
    try:
        app()
    except LabError as error:
        print(f"grading: {error}", file=sys.stderr)
        sys.exit(2)
