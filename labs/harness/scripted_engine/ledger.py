"""The ledger: chooses an engine's tokens, and sees which requests shared its steps."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from labs.harness.scripted_engine.own_engine import tokenizer
from labs.harness.suite.expecting import shown

PAUSE = 0.2
"""Seconds for which a step is held back."""


@dataclass(eq=False)
class Served:
    """A request as the ledger saw it.

    Attributes:
        prompt: its tokens.
        params: its sampling parameters, by name.
        seed: the seed of its draws.
        answer: the tokens chosen for it; when they are used up the text ends.
        tokens: the tokens it got so far.
    """

    prompt: list[int]
    params: dict[str, Any]
    seed: int
    answer: list[int]
    tokens: list[int] = field(default_factory=list)

    @property
    def state(self) -> tuple[list[int], int, list[int]]:
        """The data of its row, by which the ledger recognises it."""
        return self.prompt, self.seed, self.tokens


Script = Callable[[list[int], dict[str, Any]], list[int]]
"""A request's prompt and parameters → its whole answer, as tokens."""


class Ledger:
    """Chooses the tokens of an engine, and notes all of its steps.

    Args:
        rng: draws random tokens if there is no script.

    Attributes:
        requests: in the order of their first tokens.
        steps: the requests that shared each step.
    """

    def __init__(self, rng: random.Random, script: Script | None = None) -> None:
        self._rng, self._script = rng, script
        self.requests: list[Served] = []
        self.steps: list[list[Served]] = []

    def choose(self, rows: list[dict]) -> list[int]:
        """One token for each row of a step, see `beside.row_dict`."""
        step: list[Served] = []
        for row in rows:
            step.append(self._served_for(row, step))
        self.steps.append(step)
        for served in step:
            served.tokens.append(self._next_token(served))
        return [served.tokens[-1] for served in step]

    def _next_token(self, served: Served) -> int:
        place = len(served.tokens)
        return served.answer[place] if place < len(served.answer) else tokenizer().eos_token_id

    def _served_for(self, row: dict, taken: list[Served]) -> Served:
        state = row["prompt"], row["seed"], row["output"]
        known = (served for served in self.requests if served.state == state and served not in taken)
        if row["output"] and (served := next(known, None)) is not None:
            return served
        params = row.get("params", {})
        served = Served(row["prompt"], params, row["seed"], self._answer(row["prompt"], params), list(row["output"]))
        self.requests.append(served)
        return served

    def _answer(self, prompt: list[int], params: dict[str, Any]) -> list[int]:
        if self._script is not None:
            return self._script(prompt, params)
        return [self._rng.randrange(300, 2000) for _ in range(512)]


class PatientLedger(Ledger):
    """Holds steps back until `company` requests have shared one, so that no request misses it because a machine is slow.

    Args:
        company: how many requests could share a step.
        seconds: how long it holds steps back, all together.
    """

    def __init__(self, rng: random.Random, company: int, script: Script | None = None, seconds: float = 4.0) -> None:
        super().__init__(rng, script)
        self._company, self._pauses = company, int(seconds / PAUSE)

    def choose(self, rows: list[dict]) -> list[int]:
        """Waits a while if there could be more rows, then chooses like every ledger."""
        if len(rows) < self._company and self.most < self._company and self._pauses:
            self._pauses -= 1
            time.sleep(PAUSE)
        return super().choose(rows)

    @property
    def most(self) -> int:
        """Asserts that so many requests shared one step."""
        return max(map(len, self.steps), default=0)


def assert_served(ledger: Ledger, outputs: Sequence[dict[str, Any]], prompts: Sequence[str]) -> None:
    """Asserts that each output, as `read_outputs` gives it, is what the ledger chose for its prompt, and none is there twice."""
    __tracebackhide__ = True
    left = list(ledger.requests)
    for place, (prompt, output) in enumerate(zip(prompts, outputs, strict=True), start=1):
        whose, tokens = output["prompt"], output["tokens"]
        assert whose == prompt, f"the output of prompt {place}, {prompt!r}, says that it is of {shown(whose)}"
        read = tokenizer().encode(prompt)
        own = next((served for served in left if served.prompt == read and served.tokens == tokens), None)
        if own is None:
            raise AssertionError(f"prompt {place}, {prompt!r}, came back with {shown(output['text'])} ({len(tokens)} tokens); "
                                 "that is not what this engine generated for it, or it stands there twice")
        left.remove(own)
