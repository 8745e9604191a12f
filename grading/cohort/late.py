"""What lateness costs: due dates, grace, penalties, extensions, grace tokens. Pure functions; knows no files and no clock.

    due ──── extension ────│──── grace ────│ 1 day charged │ 2 days charged │ …
                       deadline        first charge

A day, or where hours are charged an hour, that has begun is charged whole. A day is one by the wall clock of the term's zone,
23 or 25 hours long where summer time begins or ends; an hour is 60 minutes. Grace tokens take charged days off, in the order
of the labs; what is left costs `penalty` of the score each, and `most` at most. After `cutoff` nothing is left.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
_ISO = re.compile(r"[\d-]+([T ].+)?")
"""Python takes any character between date and time: 2027-03-01+01:00 would be one in the night."""
_FORMS = ("%A, %d %B %Y, %I:%M %p", "%a %b %d %H:%M:%S %Y %z")
"""Moodle's `Monday, 1 February 2027, 10:00 PM`, git's `Mon Feb 1 22:00:00 2027 +0100`."""
_UNITS = {"d": 24.0, "h": 1.0, "m": 1 / 60}
UNITS = {"day": DAY, "hour": HOUR}
"""What lateness is charged by."""


@dataclass(frozen=True)
class Policy:
    """What a late day, or hour, costs.

    Attributes:
        grace: after the deadline, free.
        penalty: share of the score that each charged `unit` costs.
        most: share of the score that lateness costs at most.
        tokens: charged days that each student has free, over all labs; one pays for 24 charged hours, too.
        cutoff: how long after the deadline a hand-in is worth nothing; None for never. Its late days use up tokens, too.
        unit: the unit that is charged, one of `UNITS`.
    """

    grace: timedelta = timedelta()
    penalty: float = 0.0
    most: float = 1.0
    tokens: int = 0
    cutoff: timedelta | None = None
    unit: str = "day"

    def words(self) -> str:
        """The policy in one line, for an instructor."""
        parts = [f"{span(self.grace)} of grace"] if self.grace else []
        if self.penalty:
            each = f"{100 * self.penalty:g}% {'an hour' if self.unit == 'hour' else 'a day'}"
            parts.append(each + (f", {100 * self.most:g}% at most" if self.most < 1 else ""))
        parts += [many(self.tokens, "token")] if self.tokens else []
        parts += [f"nothing after {span(self.cutoff)}"] if self.cutoff is not None else []
        return "; ".join(parts) or "none"

    def as_dict(self) -> dict[str, Any]:
        """The policy as journals keep it. Older courses do not know the cutoff and ignore it."""
        return {"policy": self.written(), **({} if self.cutoff is None else {"cutoff": self.cutoff.total_seconds()})}

    def written(self) -> str:
        """The policy without its cutoff: `grace=48h,penalty=10%/day,max=50%,tokens=3`; empty for no policy.

        Older courses, which do not know hours, read `1%/hour` as a day's.
        """
        parts = {"grace": f"{self.grace / timedelta(hours=1):.10g}h" if self.grace else "",
                 "penalty": f"{100 * self.penalty:.10g}%/{self.unit}" if self.penalty else "",
                 "max": f"{100 * self.most:.10g}%" if self.most < 1 else "", "tokens": f"{self.tokens}" if self.tokens else ""}
        return ",".join(f"{name}={value}" for name, value in parts.items() if value)


def _policy(fields: Mapping[str, Any]) -> Policy:
    """The policy that `Policy.as_dict` wrote."""
    cutoff = timedelta(seconds=fields["cutoff"]) if "cutoff" in fields else None
    return Policy(**_read(fields["policy"]), cutoff=cutoff)


def _read(written: str) -> dict[str, Any]:
    """Attribute → value, from the text of `Policy.written`."""
    attributes: dict[str, Any] = {}
    for part in filter(None, written.split(",")):
        name, _, value = part.strip().partition("=")
        if name == "grace":
            attributes[name] = timedelta(hours=float(value[:-1]) * _UNITS[value[-1]])
        elif name == "tokens":
            attributes[name] = int(value)
        else:
            percent, _, unit = value.partition("%")
            attributes |= {"most" if name == "max" else name: float(percent) / 100} | ({"unit": unit[1:]} if unit else {})
    return attributes


@dataclass(frozen=True)
class Terms:
    """The rules for lateness in a course.

    Attributes:
        policy: what a late day costs.
        policies: lab → its own policy, if it has one; the tokens are those of `policy`.
        zone: the zone whose wall clock counts days and shows times; UTC if None.
        due: lab → when it is due. A lab without a date is never late.
        extended: (student, lab) → their own deadline: an extension's, or their section's.
    """

    policy: Policy = field(default_factory=Policy)
    due: Mapping[str, datetime] = field(default_factory=dict)
    extended: Mapping[tuple[str, str], datetime] = field(default_factory=dict)
    policies: Mapping[str, Policy] = field(default_factory=dict)
    zone: tzinfo | None = None

    def policy_of(self, lab: str) -> Policy:
        """The lab's own policy, else the course's."""
        return self.policies.get(lab, self.policy)

    def deadline(self, student: str, lab: str) -> datetime | None:
        """The student's own deadline if they have one, else the lab's; None if the lab has none."""
        return self.extended.get((student, lab), self.due.get(lab))

    def late(self, student: str, lab: str, submitted: str | None) -> timedelta:
        """How long after the deadline; zero if either time is unknown. Hours are charged by real time, days by the clock."""
        deadline = self.deadline(student, lab)
        if deadline is None or submitted is None:
            return timedelta()
        when = moment(submitted)
        if when <= deadline:
            return timedelta()
        by_the_hour = self.policy_of(lab).unit == "hour"
        return when - deadline if by_the_hour else _days_by_the_clock(deadline, when, self.zone)

    def to_json(self) -> str:
        """The terms as the journal keeps them."""
        due = {lab: stamp(when) for lab, when in self.due.items()}
        extended = [[*whose, stamp(when)] for whose, when in sorted(self.extended.items())]
        own = {"policies": {lab: policy.as_dict() for lab, policy in self.policies.items()}} if self.policies else {}
        zone = {"zone": str(self.zone)} if self.zone else {}
        return json.dumps({**self.policy.as_dict(), **own, **zone, "due": due, "extended": extended}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Terms":
        """What `to_json` wrote."""
        terms = json.loads(text)
        due = {lab: moment(when) for lab, when in terms["due"].items()}
        extended = {(student, lab): moment(when) for student, lab, when in terms["extended"]}
        policies = {lab: _policy(own) for lab, own in terms.get("policies", {}).items()}
        return cls(_policy(terms), due, extended, policies, named_zone(terms["zone"]) if "zone" in terms else None)


@dataclass(frozen=True)
class Late:
    """What lateness did to one score.

    Attributes:
        days: after the deadline.
        charged: units that cost something.
        tokens: days that a token paid for.
        score: what is left.
        unit: of `UNITS`, what was charged.
    """

    days: float
    charged: int
    tokens: int
    score: float
    unit: str = "day"


def settle(policy: Policy, labs: Sequence[tuple[timedelta, float]], own: Sequence[Policy | None] = ()) -> list[Late]:
    """The effect of lateness on one student's labs, given in order as (how late, score).

    Args:
        own: for each lab its own policy, if it has one; all have the tokens of `policy`.
    """
    left, settled = policy.tokens, []
    for (late, score), here in zip(labs, [its_own or policy for its_own in own] or [policy] * len(labs), strict=True):
        days, begun = (max(0, -((here.grace - late) // unit)) for unit in (DAY, UNITS[here.unit]))  # after the grace: rounded up
        paid = min(days, left)
        left -= paid
        charged = max(0, begun - paid * (DAY // UNITS[here.unit]))
        cost = min(here.most, here.penalty * charged)
        if here.cutoff is not None and late > here.cutoff:
            cost = 1.0
        settled.append(Late(round(late / DAY, 4), charged, paid, round(score * (1 - cost), 2), here.unit))
    return settled


def by_the_clock(when: datetime, span: timedelta, zone: tzinfo | None) -> datetime:
    """So much later as the zone's wall clock shows it, in UTC. Of a time that it shows twice, or never, the later."""
    local = when.astimezone(zone or UTC) + span
    return max(local.replace(fold=fold).astimezone(UTC) for fold in (0, 1))


def _days_by_the_clock(deadline: datetime, when: datetime, zone: tzinfo | None) -> timedelta:
    """How long after: days by the wall clock, and what is over, a day at most. A later time is never less late."""
    near = (when - deadline) // DAY  # one more, or less, where the clock was changed meanwhile
    for days in (near + 1, near, near - 1):
        begins = by_the_clock(deadline, days * DAY, zone) if days > 0 else deadline
        if begins <= when:
            break
    return days * DAY + min(when - begins, DAY)


def moment(text: str, zone: tzinfo | None = None) -> datetime:
    """A time in UTC, to the second.

    Args:
        zone: the zone of a time that names none.

    Raises:
        ValueError: if `text` is no time, or names no zone and `zone` is None.
    """
    when = _parsed(text.strip())
    if when is None:
        raise ValueError(f"{text!r} is no time such as 2027-03-01T23:59+01:00")
    if when.tzinfo is None and zone is None:
        whole = when.isoformat(timespec="minutes")
        raise ValueError(f"{text!r} has no time zone: write {whole}Z for UTC, or such as {whole}+01:00")
    return (when if when.tzinfo else in_zone(when, zone)).astimezone(UTC).replace(microsecond=0)


def _parsed(text: str) -> datetime | None:
    """A time as ISO 8601, Moodle in English or git write it; None if it is none."""
    if _ISO.fullmatch(text):
        with suppress(ValueError):
            return datetime.fromisoformat(text)
    for form in _FORMS:
        with suppress(ValueError):
            return datetime.strptime(text, form)
    return None


def in_zone(local: datetime, zone: tzinfo | None) -> datetime:
    """A wall clock's time in a zone. A time that the clock shows twice, when summer time ends, means the later one.

    Raises:
        ValueError: for a time that the clock never shows, because summer time begins.
    """
    when = local.replace(tzinfo=zone, fold=1)
    if when.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != local:
        raise ValueError(f"{local} does not exist in {zone}: summer time begins then; name another hour")
    return when


def named_zone(name: str) -> ZoneInfo:
    """The zone that the IANA calls so. Raises `ValueError` if there is none, or this machine has no list of them."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("there is no such IANA time zone; write Europe/Berlin, America/New_York or UTC "
                         "(on a machine without a list of zones: pip install tzdata)") from None


def stamp(when: datetime) -> str:
    """For programs, ISO 8601 in UTC: 2027-03-01T22:59:00Z."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def shown(when: datetime | str, zone: tzinfo | None) -> str:
    """For people, by the clock of their zone: `2027-03-01 23:59 CET`; in UTC if no zone is known.

    Args:
        when: a string as `stamp` writes it.
    """
    local = (moment(when) if isinstance(when, str) else when).astimezone(zone or UTC)
    return f"{local:%Y-%m-%d %H:%M}{f':{local:%S}' if local.second else ''} {local.tzname()}"


def many(number: float, noun: str) -> str:
    """`1 day`, `2.5 days`."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def span(long: timedelta) -> str:
    """`2 days`: in quarters of a day, or else in minutes."""
    return many(long / MINUTE, "minute") if long % (DAY / 4) else many(long / DAY, "day")
