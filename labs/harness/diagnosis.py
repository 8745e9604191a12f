"""What is probably wrong: a failing run's pattern, compared with those of known bugs.

A lab's `symptoms.json` says of each known mistake how a run fails on it: in which tests, and with a
digest of each message's wording, numbers left out. There is no code in it. It is made by
`python -m grading symptoms`, which also measures how often what is said here is right (cases of
tests and classes of errors were tried as well, and made it no better). Where mistakes of different
kinds look alike, or nothing looks alike, nothing is said.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from labs.harness.catalog import Lab, LabError
from labs.harness.results import Outcome

FILE = "symptoms.json"
ALIKE = 0.5
"""Two patterns that share less are not alike."""
MARGIN = 0.4
"""Patterns of another kind have to be this much less alike than the nearest."""
SECONDS = 300

_VARYING = re.compile(r"""'[^']*'|"[^"]*"|\[[^\]]*\]?|-?\d+(\.\d+)?(e[-+]?\d+)?""")
"""What differs from run to run in a message: quoted text, lists, numbers."""
_WORDING = 70

Pattern = dict[str, list[str]]
"""Failing test -> digests of the wordings of its messages, sorted."""


@dataclass(frozen=True)
class Symptom:
    """A kind of mistake, and how runs fail on it."""

    todo: int
    says: str
    hint: int
    patterns: tuple[Pattern, ...]
    speaks: bool = True
    """Whether it can be told from other kinds; if not, it only keeps these from being named."""


# matching


def pattern_of(outcomes: Iterable[Outcome], todo: int) -> Pattern:
    """How the tests of `todo` failed; empty if none did."""
    found: dict[str, set[str]] = {}
    for outcome in outcomes:
        if outcome.todo == todo and not outcome.passed:
            found.setdefault(outcome.test, set()).add(_digest(outcome.message))
    return {test: sorted(wordings) for test, wordings in sorted(found.items())}


def match(symptoms: Sequence[Symptom], outcomes: Sequence[Outcome], todo: int) -> Symptom | None:
    """The kind of mistake that the run shows in `todo`; None if it cannot be told, or there is none.

    `outcomes` hold every test of the TODO. An unwritten TODO has no symptom.
    """
    if any(outcome.todo == todo and outcome.unwritten == todo for outcome in outcomes):
        return None
    found = nearest([symptom for symptom in symptoms if symptom.todo == todo], pattern_of(outcomes, todo))
    return found if found is not None and found.speaks else None


def nearest(symptoms: Sequence[Symptom], pattern: Pattern) -> Symptom | None:
    """The one kind of mistake that has a pattern near this one; None if none has, or several have."""
    near = [(likeness(pattern, known), symptom) for symptom in symptoms for known in symptom.patterns]
    best = max((value for value, _ in near), default=0.0)
    kinds = {symptom.says: symptom for value, symptom in near if value >= best - MARGIN}
    return next(iter(kinds.values())) if best >= ALIKE and len(kinds) == 1 else None


def likeness(one: Pattern, other: Pattern) -> float:
    """From 0, nothing in common, to 1, the same: of the failing tests and their messages, the share that both have."""
    first, second = _parts(one), _parts(other)
    return len(first & second) / len(first | second) if first | second else 0.0


def _parts(pattern: Pattern) -> set[tuple[str, ...]]:
    return {(test,) for test in pattern} | {(test, wording) for test, wordings in pattern.items() for wording in wordings}


def _digest(message: str) -> str:
    wording = _VARYING.sub("#", message)[:_WORDING]
    return hashlib.sha256(wording.encode()).hexdigest()[:8]


def diagnose(symptoms: Sequence[Symptom], outcomes: Sequence[Outcome]) -> dict[int, Symptom]:
    """TODO -> its symptom, for those of which one can be told."""
    found = {todo: match(symptoms, outcomes, todo) for todo in sorted({outcome.todo for outcome in outcomes})}
    return {todo: symptom for todo, symptom in found.items() if symptom is not None}


# the file


def read_table(lab: Lab) -> list[Symptom]:
    """The lab's symptoms. Raises `LabError` if it has none."""
    path = lab.folder / FILE
    if not path.is_file():
        hints = f"Hints: python -m labs hint {lab.id}"
        raise LabError(f"Lab {lab.id} has no {FILE}, so there is nothing to compare with. {hints}")
    entries = json.loads(path.read_text(encoding="utf-8"))["symptoms"]
    return [Symptom(**(entry | {"patterns": tuple(entry["patterns"])})) for entry in entries]


def available(lab: Lab, outcomes: Sequence[Outcome]) -> list[int]:
    """The TODOs of which `labs diagnose` would say something."""
    return list(diagnose(read_table(lab), outcomes)) if (lab.folder / FILE).is_file() else []


# running and telling


def run_tests(lab: Lab, todo: int | None = None) -> list[Outcome]:
    """How the tests (of one TODO, or all) end on `starter.py` now. Raises `LabError` if they do not get to their end."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pytest", str(lab.tests), "--lab-json", str(report), "-q", "-p", "no:cacheprovider"]
        command += ["-k", f"test_todo_{todo}_"] if todo is not None else []
        try:
            run = subprocess.run(command, cwd=lab.folder, capture_output=True, text=True, errors="replace", timeout=SECONDS)
        except subprocess.TimeoutExpired:
            message = f"The tests did not end within {SECONDS} s: something waits for ever. pytest -x -v shows where."
            raise LabError(message) from None
        if not report.is_file():
            raise LabError(f"The tests did not get to their end.\n{(run.stdout + run.stderr)[-1000:]}")
        found = json.loads(report.read_text(encoding="utf-8")).get(lab.id, [])
    return [Outcome(**(facts | {"on_ours": tuple(facts["on_ours"])})) for facts in found]


def in_words(lab: Lab, todo: int, outcomes: Sequence[Outcome], symptom: Symptom | None) -> list[str]:
    """What is said of one TODO."""
    own = [outcome for outcome in outcomes if outcome.todo == todo]
    failed = sum(not outcome.passed for outcome in own)
    begin, fail = f"Lab {lab.id}, TODO {todo}:", f"{failed} of {len(own)} tests fail"
    if not failed:
        return [f"{begin} every test passes."]
    if any(outcome.unwritten == todo for outcome in own):
        return [f"{begin} not started, or not finished."]
    if symptom is None:
        return [f"{begin} {fail}, in a way that does not tell why. Hints: python -m labs hint {lab.id} {todo}"]
    return [
        f"{begin} {fail}. Probably:",
        f"  {symptom.says}",
        f"  Hint {symptom.hint} fits: python -m labs hint {lab.id} {todo}",
    ]
