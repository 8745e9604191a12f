"""The places of the queue, counted independently: which requests may be refused because it is full, and which must be.

A request takes a place for each of its n completions when it comes, and gives one up when that
completion is first computed, all of them when the request is over. What callers ask for between two
steps reaches the engine with the next step at the latest, so for a moment there are two counts: of
places that are surely taken, and of those that may be.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nano_qwen3_serving.testing.fuzz.caller import Caller


@dataclass
class Places:
    """What the fuzzer saw of the queue.

    Attributes:
        limit: places there are; None is no limit.
        computed: (request key, completion) of each completion that ran.
    """

    limit: int | None
    computed: set[tuple[int, int]] = field(default_factory=set)

    def bounds(self, callers: Iterable[Caller], now: float, steps: int, idle: bool) -> tuple[int, int]:
        """(at least, at most) this many places are taken.

        Args:
            callers: all callers that were not refused for lack of a place.
            now: engine time.
            steps: steps done so far.
            idle: the step thread has done everything that it was asked to do.
        """
        least = most = 0
        for caller in callers:
            n = caller.params.n
            waiting = sum((caller.op["key"], i) not in self.computed for i in range(n))
            late = caller.deadline is not None and now >= caller.deadline
            if caller.outcome is None and waiting == n and not (caller.abort_wanted or late):
                least += n  # what has not run cannot have failed
            if caller.outcome is None or (caller.outcome == "gone" and not idle and steps <= (caller.ended_at or 0)):
                most += waiting
        return least, most

    def complaint(self, n: int, bounds: tuple[int, int], refused: bool) -> str | None:
        """What is wrong with accepting or refusing a request of n completions; None if nothing is."""
        least, most = bounds
        if self.limit is None:
            return "was refused by a queue without a limit" if refused else None
        if refused and most + n <= self.limit:
            return f"was refused for lack of {n} of {self.limit} places, although at most {most} were taken"
        if not refused and least + n > self.limit:
            return f"took {n} of {self.limit} places, and {least} were taken"
        return None
