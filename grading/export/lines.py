"""The lines about each check, in the order of the report. For a hidden check a student sees only its TODO and concept.

For a check that ran on our code a student sees the text of `grading.judge.show.message_on_ours`.
"""

from dataclasses import dataclass

from grading.cohort.journal import Entry
from grading.cohort.late import DAY, HOUR, many, shown, span
from grading.judge.report import CheckResult, Report
from grading.judge.show import CHECKED_AT, message_on_ours, plain, points

MOST_TEXT = 2_000
"""How many characters of a message, or of printed text, a line keeps."""


@dataclass(frozen=True)
class Line:
    """One check, in words that may be shown; whatever came from a submission has no control characters left.

    Attributes:
        number: `2.1`, the first check of TODO 2.
        title: its name, or for a hidden check what it is about.
        message: what was expected and what came; empty if it passed.
        section: of the lab's README; empty if it would reveal what a hidden check does.
        printed: what the submission printed during the check; only for instructors, or if the check is not hidden.
    """

    todo: int
    number: str
    title: str
    earned: float
    points: float
    passed: bool
    hidden: bool
    message: str = ""
    section: str = ""
    printed: str = ""


def lines_of(report: Report, as_student: bool = True) -> list[Line]:
    """One line for each check."""
    met: dict[int, int] = {}
    lines = []
    for check in report.checks:
        met[check.todo] = met.get(check.todo, 0) + 1
        lines.append(_line(check, f"{check.todo}.{met[check.todo]}", as_student))
    return lines


def lost_lines(report: Report, as_student: bool = True) -> list[Line]:
    """One for each check that lost points; all of a TODO that say that it is not written are one, whose number is the TODO's."""
    number_of = dict(zip((check.name for check in report.checks), (line.number for line in lines_of(report)), strict=True))
    return [_line(check, number_of.get(check.name, str(check.todo)), as_student) for check in report.lost()]


def _line(check: CheckResult, number: str, as_student: bool) -> Line:
    secret = as_student and check.hidden
    common = (check.todo, number, _title(check, secret), check.earned, check.points, check.passed, check.hidden)
    if secret:
        return Line(*common, message="" if check.passed else f"A hidden check failed; it is about: {check.concept}")
    printed = "" if check.passed else plain(check.printed, MOST_TEXT)
    return Line(*common, message=_message(check, as_student), section=check.section, printed=printed)


def _title(check: CheckResult, secret: bool) -> str:
    if secret:
        return f"a hidden check, about: {check.concept}"
    return check.name.replace("_", " ")


def _message(check: CheckResult, as_student: bool) -> str:
    if check.passed:
        return ""
    if as_student and check.on_ours:
        return message_on_ours(check)
    ours = f" (Our TODO {', '.join(map(str, check.on_ours))} was in place of yours.)" if check.on_ours else ""
    return plain(check.message, MOST_TEXT) + ours


def name_of(todo: int) -> str:
    """A TODO's name in reports."""
    return f"TODO {todo}" if todo else "predictions"


def dates(entry: Entry) -> str:
    """`handed in 2027-03-03 10:00 CET, due 2027-03-01 23:59 CET`, as far as it is known."""
    known = [("handed in", entry.submitted), ("due", entry.deadline)]
    return ", ".join(f"{what} {shown(when, entry.zone)}" for what, when in known if when is not None)


def how_late(entry: Entry) -> str:
    """`1.5 days late (due 2027-03-01 23:59 CET, 1 day of grace)`; in hours where these are charged."""
    much = many(round(entry.late_days * (DAY / HOUR if entry.unit == "hour" else 1), 2), entry.unit)
    grace = f", {span(entry.grace)} of grace" if entry.grace else ""
    return f"{much} late" + (f" (due {shown(entry.deadline, entry.zone)}{grace})" if entry.deadline else "")


def lateness(entry: Entry) -> str:
    """The cost of lateness, `17 points, 4.06 days late (due 2027-03-01 23:59 CET); 3 days charged: 11.9 count.`

    Empty if it cost nothing.
    """
    if entry.final_score == entry.score:
        return ""
    tokens = many(entry.tokens, "day") if entry.unit == "hour" else entry.tokens
    paid = f", {tokens} paid for by tokens" if entry.tokens else ""
    charged = f"; {many(entry.charged, entry.unit)} charged{paid}" if entry.charged else ""
    return f"{points(entry.score)} points, {how_late(entry)}{charged}: {points(entry.final_score)} count."


def decided(entry: Entry) -> list[str]:
    """The instructor's decisions about a score, one sentence each, with the comment."""
    return [plain(override.words()) for override in entry.overrides]


def conditions(report: Report, with_seed: bool) -> list[str]:
    """What the score depends on: enough to reproduce it, if the seed is given.

    Args:
        with_seed: for instructors, and for students once results are published.
    """
    sentences = [f"Graded {CHECKED_AT.get(report.isolation, report.isolation)} (isolation level: {report.isolation})."]
    sentences.append("Versions: " + ", ".join(f"{name} {value}" for name, value in sorted(report.versions.items())) + ".")
    sentences.append(f"What was graded has the SHA-256 {report.digest}.")
    if with_seed:
        sentences.append(f"Seed of the inputs: {report.seed}.")
    return [*sentences, *(plain(note) for note in report.notes)]
