"""What Lab 04's `logprobs_of` and `Sampler.sample` answer, checked as it comes; and the sampler in the judge's engine."""

import random
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from grading.judge.checks import expect, shown
from grading.sandbox.worker.peer import Remote
from labs.harness.suite.first_fault import FirstFault, first_fault
from nano_qwen3_serving import SamplingParams
from nano_qwen3_serving.interfaces import SamplingRow
from nano_qwen3_serving.outputs import CompletionOutput, Logprob
from nano_qwen3_serving.prompts import Prompt

CLOSE = 1e-5
"""log_softmax of few logits in float32: some terms, each rounded by 2**-24, of values up to 20."""


def entries(found: Any, what: str) -> dict[int, tuple[float, int]]:
    """The log-probabilities and ranks that logprobs_of() returned."""
    expect(isinstance(found, dict), f"{what}: expected a dict from token id to Logprob, got {shown(found)}")
    values = {}
    for token, value in found.items():
        expect(type(token) is int, f"{what}: a key of the dict is {shown(token)}; expected a token id, an int")
        expect(getattr(value, "_kind", "") == "Logprob", f"{what}: token {token} has {shown(value)}; expected a Logprob")
        values[token] = (value.logprob, value.rank)
        expect(type(values[token][0]) is float,
               f"{what}: the logprob of token {token} is {shown(values[token][0])}; expected a Python float")
        expect(type(values[token][1]) is int, f"{what}: the rank of token {token} is {shown(values[token][1])}; expected an int")
    return values


def expect_logprobs(found: object, logits: Tensor, chosen: int, count: int, what: str) -> None:
    """`found` has the chosen token, then the `count` best, equal ones in any order, with what log_softmax and counting give."""
    exact, scores = logits.double().log_softmax(dim=0).tolist(), logits.tolist()
    values = entries(found, what)
    tokens = list(values)
    expect(all(0 <= token < len(scores) for token in tokens),
           f"{what}: there are {len(scores)} tokens, and these were named: {shown(tokens)}")
    expect(tokens[:1] == [chosen], f"{what}: the chosen token, {chosen}, comes first; the tokens were {shown(tokens)}")
    best = sorted(scores, reverse=True)[: len(scores) if count == -1 else count]
    for others in (tokens, tokens[1:]):  # the chosen token may be one of the best, and then stands there once
        if sorted((scores[t] for t in others), reverse=True) == best:
            break
    else:
        expect(False, f"{what}: expected token {chosen} and the best {len(best)}; the tokens were {shown(tokens)}")
    after = [scores[t] for t in tokens[1:]]
    expect(after == sorted(after, reverse=True),
           f"{what}: after the chosen token the likeliest come first; the tokens were {shown(tokens)}")
    for token, (logprob, rank) in values.items():
        expect(abs(logprob - exact[token]) <= CLOSE,
               f"{what}: token {token} has log-probability {exact[token]:.5f}, not {logprob:.5f}")
        right = 1 + sum(other > scores[token] for other in scores)
        expect(rank == right,
               f"{what}: the logits of {right - 1} tokens are above that of token {token}, so its rank is {right}, not {rank}")


def sampled(sampler: Remote, logits: object, rows: Sequence[SamplingRow]) -> tuple[list[int], list]:
    """What sample() returns, which must be a token for each row, and a dict or None."""
    answer = sampler.sample(logits, rows)
    expect(isinstance(answer, tuple) and len(answer) == 2,
           f"sample() returned {shown(answer)}; expected the tokens and their log-probabilities")
    tokens, logprobs = answer
    expect(isinstance(tokens, list) and len(tokens) == len(rows) and all(type(token) is int for token in tokens),
           f"sample() of {len(rows)} rows gave the tokens {shown(tokens)}; expected a list of ints, one per row")
    expect(
        isinstance(logprobs, list) and len(logprobs) == len(rows),
        f"sample() of {len(rows)} rows gave the log-probabilities {shown(logprobs)}; expected a list with a dict or None per row")
    return tokens, logprobs


class Wired:
    """The submission's sampler as the judge's engine calls it: log-probabilities come as values.

    Args:
        fault: gets the first exception.
    """

    def __init__(self, lab: Remote, fault: FirstFault) -> None:
        self.sampler, self._fault = lab.Sampler(), fault

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> tuple[list[int], list[dict[int, Logprob] | None]]:
        return self._fault.call(self._sample, logits, rows)

    def _sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> tuple[list[int], list[dict[int, Logprob] | None]]:
        tokens, logprobs = sampled(self.sampler, logits, rows)
        return tokens, [None if found is None else self._values(found) for found in logprobs]

    def _values(self, found: object) -> dict[int, Logprob]:
        return {token: Logprob(*entry) for token, entry in entries(found, "in the engine").items()}


def generated(
    lab: Remote | None, prompts: Sequence[Prompt], params: list[SamplingParams], **options: Any
) -> list[list[CompletionOutput]]:
    """What the course's model writes with this sampler (or the engine's own), in the judge's process: each request's samples."""
    from nano_qwen3_serving import LLM
    from nano_qwen3_serving.components import Components

    with first_fault() as fault:
        components = Components() if lab is None else Components().using(sampler=lambda config: Wired(lab, fault))
        llm = LLM("course-draft", components=components, device="cpu", dtype="float32", num_gpu_blocks_override=64, **options)
        return [output.outputs for output in llm.generate(prompts, params, use_tqdm=False)]


def prompts_from(rng: random.Random) -> list[Prompt]:
    """Three prompts of token ids."""
    return [{"prompt_token_ids": [rng.randrange(300, 500) for _ in range(rng.randrange(4, 12))]} for _ in range(3)]
