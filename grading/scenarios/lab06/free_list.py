"""Lab 06, TODO 1: the free list."""

import random
from typing import Any

from grading.judge.checks import check, expect, kept, look, refusal, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab06.answers import names, whole

FREE_LIST = "TODO 1: Free list"


def taken(free: Remote, count: int) -> list[int]:
    """What take() returns, which must be so many block numbers."""
    return block_numbers(free.take(count), count)


def block_numbers(blocks: Any, count: int) -> list[int]:
    """What take(count) returned, which must be so many block numbers."""
    expect(isinstance(blocks, list) and all(map(whole, blocks)),
           f"take({count}) returned {shown(blocks)}; expected a list of block numbers")
    expect(len(blocks) == count, f"take({count}) returned {len(blocks)} blocks: {shown(blocks)}")
    return blocks


def all_of(free: Remote) -> list[int]:
    """Takes what is free; every block of it must be there once."""
    blocks = taken(free, len(free))
    expect(len(set(blocks)) == len(blocks),
           f"all {len(blocks)} free blocks were taken, and some came twice: {shown(sorted(blocks))}")
    return blocks


def free_list(lab: Remote, num_blocks: int) -> tuple[Remote, set[int]]:
    """A new free list, and the blocks it is to begin with."""
    return lab.FreeList(num_blocks), set(range(1, num_blocks))


@check(todo=1, points=3, section=FREE_LIST, concept="which blocks are free at the start")
def every_block_but_the_null_block_is_free_at_the_start(lab: Remote, dice: random.Random) -> None:
    for size in (2, dice.randrange(5, 40), dice.randrange(300, 900)):
        free, usable = free_list(lab, size)
        expect(len(free) == size - 1, f"FreeList({size}) has {size - 1} usable blocks; len() says {len(free)}")
        blocks = set(all_of(free))
        expect(0 not in blocks, f"FreeList({size}) handed out block 0, the null block: padding is written there")
        expect(blocks == usable,
               f"FreeList({size}) lacks {shown(sorted(usable - blocks))}, and has {shown(sorted(blocks - usable))} too many")


@check(todo=1, points=2, section=FREE_LIST, concept="a block is out until it is given back")
def a_block_is_out_until_it_is_given_back(lab: Remote, dice: random.Random) -> None:
    size = dice.randrange(8, 20)
    free, usable = free_list(lab, size)
    count = dice.randrange(2, 5)
    there = kept(free.take, count)
    first = block_numbers(look(there), count)
    none, second = taken(free, 0), taken(free, len(free))
    expect(look(there) == first, f"take() gave {shown(first)}, and a later take() made {shown(look(there))} of that list")
    expect(none == [] and not set(first) & set(second), f"two times blocks were taken, {first} and {second}: some came twice")
    expect(len(free) == 0, f"all blocks were taken, and {len(free)} are said to be free")
    free.give_back([])
    expect(taken(free, 0) == [] and len(free) == 0, "with no block free, take(0) gives [] and give_back([]) does nothing")
    back = dice.sample([block for block in first + second if block in usable], 4)
    free.give_back(back[:1])
    free.give_back(lab._peer.root.package("builtins").iter(back[1:]))
    expect(len(free) == 4,
           f"1 block was free and an iterator of 3 was given back; now {len(free)} are said to be free instead of 4. "
           "Any iterable will do, and an iterator can be read once")
    again = sorted(taken(free, 4))
    expect(again == sorted(back), f"the blocks {sorted(back)} were given back and are to be had again; take(4) gave {again}")
    free.give_back(again)
    expect(len(free) == 4, f"4 blocks came back for the second time, and {len(free)} are said to be free")
    lowest = dice.randrange(1, 4)
    for steps in ((0, 3, 2), (2, 0, 4), (0, 1, 2), (2, 1, 0)):
        comes_back(lab, size, [lowest + step for step in steps])


def comes_back(lab: Remote, size: int, back: list[int]) -> None:
    """Of a pool whose blocks are all out, these are free after they were given back, and no others."""
    free = lab.FreeList(size)
    expect(set(all_of(free)) >= set(back), f"all blocks were taken, and some of {back} are not out")
    free.give_back(back)
    found = sorted(all_of(free))
    expect(found == sorted(back),
           f"the blocks {back} came back, and {shown(found)} are free: how far apart the first and the last are says nothing of "
           "those in between")


@check(todo=1, points=2, section=FREE_LIST, concept="taking all that was asked for, or nothing")
def takes_as_many_as_asked_or_none(lab: Remote, dice: random.Random) -> None:
    size = dice.randrange(6, 16)
    free, usable = free_list(lab, size)
    kept = taken(free, 2)
    before = len(free)
    more = dice.randrange(1, 4)
    refusal("OutOfBlocks", lambda: free.take(before + more), f"take({before + more}) with {before} free must be refused")
    expect(len(free) == before,
           f"a take() was refused, and after it {len(free)} were free instead of {before}: a refusal takes nothing")
    rest = all_of(free)
    expect({*kept, *rest} == usable,
           f"after a take() that was refused, other blocks were free than before: {shown(sorted(rest))}")


@check(todo=1, points=2, section=FREE_LIST, concept="giving back a block that was not out")
def refuses_a_block_that_was_not_out(lab: Remote, dice: random.Random) -> None:
    size = dice.randrange(6, 12)
    for block, why in ((dice.randrange(1, size), "free already"), (0, "the null block"), (size, "not in the pool"),
                       (dice.randrange(size + 1, 200), "not in the pool"), (-1, "no block")):
        free, untouched = lab.FreeList(size), lab.FreeList(size)
        before = len(free)
        said = refusal("ValueError", lambda free=free, block=block: free.give_back([block]),
                       f"give_back([{block}]) of a pool of {size}: it is {why}")
        expect(names(block, said), f"the error must name block {block}; it says {said!r}")
        expect(len(free) == before, f"{before} blocks were free; after give_back([{block}]) was refused there are {len(free)}")
        expect(sorted(all_of(free)) == sorted(all_of(untouched)),
               f"after give_back([{block}]) was refused, other blocks are free than before")


@check(todo=1, points=1, section=FREE_LIST, concept="giving back in one call")
def refuses_the_same_block_twice_in_one_call(lab: Remote, dice: random.Random) -> None:
    free = lab.FreeList(dice.randrange(5, 12))
    out = [block for block in all_of(free) if block != 0]
    block = dice.choice(out)
    complains_about(free, block, [block, block], block)
    other = lab.FreeList(8)
    first, second = dice.sample([block for block in all_of(other) if block != 0], 2)
    other.give_back([first])
    other.give_back([second])
    said = refusal("ValueError", lambda: other.give_back([first]), f"block {first} came back in two calls, and was out once")
    expect(names(first, said), f"the error must name block {first}; it says {said!r}")
    found = sorted(all_of(other))
    expect(found == sorted([first, second]), f"the blocks {first} and {second} came back; after a refusal {found} are free")


@check(todo=1, points=1, section=FREE_LIST, concept="giving back in one call", hidden=True)
def refuses_a_block_that_was_not_out_beside_one_that_was(lab: Remote, dice: random.Random) -> None:
    for place in range(3):
        free = lab.FreeList(dice.randrange(5, 12))
        good = dice.sample([block for block in all_of(free) if block != 0], 2)
        complains_about(free, 0, [*good[:place], 0, *good[place:]], *good)


def complains_about(free: Remote, bad: int, blocks: list[int], *good: int) -> None:
    """`give_back(blocks)` raises, naming `bad`. Whether the good blocks of such a call become free is not judged."""
    said = refusal("ValueError", lambda: free.give_back(blocks), f"give_back({blocks}) has a block that was not out")
    expect(names(bad, said, *good), f"the error about give_back({blocks}) must name block {bad} alone; it says {said!r}")
    found = all_of(free)
    expect({*found} <= {*good}, f"no block was free; after give_back({blocks}) has raised, the blocks {found} are")


@check(todo=1, points=1, section=FREE_LIST, concept="pools know nothing of each other", hidden=True)
def pools_know_nothing_of_each_other(lab: Remote, dice: random.Random) -> None:
    small, large = dice.randrange(3, 6), dice.randrange(7, 12)
    mine, yours = lab.FreeList(large), lab.FreeList(small)
    before = len(yours)
    ours = taken(mine, len(mine))
    expect(len(yours) == before, f"blocks were taken from one pool; another had {before} free and has {len(yours)}")
    left = all_of(yours)
    expect(set(left) <= set(ours) and len(left) < len(ours),
           f"a pool of {large} gave {sorted(ours)}, and then one of {small} gave {sorted(left)}")
    third = lab.FreeList(large)
    expect(set(all_of(third)) == set(ours), "a new pool begins with other blocks than one of its size that was emptied before")
