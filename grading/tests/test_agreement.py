"""The judge agrees with the labs' tests: on right files, on the starter, and on some mutants.

All of them: python -m grading agreement
"""

from __future__ import annotations

import random
import subprocess

import pytest

from grading.authoring.agreement import KnownSubmission, cases_of, disagreement, findings
from grading.judge.grader import Settings
from grading.judge.report import CheckResult, Report
from grading.sandbox.isolation import strongest_level
from labs.harness.catalog import Lab, all_labs


def commit() -> str:
    """Which mutants are taken changes with every commit, and not between two runs of one."""
    return subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()


def some_cases(lab: Lab) -> list[KnownSubmission]:
    """The solution, an alternative, the starter, and a mutant of each of three TODOs."""
    rng, cases = random.Random(f"{commit()}:{lab.id}"), cases_of(lab)
    of = {kind: [case for case in cases if case.kind == kind] for kind in ("solution", "alternative", "starter")}
    mutants = [case for case in cases if case.todo is not None]
    todos = rng.sample(sorted({case.todo for case in mutants}), 3)
    chosen = [rng.choice([case for case in mutants if case.todo == todo]) for todo in todos]
    return [*of["solution"], rng.choice(of["alternative"]), *of["starter"], *chosen]


@pytest.mark.proof
@pytest.mark.parametrize("lab", all_labs(), ids=lambda lab: lab.id)
def test_the_judge_says_what_the_labs_tests_say(lab: Lab):
    settings = Settings(level=strongest_level(), seed=f"commit {commit()}", predictions=False)
    wrong = [f"{one.case.kind} {one.case.name}: {one.wrong}" for one in findings(lab, some_cases(lab), settings, jobs=2)
             if one.wrong]
    assert not wrong, "\n".join(wrong)


def report(*lost: int) -> Report:
    """Two TODOs of 10 points, of which those named are lost."""
    checks = [CheckResult(todo, f"check {todo}", 10, 0 if todo in lost else 10, False, "x" if todo in lost else "")
              for todo in (1, 2)]
    return Report("a", "06", "", "none", "", {}, tuple(checks))


@pytest.mark.parametrize(
    "case, lost, words",
    [
        (KnownSubmission("solution", "s", ""), (), ""),
        (KnownSubmission("alternative", "s", ""), (2,), "loses points at TODO 2"),
        (KnownSubmission("author", "m", "", todo=1), (1,), ""),
        (KnownSubmission("author", "m", "", todo=1), (), "loses nothing at TODO 1"),
        (KnownSubmission("author", "m", "", todo=1), (1, 2), "loses points at TODO 2, too"),
        (KnownSubmission("author", "m", "", todo=1, may=(2,)), (1, 2), ""),
        (KnownSubmission("starter", "s", ""), (1, 2), "counts as started"),
    ],
)
def test_what_counts_as_a_disagreement(case: KnownSubmission, lost: tuple[int, ...], words: str):
    found = disagreement(case, report(*lost))
    assert words in found and bool(found) == bool(words)
