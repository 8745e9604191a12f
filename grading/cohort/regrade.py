"""The effect of changed checks on scores: who gains, who loses, at which TODO and why. No score is lowered silently."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from rich.table import Table
from rich.text import Text

from grading.cohort.batch import Plan, Unit, runs_of
from grading.cohort.journal import Journal
from grading.cohort.roster import Cohort, Remark
from grading.cohort.worker_pool import Crew, schedule
from grading.judge.checks import shorter
from grading.judge.report import CheckResult, Report
from grading.judge.show import plain, points


@dataclass(frozen=True)
class ScoreChange:
    """One check whose points have changed.

    Attributes:
        points: gained; lost if negative.
        reason: in a sentence.
    """

    todo: int
    check: str
    points: float
    reason: str


@dataclass(frozen=True)
class Change:
    """One hand-in's standing result, and its result under the present checks."""

    before: Report
    after: Report

    @property
    def points(self) -> float:
        """The points that the score gains; negative for a loss."""
        return round(self.after.score - self.before.score, 2)

    @property
    def differences(self) -> list[ScoreChange]:
        """The differences by TODO, in the order of the checks; removed checks come last in their TODO."""
        old = {check.name: check for check in self.before.checks}
        new = {check.name: check for check in self.after.checks}
        differences = [_difference(old.get(name), new.get(name)) for name in dict.fromkeys([*new, *old])]
        return sorted((difference for difference in differences if difference.points), key=lambda difference: difference.todo)


def _difference(old: CheckResult | None, new: CheckResult | None) -> ScoreChange:
    either = new or old
    assert either is not None
    gained = round((new.earned if new else 0.0) - (old.earned if old else 0.0), 2)
    return ScoreChange(either.todo, either.name, gained, _reason(old, new))


def _reason(old: CheckResult | None, new: CheckResult | None) -> str:
    if new is None:
        assert old is not None
        return f"the check is gone; it gave {points(old.earned)}"
    if old is None:
        return (f"the check is new; passed, {points(new.points)}" if new.passed
                else f"the check is new, and fails: {shorter(new.message)}")
    if old.passed and new.passed:
        return f"it is worth {points(new.points)} now; it was {points(old.points)}"
    if new.passed:
        return f"passes now; it failed: {shorter(old.message)}"
    return (f"fails now: {shorter(new.message)}" if old.passed
            else f"{points(new.earned)} now; it was {points(old.earned)}: {shorter(new.message)}")


@dataclass
class Regraded:
    """The outcome of a regrade.

    Attributes:
        changes: one per hand-in that has a result, by lab and student, even without a difference.
        lines: one for each hand-in that could not be compared.
        held: how many changes lose points and therefore do not stand.
    """

    changes: list[Change]
    lines: list[Remark]
    held: int = 0

    @property
    def winners(self) -> list[Change]:
        """Changes that gain points."""
        return [change for change in self.changes if change.points > 0]

    @property
    def losers(self) -> list[Change]:
        """Changes that lose points."""
        return [change for change in self.changes if change.points < 0]


def run_regrade(
    journal: Journal, plan: Plan, cohort: Cohort, crew: Crew, dry: bool, allow_lower: bool = False,
    done: Callable[[], None] = lambda: None, again: Collection[str] = (), todo: int | None = None
) -> Regraded:
    """Grade every hand-in that has a result under the present checks; a dry run changes nothing in the journal.

    Standing results change only at the end, so a regrade that was interrupted and goes on still reports all changes.

    Args:
        again: students whose hand-ins run once more even if the journal knows their result: the machine may have been
            at fault.
        todo: take only this TODO's checks from the new results, see `with_todo`. Everything runs once more, because a known
            result may be such a mixed one.
    """
    if todo is not None:
        again = {hand_in.attempt.student for hand_in in cohort.handed_in}
    before = {unit.key: standing for unit, standing in _comparable(journal, plan, cohort)}
    units = {unit.key: unit for unit in map(plan.unit, cohort.handed_in) if unit.key in before}
    after, runs = _known(journal, units, again)
    with closing(schedule(runs_of(units, set(after)), crew)) as outcomes:
        for outcome in outcomes:
            unit = outcome.unit
            if outcome.answer is None:
                cohort.say("error", f"not graded: {'; '.join(outcome.crashes)}", unit.submission.student, unit.lab)
            else:
                after[unit.key] = outcome.answer
                if not dry and todo is None:
                    runs[unit.key] = journal.next_run(unit.key)
                    journal.store(runs[unit.key], outcome.answer)
            done()
    if todo is not None:
        _keep_the_rest(journal, before, after, runs, todo, dry)
    held = 0 if dry else sum(not journal.record(runs[key], report, allow_lower) for key, report in after.items())
    changes = [Change(before[key], report) for key, report in after.items()]
    return Regraded(sorted(changes, key=lambda change: (change.after.lab, change.after.student)), cohort.lines, held)


def with_todo(before: Report, after: Report, todo: int) -> Report:
    """An earlier result with one TODO's checks from a later one; a note says so."""
    checks = [check for check in before.checks if check.todo != todo] + [check for check in after.checks if check.todo == todo]
    note = f"TODO {todo} was graded again, with checks {after.versions.get('checks', '')}"
    notes = tuple(earlier for earlier in before.notes if not earlier.startswith(f"TODO {todo} was graded again"))
    return replace(before, checks=tuple(sorted(checks, key=lambda check: check.todo)), notes=(*notes, note))


def _keep_the_rest(
    journal: Journal, before: Mapping[str, Report], after: dict[str, Report], runs: dict[str, str], todo: int, dry: bool
) -> None:
    """Replaces the new results by mixed ones, stored as further runs, so that a batch finds them and grades nothing again."""
    for key, report in after.items():
        after[key] = with_todo(before[key], report, todo)
        if not dry:
            runs[key] = journal.next_run(key)
            journal.store(runs[key], after[key])


def _known(
    journal: Journal, units: Mapping[str, Unit], again: Collection[str]
) -> tuple[dict[str, Report], dict[str, str]]:
    """Units that need not run: key → report, and key → the run that the report is from."""
    runs = {key: run for key, unit in units.items()
            if unit.submission.student not in again and (run := journal.run_of(key))}
    return {key: report for key, run in runs.items() if (report := journal.result(run))}, runs


def _comparable(journal: Journal, plan: Plan, cohort: Cohort) -> list[tuple]:
    """The units that have a standing result; the cohort gets a line for each hand-in without one."""
    comparable = []
    for hand_in in cohort.handed_in:
        attempt = hand_in.attempt
        if standing := journal.standing(attempt.student, attempt.lab, attempt.digest):
            comparable.append((plan.unit(hand_in), standing))
        else:
            cohort.say("not graded yet", "it is not in the journal; python -m grading batch grades it", attempt.student,
                       attempt.lab)
    return comparable


def to_regrade(journal: Journal, plan: Plan, cohort: Cohort, again: Collection[str] = ()) -> int:
    """Runs that `run_regrade` is going to make."""
    units = {unit.key: unit for hand_in in cohort.handed_in for unit in [plan.unit(hand_in)]
             if journal.standing(hand_in.attempt.student, hand_in.attempt.lab, hand_in.attempt.digest)}
    return len(units) - len(_known(journal, units, again)[0])


def change_table(changes: Sequence[Change], title: str) -> Table:
    """A row for each check whose points have changed."""
    table = Table(title=title, title_justify="left")
    for name in ("student", "lab", "score", "TODO", "points", "check, and why"):
        table.add_column(name, justify="right" if name in ("score", "TODO", "points") else "left", overflow="fold")
    for change in changes:
        whose = [plain(change.after.student), change.after.lab, f"{points(change.before.score)} → {points(change.after.score)}"]
        for number, difference in enumerate(change.differences):
            first = whose if number == 0 else ["", "", ""]
            why = plain(f"{difference.check.replace('_', ' ')}: {difference.reason}")
            table.add_row(*map(Text, [*first, str(difference.todo), f"{difference.points:+g}", why]))
    return table

