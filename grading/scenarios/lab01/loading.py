"""Lab 01, TODO 1: which model is loaded, what is handed on, and which errors come through."""

import random
from typing import Any

from grading.judge.checks import check, expect, refusal, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.engines import is_a, spare_memory, tokens_of
from labs.harness.scripted_engine.own_engine import clear_prompts, exactly

LOAD = "TODO 1: Load the model"


def loaded(lab: Remote, *arguments: Any, **named: Any) -> Remote:
    """What load_llm() returns, which must be an engine."""
    llm = lab.load_llm(*arguments, **named)
    expect(is_a(lab, llm, "nano_qwen3_serving", "LLM"), f"load_llm() returned {shown(llm)}; expected an LLM")
    return llm


def expect_model(llm: Remote, model: str, rng: random.Random, how: str) -> None:
    """The tokens that an engine generates are those of this model."""
    for known in clear_prompts(rng, 2):
        found, right = tokens_of(llm.generate(known["prompt"], exactly(6))[0]), known[model]
        expect(found == right,
               f"{how} must load {model!r}, which answers {known['prompt']!r} with the tokens {right}; it answered with "
               f"{shown(found)}")


@check(todo=1, points=3, section=LOAD, concept="which model is served")
def loads_the_course_model_and_it_answers(lab: Remote, rng: random.Random) -> None:
    spare_memory(lab)
    expect_model(loaded(lab), "course", rng, "load_llm()")


@check(todo=1, points=3, section=LOAD, concept="the model and the length that were asked for")
def hands_on_the_model_and_the_length(lab: Remote, rng: random.Random) -> None:
    spare_memory(lab)
    for model in rng.sample(["course", "course-draft"], 2):
        most = rng.randrange(20, 60)
        llm = loaded(lab, model, max_model_len=most)
        expect_model(llm, model, rng, f"load_llm({model!r}, max_model_len={most})")
        long = {"prompt_token_ids": [rng.randrange(300, 2000) for _ in range(most + 1)]}
        refusal("PromptTooLongError", lambda llm=llm, long=long: llm.generate(long, exactly(1)),
                f"an engine of max_model_len={most} was given {len(long['prompt_token_ids'])} tokens: is the length handed on?")


@check(todo=1, points=1, section=LOAD, concept="how long prompt and output may be together", hidden=True)
def prompt_and_output_share_the_length(lab: Remote, rng: random.Random) -> None:
    spare_memory(lab)
    most = rng.randrange(24, 48)
    prompt = [rng.randrange(300, 2000) for _ in range(rng.randrange(4, 20))]
    [output] = loaded(lab, "course-draft", most).generate({"prompt_token_ids": prompt}, exactly(200))
    room = most - len(prompt)
    expect(len(tokens_of(output)) == room,
           f"max_model_len={most} leaves a prompt of {len(prompt)} tokens {room}; it generated {len(tokens_of(output))}")


@check(todo=1, points=2, section=LOAD, concept="an engine for each call")
def every_call_loads_an_engine_of_its_own(lab: Remote, rng: random.Random) -> None:
    spare_memory(lab)
    few, prompt = rng.randrange(16, 24), [rng.randrange(300, 2000) for _ in range(30)]
    short, long, again = (loaded(lab, "course-draft", max_model_len=length) for length in (few, 2 * few + 4, 2 * few + 4))
    found = tokens_of(long.generate({"prompt_token_ids": prompt}, exactly(2))[0])
    expect(len(found) == 2, f"an engine of max_model_len={2 * few + 4} answered 30 tokens with {shown(found)}; expected 2")
    refusal("PromptTooLongError", lambda: short.generate({"prompt_token_ids": prompt}, exactly(2)),
            f"an engine of max_model_len={few} was given 30 tokens, after another of {2 * few + 4} was loaded")
    expect(not lab._peer.root.package("operator").is_(again.llm_engine, long.llm_engine),
           f"load_llm('course-draft', {2 * few + 4}) was called twice and gave the same engine; each call creates a new LLM, "
           "whatever was asked for before")


@check(todo=1, points=1, section=LOAD, concept="a model that is not there", hidden=True)
def lets_the_error_of_a_wrong_model_through(lab: Remote, rng: random.Random) -> None:
    spare_memory(lab)
    name = f"/no/such/model/{rng.randrange(10**6)}"
    refusal("ModelLoadError", lambda: lab.load_llm(name),
            f"there is no model {name!r}, and the engine's own error has to come through")
