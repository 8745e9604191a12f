"""Lab 01: parameters are tried on the judge's own engine; of batches and chats the judge chooses every token.

`engines.py` says how. An answer that was not computed by the engine that was given, in the steps that
the judge saw, has other tokens than the judge chose.
"""

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, get_args

from grading.checks import check, expect, hold, look, ours, refusal, shown
from grading.scenarios.engines import (
    Ledger,
    Served,
    as_it_is,
    clear_prompts,
    exactly,
    expect_served,
    is_a,
    judges_llm,
    llm_beside,
    llm_here,
    some_prompts,
    spare_memory,
    stdout_of,
    tokenizer,
    tokens_of,
    words,
)
from grading.worker.parts import params_facts
from grading.worker.peer import Remote
from labs.harness import loading
from labs.harness.catalog import find_lab
from nano_qwen3_serving import CompletionOutput, RequestOutput, SamplingParams
from nano_qwen3_serving.outputs import FinishReason, RequestMetrics

OPENINGS = [
    "Once upon a time", "The password was", "The map showed", "The robot opened the door and", "In my bag there is",
    "My favourite colour is", "The soup tasted like", "Tomorrow we will"]
"""Beginnings with eight or more endings, all about equally likely."""


# TODO 1

LOAD = "TODO 1: Load the model"


def loaded(lab: Remote, *arguments: Any, **named: Any) -> Remote:
    """What load_llm() returns, which must be an engine."""
    llm = lab.load_llm(*arguments, **named)
    expect(is_a(lab, llm, "nano_qwen3_serving", "LLM"), f"load_llm() returned {shown(llm)}; expected an LLM")
    return llm


def expect_model(llm: Remote, model: str, dice: random.Random, how: str) -> None:
    """The tokens that an engine generates are those of this model."""
    for known in clear_prompts(dice, 2):
        found, right = tokens_of(llm.generate(known["prompt"], exactly(6))[0]), known[model]
        expect(found == right,
               f"{how} must load {model!r}, which answers {known['prompt']!r} with the tokens {right}; it answered with "
               f"{shown(found)}")


@check(todo=1, points=4, section=LOAD, concept="which model is served")
def loads_the_course_model_and_it_answers(lab: Remote, dice: random.Random) -> None:
    spare_memory(lab)
    expect_model(loaded(lab), "course", dice, "load_llm()")


@check(todo=1, points=3, section=LOAD, concept="the model and the length that were asked for")
def hands_on_the_model_and_the_length(lab: Remote, dice: random.Random) -> None:
    spare_memory(lab)
    for model in dice.sample(["course", "course-draft"], 2):
        most = dice.randrange(20, 60)
        llm = loaded(lab, model, max_model_len=most)
        expect_model(llm, model, dice, f"load_llm({model!r}, max_model_len={most})")
        long = {"prompt_token_ids": [dice.randrange(300, 2000) for _ in range(most + dice.randrange(1, 9))]}
        refusal("PromptTooLongError", lambda llm=llm, long=long: llm.generate(long, exactly(1)),
                f"an engine of max_model_len={most} was given {len(long['prompt_token_ids'])} tokens: is the length handed on?")


@check(todo=1, points=2, section=LOAD, concept="how long prompt and output may be together", hidden=True)
def prompt_and_output_share_the_length(lab: Remote, dice: random.Random) -> None:
    spare_memory(lab)
    most = dice.randrange(24, 48)
    prompt = [dice.randrange(300, 2000) for _ in range(dice.randrange(4, 20))]
    [output] = loaded(lab, "course-draft", most).generate({"prompt_token_ids": prompt}, exactly(200))
    room = most - len(prompt)
    expect(len(tokens_of(output)) == room,
           f"max_model_len={most} leaves a prompt of {len(prompt)} tokens {room}; it generated {len(tokens_of(output))}")


@check(todo=1, points=1, section=LOAD, concept="a model that is not there", hidden=True)
def lets_the_error_of_a_wrong_model_through(lab: Remote, dice: random.Random) -> None:
    spare_memory(lab)
    name = f"/no/such/model/{dice.randrange(10**6)}"
    refusal("ModelLoadError", lambda: lab.load_llm(name),
            f"there is no model {name!r}, and the engine's own error has to come through")


# TODO 2: what the functions return is rebuilt here, value by value, and used here

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
    return rebuilt(lab, lab.story_params(seed))


def answers(prompts: Sequence[str], params: Sequence[SamplingParams], limit: int | None = None) -> list[list[int]]:
    """What the course model generates with each, all in one batch; nothing depends on the batch."""
    if limit is not None:
        params = [replace(one, max_tokens=min(limit, one.max_tokens or limit)) for one in params]
    return [output.outputs[0].token_ids for output in judges_llm("course", True).generate(prompts, params, use_tqdm=False)]


def said(answer: str, params: SamplingParams, ends: bool = True) -> CompletionOutput:
    """What a caller sees of a model that says `answer`, and then ends, or never does."""
    tokens = tokenizer().encode(answer)
    ledger = Ledger(random.Random(0), lambda prompt, _: tokens if ends else tokens * 20)
    [output] = llm_here(ledger).generate("?", params, use_tqdm=False)
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


@check(todo=2, points=5, section=PARAMS, concept="which token a fact takes")
def a_fact_takes_the_likeliest_token_every_time(lab: Remote, dice: random.Random) -> None:
    expect_likeliest(rebuilt(lab, lab.fact_params()), "fact_params()")


@check(todo=2, points=3, section=PARAMS, concept="where a fact ends")
def a_fact_is_said_to_its_end(lab: Remote, dice: random.Random) -> None:
    mine = rebuilt(lab, lab.fact_params())
    for count in (dice.randrange(12, 20), dice.randrange(20, 32)):
        answer = f"It is 2.{count}. {words(dice, count)}?\n\nSo, {words(dice, 5)}! "
        found = said(answer, mine)
        expect((found.text, found.finish_reason) == (answer, "stop"),
               f"a model that said {answer!r} and ended was heard to say {found.text!r}, "
               f"finish reason {found.finish_reason!r}. What is max_tokens if nobody says it?")


@check(todo=2, points=4, section=PARAMS, concept="another seed")
def another_seed_tells_another_story(lab: Remote, dice: random.Random) -> None:
    openings, seeds = dice.sample(OPENINGS, 4), dice.sample(range(10**6), 16)
    params = [story(lab, seed) for seed in seeds]
    told = {(prompt, *tokens) for prompt in openings for tokens in answers([prompt] * 16, params)}
    expect(len(told) >= 8,
           f"16 seeds told {len(told)} different stories about {len(openings)} beginnings, 64 being the most: do they "
           "depend on the seed?")


@check(todo=2, points=4, section=PARAMS, concept="the same seed")
def the_same_seed_tells_the_same_story_alone_or_in_company(lab: Remote, dice: random.Random) -> None:
    seeds = dice.sample(range(10**6), len(OPENINGS))
    twice = [story(lab, seed) for seed in seeds * 2]
    told = answers(OPENINGS * 2, twice)
    for opening, seed, one, two in zip(OPENINGS, seeds, told, told[len(seeds) :], strict=False):
        expect(one == two,
               f"in one batch, {opening!r} with seed {seed} twice gave two stories, {tokenizer().decode(one)!r} and "
               f"{tokenizer().decode(two)!r}")
    place = dice.randrange(len(seeds))
    [alone] = answers([OPENINGS[place]], [story(lab, seeds[place])])
    expect(alone == told[place], f"{OPENINGS[place]!r} with seed {seeds[place]} gave one story in a batch and another alone")


@check(todo=2, points=2, section=PARAMS, concept="what a story is drawn from", hidden=True)
def a_story_is_drawn_from_what_the_contract_says(lab: Remote, dice: random.Random) -> None:
    seed = dice.randrange(10**6)
    mine, plain = story(lab, seed), SamplingParams()
    expect(math.isclose(mine.temperature, 0.8, rel_tol=1e-6) and math.isclose(mine.top_p, 0.9, rel_tol=1e-6),
           f"temperature {mine.temperature} and top_p {mine.top_p}; the contract says 0.8, and 90 % of the probability")
    rules = ["top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "allowed_token_ids",
             "bad_words"]
    more = {rule: getattr(mine, rule) for rule in rules if getattr(mine, rule) != getattr(plain, rule)}
    expect(not more, f"temperature, top_p and the seed choose the token, says the contract; here {more} does, too")
    answer = f"{words(dice, 3)}. {words(dice, 8)}!\n{words(dice, 4)}"
    expect(said(answer, mine).text == answer,
           f"a story ends when the model ends it; of {answer!r} there was {said(answer, mine).text!r}")


@check(todo=2, points=2, section=PARAMS, concept="a sentence of the likeliest tokens")
def one_sentence_is_made_of_the_likeliest_tokens_and_ends_with_its_full_stop(lab: Remote, dice: random.Random) -> None:
    mine = rebuilt(lab, lab.sentence_params())
    expect_likeliest(mine, "sentence_params()")
    first = words(dice, dice.randrange(3, 9))
    expect_sentence(mine, f"{first}. {words(dice, 9)}.", f"{first}.")


@check(todo=2, points=2, section=PARAMS, concept="where a sentence ends", hidden=True)
def a_sentence_ends_with_its_first_full_stop_wherever_that_is(lab: Remote, dice: random.Random) -> None:
    mine = rebuilt(lab, lab.sentence_params())
    number = dice.randrange(10, 99)
    expect_sentence(mine, f"It takes {number}.{number} seconds, {words(dice, 4)}.", f"It takes {number}.")
    expect_sentence(mine, f"\nA{number}?! So: {words(dice, 3)}.\n{words(dice, 5)}.", None)


def expect_sentence(mine: SamplingParams, answer: str, sentence: str | None) -> None:
    sentence = sentence or answer[: answer.index(".") + 1]
    found = said(answer, mine)
    expect((found.text, found.finish_reason) == (sentence, "stop"),
           f"of {answer!r}, up to the first '.' and with it, {sentence!r} is right; "
           f"there came {found.text!r}, finish reason {found.finish_reason!r}")


@check(todo=2, points=3, section=PARAMS, concept="how long a text may become", hidden=True)
def nobody_speaks_longer_than_the_contract_allows(lab: Remote, dice: random.Random) -> None:
    mine = {"fact_params": lab.fact_params(), "story_params": lab.story_params(dice.randrange(99)),
            "sentence_params": lab.sentence_params()}
    endless = f"{words(dice, 12)},"
    found = {name: said(endless, rebuilt(lab, params), ends=False) for name, params in mine.items()}
    used = {name: len(completion.token_ids) for name, completion in found.items()}
    expect(used == LIMITS, f"a model that never ends was stopped after {used} tokens; the contract says {LIMITS}")


# TODO 3: the judge's ledger of a batch

BATCH = "TODO 3: A batch in one call"


def batch(
    lab: Remote, llm: Remote, prompts: list[str], params: SamplingParams | list[SamplingParams]
) -> list[tuple[str, Remote]]:
    """What complete_batch() returns, which must be a list of pairs."""
    pairs = as_it_is(lab, lab.complete_batch, llm, prompts, params)
    expect(isinstance(pairs, list),
           f"complete_batch() returned {shown(pairs)}; expected a list of pairs (prompt, RequestOutput)")
    for pair in pairs:
        fits = (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)
                and is_a(lab, pair[1], "nano_qwen3_serving", "RequestOutput"))
        expect(fits, f"complete_batch() returned {shown(pair)} among others; expected pairs (prompt, RequestOutput)")
    return pairs


def expect_from(ledger: Ledger, pairs: Sequence[tuple[str, Remote]], prompts: Sequence[str]) -> None:
    """Every prompt stands beside what the judge had the engine say to it, each request in one place."""
    found = [prompt for prompt, _ in pairs]
    expect(found == list(prompts),
           f"the prompts must come back in the order given, repeated ones too: {prompts}; there came {found}")
    expect_served(ledger, [output for _, output in pairs], prompts)


@check(todo=3, points=6, section=BATCH, concept="one batch for all prompts")
def all_prompts_share_the_steps_of_one_batch(lab: Remote, dice: random.Random) -> None:
    ledger = Ledger(dice)
    prompts, count = some_prompts(dice, dice.randrange(6, 10)), dice.randrange(5, 9)
    pairs = batch(lab, llm_beside(lab, ledger), prompts, exactly(count))
    expect(bool(ledger.steps), "the engine that was given took no step: was another one built? The one given is enough")
    expect(len(ledger.steps) == count,
           f"{len(prompts)} prompts of {count} tokens each took {len(ledger.steps)} steps. In one batch they take {count}: "
           "one call, all prompts")
    expect_from(ledger, pairs, prompts)


@check(todo=3, points=4, section=BATCH, concept="which output belongs to which prompt")
def each_prompt_comes_back_with_its_own_output_in_order(lab: Remote, dice: random.Random) -> None:
    ledger = Ledger(dice)
    prompts = some_prompts(dice, 9)
    prompts.insert(dice.randrange(5, 9), prompts[1])
    limits = dice.sample(range(1, 12), len(prompts))
    limits[0] = 12  # the first is not the first to finish
    pairs = batch(lab, llm_beside(lab, ledger), prompts, [exactly(limit) for limit in limits])
    expect_from(ledger, pairs, prompts)
    used = [len(tokens_of(output)) for _, output in pairs]
    expect(used == limits, f"the prompts have parameters for {limits} tokens, in this order; the outputs have {used}")


@check(todo=3, points=1, section=BATCH, concept="a prompt that comes twice", hidden=True)
def a_prompt_that_comes_twice_is_two_requests(lab: Remote, dice: random.Random) -> None:
    ledger = Ledger(dice)
    one, other = some_prompts(dice, 2)
    prompts = [one, one, other, one]
    drawn = SamplingParams(temperature=1.0, max_tokens=3, ignore_eos=True)
    pairs = batch(lab, llm_beside(lab, ledger), prompts, drawn)
    expect(len(ledger.requests) == 4,
           f"4 prompts, 3 of them the same, were {len(ledger.requests)} requests; expected 4: what is drawn for each is "
           "its own")
    expect_from(ledger, pairs, prompts)


@check(todo=3, points=2, section=BATCH, concept="whose parameters are used", hidden=True)
def uses_the_parameters_it_is_given(lab: Remote, dice: random.Random) -> None:
    one = SamplingParams(temperature=dice.choice([0.3, 0.7]), top_p=0.5, max_tokens=dice.randrange(2, 6), ignore_eos=True,
                         seed=dice.randrange(999))
    several = [one.clone(max_tokens=limit, top_k=limit, seed=7 + limit) for limit in dice.sample(range(2, 9), 2)]
    names = ("temperature", "top_p", "top_k", "seed", "max_tokens")
    for params, each in ((one, [one, one]), (several, several)):
        ledger, prompts = Ledger(dice), some_prompts(dice, 2)
        batch(lab, llm_beside(lab, ledger), prompts, params)
        asked = {tokenizer().decode(served.prompt): {name: served.params.get(name) for name in names}
                 for served in ledger.requests}
        right = {prompt: {name: getattr(given, name) for name in names} for prompt, given in zip(prompts, each, strict=True)}
        expect(asked == right, f"the parameters given are {right}; the engine was asked for {asked}")


@check(todo=3, points=1, section=BATCH, concept="a prompt that the engine refuses")
def the_error_of_a_wrong_prompt_reaches_the_caller(lab: Remote, dice: random.Random) -> None:
    ledger = Ledger(dice)
    llm, prompts = llm_beside(lab, ledger), some_prompts(dice, 3)
    prompts.insert(dice.randrange(1, 4), "")
    refusal("InvalidParametersError", lambda: batch(lab, llm, prompts, exactly(3)), "there is an empty prompt among them")
    expect(not ledger.requests,
           f"{len(ledger.requests)} prompts were computed before the empty one was refused: one call, not a loop")


@check(todo=3, points=1, section=BATCH, concept="parameters that do not fit the prompts", hidden=True)
def the_error_of_a_wrong_number_of_parameters_reaches_the_caller(lab: Remote, dice: random.Random) -> None:
    for number in (2, 4):
        ledger = Ledger(dice)
        llm, prompts = llm_beside(lab, ledger), some_prompts(dice, 3)
        refusal("InvalidParametersError",
                lambda llm=llm, prompts=prompts, number=number: batch(lab, llm, prompts, [exactly(2)] * number),
                f"there are {number} parameters for 3 prompts")
        expect(not ledger.requests,
               f"{len(ledger.requests)} prompts were computed, and there were {number} parameters for 3")


# TODO 4: the judge sees what the model reads, and says what it answers

CHAT = "TODO 4: Chat"


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversation(dice: random.Random, turns: int) -> list[dict[str, str]]:
    """A system message, and so many turns."""
    said = [message(role, f"{words(dice, 4)}.") for _ in range(turns) for role in ("user", "assistant")]
    return [message("system", f"You are a {words(dice, 2)}."), *said]


def turn(
    lab: Remote, llm: Remote, ledger: Ledger, history: list[dict] | Remote, question: str, params: SamplingParams
) -> tuple[Any, Served]:
    """What chat_turn() returns, and the one request that it made."""
    before = len(ledger.requests)
    longer = lab.chat_turn(llm, history, question, params)
    made = ledger.requests[before:]
    expect(len(made) == 1, f"one turn is one request to the engine given; it got {len(made)}")
    expect(isinstance(longer, list), f"chat_turn() returned {shown(longer)}; expected a list of messages")
    return longer, made[0]


def expect_read(served: Served, messages: list[dict], template: str | None = None) -> None:
    """The model read these messages, laid out by its template, and was to answer."""
    wanted = tokenizer().apply_chat_template(messages, tokenize=True, add_generation_prompt=True, chat_template=template)
    expect(served.prompt == wanted,
           f"the model should read\n{tokenizer().decode(wanted, False)!r}\nand it "
           f"read\n{tokenizer().decode(served.prompt, False)!r}")


@check(todo=4, points=3, section=CHAT, concept="what the model reads")
def the_model_reads_the_whole_conversation_through_its_template(lab: Remote, dice: random.Random) -> None:
    for turns in (1, 3):
        ledger, history, question = Ledger(dice), conversation(dice, turns), f"{words(dice, 3)}?"
        _, served = turn(lab, llm_beside(lab, ledger), ledger, history, question, exactly(2))
        expect_read(served, [*history, message("user", question)])


@check(todo=4, points=3, section=CHAT, concept="whose template is used", hidden=True)
def the_model_reads_the_whole_conversation_through_another_template(lab: Remote, dice: random.Random) -> None:
    mark = f"{dice.choice('XYZ')}{dice.randrange(100, 999)}"
    template = ("{% for m in messages %}[" + mark + " {{ m.role }}: {{ m.content }}]\n{% endfor %}"
                "{% if add_generation_prompt %}[" + mark + " answer: {% endif %}")
    ledger, history, question = Ledger(dice), conversation(dice, 2), f"{words(dice, 3)}?"
    llm = llm_beside(lab, ledger)
    llm.get_tokenizer().chat_template = template
    _, served = turn(lab, llm, ledger, history, question, exactly(2))
    expect_read(served, [*history, message("user", question)], template)


@check(todo=4, points=4, section=CHAT, concept="a conversation of several turns")
def every_turn_makes_the_conversation_two_messages_longer(lab: Remote, dice: random.Random) -> None:
    spoken = [f"{words(dice, 4)}, {n}." for n in range(3)]
    ledger = Ledger(dice, lambda prompt, params: tokenizer().encode(spoken[len(ledger.requests)]))
    llm = llm_beside(lab, ledger)
    history: list[dict[str, str]] = []
    for place, answer in enumerate(spoken, start=1):
        question = f"{words(dice, 3)}?"
        history = [*history, message("user", question)]
        longer, served = turn(lab, llm, ledger, history[:-1], question, SamplingParams(temperature=0.0, max_tokens=40))
        expect_read(served, history)
        history.append(message("assistant", answer))
        expect(longer == history, f"after turn {place} the conversation should be\n{history}\nand it is\n{longer}")


@check(todo=4, points=1, section=CHAT, concept="what becomes of the answer", hidden=True)
def the_answer_is_what_the_model_said_unchanged(lab: Remote, dice: random.Random) -> None:
    answer = f"{dice.choice([' ', '  ', chr(10)])}{words(dice, 3)}{dice.choice(['  ', chr(10) * 2, ' ' + chr(10)])}"
    ledger = Ledger(dice, lambda prompt, params: tokenizer().encode(answer))
    longer, _ = turn(lab, llm_beside(lab, ledger), ledger, [], "Hello!", SamplingParams(temperature=0.0, max_tokens=40))
    expect(longer[-1:] == [message("assistant", answer)],
           f"the model said {answer!r}; in the conversation stands {longer[-1:]}")


@check(todo=4, points=2, section=CHAT, concept="whose list the history is")
def the_callers_history_stays_as_it_was(lab: Remote, dice: random.Random) -> None:
    ledger, history = Ledger(dice), conversation(dice, 2)
    theirs = hold(lab, history)
    longer, _ = turn(lab, llm_beside(lab, ledger), ledger, theirs, f"{words(dice, 3)}?", exactly(2))
    expect(look(theirs) == history,
           f"the list that the caller passed in has changed; it is now {look(theirs)}: return a new one")
    expect(len(longer) == len(history) + 2,
           f"{len(history)} messages and one turn make {len(history) + 2}; it returned {len(longer)}")


@check(todo=4, points=2, section=CHAT, concept="whose engine and parameters are used", hidden=True)
def uses_the_engine_and_the_parameters_it_is_given_for_chat(lab: Remote, dice: random.Random) -> None:
    ledger, count = Ledger(dice), dice.randrange(5, 12)
    params = exactly(count).clone(temperature=0.5, top_p=0.75, seed=dice.randrange(99))
    _, served = turn(lab, llm_beside(lab, ledger), ledger, [], f"{words(dice, 3)}?", params)
    expect(len(served.tokens) == count,
           f"the parameters given ask for {count} tokens; this engine made {len(served.tokens)}")
    used = {name: served.params.get(name) for name in ("temperature", "top_p", "seed")}
    expect(used == {name: getattr(params, name) for name in used},
           f"the parameters given are temperature 0.5, top_p 0.75, seed {params.seed}; the engine was given {used}")


# TODO 5

OUTPUTS = "TODO 5: Read the outputs"


def finished(dice: random.Random, tokens: int, reason: FinishReason = "stop", arrival: float | None = None) -> RequestOutput:
    """A finished output of a request that waited, and was cut into tokens before that."""
    times = [dice.uniform(0, 50) if arrival is None else arrival]
    for _ in range(4):
        times.append(times[-1] + dice.uniform(0.25, 2.0))
    if tokens == 1:
        times[4] = times[3]
    completion = CompletionOutput(0, words(dice, tokens + dice.randrange(1, 5)), [dice.randrange(2000) for _ in range(tokens)],
                                  finish_reason=reason)
    prompt = [dice.randrange(2000) for _ in range(dice.randrange(2, 9))]
    arrived, queued, scheduled, first, last = times
    metrics = RequestMetrics(arrived, queued, scheduled, first, last, num_generation_tokens=tokens)
    return RequestOutput(str(dice.randrange(99)), words(dice, 20), prompt, None, [completion], True, metrics)


def times_of(output: RequestOutput) -> RequestMetrics:
    assert output.metrics is not None  # as `finished` made it
    return output.metrics


def near(found: Any, right: float) -> bool:
    return isinstance(found, int | float) and math.isclose(found, right, rel_tol=1e-6)


def story_of(output: RequestOutput) -> str:
    """What is known of an output, for a message."""
    at, completion = times_of(output), output.outputs[0]
    return (f"{len(completion.token_ids)} tokens, {completion.finish_reason!r}, arrived at {at.arrival_time:.3f}, "
            f"queued {at.queued_ts:.3f}, scheduled {at.scheduled_ts:.3f}, first token {at.first_token_ts:.3f}, "
            f"last {at.last_token_ts:.3f}")


def expect_times(lab: Remote, output: RequestOutput) -> None:
    """TTFT, mean ITL and speed of a request, by its times."""
    m, at, count = lab.measure(output), times_of(output), len(output.outputs[0].token_ids)
    ttft, speed = at.first_token_ts - at.arrival_time, count / (at.last_token_ts - at.arrival_time)
    expect(near(m.ttft, ttft),
           f"{story_of(output)}: ttft is {ttft:.6f}, from arrival to the first token; measure() said {shown(m.ttft)}")
    if count == 1:
        expect(m.mean_itl is None,
               f"one token has no gap, and where there is no gap there is no mean: None; mean_itl is {shown(m.mean_itl)}")
    else:
        mean = (at.last_token_ts - at.first_token_ts) / len(range(1, count))
        expect(near(m.mean_itl, mean),
               f"{story_of(output)}: {count} tokens have {count - 1} gaps, {mean:.6f} each; mean_itl is {shown(m.mean_itl)}")
    expect(near(m.tokens_per_second, speed),
           f"{story_of(output)}: that is {speed:.6f} tokens per second, from arrival to the last; measure() said "
           f"{shown(m.tokens_per_second)}")
    counts, right = (m.prompt_tokens, m.tokens), (len(output.prompt_token_ids), count)
    expect(counts == right,
           f"prompt_tokens and tokens are {right}; measure() said {shown(counts)}: count tokens, not words or characters")


@check(todo=5, points=6, section=OUTPUTS, concept="tokens and times of a request")
def tokens_and_times_of_a_request(lab: Remote, dice: random.Random) -> None:
    for count in (2, dice.randrange(3, 9), dice.randrange(20, 60)):
        expect_times(lab, finished(dice, count))


@check(todo=5, points=3, section=OUTPUTS, concept="a request without a gap", hidden=True)
def a_single_token_has_no_gap(lab: Remote, dice: random.Random) -> None:
    expect_times(lab, finished(dice, 1, "length"))


@check(todo=5, points=3, section=OUTPUTS, concept="which end is a cut")
def only_length_means_cut_off(lab: Remote, dice: random.Random) -> None:
    for reason in dice.sample(get_args(FinishReason), 4):
        m = lab.measure(finished(dice, dice.randrange(2, 30), reason))
        expect(m.finish_reason == reason, f"the output's finish_reason is {reason!r}, not {shown(m.finish_reason)}")
        expect(m.cut_off == (reason == "length"),
               f"a request that ended with {reason!r} has cut_off {reason == 'length'}, not {shown(m.cut_off)}")


def expect_throughput(lab: Remote, outputs: list[RequestOutput]) -> None:
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    seconds = max(times_of(output).last_token_ts for output in outputs) - min(times_of(output).arrival_time for output in outputs)
    found = lab.throughput(outputs)
    expect(near(found, tokens / seconds),
           f"{'; '.join(map(story_of, outputs))}: {tokens} tokens in {seconds:.3f} s are {tokens / seconds:.6f} "
           f"per second, one division for all; throughput() said {shown(found)}")


@check(todo=5, points=2, section=OUTPUTS, concept="the speed of all together")
def throughput_counts_the_time_once_for_all(lab: Remote, dice: random.Random) -> None:
    expect_throughput(lab, [finished(dice, dice.randrange(2, 40), arrival=10 + dice.random()) for _ in range(3)])
    expect_throughput(lab, [finished(dice, dice.randrange(2, 40))])


@check(todo=5, points=2, section=OUTPUTS, concept="outputs in any order", hidden=True)
def throughput_does_not_depend_on_the_order(lab: Remote, dice: random.Random) -> None:
    outputs = [finished(dice, dice.randrange(2, 40), arrival=float(arrival)) for arrival in dice.sample(range(30), 4)]
    expect_throughput(lab, sorted(outputs, key=lambda output: times_of(output).arrival_time))
    expect_throughput(lab, sorted(outputs, key=lambda output: -times_of(output).arrival_time))


def script_of(salt: int) -> Callable[[list[int], dict[str, Any]], list[int]]:
    """Answers that depend on the prompt and, where tokens are drawn, on which of the seeds came, and on nothing else."""
    seeds: list[int | None] = []

    def script(prompt: list[int], params: dict[str, Any]) -> list[int]:
        drawn = params["temperature"] > 0 and params["top_k"] != 1
        seed = params["seed"] if drawn else None
        if seed not in seeds:
            seeds.append(seed)
        dice = random.Random(f"{salt} {prompt} {seeds.index(seed)}")
        return tokenizer().encode(f" {words(dice, dice.randrange(5, 9))}. {words(dice, dice.randrange(4, 9))}, {words(dice, 3)}.")

    return script


def solution() -> Any:
    """The lab's own, for the words that its program prints."""
    return loading.run_file(find_lab("01").solution, "_lab01_solution_of_the_judge")


def printed_here(salt: int) -> str:
    """What our program prints if the model says what the script says."""
    script = script_of(salt)
    ours_, lines = solution(), []
    ours_.load_llm = lambda: llm_here(Ledger(random.Random(0), script))
    ours_.print = lambda *said: lines.append(" ".join(map(str, said)))
    ours_.main()
    return "\n".join(lines)


def without_times(text: str) -> list[str]:
    """Its lines, every time and speed as a sign, spaces in a row as one."""
    return [" ".join(re.sub(r"\d+\.\d+", "#", line).split()) for line in text.strip().splitlines()]


@check(todo=5, points=4, section=OUTPUTS, concept="the whole program")
def the_whole_program_loads_once_and_prints_what_the_readme_shows(lab: Remote, dice: random.Random) -> None:
    salt, loads = dice.randrange(10**9), []
    script = script_of(salt)

    def load() -> Remote:
        loads.append(llm_beside(lab, Ledger(dice, script)))
        return loads[-1]

    lab.load_llm = ours(load)
    found, right = without_times(stdout_of(lab, lambda: lab.main())), without_times(printed_here(salt))
    expect(len(loads) == 1,
           f"the program loaded {len(loads)} models in main(); expected exactly one, for everything it does")
    for place, line in enumerate(right):
        there = found[place] if place < len(found) else "nothing"
        expect(there == line,
               f"README.md, Expected Output, shows how main() prints. With this model, whose words are not the course model's, "
               f"line {place + 1} should be {line!r} (times as #), and it is {there!r}")
    expect(len(found) == len(right),
           f"main() should print {len(right)} lines, and it printed {len(found)}; the next is "
           f"{shown(found[len(right):][:1])}")
