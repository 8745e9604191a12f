"""What only the judge asks of Lab 03."""

import random
from typing import Any

import torch

from grading.judge.suite import hidden, tests_in
from labs.harness.catalog import find_lab

tests = tests_in(find_lab("03").folder)


@hidden("test_todo_6_the_network_equals_transformers", concept="the whole network")
def test_todo_6_the_network_gives_the_logits_of_the_formulas(lab: Any, rng: random.Random, there: Any) -> None:
    for group in tests.GROUPS:
        config, noise = tests.shape_of(rng, group, layers=3), tests.Noise(rng)
        model = tests.Model(lab, there, config, noise, attend=lab.causal_attention)
        for length, first in ((1, 0), (rng.randrange(12, 20), 0), (rng.randrange(3, 10), rng.randrange(40, 100))):
            text = noise.tokens(length, config)
            step = tests.Step([tests.Chunk(0, length, *tests.tables(rng, length))], first=first)
            expected, what = model.truth.logits(text, first)[-1:], f"logits after {length} tokens, positions from {first}"
            tests.near(model.last_logits(step, [text]), expected, what, tests.NETWORK, axes=tests.LOGITS)


@hidden("test_todo_6_the_engine_with_your_network_equals_transformers", concept="the network in an engine")
def test_todo_6_chunks_of_many_requests_give_what_each_gives_alone(lab: Any, rng: random.Random, there: Any) -> None:
    config, noise = tests.shape_of(rng, rng.choice(tests.GROUPS), layers=2), tests.Noise(rng)
    model, lengths = tests.Model(lab, there, config, noise), [rng.randrange(1, 13) for _ in range(4)]
    texts, places, done = [noise.tokens(length, config) for length in lengths], tests.tables(rng, *lengths), [0] * 4
    expected = [model.truth.logits(text) for text in texts]
    while waiting := [request for request in range(4) if done[request] < lengths[request]]:
        chosen = rng.sample(waiting, rng.randint(1, len(waiting)))
        plan = [(request, min(lengths[request], done[request] + rng.choice([1, 1, 3, 5]))) for request in chosen]
        plan.sort(key=lambda chunk: chunk[1] - done[chunk[0]] > 1)  # those of one token first
        step = tests.Step([tests.Chunk(done[request], end, places[request]) for request, end in plan], padding=rng.randrange(4))
        hidden_states = model.hidden(step, [texts[request] for request, _ in plan])
        size = (len(step.slots), config.hidden_size)
        tests.assert_tensor(hidden_states, "hidden states", size, torch.float32, tests.COLUMNS)
        logits = model.network.compute_logits(hidden_states[step.rows])
        truth = torch.stack([expected[request][end - 1] for request, end in plan])
        tests.near(logits, truth, f"a step of {step.query_lens} tokens of its requests", tests.NETWORK, axes=tests.LOGITS)
        for request, end in plan:
            done[request] = end
