"""What was graded, in a SQLite file: every hand-in, every result, and which result stands for which hand-in.

A result is stored under a key, the hash of all it depends on, in one short transaction: a process that
is killed at any instant leaves a result wholly or not at all. Nothing is deleted or overwritten; what
changes is only which result stands. The handed-in files are kept, too: a file that is overwritten later can still
be compared. Knows no labs and grades nothing.
"""

import json
import os
import sqlite3
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

from grading.cohort import overrides as deciding
from grading.cohort.late import Late, Terms, settle
from grading.cohort.overrides import Override
from grading.judge.report import Report, TodoResult

SCHEMA = 1
_APPLICATION = 0x67726164
"""What marks a SQLite file as a grading journal: `grad`."""

_TABLES = """
CREATE TABLE IF NOT EXISTS attempts (
    id INTEGER PRIMARY KEY, student TEXT NOT NULL, lab TEXT NOT NULL, digest TEXT NOT NULL, submitted TEXT NOT NULL,
    source TEXT NOT NULL, UNIQUE (student, lab, digest, submitted));
CREATE TABLE IF NOT EXISTS results (
    key TEXT PRIMARY KEY, student TEXT NOT NULL, lab TEXT NOT NULL, digest TEXT NOT NULL, score REAL NOT NULL,
    report TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS standing (
    student TEXT NOT NULL, lab TEXT NOT NULL, digest TEXT NOT NULL, key TEXT NOT NULL REFERENCES results (key),
    PRIMARY KEY (student, lab, digest));
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS texts (digest TEXT PRIMARY KEY, files BLOB NOT NULL);
"""
"""`texts` was added later: opening a journal without it adds it, and an older course ignores it."""

_LAST = """
SELECT id, digest, submitted, source FROM attempts WHERE student = ? AND lab = ? ORDER BY submitted DESC, id DESC LIMIT 1
"""
_STANDING = """
SELECT report FROM standing JOIN results USING (key) WHERE (standing.student, standing.lab, standing.digest) = (?, ?, ?)
"""
_ALL = """
SELECT attempts.student, attempts.lab, attempts.digest, attempts.submitted, attempts.source, results.key, results.score
FROM attempts LEFT JOIN standing USING (student, lab, digest) LEFT JOIN results USING (key)
ORDER BY attempts.lab, attempts.student, attempts.submitted, attempts.id
"""
"""Without the reports, which are ten times as long as all the rest."""


@dataclass(frozen=True)
class Attempt:
    """One hand-in.

    Attributes:
        digest: SHA-256 of what is graded.
        submitted: when, ISO 8601 in UTC; None if unknown.
        source: where the time is from: `times` (the instructor's file) or `mtime` (the file's own).
    """

    student: str
    lab: str
    digest: str
    submitted: str | None = None
    source: str = "mtime"


@dataclass(frozen=True)
class Entry:
    """The hand-in that counts for one student and lab.

    Attributes:
        report: as it was graded.
        submitted: when it was handed in, ISO 8601 in UTC; None if unknown.
        late_days: after the deadline, extensions counted.
        final_score: after what lateness costs, and what the instructor decided.
        charged: days, or hours, that cost something.
        tokens: days that grace tokens paid for.
        attempts: how many hand-ins this student has for this lab, including this one.
        overrides: what the instructor decided.
        unit: what is charged, `day` or `hour`.
        deadline: the student's own; None if the lab has no date.
        grace: the free time after it.
        zone: the zone in which times are shown to people; UTC if None.
    """

    report: Report
    submitted: str | None
    late_days: float
    final_score: float
    charged: int = 0
    tokens: int = 0
    attempts: int = 1
    overrides: tuple[Override, ...] = ()
    unit: str = "day"
    deadline: datetime | None = None
    grace: timedelta = timedelta()
    zone: tzinfo | None = None

    @property
    def score(self) -> float:
        """Points before lateness is charged; the final score where the instructor set that."""
        final = deciding.final_of(self.overrides)
        return deciding.score_with(self.report, self.overrides) if final is None else final

    def todos(self) -> list[TodoResult]:
        """One row per TODO, in order, the predictions first, with what the instructor decided."""
        return deciding.todos_with(self.report, self.overrides)


@dataclass(frozen=True)
class LatestHandIn:
    """A student's latest hand-in for a lab.

    Attributes:
        key: of the result that stands for it; empty if there is none yet.
        score: before lateness is charged, with what the instructor decided.
    """

    student: str
    lab: str
    submitted: str | None
    key: str
    score: float
    attempts: int
    overrides: tuple[Override, ...]


class Journal:
    """The journal in a file.

    Args:
        path: the file.
        create: whether to make it if it is not there.
        fault: called with a name before and after each statement; tests kill the process there.

    Raises:
        ValueError: if there is no journal, or the file is something else.
    """

    def __init__(self, path: Path, create: bool = False, fault: Callable[[str], None] = lambda where: None) -> None:
        if not create and not path.is_file():
            raise ValueError(f"there is no journal {path}; python -m grading batch makes one")
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # its seeds reveal the inputs of hidden checks
        self._path, self._fault = path, fault
        self._base = sqlite3.connect(path, isolation_level=None, timeout=60.0)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._base.close()
            raise ValueError(f"{path} is no grading journal: {error}") from None
        except ValueError:
            self._base.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the file."""
        self._base.close()

    def _open(self) -> None:
        mark, version = self._value("PRAGMA application_id"), self._value("PRAGMA user_version")
        tables = self._value("SELECT COUNT(*) FROM sqlite_master")
        if tables and (mark, version) != (_APPLICATION, SCHEMA):
            raise ValueError(f"{self._path} is no grading journal of this version: " + (
                f"its version is {version}, and this course has {SCHEMA}" if mark == _APPLICATION
                else "it is another SQLite file"))
        self._do("PRAGMA journal_mode = WAL")
        self._do("PRAGMA synchronous = FULL")
        if not tables:
            with self._transaction():
                for statement in filter(str.strip, _TABLES.split(";")):
                    self._do(statement)
                self._do(f"PRAGMA application_id = {_APPLICATION}")
                self._do(f"PRAGMA user_version = {SCHEMA}")
        elif not self._do("SELECT 1 FROM sqlite_master WHERE name = 'texts'"):
            self._do(_TABLES.strip().split(";")[-2])

    # writing

    def hand_in(self, attempts: Iterable[Attempt]) -> None:
        """Note hand-ins, in one transaction; known ones change nothing.

        A student's last content handed in once more is no new hand-in: a time from the instructor's
        file corrects its time, and of two file times the earlier one stands.
        """
        with self._transaction():
            for attempt in attempts:
                self._note(attempt)

    def _note(self, attempt: Attempt) -> None:
        submitted, whose = attempt.submitted or "", (attempt.student, attempt.lab)
        if self._do("SELECT id FROM attempts WHERE (student, lab, digest, submitted) = (?, ?, ?, ?)", *whose, attempt.digest,
                    submitted):
            self._do("UPDATE attempts SET source = ? WHERE (student, lab, digest, submitted) = (?, ?, ?, ?) AND source = 'mtime'",
                     attempt.source, *whose, attempt.digest, submitted)
            return
        last = self._do(_LAST, *whose)
        if not last or last[0][1] != attempt.digest:
            self._do("INSERT INTO attempts (student, lab, digest, submitted, source) VALUES (?, ?, ?, ?, ?)", *whose,
                     attempt.digest, submitted, attempt.source)
            return
        number, _, known, source = last[0]
        if attempt.source == "times" or (source == "mtime" and submitted and submitted < known):
            self._do("UPDATE attempts SET submitted = ?, source = ? WHERE id = ?", submitted, attempt.source, number)

    def keep(self, contents: Mapping[str, Mapping[str, bytes]]) -> None:
        """Keep what was handed in, digest → files by name, in one transaction."""
        with self._transaction():
            for digest, files in contents.items():
                packed = zlib.compress(json.dumps({name: content.decode("latin-1") for name, content in files.items()}).encode())
                self._do("INSERT OR IGNORE INTO texts (digest, files) VALUES (?, ?)", digest, packed)

    def record(self, key: str, report: Report, allow_lower: bool = False) -> bool:
        """Store a result, in one transaction; a known result stays as it is.

        Returns:
            Whether the result stands for its hand-in from now on. A result with fewer points than the
            standing one does not, unless `allow_lower`.
        """
        with self._transaction():
            self._insert(key, report)
            now = self._do("SELECT results.key, results.score FROM standing JOIN results USING (key) "
                           "WHERE (standing.student, standing.lab, standing.digest) = (?, ?, ?)", report.student, report.lab,
                           report.digest)
            stands = not now or allow_lower or now[0][0] == key or now[0][1] <= report.score
            if stands and (not now or now[0][0] != key):
                self._do("INSERT OR REPLACE INTO standing (student, lab, digest, key) VALUES (?, ?, ?, ?)",
                         report.student, report.lab, report.digest, key)
        return stands

    def store(self, key: str, report: Report) -> None:
        """Store a result, in one transaction, and leave what stands as it is."""
        with self._transaction():
            self._insert(key, report)

    def _insert(self, key: str, report: Report) -> None:
        self._do("INSERT OR IGNORE INTO results (key, student, lab, digest, score, report) VALUES (?, ?, ?, ?, ?, ?)",
                 key, report.student, report.lab, report.digest, report.score, report.to_json())

    def claim(self, name: str, value: str) -> str:
        """The fact `name`; `value`, from now on, if there was none."""
        with self._transaction():
            self._do("INSERT OR IGNORE INTO facts (name, value) VALUES (?, ?)", name, value)
        return self.fact(name) or value

    def set_terms(self, terms: Terms) -> None:
        """Judge lateness by these terms from now on."""
        with self._transaction():
            self._do("INSERT OR REPLACE INTO facts (name, value) VALUES ('terms', ?)", terms.to_json())

    def set_overrides(self, overrides: Iterable[Override]) -> None:
        """Replace the instructor's decisions by these."""
        with self._transaction():
            self._do("INSERT OR REPLACE INTO facts (name, value) VALUES ('overrides', ?)", deciding.to_json(overrides))

    # reading

    def fact(self, name: str) -> str | None:
        """What is noted under this name; None if nothing is."""
        rows = self._do("SELECT value FROM facts WHERE name = ?", name)
        return rows[0][0] if rows else None

    def terms(self) -> Terms:
        """The terms by which lateness is judged; by default nothing is late."""
        text = self.fact("terms")
        return Terms.from_json(text) if text else Terms()

    def overrides(self) -> list[Override]:
        """The instructor's decisions."""
        text = self.fact("overrides")
        return deciding.from_json(text) if text else []

    def files(self, digest: str) -> dict[str, bytes] | None:
        """The files that were handed in; None if they were not kept: journals of older courses have no texts."""
        rows = self._do("SELECT files FROM texts WHERE digest = ?", digest)
        if not rows:
            return None
        return {name: text.encode("latin-1") for name, text in json.loads(zlib.decompress(rows[0][0])).items()}

    def result(self, key: str) -> Report | None:
        """The result stored under a key."""
        rows = self._do("SELECT report FROM results WHERE key = ?", key)
        return Report.from_json(rows[0][0]) if rows else None

    def run_of(self, key: str) -> str | None:
        """The run of this key whose result stands, else the last run; None if there is none."""
        runs = self._runs(key)
        standing = [run for run in runs if self._do("SELECT 1 FROM standing WHERE key = ?", run)] if len(runs) > 1 else []
        return next(reversed(standing or runs), None)

    def next_run(self, key: str) -> str:
        """The key for one more run of this key, for a submission that is graded again though nothing has changed."""
        runs = self._runs(key)
        return f"{key}+{len(runs)}" if runs else key

    def _runs(self, key: str) -> list[str]:
        """The keys of all runs, in order: KEY, KEY+1, KEY+2."""
        return [run for run, in self._do(
            "SELECT key FROM results WHERE key = ? OR (key > ? || '+' AND key < ? || ',') ORDER BY rowid", key, key, key)]

    def standing(self, student: str, lab: str, digest: str) -> Report | None:
        """The result that stands for a hand-in."""
        rows = self._do(_STANDING, student, lab, digest)
        return Report.from_json(rows[0][0]) if rows else None

    def counting(self, student: str, lab: str) -> Attempt | None:
        """The hand-in that counts: the latest."""
        rows = self._do(_LAST, student, lab)
        return Attempt(student, lab, rows[0][1], rows[0][2] or None, rows[0][3]) if rows else None

    def attempts(self) -> list[tuple[Attempt, bool]]:
        """Every hand-in and whether it has a result, by lab, student and time."""
        return [(Attempt(student, lab, digest, submitted or None, source), key is not None)
                for student, lab, digest, submitted, source, key, _ in self._do(_ALL)]

    def results(self) -> int:
        """How many results are stored, including those that no longer stand or never did."""
        return self._value("SELECT COUNT(*) FROM results")

    def latest(self, lab_id: str | None = None) -> list[Entry]:
        """The latest hand-in of each student, by lab and student. A hand-in without a result is left out."""
        entries, terms = [], self.terms()
        for last, late in self.settled(lab_id):
            report = self.result(last.key)
            assert report is not None  # it stands
            report = deciding.with_checks_given_to_all(report, last.overrides)
            entries.append(Entry(report, last.submitted, late.days, late.score, late.charged, late.tokens, last.attempts,
                                 last.overrides, late.unit, terms.deadline(last.student, last.lab),
                                 terms.policy_of(last.lab).grace, terms.zone))
        return entries

    def settled(self, lab_id: str | None = None) -> list[tuple[LatestHandIn, Late]]:
        """The hand-ins of `latest`, and the effect of lateness and of the instructor's decisions, without reading the reports."""
        last = self._latest_hand_ins()
        late = _lateness(self.terms(), last)
        for whose, hand_in in last.items():
            if (final := deciding.final_of(hand_in.overrides)) is not None:
                late[whose] = replace(late[whose], score=final)
        return [(hand_in, late[whose]) for whose, hand_in in last.items() if hand_in.key and lab_id in (None, hand_in.lab)]

    def _latest_hand_ins(self) -> dict[tuple[str, str], LatestHandIn]:
        """(lab, student) → the latest hand-in."""
        decided = self.overrides()
        last: dict[tuple[str, str], LatestHandIn] = {}
        for student, lab, _, submitted, _, key, score in self._do(_ALL):
            before = last.get((lab, student))
            last[lab, student] = LatestHandIn(student, lab, submitted or None, key or "", score or 0.0,
                                      before.attempts + 1 if before else 1, before.overrides if before
                                      else deciding.decided_for(decided, student, lab))
        for whose, hand_in in last.items():
            if hand_in.overrides and hand_in.key and (report := self.result(hand_in.key)):
                last[whose] = replace(hand_in, score=deciding.score_with(report, hand_in.overrides))
        return last

    # statements

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._do("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._do("ROLLBACK")
            raise
        self._do("COMMIT")

    def _do(self, statement: str, *values: object) -> list[tuple]:
        """Run one statement; returns its rows."""
        self._fault(f"before {statement}")
        try:
            rows = self._base.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            raise ValueError(f"the journal {self._path} cannot be used ({error}); what it has already is safe in it") from None
        self._fault(f"after {statement}")
        return rows

    def _value(self, statement: str) -> int:
        return self._do(statement)[0][0]


def _lateness(terms: Terms, last: Mapping[tuple[str, str], LatestHandIn]) -> dict[tuple[str, str], Late]:
    """(lab, student) → the effect of lateness; each student's labs in order, because one stock of tokens serves them all."""
    labs_of = defaultdict(list)
    for lab, student in sorted(last):
        labs_of[student].append(lab)
    late_of: dict[tuple[str, str], Late] = {}
    for student, labs in labs_of.items():
        own = [terms.policies.get(lab) for lab in labs]
        handed_in = [(terms.late(student, lab, last[lab, student].submitted), last[lab, student].score) for lab in labs]
        late_of |= {(lab, student): late for lab, late in zip(labs, settle(terms.policy, handed_in, own), strict=True)}
    return late_of
