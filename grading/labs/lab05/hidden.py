"""What only the judge asks of Lab 05: other prompts where practice asks transformers, and steps that really take time."""

import random
from typing import Any

import torch

from grading.judge.suite import hidden, tests_in
from labs.harness.catalog import find_lab

SUITE: Any = tests_in(find_lab("05").folder)


def check_best_tokens(there: Any, generate: Any, network: Any, prompt: list[int], count: int) -> None:
    """The tokens with the largest logits."""
    tokens, expected = SUITE.generated(there, generate, network, prompt, count), network.continuation(prompt, count)
    assert tokens == expected, f"after the prompt {prompt} the tokens with the largest logits are {expected}; got {tokens}"


@hidden("test_todo_1_tokens_are_those_of_transformers", concept="which token comes next, and when a generation ends")
def test_todo_1_a_generation_goes_on_past_the_end_of_a_sequence(lab: Any, rng: random.Random, there: Any) -> None:
    for length, count in ((rng.randrange(4, 9), rng.randrange(3, 7)), (1, 5), (4, 6)):
        network = SUITE.PlayedNetwork(rng, all_end=True)  # every token ends a sequence
        check_best_tokens(there, lab.generate_uncached, network, SUITE.any_prompt(rng, length), count)


@hidden("test_todo_2_tokens_are_those_of_transformers", concept="which token comes next, and when a generation ends")
def test_todo_2_tokens_with_a_cache_are_those_without(lab: Any, rng: random.Random, there: Any) -> None:
    for length, count in ((rng.randrange(4, 9), rng.randrange(3, 7)), (1, 5), (rng.randrange(5, 9), 9)):
        network = SUITE.PlayedNetwork(rng, rng.choice((torch.float32, torch.bfloat16)), all_end=True)
        check_best_tokens(there, lab.generate_cached, network, SUITE.any_prompt(rng, length), count)


@hidden("test_todo_2_tokens_are_those_of_transformers", concept="layers, each by itself")
def test_todo_2_each_layer_counts_for_itself_in_any_order(lab: Any, rng: random.Random, there: Any) -> None:
    ledger = SUITE.Ledger(lab, there, rng, room=rng.randrange(8, 14))
    for _ in range(40):
        layer, count = rng.choice(ledger.layers[:3]), rng.randrange(1, 4)
        if ledger.holds(layer) + count > ledger.room:
            ledger.refuses(layer, count)
        else:
            ledger.append(layer, count, strided=rng.random() < 0.3)


@hidden("test_todo_6_the_program_predicts_and_measures", concept="measuring as the program does")
def test_todo_6_by_default_steps_are_timed_with_median_seconds(lab: Any, rng: random.Random, there: Any) -> None:
    batches = rng.sample(range(1, 65), 3)
    naps = rng.sample([rng.uniform(0.001, 0.003), rng.uniform(0.02, 0.04), rng.uniform(0.1, 0.2)], 3)
    decoding = SUITE.Decoding(there, {}, dict(zip(batches, naps, strict=True)))  # no one number of seconds is right for all
    for batch, rate in decoding.measured(lab, tuple(batches)).items():
        assert batch in decoding.since, f"no step of {batch} sequences was done"
        began, ended = decoding.since[batch]
        steps, least, most = decoding.log.count(("step", batch)), batch / (ended - began), batch / decoding.naps[batch]
        assert least <= rate <= most, (
            f"a step of {batch} sequences sleeps {decoding.naps[batch]:g} seconds, and all its steps together took "
            f"{ended - began:g}: between {least:g} and {most:g} tokens/s are possible, not {rate:g}")
        assert steps > 1, f"a step of {batch} was done {steps} times: once to warm up, and then timed"
