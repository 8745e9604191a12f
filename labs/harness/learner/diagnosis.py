"""What is probably wrong: a failing run's pattern, compared with those of known bugs.

A lab's `symptoms.json` records how a run fails on each known mistake: in which tests, and with a
digest of each message's wording, numbers left out. It contains no code. `python -m grading symptoms`
makes it, and also measures how often a diagnosis is right (cases of
tests, classes of errors and single words were tried as well, and did not improve it).

The most similar known runs vote. The diagnosis is a kind of mistake if one of them fails in exactly the same way
and nearly all votes are for its kind; else it is an area, which groups kinds that share one sentence, if most
votes are for it. If neither gets enough votes, the diagnosis repeats the first failing message that explains
something.
"""

import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from labs.harness.catalog import Lab, LabError
from labs.harness.learner.results import VARYING, Outcome

FILE = "symptoms.json"
NEAREST = 5
"""How many known runs vote, the most similar first."""
SHARPNESS = 4
"""A vote counts its run's likeness to this power."""
SAME_KIND, SAME_AREA = 0.97, 0.7
"""The share of the votes that a kind, or an area, needs."""
ALIKE, FAINT = 1.0, 0.05
"""How similar the nearest run has to be for a kind, or an area, to be named."""
SECONDS = 300

_WORDING = 70
_EXPLAINS = 5
"""How many words a message needs to explain something."""

Pattern = dict[str, list[str]]
"""Failing test -> digests of the wordings of its messages, sorted."""


@dataclass(frozen=True)
class Area:
    """Kinds of mistakes in a TODO that one sentence describes."""

    todo: int
    says: str
    hint: int
    speaks: bool = True
    """Whether it can be distinguished from other areas."""


@dataclass(frozen=True)
class Symptom:
    """A kind of mistake, and how runs fail on it."""

    todo: int
    says: str
    hint: int
    patterns: tuple[Pattern, ...]
    speaks: bool = True
    """Whether it can be distinguished from other kinds; if not, it only keeps those from being named."""
    area: Area | None = None


# matching


def pattern_of(outcomes: Iterable[Outcome], todo: int) -> Pattern:
    """How the tests of `todo` failed; empty if none did."""
    wordings_of: dict[str, set[str]] = {}
    for outcome in outcomes:
        if outcome.todo == todo and not outcome.passed:
            wordings_of.setdefault(outcome.test, set()).add(_digest(outcome.message))
    return {test: sorted(wordings) for test, wordings in sorted(wordings_of.items())}


def match(symptoms: Sequence[Symptom], outcomes: Sequence[Outcome], todo: int) -> Symptom | Area | None:
    """The kind of mistake that the run shows in `todo`, or its area; None if neither is certain, or nothing failed.

    `outcomes` hold every test of the TODO. An unwritten TODO has no symptom.
    """
    if any(outcome.todo == todo and outcome.unwritten == todo for outcome in outcomes):
        return None
    return nearest([symptom for symptom in symptoms if symptom.todo == todo], pattern_of(outcomes, todo))


def nearest(symptoms: Sequence[Symptom], pattern: Pattern) -> Symptom | Area | None:
    """The kind of mistake, or else the area, that has enough of the votes of the nearest known runs; None if none has."""
    known = [(likeness(pattern, run), symptom) for symptom in symptoms for run in symptom.patterns]
    near = sorted(known, key=lambda pair: -pair[0])[:NEAREST]
    best = near[0][0] if near else 0.0
    kind = _agreed([(alike, symptom) for alike, symptom in near], SAME_KIND)
    if isinstance(kind, Symptom) and kind.speaks and best >= ALIKE:
        return kind
    area = _agreed([(alike, symptom.area or symptom) for alike, symptom in near], SAME_AREA)
    return area if isinstance(area, Area) and area.speaks and best >= FAINT else None


def _agreed(near: Sequence[tuple[float, Symptom | Area]], share: float) -> Symptom | Area | None:
    """The candidate with this share of all votes; the more similar a run, the more its vote counts."""
    votes: Counter[str] = Counter()
    for alike, symptom in near:
        votes[symptom.says] += alike**SHARPNESS  # type: ignore[assignment]  # a count may be a fraction
    says, most = max(votes.items(), key=lambda pair: pair[1], default=("", 0.0))
    agreed = most > 0 and most >= share * sum(votes.values())
    return next(symptom for _, symptom in near if symptom.says == says) if agreed else None


def likeness(pattern: Pattern, other: Pattern) -> float:
    """From 0, nothing in common, to 1, the same: the share of failing tests and messages that both runs have."""
    first, second = _parts(pattern), _parts(other)
    return len(first & second) / len(first | second) if first | second else 0.0


def _parts(pattern: Pattern) -> set[tuple[str, ...]]:
    return {(test,) for test in pattern} | {(test, wording) for test, wordings in pattern.items() for wording in wordings}


def _digest(message: str) -> str:
    wording = VARYING.sub("#", message)[:_WORDING]
    return hashlib.sha256(wording.encode()).hexdigest()[:8]


def diagnose(symptoms: Sequence[Symptom], outcomes: Sequence[Outcome]) -> dict[int, Symptom | Area]:
    """TODO -> its kind of mistake or area, for TODOs with a diagnosis."""
    matches = {todo: match(symptoms, outcomes, todo) for todo in sorted({outcome.todo for outcome in outcomes})}
    return {todo: matched for todo, matched in matches.items() if matched is not None}


def most_telling(outcomes: Sequence[Outcome], todo: int) -> Outcome | None:
    """The first failure in `todo` that explains something: a lab's tests begin with plain cases and end with odd ones.

    A message with hardly any words explains nothing; it is used only if there is no other.
    """
    failed = [outcome for outcome in outcomes if outcome.todo == todo and not outcome.passed and outcome.message]
    return min(failed, key=lambda failure: len(re.findall(r"[^\W\d_]{2,}", failure.message)) < _EXPLAINS, default=None)


# the file


def read_table(lab: Lab) -> list[Symptom]:
    """The lab's symptoms. Raises `LabError` if it has none."""
    path = lab.folder / FILE
    if not path.is_file():
        hints = f"Hints: python -m labs hint {lab.id}"
        raise LabError(f"Lab {lab.id} has no {FILE}, so there is nothing to compare with. {hints}")
    table = json.loads(path.read_text(encoding="utf-8"))
    areas = [Area(**entry) for entry in table.get("areas", ())]
    return [
        Symptom(**(entry | {"patterns": tuple(entry["patterns"]), "area": areas[at] if at is not None else None}))
        for entry, at in ((entry, entry.get("area")) for entry in table["symptoms"])
    ]


def table_of(symptoms: Sequence[Symptom]) -> dict[str, list[dict]]:
    """`symptoms` in the form that `read_table` reads: each area once, referred to by its place."""
    areas = list(dict.fromkeys(symptom.area for symptom in symptoms if symptom.area is not None))
    entries = [vars(symptom) | {"area": areas.index(symptom.area) if symptom.area else None} for symptom in symptoms]
    return {"areas": [dict(vars(area)) for area in areas], "symptoms": entries}


def available(lab: Lab, outcomes: Sequence[Outcome]) -> list[int]:
    """The TODOs about which `labs diagnose` would say something."""
    return list(diagnose(read_table(lab), outcomes)) if (lab.folder / FILE).is_file() else []


# running and reporting


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
            raise LabError(f"The tests did not finish.\n{(run.stdout + run.stderr)[-1000:]}")
        rows = json.loads(report.read_text(encoding="utf-8")).get(lab.id, [])
    return [Outcome.from_json(row) for row in rows]


def same_everywhere(outcomes: Sequence[Outcome]) -> str | None:
    """The message with which every test failed, for example because the file does not load; None if there is none."""
    messages = {outcome.message for outcome in outcomes if not outcome.passed}
    alike = len(messages) == 1 and len(outcomes) > 1 and not any(outcome.passed for outcome in outcomes)
    return messages.pop() if alike and all(outcome.unwritten is None for outcome in outcomes) else None


def in_words(
    lab: Lab, todo: int, outcomes: Sequence[Outcome], diagnosis: Symptom | Area | None, telling: Outcome | None = None
) -> list[str]:
    """The report on one TODO: a kind; or an area and the failure that explains most; or that failure alone."""
    own = [outcome for outcome in outcomes if outcome.todo == todo]
    failed = sum(not outcome.passed for outcome in own)
    begin, fail = f"Lab {lab.id}, TODO {todo}:", f"{failed} of {len(own)} tests {'fails' if failed == 1 else 'fail'}"
    if not failed:
        return [f"{begin} every test passes."]
    if any(outcome.unwritten == todo for outcome in own):
        return [f"{begin} not started, or not finished."]
    message = [f"  {telling.test}:", f"  {telling.message}"] if telling is not None else []
    if diagnosis is None:
        more = " The message that explains most:" if message else ""
        return [f"{begin} {fail}, but not like a known mistake.{more}", *message,
                f"  Hints: python -m labs hint {lab.id} {todo}"]
    lines = [f"{begin} {fail}. Probably:", f"  {diagnosis.says}"]
    if isinstance(diagnosis, Area) and message:
        lines += ["  The message that explains most of it:", *message]
    return [*lines, f"  Hint {diagnosis.hint} fits; all hints: python -m labs hint {lab.id} {todo} --all"]
