"""Lab 05: clocks that the judge moves, and one of its own."""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from grading.judge.checks import expect, kept, operators_seen, ours, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab05.quantities import number


class Timer:
    """In the place of median_seconds: has the work done once, watched, and says that it took `seconds`."""

    def __init__(self, lab: Remote, seconds: float) -> None:
        self.seconds, self.calls, self.log = seconds, 0, operators_seen(lab)

    def __call__(self, work: Remote) -> float:
        self.calls += 1
        if not isinstance(work, Remote):
            raise TypeError(f"what is timed is a function without arguments, not {shown(work)}: do not call it yourself")
        kept(self.log.watch, work)
        return self.seconds

    def rate(self, measure: Callable[..., Any], *arguments: Any) -> float:
        """What the measurement says; it must have had its work timed once."""
        said = number(measure(*arguments, ours(self)), "the measurement")
        expect(self.calls == 1, f"seconds_of was called {self.calls} times; once is right, with the function to be timed")
        return said


class Clock:
    """A clock that only work moves: call i of it takes seconds[i]."""

    def __init__(self, rng: random.Random, seconds: Sequence[float]) -> None:
        self.calls, self._seconds, self._now = 0, seconds, float(rng.randrange(-100, 100))

    def now(self) -> float:
        """Seconds."""
        return self._now

    def work(self) -> None:
        """What is timed: takes as long as it was set to."""
        if self.calls < len(self._seconds):
            self._now += self._seconds[self.calls]
        self.calls += 1


class Stopwatch:
    """How long the judge waited.

    Checks in which real time passes do not depend on how busy the machine is: a call that naps takes at least the
    nap, and the median of timed calls is at most all of them together.
    """

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._started
