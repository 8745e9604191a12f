"""A cohort's grading: every submission once, each result journaled as soon as it is there.

Everything a result depends on is hashed into its key. A key that the journal has is not graded again, so a
killed run goes on where it was, and a run without changes does nothing.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from grading.cohort.journal import Journal
from grading.cohort.late import shown
from grading.cohort.roster import Cohort, HandedIn, Remark
from grading.cohort.worker_pool import Crew, UnitOutcome, schedule
from grading.judge.checks import shorter
from grading.judge.grader import OUT_OF_TIME, Grader, Settings, grader_of, versions
from grading.judge.intake import Submission
from grading.judge.report import Report
from grading.judge.seeds import seed_for
from grading.sandbox.runtime import make_runtime
from labs.harness.catalog import Lab

SLOW_SECONDS = 3.0
"""Seconds per check above which a submission is reported as slow; solutions take a tenth of that."""
SPARED_SECONDS = 60.0
"""Seconds below which no submission is reported as slow, however few its checks: Python may start slowly."""
SPARE_SECONDS = 180.0
"""Seconds that a submission may take beyond its checks: to start Python and a worker, and for the predictions."""


@dataclass(frozen=True)
class Unit:
    """One submission to be graded for one lab.

    Attributes:
        key: the hash of everything that its report depends on.
        number: the number of this run among several of the same submission, see `--repeat`.
    """

    lab: str
    submission: Submission
    key: str
    number: int = 0


@dataclass(frozen=True)
class Plan:
    """How everything is graded."""

    labs: Mapping[str, Lab]
    settings: Settings
    versions: Mapping[str, dict[str, str]]

    def unit(self, hand_in: HandedIn) -> Unit:
        """The unit for a hand-in. Its key covers everything the result depends on; the same key is not graded again."""
        submission, lab, settings = hand_in.submission, hand_in.attempt.lab, self.settings
        depends_on = [submission.student, lab, submission.digest, submission.notes,
                      self.seed(submission.student, lab, submission.digest), self.versions[lab],
                      settings.level, settings.predictions, asdict(settings.limits)]
        depends_on += [settings.seconds] if settings.seconds is not None else []  # older journals' keys have no such limit
        return Unit(lab, submission, hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest())

    def seed(self, student: str, lab: str, digest: str) -> str:
        """The seed from which the inputs of the checks of this student's file are drawn."""
        return self.settings.seed or seed_for(self.settings.secret, lab, student, digest, self.settings.seed_mode)

    def fingerprint(self) -> str:
        """A fingerprint that distinguishes seeds without revealing them."""
        return self.seed("", "journal", "") + f" {self.settings.seed_mode}"


def plan_of(labs: Sequence[Lab], settings: Settings) -> Plan:
    """With the versions that are installed here."""
    return Plan({lab.id: lab for lab in labs}, settings, {lab.id: versions(lab) for lab in labs})


@dataclass(frozen=True)
class Graders:
    """Called in any process, returns the function that grades: one `Grader` for each lab, from existing folders.

    Attributes:
        runtimes: lab → its runtime folder and the names to hide; a lab that is missing here gets a folder of its own.
    """

    plan: Plan
    runtimes: Mapping[str, tuple[Path, list[str]]] = field(default_factory=dict)

    @contextmanager
    def __call__(self) -> Iterator[Callable[[Unit], Report]]:
        import torch

        torch.set_num_threads(1)
        with ExitStack() as open_ones:
            graders: dict[str, Grader] = {}

            def grade(unit: Unit) -> Report:
                if unit.lab not in graders:
                    graders[unit.lab] = self._grader(self.plan.labs[unit.lab], open_ones)
                if graders[unit.lab].versions != self.plan.versions[unit.lab]:
                    raise ValueError(
                        f"this process has other checks, Python or torch ({graders[unit.lab].versions}) "
                        "than the one that asked for it")
                return graders[unit.lab].grade(unit.submission)

            yield grade

    def _grader(self, lab: Lab, open_ones: ExitStack) -> Grader:
        if lab.id in self.runtimes:
            return Grader(lab, self.plan.settings, *self.runtimes[lab.id])
        return open_ones.enter_context(grader_of(lab, self.plan.settings))


@contextmanager
def graders_here(plan: Plan) -> Iterator[Graders]:
    """For processes of this machine: the runtime folders are made once."""
    with ExitStack() as folders:
        runtimes = {}
        for lab in plan.labs.values():
            folder = Path(folders.enter_context(TemporaryDirectory(prefix="runtime-", ignore_cleanup_errors=True)))
            folder.chmod(0o755)
            runtimes[lab.id] = (folder, make_runtime(lab, folder))
        yield Graders(plan, runtimes)


def seconds_for(plan: Plan, checks: int) -> float:
    """Seconds that a unit may take before its process is ended: nothing waits for a judge that hangs."""
    each, together = plan.settings.limits.wall_seconds, plan.settings.seconds
    return (checks * each if together is None else min(checks * each, together + each)) + SPARE_SECONDS


@dataclass
class Summary:
    """The outcome of a run.

    Attributes:
        found: submissions, each for a lab.
        known: how many of them had a result in the journal.
        graded: how many of them were graded now.
        failed: how many of them have no result.
        lines: everything else to report.
        seconds: the run took.
        peak_bytes: of memory, of this machine's processes together; 0 if others graded.
    """

    found: int = 0
    known: int = 0
    graded: int = 0
    failed: int = 0
    lines: list[Remark] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def is_good(self) -> bool:
        """Whether every submission has a result, and every repeat gave the same one."""
        return not self.failed and not any(line.kind == "flaky" for line in self.lines)

    def to_json(self, **more: object) -> str:
        """One object with all of it, and with `more`."""
        counts = dict(sorted(Counter(line.kind for line in self.lines).items()))
        return json.dumps({**more, **asdict(self), "lines_of_kind": counts}, ensure_ascii=False, indent=1) + "\n"


def run_batch(
    journal: Journal, plan: Plan, cohort: Cohort, crew: Crew, repeat: int = 1, done: Callable[[], None] = lambda: None
) -> Summary:
    """Grade what the journal does not know, and journal it; `done` is called after each run.

    An interrupt stops every worker; everything graded so far is in the journal.

    Args:
        repeat: grade everything this many times, and report submissions whose verdicts differ.
    """
    began = time.monotonic()
    journal.hand_in(hand_in.attempt for hand_in in cohort.handed_in)
    journal.keep({hand_in.attempt.digest: hand_in.submission.files for hand_in in cohort.handed_in if hand_in.submission.files})
    units = {unit.key: unit for unit in map(plan.unit, cohort.handed_in)}
    summary, runs = Summary(found=len(units), lines=cohort.lines), _Runs(journal, cohort.lines)
    runs.take_known(units)
    summary.known = len(runs.reports)
    with closing(schedule(runs_of(units, set(runs.reports), repeat), crew)) as outcomes:
        for outcome in outcomes:
            runs.take(outcome)
            done()
    if repeat > 1:
        summary.lines += [line for reports in runs.reports.values() for line in differing(reports)]
    summary.lines += _older(journal, cohort)
    summary.failed = len(set(units) - set(runs.reports))
    summary.graded = len(units) - summary.known - summary.failed
    summary.seconds = round(time.monotonic() - began, 2)
    return summary


def left_to_do(journal: Journal, plan: Plan, cohort: Cohort, repeat: int = 1) -> int:
    """Runs that `run_batch` is going to make."""
    units = {unit.key: unit for unit in map(plan.unit, cohort.handed_in)}
    return len(runs_of(units, {key for key in units if journal.result(key)}, repeat))


def runs_of(units: Mapping[str, Unit], known: set[str], repeat: int = 1) -> list[Unit]:
    """The units to grade: unknown ones once, or everything `repeat` times."""
    if repeat == 1:
        return [unit for key, unit in units.items() if key not in known]
    return [replace(unit, number=number) for number in range(repeat) for unit in units.values()]


class _Runs:
    """Writes the workers' results into the journal.

    Attributes:
        reports: key → the known reports, one for each run.
    """

    def __init__(self, journal: Journal, lines: list[Remark]) -> None:
        self.journal, self.lines = journal, lines
        self.reports: dict[str, list[Report]] = {}

    def take_known(self, units: Mapping[str, Unit]) -> None:
        for key in units:
            if (run := self.journal.run_of(key)) and (report := self.journal.result(run)):
                self._take(key, report, run)

    def take(self, outcome: UnitOutcome) -> None:
        unit = outcome.unit
        why = "; ".join(outcome.crashes)
        if outcome.answer is None:
            self.lines.append(Remark("error", unit.submission.student, unit.lab,
                                   f"not graded: {why}; the same command tries again"))
            return
        if outcome.crashes:
            self.lines.append(Remark("crash", unit.submission.student, unit.lab, f"{why}; graded at the second try"))
        self.lines += slow(outcome.answer, outcome.seconds)
        self._take(unit.key, outcome.answer)

    def _take(self, key: str, report: Report, run: str | None = None) -> None:
        """Notes a report for this key; `run` is the key of its run, if that is not the first one."""
        first = key not in self.reports
        self.reports.setdefault(key, []).append(report)
        if not first:
            return
        before = self.journal.standing(report.student, report.lab, report.digest)
        if not self.journal.record(run or key, report):
            assert before is not None  # a refused result is lower than this one
            self.lines.append(Remark("lower", report.student, report.lab,
                                   f"{report.score:g} now, but {before.score:g}, given earlier, stands; "
                                   "python -m grading regrade --allow-lower changes that"))
        elif before and before.score < report.score:
            self.lines.append(Remark("raised", report.student, report.lab,
                                   f"{report.score:g} now; {before.score:g} was given earlier"))


def slow(report: Report, seconds: float) -> list[Remark]:
    """A line about a submission whose checks took long, or so long that some never began."""
    late = sum(check.message.startswith(OUT_OF_TIME) and not check.passed for check in report.checks)
    each, many = seconds / max(1, len(report.checks)), len(report.checks)
    if late:
        text = f"{late} of {many} checks were not tried: it took too long"
    elif each >= SLOW_SECONDS and seconds >= SPARED_SECONDS:
        text = (f"it took {seconds:.0f} s, {each:.1f} s for each of {many} checks; "
                "seconds_per_submission in term.toml limits that")
    else:
        return []
    return [Remark("slow", report.student, report.lab, text)]


def differing(reports: Sequence[Report]) -> list[Remark]:
    """A line for each check that did not end the same way in all runs of one submission."""
    lines = []
    for same in zip(*(report.checks for report in reports), strict=True):
        if len({check.earned for check in same}) > 1:
            passed = sum(check.passed for check in same)
            messages = ", ".join(sorted({shorter(check.message, 100) for check in same if not check.passed}))
            lines.append(Remark("flaky", reports[0].student, reports[0].lab,
                              f"{same[0].name} (TODO {same[0].todo}) passed {passed} of {len(same)} times; else: {messages}"))
    return lines


def _older(journal: Journal, cohort: Cohort) -> list[Remark]:
    """One line per student whose counted submission no longer exists."""
    there: dict[tuple[str, str], set[str]] = {}
    lines = []
    for hand_in in cohort.handed_in:
        there.setdefault((hand_in.attempt.student, hand_in.attempt.lab), set()).add(hand_in.attempt.digest)
    for (student, lab), digests in there.items():
        counts = journal.counting(student, lab)
        if counts is not None and counts.digest not in digests:
            when = shown(counts.submitted, journal.terms().zone) if counts.submitted else "an unknown time"
            lines.append(Remark("older", student, lab,
                              f"the submission that counts is not this one but that of {when}, which is later; "
                              "if that is wrong, give the times in the file that term.toml names"))
    return lines
