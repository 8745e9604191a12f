"""Engines whose tokens a test chooses, and what runs beside a part."""

import random
import time
from types import SimpleNamespace

import numpy
import pytest
import torch

from labs.harness.scripted_engine.engines import read_outputs, scripted_async_engine, scripted_llm
from labs.harness.scripted_engine.ledger import Ledger, PatientLedger, assert_served
from labs.harness.scripted_engine.own_engine import clear_prompts, exactly, own_llm, some_prompts, tokenizer
from labs.harness.suite import beside
from labs.harness.suite.expecting import Here
from nano_qwen3_serving import SamplingParams


def test_an_engine_says_what_the_ledger_chose_and_the_ledger_knows_who_shared_steps():
    rng = random.Random(1)
    ledger, prompts = Ledger(rng), some_prompts(rng, 3)
    outputs = read_outputs(Here(), scripted_llm(Here(), ledger).generate(prompts, [exactly(count) for count in (2, 4, 4)]))
    assert [len(step) for step in ledger.steps] == [3, 3, 2, 2]
    assert [output["tokens"] for output in outputs] == [served.tokens for served in ledger.requests]
    assert_served(ledger, outputs, prompts)
    with pytest.raises(AssertionError, match="prompt 1, .* says that it is of"):
        assert_served(ledger, outputs[::-1], prompts)
    with pytest.raises(AssertionError, match="not what this engine generated for it, or it stands there twice"):
        assert_served(ledger, [outputs[0], outputs[0]], [prompts[0]] * 2)


def test_a_script_says_the_whole_answer_and_then_the_text_ends():
    ledger = Ledger(random.Random(1), lambda prompt, params: tokenizer().encode(f"It is {params['max_tokens']}."))
    [output] = scripted_llm(Here(), ledger).generate("?", SamplingParams(temperature=0.0, max_tokens=40))
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("It is 40.", "stop")


def test_a_patient_ledger_waits_until_those_who_could_share_a_step_have_done_so():
    rng, there = random.Random(1), Here()
    ledger, prompts = PatientLedger(rng, 3), some_prompts(rng, 3)
    engine = scripted_async_engine(there, ledger)
    there.awaited(beside.read_all, engine.generate, [(prompt, exactly(8), prompt) for prompt in prompts])
    there.close()
    assert ledger.most == 3


def test_the_models_say_of_clear_prompts_what_is_said_of_them_and_differ():
    for known in clear_prompts(random.Random(1), 2, 5):
        for model in ("course", "course-draft"):
            [output] = own_llm(model).generate(known["prompt"], exactly(5))
            assert output.outputs[0].token_ids == known[model]
        assert known["course"] != known["course-draft"]


def test_clocks_and_random_numbers_go_on_afterwards():
    module, before = SimpleNamespace(clock=time.perf_counter), time.time
    assert len(set(beside.called_while_clocks_stand(lambda: (module.clock(), time.time_ns()), module, 9))) == 1
    assert time.time is before and module.clock is time.perf_counter and time.perf_counter() < time.perf_counter()

    def draw() -> tuple:
        return random.random(), numpy.random.random(), torch.rand(1).item()

    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
    alone = [draw() for _ in range(2)]
    random.seed(1), numpy.random.seed(1), torch.manual_seed(1)
    first = draw()
    seeded, again = (beside.called_after_seeding(draw, 7, 2) for _ in range(2))
    assert seeded == again and [first, draw()] == alone
