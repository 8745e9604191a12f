"""Starters are made from solutions: `python -m grading starter` writes them, `--check` compares."""

from labs.harness.catalog import Lab, LabError
from labs.harness.learner.backups import back_up
from labs.harness.regions import make_starter


def generate(lab: Lab) -> str:
    """The text that `lab`'s starter.py should have. Raises `LabError` naming a malformed region."""
    if not lab.solution.is_file():
        raise LabError(f"There is no {lab.solution} to make a starter from.")
    try:
        return make_starter(lab.solution.read_text(encoding="utf-8"), lab.id)
    except SyntaxError as error:
        raise LabError(f"{lab.solution} line {error.lineno}: {error.msg}.") from None
    except LabError as error:
        raise LabError(f"{lab.solution}, {error}") from None


def is_stale(lab: Lab) -> bool:
    """Whether the starter on disk is missing or differs from the generated one."""
    return not lab.starter.is_file() or lab.starter.read_text(encoding="utf-8") != generate(lab)


def write(lab: Lab) -> None:
    """Write the generated starter; a starter on disk that differs may be a person's work and is backed up."""
    if lab.starter.is_file() and is_stale(lab):
        back_up(lab.starter, lab.folder.parent / ".backups")
    lab.starter.write_text(generate(lab), encoding="utf-8", newline="\n")
