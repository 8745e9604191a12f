"""The sampler against transformers' logits processors and against the laws of chance.

Draws depend on (seed, sample index, position) alone, so these tests give the same result every
time; the bounds are such that a correct sampler with other random numbers would fail one in 10^9.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from nano_qwen3_serving import SamplingParams
from nano_qwen3_serving.execution.masks import apply_masks
from nano_qwen3_serving.execution.sampler import Sampler, apply_processors, draw_of_all, draw_of_few, largest, uniform
from nano_qwen3_serving.interfaces import SamplingRow
from nano_qwen3_serving.token_counts import TokenCounts

pytestmark = pytest.mark.slow

FALSE_REJECTS = 1e-9
DRAWS = 20_000
VOCAB = 24

torch.manual_seed(0)
LOGITS = 2.0 * torch.randn(VOCAB)


def row(params: SamplingParams, seed: int = 0, *, prompt: Sequence[int] = (1,), output: Sequence[int] = (),
        index: int = 0, **kwargs: Any) -> SamplingRow:
    return SamplingRow(params, list(prompt), list(output), seed, index, **kwargs)


def sample(logits: Tensor, rows: list[SamplingRow]) -> list[int]:
    if logits.dim() == 1:
        logits = logits.expand(len(rows), -1)
    return Sampler().sample(logits, rows)[0]


def chi_square_limit(freedom: int) -> float:
    """What a chi-square variable exceeds with probability FALSE_REJECTS at most (Laurent and Massart, 2000)."""
    x = -math.log(FALSE_REJECTS)
    return freedom + 2 * math.sqrt(freedom * x) + 2 * x


def check_distribution(tokens: Sequence[int], probs: Tensor) -> None:
    """The tokens are as frequent as `probs` [vocab] says; those expected under 10 times count as one."""
    counts, expected = Counter(tokens), (probs.double() * len(tokens)).tolist()
    never = [t for t in counts if expected[t] == 0.0]
    assert not never, f"tokens {never} were drawn, and their probability is 0"
    often = [t for t in range(len(expected)) if expected[t] >= 10]
    cells = [(counts[t], expected[t]) for t in often]
    rest = sum(expected) - sum(e for _, e in cells)
    if rest > 1e-6:
        cells.append((len(tokens) - sum(c for c, _ in cells), max(rest, 1.0)))
    statistic = sum((c - e) ** 2 / e for c, e in cells)
    assert statistic <= chi_square_limit(max(len(cells) - 1, 1)), list(zip(often, cells, strict=False))


def warped(logits: Tensor, params: SamplingParams) -> Tensor:
    """Probabilities by transformers' warpers, in float64."""
    warpers: list[Any] = [transformers.TemperatureLogitsWarper(params.temperature)]
    if params.top_k:
        warpers.append(transformers.TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        warpers.append(transformers.TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(transformers.MinPLogitsWarper(params.min_p))
    scores = logits.double()[None]
    for warper in warpers:
        scores = warper(None, scores)
    return torch.softmax(scores[0], dim=-1)


FILTERS = [
    {"temperature": 1.0}, {"temperature": 0.3}, {"temperature": 2.0},
    {"top_k": 1}, {"top_k": 5}, {"top_k": VOCAB}, {"top_k": 10_000},
    {"top_p": 0.5}, {"top_p": 0.9}, {"top_p": 0.01}, {"top_p": 0.999},
    {"min_p": 0.1}, {"min_p": 1.0},
    {"top_k": 8, "top_p": 0.7}, {"top_k": 8, "min_p": 0.2}, {"top_p": 0.8, "min_p": 0.05},
    {"temperature": 0.7, "top_k": 12, "top_p": 0.95, "min_p": 0.02},
]


@pytest.mark.parametrize("changes", FILTERS, ids=str)
def test_tokens_are_drawn_from_the_filtered_distribution(changes: dict[str, Any]) -> None:
    params = SamplingParams(**changes)
    tokens = sample(LOGITS, [row(params, seed) for seed in range(DRAWS)])
    check_distribution(tokens, warped(LOGITS, params))


@pytest.mark.parametrize("changes", FILTERS, ids=str)
def test_a_row_draws_the_same_alone_as_among_rows_with_other_filters(changes: dict[str, Any]) -> None:
    others = [row(SamplingParams(**other), seed) for seed, other in enumerate(FILTERS * 4)]
    logits = torch.randn(len(others) + 1, VOCAB, generator=torch.Generator().manual_seed(3))
    for seed in range(20):
        mine = row(SamplingParams(**changes), seed)
        alone = sample(logits[:1], [mine])
        assert sample(logits, [mine, *others])[:1] == alone


def test_the_sampler_does_not_change_the_logits_it_is_given() -> None:
    logits = LOGITS.repeat(3, 1)
    rows = [row(SamplingParams(logit_bias={1: 5.0}, top_k=3, repetition_penalty=1.5)) for _ in range(3)]
    Sampler().sample(logits, rows)
    assert torch.equal(logits, LOGITS.repeat(3, 1))


@pytest.mark.parametrize("what", ["seed", "position", "index"])
def test_draws_along_seeds_positions_and_sample_indices_are_all_fair(what: str) -> None:
    params = SamplingParams()
    rows = {
        "seed": [row(params, s) for s in range(DRAWS)],
        "position": [row(params, 5, prompt=[1] * 3, output=range(n)) for n in range(2000)],
        "index": [row(params, 5, index=i) for i in range(DRAWS)],
    }[what]
    check_distribution(sample(LOGITS, rows), warped(LOGITS, params))


@pytest.mark.parametrize("step", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)], ids=["seed", "index", "position", "both"])
def test_neighbouring_draws_are_independent(step: tuple[int, int, int]) -> None:
    """Pairs of draws whose seed, index or position differ by one fill a 16 × 16 board evenly."""
    pairs = []
    for i in range(40_000):
        here = (i * 7 % 1000, i // 1000, i % 100)
        there = tuple(a + b for a, b in zip(here, step, strict=True))
        pairs.append(int(uniform(*here) * 16) * 16 + int(uniform(*there) * 16))  # type: ignore[arg-type]
    check_distribution(pairs, torch.full((256,), 1 / 256))


def test_uniform_is_in_zero_to_one_and_exact_in_float32() -> None:
    seeds = [0, 1, -1, 2**63, 2**62 + 1, 2**70 + 5]
    numbers = [uniform(s, i, p) for s in seeds for i in range(5) for p in range(200)]
    assert all(0.0 <= u < 1.0 and float(torch.tensor(u)) == u for u in numbers)
    assert len(set(numbers)) > 0.99 * len(numbers)


def test_the_largest_draw_never_reaches_a_token_of_probability_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    from nano_qwen3_serving.execution import sampler

    logits = torch.full((1, 50_000), -2.0)
    logits[0, 40_000:] = float("-inf")
    for u in (0.0, 1 - 2**-24):
        monkeypatch.setattr(sampler, "uniform", lambda *_, u=u: u)
        for changes in ({}, {"top_p": 0.999}, {"top_k": 30_000}, {"min_p": 0.5}):
            assert sample(logits, [row(SamplingParams(**changes))])[0] < 40_000


def test_greedy_takes_the_likeliest_and_the_smallest_id_of_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 1.0, 1.0, 1.0]])
    greedy = SamplingParams(temperature=0.0)
    assert sample(logits, [row(greedy), row(greedy)]) == [1, 0]
    mixed = sample(logits, [row(SamplingParams(top_k=1), 3), row(greedy)])
    assert mixed[0] in (1, 2) and mixed[1] == 0


def test_equal_seeds_give_equal_draws_and_others_do_not() -> None:
    def draws(seed: int) -> list[int]:
        return [sample(LOGITS, [row(SamplingParams(), seed, output=range(n))])[0] for n in range(64)]

    assert draws(11) == draws(11)
    assert draws(11) != draws(12)


def processed(params: SamplingParams, logits: Tensor = LOGITS, **kwargs: Any) -> Tensor:
    return apply_processors(logits[None], [row(params, **kwargs)])[0]


HISTORIES = [([1, 2, 3], []), ([1, 2, 2], [5, 5, 6]), ([0], [7, 2, 7, 7, 2]), (list(range(VOCAB)), [3] * 10)]


@pytest.mark.parametrize(("prompt", "output"), HISTORIES)
@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 10.0])
def test_repetition_penalty_equals_transformers(penalty: float, prompt: list[int], output: list[int]) -> None:
    oracle = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    want = oracle(torch.tensor([prompt + output]), LOGITS[None].clone())[0]
    got = processed(SamplingParams(repetition_penalty=penalty), prompt=prompt, output=output)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("prompt", "output"), HISTORIES)
def test_presence_and_frequency_penalties_count_generated_tokens_only(prompt: list[int], output: list[int]) -> None:
    got = processed(SamplingParams(presence_penalty=0.75, frequency_penalty=-0.5), prompt=prompt, output=output)
    want = [float(LOGITS[t]) - 0.75 * (t in output) + 0.5 * output.count(t) for t in range(VOCAB)]
    torch.testing.assert_close(got, torch.tensor(want))


@pytest.mark.parametrize("output", [[], [5], [5, 6], [6, 5], [4, 5, 6], [9, 9], [5, 6, 7, 5, 6]])
def test_bad_words_equal_transformers(output: list[int]) -> None:
    words = [[3], [5, 6], [5, 6, 7], [9, 9, 9], [6, 8]]
    if output:
        oracle = transformers.NoBadWordsLogitsProcessor(words, eos_token_id=None)
        want = oracle(torch.tensor([output]), LOGITS[None].clone())[0]
    else:
        want = LOGITS.clone()
        want[3] = float("-inf")
    got = processed(SamplingParams(bad_words=["x"]), output=output, bad_words_token_ids=words)
    assert torch.equal(got, want)


def test_bad_words_that_the_prompt_began_are_not_forbidden() -> None:
    got = processed(SamplingParams(bad_words=["x"]), prompt=[4, 5], output=[], bad_words_token_ids=[[5, 6]])
    assert torch.equal(got, LOGITS)


def test_logit_bias_equals_transformers() -> None:
    oracle = transformers.SequenceBiasLogitsProcessor({(3,): 2.5, (7,): -100.0})
    want = oracle(torch.tensor([[1, 2]]), LOGITS[None].clone())[0]
    torch.testing.assert_close(processed(SamplingParams(logit_bias={3: 2.5, 7: -100.0})), want)


def test_only_allowed_tokens_have_a_finite_logit() -> None:
    got = processed(SamplingParams(allowed_token_ids=[2, 9, 9, 4]))
    assert [t for t in range(VOCAB) if got[t].isfinite()] == [2, 4, 9]
    assert torch.equal(got[[2, 4, 9]], LOGITS[[2, 4, 9]])


@pytest.mark.parametrize(("have", "ends"), [(0, False), (2, False), (3, True), (4, True)])
def test_before_min_tokens_nothing_that_ends_a_sequence_can_be_drawn(have: int, ends: bool) -> None:
    got = processed(SamplingParams(min_tokens=3, stop_token_ids=[5]), output=[1] * have, eos_token_ids=frozenset({8, 9}))
    endings = [t for t in range(VOCAB) if not got[t].isfinite()]
    assert endings == ([] if ends else [5, 8, 9])


def test_all_processors_together_equal_their_definition() -> None:
    """Masks, then bias, then the repetition penalty, then presence and frequency."""
    rng = random.Random(2)
    for _ in range(50):
        prompt, output = ([rng.randrange(VOCAB) for _ in range(rng.randrange(1, 9))] for _ in range(2))
        bias = {rng.randrange(VOCAB): rng.uniform(-9, 9) for _ in range(4)}
        params = SamplingParams(
            logit_bias=bias, allowed_token_ids=list(range(20)), bad_words=["x"], min_tokens=5, stop_token_ids=[6],
            repetition_penalty=1.4, presence_penalty=0.3, frequency_penalty=0.2)
        words = [[2], [output[-1], 11]]
        got = processed(params, prompt=prompt, output=output, bad_words_token_ids=words, eos_token_ids=frozenset({7}))
        banned = {2, 11} | ({6, 7} if len(output) < 5 else set())
        want = LOGITS.double().clone()
        for token in range(VOCAB):
            if token >= 20 or token in banned:
                want[token] = -math.inf
            want[token] += bias.get(token, 0.0)
            if token in prompt + output:
                want[token] *= 1 / 1.4 if want[token] > 0 else 1.4
            want[token] -= 0.2 * output.count(token) + 0.3 * (token in output)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_processors_of_one_row_leave_the_others_alone() -> None:
    plain, changed = row(SamplingParams()), row(SamplingParams(logit_bias={3: 50.0}))
    got = apply_processors(LOGITS.repeat(3, 1), [plain, changed, plain])
    assert torch.equal(got[0], LOGITS) and torch.equal(got[2], LOGITS)
    assert got[1].argmax() == 3


@pytest.mark.parametrize("count", [0, 1, 5, VOCAB, -1])
def test_logprobs_are_log_softmax_of_the_raw_logits(count: int) -> None:
    params = SamplingParams(logprobs=count, temperature=0.5, top_k=3, logit_bias={4: 3.0}, seed=1)
    tokens, logprobs = Sampler(VOCAB).sample(LOGITS.repeat(20, 1), [row(params, seed) for seed in range(20)])
    want = torch.log_softmax(LOGITS.double(), dim=-1)
    order = want.argsort(descending=True).tolist()
    for token, found in zip(tokens, logprobs, strict=True):
        assert found is not None
        assert next(iter(found)) == token, "the chosen token comes first"
        assert set(found) == {token, *(order if count == -1 else order[:count])}
        for i, logprob in found.items():
            assert logprob.logprob == pytest.approx(float(want[i]), abs=1e-5)
            assert logprob.rank == order.index(i) + 1


def test_only_rows_that_ask_get_logprobs() -> None:
    _, logprobs = Sampler().sample(LOGITS.repeat(2, 1), [row(SamplingParams()), row(SamplingParams(logprobs=0))])
    assert logprobs[0] is None and logprobs[1] is not None and len(logprobs[1]) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_sampled_in_float32(dtype: torch.dtype) -> None:
    logits = LOGITS.to(dtype)
    tokens = sample(logits, [row(SamplingParams(temperature=0.8, top_p=0.9), seed) for seed in range(DRAWS)])
    check_distribution(tokens, warped(logits.float(), SamplingParams(temperature=0.8, top_p=0.9)))


def test_masks_alone_forbid_tokens_and_leave_bias_and_penalties_to_the_sampler() -> None:
    plain = row(SamplingParams(logit_bias={3: 50.0}, repetition_penalty=2.0))
    some = row(SamplingParams(allowed_token_ids=[2, 4], bad_words=["x"]), bad_words_token_ids=[[4]])
    logits = LOGITS.repeat(2, 1)
    got = apply_masks(logits, [plain, some])
    assert torch.equal(logits, LOGITS.repeat(2, 1)), "the logits given were changed"
    assert torch.equal(got[0], LOGITS) and [t for t in range(VOCAB) if got[1, t].isfinite()] == [2]
    assert apply_masks(logits, [plain, plain]) is logits, "nothing to mask, nothing to copy"
    with pytest.raises(ValueError, match="no token is allowed"):
        apply_masks(logits, [plain, row(SamplingParams(allowed_token_ids=[4], bad_words=["x"]), bad_words_token_ids=[[4]])])


# --- a large vocabulary: only what a filter may leave is sorted


LARGE = 8192
LARGE_FILTERS = [(20, 0.95), (20, 1.0), (1, 1.0), (200, 0.5), (0, 0.9), (0, 0.3), (0, 0.9999)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("top_k", "top_p"), LARGE_FILTERS)
def test_drawing_from_few_tokens_is_drawing_from_all(top_k, top_p, dtype):
    logits = (torch.randn(64, LARGE, generator=torch.Generator().manual_seed(5)) * 4).to(dtype)
    logits[5] = logits[5].round()  # hundreds of equal logits
    logits[6] = 0.0
    logits[7, 3:] = float("-inf")
    filters = {"top_k": top_k, "top_p": top_p}
    rows = [row(SamplingParams(temperature=0.3 + i / 50, min_p=i % 3 * 0.05, **filters), seed=i) for i in range(64)]
    few, every = draw_of_few(logits, rows, top_k, top_p), draw_of_all(logits, rows, top_k, top_p)
    assert few.tolist() == every.tolist()


def test_the_largest_logits_are_found_group_by_group():
    for vocab in (100, LARGE, LARGE + 5):
        logits = torch.randn(9, vocab, generator=torch.Generator().manual_seed(6))
        values, ids = largest(logits, 21)
        assert torch.equal(values, torch.topk(logits, 21).values) and torch.equal(logits.gather(1, ids), values)


def test_a_row_is_drawn_alike_whoever_is_beside_it_in_a_large_vocabulary():
    logits = torch.randn(40, LARGE, generator=torch.Generator().manual_seed(7))
    rows = [row(SamplingParams(top_k=20, top_p=0.95), seed=i) for i in range(40)]
    together, _ = Sampler().sample(logits, rows)
    assert together == [Sampler().sample(logits[i : i + 1], rows[i : i + 1])[0][0] for i in range(40)]


def test_what_is_nan_is_refused_in_a_large_vocabulary():
    logits = torch.randn(2, LARGE)
    logits[1, 77] = float("nan")
    with pytest.raises(FloatingPointError):
        Sampler().sample(logits, [row(SamplingParams(top_k=20)), row(SamplingParams(top_k=20))])


# --- counting what was generated


class Counted(list):
    """A list that counts how many of its entries were read."""

    reads = 0

    def __getitem__(self, key):
        got = super().__getitem__(key)
        self.reads += len(got) if isinstance(key, slice) else 1
        return got


def test_counts_of_a_growing_output_are_those_of_the_whole():
    rng = random.Random(8)
    prompt, output, counts = [3, 3, 9], [], TokenCounts([3, 3, 9])
    for _ in range(200):
        output += [rng.randrange(30) for _ in range(rng.randint(0, 4))]
        ids, numbers = counts.upto(output)
        assert dict(zip(ids.tolist(), numbers.tolist(), strict=True)) == {t: output.count(t) for t in {*prompt, *output}}


def test_a_penalty_after_four_thousand_tokens_looks_at_the_newest_alone():
    output, counts = Counted(i % 100 for i in range(4000)), TokenCounts([1])
    counts.upto(output)
    output.reads = 0
    output.append(7)
    counts.upto(output)
    assert output.reads == 1


def test_penalties_are_the_same_with_counts_that_are_kept():
    params = SamplingParams(temperature=0.0, presence_penalty=0.5, frequency_penalty=0.3, repetition_penalty=1.3)
    logits, counts, output = torch.randn(1, 50), TokenCounts([1, 2]), []
    for _ in range(30):
        kept = SamplingRow(params, [1, 2], output, 0, token_counts=counts)
        (token,), _ = Sampler().sample(logits, [kept])
        assert Sampler().sample(logits, [SamplingRow(params, [1, 2], output, 0)])[0] == [token]
        output = [*output, token]
