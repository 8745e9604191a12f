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

from grading.cli.grade import Isolation, Predictions, Seconds, Secret, SeedMode, settings_of
from grading.cli.progress_bar import bar
from grading.cohort import late as lateness
from grading.cohort.batch import Graders, Plan, Summary, graders_here, left_to_do, plan_of, run_batch, seconds_for
from grading.cohort.journal import Journal
from grading.cohort.ray_cluster import cluster
from grading.cohort.regrade import Regraded, change_table, run_regrade, to_regrade
from grading.cohort.roster import Cohort, Line, read_cohort, read_roster, read_times, table
from grading.cohort.worker_pool import Crew, Memory, processes
from grading.judge.show import plain, points
from grading.judge.suite import checks_of
from grading.red_team import synthetic as making
from labs.harness.catalog import Lab, all_labs, find_lab
from nano_qwen3_serving.observe.files import write_atomically

SHOWN = 20
"""Lines of one kind that are printed; the JSON has all."""
FIRST = ("error", "crash", "flaky", "lower", "raised", "older")
"""Kinds of lines that are printed before others."""
INTERRUPTED = 130
MTIME = "mtime"
"""What --times says where the files' own times are to count."""

Submissions = Annotated[Path, typer.Argument(help="A folder with one folder, archive or .py file for each student.")]
Labs = Annotated[str | None, typer.Option(help="Such as 06,07.")]
JournalFile = Annotated[Path, typer.Option("--journal", metavar="FILE", help="The SQLite file that keeps results.")]
RosterFile = Annotated[Path | None, typer.Option(
    "--roster", metavar="FILE", help="CSV with a column student; others such as name, email, sis_id, section.")]
Jobs = Annotated[int, typer.Option(min=1, help="Processes that grade.")]
Times = Annotated[Path | None, typer.Option(
    metavar="FILE", help="CSV with student, lab, submitted: when it was handed in. A file called mtime stands for the files' own "
                         "times, which a download, a copy or a student may have set.")]
Ray = Annotated[str | None, typer.Option(metavar="auto|ADDRESS", help="Grade on this Ray cluster instead of here.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the summary as data, too.")]

console = Console(highlight=False)


def batch(
    submissions: Submissions,
    labs: Labs = None,
    roster: RosterFile = None,
    jobs: Jobs = 2,
    journal: JournalFile = Path("journal.sqlite"),
    secret: Secret = None,
    seed_mode: SeedMode = "student",
    isolation: Isolation = None,
    predictions: Predictions = True,
    seconds: Seconds = 30.0,
    times: Times = None,
    late: Annotated[str | None, typer.Option(
        help="grace=2d,penalty=10%/day,max=50%,tokens=3; none for none. The journal remembers it.")] = None,
    due: Annotated[list[str] | None, typer.Option(help="When a lab is due, 06=2027-03-01T23:59+01:00; once for each.")] = None,
    extensions: Annotated[Path | None, typer.Option(metavar="FILE", help="CSV with student, lab, and days or until.")] = None,
    repeat: Annotated[int, typer.Option(
        min=1, help="Grade everything so many times, and list checks whose verdict differs.")] = 1,
    ray: Ray = None,
    file: JsonFile = None,
) -> None:
    """Grade a cohort. What the journal has already is not graded again, so the same command goes on after a kill."""
    plan = plan_of(_labs(labs), settings_of(secret, seed_mode, isolation, predictions, seconds))
    with Journal(journal, create=True) as base:
        _same_seeds(base, plan)
        _set_terms(base, late, due or [], extensions)
        _can_be_late(base.terms(), plan, times)
        cohort = _cohort(submissions, plan, roster, times)
        cohort.lines += _extended_strangers(base.terms(), cohort, roster)
        memory = Memory()
        total = left_to_do(base, plan, cohort, repeat)
        with bar(total, "grading") as done, _crew(plan, jobs, ray, memory, total) as crew, _resumable(base, journal):
            summary = run_batch(base, plan, cohort, crew, repeat, done)
        summary.peak_bytes = memory.peak
        by_lab = {lab: _scores(base, lab) for lab in plan.labs}
    if file:
        about = {"labs": by_lab, "isolation": plan.settings.level, "jobs": jobs, "ray": ray, "journal": str(journal)}
        write_atomically(file, summary.to_json(**about))
    _print_summary(summary, by_lab, secret is None)
    if not summary.is_good:
        raise typer.Exit(1)


def regrade(
    submissions: Submissions,
    labs: Labs = None,
    journal: JournalFile = Path("journal.sqlite"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    allow_lower: Annotated[bool, typer.Option("--allow-lower", help="Let lower results count, too.")] = False,
    again: Annotated[list[str] | None, typer.Option(
        metavar="STUDENT", help="Run this student's hand-ins once more, though nothing has changed; may be given several times.",
    )] = None,
    jobs: Jobs = 2,
    secret: Secret = None,
    seed_mode: SeedMode = "student",
    isolation: Isolation = None,
    predictions: Predictions = True,
    seconds: Seconds = 30.0,
    ray: Ray = None,
) -> None:
    """Who gains and who loses under the present checks, at which TODO and why. Nobody is lowered without --allow-lower."""
    with Journal(journal) as base:
        chosen = _labs(labs or ",".join(sorted({attempt.lab for attempt, _ in base.attempts()})))
        plan = plan_of(chosen, settings_of(secret, seed_mode, isolation, predictions, seconds))
        _same_seeds(base, plan)
        cohort = _cohort(submissions, plan, None, None)
        _all_there(again or [], cohort)
        total = to_regrade(base, plan, cohort, again or [])
        with bar(total, "grading") as done, _crew(plan, jobs, ray, Memory(), total) as crew, _resumable(base, journal):
            found = run_regrade(base, plan, cohort, crew, dry_run, allow_lower, done, again or [])
    _print_regraded(found, dry_run)
    if any(line.kind == "error" for line in found.lines):
        raise typer.Exit(1)


def status(journal: JournalFile = Path("journal.sqlite")) -> None:
    """What a journal has: hand-ins, results, what is still to be graded, and how lateness is judged."""
    with Journal(journal) as base:
        overview = Table(title=f"{journal}: {base.results()} results", title_justify="left")
        for name in ("lab", "students", "hand-ins", "of them graded", "late", "mean", "median"):
            overview.add_column(name, justify="right")
        attempts = base.attempts()
        for lab in sorted({attempt.lab for attempt, _ in attempts}):
            mine = [(attempt, graded) for attempt, graded in attempts if attempt.lab == lab]
            late_ones = sum(entry.late_days > 0 for entry in base.latest(lab))
            scores = _scores(base, lab)
            overview.add_row(lab, str(len({attempt.student for attempt, _ in mine})), str(len(mine)),
                             str(sum(graded for _, graded in mine)), str(late_ones), points(scores["mean"]),
                             points(scores["median"]))
        console.print(overview)
        for attempt, graded in attempts:
            if not graded:
                console.print(_line(Line(
                    "to be graded", attempt.student, attempt.lab, f"handed in at {attempt.submitted or 'an unknown time'}")))
        _print_terms(base.terms())


def synthetic(
    out: Annotated[Path, typer.Argument(help="A folder that is not there yet, or empty.")],
    lab: Annotated[str, typer.Option(help="Such as 06.")] = "06",
    count: Annotated[int, typer.Option(min=1)] = 200,
    seed: Annotated[str, typer.Option(help="The same seed makes the same submissions.")] = "0",
) -> None:
    """Make submissions to measure a batch with: solutions, starters, mutants, cheats, mixtures; with a roster."""
    chosen = find_lab(lab)
    made = making.make(chosen, count, seed)
    making.write(out, chosen, made)
    kinds: dict[str, int] = defaultdict(int)
    for one in made:
        kinds[one.kind.split()[0].rstrip(":")] += 1
    console.print(f"wrote {count} submissions: " + ", ".join(f"{kinds[kind]} {kind}s" for kind in sorted(kinds)), markup=False,
                  soft_wrap=True)
    console.print(f"python -m grading batch {out / 'submissions'} --labs {chosen.id} --roster {out / 'roster.csv'}", markup=False,
                  soft_wrap=True)


# what the commands share


def _labs(names: str | None) -> list[Lab]:
    if not names:
        raise ValueError("--labs says which labs are graded, such as --labs 06,07")
    found = {lab.id: lab for lab in (find_lab(name.strip()) for name in names.split(",") if name.strip())}
    return [found[lab] for lab in sorted(found)]


def _lab_names() -> dict[str, str]:
    """All that a file may call a lab → its id."""
    return {name: lab.id for lab in all_labs() for name in (lab.id, str(lab.number), f"lab{lab.id}", lab.folder.name)}


def _same_seeds(base: Journal, plan: Plan) -> None:
    """A journal has one term secret: with another everybody would get other inputs, and everything would be graded again."""
    if base.claim("seeds", plan.fingerprint()) != plan.fingerprint():
        raise ValueError(
            "this journal's results were made with another --secret or --seed-mode; give those, or another --journal")


def _all_there(students: Sequence[str], cohort: Cohort) -> None:
    """Raises `ValueError` for a student who handed in nothing."""
    there = {one.attempt.student for one in cohort.handed_in}
    if strangers := [student for student in students if student not in there]:
        raise ValueError(f"--again {strangers[0]}: there is no submission of that name; there are {len(there)} others")


def _set_terms(base: Journal, late: str | None, dates: Sequence[str], file: Path | None) -> None:
    """How lateness is judged from now on; what is not given stays as the journal has it."""
    if late is None and not dates and file is None:
        return
    before, names = base.terms(), _lab_names()
    policy = before.policy if late is None else "" if late == "none" else late
    lateness.read_policy(policy)
    due = {**before.due, **lateness.read_due(dates, names)}
    moved = {lab for lab in due if lab in before.due and due[lab] != before.due[lab]}
    if file is None and (stale := sorted({lab for _, lab in before.extended} & moved)):
        raise ValueError(
            f"lab {', '.join(stale)} is due at another time now, and the journal has extensions for it: give --extensions again")
    extended = before.extended if file is None else lateness.extensions(table(file, ["student", "lab"])[0], due, names)
    base.set_terms(lateness.Terms(policy, due, extended))


def _can_be_late(terms: lateness.Terms, plan: Plan, times: Path | None) -> None:
    """Raises `ValueError` where lateness would be judged by the files' own times and nobody has asked for that."""
    if times is None and (dated := sorted(set(plan.labs) & set(terms.due))):
        raise ValueError(
            f"lab {', '.join(dated)} has a due date, and nothing says when submissions were handed in: give --times FILE, a "
            "CSV with student, lab, submitted; or --times mtime for the files' own times, which a download or a copy changes")


def _extended_strangers(terms: lateness.Terms, cohort: Cohort, roster: Path | None) -> list[Line]:
    """A line for each extension of a student that neither the roster nor a submission has: a slip, perhaps, in their id."""
    known = {one.attempt.student for one in cohort.handed_in} | set(read_roster(roster).students if roster else ())
    return [Line("extension", student, lab, "there is no such student in the roster or among the submissions")
            for student, lab in sorted(terms.extended) if student not in known]


def _cohort(submissions: Path, plan: Plan, roster: Path | None, times: Path | None) -> Cohort:
    """What was handed in; where the files' own times are taken, a line says of how many."""
    said = read_times(times, _lab_names()) if times and times.name != MTIME else None
    cohort = read_cohort(submissions, list(plan.labs.values()), read_roster(roster) if roster else None, said)
    own = sum(one.attempt.source == "mtime" for one in cohort.handed_in)
    if times and own:
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
    """Ctrl-C, or being asked to end, stops the workers and says how to go on."""

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


def _scores(base: Journal, lab: str) -> dict[str, float]:
    scores = [entry.final_score for entry in base.latest(lab)]
    if not scores:
        return {"students": 0, "mean": 0.0, "median": 0.0, "best": 0.0}
    return {"students": len(scores), "mean": round(statistics.mean(scores), 2), "median": round(statistics.median(scores), 2),
            "best": max(scores)}


def _print_summary(summary: Summary, by_lab: dict[str, dict[str, float]], no_secret: bool) -> None:
    _print_lines(summary.lines)
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
        console.print("There was no --secret: anybody can work out the inputs of the checks.")


def _print_lines(lines: Sequence[Line]) -> None:
    """Lines by kind, those that want something done first."""
    kinds: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        kinds[line.kind].append(line)
    for kind in sorted(kinds, key=lambda kind: (FIRST.index(kind) if kind in FIRST else len(FIRST), kind)):
        for line in kinds[kind][:SHOWN]:
            console.print(_line(line), soft_wrap=True)
        if len(kinds[kind]) > SHOWN:
            console.print(f"{kind}: and {len(kinds[kind]) - SHOWN} more; --json FILE has all", markup=False)


def _line(line: Line) -> Text:
    whose = " ".join(filter(None, [line.student, f"lab {line.lab}" if line.lab else ""]))
    return Text(plain(f"{line.kind}: " + (f"{whose}: " if whose else "") + line.text).replace("\n", " "))


def _print_regraded(found: Regraded, dry: bool) -> None:
    _print_lines(found.lines)
    would = "would " if dry else ""
    for title, changes in ((f"who {would}gain{'' if dry else 's'}", found.winners),
                           (f"who {would}lose{'' if dry else 's'}", found.losers)):
        if changes:
            console.print(change_table(changes, title))
    same = len(found.changes) - len(found.winners) - len(found.losers)
    console.print(f"{len(found.changes)} compared: {len(found.winners)} gain, {len(found.losers)} lose, {same} stay as they are.")
    if dry:
        console.print("Nothing was changed.")
    elif found.held:
        console.print(f"{found.held} lower results were kept and do not count; --allow-lower lets them.")


def _print_terms(terms: lateness.Terms) -> None:
    console.print(Text(f"late policy: {plain(terms.policy) or 'none'}"))
    for lab, when in sorted(terms.due.items()):
        mine = sum(whose[1] == lab for whose in terms.extended)
        console.print(f"lab {lab} is due at {lateness.stamp(when)}" + (f"; {mine} extensions" if mine else ""))
