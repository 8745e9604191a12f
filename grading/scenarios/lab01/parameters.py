"""Lab 01, TODO 2: what the functions return is rebuilt here, value by value, and used here."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from grading.judge.checks import check, expect, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.engines import is_a
from labs.harness.scripted_engine.engines import scripted_llm
from labs.harness.scripted_engine.ledger import Ledger
from labs.harness.scripted_engine.own_engine import own_llm, tokenizer, words
from labs.harness.suite.beside import params_facts
from labs.harness.suite.expecting import Here
from nano_qwen3_serving import CompletionOutput, SamplingParams

OPENINGS = [
    "Once upon a time", "The password was", "The map showed", "The robot opened the door and", "In my bag there is",
    "My favourite colour is", "The soup tasted like", "Tomorrow we will"]
"""Beginnings with eight or more endings, all about equally likely."""

PARAMS = "TODO 2: Sampling parameters for three tasks"

LIMITS = {"fact_params": 64, "story_params": 32, "sentence_params": 24}


def rebuilt(lab: Remote, returned: Any) -> SamplingParams:
    """The parameters that a function returned, as the judge's own."""
    expect(is_a(lab, returned, "nano_qwen3_serving", "SamplingParams"),
           f"it returned {shown(returned)}; expected SamplingParams")
    facts = {name: getattr(returned, name) for name in params_facts(SamplingParams())}
    expect(len(repr(facts)) < 3000 and facts["structured_outputs"] is None,
           f"the contract asks for no parameters such as {shown(facts)}")
    expect(facts["n"] == 1, f"n is {facts['n']}; the contract asks for one answer")
    facts["max_tokens"] = min(facts["max_tokens"] or 200, 200)
    return SamplingParams(**{**facts, "logprobs": None, "prompt_logprobs": None})


def story(lab: Remote, seed: int) -> SamplingParams:
    """The submission's parameters for a story, as an object of ours."""
    return rebuilt(lab, lab.story_params(seed))


def answers(prompts: Sequence[str], params: Sequence[SamplingParams], limit: int | None = None) -> list[list[int]]:
    """What the course model generates with each, all in one batch; nothing depends on the batch."""
    if limit is not None:
        params = [replace(one, max_tokens=min(limit, one.max_tokens or limit)) for one in params]
    return [output.outputs[0].token_ids for output in own_llm("course", True).generate(prompts, params, use_tqdm=False)]


def said(answer: str, params: SamplingParams, ends: bool = True) -> CompletionOutput:
    """What a caller sees of a model that says `answer`, and then ends, or never does."""
    tokens = tokenizer().encode(answer)
    ledger = Ledger(random.Random(0), lambda prompt, _: tokens if ends else tokens * 20)
    [output] = scripted_llm(Here(), ledger).generate("?", params, use_tqdm=False)
    return output.outputs[0]


def expect_likeliest(mine: SamplingParams, what: str) -> None:
    """Every token is the likeliest, where several are about equally likely."""
    greedy = SamplingParams(temperature=0.0, max_tokens=8)
    prompts = OPENINGS * 2
    found, right = answers(prompts, [mine] * len(prompts), 8), answers(prompts, [greedy] * len(prompts), 8)
    differ = sorted({prompt for prompt, got, best in zip(prompts, found, right, strict=True) if got != best[: len(got)]})
    expect(not differ,
           f"{what}: {len(differ)} of {len(OPENINGS)} texts were not made of the likeliest tokens, {differ[:1]} for one. "
           "temperature=1.0 draws at random; a fixed seed only repeats the same luck")
    names = ["presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "allowed_token_ids", "bad_words"]
    more = {name: getattr(mine, name) for name in names if getattr(mine, name) != getattr(SamplingParams(), name)}
    expect(not more, f"{what}: the contract says the likeliest token, every time; {more} can make another one the likeliest")


@check(todo=2, points=5, section=PARAMS, concept="which token a fact takes")
def a_fact_takes_the_likeliest_token_every_time(lab: Remote, rng: random.Random) -> None:
    expect_likeliest(rebuilt(lab, lab.fact_params()), "fact_params()")


@check(todo=2, points=3, section=PARAMS, concept="where a fact ends")
def a_fact_is_said_to_its_end(lab: Remote, rng: random.Random) -> None:
    mine = rebuilt(lab, lab.fact_params())
    for count in (rng.randrange(12, 20), rng.randrange(20, 30)):
        answer = f"It is 2.{count}. {words(rng, count)}?\n\nSo, {words(rng, 5)}; {words(rng, 1)}! "
        found = said(answer, mine)
        expect((found.text, found.finish_reason) == (answer, "stop"),
               f"a model that said {answer!r} and ended was heard to say {found.text!r}, "
               f"finish reason {found.finish_reason!r}. What is max_tokens if nobody says it?")


@check(todo=2, points=3, section=PARAMS, concept="another seed")
def another_seed_tells_another_story(lab: Remote, rng: random.Random) -> None:
    openings, seeds = rng.sample(OPENINGS, 4), rng.sample(range(10**6), 16)
    params = [story(lab, seed) for seed in seeds]
    told = {(prompt, *tokens) for prompt in openings for tokens in answers([prompt] * 16, params)}
    expect(len(told) >= 8,
           f"16 seeds told {len(told)} different stories about {len(openings)} beginnings, 64 being the most: do they "
           "depend on the seed?")


@check(todo=2, points=2, section=PARAMS, concept="which numbers are seeds", hidden=True)
def every_number_is_a_seed_of_its_own(lab: Remote, rng: random.Random) -> None:
    low = rng.randrange(1, 100)
    seeds = [0, low, *(low + 2**power for power in (4, 8, 16, 31, 32, 40)), low + 1000]
    given = {seed: story(lab, seed).seed for seed in seeds}
    expect(None not in given.values(), f"of the seeds {seeds} some are handed on as None: {shown(given)}")
    alike = [seed for seed, handed_on in given.items() if list(given.values()).count(handed_on) > 1]
    expect(not alike, f"the seeds {alike} are handed on as {[given[seed] for seed in alike]}: other seeds, and the same story")


@check(todo=2, points=3, section=PARAMS, concept="the same seed")
def the_same_seed_tells_the_same_story_alone_or_in_company(lab: Remote, rng: random.Random) -> None:
    seeds = rng.sample(range(10**6), len(OPENINGS))
    twice = [story(lab, seed) for seed in seeds * 2]
    told = answers(OPENINGS * 2, twice)
    for opening, seed, one, two in zip(OPENINGS, seeds, told, told[len(seeds) :], strict=False):
        expect(one == two,
               f"in one batch, {opening!r} with seed {seed} twice gave two stories, {tokenizer().decode(one)!r} and "
               f"{tokenizer().decode(two)!r}")
    place = rng.randrange(len(seeds))
    [alone] = answers([OPENINGS[place]], [story(lab, seeds[place])])
    expect(alone == told[place], f"{OPENINGS[place]!r} with seed {seeds[place]} gave one story in a batch and another alone")


@check(todo=2, points=2, section=PARAMS, concept="what a story is drawn from", hidden=True)
def a_story_is_drawn_from_what_the_contract_says(lab: Remote, rng: random.Random) -> None:
    seed = rng.randrange(10**6)
    mine, plain = story(lab, seed), SamplingParams()
    expect(math.isclose(mine.temperature, 0.8, rel_tol=1e-6) and math.isclose(mine.top_p, 0.9, rel_tol=1e-6),
           f"temperature {mine.temperature} and top_p {mine.top_p}; the contract says 0.8, and 90 % of the probability")
    rules = ["top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "allowed_token_ids",
             "bad_words"]
    more = {rule: getattr(mine, rule) for rule in rules if getattr(mine, rule) != getattr(plain, rule)}
    expect(not more, f"temperature, top_p and the seed choose the token, says the contract; here {more} does, too")
    answer = f"{words(rng, 3)}. {words(rng, 4)}?\n\n{words(rng, 3)}, {words(rng, 4)}!\n{words(rng, 4)}"
    found = said(answer, mine)
    expect((found.text, found.finish_reason) == (answer, "stop"),
           f"a story ends when the model ends it; of {answer!r} there was {found.text!r}, finish reason {found.finish_reason!r}")


@check(todo=2, points=2, section=PARAMS, concept="a sentence of the likeliest tokens")
def one_sentence_is_made_of_the_likeliest_tokens_and_ends_with_its_full_stop(lab: Remote, rng: random.Random) -> None:
    mine = rebuilt(lab, lab.sentence_params())
    expect_likeliest(mine, "sentence_params()")
    first = words(rng, rng.randrange(3, 9))
    expect_sentence(mine, f"{first}. {words(rng, 9)}.", f"{first}.")


@check(todo=2, points=2, section=PARAMS, concept="where a sentence ends", hidden=True)
def a_sentence_ends_with_its_first_full_stop_wherever_that_is(lab: Remote, rng: random.Random) -> None:
    mine = rebuilt(lab, lab.sentence_params())
    number = rng.randrange(10, 99)
    expect_sentence(mine, f"It takes {number}.{number} seconds, {words(rng, 4)}.", f"It takes {number}.")
    expect_sentence(mine, f"\nA{number}?! So: {words(rng, 3)}.\n{words(rng, 5)}.", None)
    expect_sentence(mine, f". {words(rng, 3)}.", ".")
    marks = rng.sample([*"!?,;:", "\n", "\n\n"], 7)
    unfinished = "".join(f" {words(rng, 1)}{mark}" for mark in marks)
    found = said(unfinished, mine)
    expect((found.text, found.finish_reason) == (unfinished, "stop"),
           f"{unfinished!r} has no '.', and then the model ended it; there came {found.text!r}, "
           f"finish reason {found.finish_reason!r}, of {len(found.token_ids)} tokens")


def expect_sentence(mine: SamplingParams, answer: str, sentence: str | None) -> None:
    """With the parameters the engine stops after `sentence`, or else after the first full stop."""
    sentence = sentence or answer[: answer.index(".") + 1]
    found = said(answer, mine)
    expect((found.text, found.finish_reason) == (sentence, "stop"),
           f"of {answer!r}, up to the first '.' and with it, {sentence!r} is right; "
           f"there came {found.text!r}, finish reason {found.finish_reason!r}")


@check(todo=2, points=3, section=PARAMS, concept="how long a text may become", hidden=True)
def nobody_speaks_longer_than_the_contract_allows(lab: Remote, rng: random.Random) -> None:
    mine = {"fact_params": lab.fact_params(), "story_params": lab.story_params(rng.randrange(99)),
            "sentence_params": lab.sentence_params()}
    endless = f"{words(rng, 12)},"
    found = {name: said(endless, rebuilt(lab, params), ends=False) for name, params in mine.items()}
    used = {name: len(completion.token_ids) for name, completion in found.items()}
    expect(used == LIMITS, f"a model that never ends was stopped after {used} tokens; the contract says {LIMITS}")
