"""The engine's sampler by itself: the logits that it gets, what each parameter leaves of them, and many draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nano_qwen3_serving.components import Components
from nano_qwen3_serving.execution.sampler import Sampler, keep_top, uniform
from nano_qwen3_serving.interfaces import SamplingRow
from nano_qwen3_serving.llm import LLM
from nano_qwen3_serving.outputs import CompletionOutput, Logprob
from nano_qwen3_serving.sampling_params import SamplingParams


class WatchedSampler(Sampler):
    """The engine's sampler, which keeps the logits that it was last given."""

    logits: Tensor

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> tuple[list[int], list[dict[int, Logprob] | None]]:
        """Samples, as always."""
        self.logits = logits.clone()
        return super().sample(logits, rows)


def logits_after(prompt: str) -> tuple[Tensor, Any]:
    """What the course's model says of the token after a prompt: logits [vocab_size], and the tokenizer."""
    sampler = WatchedSampler()
    llm = LLM("course", device="cpu", components=Components(sampler=lambda config: sampler), batch_invariant=True)
    llm.generate([prompt], SamplingParams(temperature=0.0, max_tokens=1), use_tqdm=False)
    return sampler.logits[0], llm.get_tokenizer()


def top_tokens(logits: Tensor, tokenizer: Any, count: int) -> tuple[list[int], list[str], list[float]]:
    """The most probable tokens: ids, texts and probabilities, in falling order."""
    values, ids = logits.softmax(dim=-1).topk(count)
    return ids.tolist(), [repr(tokenizer.decode([token])) for token in ids.tolist()], values.tolist()


def generator(**engine_args: Any) -> Callable[..., list[CompletionOutput]]:
    """The course's model as a function of a prompt and any number of wishes (dicts of parameters), with parameters of all.

    It gives a completion for each wish; all of them are computed together.
    """
    llm = LLM("course", device="cpu", **engine_args)

    def generate(prompt: str, *wishes: Mapping[str, Any], **of_all: Any) -> list[CompletionOutput]:
        params = [SamplingParams(**{**wish, **of_all}) for wish in wishes]
        return [output.outputs[0] for output in llm.generate([prompt] * len(params), params, use_tqdm=False)]

    return generate


def row(prompt_token_ids: list[int], output_token_ids: list[int], seed: int = 0, **wishes: Any) -> SamplingRow:
    """What the sampler gets with a row of logits: a request's tokens so far, its seed and its parameters."""
    return SamplingRow(SamplingParams(**wishes), prompt_token_ids, output_token_ids, seed)


def drawn(logits: Tensor, count: int, **wishes: Any) -> Tensor:
    """How often the engine's sampler chooses each token, with as many seeds: shares, [vocab_size]."""
    rows = [row([0], [], seed, **wishes) for seed in range(count)]
    tokens, _ = Sampler().sample(logits.expand(count, -1), rows)
    return torch.bincount(torch.tensor(tokens), minlength=len(logits)) / count


def stages(logits: Tensor, temperature: float, top_k: int, top_p: float) -> dict[str, Tensor]:
    """What becomes of a distribution on its way through the sampler: probabilities [vocab_size], by the stage's title."""
    warm = logits.float() / temperature
    probabilities = warm.softmax(dim=-1)
    by_title = {"what the network says": logits.softmax(dim=-1), f"temperature {temperature:g}": probabilities}
    kept = warm
    for title, wishes in ((f"top_k = {top_k}", {"top_k": top_k}), (f"then top_p = {top_p:g}", {"top_k": top_k, "top_p": top_p})):
        kept = keep_top(warm[None], top_k, wishes.get("top_p", 1.0))[0]
        by_title[title] = probabilities.masked_fill(kept.isinf(), 0.0)
    return by_title | {"scaled up to 1": kept.softmax(dim=-1)}


def counted(logits: Tensor, count: int, wishes: Mapping[str, Mapping[str, Any]], tokens: Sequence[int]) -> dict[str, list[float]]:
    """Shares of so many draws, by title, of some tokens and of all others together."""
    return {title: grouped(drawn(logits, count, **wish), tokens) for title, wish in wishes.items()}


def one_at_a_time(**values: Sequence[float]) -> dict[str, dict[str, float]]:
    """Wishes of one parameter each: `{"top_k=3": {"top_k": 3}, …}`."""
    return {f"{name}={value}": {name: value} for name, several in values.items() for value in several}


def random_number(seed: int, position: int) -> float:
    """The number from 0 to 1 that a request with this seed draws with at this position of its text, prompt and all."""
    return uniform(seed, 0, position)


def grouped(probabilities: Tensor, tokens: Sequence[int]) -> list[float]:
    """Those of some tokens, and of all others together."""
    rest = torch.ones(len(probabilities), dtype=torch.bool).index_fill(0, torch.tensor(list(tokens)), False)
    return [*probabilities[list(tokens)].tolist(), float(probabilities[rest].sum())]
