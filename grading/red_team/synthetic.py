"""Synthetic submissions, to measure a batch with: solutions, starters, mutants, cheats, and mixtures of them.

The same seed makes the same.
"""

import ast
import csv
import io
import random
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from grading.authoring.mutants import read_mutants
from grading.cohort.roster import ENDINGS
from grading.red_team.corpus import Cheat, read_cheats
from labs.harness.catalog import Lab
from labs.harness.regions import definitions, functions_of, put_back
from nano_qwen3_serving.observe.files import write_atomically

SHARES = {"solution": 10, "starter": 5, "mutant": 25, "cheat": 5, "mixture": 55}
"""The share of each kind, in percent; a lab without cheats has more mixtures."""
ARCHIVES = 4
"""One in so many is handed in as a zip."""
TERM = """\
submissions = {{ folder = "submissions" }}
roster = {{ file = "roster.csv" }}
labs = {{ {lab} = {{}} }}
grading = {{ predictions = false }}
"""
"""The term.toml; synthetic students make no predictions."""


@dataclass(frozen=True)
class SyntheticSubmission:
    """One submission: its student, its kind, and its text or the cheat that makes it."""

    student: str
    kind: str
    text: str = ""
    cheat: Cheat | None = None


def make(lab: Lab, count: int, seed: str, cheats: Sequence[Cheat] | None = None) -> list[SyntheticSubmission]:
    """`count` submissions of one lab.

    Args:
        cheats: by default the lab's.
    """
    rng = random.Random(f"{seed}/{lab.id}")
    parts = _Parts(lab, cheats if cheats is not None else [cheat for cheat in read_cheats() if cheat.lab == lab.id])
    width = max(3, len(str(count)))
    return [SyntheticSubmission(f"s{number:0{width}}", *parts.draw(rng)) for number in range(1, count + 1)]


class _Parts:
    """The parts that submissions of a lab are made of."""

    def __init__(self, lab: Lab, cheats: Sequence[Cheat]) -> None:
        self.solution, self.starter = lab.solution.read_text(encoding="utf-8"), lab.starter.read_text(encoding="utf-8")
        self.functions, self.cheats = functions_of(self.solution), cheats
        self.mutants = [(mutant, set(definitions(ast.parse(mutant.text)))) for mutant in read_mutants(lab)]

    def draw(self, rng: random.Random) -> tuple[str, str] | tuple[str, str, Cheat]:
        """A submission's kind, in words, and its text or the cheat."""
        kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
        if kind == "mutant" and self.mutants:
            mutant, _ = rng.choice(self.mutants)
            return f"mutant {mutant.name}", mutant.text
        if kind == "cheat" and self.cheats:
            cheat = rng.choice(self.cheats)
            return f"cheat {cheat.name}", "", cheat
        if kind in ("solution", "starter"):
            return kind, getattr(self, kind)
        return self._mixture(rng)

    def _mixture(self, rng: random.Random) -> tuple[str, str]:
        """Each TODO's functions from the solution, a mutant of that TODO, or the starter."""
        text, parts = self.starter, []
        for todo, names in self.functions.items():
            source = rng.choices(("solution", "mutant", "starter"), (6, 2, 2))[0]
            wrong = [mutant for mutant, there in self.mutants if mutant.todo == todo and there.issuperset(names)]
            if source == "mutant" and wrong:
                mutant = rng.choice(wrong)
                text, source = put_back(text, mutant.text, names), mutant.name
            elif source != "starter":
                text, source = put_back(text, self.solution, names), "solution"
            parts.append(f"TODO {todo} {source}")
        return "mixture: " + ", ".join(parts), text


def write(folder: Path, lab: Lab, made: Sequence[SyntheticSubmission]) -> None:
    """Writes `submissions/`, `roster.csv`, a `term.toml`, and `truth.csv` with the kind of each submission, into `folder`.

    Raises:
        ValueError: if the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; synthetic submissions go into a folder of their own")
    home = folder / "submissions"
    home.mkdir(parents=True)
    for number, submission in enumerate(made, start=1):
        if submission.cheat:
            _write_cheat(home, submission.student, submission.cheat)
        elif number % ARCHIVES:
            (home / submission.student).mkdir()
            (home / submission.student / "starter.py").write_text(submission.text, encoding="utf-8")
        else:
            with zipfile.ZipFile(home / f"{submission.student}.zip", "w") as archive:
                archive.writestr(zipfile.ZipInfo(f"{lab.folder.name}/starter.py"), submission.text)
    roster = [(submission.student, f"Student {number}", f"{submission.student}@example.org", f"sis-{number}", "AB"[number % 2])
              for number, submission in enumerate(made, 1)]
    write_atomically(folder / "roster.csv", _csv(("student", "name", "email", "sis_id", "section"), roster))
    write_atomically(folder / "term.toml", TERM.format(lab=lab.id))
    truth = [(submission.student, submission.kind) for submission in made]
    write_atomically(folder / "truth.csv", _csv(("student", "kind"), truth))


def _write_cheat(home: Path, student: str, cheat: Cheat) -> None:
    """The cheat as the student's folder, file or archive."""
    with tempfile.TemporaryDirectory() as name:
        made = cheat.make(Path(name))
        ending = next((ending for ending in ENDINGS if made.name.endswith(ending)), "")
        shutil.move(made, home / f"{student}{ending}")


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
