"""The event log of a play, and what can be counted in it.

Knows steps, tokens and seconds; knows nothing of how a scheduler decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from labs.harness.policy_simulator.traffic import Arrival, Limits


@dataclass
class Life:
    """What a request saw.

    Attributes:
        arrival: what was asked.
        computed: its tokens in the cache.
        outputs: seconds at which each of its tokens came.
        seen: how many tokens the engine had computed, for all requests together, when each of its tokens came.
    """

    arrival: Arrival
    computed: int = 0
    outputs: list[float] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens known: prompt and output."""
        return self.arrival.prompt + len(self.outputs)

    @property
    def to_go(self) -> int:
        """Tokens known and not in the cache."""
        return self.num_tokens - self.computed

    @property
    def order(self) -> tuple[int, int]:
        """The smaller priority number goes first, then who came first."""
        return self.arrival.priority, int(self.arrival.name[1:])


@dataclass(frozen=True)
class Event:
    """A step: when it ended, what it computed, who was preempted, who ran, and the blocks that were free."""

    seconds: float
    chunks: dict[str, int]
    preempted: list[str]
    running: list[str]
    free_blocks: int


@dataclass
class Log:
    """All steps of a play, and the lives of its requests."""

    events: list[Event] = field(default_factory=list)
    lives: dict[str, Life] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """How many steps it took."""
        return len(self.events)

    @property
    def computed(self) -> int:
        """Tokens computed."""
        return sum(sum(event.chunks.values()) for event in self.events)

    @property
    def recomputed(self) -> int:
        """Tokens computed more than once: the tax of all preemptions."""
        return self.computed - sum(life.num_tokens - 1 for life in self.lives.values())

    @property
    def preemptions(self) -> int:
        """How often a request lost its blocks."""
        return sum(len(event.preempted) for event in self.events)

    @property
    def seconds(self) -> float:
        """When the last step ended."""
        return self.events[-1].seconds if self.events else 0.0

    def worst_gap(self) -> int:
        """The worst ITL without a clock: the most tokens computed between two tokens of one request."""
        return max((b - a for life in self.lives.values() for a, b in zip(life.seen, life.seen[1:], strict=False)), default=0)

    def ttfts(self) -> list[float]:
        """Seconds to each request's first token, sorted."""
        return sorted(life.outputs[0] - life.arrival.seconds for life in self.lives.values())

    def itls(self) -> list[float]:
        """Seconds between tokens, of all requests, sorted."""
        return sorted(b - a for life in self.lives.values() for a, b in zip(life.outputs, life.outputs[1:], strict=False))

    def goodput(self, limits: Limits) -> float:
        """The share of requests whose first token, and every later one, came within the limits."""
        return sum(is_good(life, limits) for life in self.lives.values()) / len(self.lives)


def is_good(life: Life, limits: Limits) -> bool:
    """Whether a request's tokens came within the limits."""
    gaps = (b - a for a, b in zip(life.outputs, life.outputs[1:], strict=False))
    return life.outputs[0] - life.arrival.seconds <= limits.ttft and max(gaps, default=0.0) <= limits.itl


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of the sorted values do not exceed."""
    return values[min(int(share * len(values)), len(values) - 1)] if values else 0.0
