"""The test's own engines, and prompts whose answers are known from them."""

import functools
import random
from collections.abc import Sequence
from typing import Any

from nano_qwen3_serving import LLM, SamplingParams

SMALL: dict[str, Any] = {"device": "cpu", "num_gpu_blocks_override": 129}
"""2048 tokens of KV cache: enough for a test."""
WORDS = ["moon", "road", "wind", "tree", "boat", "door", "star", "rain", "key", "map", "story", "engine", "queue", "memory",
         "night", "letter", "server", "string", "stream", "batch"]
"""Words that are a single token each, after a space."""


def exactly(num_tokens: int, **more: Any) -> SamplingParams:
    """Greedy, and exactly `num_tokens` tokens, even past an end of sequence."""
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, **more)


def words(rng: random.Random, count: int) -> str:
    """`count` random words, separated by spaces."""
    return " ".join(rng.choice(WORDS) for _ in range(count))


def some_prompts(rng: random.Random, count: int) -> list[str]:
    """Different prompts, made of words without a meaning together."""
    return [f"{number} {words(rng, rng.randrange(1, 5))}" for number in rng.sample(range(1000), count)]


@functools.cache
def own_llm(model: str = "course-draft", batch_invariant: bool = False) -> LLM:
    """The test's own engine. With `batch_invariant` no output depends on other requests, not even in the last bit."""
    return LLM(model, batch_invariant=batch_invariant, enable_prefix_caching=False, **SMALL)


def tokenizer() -> Any:
    """The tokenizer that the bundled checkpoints share."""
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
    """The tokens of greedy answers, and the smallest margin of all choices, in nats."""
    outputs = own_llm(model).generate(prompts, exactly(num_tokens, logprobs=2), use_tqdm=False)
    answers = [output.outputs[0] for output in outputs]
    return [(answer.token_ids, min(map(_margin, answer.logprobs or ()))) for answer in answers]


def _margin(position: dict[int, Any]) -> float:
    """The margin between the two likeliest tokens."""
    best, second = sorted((choice.logprob for choice in position.values()), reverse=True)[:2]
    return best - second
