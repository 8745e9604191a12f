"""How a whole cohort did in one lab: clusters of failures that look the same, and the page that shows them.

A cluster is a TODO, the checks that failed, and their messages without the numbers. A comment
comes from the lab's `symptoms.json`, and only if the failing checks leave no doubt which symptom it
is; it goes to a cluster's students after an instructor has verified it against three of them. Knows
entries of the journal; runs nothing.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from grading.cohort.journal import Entry
from grading.export.html import templates
from grading.judge.report import CheckResult
from grading.judge.show import plain
from labs.harness.learner.diagnosis import Symptom
from labs.harness.learner.results import VARYING

VERIFIED_BY = 3
"""How many students of a cluster an instructor checks before its comment goes to all of them."""
BINS = 10
NAMED_ALIKE = 0.6
"""The share of common words above which a test of a lab and a check count as the same."""
_WORDING = 160


@dataclass(frozen=True)
class Cluster:
    """Students whose TODO failed in the same way.

    Attributes:
        id: the same for the same cluster in every report.
        failures: names of the checks that failed, and how: (check, wording).
        students: in alphabetical order.
        unwritten: whether the TODO was not started.
        unusable: whether nothing in their file could run: all checks have the same message, and none is about the TODO.
        comment: the comment of the lab's symptoms; empty if that is unsure.
        verified: the students it was verified against; empty if no one has looked.
    """

    id: str
    todo: int
    failures: tuple[tuple[str, str], ...]
    students: tuple[str, ...]
    unwritten: bool = False
    unusable: bool = False
    comment: str = ""
    verified: tuple[str, ...] = ()

    @property
    def is_sent(self) -> bool:
        """Whether its comment goes to its students."""
        return bool(self.comment and self.verified)


def clusters(entries: Iterable[Entry]) -> list[Cluster]:
    """The clusters by TODO, the largest first. Predictions form no clusters: they fail by question, not by mistake."""
    students_of: dict[tuple, set[str]] = defaultdict(set)
    for entry in entries:
        unusable = _is_unusable(entry)
        for todo, failed in _failed(entry).items():
            unwritten = all(check.unwritten for check in failed)
            failures = () if unwritten else tuple(sorted((check.name, wording(check.message)) for check in failed))
            students_of[todo, failures, unusable].add(entry.report.student)
    made = [Cluster(_id(todo, failures), todo, failures, tuple(sorted(students)), not failures, unusable)
            for (todo, failures, unusable), students in students_of.items()]
    return sorted(made, key=lambda cluster: (cluster.todo, -len(cluster.students), cluster.id))


def anonymous(entries: Iterable[Entry]) -> list[Entry]:
    """The same results for `student 01` and so on, ordered by the digests of the hand-ins, which reveal no name."""
    ordered = sorted(entries, key=lambda entry: (entry.report.digest, entry.report.student))
    width = len(str(len(ordered)))
    return [replace(entry, report=replace(entry.report, student=f"student {number:0{width}}"))
            for number, entry in enumerate(ordered, 1)]


def _is_unusable(entry: Entry) -> bool:
    """Whether every check has the same message, as when the file is missing or is not Python."""
    messages = {check.message for check in entry.report.checks if check.todo}
    return len(messages) == 1 and "" not in messages and len({check.todo for check in entry.report.checks}) > 1


def _failed(entry: Entry) -> dict[int, list[CheckResult]]:
    by_todo = defaultdict(list)
    for check in entry.report.checks:
        if not check.passed and check.todo:
            by_todo[check.todo].append(check)
    return by_todo


def wording(message: str) -> str:
    """A message without the parts that differ from student to student."""
    return VARYING.sub("…", plain(" ".join(message.split()), 2 * _WORDING))[:_WORDING]


def _id(todo: int, failures: tuple[tuple[str, str], ...]) -> str:
    """`3-0a1b2c`."""
    return f"{todo}-{hashlib.sha256(repr(failures).encode()).hexdigest()[:6]}"


# comments


def with_comments(clusters: Sequence[Cluster], symptoms: Sequence[Symptom], checks: Mapping[int, set[str]]) -> list[Cluster]:
    """The clusters, each with the comment of the lab's symptoms.

    Args:
        checks: TODO -> the names of all its checks.
    """
    return [replace(cluster, comment=_comment(cluster, symptoms, checks.get(cluster.todo, set()))) for cluster in clusters]


def checks_by_todo(entries: Iterable[Entry]) -> dict[int, set[str]]:
    """The names of all checks."""
    by_todo = defaultdict(set)
    for entry in entries:
        for check in entry.report.checks:
            by_todo[check.todo].add(check.name)
    return by_todo


def _comment(cluster: Cluster, symptoms: Sequence[Symptom], checks: set[str]) -> str:
    """The comment of the symptom that fails exactly these checks; empty unless it is the only one and distinct from others.

    A lab's tests and its checks are about the same things and mostly have the same names. A symptom is
    known by those of its tests that have a check; a cluster in which anything else fails is unsure.
    """
    if cluster.unusable:
        return ""
    failing = {name for name, _ in cluster.failures}
    alike = [symptom for symptom in symptoms if symptom.todo == cluster.todo
             for pattern in symptom.patterns if failing and {_check_like(test, checks) for test in pattern} - {""} == failing]
    return alike[0].says if len({symptom.says for symptom in alike}) == 1 and alike[0].speaks else ""


def _check_like(test: str, checks: set[str]) -> str:
    """The one check whose name shares the most words with a test's; empty if no check shares enough, or two share as many."""
    words = set(re.sub(r"^test_todo_\d+_", "", test).split("_"))
    near = sorted(((len(words & set(check.split("_"))) / len(words | set(check.split("_"))), check) for check in checks),
                  reverse=True)
    alone = len(near) == 1 or (len(near) > 1 and near[0][0] > near[1][0])
    return near[0][1] if alone and near[0][0] >= NAMED_ALIKE else ""


def read_verified(marks: Iterable[str], clusters: Sequence[Cluster]) -> dict[str, tuple[str, ...]]:
    """Cluster -> the students its comment was verified against, from `CLUSTER=ada,ben,cem`.

    Raises `ValueError` for a malformed mark, for an unknown cluster or one without a comment, for
    students who are not in it, and for fewer than three students.
    """
    known, verified = {cluster.id: cluster for cluster in clusters}, {}
    for mark in marks:
        name, equals, listed = mark.partition("=")
        students = tuple(dict.fromkeys(student.strip() for student in listed.split(",") if student.strip()))
        if not equals or name not in known:
            raise ValueError(f"--verified is CLUSTER=student,student,student with a cluster of this lab, not {mark!r}; "
                             f"there are: {', '.join(known) or 'none'}")
        if not known[name].comment:
            raise ValueError(f"cluster {name} has no comment that could be verified")
        if outsiders := [student for student in students if student not in known[name].students]:
            raise ValueError(f"{', '.join(outsiders)} not in cluster {name}: its students are {', '.join(known[name].students)}")
        if len(students) < VERIFIED_BY:
            raise ValueError(
                f"cluster {name} was verified against {len(students)} students; a comment goes out after {VERIFIED_BY}")
        verified[name] = students
    return verified


def marked(clusters: Sequence[Cluster], verified: Mapping[str, tuple[str, ...]]) -> list[Cluster]:
    """The clusters, and which of them were verified."""
    return [replace(cluster, verified=verified.get(cluster.id, ())) for cluster in clusters]


def comments(clusters: Iterable[Cluster]) -> list[tuple[str, int, str]]:
    """The comments to send: (student, TODO, comment), of verified clusters only."""
    return sorted((student, cluster.todo, cluster.comment)
                  for cluster in clusters if cluster.is_sent for student in cluster.students)


# the page


@dataclass(frozen=True)
class Bin:
    """How many scores are from `low` to `high` percent of the points; only the last bin includes `high` itself."""

    low: int
    high: int
    count: int


def distribution(entries: Sequence[Entry]) -> list[Bin]:
    """Final scores, as shares of the points, in ten bins."""
    shares = [entry.final_score / entry.report.max_score for entry in entries if entry.report.max_score]
    places = [min(BINS - 1, max(0, int(share * BINS + 1e-9))) for share in shares]
    return [Bin(number * 100 // BINS, (number + 1) * 100 // BINS, places.count(number)) for number in range(BINS)]


def page(lab_id: str, title: str, entries: Sequence[Entry], clusters: Sequence[Cluster]) -> str:
    """The report, complete in itself. Raises `ValueError` if the lab has no results."""
    if not entries:
        raise ValueError(f"the journal has no results of lab {lab_id}")
    entries = sorted(entries, key=lambda entry: entry.report.student)
    at = {(student, cluster.todo): cluster.id for cluster in clusters for student in cluster.students}
    scores = sorted(entry.final_score for entry in entries)
    bins = distribution(entries)
    return templates(Path(__file__).parent).get_template("cohort.html").render(
        lab_id=lab_id, title=title, entries=entries, clusters=clusters, at=at, plain=plain, bins=bins, need=VERIFIED_BY,
        most=max(tenth.count for tenth in bins), todos=sorted({row.todo for entry in entries for row in entry.todos()}),
        rows={entry.report.student: {row.todo: row for row in entry.todos()} for entry in entries},
        low=scores[0], median=_median(scores), high=scores[-1], max_score=max(entry.report.max_score for entry in entries))


def _median(values: Sequence[float]) -> float:
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
