"""Does the judge agree with the labs' tests? On the solution, the alternatives, the starter and every mutant.

A mutant has to lose points at its TODO, and at another TODO only if the mutant's file lists that one under
`spills`.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from grading.authoring.alternatives import read_alternatives
from grading.authoring.mutants import Mutant, read_mutants
from grading.judge.grader import Grader, Settings, grader_of
from grading.judge.intake import Submission
from grading.judge.report import Report
from labs.harness.catalog import Lab


@dataclass(frozen=True)
class KnownSubmission:
    """A file whose verdict is known.

    Attributes:
        kind: `solution`, `alternative`, `starter`, or a mutant's kind.
        todo: the mutant's TODO.
        may: other TODOs at which it may lose points.
    """

    kind: str
    name: str
    text: str
    todo: int | None = None
    may: tuple[int, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """The judge's report on a case; `wrong` says where it contradicts the tests."""

    case: KnownSubmission
    report: Report
    wrong: str


def cases_of(lab: Lab) -> list[KnownSubmission]:
    """Every case of a lab: its right solutions, its starter, its mutants."""
    cases = [KnownSubmission("solution", "solution", lab.solution.read_text(encoding="utf-8"))]
    cases += [KnownSubmission("alternative", alternative.name, alternative.text) for alternative in read_alternatives(lab)]
    cases.append(KnownSubmission("starter", "starter", lab.starter.read_text(encoding="utf-8")))
    return cases + [_of_mutant(mutant) for mutant in read_mutants(lab)]


def _of_mutant(mutant: Mutant) -> KnownSubmission:
    return KnownSubmission(mutant.kind, mutant.name, mutant.text, mutant.todo, mutant.spills)


def findings(
    lab: Lab, cases: Sequence[KnownSubmission], settings: Settings, jobs: int = 1, done: Callable[[], None] = lambda: None
) -> list[Judgement]:
    """One judgement per case, in order; `done` is called after each."""
    shares = [cases[start::jobs] for start in range(jobs)]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        by_case = {}
        for judgements in pool.imap_unordered(_one_share, [(lab, share, settings) for share in shares if share]):
            for finding in judgements:
                by_case[finding.case.kind, finding.case.name] = finding
                done()
    return [by_case[case.kind, case.name] for case in cases]


def _one_share(job: tuple[Lab, Sequence[KnownSubmission], Settings]) -> list[Judgement]:
    lab, cases, settings = job
    with grader_of(lab, settings) as grader:
        return list(_findings(grader, cases))


def _findings(grader: Grader, cases: Sequence[KnownSubmission]) -> Iterator[Judgement]:
    with grader.sandbox() as shared:
        for case in cases:
            report = grader.grade(Submission(case.name, {"starter.py": case.text.encode()}), shared=shared)
            yield Judgement(case, report, disagreement(case, report))


def disagreement(case: KnownSubmission, report: Report) -> str:
    """Where the judge's verdict differs from what is known of a case; empty where it does not."""
    lost = {row.todo: row.points - row.earned for row in report.todos() if row.earned < row.points and row.todo}
    if case.kind in ("solution", "alternative"):
        return "".join(f"loses points at TODO {todo}; " for todo in lost)
    if case.kind == "starter":
        kept = [row.todo for row in report.todos() if row.todo and row.state != "not started"]
        return f"TODO {kept} counts as started" if kept else ""
    if case.todo not in lost:
        return f"loses nothing at TODO {case.todo}"
    return "".join(f"loses points at TODO {todo}, too; " for todo in lost if todo != case.todo and todo not in case.may)
