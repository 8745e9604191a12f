"""Which mutants the suites catch: running them, and printing the table.

A mutant is caught if a test of its own TODO fails on it; a mutant that hangs or crashes is caught by the
test during which it did. No test may catch an alternative: such a test looks at how instead of what.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from grading.authoring import suite_runner
from grading.authoring.alternatives import Alternative
from grading.authoring.mutants import KINDS, Mutant
from labs.harness.catalog import Lab


def by_machine(mutant: Mutant) -> bool:
    """Whether the mutant is one of very many, made by a program."""
    return mutant.kind == "machine"


@dataclass(frozen=True)
class MutantVerdict:
    """The result of one lab's suite on one mutant."""

    mutant: Mutant
    result: suite_runner.Result
    caught_by: tuple[str, ...]
    """The tests of its TODO that fail."""
    elsewhere: dict[int, tuple[str, ...]]
    """Other TODO -> its tests that fail."""
    spilled: tuple[int, ...]
    """The TODOs in `elsewhere` that do not need the mutant's TODO and that its file does not list under `spills`."""
    limit: float
    """The time limit of a run of the lab's suite, in seconds."""

    @property
    def caught(self) -> bool:
        """Whether a test of its own TODO failed."""
        return bool(self.caught_by)

    @property
    def how(self) -> str:
        """Which tests caught it, in a few words."""
        ended = f"{self.result.ended} in " if self.result.ended else ""
        if not self.caught:
            return "NOT CAUGHT" + (f", but {ended}{self.result.during or 'no test'}" if ended else "")
        own = [name.removeprefix(f"test_todo_{self.mutant.todo}_") for name in self.caught_by]
        return ended + (own[0] if len(own) == 1 else f"{len(own)} tests")


def judge(
    labs: Sequence[Lab],
    mutants: Sequence[Mutant],
    parallel: int | None = None,
    done: Callable[[], None] = lambda: None,
    quick: Callable[[Mutant], bool] = by_machine,
) -> list[MutantVerdict]:
    """A verdict for every mutant, in order; `done()` is called after each run, of which each lab has one more.

    If `quick(mutant)`, only the tests of the mutant's own TODO run, up to the first failure.
    Raises `LabError` if a lab's suite fails on the lab's own solution.
    """
    by_id = {lab.id: lab for lab in labs}
    wanted = {mutant.lab for mutant in mutants}
    bases = [suite_runner.Job(lab, lab.solution.read_text(encoding="utf-8")) for lab in labs if lab.id in wanted]
    on_solutions = suite_runner.run(bases, parallel, done)
    limits = {job.lab.id: suite_runner.baseline(job.lab, result) for job, result in zip(bases, on_solutions, strict=True)}
    jobs = [job_of(mutant, by_id[mutant.lab], limits[mutant.lab], quick(mutant)) for mutant in mutants]
    results = suite_runner.run(jobs, parallel, done)
    return [verdict(by_id[mutant.lab], mutant, result, limits[mutant.lab])
            for mutant, result in zip(mutants, results, strict=True)]


def job_of(mutant: Mutant, lab: Lab, seconds: float, quick: bool, without: str = "") -> suite_runner.Job:
    """The run that judges a mutant: the whole suite; `quick`, or `without` a test, the tests of its TODO."""
    select = f"test_todo_{mutant.todo}_" if quick or without else ""
    return suite_runner.Job(lab, mutant.text, select + f" and not {without}" * bool(without), stop_first=quick, seconds=seconds)


def verdict(lab: Lab, mutant: Mutant, result: suite_runner.Result, limit: float) -> MutantVerdict:
    """What `result`, of a run on `mutant`, means."""
    todos = sorted({outcome["todo"] for outcome in result.outcomes} - {mutant.todo})
    elsewhere = {todo: tuple(result.failing(todo)) for todo in todos if result.failing(todo)}
    allowed = needing(lab, mutant.todo) | set(mutant.spills)
    spilled = tuple(todo for todo in elsewhere if todo not in allowed)
    return MutantVerdict(mutant, result, tuple(result.failing(mutant.todo)), elsewhere, spilled, limit)


def needing(lab: Lab, todo: int) -> set[int]:
    """The TODOs whose tests run on `todo`, directly or through others."""
    needing_it: set[int] = set()
    while new := {later.number for later in lab.todos if {todo, *needing_it} & set(later.needs)} - needing_it:
        needing_it |= new
    return needing_it


def judge_alternatives(
    labs: Sequence[Lab], alternatives: Sequence[Alternative], parallel: int | None = None, done: Callable[[], None] = lambda: None
) -> list[suite_runner.Result]:
    """The whole suite's result on every alternative, in order."""
    by_id = {lab.id: lab for lab in labs}
    jobs = [suite_runner.Job(by_id[alternative.lab], alternative.text) for alternative in alternatives]
    return suite_runner.run(jobs, parallel, done)


# printing


def print_table(console: Console, labs: Sequence[Lab], verdicts: Sequence[MutantVerdict]) -> None:
    """Every mutant with what caught it, then the counts, then the survivors with their stories."""
    for lab in labs:
        own = [verdict for verdict in verdicts if verdict.mutant.lab == lab.id and not by_machine(verdict.mutant)]
        if own:
            console.print(_of_one_lab(lab, own))
    console.print(_counts(labs, verdicts))
    for verdict in verdicts:
        if verdict.spilled:
            where = ", ".join(f"TODO {todo} ({', '.join(verdict.elsewhere[todo])})" for todo in verdict.spilled)
            _say(console, f"Lab {verdict.mutant.lab} {verdict.mutant.name}: loses points elsewhere, at {where}")
    survivors = [verdict.mutant for verdict in verdicts if not verdict.caught]
    for mutant in survivors:
        _say(console, f"Lab {mutant.lab}, TODO {mutant.todo}, {mutant.kind}: {mutant.name} SURVIVES. {mutant.story.strip()}")
    if not survivors:
        _say(console, f"{len(verdicts)} mutants, all caught by a test of their TODO.")


def _of_one_lab(lab: Lab, verdicts: Sequence[MutantVerdict]) -> Table:
    table = Table(title=f"Lab {lab.id}, {escape(lab.title)}", title_justify="left")
    for heading in ("TODO", "mutant", "kind", "caught by", "also failing"):
        table.add_column(heading, overflow="fold")
    for verdict in sorted(verdicts, key=lambda verdict: (verdict.mutant.todo, verdict.mutant.name)):
        also = ", ".join(f"TODO {todo}" for todo in verdict.elsewhere)
        style = None if verdict.caught else "red"
        table.add_row(str(verdict.mutant.todo), verdict.mutant.name, verdict.mutant.kind, escape(verdict.how), also, style=style)
    return table


def _counts(labs: Sequence[Lab], verdicts: Sequence[MutantVerdict]) -> Table:
    """For each lab and kind, how many mutants were caught, of how many."""
    kinds = [kind for kind in KINDS if any(verdict.mutant.kind == kind for verdict in verdicts)]
    table = Table(title="caught by a test of their TODO", title_justify="left")
    for heading in ("lab", *kinds, "hung or crashed"):
        table.add_column(heading)
    for lab in labs:
        own = [verdict for verdict in verdicts if verdict.mutant.lab == lab.id]
        cells = []
        for kind in kinds:
            of_kind = [verdict for verdict in own if verdict.mutant.kind == kind]
            cells.append(f"{sum(verdict.caught for verdict in of_kind)} of {len(of_kind)}" if of_kind else "–")
        table.add_row(lab.id, *cells, str(sum(bool(verdict.result.ended) for verdict in own)))
    return table


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def as_json(verdicts: Sequence[MutantVerdict]) -> list[dict]:
    """The verdicts as plain data."""
    return [
        {
            "lab": verdict.mutant.lab, "name": verdict.mutant.name, "todo": verdict.mutant.todo, "kind": verdict.mutant.kind,
            "story": verdict.mutant.story, "caught": verdict.caught, "caught_by": verdict.caught_by,
            "elsewhere": verdict.elsewhere, "spilled": verdict.spilled, "ended": verdict.result.ended,
            "seconds": round(verdict.result.seconds, 2),
        }
        for verdict in verdicts
    ]  # fmt: skip
