"""Lab 05, TODO 1: generation, with a network that the judge plays."""

import random
from collections.abc import Callable
from typing import Any

from grading.judge.checks import check, expect, hold, look, ours, shown
from grading.sandbox.worker.peer import Raised, Remote
from grading.scenarios.lab05.network import Network


def generated(generate: Remote, network: Network, prompt: Any, count: int) -> list[int]:
    """What a generation returns, which must be so many ints."""
    try:
        tokens = generate(ours(network, "config", "dtype"), prompt, count)
    except Raised as error:
        if "TodoError" not in error.kinds:
            expect(not network.fault, network.fault)
        raise
    expect(not network.fault, network.fault)
    expect(isinstance(tokens, list) and all(type(token) is int for token in tokens),
           f"the new tokens are a list of ints; {shown(tokens)} came")
    expect(len(tokens) == count,
           f"{count} new tokens were asked for, without the prompt and past any end of sequence; "
           f"{len(tokens)} came: {shown(tokens)}")
    return tokens


def a_prompt(rng: random.Random, length: int) -> list[int]:
    """Token ids."""
    return [rng.randrange(100) for _ in range(length)]


def lengths(rng: random.Random) -> list[tuple[int, int]]:
    """Tokens of the prompt, and new ones."""
    return [(rng.randrange(4, 9), rng.randrange(3, 6)), (1, 4), (rng.randrange(3, 9), 1), (rng.randrange(5, 9), 9)]


def gives_the_best_tokens(generate: Remote, rng: random.Random) -> None:
    """`generate` returns the tokens with the largest logits."""
    for length, count in lengths(rng):
        network, prompt = Network(rng), a_prompt(rng, length)
        tokens, right = generated(generate, network, prompt, count), network.continuation(prompt, count)
        expect(tokens == right, f"after the prompt {prompt} the tokens with the largest logits are {right}; {tokens} came")


def computes(generate: Remote, rng: random.Random, starts: Callable[[int, int], list[int]], why: str) -> None:
    """The passes begin at `starts(length, count)` and go on to the last token there is."""
    for length, count in lengths(rng):
        network, prompt = Network(rng), a_prompt(rng, length)
        text = prompt + generated(generate, network, prompt, count)
        right = [(start, length + i) for i, start in enumerate(starts(length, count))]
        spans = [(start, start + len(tokens)) for start, tokens in network.passes]
        story = f"{length} tokens of prompt, {count} new"
        expect(spans == right, f"{story}: expected passes over positions {right} (first, end), and these came: {spans}. {why}")
        wrong = [start for start, tokens in network.passes if tokens != text[start : start + len(tokens)]]
        expect(not wrong, f"{story}: the passes that begin at {wrong} were given other tokens than prompt and answer have there")


def generates_nothing(generate: Remote, rng: random.Random) -> None:
    """Asked for no tokens, `generate` runs nothing."""
    network = Network(rng)
    none = generated(generate, network, a_prompt(rng, 5), 0)
    expect(none == [] and not network.passes, f"0 tokens were asked for: no pass is right, and there were {len(network.passes)}")


def leaves_the_prompt_alone(lab: Remote, generate: Remote, network: Network, prompt: list[int]) -> None:
    """`generate` takes a list, which it leaves as it was, or a tuple."""
    held, right = hold(lab, prompt), network.continuation(prompt, 4)
    for given in (held, tuple(prompt)):
        network.passes.clear()
        tokens = generated(generate, network, given, 4)
        expect(len(network.passes) == 4, f"4 tokens are 4 passes, every time; there were {len(network.passes)} after {prompt}")
        expect(tokens == right, f"after the prompt {prompt}, the second time as a tuple, expected {right}; {tokens} came")
    expect(look(held) == prompt, f"the caller's prompt was {prompt}, and is {shown(look(held))} after the call")


UNCACHED = "TODO 1: Generate without a cache"


@check(todo=1, points=4, section=UNCACHED, concept="which token comes next")
def each_new_token_is_the_one_with_the_largest_logit(lab: Remote, rng: random.Random) -> None:
    gives_the_best_tokens(lab.generate_uncached, rng)


@check(todo=1, points=4, section=UNCACHED, concept="what each pass computes")
def each_pass_computes_all_tokens_so_far(lab: Remote, rng: random.Random) -> None:
    computes(lab.generate_uncached, rng, lambda length, count: [0] * count,
             "Every pass begins at 0, and there is one for each new token.")


@check(todo=1, points=2, section=UNCACHED, concept="when a generation ends", hidden=True)
def a_generation_goes_on_past_the_end_of_a_sequence(lab: Remote, rng: random.Random) -> None:
    network, prompt = Network(rng, all_end=True), a_prompt(rng, 4)
    tokens, right = generated(lab.generate_uncached, network, prompt, 6), network.continuation(prompt, 6)
    expect(tokens == right, f"every token of this network ends a sequence; expected {right} all the same, {tokens} came")


@check(todo=1, points=2, section=UNCACHED, concept="what a caller may expect of the prompt, and of nothing to do", hidden=True)
def the_prompt_is_left_alone_and_nothing_may_be_generated(lab: Remote, rng: random.Random) -> None:
    leaves_the_prompt_alone(lab, lab.generate_uncached, Network(rng), a_prompt(rng, 3))
    generates_nothing(lab.generate_uncached, rng)
