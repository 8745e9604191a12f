"""Plays arrivals through a scheduler, and holds each of its plans against the rules of an engine.

The player keeps its own account of every request and block, and believes the scheduler nothing. A scheduler has

    add(name, num_prompt, max_tokens, priority)
    schedule() -> (chunks: name → tokens, preempted: names)
    update(chunks, ended: names)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from labs.harness.policy_simulator.costs import PUBLISHED, StepCosts
from labs.harness.policy_simulator.log import Event, Life, Log
from labs.harness.policy_simulator.traffic import Arrival, Pool

IDLE_STEPS = 3
"""After so many steps that compute nothing while requests wait, a scheduler has stopped."""


class BrokenRule(AssertionError):
    """A plan that no engine could follow, or that breaks a promise of the lab."""


def play(scheduler: Any, arrivals: Sequence[Arrival], pool: Pool, budget: int, costs: StepCosts = PUBLISHED) -> Log:
    """Plays until every request has its answer.

    Raises:
        BrokenRule: naming the step, the request and the rule.
    """
    return Player(scheduler, arrivals, pool, budget, costs).run()


class Player:
    """One play: the truth about requests and blocks, beside a scheduler that has its own idea of them."""

    def __init__(self, scheduler: Any, arrivals: Sequence[Arrival], pool: Pool, budget: int, costs: StepCosts) -> None:
        self.scheduler, self.pool, self.budget, self.costs = scheduler, pool, budget, costs
        self.coming = sorted(arrivals, key=lambda arrival: arrival.seconds)[::-1]
        self.now, self.tokens, self.log = 0.0, 0, Log()
        self.running: list[Life] = []
        self.waiting: list[Life] = []

    def run(self) -> Log:
        """Steps until nobody is left."""
        idle = 0
        limit = 200 + 40 * sum(a.answer + a.prompt // 8 + 2 for a in self.coming)
        while self.coming or self.running or self.waiting:
            self._welcome()
            idle = 0 if self._step() else idle + 1
            if idle >= IDLE_STEPS:
                raise BrokenRule(f"{self._at()} {idle} steps computed nothing, and {len(self.running)} requests run and "
                                 f"{len(self.waiting)} wait: nobody will ever finish")
            if self.log.steps > limit:
                left = len(self.running) + len(self.waiting)
                raise BrokenRule(f"after {limit} steps {left} requests are unfinished: a livelock")
        return self.log

    def _welcome(self) -> None:
        """Adds who has arrived; when nobody is there, time goes on to the next arrival."""
        if not self.running and not self.waiting:
            self.now = max(self.now, self.coming[-1].seconds)
        while self.coming and self.coming[-1].seconds <= self.now:
            arrival = self.coming.pop()
            self.waiting.append(Life(arrival))
            self.log.lives[arrival.name] = self.waiting[-1]
            self.scheduler.add(arrival.name, arrival.prompt, arrival.max_tokens, arrival.priority)
        self.waiting.sort(key=lambda life: life.order)

    def _step(self) -> int:
        """One step; returns how many tokens it computed."""
        chunks, preempted = self._plan()
        self._take_away(preempted)
        self._admit([name for name in chunks if name not in {life.arrival.name for life in self.running}], bool(preempted))
        self._check(chunks, preempted)
        lives = {name: self.log.lives[name] for name in chunks}
        self.now += self.costs.seconds((size, lives[name].computed) for name, size in chunks.items())
        self.tokens += sum(chunks.values())
        ended = [name for name, size in chunks.items() if self._advance(lives[name], size)]
        running = [life.arrival.name for life in self.running]
        self.running = [life for life in self.running if life.arrival.name not in ended]
        self.log.events.append(Event(self.now, dict(chunks), list(preempted), running, self._free()))
        self.scheduler.update(chunks, ended)
        return sum(chunks.values())

    def _advance(self, life: Life, size: int) -> bool:
        """A request's chunk is computed; returns whether its answer is complete."""
        life.computed += size
        if life.to_go == 0:
            life.outputs.append(self.now)
            life.seen.append(self.tokens)
        return len(life.outputs) == life.arrival.answer

    def _plan(self) -> tuple[dict[str, int], list[str]]:
        """What the scheduler answers, if it is an answer."""
        plan = self.scheduler.schedule()
        if not (isinstance(plan, tuple | list) and len(plan) == 2 and isinstance(plan[0], dict) and isinstance(plan[1], list)):
            raise BrokenRule(f"{self._at()} schedule() returned {plan!r}; expected a dictionary of chunks and a list of names")
        chunks, preempted = plan
        for name, size in chunks.items():
            if name not in self.log.lives or type(size) is not int or size < 1:
                raise BrokenRule(f"{self._at()} the chunk of {name!r} is {size!r}; expected 1 token or more of a request")
        return chunks, preempted

    def _take_away(self, preempted: Sequence[str]) -> None:
        """Those who were preempted wait again, and nothing of theirs is in the cache."""
        if preempted and self.running and self.running[0].arrival.name in preempted:
            raise BrokenRule(f"{self._at()} {self.running[0].arrival.name} was preempted, and it is first in order of those that "
                             "run: if the first does not advance, perhaps nobody ever will")
        for name in preempted:
            life = next((life for life in self.running if life.arrival.name == name), None)
            if life is None:
                raise BrokenRule(f"{self._at()} {name!r} was preempted, and does not run")
            life.computed = 0
            self.running.remove(life)
            self.waiting.append(life)
        self._look_for_inversion(preempted)
        self.waiting.sort(key=lambda life: life.order)

    def _look_for_inversion(self, preempted: Sequence[str]) -> None:
        """Nobody loses blocks while a less urgent request keeps its own."""
        least = max((life.arrival.priority for life in self.running), default=0)
        for name in preempted:
            if self.log.lives[name].arrival.priority < least:
                raise BrokenRule(f"{self._at()} {name} was preempted, and a less urgent request keeps its blocks")

    def _admit(self, names: Sequence[str], after_preemption: bool) -> None:
        """Those who have a chunk and did not run begin; they are the first of those that wait, in order."""
        expected = [life.arrival.name for life in self.waiting[: len(names)]]
        if list(names) != expected:
            raise BrokenRule(
                f"{self._at()} {_listed(names)} began, and first in order among those that wait: {_listed(expected)}")
        if names and after_preemption:
            raise BrokenRule(f"{self._at()} {_listed(names)} began in a step that had to preempt: admitted, preempted, admitted")
        self.running += self.waiting[: len(names)]
        del self.waiting[: len(names)]
        self.running.sort(key=lambda life: life.order)

    def _check(self, chunks: dict[str, int], preempted: Sequence[str]) -> None:
        """Bounds of the step, and what each who runs is promised."""
        total = sum(chunks.values())
        if total > self.budget:
            raise BrokenRule(f"{self._at()} {total} tokens, and the budget is {self.budget}")
        if len(self.running) > self.pool.max_seqs:
            raise BrokenRule(f"{self._at()} {len(self.running)} requests run, and there are {self.pool.max_seqs} places")
        for life in self.running:
            if (size := chunks.get(life.arrival.name, 0)) > life.to_go:
                raise BrokenRule(f"{self._at()} {life.arrival.name} has {life.to_go} tokens to go and got a chunk of {size}")
        if (free := self._free(chunks)) < 0:
            raise BrokenRule(f"{self._at()} the chunks need {-free} blocks more than the pool of {self.pool.num_blocks} has")
        decodes = [life.arrival.name for life in self.running if life.to_go == 1 and life.outputs]
        idle = [name for name in decodes[: self.budget] if name not in chunks]
        if idle:
            raise BrokenRule(f"{self._at()} {idle[0]} decodes and got no token, and the budget is {self.budget}")

    def _free(self, chunks: dict[str, int] | None = None) -> int:
        """Free blocks, once these chunks are computed."""
        size, given = self.pool.block_size, chunks or {}
        return self.pool.num_blocks - sum(-(-(life.computed + given.get(life.arrival.name, 0)) // size) for life in self.running)

    def _at(self) -> str:
        return f"step {self.log.steps}:"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nobody"
