"""Engines for the checks of labs that use one: the judge's own, and one beside the submission whose tokens the judge chooses.

Knows nothing of any lab. What the submission's engine was asked to compute, and who shared its steps,
is read from the judge's `Ledger`, never from what comes back.
"""

import functools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from grading.judge.checks import Wrong, expect, expect_nothing_replaced, kept, ours, shown
from grading.sandbox.worker.parts import row_facts
from grading.sandbox.worker.peer import Remote
from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.components import Components

SMALL: dict[str, Any] = {"device": "cpu", "num_gpu_blocks_override": 129}
"""2048 tokens of KV cache: what a check needs."""
POOL_BYTES = 16 << 20
"""Of an engine that a submission builds: more than the longest request that a model takes."""
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


@functools.cache
def judges_llm(model: str = "course-draft", batch_invariant: bool = False) -> LLM:
    """The judge's own engine. With `batch_invariant` no output depends on who else is computed, not in the last bit."""
    return LLM(model, batch_invariant=batch_invariant, enable_prefix_caching=False, **SMALL)


def tokenizer() -> Any:
    """The bundled checkpoints' tokenizer: they have one between them."""
    return judges_llm().get_tokenizer()


def ends_text() -> int:
    """The token with which the model ends a text by itself."""
    return tokenizer().eos_token_id


@dataclass(eq=False)
class Served:
    """A request as the judge saw it.

    Attributes:
        prompt: its tokens.
        params: its sampling parameters, by name.
        seed: what its draws are seeded with.
        answer: the tokens that the judge has decided on; when they are used up the text ends.
        tokens: those it was given so far.
    """

    prompt: list[int]
    params: dict[str, Any]
    seed: int
    answer: list[int]
    tokens: list[int] = field(default_factory=list)

    @property
    def given(self) -> tuple[list[int], int, list[int]]:
        """What a row shows of it, by which the ledger knows it again."""
        return self.prompt, self.seed, self.tokens


class Ledger:
    """Chooses the tokens of an engine, and notes all of its steps.

    Args:
        rng: from which random tokens are drawn where there is no script.
        script: a request's prompt and parameters → its whole answer, as tokens.

    Attributes:
        requests: in the order of their first tokens.
        steps: the requests that shared each step.
    """

    def __init__(self, rng: random.Random, script: Callable[[list[int], dict[str, Any]], list[int]] | None = None) -> None:
        self._dice, self._script = rng, script
        self.requests: list[Served] = []
        self.steps: list[list[Served]] = []

    def choose(self, rows: list[dict]) -> list[int]:
        """One token for each row of a step."""
        step: list[Served] = []
        for row in rows:
            step.append(self._whose(row, step))
        self.steps.append(step)
        for served in step:
            served.tokens.append(self.next_token(served))
        return [served.tokens[-1] for served in step]

    def next_token(self, served: Served) -> int:
        """By the script, or at random."""
        place = len(served.tokens)
        return served.answer[place] if place < len(served.answer) else ends_text()

    def _whose(self, row: dict, taken: list[Served]) -> Served:
        place = row["prompt"], row["seed"], row["output"]
        known = next((one for one in self.requests if one.given == place and one not in taken), None) if row["output"] else None
        if known is not None:
            return known
        params = row.get("params", {})
        served = Served(row["prompt"], params, row["seed"], self._answer(row["prompt"], params), list(row["output"]))
        self.requests.append(served)
        return served

    def _answer(self, prompt: list[int], params: dict[str, Any]) -> list[int]:
        if self._script is not None:
            return self._script(prompt, params)
        return [self._dice.randrange(300, 2000) for _ in range(512)]


class PatientLedger(Ledger):
    """Holds steps back until `company` requests have shared one, so that nobody misses it because a machine is slow.

    Args:
        company: as many as could share a step.
        seconds: for which it does so, altogether.
    """

    def __init__(self, rng: random.Random, company: int, script: Callable | None = None, seconds: float = 4.0) -> None:
        super().__init__(rng, script)
        self._company, self._pauses = company, int(seconds / PAUSE)

    def choose(self, rows: list[dict]) -> list[int]:
        if len(rows) < self._company and self.most < self._company and self._pauses:
            self._pauses -= 1
            time.sleep(PAUSE)
        return super().choose(rows)

    @property
    def most(self) -> int:
        """As many requests shared one step."""
        return max(map(len, self.steps), default=0)


def components_of(lab: Remote, ledger: Ledger) -> Remote:
    """Parts for an engine beside the submission, its sampler the ledger's."""
    package = lab._peer.root.package
    sampler = package("worker.parts").asking_sampler(ours(ledger.choose))
    return package("nano_qwen3_serving.components").Components(sampler=sampler)


def llm_beside(lab: Remote, ledger: Ledger) -> Remote:
    """An `LLM` beside the submission."""
    return lab._peer.root.package("nano_qwen3_serving").LLM("course-draft", components=components_of(lab, ledger), **SMALL)


def llm_here(ledger: Ledger) -> LLM:
    """An `LLM` in the judge's process, its sampler the ledger's."""
    return LLM("course-draft", components=Components(sampler=lambda config: HereSampler(ledger)), **SMALL)


class HereSampler:
    """The ledger as a part of an engine of the judge's."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def sample(self, logits: Any, rows: Sequence[Any]) -> tuple[list[int], list[Any]]:
        return self._ledger.choose([row_facts(row) for row in rows]), [None] * len(rows)


def spare_memory(lab: Remote) -> None:
    """Whatever engine the submission builds takes a small pool, unless it says how large."""
    lab._peer.root.package("nano_qwen3_serving.engine.arg_utils").DEFAULT_POOL_BYTES = POOL_BYTES


def is_a(lab: Remote, value: Any, *names: str) -> bool:
    """Whether it is an object of the engine's class of that dotted name, there."""
    if not isinstance(value, Remote):
        return False
    expect_nothing_replaced(lab, "types")
    kind = functools.reduce(getattr, names[1:], lab._peer.root.package(names[0]))
    return lab._peer.root.package("builtins").isinstance(value, kind)


def as_it_is(lab: Remote, function: Remote, *arguments: Any) -> Any:
    """What a call returns, neither awaited nor drained."""
    package = lab._peer.root.package
    [answer] = package("builtins").list(package("itertools").starmap(function, [arguments]))
    return answer


def tokens_of(output: Any) -> list[int]:
    """The tokens of a `RequestOutput` that lies there."""
    return output.outputs[0].token_ids


def text_of(output: Any) -> str:
    """Its text."""
    return output.outputs[0].text


def stdout_of(lab: Remote, run: Callable[[], Any]) -> str:
    """What is printed there meanwhile."""
    package = lab._peer.root.package
    package("sys").stdout = heard = kept(package("io").StringIO)
    run()
    return heard.getvalue()


def expect_served(ledger: Ledger, outputs: Sequence[Any], prompts: Sequence[str]) -> None:
    """Each output is what the judge had the engine say to its prompt, and no request stands in two places."""
    left = list(ledger.requests)
    for place, (prompt, output) in enumerate(zip(prompts, outputs, strict=True), start=1):
        expect(output.prompt == prompt, f"the output of prompt {place}, {prompt!r}, says that it is of {shown(output.prompt)}")
        found, read = tokens_of(output), tokenizer().encode(prompt)
        own = next((one for one in left if one.prompt == read and one.tokens == found), None)
        if own is None:
            raise Wrong(f"prompt {place}, {prompt!r}, came back with {shown(text_of(output))} ({len(found)} tokens); "
                        "that is not what this engine generated for it, or it stands there twice")
        left.remove(own)


def some_prompts(rng: random.Random, count: int) -> list[str]:
    """Different prompts, of words in which no model finds sense."""
    return [f"{number} {words(rng, rng.randrange(1, 5))}" for number in rng.sample(range(1000), count)]


def clear_prompts(rng: random.Random, count: int, num_tokens: int = 6) -> list[dict[str, Any]]:
    """Prompts, each with the tokens of both bundled models' greedy answers under their names.

    The two differ, and no second-best token comes close: last bits, which depend on the shape of a
    batch, decide nothing.
    """
    found: list[dict[str, Any]] = []
    while len(found) < count:
        prompts = some_prompts(rng, 2 * count + 4)
        each = {model: answers_with_margins(model, prompts, num_tokens) for model in ("course", "course-draft")}
        for prompt, (large, clear), (small, as_clear) in zip(prompts, *each.values(), strict=True):
            if large != small and min(clear, as_clear) > 0.01:
                found.append({"prompt": prompt, "course": large, "course-draft": small})
    return found[:count]


def answers_with_margins(model: str, prompts: Sequence[str], num_tokens: int) -> list[tuple[list[int], float]]:
    """The tokens of greedy answers, and by how much, in nats, the closest of all choices was made."""
    outputs = judges_llm(model).generate(prompts, exactly(num_tokens, logprobs=2), use_tqdm=False)
    return [(one.token_ids, min(map(margin, one.logprobs or ()))) for one in (output.outputs[0] for output in outputs)]


def margin(position: dict[int, Any]) -> float:
    """Between the two likeliest tokens."""
    best, second = sorted((choice.logprob for choice in position.values()), reverse=True)[:2]
    return best - second
