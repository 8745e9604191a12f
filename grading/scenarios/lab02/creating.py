"""Lab 02, TODO 1: an engine that answers, with what it was told."""

import random
from typing import Any

from grading.judge.checks import check, expect, ours, refusal, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.engines import as_it_is, expect_served, is_a, spare_memory, tokens_of
from grading.scenarios.lab02.streams import all_outputs, parts
from labs.harness.scripted_engine.ledger import PatientLedger
from labs.harness.scripted_engine.own_engine import clear_prompts, exactly, some_prompts

CREATE = "TODO 1: Initialize AsyncLLMEngine"


def created(lab: Remote, *arguments: Any, **named: Any) -> Remote:
    """What create_engine() returns, which must be an engine."""
    spare_memory(lab)
    engine = lab.create_engine(*arguments, **named)
    expect(is_a(lab, engine, "nano_qwen3_serving", "AsyncLLMEngine"),
           f"create_engine() returned {shown(engine)}; expected an AsyncLLMEngine")
    return engine


def expect_model(lab: Remote, engine: Remote, model: str, rng: random.Random) -> None:
    """The tokens that an engine generates are those of this model."""
    for known in clear_prompts(rng, 2):
        last = engine.generate(known["prompt"], exactly(6), f"req-{rng.randrange(10**6)}")[-1]
        expect(last.finished, "the engine's last output says that it is not finished")
        expect(tokens_of(last) == known[model],
               f"an engine that serves {model!r} answers {known['prompt']!r} with the tokens {known[model]}; "
               f"this one answered with {shown(tokens_of(last))}")


@check(todo=1, points=4, section=CREATE, concept="an engine that answers")
def creates_an_engine_that_answers(lab: Remote, rng: random.Random) -> None:
    expect_model(lab, created(lab), "course", rng)


@check(todo=1, points=4, section=CREATE, concept="how many requests run at once")
def hands_on_how_many_requests_may_run_at_once(lab: Remote, rng: random.Random) -> None:
    for most in (rng.randrange(1, 4), rng.randrange(17, 24)):
        engine, ledger = created(lab, "course-draft", max_num_seqs=most), PatientLedger(rng, most)
        engine.engine.model_runner.sampler = parts(lab).asking_sampler(ours(ledger.choose))(None)
        prompts = some_prompts(rng, most + 2)
        streams = [as_it_is(lab, engine.generate, prompt, exactly(12), f"req-{place}") for place, prompt in enumerate(prompts)]
        outputs = [every[-1] for every in all_outputs(lab, *streams)]
        expect_served(ledger, outputs, prompts)
        expect(ledger.most == most,
               f"with max_num_seqs={most}, {most} of {most + 2} requests should run at once, never more; here at most "
               f"{ledger.most} shared a step")


@check(todo=1, points=1, section=CREATE, concept="an engine for each call")
def every_call_makes_an_engine_of_its_own(lab: Remote, rng: random.Random) -> None:
    most, [prompt] = rng.randrange(1, 8), some_prompts(rng, 1)
    first, second = (created(lab, "course-draft", max_num_seqs=most) for _ in range(2))
    expect(not lab._peer.root.package("operator").is_(first, second),
           "two calls of create_engine() with the same arguments returned the same engine: shutting down one shuts down both")
    first.shutdown()
    outputs = second.generate(prompt, exactly(2), "req-second")
    expect(bool(outputs) and outputs[-1].finished,
           "create_engine() was called twice, and the first engine was shut down; now the second one does not answer")


@check(todo=1, points=2, section=CREATE, concept="a model that is not there")
def lets_the_error_of_a_wrong_model_through(lab: Remote, rng: random.Random) -> None:
    spare_memory(lab)
    name = f"/no/such/model/{rng.randrange(10**6)}"
    refusal("ModelLoadError", lambda: lab.create_engine(name),
            f"there is no model {name!r}, and the engine's own error has to reach the caller")


@check(todo=1, points=4, section=CREATE, concept="which model is served", hidden=True)
def serves_the_model_that_was_asked_for(lab: Remote, rng: random.Random) -> None:
    for model in rng.sample(["course", "course-draft"], 2):
        expect_model(lab, created(lab, model, max_num_seqs=rng.randrange(2, 9)), model, rng)
