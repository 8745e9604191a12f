"""`python -m grading export`, `report`, `gradescope-zip`, `similarity`: what leaves grading as a file."""

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from grading.cli.collect import KEPT
from grading.cli.term import JournalFile, TermFile, open_journal, submissions_of
from grading.cohort import similarity
from grading.cohort.downloads import feedback_names
from grading.cohort.journal import Entry
from grading.cohort.roster import Roster
from grading.cohort.term import Term, find_term
from grading.export import canvas, classroom50, cohort_page, csv_table, gradescope, html, junit, markdown, moodle
from grading.export.files import file_name, write, zipped
from grading.export.sheet import Filled
from grading.gradescope import autograder, container_limits, dry_run
from grading.judge.seeds import PUBLIC_SECRET
from grading.judge.show import plain
from labs.harness.catalog import find_lab
from labs.harness.learner.diagnosis import FILE, read_table

FORMATS = ("gradescope", "classroom50", "canvas", "moodle", "junit", "csv", "markdown", "html", "feedback")
ENDINGS = {"gradescope": "json", "classroom50": "json", "markdown": "md", "html": "html"}
"""Formats with a file for each submission."""
SLOWER = 2
"""How many times longer a check may take in Gradescope's container, which has half a core."""

Section = Annotated[str | None, typer.Option(help="only this section's students, by the roster")]

console = Console(highlight=False)


def export(
    form: Annotated[str, typer.Argument(metavar="FORMAT", help=", ".join(FORMATS))],
    out: Annotated[Path, typer.Option(
        help="the file, a zip of feedback; a folder where each submission has a file (gradescope, classroom50, markdown, html)")],
    lab: Annotated[str | None, typer.Option(help="such as 06; default: every lab in the journal")] = None,
    student: Annotated[str | None, typer.Option(help="only this student's results; --out is a file then")] = None,
    section: Section = None,
    journal: JournalFile = None,
    fill: Annotated[Path | None, typer.Option(
        help="canvas: the exported gradebook; moodle: the grading worksheet, else a file for the import is made")] = None,
    assignment: Annotated[str | None, typer.Option(help="canvas: the column's heading, title or number")] = None,
    identity: Annotated[str, typer.Option(
        help="moodle's import: what the journal calls students by: username, email, idnumber or id")] = "username",
    hidden: Annotated[str, typer.Option(
        help="gradescope: what becomes of hidden checks: after_published or hidden")] = "after_published",
    places: Annotated[Path | None, typer.Option(
        help="classroom50: a JSON file with classroom, assignment, tags and links")] = None,
    for_instructors: Annotated[bool, typer.Option(help="junit, markdown, html: with what hidden checks said")] = False,
    with_seed: Annotated[bool, typer.Option(
        help="markdown, html: with the seed; for students once results are published")] = False,
    term_file: TermFile = None,
) -> None:
    """Write results as another program wants them. Exit status 1 if a student's grade found no place."""
    term = find_term(term_file)
    entries = _entries(term, journal, lab, student, section)
    forms: dict[str, Callable[[Entry], str]] = {
        "gradescope": lambda entry: gradescope.results(entry, hidden),
        "markdown": lambda entry: markdown.summary(entry, not for_instructors, with_seed or for_instructors),
        "html": lambda entry: html.page(entry, not for_instructors, with_seed or for_instructors)}
    unplaced: Sequence[str] = ()
    if form == "classroom50":
        unplaced = _classroom50(entries, out, places, student)
    elif form in forms:
        _each(entries, out, form, student, forms[form])
    elif form in ("csv", "junit"):
        text = _table(entries, term, student, section) if form == "csv" else junit.document(entries, not for_instructors)
        _write(out, text.encode("utf-8"))
    elif form == "feedback":
        unplaced = _feedback(entries, out, term, forms["html"])
    elif form in ("canvas", "moodle"):
        unplaced = _gradebook(form, entries, out, fill, assignment, identity, term)
    else:
        raise ValueError(f"there is no format {form!r}; there are {', '.join(FORMATS)}")
    if unplaced:
        raise typer.Exit(1)


def _entries(
    term: Term, journal: Path | None, lab: str | None, student: str | None = None, section: str | None = None
) -> list[Entry]:
    """The hand-ins that count, by lab and student. Raises `ValueError` if there are none."""
    with open_journal(term, journal) as opened:
        counting = opened.latest(find_lab(lab).id if lab else None)
    there = term.roster.students if term.roster else {}
    sections = sorted({row.get("section", "") for row in there.values()} - {""})
    if section is not None and section not in sections:
        raise ValueError(f"--section {section}: the roster has no such section; it has {', '.join(sections) or 'none'}")
    entries = [entry for entry in counting if student in (None, entry.report.student)
               and (section is None or there.get(entry.report.student, {}).get("section") == section)]
    if not entries:
        whose = f" of {student}" if student else f" of section {section}" if section else ""
        raise ValueError(f"{journal or term.journal} has no results{whose}{f' in lab {lab}' if lab else ''}")
    return sorted(entries, key=lambda entry: (entry.report.lab, entry.report.student))


def _table(entries: Sequence[Entry], term: Term, student: str | None, section: str | None) -> str:
    """The CSV table; students on the roster without a result also have a row, for each lab in the table."""
    labs, there = {entry.report.lab for entry in entries}, {(entry.report.student, entry.report.lab) for entry in entries}
    roster = term.roster.students if term.roster else {}
    missing = [(name, lab) for lab in sorted(labs) for name, row in roster.items()
               if (name, lab) not in there and student in (None, name) and section in (None, row.get("section"))]
    return csv_table.table(entries, missing, roster)


def _each(entries: Sequence[Entry], out: Path, form: str, student: str | None, made: Callable[[Entry], str]) -> None:
    if student is not None and len(entries) > 1:
        raise ValueError(
            f"{student} has results of several labs ({', '.join(entry.report.lab for entry in entries)}); choose one with --lab")
    for entry in entries:
        path = out if student is not None else out / file_name(entry.report.student, entry.report.lab, ENDINGS[form])
        _write(path, made(entry).encode("utf-8"), quiet=student is None)
    if student is None:
        console.print(Text(f"wrote {len(entries)} files to {out}"))


def _classroom50(entries: Sequence[Entry], out: Path, places: Path | None, student: str | None) -> list[str]:
    if places is None:
        raise ValueError(f"classroom50 needs --places FILE:\n{classroom50.__doc__.partition(':')[2].strip()}")
    known = classroom50.read_places(places.read_text(encoding="utf-8"))
    unplaced = [f"{plain(entry.report.student)}: {places} has no submission by this student" for entry in entries
                if entry.report.student not in known]
    unplaced += [f"{plain(entry.report.student)}: it is not known when they handed in" for entry in entries
                 if entry.report.student in known and entry.submitted is None]
    good = [entry for entry in entries if entry.report.student in known and entry.submitted is not None]
    _each(good, out, "classroom50", student, lambda entry: classroom50.result(entry, known[entry.report.student]))
    _print_lines("not written", unplaced)
    return unplaced


def _gradebook(
    form: str, entries: Sequence[Entry], out: Path, fill: Path | None, assignment: str | None, identity: str, term: Term
) -> Sequence[str]:
    labs = sorted({entry.report.lab for entry in entries})
    if len(labs) > 1:
        raise ValueError(f"these are results of several labs ({', '.join(labs)}); choose one with --lab")
    roster = term.roster.students if term.roster else {}
    if form == "moodle" and fill is None:
        _write(out, moodle.gradebook(entries, identity, roster).encode("utf-8"))
        return ()
    if fill is None or (form == "canvas" and assignment is None):
        raise ValueError(
            "canvas needs --fill FILE, a gradebook that Canvas exported, and --assignment, the column's heading, title or number")
    data = fill.read_bytes()
    filled: Filled = (canvas.fill(data, assignment or "", entries, roster) if form == "canvas"
                      else moodle.fill_worksheet(data, entries, roster))
    _write(out, filled.data)
    _print_lines("note", filled.notes)
    _print_lines("not entered", filled.unplaced)
    return filled.unplaced


def _feedback(entries: Sequence[Entry], out: Path, term: Term, page: Callable[[Entry], str]) -> list[str]:
    """A zip of pages, named as the platform that the submissions came from expects feedback files to be named."""
    labs = sorted({entry.report.lab for entry in entries})
    kept = term.submissions / KEPT if term.submissions else None
    downloads = json.loads(kept.read_text(encoding="utf-8")) if kept and kept.is_file() else {}
    if len(labs) > 1 or labs[0] not in downloads:
        raise ValueError(f"feedback is of one lab whose submissions came by python -m grading collect; choose with --lab one of "
                         f"{', '.join(sorted(downloads)) or 'these: none yet'}")
    came, by_student = downloads[labs[0]], {entry.report.student: entry for entry in entries}
    names = feedback_names(came["form"], came["prefixes"], list(by_student), term.roster or Roster({}))
    _write(out, zipped({name: page(by_student[student]).encode("utf-8") for student, name in names.items()}))
    grouped = {student for owner in came["prefixes"] for student in (term.roster.owners(owner) if term.roster else [])}
    unplaced = [f"{plain(student)}: the download had no submission by this student" for student in by_student
                if student not in names and student not in grouped]
    _print_lines("not written", unplaced)
    return unplaced


def _write(path: Path, data: bytes, quiet: bool = False) -> None:
    try:
        write(path, data)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None
    if not quiet:
        console.print(Text(f"wrote {path}"), soft_wrap=True)


def _print_lines(what: str, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(Text(f"{what}: {line}"), soft_wrap=True)


def report(
    what: Annotated[str, typer.Argument(help="cohort")],
    lab: Annotated[str, typer.Option(help="such as 06")],
    out: Annotated[Path, typer.Option(help="the HTML file")],
    verified: Annotated[list[str] | None, typer.Option(
        metavar="CLUSTER=STUDENT,STUDENT,STUDENT", help="its comment fits these three; may be repeated")] = None,
    comments: Annotated[Path | None, typer.Option(
        help="write the comments that go out, a CSV row for each student and TODO")] = None,
    section: Section = None,
    anonymous: Annotated[bool, typer.Option(help="numbers in place of students: a page that may be shown to them")] = False,
    journal: JournalFile = None,
    term_file: TermFile = None,
) -> None:
    """A cohort's results in one lab, as a page: who got what, and which failures look the same."""
    if what != "cohort":
        raise ValueError(f"there is a report cohort, and none {what!r}")
    chosen, entries = find_lab(lab), _entries(find_term(term_file), journal, lab, section=section)
    if anonymous:
        entries = cohort_page.anonymous(entries)
    clusters = cohort_page.clusters(entries)
    if (chosen.folder / FILE).is_file():
        clusters = cohort_page.with_comments(clusters, read_table(chosen), cohort_page.checks_by_todo(entries))
    clusters = cohort_page.marked(clusters, cohort_page.read_verified(verified or [], clusters))
    _write(out, cohort_page.page(chosen.id, chosen.title, entries, clusters).encode("utf-8"))
    if comments:
        rows = [(student, todo, comment) for student, todo, comment in cohort_page.comments(clusters)]
        _write(comments, csv_table.written([("student", "todo", "comment"), *rows]).encode("utf-8"))
    waiting = [cluster for cluster in clusters
               if cluster.comment and not cluster.verified and len(cluster.students) >= cohort_page.VERIFIED_BY]
    _print_lines("to verify", [f"cluster {cluster.id}, {len(cluster.students)} students: {cluster.comment}"
                               for cluster in waiting])


def gradescope_zip_command(
    lab: Annotated[str, typer.Argument(help="such as 06")],
    out: Annotated[Path, typer.Option(help="the zip file")],
    hidden: Annotated[str, typer.Option(help="what becomes of hidden checks: after_published or hidden")] = "after_published",
    identity: Annotated[str, typer.Option(help="what names a student: email, id or name")] = "email",
    isolation: Annotated[str | None, typer.Option(
        help="namespaces, limits or none; by default what the term says, else the strongest that the container has")] = None,
    index: Annotated[str | None, typer.Option(help="a package index besides the usual one, with torch's builds for CPUs")] = None,
    attempt: Annotated[Path | None, typer.Option(
        "--try", metavar="SUBMISSION",
        help="grade this file or folder with the zip, here, under half a core and 768 MiB")] = None,
    term_file: TermFile = None,
) -> None:
    """Make the autograder that Gradescope runs for one lab, with the term's secret in it."""
    term = find_term(term_file)
    if term.secret == PUBLIC_SECRET:
        raise ValueError("the autograder needs the term secret, which term.toml names; python -m grading init writes both")
    choices = autograder.Choices(find_lab(lab).id, hidden, term.seed_mode, identity, isolation or term.isolation,
                                 SLOWER * term.seconds, predictions=term.predictions)
    data = autograder.build(find_lab(lab), choices, term.secret, index)
    _write(out, data)
    console.print(Text(f"{len(data) / 1e6:.1f} MB"))
    if attempt is not None and not _tried(out, attempt):
        raise typer.Exit(1)


def _tried(archive: Path, submission: Path) -> bool:
    """Run the zip here and print what that took; returns whether it came to an end."""
    with tempfile.TemporaryDirectory(prefix="autograder-", ignore_cleanup_errors=True) as name:
        try:
            used, results = dry_run.run(archive, submission, Path(name))
        except container_limits.NoGroups as error:
            raise ValueError(str(error)) from None
    console.print(Text(plain(used.output, 4000).rstrip()))
    console.print(Text(
        f"{used.seconds:.0f} s, {used.cpu_seconds:.0f} s of a core; memory at most {used.peak_bytes / 2**20:.0f} MiB of its own, "
        f"{used.charged_bytes / 2**20:.0f} MiB with files; {used.killed} processes killed; exit status {used.returncode}"))
    return bool(results)


def similarity_command(
    lab: Annotated[str, typer.Option(help="such as 06")],
    submissions: Annotated[Path | None, typer.Argument(help="a folder with an entry for each student; by default the term's")]
    = None,
    least: Annotated[float, typer.Option(
        help="the share of one's own code from which on a pair is listed", min=0.0, max=1.0)] = similarity.ALIKE,
    against: Annotated[list[Path] | None, typer.Option(
        metavar="FOLDER", help="an earlier term's submissions, to compare with, too; may be given several times")] = None,
    out: Annotated[Path | None, typer.Option(help="write the pairs as CSV, too")] = None,
    term_file: TermFile = None,
) -> None:
    """Submissions that are alike, or like ours; names, comments and the starter's code do not count.

    Nothing leaves this machine.
    """
    chosen, folder = find_lab(lab), submissions_of(find_term(term_file), submissions)
    sources, unusable = similarity.read_sources(folder, chosen)
    known = [*similarity.ours(chosen), *(source for other in against or [] for source in similarity.earlier(other, chosen))]
    pairs = similarity.pairs([*sources, *known], chosen.starter.read_text(encoding="utf-8"), least)
    table = Table(title=f"Lab {chosen.id}: {len(sources)} submissions; alike in {least:.0%} or more", title_justify="left")
    for name in ("one", "its share", "its lines", "other", "its share", "its lines"):
        table.add_column(name, justify="right" if "share" in name else "left")
    for pair in pairs:
        table.add_row(*map(Text, _cells(pair)))
    console.print(table)
    console.print("A high share is a reason to look at both, and no verdict.")
    _print_lines("the same predictions", [plain(", ".join(group)) for group in similarity.same_predictions(folder, chosen)])
    _print_lines("not compared", [plain(line) for line in unusable])
    if out:
        _write(out,
               csv_table.written([("one", "share", "lines", "other", "share", "lines"), *map(_cells, pairs)]).encode("utf-8"))


def _cells(pair: similarity.Pair) -> list[str]:
    ranges = [" ".join(f"{first}-{last}" for first, last in lines) for lines in pair.lines]
    return [plain(pair.one), f"{pair.shares[0]:.0%}", ranges[0], plain(pair.other), f"{pair.shares[1]:.0%}", ranges[1]]


def register(app: typer.Typer) -> None:
    """Make these commands of `python -m grading`."""
    app.command()(export)
    app.command()(report)
    app.command("gradescope-zip")(gradescope_zip_command)
    app.command("similarity")(similarity_command)
