"""Engines whose tokens a test chooses.

The model computes as always, and which token comes next is up to the test's `Ledger`. It also notes every step: what the
engine was asked to compute, and who shared its steps, is read from there, never from what the part returns. An answer that
did not come from this engine, in the steps that the ledger saw, has other tokens than the ledger chose.

    ledger = Ledger(rng)
    llm = scripted_llm(there, ledger)          # beside the part, wherever that is

Knows nothing of any lab.
"""

import functools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from labs.harness.suite import beside
from labs.harness.suite.expecting import Here, shown
from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.engine import arg_utils

SMALL: dict[str, Any] = {"device": "cpu", "num_gpu_blocks_override": 129}
"""2048 tokens of KV cache: what a test needs."""
POOL_BYTES = 16 << 20
"""Of an engine that a part builds: more than the longest request that a model takes."""
PAUSE = 0.2
"""Seconds for which a step is held back."""
WORDS = ["moon", "road", "wind", "tree", "boat", "door", "star", "rain", "key", "map", "story", "engine", "queue", "memory",
         "night", "letter", "server", "string", "stream", "batch"]
"""Each a token, behind a space."""


def exactly(num_tokens: int, **more: Any) -> SamplingParams:
    """Greedy, and `num_tokens` tokens whatever the model would say."""
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, **more)


def words(rng: random.Random, count: int) -> str:
    """So many words."""
    return " ".join(rng.choice(WORDS) for _ in range(count))


def some_prompts(rng: random.Random, count: int) -> list[str]:
    """Different prompts, of words in which no model finds sense."""
    return [f"{number} {words(rng, rng.randrange(1, 5))}" for number in rng.sample(range(1000), count)]


# the test's own engines


@functools.cache
def own_llm(model: str = "course-draft", batch_invariant: bool = False) -> LLM:
    """The test's own engine. With `batch_invariant` no output depends on who else is computed, not in the last bit."""
    return LLM(model, batch_invariant=batch_invariant, enable_prefix_caching=False, **SMALL)


def tokenizer() -> Any:
    """The bundled checkpoints' tokenizer: they have one between them."""
    return own_llm().get_tokenizer()


def clear_prompts(rng: random.Random, count: int, num_tokens: int = 6) -> list[dict[str, Any]]:
    """Prompts, each with the tokens of both bundled models' greedy answers under their names.

    The two differ, and no second-best token comes close: last bits, which depend on the shape of a
    batch, decide nothing.
    """
    clear: list[dict[str, Any]] = []
    while len(clear) < count:
        prompts = some_prompts(rng, 2 * count + 4)
        answers = {model: _answers_with_margins(model, prompts, num_tokens) for model in ("course", "course-draft")}
        for prompt, (large, margin), (small, other_margin) in zip(prompts, *answers.values(), strict=True):
            if large != small and min(margin, other_margin) > 0.01:
                clear.append({"prompt": prompt, "course": large, "course-draft": small})
    return clear[:count]


def _answers_with_margins(model: str, prompts: Sequence[str], num_tokens: int) -> list[tuple[list[int], float]]:
    """The tokens of greedy answers, and by how much, in nats, the closest of all choices was made."""
    outputs = own_llm(model).generate(prompts, exactly(num_tokens, logprobs=2), use_tqdm=False)
    answers = [output.outputs[0] for output in outputs]
    return [(answer.token_ids, min(map(_margin, answer.logprobs or ()))) for answer in answers]


def _margin(position: dict[int, Any]) -> float:
    """Between the two likeliest tokens."""
    best, second = sorted((choice.logprob for choice in position.values()), reverse=True)[:2]
    return best - second


# who chooses the tokens


@dataclass(eq=False)
class Served:
    """A request as the ledger saw it.

    Attributes:
        prompt: its tokens.
        params: its sampling parameters, by name.
        seed: what its draws are seeded with.
        answer: the tokens that are decided on; when they are used up the text ends.
        tokens: those it got so far.
    """

    prompt: list[int]
    params: dict[str, Any]
    seed: int
    answer: list[int]
    tokens: list[int] = field(default_factory=list)

    @property
    def state(self) -> tuple[list[int], int, list[int]]:
        """What a row shows of it, by which the ledger knows it again."""
        return self.prompt, self.seed, self.tokens


Script = Callable[[list[int], dict[str, Any]], list[int]]
"""A request's prompt and parameters → its whole answer, as tokens."""


class Ledger:
    """Chooses the tokens of an engine, and notes all of its steps.

    Args:
        rng: from which random tokens are drawn where there is no script.

    Attributes:
        requests: in the order of their first tokens.
        steps: the requests that shared each step.
    """

    def __init__(self, rng: random.Random, script: Script | None = None) -> None:
        self._rng, self._script = rng, script
        self.requests: list[Served] = []
        self.steps: list[list[Served]] = []

    def choose(self, rows: list[dict]) -> list[int]:
        """One token for each row of a step, see `beside.row_facts`."""
        step: list[Served] = []
        for row in rows:
            step.append(self._whose(row, step))
        self.steps.append(step)
        for served in step:
            served.tokens.append(self._next_token(served))
        return [served.tokens[-1] for served in step]

    def _next_token(self, served: Served) -> int:
        place = len(served.tokens)
        return served.answer[place] if place < len(served.answer) else tokenizer().eos_token_id

    def _whose(self, row: dict, taken: list[Served]) -> Served:
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
    """Holds steps back until `company` requests have shared one, so that nobody misses it because a machine is slow.

    Args:
        company: as many as could share a step.
        seconds: for which it does so, altogether.
    """

    def __init__(self, rng: random.Random, company: int, script: Script | None = None, seconds: float = 4.0) -> None:
        super().__init__(rng, script)
        self._company, self._pauses = company, int(seconds / PAUSE)

    def choose(self, rows: list[dict]) -> list[int]:
        """Waits a while if there could be more rows, then chooses as every ledger."""
        if len(rows) < self._company and self.most < self._company and self._pauses:
            self._pauses -= 1
            time.sleep(PAUSE)
        return super().choose(rows)

    @property
    def most(self) -> int:
        """As many requests shared one step."""
        return max(map(len, self.steps), default=0)


# engines beside the part


def components(there: Here, ledger: Ledger) -> Any:
    """Parts for an engine there, its sampler the ledger's."""
    return there.of(Components)(sampler=there.of(beside.asking_sampler)(there.lend(ledger.choose)))


def scripted_llm(there: Here, ledger: Ledger) -> Any:
    """An `LLM` there that says what the ledger chooses."""
    return there.of(LLM)("course-draft", components=components(there, ledger), **SMALL)


def spare_memory(there: Here) -> None:
    """Whatever engine the part builds takes a small pool, unless it says how large."""
    there.put(arg_utils, "DEFAULT_POOL_BYTES", POOL_BYTES)


# what came back


def facts_of(there: Here, outputs: Sequence[Any]) -> list[dict[str, Any]]:
    """What outputs that lie there say, see `beside.outputs_facts`."""
    return there.of(beside.outputs_facts)(list(outputs))


def assert_served(ledger: Ledger, outputs: Sequence[dict[str, Any]], prompts: Sequence[str]) -> None:
    """Each output, as `facts_of` has it, is what the ledger chose for its prompt, and no request stands in two places."""
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
