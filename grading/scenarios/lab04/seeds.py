"""Lab 04, TODO 5: how often each token is drawn, and what a draw depends on."""

import math
import random

import torch

from grading.judge.checks import check, expect, expect_nothing_replaced, hold, kept, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab04.draws import (
    NUM_DRAWS,
    NUM_PAIRS,
    Place,
    as_tokens,
    drawn,
    equal_tokens,
    expect_frequencies,
    moved,
    pairs_of_places,
    seeds_from,
    written_texts,
)
from grading.scenarios.lab04.rows import INF, across, expect_untouched, repeated, row, weather

SEEDS = "TODO 5: Per-request seeds"


@check(todo=5, points=2, section=SEEDS, concept="frequencies of a token")
def tokens_are_as_frequent_as_their_probabilities(lab: Remote, rng: random.Random) -> None:
    for places, who in ((seeds_from(rng, NUM_DRAWS), "the first tokens of 10,000 requests"),
                        (written_texts(rng, 100, 50), "200 samples of 50 tokens")):
        logits, _ = weather(rng)
        chances = logits.double().softmax(dim=0).tolist()
        expect_frequencies(drawn(lab, repeated(lab, logits + rng.uniform(-3, 3), NUM_DRAWS), places), chances,
                           f"{who}, softmax(logits)")


@check(todo=5, points=1, section=SEEDS, concept="tokens that were removed before", hidden=True)
def removed_tokens_are_never_drawn(lab: Remote, rng: random.Random) -> None:
    left = rng.sample(range(6), 2)
    logits = torch.full((6,), -INF)
    logits[left] = torch.tensor([0.0, math.log(3)]) + rng.uniform(-3, 3)
    tokens = drawn(lab, repeated(lab, logits, NUM_DRAWS), seeds_from(rng, NUM_DRAWS))
    expect_frequencies(tokens, [(0.0, 0.25, 0.75)[1 + left.index(t) if t in left else 0] for t in range(6)],
                       "two tokens of six are left, one three times as likely")


@check(todo=5, points=2, section=SEEDS, concept="draws at different places")
def draws_at_different_places_know_nothing_of_each_other(lab: Remote, rng: random.Random) -> None:
    logits = equal_tokens(lab, 2 * NUM_PAIRS)
    for name, pairs in pairs_of_places(rng).items():
        tokens = drawn(lab, logits, [place for pair in pairs for place in pair])
        both = list(zip(tokens[::2], tokens[1::2], strict=True))
        expect(all(0 <= token < 4 for token in tokens), f"of four equal tokens draw() took {shown(sorted(set(tokens)))}")
        same = sum(a == b for a, b in both)
        expect_frequencies(
            [4 * a + b for a, b in both], [1 / 16] * 16,
            f"four equal tokens, {name}, such as (seed, index, position) {pairs[1][0]} and {pairs[1][1]}: of {NUM_PAIRS} pairs "
            f"{same} drew one token twice, expected about {NUM_PAIRS // 4}; for the 16 pairs of tokens")


@check(todo=5, points=2, section=SEEDS, concept="the seed decides")
def the_seed_decides(lab: Remote, rng: random.Random) -> None:
    expect_decided_by(lab, rng, "seed", (1, 0, 0))


@check(todo=5, points=2, section=SEEDS, concept="the sample index decides")
def the_sample_index_decides(lab: Remote, rng: random.Random) -> None:
    expect_decided_by(lab, rng, "sample index", (0, 1, 0))


@check(todo=5, points=2, section=SEEDS, concept="the position decides")
def the_position_decides(lab: Remote, rng: random.Random) -> None:
    expect_decided_by(lab, rng, "position", (0, 0, 1))


def expect_decided_by(lab: Remote, rng: random.Random, which: str, step: Place) -> None:
    """Of 64 rows some draw another token if this number is one more: by chance none does once in 4**64."""
    first = rng.getrandbits(31)
    places = [(first + 1000 * k, k % 3, 3 + k) for k in range(64)]
    once, again = (drawn(lab, equal_tokens(lab, 64), some) for some in (places, [moved(place, step) for place in places]))
    expect(once != again,
           f"64 rows, and 64 whose {which} is one more, drew the same 64 tokens: the {which} must decide what is drawn")


@check(todo=5, points=1, section=SEEDS, concept="how soon draws repeat", hidden=True)
def nothing_repeats_however_far_one_goes(lab: Remote, rng: random.Random) -> None:
    seed, places = rng.getrandbits(40), rng.sample(range(200, 100_000), 4)
    far = [0, *(2**k for k in range(6, 18)), *(10**k for k in range(2, 6)), *places]
    expect_different({f"position {3 + length}": from_position(lab, seed, 3 + length, TEXT) for length in far})
    row_of = [token for start in range(3, 4611, 512) for token in from_position(lab, seed, start, 512)]
    expect_different({f"position {3 + i}": row_of[i : i + TEXT] for i in range(len(row_of) - TEXT + 1)})
    texts = [(seed, index, 3 + k) for index in range(256) for k in range(TEXT)]
    tokens = drawn(lab, equal_tokens(lab, len(texts), 16), texts)
    expect_different({f"sample index {i}": tokens[TEXT * i : TEXT * i + TEXT] for i in range(256)})


TEXT = 32
"""Draws in a row of 16 equal tokens: two texts of this length are equal by chance once in 2**128."""


def from_position(lab: Remote, seed: int, first: int, count: int) -> list[int]:
    """So many draws in a row of a request with a prompt of `first` tokens."""
    places = [(seed, 0, first + k) for k in range(count)]
    return drawn(lab, equal_tokens(lab, count, 16), places, row(prompt=[0] * first))


def expect_different(texts: dict[str, list[int]]) -> None:
    """No two of them are equal."""
    seen: dict[tuple, str] = {}
    for name, text in texts.items():
        other = seen.setdefault(tuple(text), name)
        expect(other == name,
               f"the {TEXT} draws of one seed from {other} on and from {name} on are the same: where does a number repeat, or "
               "lose digits?")


@check(todo=5, points=1, section=SEEDS, concept="any float type and layout", hidden=True)
def takes_any_float_type_and_memory_layout_and_changes_nothing(lab: Remote, rng: random.Random) -> None:
    logits = weather(rng)[0].bfloat16()
    many = logits.repeat(NUM_DRAWS, 1)
    held = across(lab, many)
    expect_frequencies(drawn(lab, held, seeds_from(rng, NUM_DRAWS)), logits.double().softmax(dim=0).tolist(),
                       "softmax(logits) of bfloat16 logits, a transposed tensor")
    expect_untouched(held, many, "draw()")
    single, few = torch.randn(4, 9, generator=torch.Generator().manual_seed(rng.getrandbits(31))), seeds_from(rng, 4)
    held = hold(lab, single)
    drawn(lab, held, few)
    expect_untouched(held, single, "draw()")


def some_texts(rng: random.Random) -> list[Place]:
    """200 places: draws there agree by chance once in 4**200."""
    return written_texts(rng, 10, 10)


def differing(a: list, b: list) -> int:
    """How many places of two lists differ."""
    return sum(x != y for x, y in zip(a, b, strict=True))


@check(todo=5, points=1, section=SEEDS, concept="the rows beside it")
def a_draw_does_not_depend_on_the_rows_beside_it(lab: Remote, rng: random.Random) -> None:
    places, logits = some_texts(rng), equal_tokens(lab, 200)
    together = drawn(lab, logits, places)
    again = drawn(lab, logits, places)
    expect(again == together, f"the same rows again: {differing(again, together)} of 200 draws differ")
    backwards = drawn(lab, logits, places[::-1])[::-1]
    expect(backwards == together, f"with the rows in reverse order {differing(backwards, together)} of 200 draws differ")
    draw, one_row = lab.draw, hold(lab, torch.zeros(1, 4))
    singles = [row(seed, index=index, output=[0] * (position - 3)) for seed, index, position in places[:60]]
    alone = [as_tokens(draw(one_row, [single]), 1)[0] for single in singles]
    expect(alone == together[:60],
           f"drawn one at a time, {differing(alone, together[:60])} of 60 draws differ from those of the batch")


@check(todo=5, points=2, section=SEEDS, concept="other batches", hidden=True,
       repeats="in another run of the program the same rows, drawn in another order, gave other tokens")
def a_draw_is_the_same_in_any_batch_and_at_any_time(lab: Remote, rng: random.Random, which: int) -> list[int]:
    places, part = some_texts(rng), rng.randrange(60, 140)
    if which:  # what is remembered, or drawn one after the other, is then another place's
        drawn(lab, equal_tokens(lab, 200), seeds_from(rng, 200))
        drawn(lab, equal_tokens(lab, 200), places[::-1])
    together = drawn(lab, equal_tokens(lab, 200), places)
    parts = drawn(lab, equal_tokens(lab, part), places[:part]) + drawn(lab, equal_tokens(lab, 200 - part), places[part:])
    expect(parts == together, f"in batches of {part} and {200 - part} rows {differing(parts, together)} of 200 draws differ")
    order = rng.sample(range(200), 200)
    logits, others = torch.zeros(400, 4), seeds_from(rng, 200)
    logits[1::2] = torch.tensor([rng.uniform(-3, 3) for _ in range(4)])
    mixed = drawn(lab, logits, [place for i, other in zip(order, others, strict=True) for place in (places[i], other)])[::2]
    right = [together[i] for i in order]
    expect(mixed == right,
           f"in another order, each beside a row with other logits, {differing(mixed, right)} of 200 draws differ")
    return together


@check(todo=5, points=1, section=SEEDS, concept="what else is in a row")
def of_a_row_seed_index_and_position_count_and_nothing_else(lab: Remote, rng: random.Random) -> None:
    places = [(seed, index, 9) for seed, index, _ in seeds_from(rng, 64)]  # 64 draws agree by chance once in 4**64
    logits = equal_tokens(lab, 64)
    first = drawn(lab, logits, places, row(prompt=[1, 2, 3]))
    for like, what in [
        (row(prompt=[1, 2, 3, 0, 0, 0]), "a prompt of 6 tokens and an output of 3 instead of 3 and 6, as after a preemption"),
        (row(prompt=[rng.randrange(9) for _ in range(3)], output=[rng.randrange(9) for _ in range(6)]),
         "other tokens in prompt and output"),
        (row(temperature=rng.uniform(0.3, 0.9), presence_penalty=1.0, logprobs=2),
         "other params, which the logits have in them already"),
    ]:
        found = drawn(lab, logits, places, like)
        expect(found == first, f"{what}, and the same seed, index and position: {differing(found, first)} of 64 draws differ")


@check(todo=5, points=2, section=SEEDS, concept="torch's global generator")
def torchs_global_generator_is_neither_used_nor_changed(lab: Remote, rng: random.Random) -> None:
    places, logits, torch_there = some_texts(rng), equal_tokens(lab, 200), lab._peer.root.package("torch")
    here, used = torch.Generator().manual_seed(rng.getrandbits(31)), rng.randrange(3, 9)
    torch_there.manual_seed(here.initial_seed())
    torch_there.rand(used)  # so that seeding it again does not bring it back
    torch.rand(used, generator=here)
    others = states(lab)
    first = drawn(lab, logits, places)
    expect_nothing_replaced(lab, "numbers")
    expect(torch.equal(torch_there.rand(4), torch.rand(4, generator=here)),
           "torch's global generator was used or seeded: whoever else draws from it now gets other numbers")
    expect(states(lab) == others,
           "the generator of random or of numpy that all share was used or seeded: whoever else draws from it now gets other "
           "numbers. random.Random(number) is one of your own")
    torch_there.manual_seed(rng.getrandbits(31))
    kept(lab._peer.root.package("random").seed, rng.getrandbits(31))
    second = drawn(lab, logits, places)
    expect(second == first,
           f"after torch.manual_seed() and random.seed() {differing(second, first)} of 200 draws differ: they depend on "
           "something besides the row")


def states(lab: Remote) -> list:
    """Of the generators of Python and of numpy that all share, there."""
    package = lab._peer.root.package
    return [package("builtins").repr(kept(state)) for state in (package("random").getstate, package("numpy").random.get_state)]


@check(todo=5, points=1, section=SEEDS, concept="which numbers a seed may be", hidden=True)
def any_number_of_64_bits_is_a_seed(lab: Remote, rng: random.Random) -> None:
    # among them pairs with one hash() in Python: -1 and -2, 0 and 2**61 - 1
    special = [0, -1, -2, 7, -7, 2**31, 2**32 - 1, 2**32, 2**61 - 1, 2**63 - 1, 2**63]
    seeds = list(dict.fromkeys([*special, *(sign * rng.getrandbits(62) for sign in (1, -1, -1))]))
    tokens = drawn(lab, equal_tokens(lab, 32 * len(seeds)), [(seed, 0, position) for seed in seeds for position in range(3, 35)])
    texts = {seed: tokens[32 * i : 32 * i + 32] for i, seed in enumerate(seeds)}
    # One of at most 91 pairs of texts of 32 draws is equal by chance with probability 91 / 4**32 = 5e-18.
    alike = [seed for seed, text in texts.items() if list(texts.values()).count(text) > 1]
    expect(not alike, f"the seeds {alike} gave equal texts of 32 draws")


@check(todo=5, points=1, section=SEEDS, concept="how fine the random numbers are", hidden=True)
def random_numbers_are_fine_enough_for_a_real_vocabulary(lab: Remote, rng: random.Random) -> None:
    # 2,000 draws from 2,048 equal tokens show about 1,277 different ones. One draw changes that number by
    # at most 1, so by McDiarmid's inequality it is under 1,000 with probability exp(-2 * 277**2 / 2000) < 1e-33.
    different = len(set(drawn(lab, equal_tokens(lab, 2000, 2048), seeds_from(rng, 2000))))
    expect(different >= 1000, f"2,000 draws from 2,048 equal tokens gave {different} different ones, expected about 1,277")
