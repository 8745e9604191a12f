"""`python -m grading release`, `workflow`: files for a term's students."""

from pathlib import Path
from typing import Annotated

import typer

from grading.cli.term import TermFile
from grading.cohort.term import find_term
from grading.edition import release as releases
from nano_qwen3_serving.observe.files import write_atomically


def release(
    out: Annotated[Path, typer.Option(help="a new folder for the student edition")],
    term: Annotated[str | None, typer.Option(help="the term's name, such as 2027S; by default the name in term.toml")] = None,
    tag: Annotated[bool, typer.Option(help="give the present commit the tag term/NAME, by which regrades run")] = True,
    term_file: TermFile = None,
) -> None:
    """Make the student edition: no solutions, tests of the project, or grading; the engine, the labs and their practice tests."""
    if not (term := term or find_term(term_file).name):
        raise ValueError('what is the term called? --term 2027S, or in term.toml: name = "2027S"')
    if tag:
        releases.tag(term)
    edition = releases.release(term, out)
    print(f"{out}: the student edition of {term}, {len(edition['labs'])} labs, version {edition['version']} of the course.")
    if tag:
        print(f"Tagged term/{term}. To grade as this term was given: python -m grading --term {term} grade 06 SUBMISSION")


def workflow(
    out: Annotated[Path, typer.Option(help="where it is written")] = Path(".github/workflows/practice.yml"),
) -> None:
    """Write the GitHub Actions file that runs the practice tests on a student's fork."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, (releases.TEMPLATES / "practice.yml").read_text(encoding="utf-8"))
    print(f"wrote {out}")
