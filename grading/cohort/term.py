"""What an instructor decides once a term: `term.toml`, read and checked as a whole.

All its mistakes are named at once, each with key, value and way out. Its paths are relative to its folder, and times
without a zone are in its `time_zone`. Knows the roster and the term secret; knows no submissions and no journal's contents.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, tzinfo
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from grading.cohort.late import DAY, MINUTE, Policy, Terms, by_the_clock, in_zone, named_zone, shown
from grading.cohort.overrides import Override
from grading.cohort.roster import FIELDS, Roster, read_roster
from grading.cohort.toml_table import Table
from grading.judge.seeds import PUBLIC_SECRET, read_secret
from grading.judge.suite import checks_of
from grading.sandbox.isolation import LEVELS
from labs.harness.catalog import LabError, all_labs, find_lab
from labs.harness.regions import functions_of

FILE = Path("term.toml")
"""The name under which commands look for it in the folder they are started in."""
YEARS = range(1990, 2200)
SEED_MODES = ("student", "cohort")


class TermError(ValueError):
    """`term.toml` has mistakes: a line for each."""


@dataclass(frozen=True)
class Extension:
    """One student's own deadline for a lab: days after it is due, by the wall clock, or a time."""

    student: str
    lab: str
    days: float | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class Due:
    """When a lab is due, in UTC: for everybody, and in sections that have a date of their own; and what lateness costs there."""

    all: datetime | None = None
    sections: Mapping[str, datetime] = field(default_factory=dict)
    policy: Policy | None = None


@dataclass(frozen=True)
class Term:
    """A term, as its file defines it; without a file, the defaults.

    Attributes:
        file: None if there is none.
        name: such as `2027S`; the student edition and the tag have it.
        secret: the secret from which the inputs of checks are drawn; the public one if none is named.
        submissions: the folder with everybody's submissions.
        times: a CSV file with student, lab, submitted; or None.
        mtimes: whether the files' own times count.
        zone: the zone of times that name none; if None, every time has to name its zone.
        labs: id → when it is due, for the labs of this term.
        seconds: how long one check may take.
        submission_seconds: how long all checks of a submission may take together; None for no such limit.
        overrides: decisions about scores.
    """

    file: Path | None = None
    name: str = ""
    secret: str = field(default=PUBLIC_SECRET, repr=False)
    journal: Path = Path("journal.sqlite")
    submissions: Path | None = None
    roster: Roster | None = None
    times: Path | None = None
    mtimes: bool = False
    zone: tzinfo | None = None
    seed_mode: str = "student"
    isolation: str | None = None
    predictions: bool = True
    seconds: float = 30.0
    submission_seconds: float | None = None
    labs: Mapping[str, Due] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)
    extensions: tuple[Extension, ...] = ()
    overrides: tuple[Override, ...] = ()

    def terms(self) -> Terms:
        """The rules for lateness, with the roster's sections and the extensions turned into students' deadlines."""
        due = {lab: of_lab.all for lab, of_lab in self.labs.items() if of_lab.all is not None}
        own = {(student, lab): of_lab.sections[row["section"]] for lab, of_lab in self.labs.items()
               for student, row in (self.roster.students if self.roster else {}).items() if row.get("section") in of_lab.sections}
        extended = {}
        for extension in self.extensions:
            whose = extension.student, extension.lab
            extended[whose] = self._extended(extension, own.get(whose, due.get(extension.lab)))
        policies = {lab: of_lab.policy for lab, of_lab in self.labs.items() if of_lab.policy}
        return Terms(self.policy, due, own | extended, policies, self.zone)

    def _extended(self, extension: Extension, due: datetime | None) -> datetime:
        if extension.until is not None:
            return extension.until
        assert due is not None and extension.days is not None
        return by_the_clock(due, extension.days * DAY, self.zone)


def find_term(file: Path | None) -> Term:
    """The term in `file`; by default that of `term.toml` in the current folder, or without such a file the defaults.

    Raises:
        TermError: as `read_term`.
    """
    if file is None and not FILE.is_file():
        return Term()
    return read_term(file or FILE)


def read_term(file: Path) -> Term:
    """The term in a file. Raises a `TermError` that names every mistake in it."""
    try:
        entries = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TermError(f"{file} cannot be read: {error.strerror}; python -m grading init writes one") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TermError(f"{file} is no TOML: {error}") from None
    wrong: list[str] = []
    term = _Reader(file, wrong).term(Table(entries, "", wrong))
    if wrong:
        many = f"{len(wrong)} mistake{'s' if len(wrong) > 1 else ''}"
        raise TermError(f"{file} has {many}:\n" + "\n".join(f"  {mistake}" for mistake in wrong))
    return term


@dataclass
class _Reader:
    """Makes a `Term` of the file's tables."""

    file: Path
    wrong: list[str]
    zone: tzinfo | None = None
    roster: Roster | None = None
    roster_is_wrong: bool = False
    dates_are_wrong: bool = False

    def term(self, top: Table) -> Term:
        self.zone = self._zone(top)
        self.roster = self._roster(top.table("roster"))
        grading, submissions = top.table("grading"), top.table("submissions")
        times, mtimes = self._times(submissions)
        policy = self._policy(top.table("late"), Policy())
        before = len(self.wrong)
        labs = self._labs(top.table("labs"), policy)
        self.dates_are_wrong = len(self.wrong) > before
        term = Term(
            self.file, top.take("name", str, ""), self._secret(top), self._path(top, "journal", "journal.sqlite"),
            self._path(submissions, "folder", None), self.roster, times, mtimes, self.zone,
            grading.one_of("seed_mode", SEED_MODES, "student") or "student", grading.one_of("isolation", LEVELS, None),
            grading.take("predictions", bool, True), float(grading.number("seconds_per_check", 30.0, 1) or 30.0),
            grading.number("seconds_per_submission", None, 1), labs, policy)
        term = replace(term, extensions=self._extensions(top, labs), overrides=self._overrides(top, labs))
        for table in (top, grading, submissions):
            table.end()
        return term

    def _path(self, table: Table, key: str, default: str | None) -> Any:
        value = table.take(key, str, default)
        return None if value is None else self.file.parent / value

    def _existing_file(self, table: Table, key: str) -> Path | None:
        """The path of a file that has to exist; None, with a mistake noted, if it does not."""
        path = self._path(table, key, None)
        if path is not None and not path.is_file():
            table.say(key, f"there is no file {path}")
            return None
        return path

    def _zone(self, top: Table) -> tzinfo | None:
        name = top.take("time_zone", str, None)
        try:
            return None if name is None else named_zone(name)
        except ValueError as error:
            top.say("time_zone", str(error))
            return UTC

    def _secret(self, top: Table) -> str:
        path = self._existing_file(top, "secret")
        try:
            return read_secret(path)
        except (OSError, ValueError) as error:
            top.say("secret", str(error))
            return PUBLIC_SECRET

    def _roster(self, table: Table) -> Roster | None:
        path, columns = self._existing_file(table, "file"), table.table("columns")
        self.roster_is_wrong = "file" in table.entries
        headings = {name: columns.take(name, str, None) for name in FIELDS}
        columns.end()
        table.end()
        if path is None:
            return None
        try:
            return read_roster(path, {name: heading for name, heading in headings.items() if heading is not None})
        except ValueError as error:
            self.wrong.append(f"roster: {error}; [roster.columns] says which column is which")
            return None

    def _times(self, table: Table) -> tuple[Path | None, bool]:
        if table.entries.get("times") == "mtime":
            table.known.append("times")
            return None, True
        return self._path(table, "times", None), False

    def _labs(self, table: Table, policy: Policy) -> dict[str, Due]:
        labs: dict[str, Due] = {}
        for key in table.entries:
            lab = table.table(key)
            if (id_ := self._lab(table, key, key)) is None:
                continue
            if id_ in labs:
                table.say(key, f"lab {id_} is there twice")
            sections = lab.table("sections")
            dates = {name: when for name in sections.entries if (when := self._moment(sections, name)) is not None}
            own = lab.table("late")
            labs[id_] = Due(self._moment(lab, "due"), dates, self._policy(own, policy, of_term=False) if own.entries else None)
            if labs[id_].sections and labs[id_].all is None and "due" not in lab.entries:
                lab.say("sections", "give due, too, for students in none of these sections")
            self._sections(sections)
            lab.end()
        return dict(sorted(labs.items()))

    def _sections(self, table: Table) -> None:
        if self.roster is None and self.roster_is_wrong:
            return
        there = {row.get("section", "") for row in self.roster.students.values()} - {""} if self.roster else set()
        for name in table.entries:
            if name not in there:
                known = f"it has {', '.join(sorted(there))}" if there else "[roster.columns] names its column: section = …"
                table.say(name, f"the roster has no section {name!r}; {known}")

    def _lab(self, table: Table, key: str, name: str) -> str | None:
        try:
            return find_lab(name).id
        except LabError:
            table.say(key, f"there is no lab {name!r}; there are {', '.join(lab.id for lab in all_labs())}")
            return None

    def _moment(self, table: Table, key: str) -> datetime | None:
        """A time with its zone. A date alone is the end of that day."""
        value = table.take(key, (datetime, date), None, "a time such as 2027-03-01T23:59:00, without quotation marks")
        if value is None:
            return None
        if not isinstance(value, datetime):
            value = datetime.combine(value, time(23, 59, 59))
        if value.year not in YEARS:
            table.say(key, "that year cannot be meant")
            return None
        if value.tzinfo is not None:
            return value.replace(microsecond=0).astimezone(UTC)
        if self.zone is None:
            table.say(key, f"it has no time zone: give time_zone for the whole term, or write {value.isoformat()}+01:00")
            return None
        try:
            return in_zone(value.replace(microsecond=0), self.zone).astimezone(UTC)
        except ValueError as error:
            table.say(key, str(error))
            return None

    def _policy(self, table: Table, default: Policy, of_term: bool = True) -> Policy:
        """The term's policy, with the tokens, or a lab's, which takes from the term's whatever it does not set itself."""
        grace = self._one_of_two(table, ("grace_days", 1000), ("grace_minutes", 100_000))
        penalty = self._one_of_two(table, ("percent_per_day", 100), ("percent_per_hour", 100))
        most, cutoff = table.number("most_percent", None, 0, 100), table.number("cutoff_days", None, 0, 1000)
        tokens = table.take("tokens", int, 0) if of_term else default.tokens
        if not 0 <= tokens <= 1000:
            table.say("tokens", "it has to be a whole number from 0 to 1000")
        table.end()
        return Policy(
            default.grace if grace is None else grace[1] * (DAY if grace[0] == "grace_days" else MINUTE),
            default.penalty if penalty is None else penalty[1] / 100, default.most if most is None else most / 100, tokens,
            default.cutoff if cutoff is None else cutoff * DAY,
            default.unit if penalty is None else penalty[0].removeprefix("percent_per_"))

    def _one_of_two(self, table: Table, *keys: tuple[str, float]) -> tuple[str, float] | None:
        """Of two keys, each with its most, the one that is there, and its number; None if neither is, or something is wrong."""
        there = {key: number for key, most in keys if (number := table.number(key, None, 0, most)) is not None}
        (one, _), (other, _) = keys
        if one in table.entries and other in table.entries:
            table.say(other, f"give {one} or {other}, and not both")
            return None
        return next(iter(there.items()), None)

    def _extensions(self, top: Table, labs: Mapping[str, Due]) -> tuple[Extension, ...]:
        extensions: dict[tuple[str, str], Extension] = {}
        for table in top.tables("extensions"):
            student, lab = self._whose(table, labs)
            days, until = table.number("days", None, 0, 1000), self._moment(table, "until")
            table.end()
            if ("days" in table.entries) == ("until" in table.entries):
                table.say("days", "give days or until, and not both")
            elif self.dates_are_wrong:
                continue  # it has been said, and may be why there is no date here
            elif lab and labs.get(lab, Due()).all is None:
                table.say("lab", f"lab {lab} has no due date to extend; [labs.{lab}] gives it: due = …")
            elif until and lab and (due := labs[lab].all) and until < due:
                table.say("until", f"that is before the lab is due, {shown(due, self.zone)}")
            elif (student, lab) in extensions:
                table.say("student", f"{student} has an extension for lab {lab} already; leave one of the two")
            elif student and lab and (days is not None or until is not None):
                extensions[student, lab] = Extension(student, lab, days, until)
        return tuple(extensions.values())

    def _overrides(self, top: Table, labs: Mapping[str, Due]) -> tuple[Override, ...]:
        overrides: dict[object, Override] = {}
        for table in top.tables("overrides"):
            override = self._check_given_to_all(table, labs) if "check" in table.entries else self._override(table, labs)
            if override is None:
                continue
            key = (override.student, override.lab, override.todo, override.check) if override.bonus is None else len(overrides)
            if key in overrides:
                table.say("student", f"{override.student or override.check} has been decided already; leave one of the two")
            overrides[key] = override
        return tuple(overrides.values())

    def _override(self, table: Table, labs: Mapping[str, Due]) -> Override | None:
        """A decision about one student; None if something is wrong with it."""
        before = len(self.wrong)
        student, lab = self._whose(table, labs)
        comment, todo = self._comment(table), self._todo(table, lab)
        points, bonus = table.number("points", None, 0, 1000), table.number("bonus", None, -1000, 1000)
        table.end("check")
        if ("points" in table.entries) == ("bonus" in table.entries):
            table.say("points", "give points, which replace what was earned, or bonus, which is added; not both")
        elif bonus is not None and todo is not None:
            table.say("todo", "a bonus is for the whole lab; leave todo out")
        return Override(student, lab, comment, todo, points, bonus) if len(self.wrong) == before else None

    def _check_given_to_all(self, table: Table, labs: Mapping[str, Due]) -> Override | None:
        """A check whose points everybody gets; None if something is wrong with it."""
        before = len(self.wrong)
        lab = self._lab(table, "lab", table.take("lab", str, "", 'text such as "06"'))
        check, comment = table.take("check", str, ""), self._comment(table)
        names = [known_check.name for known_check in checks_of(find_lab(lab))] if lab else []
        if lab and check not in names:
            near = get_close_matches(check, names, 1)
            table.say("check", f"lab {lab} has no such check" + (f"; is {near[0]} meant?" if near else ""))
        table.end()
        return Override("", lab or "", comment, check=check) if len(self.wrong) == before else None

    def _comment(self, table: Table) -> str:
        comment = table.take("comment", str, "").strip()
        if not comment:
            table.say("comment", "say why: the student reads it")
        return comment

    def _todo(self, table: Table, lab: str) -> int | None:
        todo = table.take("todo", (int, str), None, 'a TODO\'s number, or "predictions"')
        if todo == "predictions":
            return 0
        if isinstance(todo, str) or (todo is not None and lab and todo not in _todos(lab)):
            table.say("todo", f"lab {lab} has the TODOs {', '.join(map(str, _todos(lab)))}, and \"predictions\"" if lab
                      else 'a TODO\'s number, or "predictions"')
            return None
        return todo

    def _whose(self, table: Table, labs: Mapping[str, Due]) -> tuple[str, str]:
        """Student and lab, each empty if it is wrong."""
        student, name = table.take("student", str, ""), table.take("lab", str, "", 'text such as "06"')
        if "student" not in table.entries or not student:
            table.say("student", "name the student")
        elif self.roster and student not in self.roster.students:
            near = get_close_matches(student, self.roster.students, 1)
            table.say("student", "the roster has no such student" + (f"; is {near[0]} meant?" if near else ""))
            student = ""
        if not name:
            if "lab" not in table.entries:
                table.say("lab", 'say for which lab, such as lab = "06"')
            return student, ""
        return student, self._lab(table, "lab", name) or ""


def _todos(lab: str) -> list[int]:
    return sorted(functions_of(find_lab(lab).solution.read_text(encoding="utf-8")))
