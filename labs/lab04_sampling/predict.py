"""The truth behind predict.toml: each question's function asks the engine's own sampler, or the engine."""

import math

import torch

from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.execution.sampler import Sampler, apply_processors
from nano_qwen3_serving.interfaces import SamplingRow

PERCENTS = [[40, 25, 15, 10, 6, 4], [50, 20, 14, 8, 5, 3], [35, 30, 18, 9, 6, 2], [60, 17, 9, 7, 4, 3]]
DRAWS = 4000
"""The rarest token of the questions has 2 percent: that it never comes has probability 0.98**4000 < 1e-35."""


def case(random) -> dict:
    """Numbers of which rounding cannot change the answers."""
    percents = random.choice(PERCENTS)
    ties = random.choice([[5, 4, 4, 2, 2, 2, 1], [3, 3, 3, 2, 1, 1, 0], [6, 5, 4, 4, 4, 4, 1]])
    return {
        "percents": ", ".join(map(str, percents)),
        "top_p": random.choice([0.31, 0.52, 0.72, 0.82, 0.95]),
        "min_p": random.choice([0.09, 0.19, 0.27, 0.45, 0.7]),
        "ties": ", ".join(map(str, ties)),
        "top_k": random.randint(2, 5),
        "odds": random.randint(3, 12),
        "logit": -random.randint(1, 6),
        "times": random.randint(2, 5),
        "seed": random.randint(1, 999),
        "tokens": random.randint(8, 20),
        "ranked": ", ".join(map(str, random.sample(range(-9, 10), 6))),
    }


def kept_by_top_p(case: dict) -> int:
    return _different_tokens(_log(case["percents"]), top_p=case["top_p"])


def kept_by_min_p(case: dict) -> int:
    return _different_tokens(_log(case["percents"]), min_p=case["min_p"])


def kept_by_top_k(case: dict) -> int:
    # temperature 2 so that the least likely of the kept tokens has more than 1 percent
    return _different_tokens(_numbers(case["ties"]), top_k=case["top_k"], temperature=2.0)


def odds(case: dict) -> int:
    """Log-probabilities are of raw logits, so the row is given to them divided by its temperature."""
    logits = torch.tensor([[math.log(case["odds"]), 0.0]])
    _, (found,) = Sampler().sample(logits / 0.5, [_row(logprobs=2)])
    return round(math.exp(found[0].logprob - found[1].logprob))


def after_penalties(case: dict) -> int:
    row = _row(prompt=[1], output=[1] * case["times"], repetition_penalty=2.0, frequency_penalty=1.0, presence_penalty=1.0)
    return round(apply_processors(torch.tensor([[0.0, float(case["logit"])]]), [row])[0, 1].item())


def same_tokens(case: dict) -> int:
    llm = LLM("course-draft", batch_invariant=True)
    mine, other = (
        SamplingParams(temperature=1.5, seed=seed, max_tokens=case["tokens"], ignore_eos=True) for seed in (case["seed"], 1000))
    alone = llm.generate(["Once upon a time"], [mine], use_tqdm=False)[0].outputs[0].token_ids
    together = llm.generate(["The robot", "Once upon a time", "My"], [other, mine, other], use_tqdm=False)[1].outputs[0].token_ids
    return sum(a == b for a, b in zip(alone, together, strict=True))


def rank(case: dict) -> int:
    logits = _numbers(case["ranked"])
    last = len(logits) - 1
    (token,), (found,) = Sampler().sample(torch.tensor([logits]), [_row(logit_bias={last: 100.0}, temperature=0.0, logprobs=0)])
    return found[token].rank


def _different_tokens(logits: list[float], **params) -> int:
    """How many different tokens come in many draws."""
    rows = [_row(seed, **params) for seed in range(DRAWS)]
    return len(set(Sampler().sample(torch.tensor(logits).expand(DRAWS, -1), rows)[0]))


def _row(seed: int = 0, prompt=(0,), output=(), **params) -> SamplingRow:
    return SamplingRow(SamplingParams(**params), list(prompt), list(output), seed)


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(", ")]


def _log(percents: str) -> list[float]:
    return [math.log(number / 100) for number in _numbers(percents)]
