"""Lab 06's one suite. It tests what `starter.py` does, by hand-sized examples, against a model, and in the engine.

All of it: pytest test_lab.py        One TODO: pytest test_lab.py -k todo_3
"""

import functools
import itertools
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from labs.harness.catalog import lab_at
from labs.harness.mixed_engine.part import load_seam
from labs.harness.suite.expecting import kinds_of, refusal, same, shown
from nano_qwen3_serving import LLM, EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.observe.trace import Recorder

FIVE = {1, 2, 3, 4, 5}
"""The usable blocks of a pool of six; block 0 is the null block."""


def pool(lab, num_blocks: int = 6, block_size: int = 4):
    """The example's manager: five usable blocks of four tokens, unless the test says otherwise."""
    return lab.BlockManager(num_blocks, block_size)


def drawn_pool(lab, rng):
    """A manager of five to nine usable blocks of three to six tokens; how many there are, and their size."""
    num_blocks, size = rng.randrange(6, 11), rng.randrange(3, 7)
    manager = lab.BlockManager(num_blocks, size)
    return manager, manager.num_free_blocks, size


def count_of(blocks: int) -> str:
    """`1 block`, `2 blocks`."""
    return f"{blocks} block{'' if blocks == 1 else 's'}"


def blocks_for(num_tokens: int, block_size: int) -> int:
    """What `num_tokens` tokens take, counted block by block and not divided."""
    return len(range(0, num_tokens, block_size))


def story(found, right, *known: tuple[object, str]) -> str:
    """What `found` is in place of what is `right`, in a sentence after a full stop; nothing if it is nothing that is known."""
    fits = dict.fromkeys(what for value, what in known if found == value and found != right)
    return f". That is {', or '.join(fits)}" if fits else ""


def whole(value) -> bool:
    """An int, and no bool: 2.0 and a tensor equal 2 as well, until one of them is used as an index."""
    return type(value) is int


def table_of(manager, request_id: str) -> list[int]:
    """The request's block table, or a failure if that is none. KeyError passes."""
    __tracebackhide__ = True
    table = manager.block_table(request_id)
    if not isinstance(table, list) or not all(map(whole, table)):
        raise AssertionError(
            f"block_table({request_id!r}) returned {shown(table)}; expected a list of block numbers (ints), "
            "or KeyError for a request without a table")
    return table


def got(manager, request_id: str, num_tokens: int) -> bool:
    """What allocate() answers, or a failure if that is no answer."""
    try:
        answer = manager.allocate(request_id, num_tokens)
    except Exception as error:
        if "OutOfBlocks" not in kinds_of(error):
            raise
        raise AssertionError(
            f"allocate({request_id!r}, {num_tokens}) let OutOfBlocks out; when too few blocks are free the answer is False"
        ) from error
    assert isinstance(answer, bool), f"allocate({request_id!r}, {num_tokens}) returned {answer!r}; expected True or False"
    return answer


def give(manager, request_id: str, num_tokens: int) -> list[int]:
    """The request's block table after an allocation that must succeed."""
    before, fits = situation(manager, request_id, num_tokens)
    granted = got(manager, request_id, num_tokens)
    why = "that fits" if fits else "that would fit if no earlier call had taken or lost too many blocks"
    assert granted, f"allocate({request_id!r}, {num_tokens}) was refused, and {why}: {before}"
    return table_of(manager, request_id)


def refuse(manager, request_id: str, num_tokens: int) -> None:
    """An allocation that must be refused."""
    before, fits = situation(manager, request_id, num_tokens)
    granted = got(manager, request_id, num_tokens)
    why = "that would not fit if earlier calls had taken all they had to" if fits else "that does not fit"
    assert not granted, f"allocate({request_id!r}, {num_tokens}) said True, and {why}: {before}"


def situation(manager, request_id: str, num_tokens: int) -> tuple[str, bool]:
    """How things stand before an allocation, in words, and whether it fits as things stand."""
    size, free = manager.block_size, manager.num_free_blocks
    held = 0 if has_no_table(manager, request_id) else len(table_of(manager, request_id))
    needed = blocks_for(num_tokens, size)
    words = f"{request_id} held {count_of(held)} of {size} tokens and needs {needed} in all, with {free} free"
    return words, needed - held <= free


def set_free(manager, request_id: str) -> None:
    """free(), which raises nothing for a request without a block table."""
    unknown = has_no_table(manager, request_id)
    try:
        manager.free(request_id)
    except KeyError as error:
        if not unknown:
            raise
        raise AssertionError(
            f"free({request_id!r}) raised KeyError; for a request without a block table it does nothing"
        ) from error


def has_no_table(manager, request_id: str) -> bool:
    """Whether block_table() raises KeyError."""
    __tracebackhide__ = True
    try:
        table_of(manager, request_id)
    except KeyError:
        return True
    return False


def assert_free(manager, expected: int, when: str) -> None:
    """So many blocks are free; `when` says what happened before."""
    found = manager.num_free_blocks
    assert found == expected, f"{when}: {count_of(expected)} should be free now; num_free_blocks says {found}"


def names(word: int | str, said: str, *others: int) -> bool:
    """Whether a message names this number or request, and not just as much each of several `others`, of which it might be."""
    there, *elsewhere = (len(re.findall(rf"(?<![\w-]){one}(?!\w)", said)) for one in (word, *others))
    return there > 0 and not (len(others) > 1 and min(elsewhere) >= there)


# TODO 1: the free list


def taken(free, count: int) -> list[int]:
    """What take() returns, or a failure if those are not so many block numbers."""
    return block_numbers(free.take(count), count)


def block_numbers(blocks, count: int) -> list[int]:
    """What take(count) returned, or a failure if those are not so many block numbers."""
    assert isinstance(blocks, list) and all(map(whole, blocks)), (
        f"take({count}) returned {shown(blocks)}; expected a list of block numbers, each an int"
    )
    assert len(blocks) == count, f"take({count}) returned {count_of(len(blocks))}: {shown(blocks)}"
    return blocks


def all_of(free) -> list[int]:
    """Takes what is free; every block of it must be there once."""
    blocks = taken(free, len(free))
    twice = sorted({block for block in blocks if blocks.count(block) > 1}) if len(set(blocks)) < len(blocks) else []
    assert not twice, f"all {len(blocks)} free blocks were taken, and blocks {shown(twice)} came twice"
    return blocks


@pytest.mark.todo(1, points=2)
@pytest.mark.parametrize("num_blocks", [2, 6, "any"])
def test_todo_1_every_block_but_the_null_block_is_free_at_the_start(lab, rng, num_blocks):
    num_blocks = rng.randrange(7, 1000) if num_blocks == "any" else num_blocks
    free = lab.FreeList(num_blocks)
    blocks = all_of(free)
    assert 0 not in blocks, "block 0, the null block, was handed out: padding is written there"
    missing, strange = set(range(1, num_blocks)) - set(blocks), set(blocks) - set(range(1, num_blocks))
    assert not missing, f"FreeList({num_blocks}) begins without the blocks {shown(sorted(missing))}"
    assert not strange, f"FreeList({num_blocks}) begins with blocks it does not have: {shown(sorted(strange))}"


@pytest.mark.todo(1, points=2)
def test_todo_1_a_block_is_out_until_it_is_given_back(lab, rng, there):
    free = lab.FreeList(rng.randrange(6, 20))
    usable = len(free)
    kept = there.kept(free.take, 2)
    first = block_numbers(there.look(kept), 2)
    none, second = taken(free, 0), taken(free, usable - 2)
    assert there.look(kept) == first, f"take() gave {first}, and a later take() made {shown(there.look(kept))} of that list"
    assert not set(first) & set(second), f"two blocks were taken, {first}, and then the others, {second}: some came twice"
    assert none == [] and len(free) == 0, f"all blocks were taken, and {len(free)} are said to be free"
    try:
        nothing = taken(free, 0)
        free.give_back([])
    except Exception as error:
        if not {"OutOfBlocks", "ValueError"} & set(kinds_of(error)):
            raise
        raise AssertionError(
            f"with no block free, take(0) gives [] and give_back([]) does nothing; {kinds_of(error)[0]} was raised") from error
    assert nothing == [] and len(free) == 0, f"take(0) and give_back([]) change nothing; {len(free)} are said to be free"
    out = [block for block in (*first, *second) if block != 0]
    free.give_back([out[1]])
    assert len(free) == 1, f"one block was given back, and {len(free)} are said to be free"
    free.give_back(there.iterator([out[0], out[3]]))
    assert len(free) == 3, (
        f"1 block was free and an iterator of 2 was given back; now {len(free)} are said to be free instead of 3. "
        "Any iterable will do, and an iterator can be read once"
    )
    back, again = sorted([out[0], out[1], out[3]]), sorted(taken(free, 3))
    assert again == back, f"the blocks {back} were given back and are to be taken again; take(3) gave {again}"
    try:
        free.give_back(again)
    except ValueError as error:
        raise AssertionError(
            f"the blocks {again} were given back, taken again, and are given back a second time, which is right; "
            f"give_back() raised ValueError ({error})") from error
    assert len(free) == 3, f"3 blocks came back for the second time, and {len(free)} are said to be free"
    lowest = rng.randrange(1, 4)
    for steps in ((0, 3, 2), (2, 0, 4), (0, 1, 2), (2, 1, 0)):
        back, free = [lowest + step for step in steps], lab.FreeList(9)
        assert set(all_of(free)) >= set(back), f"all blocks were taken, and some of {back} are not out"
        free.give_back(back)
        found = sorted(all_of(free))
        assert found == sorted(back), (
            f"the blocks {back} came back, and {found} are free: how far apart the first and the last are says nothing of those "
            "in between")


@pytest.mark.todo(1, points=2)
def test_todo_1_takes_as_many_as_asked_for_or_none(lab, rng):
    free = lab.FreeList(rng.randrange(6, 16))
    usable = len(free)
    kept = taken(free, 2)
    before, asked = len(free), len(free) + rng.randrange(1, 4)
    said = f"take({asked}) with {count_of(before)} free"
    refusal("OutOfBlocks", lambda: free.take(asked), f"{said} must be refused")
    assert len(free) == before, f"{said} was refused, and after that {len(free)} were free: a refusal takes nothing"
    assert len({*kept, *all_of(free)}) == usable, "after a take() that was refused, other blocks were free than before"


@pytest.mark.todo(1, points=2)
@pytest.mark.parametrize("why", ["free already", "the null block", "one more than the pool has", "not in the pool", "no block"])
def test_todo_1_refuses_a_block_that_was_not_out(lab, rng, why):
    size = rng.randrange(6, 12)
    block = {"free already": rng.randrange(1, size), "the null block": 0, "one more than the pool has": size,
             "not in the pool": rng.randrange(size + 1, 200), "no block": -1}[why]
    free, untouched = lab.FreeList(size), lab.FreeList(size)
    before = len(free)
    accepted = f"give_back([{block}]) was accepted, and block {block} is {why}"
    said = refusal("ValueError", lambda: free.give_back([block]), accepted)
    assert names(block, said), f"the error must name block {block}; it says {said!r}"
    assert len(free) == before, f"{before} blocks were free; after give_back([{block}]) was refused there are {len(free)}"
    found, expected = sorted(all_of(free)), sorted(all_of(untouched))
    assert found == expected, f"give_back([{block}]) was refused; after that the blocks {found} are free instead of {expected}"


@pytest.mark.todo(1, points=1)
def test_todo_1_refuses_a_block_that_is_given_back_twice_in_one_call(lab, rng):
    free = lab.FreeList(rng.randrange(6, 12))
    block = rng.choice([block for block in all_of(free) if block != 0])
    assert_complains_about(lab, free, block, [block, block], block)


@pytest.mark.todo(1, points=1)
def test_todo_1_refuses_a_block_that_comes_back_in_a_second_call(lab, rng):
    free = lab.FreeList(8)
    first, second = rng.sample([block for block in all_of(free) if block != 0], 2)
    free.give_back([first])
    free.give_back([second])
    said = refusal("ValueError", lambda: free.give_back([first]), f"block {first} came back in two calls, and was out once")
    assert names(first, said), f"the error must name block {first}; it says {said!r}"
    found = sorted(all_of(free))
    assert found == sorted([first, second]), f"the blocks {first} and {second} came back; after the refusal {found} are free"


@pytest.mark.todo(1, points=1)
@pytest.mark.parametrize("null_block_comes", ["last", "first", "between"])
def test_todo_1_refuses_a_block_that_was_not_out_beside_one_that_was(lab, rng, null_block_comes):
    free = lab.FreeList(rng.randrange(6, 12))
    good, other = rng.sample([block for block in all_of(free) if block != 0], 2)
    blocks = {"last": [good, 0], "first": [0, good], "between": [good, 0, other]}[null_block_comes]
    assert_complains_about(lab, free, 0, blocks, good, other)


def assert_complains_about(lab, free, bad: int, blocks: list[int], *good: int) -> None:
    """`give_back(blocks)` raises. Whether the good blocks of such a call become free is not judged."""
    why = "is the null block" if bad == 0 else "was not out the second time"
    said = refusal("ValueError", lambda: free.give_back(blocks), f"give_back({blocks}) was accepted, and block {bad} {why}")
    assert names(bad, said, *good), f"the error about give_back({blocks}) must name block {bad} alone; it says {said!r}"
    found, fine = all_of(free), sorted({*blocks} & {*good})
    assert set(found) <= set(fine), (
        f"no block was free; after give_back({blocks}) has raised, the blocks {found} are; only {fine} may be"
    )


@pytest.mark.todo(1, points=1)
def test_todo_1_two_pools_know_nothing_of_each_other(lab, rng):
    small, large = rng.randrange(3, 6), rng.randrange(7, 12)
    mine, yours = lab.FreeList(large), lab.FreeList(small)
    before = len(yours)
    ours = taken(mine, len(mine))
    assert len(yours) == before, f"blocks were taken from one pool; another had {before} free and has {len(yours)}"
    left = all_of(yours)
    assert set(left) <= set(ours) and len(left) < len(ours), (
        f"a pool of {large} gave the blocks {sorted(ours)}, and after that one of {small} gave {sorted(left)}"
    )
    third = all_of(lab.FreeList(large))
    assert set(third) == set(ours), f"a pool of {large} was emptied; a new one of its size begins with {sorted(third)}"


# TODO 2: allocation, all or nothing


@pytest.mark.todo(2, points=5)
@pytest.mark.parametrize(
    "num_tokens, block_size, expected",
    [(0, 4, 0), (1, 4, 1), (3, 4, 1), (4, 4, 1), (5, 4, 2), (7, 4, 2), (8, 4, 2), (9, 4, 3), (16, 16, 1), (17, 16, 2),
     (5, 1, 5), (1025, 16, 65)],
)
def test_todo_2_the_last_block_may_be_partly_empty_but_not_wholly(lab, rng, num_tokens, block_size, expected):
    assert_needs(lab, num_tokens, block_size, expected)
    size = rng.randrange(2, 33)
    for blocks, more in itertools.product((1, 2, rng.randrange(3, 60)), (-1, 0, 1)):
        assert_needs(lab, blocks * size + more, size, blocks_for(blocks * size + more, size))


def assert_needs(lab, num_tokens: int, block_size: int, expected: int) -> None:
    """blocks_needed() counts right, and in ints."""
    found, down = lab.blocks_needed(num_tokens, block_size), num_tokens // block_size
    why = story(found, expected, (down, "rounded down: the last block, which is not full, counts, too"),
                (down + 1, "one more than rounded down: at an exact multiple it is one too many"))
    assert found == expected, (
        f"{num_tokens} tokens in blocks of {block_size} need {count_of(expected)}; blocks_needed() said {found}{why}"
    )
    assert whole(found), f"blocks_needed() returned {found!r}: a count of blocks is an int"


@pytest.mark.todo(2, points=3)
def test_todo_2_a_and_b_get_the_blocks_they_need_and_share_none(lab):
    manager = pool(lab)
    usable = manager.num_free_blocks
    a, b = give(manager, "A", 6), give(manager, "B", 3)
    assert len(a) == 2, f"A's 6 tokens take 2 blocks of 4; its block table is {a}"
    assert len(b) == 1, f"B's 3 tokens take 1 block of 4; its block table is {b}"
    assert len({*a, *b}) == 3 and {*a, *b} <= FIVE, f"three different blocks of 1 to 5 were expected; A has {a}, B has {b}"
    assert_free(manager, usable - 3, f"{usable} blocks were free, A got 2 and B 1")
    assert (manager.block_table("A"), manager.block_table("B")) == (a, b), "a block table changed without an allocation"


@pytest.mark.todo(2, points=2)
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("blocks", [1, 2, 4])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_todo_2_no_block_too_few_and_none_too_many_at_the_edge(lab, blocks, more, block_size):
    num_tokens = max(blocks * block_size + more, 1)
    table, expected = give(pool(lab, block_size=block_size), "A", num_tokens), blocks_for(num_tokens, block_size)
    assert len(table) == expected, (
        f"{num_tokens} tokens in blocks of {block_size} need {count_of(expected)}; the table is {table}"
    )


@pytest.mark.todo(2, points=3)
def test_todo_2_a_request_that_does_not_fit_changes_nothing(lab, rng):
    manager = pool(lab)
    a = give(manager, "A", 11)
    before = manager.num_free_blocks
    refuse(manager, "C", 4 * before + 1)
    assert_free(manager, before, f"{count_of(before)} could be had, C needed {before + 1} and was refused, which takes nothing")
    assert has_no_table(manager, "C"), "C was refused, yet block_table('C') does not raise KeyError"
    assert manager.block_table("A") == a, "C was refused, and A's block table is another one than before"
    c = give(manager, "C", 4 * before - 1)
    assert len(c) == before and not set(a) & set(c), f"C came again, with tokens for {count_of(before)}; A has {a}, C has {c}"
    manager, usable, size = drawn_pool(lab, rng)
    a = give(manager, "A", 2 * size + 1)
    refuse(manager, "C", size * (usable - 3) + rng.randrange(1, size))
    assert has_no_table(manager, "C"), "C was refused, yet block_table('C') does not raise KeyError"
    assert_free(manager, usable - 3, f"A holds 3 of {usable} blocks, and C was refused")
    c = give(manager, "C", size * (usable - 3) - rng.randrange(size))
    assert not set(a) & set(c), f"A has {a} and C has {c}: they hold a block together"


@pytest.mark.todo(2, points=2)
def test_todo_2_the_last_free_block_can_be_had(lab, rng):
    manager = pool(lab)
    assert set(give(manager, "A", 20)) == FIVE, "20 tokens fill 5 blocks of 4: all there are, and not the null block"
    assert_free(manager, 0, "A took all 5 blocks")
    refuse(manager, "B", 1)
    refuse(pool(lab), "C", 21)
    manager, usable, size = drawn_pool(lab, rng)
    refuse(manager, "C", size * usable + 1)
    table = give(manager, "C", size * usable)
    assert len(set(table)) == usable, f"{usable} blocks were free, and C's tokens fill them; its table is {table}"


@pytest.mark.todo(2, points=2)
def test_todo_2_a_block_table_is_the_callers_to_change(lab, there):
    manager = pool(lab)
    original = list(give(manager, "A", 6))
    theirs = there.kept(manager.block_table, "A")
    theirs.append(77)
    theirs.reverse()
    assert manager.block_table("A") == original, (
        f"a caller changed the list it got, and now A's table is {manager.block_table('A')} instead of {original}: return a copy"
    )


@pytest.mark.todo(2, points=1)
def test_todo_2_block_table_shows_the_table_as_it_is_now_in_its_order(lab, rng, there):
    manager = pool(lab)
    give(manager, "A", 6)
    for now in ([5, 2], [5, 2, 3], [4, 1], falling_and_rising(rng, 3), falling_and_rising(rng, 2)):  # as later TODOs change it
        manager.tables = {"A": list(now)}
        found = table_of(manager, "A")
        why = " That is an earlier state of it." if found != sorted(now) else " The order is that of the request's tokens."
        assert found == now, f"self.tables has {now} for A by now; block_table('A') says {found}.{why}"
    held = there.hold([4, 1])
    manager.tables = there.hold({"A": held})
    held.append(3)
    assert table_of(manager, "A") == [4, 1, 3], f"A's list has become [4, 1, 3]; block_table('A') says {table_of(manager, 'A')}"


def falling_and_rising(rng, count: int) -> list[int]:
    """So many of the blocks 1 to 5, of which a later one is smaller."""
    first, *others = sorted(rng.sample(range(1, 6), count))
    return [*others, first]


# TODO 3: growth


@pytest.mark.todo(3, points=3)
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_todo_3_a_request_that_generates_takes_a_block_at_each_edge(lab, block_size):
    manager, seen = pool(lab, block_size=block_size), []
    give(manager, "A", 1)
    for num_tokens in range(2, 5 * block_size + 1):
        table = give(manager, "A", num_tokens)
        expected = blocks_for(num_tokens, block_size)
        assert len(table) == expected, (
            f"with {num_tokens} tokens in all A needs {count_of(expected)} of {block_size}; its table is {table}"
        )
        assert table[: len(seen)] == seen, f"A grew from {seen} to {table}: the blocks it had must stay, in their order"
        assert len(set(table)) == len(table) and set(table) <= FIVE, f"A's table is {table}: not different blocks of 1 to 5"
        seen = table
    assert_free(manager, 0, "A has grown to all 5 blocks")


@pytest.mark.todo(3, points=3)
@pytest.mark.parametrize("first, then", [(3, 13), (4, 12), (4, 5), (5, 17), (8, 20), ("any", "more")])
def test_todo_3_a_chunk_may_cross_several_edges(lab, rng, first, then):
    if first == "any":
        first = rng.randrange(1, 8)
        then = rng.randrange(first + 1, 21)
    manager = pool(lab)
    usable = manager.num_free_blocks
    before = list(give(manager, "A", first))
    table, expected = give(manager, "A", then), blocks_for(then, 4)
    assert len(table) == expected and table[: len(before)] == before, (
        f"A went from {first} to {then} tokens, so from {blocks_for(first, 4)} to {count_of(expected)} of 4; "
        f"from {before} it came to {table}{growth_story(len(table), first, then)}"
    )
    assert len(set(table)) == expected, f"A's table has a block twice: {table}"
    assert_free(manager, usable - expected, f"A holds {expected} of {usable} blocks")


def growth_story(found: int, first: int, then: int) -> str:
    """Which mistake makes a table of `found` blocks of 4, in a sentence; nothing if none that we know does."""
    held, needed = blocks_for(first, 4), blocks_for(then, 4)
    return story(
        found, needed, (held, "nothing added"), (held + needed, "tokens in addition; they are counted in all"),
        (held + 1, "one block more, though several edges were crossed"), (needed + 1, "one block too many"),
        (needed - 1, "one block too few"),
    )


@pytest.mark.todo(3, points=1)
def test_todo_3_growth_keeps_a_table_in_the_order_it_has(lab):
    manager = pool(lab)
    low, middle, high = sorted(give(manager, "A", 12))
    before = [middle, high, low]  # blocks come as they become free, in any order
    manager.tables = {"A": list(before)}
    table = give(manager, "A", 20)
    assert table[:3] == before, (
        f"A's table was {before} and is {table} after it grew: there are keys and values in those blocks, so they stay in "
        "their order, whatever their numbers are"
    )


@pytest.mark.todo(3, points=3)
def test_todo_3_tokens_are_counted_in_all_not_in_addition(lab, rng):
    manager = pool(lab)
    usable = manager.num_free_blocks
    give(manager, "A", 6)
    for num_tokens in (6, 7, 8):
        table = give(manager, "A", num_tokens)
        assert len(table) == 2, f"A has {num_tokens} tokens in all, which take 2 blocks of 4; its table is {table}"
    give(manager, "A", 3)
    assert len(manager.block_table("A")) == 2, "asked for fewer tokens than it has room for, A keeps its blocks"
    table = give(manager, "A", 8)
    assert len(table) == 2, (
        f"A holds 2 blocks of 4, so it has room for 8 tokens, also if 3 were asked for last; its table is {table}"
    )
    assert_free(manager, usable - 2, f"A holds 2 of {usable} blocks")
    manager, usable, size = drawn_pool(lab, rng)
    for num_tokens in (size + 1, 2 * size, 1, rng.randrange(1, 2 * size), 2 * size):
        table = give(manager, "A", num_tokens)
        assert len(table) == 2, f"A holds 2 blocks of {size} and asked for {num_tokens} tokens in all; its table is {table}"


@pytest.mark.todo(3, points=3)
def test_todo_3_growth_that_does_not_fit_changes_nothing(lab, rng):
    manager = pool(lab)
    a, b = list(give(manager, "A", 6)), list(give(manager, "B", 3))
    before = manager.num_free_blocks
    refuse(manager, "A", 17)  # three more blocks, and two are free
    assert manager.block_table("A") == a, (
        f"A's growth was refused; its table was {a} and is {manager.block_table('A')}: what it had stays, and nothing comes"
    )
    assert_free(manager, before, f"{count_of(before)} could be had, and A's growth was refused, which takes nothing")
    assert manager.block_table("B") == b, f"A's growth was refused; B's table was {b} and is {manager.block_table('B')}"
    table = give(manager, "A", 16)
    assert len(table) == 4, f"after a refusal A grew to 16 tokens, which fill 4 blocks; its table is {table}"
    manager, usable, size = drawn_pool(lab, rng)
    a, b = give(manager, "A", size + 1), give(manager, "B", 1)
    refuse(manager, "A", size * (usable - 1) + rng.randrange(1, size))
    assert table_of(manager, "A") == a, f"A's growth was refused; its table was {a} and is {table_of(manager, 'A')}"
    table = give(manager, "A", size * (usable - 1))
    assert table[:2] == a and not set(table) & set(b), f"A grew from {a} to all that B, which has {b}, leaves: to {table}"
    refuse(manager, "B", size + 1)


@pytest.mark.todo(3, points=2)
def test_todo_3_room_in_the_last_block_needs_no_free_block(lab):
    manager = pool(lab)
    give(manager, "A", 17)
    assert_free(manager, 0, "A's 17 tokens take all 5 blocks")
    for num_tokens in (17, 18, 20, 4):
        table = give(manager, "A", num_tokens)
        assert len(table) == 5, f"A's 5 blocks have room for {num_tokens} tokens in all; now its table is {table}"
    refuse(manager, "A", 21)


# TODO 4: slots


def slots_found(lab, table, positions, block_size: int) -> list[int]:
    """What slots() returns, or a failure if those are not slots."""
    __tracebackhide__ = True
    found = lab.slots(table, positions, block_size)
    if not isinstance(found, list) or not all(map(whole, found)):
        raise AssertionError(f"slots() returned {shown(found)}; expected a list of slots, each an int")
    return found


def slots_story(found: list[int], table, positions, size: int) -> str:
    """Which mistake gives these slots, in a sentence; nothing if none that we know does."""
    known = [
        (lambda i: i, "the positions: the block is what stands in the table at position // block_size"),
        (lambda i: table[0] * size + i, "one row from the first block on: the table names each further block, however far apart "
                                        "the first and the last are"),
        (lambda i: table[i // size] + i % size, "right if a block's number were its first slot: multiply it by the block size"),
        (lambda i: table[i // size] * size, "the first slot of each block: the place in it, position % block_size, is missing"),
        (lambda i: table[i % size % len(table)] * size + i // size, "quotient and remainder exchanged"),
    ]
    return story(found, None, *(([slot(i) for i in positions], what) for slot, what in known))


@pytest.mark.todo(4, points=3)
def test_todo_4_a_position_is_found_by_its_block_and_its_place_in_it(lab, there):
    table = there.hold([1, 2, 5])
    expected = [4, 5, 6, 7, 8, 9, 10, 11, 20]
    found = slots_found(lab, table, range(9), 4)
    assert found == expected, (
        f"A's blocks are [1, 2, 5]: its positions 0-3 are in slots 4-7, 4-7 in 8-11, and 8 is the first of block 5, slot 20. "
        f"slots() said {found}{slots_story(found, [1, 2, 5], range(9), 4)}"
    )
    assert there.look(table) == [1, 2, 5], f"slots() changed the block table that it was given, to {there.look(table)}"


@pytest.mark.todo(4, points=1)
def test_todo_4_a_table_that_has_changed_is_read_again(lab, there):
    table = there.hold([3])
    for change, now, expected in ((lambda: None, [3], [12, 13]), (lambda: table.append(1), [3, 1], [12, 13, 4, 5]),
                                  (lambda: table.reverse(), [1, 3], [4, 5, 12, 13])):
        change()
        found = slots_found(lab, table, [p for p in (0, 1, 4, 5) if p < 4 * len(now)], 4)
        assert found == expected, (
            f"the same list holds the blocks {now} now, whatever it held in an earlier call: expected {expected}, got {found}"
        )


@pytest.mark.todo(4, points=4)
@pytest.mark.parametrize("block_size", [1, 3, 4, 16, "any"])
def test_todo_4_slots_are_those_of_the_pool_laid_out_block_by_block(lab, rng, block_size):
    block_size = rng.randrange(5, 33) if block_size == "any" else block_size
    drawn = [[block * block_size + offset for offset in range(block_size)] for block in range(60)]  # the pool, a row a block
    first = rng.randrange(1, 50)
    # Two tables whose ends are as far apart as if their blocks lay in a row, and one whose blocks do.
    tables = [rng.sample(range(1, 60), 5), [first, 58, first + 2, 59, first + 4],
              [first + step for step in (0, 3, 2, 1, 4)], list(range(first, first + 5))]
    for table, k in itertools.product(tables, (1, 2, 5)):
        layout = [slot for block in table for slot in drawn[block]]
        for length in {max(k * block_size - 1, 1), k * block_size, min(k * block_size + 1, len(layout))}:
            found = slots_found(lab, table, range(length), block_size)
            assert found == layout[:length], (
                f"{length} positions in blocks {table} of {block_size}: expected {layout[:length]}, slots() said {found}"
                f"{slots_story(found, table, range(length), block_size)}"
            )


@pytest.mark.todo(4, points=2)
def test_todo_4_any_positions_in_any_order(lab, rng, there):
    cases = [  # block 3 has slots 12 to 15, block 1 has 4 to 7
        (range(5, 7), [5, 6], "a chunk need not begin at position 0"),
        ([7, 0, 4], [7, 12, 4], "the slots come in the order of the positions"),
        ([], [], "no positions, no slots"),
        ([4, 4, 0], [4, 4, 12], "one slot for each position, and one that comes twice has two"),
        ([2, 7, 4], [14, 7, 4], "how far apart the first and the last position are says nothing of those in between"),
        ([2, 4, 3, 5], [14, 4, 15, 5], "the same positions as in a range may come in another order"),
        (there.iterator([1, 2]), [13, 14], "positions may be any iterable, and an iterator can be read once"),
    ]
    for positions, expected, why in cases:
        found = slots_found(lab, (3, 1), positions, 4)
        assert found == expected, f"{why}: in a table with blocks 3 and 1 of 4, expected slots {expected}; slots() said {found}"
    size, table = rng.randrange(2, 9), rng.sample(range(1, 60), 3)
    laid_out = [block * size + offset for block in table for offset in range(size)]
    start = rng.randrange(1, size)
    for positions in (range(start, 2 * size + 1), rng.sample(range(3 * size), 4), [start, start, 0], [start, 0, start + 2]):
        found, expected = slots_found(lab, table, positions, size), [laid_out[position] for position in positions]
        assert found == expected, (
            f"positions {[*positions]} in blocks {table} of {size}: expected {expected}, slots() said {found}")


@pytest.mark.todo(4, points=2)
@pytest.mark.parametrize("size", [4, "any"])
@pytest.mark.parametrize("position", ["the next", "one more", "far away", "-1", "one round less"])
@pytest.mark.parametrize("comes", ["last", "first", "between"])
def test_todo_4_refuses_a_position_that_the_table_does_not_cover(lab, rng, position, comes, size):
    size, table = (size, [1, 2]) if size != "any" else (rng.randrange(3, 9), rng.sample(range(1, 60), 2))
    position = {"the next": 2 * size, "one more": 2 * size + 1, "far away": rng.randrange(300, 400), "-1": -1,
                "one round less": -2 * size}[position]
    positions = {"last": [0, position], "first": [position, 5], "between": [0, position, 5]}[comes]
    said = refusal(
        "IndexError", lambda: list(lab.slots(table, positions, size)),
        f"2 blocks of {size} cover positions 0 to {2 * size - 1}, so position {position} has no slot; what is kept there belongs "
        "to another token",
    )
    others = [other for other in positions if other != position]
    assert names(position, said, *others), (
        f"slots of {positions}: the error must name position {position} alone; it says {said!r}")


# TODO 5: free exactly once


@pytest.mark.todo(5, points=2)
def test_todo_5_free_gives_every_block_back(lab, rng):
    manager = pool(lab)
    give(manager, "A", 6)
    b = list(give(manager, "B", 3))
    a = give(manager, "A", 9)
    before = manager.num_free_blocks
    set_free(manager, "A")
    assert_free(manager, before + len(a), f"{count_of(before)} could be had, and A was freed, which held {len(a)}")
    assert manager.block_table("B") == b, f"A was freed; B's block table was {b} and is {manager.block_table('B')}"
    c = give(manager, "C", 16)
    assert {*b, *c} == FIVE, f"the blocks that A gave back are to be had by others; B has {b}, C got {c}"
    manager = pool(lab)
    assert set(give(manager, "A", 12)) | set(give(manager, "B", 8)) == FIVE, "A and B take all five blocks"
    manager.tables = {"A": [2, 5, 4], "B": [1, 3]}  # blocks come as they become free, in any order
    set_free(manager, "A")
    c = give(manager, "C", 12)
    assert sorted(c) == [2, 4, 5], (
        f"A's table was [2, 5, 4] and B's is [1, 3]; A was freed, so C's blocks are 2, 4 and 5 in some order; it got {c}"
    )
    manager, usable, size = drawn_pool(lab, rng)
    give(manager, "A", size + 1)
    b, a = give(manager, "B", rng.randrange(1, size + 1)), give(manager, "A", 2 * size + 1)
    set_free(manager, "A")
    assert_free(manager, usable - 1, f"{usable - 4} blocks were free, and A was freed, which held {len(a)}")
    c = give(manager, "C", size * (usable - 1))
    assert not set(b) & set(c), f"C has all that B leaves; B has {b}, C has {c}"


@pytest.mark.todo(5, points=2)
def test_todo_5_freeing_twice_gives_back_once(lab):
    manager = pool(lab)
    give(manager, "A", 6)
    set_free(manager, "A")
    b = list(give(manager, "B", 12))
    before = manager.num_free_blocks
    set_free(manager, "A")  # a late abort: some of A's blocks are B's by now
    assert_free(manager, before, f"B holds {count_of(len(b))}, and A, which held nothing, was freed once more")
    c = give(manager, "C", 8)
    assert not set(b) & set(c), f"B has {b} and C has {c}: they hold a block together"


@pytest.mark.todo(5, points=2)
def test_todo_5_a_request_without_blocks_may_be_freed(lab):
    manager = pool(lab)
    before = manager.num_free_blocks
    set_free(manager, "never heard of")  # an abort of a request that still waited
    assert_free(manager, before, "a request was freed that held nothing")
    a = list(give(manager, "A", 20))
    refuse(manager, "C", 4)
    set_free(manager, "C")  # refused, so it has nothing
    assert_free(manager, 0, "A holds all blocks, and C, which was refused, was freed")
    assert manager.block_table("A") == a, f"C was freed, which held nothing; A's table was {a} and is {manager.block_table('A')}"


@pytest.mark.todo(5, points=2)
def test_todo_5_a_freed_request_is_forgotten(lab):
    manager = pool(lab)
    give(manager, "A", 16)
    set_free(manager, "A")
    assert has_no_table(manager, "A"), f"A was freed, and its block table is still {manager.block_table('A')}"
    table = give(manager, "A", 3)
    assert len(table) == 1, f"A came again (it was preempted) with 3 tokens, which take 1 block; its table is {table}"
    before = manager.num_free_blocks
    set_free(manager, "A")
    assert has_no_table(manager, "A"), f"A was freed in its second life, too, and its block table is {manager.block_table('A')}"
    assert_free(manager, before + 1, "A, which came again and held 1 block, was freed in its second life, too")


@pytest.mark.todo(5, points=2)
def test_todo_5_free_returns_every_block_after_a_refusal(lab):
    manager = pool(lab)
    usable = manager.num_free_blocks
    give(manager, "A", 8)
    refuse(manager, "A", 40)
    set_free(manager, "A")
    assert_free(manager, usable, "A got blocks, was refused more, and was freed")
    table = give(manager, "B", 20)
    assert set(table) == FIVE, f"everybody else was freed, and B's 20 tokens take all five blocks; its table is {table}"


def pool_against_a_model(lab) -> type[RuleBasedStateMachine]:
    """Any calls in any order. The model: request -> the most tokens it was given room for."""

    class Pool(RuleBasedStateMachine):
        @initialize(num_blocks=st.integers(2, 9), block_size=st.integers(1, 4))
        def build(self, num_blocks, block_size):
            self.manager = lab.BlockManager(num_blocks, block_size)
            self.usable, self.size = num_blocks - 1, block_size
            self.given: dict[str, int] = {}
            self.tables: dict[str, list[int]] = {}

        def blocks(self, request_id: str) -> int:
            return (self.given.get(request_id, 0) + self.size - 1) // self.size

        @rule(request_id=st.sampled_from("ABCD"), num_tokens=st.integers(1, 16))
        def allocate(self, request_id, num_tokens):
            others = sum(self.blocks(other) for other in self.given if other != request_id)
            wanted = max(num_tokens, self.given.get(request_id, 0))
            fits = others + (wanted + self.size - 1) // self.size <= self.usable
            answer = self.manager.allocate(request_id, num_tokens)
            assert answer == fits, (
                f"allocate({request_id!r}, {num_tokens}) said {answer}; the requests hold {self.given} tokens, "
                f"in {self.usable} usable blocks of {self.size}"
            )
            if fits:
                self.given[request_id] = wanted

        @rule(request_id=st.sampled_from("ABCD"))
        def free(self, request_id):
            set_free(self.manager, request_id)
            self.given.pop(request_id, None)
            self.tables.pop(request_id, None)

        @invariant()
        def every_block_is_free_or_in_one_table(self):
            if not hasattr(self, "manager"):
                return
            tables = {request_id: self.manager.block_table(request_id) for request_id in self.given}
            held = [block for table in tables.values() for block in table]
            assert len(set(held)) == len(held), f"a block is held twice: {tables}"
            assert set(held) <= set(range(1, self.usable + 1)), f"blocks 1 to {self.usable} can be held; the tables are {tables}"
            for request_id, table in tables.items():
                assert len(table) == self.blocks(request_id), (
                    f"{request_id} got room for {self.given[request_id]} tokens, in blocks of {self.size}; its table is {table}"
                )
                before = self.tables.get(request_id, [])
                assert table[: len(before)] == before, f"{request_id} had the blocks {before}, and has {table}"
            free = self.manager.num_free_blocks
            assert free == self.usable - len(held), (
                f"{len(held)} of {self.usable} blocks are held; num_free_blocks says {free} instead of {self.usable - len(held)}"
            )
            self.tables = tables

    return Pool


@pytest.mark.practice  # hypothesis makes thousands of calls to find the shortest way to a mistake
@pytest.mark.todo(5, points=2)
def test_todo_5_no_block_is_lost_or_doubled_whatever_happens_in_whatever_order(lab, rng):
    set_free(pool(lab), "nobody")
    bounded = settings(
        max_examples=60, stateful_step_count=25, deadline=None, database=None, print_blob=False,
        report_multiple_bugs=False, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
    )
    run_state_machine_as_test(seed(rng.randrange(2**32))(pool_against_a_model(lab)), settings=bounded)


@pytest.mark.todo(5, points=1)
def test_todo_5_the_engine_may_abort_who_runs_who_waits_and_who_is_gone(lab):
    set_free(pool(lab), "nobody")
    args = EngineArgs(model="course-draft", block_size=4, num_gpu_blocks_override=9, max_num_seqs=1, check_invariants=True)
    engine = LLMEngine.from_engine_args(args, components=with_part(lab))
    for name, token in (("runs", 300), ("waits", 400), ("stays", 500)):
        prompt = {"prompt_token_ids": list(range(token, token + 6))}
        engine.add_request(name, prompt, SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))
    engine.step()
    engine.abort_request(["runs", "waits"])
    engine.abort_request(["runs", "never heard of"])
    while engine.has_unfinished_requests():
        engine.step()
    engine.check_invariants()  # idle: every block is back


# TODO 6: capacity and waste


def replayed(lab, there, manager, trace, reserve: int = 0):
    """replay() of a trace that fits."""
    before, held = manager.num_free_blocks, there.hold([dict(step) for step in trace])
    try:
        usage = lab.replay(manager, held, reserve)
    except Exception as error:
        if "OutOfBlocks" not in kinds_of(error):
            raise
        raise AssertionError(
            f"replay() raised OutOfBlocks({error}), and the trace fits into the {count_of(before)} that were free, if who "
            f"has left is freed before the others allocate: {shown(trace)}"
        ) from error
    assert there.look(held) == trace, f"the trace is the caller's; replay() made {shown(there.look(held))} of {shown(trace)}"
    assert all(map(whole, (usage.tokens, usage.slots, usage.peak_blocks))), f"tokens, slots and blocks are ints; they are {usage}"
    return usage


def example() -> list[dict[str, int]]:
    """The README's trace, made anew for each test."""
    return [{"A": 6, "B": 3}, {"A": 7, "B": 4}, {"A": 8, "B": 5}, {"A": 9, "B": 6}]


@pytest.mark.todo(6, points=2)
@pytest.mark.parametrize(
    "num_blocks, block_size, tokens_each, expected",
    # nearly each tells a pool without its null block, and requests that share no block, from one of the two mistakes
    [(6, 4, 6, 2), (8, 4, 7, 3), (7, 4, 12, 2), (6, 4, 4, 5), (6, 4, 5, 2), (11, 4, 5, 5), (6, 4, 21, 0), (2, 16, 1, 1),
     (10, 16, 17, 4), (64, 16, 1024, 0)],
)
def test_todo_6_a_pool_has_room_for_whole_requests_in_whole_blocks(lab, num_blocks, block_size, tokens_each, expected):
    found, each = lab.capacity(num_blocks, block_size, tokens_each), blocks_for(tokens_each, block_size)
    why = story(
        found, expected, (num_blocks // each, "the room with the null block, which is nobody's"),
        ((num_blocks - 1) * block_size // tokens_each, "a count of tokens: the rest of a request's last block is no other's"),
        (num_blocks * block_size // tokens_each, "a count of tokens with the null block: requests have whole blocks"),
    )
    assert found == expected, (
        f"a pool of {num_blocks} blocks of {block_size}, the null block among them, has room for {expected} of {tokens_each} "
        f"tokens, which hold {count_of(each)} each; capacity() said {found}{why}"
    )
    assert whole(found), f"capacity() returned {found!r}: a number of requests is an int"


@pytest.mark.todo(6, points=1)
def test_todo_6_any_pool_has_room_for_as_many_as_can_be_let_in(lab, rng):
    for _ in range(12):
        size, each = rng.randrange(2, 17), rng.randrange(1, 60)
        held = blocks_for(each, size)
        num_blocks = held * rng.randrange(1, 6) + rng.choice([0, 1, 1]) + (held == 1)
        found, expected = lab.capacity(num_blocks, size, each), len(range(held, num_blocks, held))
        assert same(found, expected), (
            f"a pool of {num_blocks} blocks of {size}, the null block among them, has room for {expected} of {each} tokens, "
            f"which hold {count_of(held)} each; capacity() said {shown(found)}")


@pytest.mark.todo(6, points=1)
@pytest.mark.parametrize(
    "tokens, slots, expected", [(48, 60, 0.2), (48, 96, 0.5), (8, 8, 0.0), (1, 16, 0.9375), (0, 0, 0.0), (None, None, None)])
def test_todo_6_waste_is_the_share_of_slots_without_a_token(lab, rng, tokens, slots, expected):
    if tokens is None:
        slots = rng.randrange(10, 99)
        tokens = rng.randrange(1, slots)
        expected = (slots - tokens) / slots
    waste = lab.Usage(tokens, slots, 0).waste
    why = ". That is the share that kept a token" if slots and waste == pytest.approx(tokens / slots) else ""
    assert waste == pytest.approx(expected), f"{tokens} tokens in {slots} slots waste {expected}; waste is {waste}{why}"


@pytest.mark.todo(6, points=3)
def test_todo_6_pages_are_held_as_tokens_come(lab, rng, there):
    usage = replayed(lab, there, pool(lab), example())
    # tokens 9 + 11 + 13 + 15 = 48; blocks 3 + 3 + 4 + 5 = 15, of 4 slots each: 60
    assert usage.tokens == 48, f"9 + 11 + 13 + 15 = 48 tokens were kept in the four steps; replay() says {usage.tokens}"
    assert usage.slots == 60, f"3 + 3 + 4 + 5 blocks of 4 were held, 60 slots; replay() says {usage.slots}"
    assert usage.peak_blocks == 5, f"5 blocks were held in the last step; replay() says {usage.peak_blocks} at most"
    assert usage.waste == pytest.approx(0.2), f"12 of 60 slots kept no token, 0.2; waste is {usage.waste}"
    for size in (1, 3, 16, rng.randrange(2, 6)):
        trace = example() if size in (1, 3, 16) else growing(rng, rng.randrange(4, 9))
        kept = sum(sum(step.values()) for step in trace)
        held = [sum(blocks_for(length, size) for length in step.values()) for step in trace]
        manager = pool(lab, max(held) + 1, size)
        for run in ("first", "second"):
            usage = replayed(lab, there, manager, trace)
            assert (usage.tokens, usage.slots, usage.peak_blocks) == (kept, size * sum(held), max(held)), (
                f"{shown(trace)} in blocks of {size}, the {run} time with this manager: {held} blocks were held, "
                f"{size * sum(held)} slots, at most {max(held)} blocks; replay() says {usage}"
            )


def growing(rng, steps: int) -> list[dict[str, int]]:
    """Requests A and B, which get a token a step."""
    a, b = rng.randrange(3, 9), rng.randrange(1, 6)
    return [{"A": a + step, "B": b + step} for step in range(steps)]


@pytest.mark.todo(6, points=2)
def test_todo_6_a_reservation_is_held_from_the_first_step(lab, rng, there):
    usage = replayed(lab, there, pool(lab, num_blocks=7), example(), reserve=12)
    # 3 blocks for each of the two, in all of 4 steps: 24 blocks of 4 slots
    assert (usage.tokens, usage.slots, usage.peak_blocks) == (48, 96, 6), (
        f"with 12 tokens reserved for each, 48 tokens are kept in 4 steps of 6 blocks, 96 slots; replay() says {usage}"
    )
    longer = replayed(lab, there, pool(lab), [{"A": 6}, {"A": 13}], reserve=8)
    assert (longer.slots, longer.peak_blocks) == ((2 + 4) * 4, 4), (
        f"A reserved 8 tokens and grew to 13: 2 blocks, then 4, so 24 slots and at most 4 blocks; replay() says {longer}"
    )
    size, reserve = rng.randrange(2, 6), rng.randrange(20, 30)
    trace, each = growing(rng, 4), blocks_for(reserve, size)
    usage = replayed(lab, there, pool(lab, 60, size), trace, reserve=reserve)
    assert (usage.slots, usage.peak_blocks) == (4 * 2 * each * size, 2 * each), (
        f"{shown(trace)} with {reserve} tokens reserved for each, in blocks of {size}: 2 x {each} blocks in each of 4 steps; "
        f"replay() says {usage}")
    usage = replayed(lab, there, pool(lab, 60, size), [{"A": 3}, {"A": 6 * size + 1}], reserve=2 * size)
    assert (usage.slots, usage.peak_blocks) == ((2 + 7) * size, 7), (
        f"A reserved {2 * size} tokens and grew to {6 * size + 1}, in blocks of {size}: 2 blocks, then 7; replay() says {usage}")


@pytest.mark.todo(6, points=2)
def test_todo_6_who_leaves_makes_room_for_who_comes(lab, rng, there):
    manager = pool(lab)
    before = manager.num_free_blocks
    usage = replayed(lab, there, manager, [{"A": 20}, {"B": 17}, {}, {"A": 3, "B": 12}])
    # 5 blocks, 5, none, 1 + 3: A's second life begins with nothing
    assert (usage.tokens, usage.slots, usage.peak_blocks) == (52, 56, 5), (
        f"20 + 17 + 0 + 15 tokens in 5 + 5 + 0 + 4 blocks of 4; replay() says {usage}"
    )
    assert_free(manager, before, f"{before} blocks were free before replay(), and the trace has ended")
    size = rng.randrange(2, 6)
    trace = [{"A": 5 * size}, {"B": 5 * size - rng.randrange(size)}, {}, {"A": size - 1, "B": 3 * size}]
    usage = replayed(lab, there, pool(lab, block_size=size), trace)
    assert (usage.slots, usage.peak_blocks) == (14 * size, 5), (
        f"{shown(trace)} in blocks of {size}: 5 + 5 + 0 + 4 blocks; replay() says {usage}")
    nothing = replayed(lab, there, manager, [])
    assert (nothing.tokens, nothing.slots, nothing.peak_blocks) == (0, 0, 0), f"a trace without steps keeps nothing; {nothing}"


@pytest.mark.todo(6, points=1)
def test_todo_6_a_trace_that_does_not_fit_is_refused_by_name_and_leaves_nothing(lab, rng):
    manager = pool(lab)
    before = manager.num_free_blocks
    too_much = [{"A": 6}, {"A": 7, "B": 12}, {"A": 13, "B": 12}]
    said = refusal("OutOfBlocks", lambda: lab.replay(manager, too_much), "in step 2 A needs 4 blocks and B holds 3 of 5")
    assert names(2, said, 0, 1) and names("A", said), f"in step 2 A got no block; the error must name both, and says {said!r}"
    assert_free(manager, before, f"{before} blocks were free before replay(), and it gave up in step 2")
    # the README's case that fails: two reservations of 3 blocks, and 5 there
    refusal("OutOfBlocks", lambda: lab.replay(manager, example(), reserve=12), "6 blocks were reserved, and the pool has 5")
    assert_free(manager, before,
                f"{before} blocks were free before replay(), and it gave up when A had its blocks and B got none")
    size, bad = rng.randrange(3, 6), rng.randrange(1, 5)
    manager, trace = pool(lab, block_size=size), [*[{"A": size + 1, "B": 3 * size}] * bad, {"A": 3 * size + 1, "B": 3 * size}]
    said = refusal("OutOfBlocks", lambda: lab.replay(manager, trace), f"in step {bad} A needs 4 blocks, and B holds 3 of 5")
    assert names(bad, said, *range(bad)) and names("A", said), (
        f"in step {bad} A got no block; the error must name both, and says {said!r}")
    assert_free(manager, before, f"{before} blocks were free before replay(), which gave up in step {bad}")


# in the engine


def with_part(lab, **others) -> Components:
    """The engine's parts, with yours as its block manager."""
    seam = load_seam(lab_at(Path(__file__).parent))
    return Components().using(block_manager=functools.partial(seam.block_manager, lab), **others)


@pytest.mark.practice
@pytest.mark.todo(6, points=2)
def test_todo_6_the_engine_runs_on_your_blocks_and_says_what_transformers_says(lab, there):
    prompts, num_blocks = ["What is a KV cache?", "Hello", "Why does a server batch requests?"], 16
    recorder = Recorder()
    llm = LLM("course", components=with_part(lab), recorder=recorder, device="cpu", dtype="float32", check_invariants=True,
              num_gpu_blocks_override=num_blocks, block_size=4, max_num_batched_tokens=16)
    encoded = [llm.get_tokenizer().encode(prompt) for prompt in prompts]
    longest = max(map(len, encoded)) + 24
    room = lab.capacity(num_blocks, 4, longest)
    assert 0 < room < 3, f"the test means to crowd the pool: capacity() says {room} requests of {longest} tokens"
    outputs = llm.generate([{"prompt_token_ids": ids} for ids in encoded], SamplingParams(temperature=0.0, max_tokens=24))
    assert any(step["preempted"] for step in recorder.steps), "nobody was preempted, so the pool was never full"
    from nano_qwen3_serving.model.checkpoint import BUNDLED
    from nano_qwen3_serving.testing.oracle import Oracle

    oracle = Oracle(BUNDLED / "course")
    oracle.compare(encoded, oracle.greedy(encoded, 24), [output.outputs[0].token_ids for output in outputs])
    llm.llm_engine.check_invariants()  # idle: every block is back
    trace = [{c["request"]: c["start"] + c["num_tokens"] for c in step["chunks"]} for step in recorder.steps]
    held = [sum(map(len, step["block_tables"].values())) for step in recorder.steps]
    usage = replayed(lab, there, pool(lab, num_blocks), trace)
    assert (usage.slots, usage.peak_blocks) == (4 * sum(held), max(held)), (
        f"the engine's recorder saw {4 * sum(held)} slots held, at most {max(held)} blocks in a step; replay() says {usage}"
    )


@pytest.mark.practice
@pytest.mark.todo(6, points=1)
def test_todo_6_logits_of_a_random_network_are_those_of_transformers(lab, rng, tmp_path):
    import torch

    from nano_qwen3_serving.execution.sampler import Sampler
    from nano_qwen3_serving.testing.checkpoints import write_random_checkpoint
    from nano_qwen3_serving.testing.oracle import Oracle

    class Keeping(Sampler):
        """The reference sampler; keeps the logits under the tokens they follow."""

        def __init__(self):
            super().__init__()
            self.kept = {}

        def sample(self, logits, rows):
            for row, numbers in zip(rows, logits, strict=True):
                self.kept[(*row.prompt_token_ids, *row.output_token_ids)] = numbers.clone()
            return super().sample(logits, rows)

    num_blocks = 11
    assert lab.capacity(num_blocks, 3, 22) == 1, "the longest request has 13 + 9 tokens, which take 8 of 10 blocks of 3"
    prompts = [[rng.randrange(512) for _ in range(length)] for length in (5, 12, 13)]
    sampler = Keeping()
    folder = write_random_checkpoint(tmp_path / "random")
    llm = LLM(str(folder), components=with_part(lab, sampler=lambda config: sampler), device="cpu", dtype="float32",
              num_gpu_blocks_override=num_blocks, block_size=3, max_num_batched_tokens=8, max_num_seqs=4, check_invariants=True)
    outputs = llm.generate([{"prompt_token_ids": p} for p in prompts],
                           SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True))
    oracle = Oracle(folder)
    for prompt, output in zip(prompts, outputs, strict=True):
        sequence = [*prompt, *output.outputs[0].token_ids]
        found = torch.stack([sampler.kept[tuple(sequence[:n])] for n in range(len(prompt), len(sequence))])
        expected = oracle.logits(sequence[:-1])[len(prompt) - 1 :]
        error = float(((found - expected).abs().amax(-1) / expected.abs().amax(-1)).max())
        # float32, sums in another order: about 1e-6; a token that reads a wrong slot is off by about 1
        assert error < 1e-4, f"a prompt of {len(prompt)} tokens: the logits are off by {error:.1e} of the largest"


if __name__ == "__main__":
    raise SystemExit("These are tests. Run them with: pytest test_lab.py")
