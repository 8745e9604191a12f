"""Grading cheats, one after the other, at one level of isolation; whether each got the points it should get."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from grading.judge.checks import Check
from grading.judge.grader import Grader, Settings, grader_of
from grading.judge.intake import read_submission
from grading.judge.report import Report
from grading.red_team.corpus import Cheat
from grading.sandbox.isolation import Limits
from grading.sandbox.supervisor import Sandbox
from labs.harness.catalog import find_lab

LIMITS = Limits(wall_seconds=5.0, cpu_seconds=3, memory_bytes=768 << 20)
"""The limits of one check of a cheat, short so that a stopped cheat is stopped soon."""


MOST = 85
"""The points of a lab, without predictions."""
GONE = "the judge was gone before it had a verdict"


@dataclass(frozen=True)
class TrialResult:
    """How a cheat was graded at a level.

    Attributes:
        report: None if the judge failed, or was ended by the cheat.
        error: how the judge failed; `GONE` if it was ended.
    """

    cheat: Cheat
    level: str
    report: Report | None
    error: str = ""

    @property
    def right(self) -> bool:
        """Whether the cheat got what it should: the worth of its honest part; at `none`, success if only isolation stops it."""
        return self.had_its_way if self.level == "none" and self.cheat.needs_isolation else self.held

    @property
    def had_its_way(self) -> bool:
        """Whether the cheat lost no points, or ended the judge."""
        return self.error == GONE if self.report is None else self.report.score == self.report.max_score

    @property
    def held(self) -> bool:
        """Whether the cheat lost exactly the points it should lose, at the TODOs that were graded."""
        if self.report is None:
            return False
        lost = {check.todo for check in self.report.checks if not check.passed}
        return lost == set(self.cheat.todos) and self.report.max_score - self.report.score == MOST - self.cheat.worth

    @property
    def happened(self) -> str:
        """The most frequent message among the lost points."""
        if self.report is None:
            return self.error
        messages = Counter(check.message for check in self.report.checks
                           if not check.passed and not check.message.startswith("not tried"))
        return messages.most_common(1)[0][0] if messages else "nothing"


def verdicts(
    cheats: Sequence[Cheat], level: str, done: Callable[[], None] = lambda: None, limits: Limits = LIMITS,
    besides: Sequence[int] = range(1, 7)
) -> Iterator[TrialResult]:
    """Each cheat's result, in order. One worker serves all cheats of a lab: a cheat must not affect the next one through it.

    Args:
        besides: TODOs to grade besides those at which a cheat loses points.
    """
    settings = Settings(seed="cheats", level=level, limits=limits, predictions=False)
    with tempfile.TemporaryDirectory(prefix="cheats-") as name, ExitStack() as open_ones:
        graders: dict[str, tuple[Grader, Sandbox, Sequence[Check]]] = {}
        for cheat in cheats:
            if cheat.lab not in graders:
                grader = open_ones.enter_context(grader_of(find_lab(cheat.lab), settings))
                graders[cheat.lab] = grader, open_ones.enter_context(grader.sandbox()), grader.checks
            grader, shared, checks = graders[cheat.lab]
            grader.checks = [check for check in checks if check.todo in (*cheat.todos, *besides)]
            try:
                handed_in = read_submission(cheat.make(Path(name)), lab_folder=grader.lab.folder.name)
                yield TrialResult(cheat, level, grader.grade(handed_in, shared=shared))
            except Exception as error:
                yield TrialResult(cheat, level, None, f"the judge failed: {type(error).__name__}: {error}")
            done()
