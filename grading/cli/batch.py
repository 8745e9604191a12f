"""`python -m grading batch`, `regrade`, `status` and `synthetic`: a cohort, its journal, and what changes."""

import signal
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grading.cli.progress_bar import bar
from grading.cli.term import Isolation, JournalFile, TermFile, labs_of, open_journal, settings_of, submissions_of
from grading.cohort.batch import Graders, Plan, Summary, graders_here, left_to_do, plan_of, run_batch, seconds_for
from grading.cohort.journal import Journal, LatestHandIn
from grading.cohort.late import Late, shown
from grading.cohort.ray_cluster import cluster
from grading.cohort.regrade import Regraded, change_table, run_regrade, to_regrade
from grading.cohort.roster import Cohort, Remark, read_cohort, read_times
from grading.cohort.term import Term, find_term
from grading.cohort.worker_pool import Crew, Memory, processes
from grading.judge.seeds import PUBLIC_SECRET
from grading.judge.show import plain, points
from grading.judge.suite import checks_of
from grading.red_team import synthetic as making
from labs.harness.catalog import all_labs, find_lab
from nano_qwen3_serving.observe.files import write_atomically

SHOWN = 20
"""How many lines of one kind are printed; the JSON has all."""
FIRST = ("error", "crash", "slow", "flaky", "lower", "raised", "older")
"""Kinds of lines that are printed before others."""
SAID_BY_BATCH = ("roster", "no submission", "not in roster", "time")
"""Kinds of lines that a regrade leaves out."""
INTERRUPTED = 130
Submissions = Annotated[Path | None, typer.Argument(
    help="A folder with one folder, archive or .py file for each student; by default the term's.")]
Labs = Annotated[str | None, typer.Option(help="Such as 06,07; by default the term's.")]
Students = Annotated[list[str] | None, typer.Option("--student", help="Only this student's; may be given several times.")]
Jobs = Annotated[int, typer.Option(min=1, help="Processes that grade.")]
Ray = Annotated[str | None, typer.Option(metavar="auto|ADDRESS", help="Grade on this Ray cluster instead of here.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the summary as data, too.")]

console = Console(highlight=False)


def batch(
    submissions: Submissions = None,
    labs: Labs = None,
    students: Students = None,
    jobs: Jobs = 2,
    journal: JournalFile = None,
    isolation: Isolation = None,
    repeat: Annotated[int, typer.Option(
        min=1, help="Grade everything so many times, and list checks whose verdict differs.")] = 1,
    ray: Ray = None,
    file: JsonFile = None,
    term_file: TermFile = None,
) -> None:
    """Grade a cohort. What the journal has already is not graded again, so the same command goes on after a kill."""
    term = find_term(term_file)
    plan, path = plan_of(labs_of(term, labs), settings_of(term, isolation)), journal or term.journal
    _require_times(term, plan)
    with open_journal(term, journal, create=True) as base:
        _same_seeds(base, plan)
        cohort = _cohort(submissions_of(term, submissions), plan, term)
        cohort.lines += _unknown_students(term, cohort)
        _only(students, cohort)
        memory = Memory()
        total = left_to_do(base, plan, cohort, repeat)
        with bar(total, "grading") as done, _crew(plan, jobs, ray, memory, total) as crew, _resumable(base, path):
            summary = run_batch(base, plan, cohort, crew, repeat, done)
        summary.peak_bytes = memory.peak
        summary.lines += _without_result(base, plan)
        by_lab = {lab: _spread(base.settled(lab)) for lab in plan.labs}
    if file:
        about = {"labs": by_lab, "isolation": plan.settings.level, "jobs": jobs, "ray": ray, "journal": str(path)}
        write_atomically(file, summary.to_json(**about))
    _print_summary(summary, by_lab, term.secret == PUBLIC_SECRET)
    if not summary.is_good:
        raise typer.Exit(1)


def regrade(
    submissions: Submissions = None,
    labs: Labs = None,
    students: Students = None,
    journal: JournalFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    allow_lower: Annotated[bool, typer.Option("--allow-lower", help="Let lower results count, too.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Run the hand-ins once more though nothing has changed.")] = False,
    todo: Annotated[int | None, typer.Option(min=1, help="Only this TODO's points may change; the others stay.")] = None,
    jobs: Jobs = 2,
    isolation: Isolation = None,
    ray: Ray = None,
    term_file: TermFile = None,
) -> None:
    """Who gains and who loses under the present checks, at which TODO and why. Nobody is lowered without --allow-lower."""
    term = find_term(term_file)
    with open_journal(term, journal) as base:
        graded = ",".join(sorted({attempt.lab for attempt, _ in base.attempts()}))
        plan = plan_of(labs_of(term, labs or graded), settings_of(term, isolation))
        _same_seeds(base, plan)
        cohort = _cohort(submissions_of(term, submissions), plan, term)
        cohort.lines = [line for line in cohort.lines if line.kind not in SAID_BY_BATCH]
        _only(students, cohort)
        repeated = {hand_in.attempt.student for hand_in in cohort.handed_in} if again or todo is not None else set()
        total = to_regrade(base, plan, cohort, repeated)
        with (bar(total, "grading") as done, _crew(plan, jobs, ray, Memory(), total) as crew,
              _resumable(base, journal or term.journal)):
            regraded = run_regrade(base, plan, cohort, crew, dry_run, allow_lower, done, repeated, todo)
    _print_regraded(regraded, dry_run)
    if any(line.kind == "error" for line in regraded.lines):
        raise typer.Exit(1)


def status(journal: JournalFile = None, term_file: TermFile = None) -> None:
    """What a journal has: hand-ins, results, what is still to be graded, how lateness is judged, what was decided by hand."""
    term = find_term(term_file)
    with open_journal(term, journal) as base:
        overview = Table(title=f"{journal or term.journal}: {base.results()} results", title_justify="left")
        for name in ("lab", "students", "hand-ins", "of them graded", "late", "mean", "median"):
            overview.add_column(name, justify="right")
        attempts, everything = base.attempts(), base.settled()
        for lab in sorted({attempt.lab for attempt, _ in attempts}):
            mine = [(attempt, graded) for attempt, graded in attempts if attempt.lab == lab]
            settled = [(last, late) for last, late in everything if last.lab == lab]
            scores, late_ones = _spread(settled), sum(late.days > 0 for _, late in settled)
            overview.add_row(lab, str(len({attempt.student for attempt, _ in mine})), str(len(mine)),
                             str(sum(graded for _, graded in mine)), str(late_ones), points(scores["mean"]),
                             points(scores["median"]))
        console.print(overview)
        zone = base.terms().zone
        for attempt, graded in attempts:
            if not graded:
                when = shown(attempt.submitted, zone) if attempt.submitted else "an unknown time"
                console.print(_line(Remark("to be graded", attempt.student, attempt.lab, f"handed in at {when}")))
        _print_rules(base)


def synthetic(
    out: Annotated[Path, typer.Argument(help="A folder that is not there yet, or empty.")],
    lab: Annotated[str, typer.Option(help="Such as 06.")],
    count: Annotated[int, typer.Option(min=1)] = 200,
    seed: Annotated[str, typer.Option(help="The same seed makes the same submissions.")] = "0",
) -> None:
    """Make submissions to measure a batch with: solutions, starters, mutants, cheats, mixtures; with a roster."""
    chosen = find_lab(lab)
    made = making.make(chosen, count, seed)
    making.write(out, chosen, made)
    kinds: dict[str, int] = defaultdict(int)
    for submission in made:
        kinds[submission.kind.split()[0].rstrip(":")] += 1
    console.print(f"wrote {count} submissions: " + ", ".join(f"{kinds[kind]} {kind}s" for kind in sorted(kinds)), markup=False,
                  soft_wrap=True)
    console.print(f"python -m grading batch --term-file {out / 'term.toml'}", markup=False, soft_wrap=True)


# what the commands share


def lab_names() -> dict[str, str]:
    """Every name that a file may use for a lab → the lab's id."""
    return {name: lab.id for lab in all_labs() for name in (lab.id, str(lab.number), f"lab{lab.id}", lab.folder.name)}


def _same_seeds(base: Journal, plan: Plan) -> None:
    """A journal has one term secret: another secret would give every student other inputs and grade everything again."""
    if base.claim("seeds", plan.fingerprint()) != plan.fingerprint():
        raise ValueError(
            "this journal's results were made with another term secret or seed_mode; put those into term.toml, "
            "or give another --journal")


def _only(students: Sequence[str] | None, cohort: Cohort) -> None:
    """Keeps only these students' hand-ins and lines. Raises `ValueError` for a student who handed in nothing."""
    if not students:
        return
    there = {hand_in.attempt.student for hand_in in cohort.handed_in}
    if missing := [student for student in students if student not in there]:
        raise ValueError(f"--student {missing[0]}: there is no submission of that name; there are {len(there)} others")
    cohort.handed_in = [hand_in for hand_in in cohort.handed_in if hand_in.attempt.student in students]
    cohort.lines = [line for line in cohort.lines if not line.student or line.student in students]


def _require_times(term: Term, plan: Plan) -> None:
    """Raises `ValueError` if lateness would be judged by the files' own times and term.toml does not ask for that."""
    dated = [lab for lab in plan.labs if lab in term.labs and term.labs[lab].all is not None]
    if dated and term.times is None and not term.mtimes:
        raise ValueError(
            f"lab {', '.join(dated)} has a due date, and nothing says when submissions were handed in: in {term.file}, "
            '[submissions] times = "times.csv" names a CSV with student, lab, submitted; times = "mtime" takes '
            "those of the files themselves, which a download or a copy changes")


def _unknown_students(term: Term, cohort: Cohort) -> list[Remark]:
    """Without a roster: a line for each extension of a student who has no submission, which may be a slip."""
    known = {hand_in.attempt.student for hand_in in cohort.handed_in}
    return [Remark("extension", extension.student, extension.lab, "there is no such student among the submissions, and no roster")
            for extension in term.extensions if term.roster is None and extension.student not in known]


def _without_result(base: Journal, plan: Plan) -> list[Remark]:
    """A line for each override that has no result to change."""
    there = {(last.student, last.lab) for last, _ in base.settled()}
    return [Remark("override", override.student, override.lab, "there is no result that could be overridden")
            for override in base.overrides()
            if override.student and override.lab in plan.labs and (override.student, override.lab) not in there]


def _cohort(submissions: Path, plan: Plan, term: Term) -> Cohort:
    """The hand-ins; if the files' own times are used, a line says for how many."""
    times = read_times(term.times, lab_names(), term.zone) if term.times else None
    cohort = read_cohort(submissions, list(plan.labs.values()), term.roster, times)
    own = sum(hand_in.attempt.source == "mtime" for hand_in in cohort.handed_in)
    if own and (term.times or term.mtimes):
        cohort.say("time", f"{own} of {len(cohort.handed_in)} times of hand-in are the files' own")
    return cohort


@contextmanager
def _crew(plan: Plan, jobs: int, ray: str | None, memory: Memory, total: int) -> Iterator[Crew]:
    """Processes here, or workers of a Ray cluster."""
    limit = max(seconds_for(plan, len(checks_of(lab))) for lab in plan.labs.values())
    if ray:
        with cluster(ray, Graders(plan), limit) as crew:
            yield crew
        return
    with graders_here(plan) as make:
        yield processes(min(jobs, max(1, total)), make, limit, memory)


@contextmanager
def _resumable(base: Journal, path: Path) -> Iterator[None]:
    """On Ctrl-C or SIGTERM, stops the workers and says how to go on."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        yield
    except KeyboardInterrupt:
        graded = sum(graded for _, graded in base.attempts())
        console.print(
            f"Stopped. {path} has {graded} graded hand-ins of {len(base.attempts())}; the same command goes on from there.",
            markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _spread(settled: Sequence[tuple[LatestHandIn, Late]]) -> dict[str, float]:
    """Of final scores."""
    scores = [late.score for _, late in settled]
    if not scores:
        return {"students": 0, "mean": 0.0, "median": 0.0, "best": 0.0}
    return {"students": len(scores), "mean": round(statistics.mean(scores), 2), "median": round(statistics.median(scores), 2),
            "best": max(scores)}


def _print_summary(summary: Summary, by_lab: dict[str, dict[str, float]], no_secret: bool) -> None:
    print_lines(summary.lines)
    for lab, scores in by_lab.items():
        console.print(
            f"Lab {lab}: {scores['students']} students, "
            f"mean {scores['mean']:g}, median {scores['median']:g}, best {scores['best']:g}")
    pace = f", {summary.seconds / summary.graded:.1f} s each" if summary.graded else ""
    memory = f", {summary.peak_bytes >> 20} MiB at most" if summary.peak_bytes else ""
    console.print(
        f"{summary.found} submissions: {summary.graded} graded, {summary.known} known already, "
        f"{summary.failed} without a result; {summary.seconds:.0f} s{pace}{memory}", soft_wrap=True)
    if no_secret:
        console.print("There is no term secret: anybody can work out the inputs of the checks. python -m grading init makes one.",
                      soft_wrap=True)


def print_lines(lines: Sequence[Remark]) -> None:
    """Print lines by kind; kinds that need an action come first."""
    kinds: dict[str, list[Remark]] = defaultdict(list)
    for line in lines:
        kinds[line.kind].append(line)
    for kind in sorted(kinds, key=lambda kind: (FIRST.index(kind) if kind in FIRST else len(FIRST), kind)):
        for line in kinds[kind][:SHOWN]:
            console.print(_line(line), soft_wrap=True)
        if len(kinds[kind]) > SHOWN:
            console.print(f"{kind}: and {len(kinds[kind]) - SHOWN} more; --json FILE has all", markup=False)


def _line(line: Remark) -> Text:
    whose = " ".join(filter(None, [line.student, f"lab {line.lab}" if line.lab else ""]))
    return Text(plain(f"{line.kind}: " + (f"{whose}: " if whose else "") + line.text).replace("\n", " "))


def _print_regraded(regraded: Regraded, dry: bool) -> None:
    print_lines(regraded.lines)
    would = "would " if dry else ""
    for title, changes in ((f"who {would}gain{'' if dry else 's'}", regraded.winners),
                           (f"who {would}lose{'' if dry else 's'}", regraded.losers)):
        if changes:
            console.print(change_table(changes, title))
    same = len(regraded.changes) - len(regraded.winners) - len(regraded.losers)
    console.print(f"{len(regraded.changes)} compared: "
                  f"{len(regraded.winners)} gain, {len(regraded.losers)} lose, {same} stay as they are.")
    if dry:
        console.print("Nothing was changed.")
    elif regraded.held:
        console.print(f"{regraded.held} lower results were kept and do not count; --allow-lower lets them.")


def _print_rules(base: Journal) -> None:
    """Policy, due dates and decisions."""
    terms = base.terms()
    console.print(Text(f"late policy: {terms.policy.words()}"), soft_wrap=True)
    for lab, when in sorted(terms.due.items()):
        mine = sum(whose[1] == lab for whose in terms.extended)
        console.print(Text(f"lab {lab} is due at {shown(when, terms.zone)}"
                           + (f"; {mine} students have a deadline of their own" if mine else "")
                           + (f"; late policy there: {own.words()}" if (own := terms.policies.get(lab)) else "")), soft_wrap=True)
    for override in base.overrides():
        console.print(_line(Remark("override", override.student, override.lab, override.words())), soft_wrap=True)
