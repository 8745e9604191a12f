"""The same bits, with `batch_invariant=True`, whatever runs beside a request and however it is cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.components import Components, default_sampler

pytestmark = pytest.mark.slow

LENGTHS = (3, 17, 64, 200, 511, 512, 513)  # around the groups of 16 queries and 512 keys
OUTPUT = 4

WAYS = {
    "all at once": {},
    "chunks of 7": {"long_prefill_token_threshold": 7},
    "chunks of 100": {"long_prefill_token_threshold": 100},
    "a small budget": {"max_num_batched_tokens": 300},
    "blocks of 4": {"block_size": 4},
}


class LogitsKeeper:
    """The reference sampler, keeping each row's logits by prompt and position."""

    def __init__(self, config) -> None:
        self.sampler = default_sampler(config)
        self.logits: dict[tuple[int, int], Tensor] = {}

    def sample(self, logits, rows):
        for row, numbers in zip(rows, logits, strict=True):
            self.logits[len(row.prompt_token_ids), row.position] = numbers.clone()
        return self.sampler.sample(logits, rows)


def prompts() -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [{"prompt_token_ids": torch.randint(0, 2000, (n,), generator=generator).tolist()} for n in LENGTHS]


def logits_of(make_llm: Callable[..., LLM], batch: bool, **arguments) -> dict[tuple[int, int], Tensor]:
    """Every sampled position's logits, the prompts one after the other or in one batch."""
    keepers: list[LogitsKeeper] = []

    def make_sampler(config):
        keepers.append(LogitsKeeper(config))
        return keepers[0]

    arguments = {"num_gpu_blocks_override": 1200 // arguments.get("block_size", 16) * 4, **arguments}
    llm = make_llm(components=Components(sampler=make_sampler), enable_prefix_caching=False, **arguments)
    params = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True)
    for group in [prompts()] if batch else [[p] for p in prompts()]:
        llm.generate(group, params)
    return keepers[0].logits


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def alone(request, make_llm):
    return request.param, logits_of(make_llm, batch=False, batch_invariant=True, dtype=request.param)


@pytest.mark.share(2)
@pytest.mark.parametrize("way", WAYS)
def test_logits_are_bitwise_those_of_a_request_alone(alone, make_llm, way: str):
    dtype, expected = alone
    found = logits_of(make_llm, batch=True, batch_invariant=True, dtype=dtype, **WAYS[way])
    assert found.keys() == expected.keys() and len(found) == len(LENGTHS) * OUTPUT
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


def test_the_comparison_would_notice_a_difference_of_the_last_bit(make_llm):
    """Without the mode the last bits do differ: the tests above compare something."""
    expected = logits_of(make_llm, batch=False)
    found = logits_of(make_llm, batch=True, long_prefill_token_threshold=7)
    assert any(not torch.equal(found[key], expected[key]) for key in found)


def seeded() -> list[SamplingParams]:
    return [SamplingParams(temperature=1.0, top_p=0.95, seed=i, max_tokens=24, ignore_eos=True) for i in range(6)]


@pytest.mark.share(3)
@pytest.mark.parametrize("way", [*WAYS, "a tiny pool", "other neighbours"])
def test_a_seeded_request_draws_the_same_tokens(make_llm, way: str):
    openings = ["Once upon a time", "My favourite colour is", "Hello", "Once upon a time", "In the", "What"]
    reference = make_llm(batch_invariant=True)
    alone = [reference.generate(p, s)[0].outputs[0].token_ids for p, s in zip(openings, seeded(), strict=True)]
    arguments = {"a tiny pool": {"block_size": 4, "num_gpu_blocks_override": 20}}.get(way, WAYS.get(way, {}))
    llm = make_llm(batch_invariant=True, **arguments)
    extra = ["Tell me about blocks"] * 5 if way == "other neighbours" else []
    params = [*seeded(), *[SamplingParams(max_tokens=9) for _ in extra]]
    outputs = llm.generate([*openings, *extra], params)[: len(openings)]
    assert [o.outputs[0].token_ids for o in outputs] == alone
    if way == "a tiny pool":
        assert sum(o.metrics.num_preemptions for o in outputs) > 0
