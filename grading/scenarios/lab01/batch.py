"""Lab 01, TODO 3: the judge's ledger of a batch."""

import random
from collections.abc import Sequence

from grading.judge.checks import check, expect, kept, refusal, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.engines import as_it_is, expect_served, is_a, llm_beside, tokens_of
from labs.harness.scripted_engine.ledger import Ledger
from labs.harness.scripted_engine.own_engine import exactly, some_prompts, tokenizer
from nano_qwen3_serving import SamplingParams

BATCH = "TODO 3: A batch in one call"


def batch(
    lab: Remote, llm: Remote, prompts: list[str], params: SamplingParams | list[SamplingParams] | Remote
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
def all_prompts_share_the_steps_of_one_batch(lab: Remote, rng: random.Random) -> None:
    for num_prompts in (rng.randrange(6, 10), rng.randrange(33, 42)):
        ledger = Ledger(rng)
        prompts, count = some_prompts(rng, num_prompts), rng.randrange(5, 9)
        pairs = batch(lab, llm_beside(lab, ledger), prompts, exactly(count))
        expect(bool(ledger.steps), "the engine that was given took no step: was another one built? The one given is enough")
        expect(len(ledger.steps) == count,
               f"{len(prompts)} prompts of {count} tokens each took {len(ledger.steps)} steps. In one batch they take {count}: "
               "one call, all prompts")
        expect_from(ledger, pairs, prompts)


@check(todo=3, points=4, section=BATCH, concept="which output belongs to which prompt")
def each_prompt_comes_back_with_its_own_output_in_order(lab: Remote, rng: random.Random) -> None:
    ledger = Ledger(rng)
    prompts = some_prompts(rng, 9)
    prompts[2:4] = f"{prompts[2]}\n", f"  {prompts[3]} "  # white space is part of a prompt
    prompts.insert(rng.randrange(5, 9), prompts[1])
    limits = rng.sample(range(1, 12), len(prompts))
    limits[0] = 12  # the first is not the first to finish
    pairs = batch(lab, llm_beside(lab, ledger), prompts, [exactly(limit) for limit in limits])
    expect_from(ledger, pairs, prompts)
    none = batch(lab, llm_beside(lab, Ledger(rng)), [], exactly(2))
    expect(none == [], f"a batch of no prompts has no pairs; it gave {shown(none)}")
    used = [len(tokens_of(output)) for _, output in pairs]
    expect(used == limits, f"the prompts have parameters for {limits} tokens, in this order; the outputs have {used}")


@check(todo=3, points=1, section=BATCH, concept="a prompt that comes twice", hidden=True)
def a_prompt_that_comes_twice_is_two_requests(lab: Remote, rng: random.Random) -> None:
    ledger = Ledger(rng)
    one, other = some_prompts(rng, 2)
    prompts = [one, one, other, one]
    drawn = SamplingParams(temperature=1.0, max_tokens=3, ignore_eos=True)
    llm = llm_beside(lab, ledger)
    pairs = batch(lab, llm, prompts, drawn)
    expect(len(ledger.requests) == 4,
           f"4 prompts, 3 of them the same, were {len(ledger.requests)} requests; expected 4: what is drawn for each is "
           "its own")
    pairs += batch(lab, llm, prompts, drawn)
    expect(len(ledger.requests) == 8,
           f"the same 4 prompts in two calls were {len(ledger.requests)} requests; expected 8: a call remembers no other")
    expect_from(ledger, pairs, prompts * 2)


@check(todo=3, points=2, section=BATCH, concept="whose parameters are used", hidden=True)
def uses_the_parameters_it_is_given(lab: Remote, rng: random.Random) -> None:
    one = SamplingParams(temperature=rng.choice([0.3, 0.7]), top_p=0.5, max_tokens=rng.randrange(2, 6), ignore_eos=True,
                         seed=rng.randrange(999))
    several = [one.clone(max_tokens=limit, top_k=limit, seed=7 + limit) for limit in rng.sample(range(2, 9), 2)]
    names = ("temperature", "top_p", "top_k", "seed", "max_tokens")
    as_tuple = kept(lab._peer.root.package("builtins").tuple, several)
    for params, each in ((one, [one, one]), (several, several), (as_tuple, several)):
        ledger, prompts = Ledger(rng), some_prompts(rng, 2)
        batch(lab, llm_beside(lab, ledger), prompts, params)
        asked = {tokenizer().decode(served.prompt): {name: served.params.get(name) for name in names}
                 for served in ledger.requests}
        right = {prompt: {name: getattr(given, name) for name in names} for prompt, given in zip(prompts, each, strict=True)}
        expect(asked == right, f"the parameters given are {right}; the engine was asked for {asked}")


@check(todo=3, points=1, section=BATCH, concept="a prompt that the engine refuses")
def the_error_of_a_wrong_prompt_reaches_the_caller(lab: Remote, rng: random.Random) -> None:
    ledger = Ledger(rng)
    llm, prompts = llm_beside(lab, ledger), some_prompts(rng, 3)
    prompts.insert(rng.randrange(1, 4), "")
    refusal("InvalidParametersError", lambda: batch(lab, llm, prompts, exactly(3)), "there is an empty prompt among them")
    expect(not ledger.requests,
           f"{len(ledger.requests)} prompts were computed before the empty one was refused: one call, not a loop")


@check(todo=3, points=1, section=BATCH, concept="parameters that do not fit the prompts", hidden=True)
def the_error_of_a_wrong_number_of_parameters_reaches_the_caller(lab: Remote, rng: random.Random) -> None:
    for number in (2, 4):
        ledger = Ledger(rng)
        llm, prompts = llm_beside(lab, ledger), some_prompts(rng, 3)
        refusal("InvalidParametersError",
                lambda llm=llm, prompts=prompts, number=number: batch(lab, llm, prompts, [exactly(2)] * number),
                f"there are {number} parameters for 3 prompts")
        expect(not ledger.requests,
               f"{len(ledger.requests)} prompts were computed, and there were {number} parameters for 3")
