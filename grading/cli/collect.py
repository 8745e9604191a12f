"""`python -m grading collect`: a platform's download becomes the term's folder of submissions."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from grading.cli.batch import lab_names, print_lines
from grading.cli.term import TermFile
from grading.cohort.downloads import FORMS, Collected
from grading.cohort.downloads import collect as collected
from grading.cohort.roster import table
from grading.cohort.term import Term, find_term
from grading.judge.intake import ALLOWED
from labs.harness.catalog import Lab, find_lab
from nano_qwen3_serving.observe.files import write_atomically

KEPT = ".downloads.json"
"""A file in the folder of submissions: how a platform names each submission's files, by lab. Feedback uses these names."""
NOTES = "collected.txt"

console = Console(highlight=False)


def collect(
    download: Annotated[Path, typer.Argument(help="The zip or folder that the platform gave you, of one assignment.")],
    lab: Annotated[str, typer.Option(help="Which lab's it is, such as 06.")],
    form: Annotated[str, typer.Option("--from", help=", ".join(FORMS))],
    worksheet: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Moodle's grading worksheet of the assignment: says whose each is, and when it came.")] = None,
    term_file: TermFile = None,
) -> None:
    """Lay a platform's download into the term's folder of submissions, by students' ids; what it says of times into its times."""
    term, chosen = find_term(term_file), find_lab(lab)
    if term.roster is None or term.submissions is None:
        raise ValueError("to know whose each submission is, term.toml has to name a roster, [roster] file = …, "
                         "and the folder they go to, [submissions] folder = …")
    hand_ins, lines = collected(download, form, chosen, term.roster, worksheet, term.zone)
    for hand_in in hand_ins:
        _lay(term.submissions / hand_in.owner / chosen.folder.name, hand_in)
    _keep(term.submissions / KEPT, chosen, form, hand_ins)
    print_lines(lines)
    console.print(f"{len(hand_ins)} submissions of lab {chosen.id} are in {term.submissions}", markup=False, soft_wrap=True)
    _note_times(term, chosen, {hand_in.owner: hand_in.part.submitted for hand_in in hand_ins if hand_in.part.submitted})
    late = [hand_in.owner for hand_in in hand_ins if hand_in.part.is_late]
    if late:
        console.print(f"late, as Canvas says, which does not say when: {', '.join(late)}", markup=False, soft_wrap=True)


def _lay(folder: Path, hand_in: Collected) -> None:
    """Writes a submission's graded files over those of an earlier download, which the journal still has."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*ALLOWED, NOTES):
        (folder / name).unlink(missing_ok=True)
    for name, content in hand_in.submission.files.items():
        (folder / name).write_bytes(content)
    if not hand_in.submission.files:
        write_atomically(folder / NOTES, "\n".join(hand_in.submission.notes) + "\n")


def _keep(path: Path, lab: Lab, form: str, hand_ins: Sequence[Collected]) -> None:
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept[lab.id] = {"form": form, "prefixes": {hand_in.owner: hand_in.part.prefix for hand_in in hand_ins}}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(kept, ensure_ascii=False, indent=1, sort_keys=True) + "\n")


def _note_times(term: Term, lab: Lab, times: Mapping[str, str]) -> None:
    """Writes a download's times into the term's file of times, over those of an earlier download."""
    if not times or term.times is None:
        why = 'term.toml names no file for times, [submissions] times = "times.csv"' if times else "the download has no times"
        console.print(f"{why}: they have to come from the platform's own list", markup=False, soft_wrap=True)
        return
    rows = table(term.times, ["student", "lab", "submitted"])[0] if term.times.is_file() else []
    ids = lab_names()
    kept = {(row["student"], ids.get(row["lab"], row["lab"])): row["submitted"] for _, row in rows}
    kept |= {(who, lab.id): when for who, when in times.items()}
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [("student", "lab", "submitted"), *((who, of, when) for (who, of), when in sorted(kept.items()))])
    write_atomically(term.times, text.getvalue())
    console.print(f"{len(times)} times are in {term.times}", markup=False, soft_wrap=True)
