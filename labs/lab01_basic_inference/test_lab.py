"""Lab 01's one suite. It tests what `starter.py` does, on real engines and the bundled models.

In most tests the test itself chooses what the model says, see `labs/harness/scripted_engine`: the right answer can then only come
from the engine that was given. What is drawn from `rng` differs from student to student where labs are graded.

All of it: pytest test_lab.py        One TODO: pytest test_lab.py -k todo_3
"""

import math
import operator
import random
import re
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import get_args

import pytest

from labs.harness.scripted_engine.engines import read_outputs, scripted_llm, spare_memory
from labs.harness.scripted_engine.ledger import Ledger, assert_served
from labs.harness.scripted_engine.own_engine import clear_prompts, exactly, own_llm, some_prompts, tokenizer, words
from labs.harness.suite import beside
from labs.harness.suite.expecting import Here, refusal, shown
from nano_qwen3_serving import LLM, CompletionOutput, RequestOutput, SamplingParams
from nano_qwen3_serving.outputs import FinishReason, RequestMetrics

OPENINGS = [
    "Once upon a time", "The password was", "The map showed", "The robot opened the door and",
    "In my bag there is", "My favourite colour is", "The soup tasted like", "Tomorrow we will",
]  # fmt: skip
"""Beginnings with eight or more endings, all about equally likely: here sampling can be seen."""


def some_tokens(rng, count: int) -> dict:
    """A prompt of so many tokens."""
    return {"prompt_token_ids": [rng.randrange(300, 2000) for _ in range(count)]}


# TODO 1: load a model


def loaded(lab, there, *arguments, **named):
    """What load_llm() returns, which must be an engine."""
    spare_memory(there)
    llm = lab.load_llm(*arguments, **named)
    assert there.is_a(LLM, llm), f"load_llm() returned {shown(llm)}; expected an LLM"
    return llm


def assert_model(there, rng, llm, model: str, call: str) -> None:
    """The tokens that an engine generates are those of this model."""
    for known in clear_prompts(rng, 2):
        [output] = read_outputs(there, llm.generate(known["prompt"], exactly(6)))
        tokens, expected = output["tokens"], known[model]
        assert tokens == expected, (
            f"{call} must load {model!r}, which answers {known['prompt']!r} with the tokens {expected}; it answered with "
            f"{tokens}")


@pytest.mark.todo(1, points=3)
def test_todo_1_loads_the_course_model_and_it_answers(lab, rng, there):
    assert_model(there, rng, loaded(lab, there), "course", "load_llm()")


@pytest.mark.todo(1, points=3)
def test_todo_1_hands_on_the_model_and_the_length(lab, rng, there):
    for model in rng.sample(["course", "course-draft"], 2):
        length = rng.randrange(20, 60)
        call = f"load_llm({model!r}, max_model_len={length})"
        llm = loaded(lab, there, model, max_model_len=length)
        assert_model(there, rng, llm, model, call)
        refusal("PromptTooLongError", lambda llm=llm, length=length: llm.generate(some_tokens(rng, length + 1), exactly(1)),
                f"the engine of {call} was given a prompt of {length + 1} tokens: is max_model_len handed on, and as it is?")
        prompt = rng.randrange(4, length - 4)
        [output] = read_outputs(there, llm.generate(some_tokens(rng, prompt), exactly(200)))
        used, room = len(output["tokens"]), length - prompt
        assert used == room, f"max_model_len={length} leaves a prompt of {prompt} tokens {room} to generate; it generated {used}"


@pytest.mark.todo(1, points=2)
def test_todo_1_every_call_loads_an_engine_of_its_own(lab, rng, there):
    few, prompt = rng.randrange(16, 24), some_tokens(rng, 30)
    many = 2 * few + 4
    short, long, again = (loaded(lab, there, "course-draft", max_model_len=length) for length in (few, many, many))
    [output] = read_outputs(there, long.generate(prompt, exactly(2)))
    used = len(output["tokens"])
    assert used == 2, f"an engine of max_model_len={many} was asked for 2 tokens after a prompt of 30; it generated {used}"
    refusal("PromptTooLongError", lambda: short.generate(prompt, exactly(2)),
            f"an engine of max_model_len={few} was given 30 tokens, after another of {many} was loaded")
    assert not there.of(operator.is_)(again.llm_engine, long.llm_engine), (
        f'load_llm("course-draft", {many}) was called twice and gave the same engine; each call creates a new LLM, whatever was '
        "asked for before")


@pytest.mark.todo(1, points=2)
def test_todo_1_lets_the_error_of_a_wrong_model_through(lab, rng, there):
    spare_memory(there)
    name = f"/no/such/model/{rng.randrange(10**6)}"
    refusal("ModelLoadError", lambda: lab.load_llm(name), f"there is no model {name!r}, and the engine's own error comes through")


# TODO 2: sampling parameters for three tasks


def params_of(there, *returned) -> list[SamplingParams]:
    """The parameters that functions returned, as objects of the test's own; at most 200 tokens."""
    assert there.is_a(SamplingParams, *returned), f"it returned {shown(returned[0])}; expected SamplingParams"
    return [rebuilt(there.of(beside.params_dict)(params)) for params in returned]


def rebuilt(values: dict) -> SamplingParams:
    """Parameters with these values, as far as a contract of this lab may ask for them."""
    small = len(repr(values)) < 3000 and values["structured_outputs"] is None
    assert small, f"no contract asks for parameters like {shown(values)}"
    assert values["n"] == 1, f"n is {values['n']}; the contract asks for one answer"
    return SamplingParams(**{**values, "max_tokens": min(values["max_tokens"] or 200, 200), "logprobs": None,
                             "prompt_logprobs": None})


def generated(prompts: list[str], params: list[SamplingParams], most: int = 200) -> list[list[int]]:
    """The tokens that the course model generates with each, all in one batch; nothing depends on the batch."""
    params = [replace(mine, max_tokens=min(most, mine.max_tokens)) for mine in params]
    return [output.outputs[0].token_ids for output in own_llm("course", True).generate(prompts, params, use_tqdm=False)]


def heard(answer: str, params: SamplingParams, ends: bool = True) -> CompletionOutput:
    """What is heard of a model that says `answer`, and then ends, or never does."""
    tokens = tokenizer().encode(answer)
    ledger = Ledger(random.Random(0), lambda prompt, _: tokens if ends else tokens * 20)
    [output] = scripted_llm(Here(), ledger).generate("?", params, use_tqdm=False)
    return output.outputs[0]


def assert_heard(answer: str, params: SamplingParams, expected: str, contract: str) -> None:
    """Of a model that says `answer` and ends, `expected` is heard, and it ended with `stop`."""
    completion = heard(answer, params)
    assert (completion.text, completion.finish_reason) == (expected, "stop"), (
        f"a model said {answer!r} and ended. The contract says: {contract}. So {expected!r} should be heard, finish reason "
        f"'stop'; {completion.text!r} was, finish reason {completion.finish_reason!r}")


def assert_likeliest(params: SamplingParams, call: str) -> None:
    """Every token is the likeliest, where several are about equally likely, and nothing makes another one the likeliest."""
    greedy = SamplingParams(temperature=0.0, max_tokens=8)
    both = generated(OPENINGS * 3, [params] * 16 + [greedy] * 8, 8)
    differ = [opening for opening, tokens, best in zip(OPENINGS * 2, both, both[16:] * 2, strict=False)
              if tokens != best[: len(tokens)]]
    assert not differ, (
        f"{call}: {len(differ)} of 16 texts were not made of the likeliest tokens, {differ[0]!r} for one. "
        "temperature=1.0 draws at random; a fixed seed only repeats the same luck")
    assert_none_of(params, ["presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "allowed_token_ids",
                            "bad_words"], f"{call}: the contract says the likeliest token, every time, and this changes which is")


def assert_none_of(params: SamplingParams, rules: list[str], otherwise: str) -> None:
    """None of these rules is in use."""
    more = {rule: getattr(params, rule) for rule in rules if getattr(params, rule) != getattr(SamplingParams(), rule)}
    assert not more, f"{otherwise}: {more}"


@pytest.mark.todo(2, points=5)
def test_todo_2_a_fact_takes_the_likeliest_token_every_time(lab, there):
    [fact] = params_of(there, lab.fact_params())
    assert_likeliest(fact, "fact_params()")


@pytest.mark.todo(2, points=2)
def test_todo_2_facts_and_stories_end_when_the_model_ends_them(lab, rng, there):
    for params in params_of(there, lab.fact_params(), lab.story_params(rng.randrange(1, 10**6))):
        marks = rng.sample([".", "!", "?", ",", ";", "\n", "\n\n", "."], 8)
        answer = "".join(f" {words(rng, 1)}{mark}" for mark in marks)
        assert_heard(answer, params, answer, "when the model ends it, at no string")
        count = len(heard("", params).token_ids)
        assert count == 1, f"a model that ends at once was asked for {count} tokens"


@pytest.mark.todo(2, points=2)
def test_todo_2_a_fact_is_said_to_its_end(lab, rng, there):
    [fact] = params_of(there, lab.fact_params())
    for count in (rng.randrange(12, 20), rng.randrange(20, 30)):
        answer = f"It is 2.{count}. {words(rng, count)}?\n\nSo, {words(rng, 5)}; {words(rng, 1)}! "
        assert_heard(answer, fact, answer, "when the model ends it, at most 64 tokens. What is max_tokens if nobody says it?")


@pytest.mark.todo(2, points=1)
def test_todo_2_every_number_is_a_seed_of_its_own(lab, rng, there):
    low = rng.randrange(3, 15)
    seeds = [0, 1, 2, low, *(low + 2**power for power in (4, 8, 16, 31, 32, 40)), low + 1000]
    handed_on = dict(zip(seeds, (params.seed for params in params_of(there, *map(lab.story_params, seeds))), strict=True))
    unseeded = [seed for seed, number in handed_on.items() if number is None]
    assert not unseeded, f"story_params({unseeded[0]}) has no seed: its story would be another every time"
    numbers = list(handed_on.values())
    alike = [seed for seed, number in handed_on.items() if numbers.count(number) > 1]
    assert not alike, f"the seeds {alike} are handed on as {[handed_on[seed] for seed in alike]}: other seeds, and the same story"


@pytest.mark.todo(2, points=3)
def test_todo_2_another_seed_tells_another_story(lab, rng, there):
    openings, seeds = rng.sample(OPENINGS, 2), rng.sample(range(10**6), 16)
    stories = params_of(there, *map(lab.story_params, seeds))
    prompts = [opening for opening in openings for _ in seeds]
    count = len({(prompt, *tokens) for prompt, tokens in zip(prompts, generated(prompts, stories * 2, 12), strict=True)})
    assert count >= 8, f"16 seeds told only {count} different stories about {openings}, and could tell 32: is the seed handed on?"


@pytest.mark.todo(2, points=3)
def test_todo_2_the_same_seed_tells_the_same_story_alone_or_in_company(lab, rng, there):
    seeds = rng.sample(range(10**6), len(OPENINGS))
    stories = params_of(there, *map(lab.story_params, seeds * 2))
    told = list(map(tokenizer().decode, generated(OPENINGS * 2, stories, 16)))
    for opening, seed, first, second in zip(OPENINGS, seeds, told, told[len(seeds):], strict=False):
        assert first == second, f"in one batch, {opening!r} with seed {seed} twice gave two stories: {first!r} and {second!r}"
    place = rng.randrange(len(seeds))
    [alone] = map(tokenizer().decode, generated([OPENINGS[place]], params_of(there, lab.story_params(seeds[place])), 16))
    assert alone == told[place], (
        f"{OPENINGS[place]!r} with seed {seeds[place]} gave {told[place]!r} in a batch and {alone!r} alone; the same seed tells "
        "the same story")


@pytest.mark.todo(2, points=2)
def test_todo_2_a_story_is_drawn_from_what_the_contract_says(lab, rng, there):
    [story] = params_of(there, lab.story_params(rng.randrange(1, 10**6)))
    assert (story.temperature, story.top_p) == pytest.approx((0.8, 0.9)), (
        f"temperature {story.temperature} and top_p {story.top_p}; the contract says 0.8, and 90 % of the probability")
    assert_none_of(story, ["top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias",
                           "allowed_token_ids", "bad_words"],
                   "temperature, top_p and the seed choose the token, says the contract; here this does, too")


@pytest.mark.todo(2, points=4)
def test_todo_2_one_sentence_ends_with_its_full_stop(lab, rng, there):
    [sentence] = params_of(there, lab.sentence_params())
    contract = "after its first '.', even one inside a number, and at no other string; the text ends with that '.'"
    first, number = words(rng, rng.randrange(3, 9)), rng.randrange(10, 99)
    for answer in (f"{first}. {words(rng, 9)}.", "The answer takes about 2.98 seconds.", f". {words(rng, 3)}.",
                   f"\nA{number}?! So: {words(rng, 3)}.\n{words(rng, 5)}.", f"It takes {number}.{number} s, {words(rng, 4)}."):
        assert_heard(answer, sentence, answer[: answer.index(".") + 1], contract)
    unfinished = "".join(f" {words(rng, 1)}{mark}" for mark in rng.sample([*"!?,;:", "\n", "\n\n"], 7))
    assert_heard(unfinished, sentence, unfinished, f"{contract}. Without one, when the model ends it")
    count = len(heard("", sentence).token_ids)
    assert count == 1, f"a model that ends at once was asked for {count} tokens"
    assert_likeliest(sentence, "sentence_params()")


@pytest.mark.todo(2, points=3)
def test_todo_2_nobody_speaks_longer_than_the_contract_allows(lab, rng, there):
    limits = {"fact_params": 64, "story_params": 32, "sentence_params": 24}
    mine = params_of(there, lab.fact_params(), lab.story_params(rng.randrange(99)), lab.sentence_params())
    endless = f"{words(rng, 12)},"
    used = {name: len(heard(endless, params, ends=False).token_ids) for name, params in zip(limits, mine, strict=True)}
    assert used == limits, f"a model that never ends was stopped after {used} tokens; the contract says {limits}"


# TODO 3: a batch


def batch(lab, there, llm, prompts: list[str], params) -> tuple[list[str], list]:
    """The prompts and the outputs of the pairs that complete_batch() returns."""
    pairs = there.unawaited(lab.complete_batch, llm, prompts, params)
    assert isinstance(pairs, list), f"complete_batch() returned {shown(pairs)}; expected a list of pairs (prompt, RequestOutput)"
    fits = all(isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs)
    assert fits and there.is_a(RequestOutput, *(output for _, output in pairs)), (
        f"complete_batch() returned {shown(pairs)}; expected pairs (prompt, RequestOutput)")
    return [prompt for prompt, _ in pairs], [output for _, output in pairs]


def assert_from(there, ledger: Ledger, pairs: tuple[list[str], list], prompts: list[str]) -> list[dict]:
    """Every prompt stands beside what this engine generated for it, each request in one place; what the outputs say."""
    came, outputs = pairs[0], read_outputs(there, pairs[1])
    assert came == prompts, f"the prompts must come back in the order given, repeated ones too: {prompts}; there came {came}"
    assert_served(ledger, outputs, prompts)
    return outputs


@pytest.mark.todo(3, points=6)
@pytest.mark.parametrize("count", [6, 40, "any"])
def test_todo_3_all_prompts_share_the_steps_of_one_batch(lab, rng, there, count):
    count, tokens = (rng.randrange(17, 30), rng.randrange(2, 6)) if count == "any" else (count, 6)
    ledger, prompts = Ledger(rng), some_prompts(rng, count)
    pairs = batch(lab, there, scripted_llm(there, ledger), prompts, exactly(tokens))
    steps = len(ledger.steps)
    assert steps > 0, "the engine that was given took no step: was another one built? The one given is enough"
    assert steps == tokens, (
        f"{count} prompts of {tokens} tokens each took {steps} steps. In one batch they take {tokens}: one call, all prompts")
    assert_from(there, ledger, pairs, prompts)


@pytest.mark.todo(3, points=4)
def test_todo_3_each_prompt_comes_back_with_its_own_output_in_order(lab, rng, there):
    ledger, prompts = Ledger(rng), some_prompts(rng, 9)
    prompts[2:4] = f"{prompts[2]}\n", f"  {prompts[3]} "  # white space is part of a prompt
    prompts.insert(rng.randrange(5, 9), prompts[1])
    limits = rng.sample(range(1, 12), len(prompts))
    limits[0] = 12  # the first is not the first to finish
    pairs = batch(lab, there, scripted_llm(there, ledger), prompts, [exactly(limit) for limit in limits])
    used = [len(output["tokens"]) for output in assert_from(there, ledger, pairs, prompts)]
    assert used == limits, f"the prompts have parameters for {limits} tokens, in this order; the outputs have {used}"
    none = batch(lab, there, scripted_llm(there, Ledger(rng)), [], exactly(2))
    assert none == ([], []), f"a batch of no prompts has no pairs; it gave {shown(none[0])}"


@pytest.mark.todo(3, points=1)
def test_todo_3_a_prompt_that_comes_twice_is_two_requests(lab, rng, there):
    ledger, (a, b) = Ledger(rng), some_prompts(rng, 2)
    llm, prompts = scripted_llm(there, ledger), [a, a, b, a]
    drawn = SamplingParams(temperature=1.0, max_tokens=2, ignore_eos=True)
    first = batch(lab, there, llm, prompts, drawn)
    requests = len(ledger.requests)
    assert requests == 4, (
        f"4 prompts, 3 of them the same, were {requests} requests; expected 4, because what is drawn for each is its own")
    second = batch(lab, there, llm, prompts, drawn)
    requests = len(ledger.requests)
    assert requests == 8, f"the same 4 prompts in two calls were {requests} requests; expected 8: a call remembers no other"
    assert_from(there, ledger, (first[0] + second[0], first[1] + second[1]), prompts * 2)


@pytest.mark.todo(3, points=2)
def test_todo_3_uses_the_parameters_it_is_given(lab, rng, there):
    mine = SamplingParams(temperature=rng.choice([0.3, 0.7]), top_p=0.5, max_tokens=rng.randrange(2, 6), ignore_eos=True,
                          seed=rng.randrange(999))
    several = [mine.clone(max_tokens=limit, top_k=limit, seed=7 + limit) for limit in rng.sample(range(2, 9), 2)]
    for params, each in ((mine, [mine, mine]), (several, several), (there.kept(there.of(tuple), several), several)):
        ledger, prompts = Ledger(rng), some_prompts(rng, 2)
        batch(lab, there, scripted_llm(there, ledger), prompts, params)
        names = ("temperature", "top_p", "top_k", "seed", "max_tokens")
        used = {tokenizer().decode(request.prompt): {name: request.params.get(name) for name in names}
                for request in ledger.requests}
        expected = {prompt: {name: getattr(mine, name) for name in names} for prompt, mine in zip(prompts, each, strict=True)}
        assert used == expected, f"the parameters given are {expected}; the engine was asked for {used}"


@pytest.mark.todo(3, points=1)
def test_todo_3_the_error_of_a_wrong_prompt_reaches_the_caller(lab, rng, there):
    ledger, prompts = Ledger(rng), some_prompts(rng, 3)
    prompts.insert(rng.randrange(1, 4), "")
    llm = scripted_llm(there, ledger)
    refusal("InvalidParametersError", lambda: batch(lab, there, llm, prompts, exactly(3)), "there is an empty prompt among them")
    count = len(ledger.requests)
    assert count == 0, f"{count} prompts were computed before the empty one was refused: one call, not a loop"


@pytest.mark.todo(3, points=1)
@pytest.mark.parametrize("number", [2, 4])
def test_todo_3_the_error_of_a_wrong_number_of_parameters_reaches_the_caller(lab, rng, there, number):
    ledger, prompts = Ledger(rng), some_prompts(rng, 3)
    llm = scripted_llm(there, ledger)
    refusal("InvalidParametersError", lambda: batch(lab, there, llm, prompts, [exactly(2)] * number),
            f"there are {number} parameters for 3 prompts")
    count = len(ledger.requests)
    assert count == 0, f"{count} prompts were computed, and there were {number} parameters for 3"


# TODO 4: chat

HISTORY = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hello! How can I help you today?"},
]


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversation(rng, turns: int) -> list[dict[str, str]]:
    """A system message, and so many turns."""
    spoken = [message(role, f"{words(rng, 4)}.") for _ in range(turns) for role in ("user", "assistant")]
    return [message("system", f"You are a {words(rng, 2)}."), *spoken]


def turn(lab, llm, ledger: Ledger, history, question: str, params: SamplingParams):
    """What chat_turn() returns, and the one request that it made."""
    before = len(ledger.requests)
    longer = lab.chat_turn(llm, history, question, params)
    requests = ledger.requests[before:]
    assert len(requests) == 1, f"one turn is one request to the engine given; it got {len(requests)}"
    assert isinstance(longer, list), f"chat_turn() returned {shown(longer)}; expected a list of messages"
    return longer, requests[0]


def assert_read(request, messages: list[dict], template: str | None = None) -> None:
    """The model read these messages, laid out by its template, and was to answer."""
    expected = tokenizer().apply_chat_template(messages, tokenize=True, add_generation_prompt=True, chat_template=template)
    assert request.prompt == expected, (
        f"with {'its own' if template is None else 'another'} chat template the model should read\n"
        f"{tokenizer().decode(expected, False)!r}\nand it read\n{tokenizer().decode(request.prompt, False)!r}")


@pytest.mark.todo(4, points=6)
@pytest.mark.parametrize("template", ["its own", "another"])
def test_todo_4_the_model_reads_the_whole_conversation_through_its_template(lab, rng, there, template):
    mark = f"{rng.choice('XYZ')}{rng.randrange(100, 999)}"
    other = ("{% for m in messages %}[" + mark + " {{ m.role }}: {{ m.content }}]\n{% endfor %}"
             "{% if add_generation_prompt %}[" + mark + " answer: {% endif %}")
    for history, question in ((HISTORY, "What is a token?"), (conversation(rng, rng.randrange(2, 5)), f" {words(rng, 3)}?\n")):
        ledger = Ledger(rng)
        llm = scripted_llm(there, ledger)
        if template == "another":
            llm.get_tokenizer().chat_template = other
        _, request = turn(lab, llm, ledger, [dict(entry) for entry in history], question, exactly(2))
        assert_read(request, [*history, message("user", question)], other if template == "another" else None)


@pytest.mark.todo(4, points=1)
def test_todo_4_a_long_conversation_is_read_from_its_beginning(lab, rng, there):
    ledger, history, question = Ledger(rng), conversation(rng, rng.randrange(12, 16)), f"{words(rng, 3)}?"
    longer, request = turn(lab, scripted_llm(there, ledger), ledger, [dict(entry) for entry in history], question, exactly(2))
    expected = [*history, message("user", question)]
    assert_read(request, expected)
    assert longer[:-1] == expected, (
        f"what came back should begin with the {len(history)} messages given, then the question; it begins with "
        f"{shown(longer[:-1])}")


@pytest.mark.todo(4, points=3)
def test_todo_4_every_turn_makes_the_conversation_two_messages_longer(lab, rng, there):
    spoken = ["Hello! How can I help you today?", *(f"{words(rng, 4)}, {place}." for place in range(2))]
    ledger = Ledger(rng, lambda prompt, params: tokenizer().encode(spoken[len(ledger.requests)]))
    llm, history = scripted_llm(there, ledger), []
    for place, answer in enumerate(spoken, start=1):
        question = "Hello!" if place == 1 else f"  {words(rng, 3)}?\n"  # white space is part of a question
        longer, request = turn(lab, llm, ledger, [dict(entry) for entry in history], question,
                               SamplingParams(temperature=0.0, max_tokens=40))
        history.append(message("user", question))
        assert_read(request, history)
        history.append(message("assistant", answer))
        assert longer == history, f"after turn {place} the conversation should be\n{history}\nand it is\n{longer}"


@pytest.mark.todo(4, points=1)
def test_todo_4_the_answer_is_what_the_model_said_unchanged(lab, rng, there):
    spaces = rng.choice([" ", "  ", "\n"]), rng.choice(["  ", "\n\n", " \n"])
    for answer in ("\n\n\n", f"{spaces[0]}{words(rng, 3)}{spaces[1]}", ""):  # the last: the model ends at once
        ledger = Ledger(rng, lambda prompt, params, answer=answer: tokenizer().encode(answer))
        longer, _ = turn(lab, scripted_llm(there, ledger), ledger, [], "Hello!", SamplingParams(temperature=0.0, max_tokens=40))
        expected = message("assistant", answer)
        assert longer[1:] == [expected], (
            f"the model said {answer!r} and ended, and an empty answer is an answer; after the question the conversation should "
            f"have {[expected]}, and has {longer[1:]}")


@pytest.mark.todo(4, points=2)
def test_todo_4_the_callers_history_stays_as_it_was(lab, rng, there):
    ledger, history = Ledger(rng), conversation(rng, 2)
    callers = there.hold([dict(entry) for entry in history])
    longer, _ = turn(lab, scripted_llm(there, ledger), ledger, callers, f"{words(rng, 3)}?", exactly(2))
    now = there.look(callers)
    assert now == history, f"the list that the caller passed in has changed, it is now {now}: return a new one"
    count = len(history)
    assert len(longer) == count + 2, f"{count} messages and one turn make {count + 2}; it returned {len(longer)}"


@pytest.mark.todo(4, points=2)
def test_todo_4_uses_the_engine_and_the_parameters_it_is_given(lab, rng, there):
    ledger, count = Ledger(rng), rng.randrange(5, 12)
    params = exactly(count).clone(temperature=0.5, top_p=0.75, seed=rng.randrange(99))
    _, request = turn(lab, scripted_llm(there, ledger), ledger, [], f"{words(rng, 3)}?", params)
    used = len(request.tokens)
    assert used == count, f"the parameters given ask for {count} tokens; this engine made {used}"
    names = ("temperature", "top_p", "seed")
    asked, expected = ({name: request.params.get(name) for name in names}, {name: getattr(params, name) for name in names})
    assert asked == expected, f"the parameters given are {expected}; the engine was asked for {asked}"


# TODO 5: measure


def finished(times: tuple[float, ...], num_tokens: int, reason: FinishReason = "stop", rng=None) -> RequestOutput:
    """An output of 5 prompt tokens, or of as many as `rng` says: `times` are arrival, queued, scheduled, first and last token."""
    num_prompt_tokens, text = (5, "two words") if rng is None else (rng.randrange(2, 9), words(rng, num_tokens + 2))
    return RequestOutput(
        request_id="0", prompt="p", prompt_token_ids=[7] * num_prompt_tokens, prompt_logprobs=None, finished=True,
        outputs=[CompletionOutput(0, text, list(range(300, 300 + num_tokens)), finish_reason=reason)],
        metrics=RequestMetrics(*times, num_generation_tokens=num_tokens),
    )  # fmt: skip


def drawn(rng, num_tokens: int, reason: FinishReason = "stop", arrival: float | None = None) -> RequestOutput:
    """A finished output whose times are drawn; with one token the first is the last."""
    times = [rng.uniform(0, 50) if arrival is None else arrival]
    for _ in range(4):
        times.append(times[-1] + rng.uniform(0.25, 2.0))
    if num_tokens == 1:
        times[4] = times[3]
    return finished(tuple(times), num_tokens, reason, rng)


def near(number, expected: float) -> bool:
    """Whether it is the right number, but for rounding."""
    return isinstance(number, int | float) and math.isclose(number, expected, rel_tol=1e-6, abs_tol=1e-9)


def story_of(output: RequestOutput) -> str:
    """What is known of an output, for a message."""
    at = output.metrics
    return (f"{len(output.outputs[0].token_ids)} tokens, arrived at {at.arrival_time:.3f}, queued {at.queued_ts:.3f}, scheduled "
            f"{at.scheduled_ts:.3f}, first token at {at.first_token_ts:.3f}, last at {at.last_token_ts:.3f}")


def assert_measured(lab, output: RequestOutput) -> None:
    """Counts, TTFT, mean ITL and speed of a request are what its tokens and times say."""
    m, at, count, story = lab.measure(output), output.metrics, len(output.outputs[0].token_ids), story_of(output)
    counts, expected = (m.prompt_tokens, m.tokens), (len(output.prompt_token_ids), count)
    assert counts == expected, (
        f"prompt_tokens and tokens are {expected}; measure() said {counts}: count tokens, not words or characters, and not the "
        "prompt's among them")
    ttft, speed, itl = at.first_token_ts - at.arrival_time, count / (at.last_token_ts - at.arrival_time), m.mean_itl
    assert near(m.ttft, ttft), f"{story}: ttft is {ttft:g}, from arrival to the first token; measure() said {shown(m.ttft)}"
    if count == 1:
        assert itl is None, f"one token has no gap, and where there is no gap there is no mean: None; mean_itl is {shown(itl)}"
    else:
        mean = (at.last_token_ts - at.first_token_ts) / (count - 1)
        assert near(itl, mean), f"{story}: {count} tokens have {count - 1} gaps, {mean:g} each; mean_itl is {shown(itl)}"
    assert near(m.tokens_per_second, speed), (
        f"{story}: that is {speed:g} tokens per second, from arrival to the last token; measure() said "
        f"{shown(m.tokens_per_second)}")


@pytest.mark.todo(5, points=6)
def test_todo_5_tokens_and_times_of_a_request_by_hand(lab, rng):
    m = lab.measure(finished((10.0, 10.25, 10.5, 11.0, 14.0), num_tokens=7))
    counts, ttft, itl, speed = (m.prompt_tokens, m.tokens), m.ttft, m.mean_itl, m.tokens_per_second
    assert counts == (5, 7), f"5 tokens were read and 7 generated; measure() said {counts}: count tokens, not words or characters"
    assert near(ttft, 1.0), f"arrived at 10.0, first token at 11.0: ttft is 1.0, not {shown(ttft)}"
    assert near(itl, 0.5), f"7 tokens from 11.0 to 14.0 have 6 gaps between them, 0.5 each; mean_itl is {shown(itl)}"
    assert near(speed, 7 / 4), f"7 tokens in the 4 seconds from arrival to the last token are 1.75 per second, not {shown(speed)}"
    assert_measured(lab, finished((10.0, 10.25, 10.5, 12.0, 12.0), num_tokens=3))  # at once: there are gaps, of 0.0 seconds
    for zero in (0.0, -2.0, -6.0):  # of a clock only differences mean something
        assert_measured(lab, finished((zero, zero + 1.0, zero + 1.5, zero + 2.0, zero + 6.0), num_tokens=5))
    for count in (2, rng.randrange(3, 9), rng.randrange(20, 60)):
        assert_measured(lab, drawn(rng, count))


@pytest.mark.todo(5, points=3)
def test_todo_5_a_single_token_has_no_gap(lab, rng):
    for output in (finished((10.0, 10.25, 10.5, 12.0, 12.0), num_tokens=1, reason="length"), drawn(rng, 1)):
        assert_measured(lab, output)


@pytest.mark.todo(5, points=3)
def test_todo_5_only_length_means_cut_off(lab, rng):
    for reason in get_args(FinishReason):
        m = lab.measure(drawn(rng, rng.randrange(2, 30), reason))
        told, cut_off, expected = m.finish_reason, m.cut_off, reason == "length"
        assert told == reason, f"the output's finish_reason is {reason!r}, not {shown(told)}"
        assert cut_off == expected, f"a request that ended with {reason!r} has cut_off {expected}, not {shown(cut_off)}"


def assert_throughput(lab, *outputs: RequestOutput) -> None:
    """All tokens, divided by the seconds from the first arrival to the last token."""
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    began = min(output.metrics.arrival_time for output in outputs)
    ended = max(output.metrics.last_token_ts for output in outputs)
    expected, speed = tokens / (ended - began), lab.throughput(list(outputs))
    assert near(speed, expected), (
        f"{'; '.join(map(story_of, outputs))}: {tokens} tokens between {began:g} and {ended:g} are {expected:g} per second, not "
        f"{shown(speed)}. One division for all; and of a clock only differences mean something")


@pytest.mark.todo(5, points=4)
def test_todo_5_throughput_counts_the_time_once_for_all(lab, rng):
    first, second = finished((3.0, 3, 3, 4.0, 7.0), num_tokens=8), finished((2.0, 2, 2, 2.5, 5.0), num_tokens=13)
    for outputs in ([first, second], [second, first]):
        speed = lab.throughput(outputs)
        assert near(speed, 4.2), f"8 + 13 tokens between 2.0 and 7.0 are 21 / 5 = 4.2, not {shown(speed)}. One division for all"
    assert_throughput(lab, second)
    long = finished((0.0, 0.5, 1.0, 2.0, 90.0), num_tokens=9)  # arrives first, and its last token is the last of all
    several = [drawn(rng, rng.randrange(2, 40), arrival=float(arrival)) for arrival in rng.sample(range(1, 30), 4)]
    for place in (0, rng.randrange(1, 4), 4):
        assert_throughput(lab, *several[:place], long, *several[place:])
    for in_order in (False, True):
        assert_throughput(lab, *sorted(several, key=lambda output: output.metrics.arrival_time, reverse=in_order))
    for zero in (-5.0, -20.0):  # the last token at the clock's zero, and all of it before
        assert_throughput(lab, finished((zero + 2, zero + 2, zero + 2, zero + 2.5, zero + 5), num_tokens=13))


ANSWER = r".+(?:\n {12}.+)*"
PROGRAM = [
    r"=== Basic Inference Lab ===",
    r"Loading the model\.\.\.\nReady\.",
    rf"Task 1.+\n  prompt    .+\n  answer    A token is {ANSWER}\n  again     the same",
    r"Task 2.+\n  prompt    .+(?:\n  seed [123]    Once upon a time.+){3}\n  seed 1    the same",
    rf"Task 3.+\n  prompt    .+\n  answer    A neural network {ANSWER}\.\n  ended by  stop, at '\.'",
    rf"A batch of 5 prompts in one call(?:\n  prompt    .+\n  answer    {ANSWER}){{5}}",
    rf"A chat of 2 turns(?:\n  you       .+\n  model     {ANSWER}){{2}}",
    (
        r"What the batch took\n(?:.+\n){4}"
        r"  Count to ten\. +24  length +\d+\.\d+ s  \d+\.\d+ s +\d+\.\d\n"
        r"  Are you a robot\? +1  length +\d+\.\d+ s  none +\d+\.\d\n"
        r"  All together: .+\n"
        r"  Cut off by max_tokens: Count to ten\., Are you a robot\?"
    ),
]
"""What main() prints, part by part, as far as it is the same on every machine."""


@pytest.mark.todo(5, points=4)
def test_todo_5_the_whole_program_loads_once_and_prints_what_the_readme_shows(lab, there):
    spare_memory(there)
    loads, load = [], lab.load_llm

    def counted(*arguments):
        loads.append(load(*arguments))
        return loads[-1]

    there.put(lab, "load_llm", counted)
    printed = there.printed(lab.main).strip().split("\n\n")
    count = len(loads)
    assert count == 1, f"the program loaded {count} models in main(); expected exactly one, for everything it does"
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    example = re.search(r"## Expected Output\n\n```\n(.+?)\n```", readme, re.DOTALL)[1].split("\n\n")
    for shape, expected, part in zip_longest(PROGRAM, example, printed, fillvalue=""):
        fits = re.fullmatch(shape, part) is not None
        assert fits, f"README.md, Expected Output, shows\n{expected}\nand this program printed\n{part}"


if __name__ == "__main__":
    raise SystemExit("These are tests. Run them with: pytest test_lab.py")
