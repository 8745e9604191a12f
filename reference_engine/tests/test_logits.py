"""Logits of the engine, through its own runner and paged cache, equal transformers' in float32.

Relative means: the largest difference of a row, divided by the row's largest logit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.execution.sampler import Sampler
from nano_qwen3_serving.interfaces import SamplingRow, ScheduledBatch, ScheduledChunk
from nano_qwen3_serving.request import Request
from nano_qwen3_serving.testing.checkpoints import Shape
from nano_qwen3_serving.testing.oracle import Oracle

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
OUTPUT = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, detokenize=False)
LENGTHS = [1, 2, 3, 15, 16, 17, 31, 64, 90]

SHAPES = {
    "plain": Shape(),
    "group 1": Shape(num_attention_heads=4, num_key_value_heads=4),
    "group 4, one layer": Shape(num_attention_heads=8, num_key_value_heads=2, num_hidden_layers=1),
    "group 8": Shape(num_attention_heads=8, num_key_value_heads=1, tie_word_embeddings=False),
    "group 7, untied": Shape(num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=False),
    "heads wider than hidden": Shape(hidden_size=48, head_dim=128, num_attention_heads=2, num_key_value_heads=1),
    "heads narrower than hidden": Shape(hidden_size=96, head_dim=8, num_attention_heads=3, num_key_value_heads=3),
    "one head": Shape(num_attention_heads=1, num_key_value_heads=1, num_hidden_layers=3),
    "bias, tied": Shape(attention_bias=True),
    "bias, untied, group 1": Shape(attention_bias=True, tie_word_embeddings=False, num_key_value_heads=4),
    "odd sizes": Shape(vocab_size=1031, hidden_size=75, intermediate_size=101, num_attention_heads=6,
                       num_key_value_heads=3, head_dim=20, num_hidden_layers=5, tie_word_embeddings=False),
    "epsilon that matters": Shape(rms_norm_eps=0.03, tie_word_embeddings=False),
    "rope theta 1e6, deep": Shape(rope_theta=1e6, num_hidden_layers=8),
    "qwen3-like ratios": Shape(vocab_size=2048, hidden_size=128, intermediate_size=384, num_attention_heads=16,
                               num_key_value_heads=8, head_dim=16, num_hidden_layers=4, rope_theta=1e6),
}
MODES: dict[str, dict[str, Any]] = {
    "whole": {},
    "chunks of 1, blocks of 1": {"long_prefill_token_threshold": 1, "block_size": 1},
    "chunks of 7, blocks of 4": {"long_prefill_token_threshold": 7, "block_size": 4},
    "budget of 20, blocks of 3": {"max_num_batched_tokens": 20, "max_num_seqs": 8, "block_size": 3},
}


class RecordingSampler(Sampler):
    """Keeps every row of logits under the tokens it follows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[tuple[int, ...], Tensor] = {}

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Any:
        for row, logits_row in zip(rows, logits, strict=True):
            self.rows[(*row.prompt_token_ids, *row.output_token_ids)] = logits_row.clone()
        return super().sample(logits, rows)


def recording_llm(make_llm: Callable[..., LLM], model: Any, **arguments: Any) -> tuple[LLM, RecordingSampler]:
    sampler = RecordingSampler()
    return make_llm(model, components=Components(sampler=lambda config: sampler), **arguments), sampler


def random_prompts(vocab_size: int, lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(vocab_size) for _ in range(n)] for n in lengths]


def relative_error(got: Tensor, want: Tensor) -> float:
    """The worst row's."""
    return float(((got - want).abs().amax(dim=-1) / want.abs().amax(dim=-1)).max())


def worst_error(llm: LLM, sampler: RecordingSampler, oracle: Oracle, prompts: list[list[int]]) -> float:
    """Runs the prompts and compares the logits of each token that was sampled."""
    sampler.rows.clear()
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], OUTPUT)
    worst = 0.0
    for prompt, output in zip(prompts, outputs, strict=True):
        sequence = [*prompt, *output.outputs[0].token_ids]
        got = torch.stack([sampler.rows[tuple(sequence[:n])] for n in range(len(prompt), len(sequence))])
        want = oracle.logits(sequence[:-1])[len(prompt) - 1 :]
        worst = max(worst, relative_error(got, want))
    return worst


@pytest.fixture(scope="module")
def oracles(random_checkpoint: Callable[..., Path]) -> Callable[[str], tuple[Path, Oracle]]:
    made: dict[str, tuple[Path, Oracle]] = {}

    def find(name: str) -> tuple[Path, Oracle]:
        if name not in made:
            folder = random_checkpoint(SHAPES[name])
            made[name] = (folder, Oracle(folder))
        return made[name]

    return find


@pytest.fixture(scope="module")
def worst(note: Callable[[str], None]) -> Any:
    """Collects the errors of this file; their largest is reported."""
    errors: list[float] = []
    yield errors
    note(f"logits: largest relative error of {len(errors)} comparisons {max(errors, default=0):.1e} (limit {TOLERANCE})")


@pytest.mark.parametrize("name", SHAPES)
def test_a_random_checkpoint_prefers_some_tokens(name: str, oracles: Any) -> None:
    """Flat logits would make every other test here weak."""
    _folder, oracle = oracles(name)
    prompt = random_prompts(SHAPES[name].vocab_size, [60])[0]
    logits = oracle.logits(prompt)
    assert 1.0 < logits.std() < 40.0
    other = oracle.logits([(prompt[0] + 1) % SHAPES[name].vocab_size, *prompt[1:]])
    assert relative_error(other[-1:], logits[-1:]) > 100 * TOLERANCE, "the first token does not matter to the last"


@pytest.mark.share(3)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SHAPES)
def test_logits_of_prompts_and_decode_steps_equal_transformers(
    name: str, mode: str, oracles: Any, make_llm: Callable[..., LLM], worst: list[float]
) -> None:
    folder, oracle = oracles(name)
    llm, sampler = recording_llm(make_llm, folder, **MODES[mode])
    prompts = random_prompts(SHAPES[name].vocab_size)
    worst.append(worst_error(llm, sampler, oracle, prompts))
    assert worst[-1] <= TOLERANCE


@pytest.mark.parametrize("name", ["plain", "odd sizes"])
def test_logits_after_a_prefix_cache_hit_equal_transformers(
    name: str, oracles: Any, make_llm: Callable[..., LLM], worst: list[float]
) -> None:
    folder, oracle = oracles(name)
    llm, sampler = recording_llm(make_llm, folder, block_size=4)
    first = random_prompts(SHAPES[name].vocab_size, [40])[0]
    for prompt in (first, first, first[:17], [*first[:30], 1, 2, 3], first[:8]):
        worst.append(worst_error(llm, sampler, oracle, [prompt]))
        assert worst[-1] <= TOLERANCE
    assert llm.generate({"prompt_token_ids": first}, OUTPUT)[0].num_cached_tokens == 36


@pytest.mark.parametrize("mode", MODES)
def test_logits_of_the_course_checkpoint_equal_transformers(
    mode: str, oracle: Oracle, make_llm: Callable[..., LLM], corpus: Any, worst: list[float]
) -> None:
    llm, sampler = recording_llm(make_llm, "course", **MODES[mode])
    encode = llm.get_tokenizer().encode
    questions = [q for entry in corpus.load_entries() for q in entry.questions][::150]
    prompts = [encode(corpus.plain_prompt(q)) for q in questions] + random_prompts(2048, [1, 17, 80])
    worst.append(worst_error(llm, sampler, oracle, prompts))
    assert worst[-1] <= TOLERANCE


@pytest.mark.share(1)
@pytest.mark.parametrize("arguments", [{}, {"long_prefill_token_threshold": 512}, {"long_prefill_token_threshold": 100}],
                         ids=["whole", "chunks of 512", "chunks of 100"])
def test_logits_late_in_a_long_context_equal_transformers(
    arguments: dict[str, int], oracle: Oracle, make_llm: Callable[..., LLM], worst: list[float]
) -> None:
    llm, sampler = recording_llm(make_llm, "course", **arguments)
    worst.append(worst_error(llm, sampler, oracle, random_prompts(2048, [1000, 2041])))
    assert worst[-1] <= TOLERANCE


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["odd sizes", "group 8"])
def test_logits_equal_transformers_at_every_position_for_any_chunks_and_any_blocks(
    name: str, seed: int, oracles: Any, make_llm: Callable[..., LLM], worst: list[float]
) -> None:
    """The runner alone, given chunks of random sizes of several requests and scattered blocks."""
    folder, oracle = oracles(name)
    rng = random.Random(seed)
    size = rng.choice([1, 3, 4, 16])
    llm = make_llm(folder, block_size=size, num_gpu_blocks_override=600)
    prompts = random_prompts(SHAPES[name].vocab_size, [rng.randrange(1, 70) for _ in range(5)], seed)
    blocks = rng.sample(range(1, 600), 5 * 70)
    requests = [
        Request(str(i), None, prompt, OUTPUT, seed=0, max_total_tokens=100,
                block_indices=[blocks.pop() for _ in range(-(-len(prompt) // size))])
        for i, prompt in enumerate(prompts)
    ]
    got: list[list[Tensor]] = [[] for _ in prompts]
    while pending := [r for r in requests if r.num_uncomputed_tokens]:
        some = rng.sample(pending, rng.randint(1, len(pending)))
        batch = [
            ScheduledChunk.of(r, r.num_computed_tokens, rng.choice([1, rng.randint(1, r.num_uncomputed_tokens)]), r.block_indices)
            for r in some
        ]
        for chunk, logits in every_logit(llm, batch):
            got[int(chunk.request.request_id)].append(logits)
            chunk.request.num_computed_tokens = chunk.end
    for prompt, rows in zip(prompts, got, strict=True):
        worst.append(relative_error(torch.cat(rows), oracle.logits(prompt)))
        assert worst[-1] <= TOLERANCE


@torch.inference_mode()
def every_logit(llm: LLM, batch: list[ScheduledChunk]) -> list[tuple[ScheduledChunk, Tensor]]:
    """Runs a batch as the runner does, and gives the logits after each of its tokens, by chunk."""
    runner = llm.llm_engine.model_runner
    inputs = runner.lay_out(ScheduledBatch(batch))
    hidden = runner.model(inputs.token_ids, inputs.positions, runner.kv_cache, inputs.metadata)
    logits = runner.model.compute_logits(hidden).split([c.num_tokens for c in inputs.chunks])
    return list(zip(inputs.chunks, logits, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["plain", "bias, untied, group 1", "odd sizes"])
def test_half_precision_is_as_near_to_float32_as_transformers_in_half_precision(
    name: str, dtype: torch.dtype, oracles: Any, make_llm: Callable[..., LLM]
) -> None:
    """Rounding makes both differ from float32; the engine may not add an error of its own."""
    folder, exact = oracles(name)
    rounded = Oracle(folder, dtype)
    llm, sampler = recording_llm(make_llm, folder, dtype=str(dtype).removeprefix("torch."))
    prompts = random_prompts(SHAPES[name].vocab_size)
    theirs = max(relative_error(rounded.logits(p), exact.logits(p)) for p in prompts)
    ours = worst_error(llm, sampler, exact, prompts)
    assert ours <= 2 * theirs


def test_auto_dtype_of_the_course_checkpoint_is_float32(make_llm: Callable[..., LLM]) -> None:
    assert make_llm("course", dtype="auto").llm_engine.config.dtype == torch.float32


BATCHES: dict[str, dict[str, Any]] = {
    **MODES, "five at a time": {"max_num_seqs": 5}, "blocks of 256": {"block_size": 256},
    "no prefix cache": {"enable_prefix_caching": False},
}


@pytest.mark.share(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["odd sizes", "group 8"])
def test_batch_invariant_logits_are_bitwise_equal_in_every_batch_and_chunk(
    name: str, dtype: str, oracles: Any, make_llm: Callable[..., LLM]
) -> None:
    folder, _ = oracles(name)
    prompts = [{"prompt_token_ids": p} for p in random_prompts(SHAPES[name].vocab_size)]
    llm, sampler = recording_llm(make_llm, folder, dtype=dtype, batch_invariant=True)
    for prompt in prompts:
        llm.generate(prompt, OUTPUT)
    alone = sampler.rows
    for way, arguments in BATCHES.items():
        llm, sampler = recording_llm(make_llm, folder, dtype=dtype, batch_invariant=True, **arguments)
        llm.generate(prompts, OUTPUT)
        assert sampler.rows.keys() == alone.keys(), f"{way}: other tokens"
        different = [len(tokens) for tokens, row in sampler.rows.items() if not torch.equal(row, alone[tokens])]
        assert not different, f"{way}: logits after {different} tokens differ from those of the prompt alone"
