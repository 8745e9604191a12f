"""What commands take from `term.toml`, and `python -m grading init`, which writes one."""

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from grading.cohort.journal import Journal
from grading.cohort.term import FILE, Term
from grading.edition.release import TEMPLATES
from grading.judge.grader import Settings
from grading.sandbox.isolation import Limits, strongest_level
from labs.harness.catalog import Lab, all_labs, find_lab
from nano_qwen3_serving.observe.files import write_atomically

TermFile = Annotated[Path | None, typer.Option(
    "--term-file", metavar="FILE", help="What holds for the term; by default term.toml in this folder, if it is there.")]
JournalFile = Annotated[Path | None, typer.Option(
    "--journal", metavar="FILE", help="Another journal than the term's; an export takes it as it is.")]
Isolation = Annotated[str | None, typer.Option(
    help="namespaces, limits or none; by default what the term says, else the strongest there is.")]


def init(
    out: Annotated[Path, typer.Argument(metavar="[FILE]", help="A new file.")] = FILE,
    secret: Annotated[str, typer.Option(help="Where the term secret is to be; it is made if it is not there.")]
    = "../term-secret.txt",
) -> None:
    """Write a term.toml to start from, with a comment at every key, and a term secret."""
    if out.exists():
        raise ValueError(f"{out} is there already; it stays as it is")
    text = (TEMPLATES / "term.toml").read_text(encoding="utf-8")
    labs = "\n".join(f"{lab.id} = {{ }}                        # {lab.title}" for lab in all_labs())
    out.parent.mkdir(parents=True, exist_ok=True)
    kept = out.parent / secret
    if not kept.exists():
        handle = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # its reader can work out the inputs of hidden checks
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(secrets.token_hex(16) + "\n")
        print(f"wrote {kept}: keep it, and out of every repository")
    write_atomically(out, text.replace("{secret}", secret.replace("\\", "/")).replace("{labs}", labs)
                     .replace("{{", "{").replace("}}", "}"))
    print(f"wrote {out}")


def settings_of(term: Term, isolation: str | None = None, seed: str | None = None) -> Settings:
    """How the term's submissions are graded; level and seed can be overridden for this run."""
    limits = Limits(wall_seconds=term.seconds, cpu_seconds=max(1, int(term.seconds / 2)))
    level = isolation or term.isolation or strongest_level()
    return Settings(term.secret, term.seed_mode, seed, level, limits, term.predictions, term.submission_seconds)


def open_journal(term: Term, other: Path | None = None, create: bool = False) -> Journal:
    """The term's journal, which from now on has the term's due dates, policy and overrides; or another journal, unchanged.

    Args:
        create: whether to make the journal if it does not exist; another journal then also gets the term's rules.
    """
    base = Journal(other or term.journal, create)
    if term.file is not None and (create or other is None):
        try:
            if base.terms().to_json() != term.terms().to_json():
                base.set_terms(term.terms())
            if base.overrides() != list(term.overrides):
                base.set_overrides(term.overrides)
        except BaseException:
            base.close()
            raise
    return base


def labs_of(term: Term, names: str | None) -> list[Lab]:
    """The labs that are named, `06,07`, else the term's, in their order. Raises `ValueError` if there are none."""
    chosen = [name.strip() for name in names.split(",") if name.strip()] if names else list(term.labs)
    if not chosen:
        raise ValueError("which labs? --labs 06,07 names them, or [labs] in term.toml: 06 = { }")
    by_id = {lab.id: lab for lab in map(find_lab, chosen)}
    return [by_id[lab] for lab in sorted(by_id)]


def submissions_of(term: Term, folder: Path | None) -> Path:
    """The folder that is named, else the term's. Raises `ValueError` if neither is."""
    if folder is None and term.submissions is None:
        raise ValueError("where are the submissions? Name their folder, or in term.toml: [submissions] folder = …")
    return folder or term.submissions  # type: ignore[return-value]
