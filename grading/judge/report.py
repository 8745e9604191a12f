"""The outcome of grading: one report per submission and lab, made of checks. Knows nothing of how checks run or are shown."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

NOT_WRITTEN = "not_written_yet"
"""In place of the names of a TODO's checks that it is not written for."""


@dataclass(frozen=True)
class CheckResult:
    """How one check ended.

    Attributes:
        todo: the TODO that the check gives points for; 0 for the predictions.
        name: of the check, unique in its lab, in words joined by underscores.
        points: what it is worth.
        earned: what it earned: all or nothing, but for the predictions.
        hidden: whether students are told only the TODO and the concept.
        message: what was expected and what came; empty if it passed.
        section: of the lab's README.
        concept: what the check is about, in few words that give nothing away.
        on_ours: the TODOs for which our code stood in.
        unwritten: whether the code that the check needs is still missing.
        printed: the beginning of what the submission printed during the check.
    """

    todo: int
    name: str
    points: float
    earned: float
    hidden: bool
    message: str = ""
    section: str = ""
    concept: str = ""
    on_ours: tuple[int, ...] = ()
    unwritten: bool = False
    printed: str = ""

    @property
    def passed(self) -> bool:
        """Whether it earned all its points."""
        return self.earned == self.points


@dataclass(frozen=True)
class TodoResult:
    """One TODO's points."""

    todo: int
    earned: float
    points: float
    state: str
    """`solved`, `partly`, `failing` or `not started`."""


@dataclass(frozen=True)
class Report:
    """One submission's grading of one lab.

    Attributes:
        student: how the roster, or the submission's folder, names them.
        lab: its id, `06`.
        digest: SHA-256 of the graded files.
        isolation: the level of isolation.
        seed: the seed from which the inputs of the checks were drawn.
        versions: of this course, its checks, Python and torch.
        notes: other remarks: files that were not taken, a file that is not Python.
    """

    student: str
    lab: str
    digest: str
    isolation: str
    seed: str
    versions: dict[str, str]
    checks: tuple[CheckResult, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def score(self) -> float:
        """Points earned, predictions included, to two decimals."""
        return round(sum(check.earned for check in self.checks), 2)

    @property
    def max_score(self) -> float:
        """Points that could be earned."""
        return round(sum(check.points for check in self.checks), 2)

    def lost(self) -> list[CheckResult]:
        """The checks that lost points, in order; those of a TODO that say that it is not written are one, `NOT_WRITTEN`."""
        first = {check.todo: check.name for check in reversed(self.checks) if check.unwritten}
        return [self._not_written(check.todo) if check.unwritten else check for check in self.checks
                if not check.passed and (not check.unwritten or first[check.todo] == check.name)]

    def _not_written(self, todo: int) -> CheckResult:
        """What hidden checks and those on our code say is left out: it may give something away."""
        checks = [check for check in self.checks if check.todo == todo and check.unwritten]
        says = next((check for check in checks if not check.hidden and not check.on_ours), None)
        return CheckResult(todo, NOT_WRITTEN, sum(check.points for check in checks), 0.0, False,
                           says.message if says else f"TODO {todo} is not written yet", says.section if says else "",
                           unwritten=True)

    def todos(self) -> list[TodoResult]:
        """One row per TODO, in order; the predictions, TODO 0, first."""
        numbers = sorted({check.todo for check in self.checks})
        return [_row(number, [check for check in self.checks if check.todo == number]) for number in numbers]

    def to_json(self) -> str:
        """The report as one line of JSON; the same report gives the same bytes."""
        return json.dumps({"score": self.score, "max_score": self.max_score, **asdict(self)}, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """The report that `to_json` wrote."""
        fields = json.loads(text)
        for derived in ("score", "max_score"):
            fields.pop(derived, None)
        checks = tuple(CheckResult(**{**check, "on_ours": tuple(check["on_ours"])}) for check in fields.pop("checks"))
        return cls(**{**fields, "checks": checks, "notes": tuple(fields["notes"])})


def _row(todo: int, checks: list[CheckResult]) -> TodoResult:
    earned, points = sum(check.earned for check in checks), sum(check.points for check in checks)
    if earned == points:
        state = "solved"
    elif earned:
        state = "partly"
    else:
        state = "not started" if all(check.unwritten for check in checks) else "failing"
    return TodoResult(todo, round(earned, 2), round(points, 2), state)


def digest_of(files: Iterable[tuple[str, bytes]]) -> str:
    """SHA-256 over names and contents, in the order of the names."""
    total = hashlib.sha256()
    for name, content in sorted(files):
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()
