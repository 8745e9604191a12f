"""Classroom 50's `result.json` for one submission. Its scores are whole numbers; halves are rounded up.

The journal does not have Classroom 50's tag and links of a submission, so the instructor gives a file:

    {"classroom": "serving", "assignment": "lab06", "assignment_type": "individual",
     "submissions": {"ada": {"submission": "submit/2027-02-01T10-00-00Z-0a1b2c3",
                             "commit": "link", "release": "link", "review": "link"}}}
"""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime

from grading.cohort.journal import Entry
from grading.export.lines import decided, lines_of, name_of

SCHEMA = "classroom50/result/v1"
TYPES = ("individual", "group")
LINKS = ("submission", "commit", "release", "review")


@dataclass(frozen=True)
class Place:
    """Where a submission lies: see the fields of `result.json`."""

    classroom: str
    assignment: str
    assignment_type: str
    submission: str
    commit: str
    release: str
    review: str


def read_places(text: str) -> dict[str, Place]:
    """Student -> where their submission lies. Raises a `ValueError` that names missing keys."""
    try:
        places = json.loads(text)
        common = {name: places[name] for name in ("classroom", "assignment", "assignment_type")}
        submissions = places["submissions"].items()
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"the file about Classroom 50 needs classroom, assignment, assignment_type and submissions: {error}") from None
    if common["assignment_type"] not in TYPES:
        raise ValueError(f"assignment_type is {' or '.join(TYPES)}, not {common['assignment_type']!r}")
    place_of = {}
    for student, links in submissions:
        if missing := [name for name in LINKS if not isinstance(links.get(name), str) or not links[name]]:
            raise ValueError(f"the submission of {student!r} has no {', '.join(missing)}")
        if not links["submission"].startswith("submit/"):
            raise ValueError(f"the submission of {student!r} is {links['submission']!r}; Classroom 50's tags begin with submit/")
        place_of[student] = Place(**common, **{name: links[name] for name in LINKS})
    return place_of


def result(entry: Entry, place: Place) -> str:
    """The file's text. Raises `ValueError` if the time of the hand-in is unknown."""
    report = entry.report
    if entry.submitted is None:
        raise ValueError(f"it is not known when {report.student} handed in, and Classroom 50 asks for it")
    tests = [_test(f"{name_of(line.todo)}, {line.number}: {line.title}", line.earned, line.points) for line in lines_of(report)]
    tests += [{"test-name": decision, "passed": True, "score": 0, "max-score": 0} for decision in decided(entry)]
    content = {
        "schema": SCHEMA, "classroom": place.classroom, "assignment": place.assignment, "assignment_type": place.assignment_type,
        "owner": report.student, "submission": place.submission, "commit": place.commit, "release": place.release,
        "review": place.review, "datetime": _utc(entry.submitted), "score": _whole(entry.final_score),
        "max-score": _whole(report.max_score), "tests": tests}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _test(name: str, earned: float, points: float) -> dict:
    return {"test-name": name, "passed": earned == points, "score": _whole(earned), "max-score": _whole(points)}


def _whole(value: float) -> int:
    return math.floor(value + 0.5)


def _utc(when: str) -> str:
    moment = datetime.fromisoformat(when)
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
