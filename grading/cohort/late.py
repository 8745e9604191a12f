"""What lateness costs: due dates, grace, penalties, extensions, grace tokens. Pure functions; knows no files and no clock.

    due ──── extension ────│──── grace ────│ 1 day charged │ 2 days charged │ …
                       deadline        first charge

A day that has begun is charged whole. Grace tokens take charged days off, in the order of the labs;
what is left costs `penalty` of the score each, and `most` at most.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

DAY = timedelta(days=1)
_UNITS = {"d": timedelta(days=1), "h": timedelta(hours=1), "m": timedelta(minutes=1)}
_HOW = "It is written grace=2d,penalty=10%/day,max=50%,tokens=3; each part may be left out."


@dataclass(frozen=True)
class Policy:
    """What a late day costs.

    Attributes:
        grace: after the deadline, free.
        penalty: share of the score that a charged day costs.
        most: share of the score that lateness costs at most.
        tokens: charged days that each student has free, over all labs.
    """

    grace: timedelta = timedelta()
    penalty: float = 0.0
    most: float = 1.0
    tokens: int = 0


@dataclass(frozen=True)
class Terms:
    """What decides about lateness in a course.

    Attributes:
        policy: as `--late` gave it.
        due: lab → when it is due. A lab without a date is never late.
        extended: (student, lab) → their own deadline.
    """

    policy: str = ""
    due: Mapping[str, datetime] = field(default_factory=dict)
    extended: Mapping[tuple[str, str], datetime] = field(default_factory=dict)

    def deadline(self, student: str, lab: str) -> datetime | None:
        """The student's own where one was given, else that of all; None if the lab has none."""
        return self.extended.get((student, lab), self.due.get(lab))

    def late(self, student: str, lab: str, submitted: str | None) -> timedelta:
        """How long after the deadline; nothing if either time is not known."""
        deadline = self.deadline(student, lab)
        if deadline is None or submitted is None:
            return timedelta()
        return max(timedelta(), moment(submitted) - deadline)

    def to_json(self) -> str:
        """As the journal keeps it."""
        due = {lab: stamp(when) for lab, when in self.due.items()}
        extended = [[*whose, stamp(when)] for whose, when in sorted(self.extended.items())]
        return json.dumps({"policy": self.policy, "due": due, "extended": extended}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Terms":
        """What `to_json` wrote."""
        facts = json.loads(text)
        due = {lab: moment(when) for lab, when in facts["due"].items()}
        return cls(facts["policy"], due, {(student, lab): moment(when) for student, lab, when in facts["extended"]})


@dataclass(frozen=True)
class Late:
    """What lateness did to one score.

    Attributes:
        days: after the deadline.
        charged: days that cost something.
        tokens: days that a token paid for.
        score: what is left.
    """

    days: float
    charged: int
    tokens: int
    score: float


def settle(policy: Policy, labs: Sequence[tuple[timedelta, float]]) -> list[Late]:
    """What one student's labs come to, given in the order of the labs as (how late, score)."""
    left, settled = policy.tokens, []
    for late, score in labs:
        days = max(0, -((policy.grace - late) // DAY))  # days begun after the grace: rounded up
        paid = min(days, left)
        left -= paid
        cost = min(policy.most, policy.penalty * (days - paid))
        settled.append(Late(round(late / DAY, 4), days - paid, paid, round(score * (1 - cost), 2)))
    return settled


def read_policy(text: str) -> Policy:
    """What `--late` says. Raises `ValueError` that names the part that is not understood."""
    readers: dict[str, Callable[[str], Any]] = {"grace": _duration, "penalty": _per_day, "max": _share, "tokens": _whole}
    found: dict[str, Any] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, _, value = part.partition("=")
        if name not in readers or name in found:
            raise ValueError(f"--late: {part!r} {'comes twice' if name in found else 'is not known'}. {_HOW}")
        try:
            found[name] = readers[name](value)
        except ValueError as error:
            raise ValueError(f"--late: {part!r}: {error}. {_HOW}") from None
    return Policy(**{"most" if name == "max" else name: value for name, value in found.items()})


def _duration(text: str) -> timedelta:
    if not (parts := re.fullmatch(r"(\d+(?:\.\d+)?)([dhm])", text)):
        raise ValueError(f"{text!r} is no duration such as 2d, 12h or 30m")
    return float(parts[1]) * _UNITS[parts[2]]


def _share(text: str) -> float:
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if not parts or float(parts[1]) > 100:
        raise ValueError(f"{text!r} is no share such as 50%")
    return float(parts[1]) / 100


def _per_day(text: str) -> float:
    if not text.endswith("/day"):
        raise ValueError(f"{text!r} is no share a day such as 10%/day")
    return _share(text.removesuffix("/day"))


def _whole(text: str) -> int:
    if not re.fullmatch(r"\d{1,4}", text):
        raise ValueError(f"{text!r} is no number of days")
    return int(text)


def moment(text: str) -> datetime:
    """A time in UTC, to the second. Raises `ValueError` if `text` is none, or does not say its time zone."""
    try:
        when = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is no time such as 2027-03-01T23:59+01:00") from None
    if when.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone: write {text.strip()}Z for UTC, or such as {text.strip()}+01:00")
    return when.astimezone(UTC).replace(microsecond=0)


def stamp(when: datetime) -> str:
    """ISO 8601 in UTC: 2027-03-01T22:59:00Z."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_due(dates: Iterable[str], lab_of: Mapping[str, str]) -> dict[str, datetime]:
    """What `--due 06=TIME` says, given once for each lab; `lab_of` turns what people call a lab into its id."""
    due: dict[str, datetime] = {}
    for one in dates:
        name, _, when = one.partition("=")
        if (lab := lab_of.get(name)) is None:
            raise ValueError(f"--due {one}: there is no lab {name!r}. It is written --due 06=2027-03-01T23:59+01:00")
        if lab in due:
            raise ValueError(f"--due gives lab {lab} twice")
        try:
            due[lab] = moment(when)
        except ValueError as error:
            raise ValueError(f"--due {one}: {error}") from None
    return due


def extensions(
    rows: Iterable[tuple[str, dict[str, str]]], due: Mapping[str, datetime], lab_of: Mapping[str, str]
) -> dict[tuple[str, str], datetime]:
    """Deadlines of their own: rows with student, lab, and days or until.

    Args:
        rows: where each stands, `extensions.csv line 3`, and its columns.

    Raises:
        ValueError: naming the row that cannot be used; to pass it over would cost somebody points.
    """
    found: dict[tuple[str, str], datetime] = {}
    for where, row in rows:
        lab = lab_of.get(row["lab"])
        if lab is None or lab not in due:
            raise ValueError(f"{where}: "
                             + (f"there is no lab {row['lab']!r}" if lab is None else f"lab {lab} has no --due to extend"))
        if (row["student"], lab) in found:
            raise ValueError(f"{where}: {row['student']} has an extension for lab {lab} already; leave one of the two")
        try:
            found[row["student"], lab] = _extended(row, due[lab])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return found


def _extended(row: Mapping[str, str], due: datetime) -> datetime:
    days, until = row.get("days", ""), row.get("until", "")
    if bool(days) == bool(until):
        raise ValueError("give days or until, and not both")
    if days:
        if not re.fullmatch(r"\d{1,4}(\.\d+)?", days):
            raise ValueError(f"{days!r} is no number of days")
        return due + float(days) * DAY
    if moment(until) < due:
        raise ValueError(f"until {until} is before the lab is due, {stamp(due)}")
    return moment(until)
