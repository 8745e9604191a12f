"""What only the judge asks of Lab 04."""

import random
from typing import Any

import torch

from grading.judge.suite import hidden, tests_in
from labs.harness.catalog import find_lab
from nano_qwen3_serving import SamplingParams

tests = tests_in(find_lab("04").folder)


@hidden("test_todo_5_a_draw_does_not_depend_on_the_rows_beside_it",
        "test_todo_5_of_a_row_seed_index_and_position_count_and_nothing_else", concept="other batches",
        repeats="in another run of the program the same rows, drawn in another order, gave other tokens")
def test_todo_5_a_draw_is_the_same_in_any_batch_and_at_any_time(
        lab: Any, rng: random.Random, there: Any, which: int) -> list[int]:
    places = tests.written_texts(rng, 10, 10)
    if which:  # what is remembered, or drawn one after the other, is then another place's
        tests.drawn_at(lab, there, tests.seeds_from(rng, 200))
        tests.drawn_at(lab, there, places[::-1])
    together = tests.drawn_at(lab, there, places)
    order = rng.sample(range(200), 200)
    logits, others = torch.zeros(400, 4), tests.seeds_from(rng, 200)
    logits[1::2] = torch.tensor([rng.uniform(-3, 3) for _ in range(4)])
    rows = tests.rows_at(there, [place for i, other in zip(order, others, strict=True) for place in (places[i], other)])
    mixed, expected = tests.drawn(lab, logits, rows, 400)[::2], [together[i] for i in order]
    assert mixed == expected, (
        f"in another order, each beside a row with other logits, {tests.differing(mixed, expected)} of 200 draws differ")
    return together


@hidden("test_todo_6_in_the_engine_greedy_tokens_and_logprobs_equal_transformers", concept="greedy in the engine")
def test_todo_6_in_the_engine_greedy_tokens_and_logprobs_are_those_of_its_sampler(lab: Any, rng: random.Random) -> None:
    lab.Sampler().sample(torch.zeros(1, 4), [tests.row(temperature=0.0)])
    prompts = tests.drawn_prompts(rng)
    params = [SamplingParams(temperature=0.0, max_tokens=8, logprobs=count, ignore_eos=True) for count in (None, 3, 5)]
    for [mine], [theirs] in zip(tests.generated(lab, prompts, params), tests.generated(None, prompts, params), strict=True):
        assert mine.token_ids == theirs.token_ids, (
            f"greedy in the engine: expected the tokens {theirs.token_ids}, got {mine.token_ids}")
        for logprobs, expected in zip(mine.logprobs or [], theirs.logprobs or [], strict=True):
            assert set(logprobs) == set(expected), (
                f"log-probabilities in the engine: expected those of the tokens {sorted(expected)}, got {sorted(logprobs)}")
            for token, entry in expected.items():
                # log_softmax of logits of size 20 over the whole vocabulary, in two ways
                assert abs(logprobs[token].logprob - entry.logprob) <= 1e-4, (
                    f"log-probability of token {token} in the engine: expected {entry.logprob:.5f}, got "
                    f"{logprobs[token].logprob:.5f}")
