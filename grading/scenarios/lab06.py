"""Lab 06: the block manager, one call at a time, against a ledger that the judge keeps."""

import functools
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from grading.checks import check, expect, kept, refusal, shown
from grading.worker.peer import Raised, Remote
from labs.harness import loading
from labs.harness.catalog import find_lab

NAMES = "ABCD"


def blocks_for(num_tokens: int, block_size: int) -> int:
    """What `num_tokens` tokens take, counted block by block and not divided."""
    return len(range(0, num_tokens, block_size))


def whole(value: object) -> bool:
    return type(value) is int


def names(word: str | int, said: str) -> bool:
    """Whether a message has this number or name in it, alone."""
    return re.search(rf"(?<![\w-]){word}(?!\w)", said) is not None


# TODO 1

FREE_LIST = "TODO 1: Free list"


def taken(free: Remote, count: int) -> list[int]:
    """What take() returns, which must be so many block numbers."""
    blocks = free.take(count)
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
    first = taken(free, dice.randrange(2, 5))
    none, second = taken(free, 0), taken(free, len(free))
    expect(none == [] and not set(first) & set(second), f"two times blocks were taken, {first} and {second}: some came twice")
    expect(len(free) == 0, f"all blocks were taken, and {len(free)} are said to be free")
    back = dice.sample([block for block in first + second if block in usable], 4)
    free.give_back(back[:1])
    free.give_back(tuple(back[1:]))
    expect(len(free) == 4, f"4 blocks were given back, and {len(free)} are said to be free")
    again = sorted(taken(free, 4))
    expect(again == sorted(back), f"the blocks {sorted(back)} were given back and are to be had again; take(4) gave {again}")


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


@check(todo=1, points=1, section=FREE_LIST, concept="giving back in one call", hidden=True)
def refuses_a_block_that_was_not_out_beside_one_that_was(lab: Remote, dice: random.Random) -> None:
    for first in (True, False):
        free = lab.FreeList(dice.randrange(5, 12))
        good = dice.choice([block for block in all_of(free) if block != 0])
        complains_about(free, 0, [0, good] if first else [good, 0], good)


def complains_about(free: Remote, bad: int, blocks: list[int], good: int) -> None:
    """`give_back(blocks)` raises, naming `bad`. Whether the good block of such a call becomes free is not judged."""
    said = refusal("ValueError", lambda: free.give_back(blocks), f"give_back({blocks}) has a block that was not out")
    expect(names(bad, said), f"the error about give_back({blocks}) must name block {bad}; it says {said!r}")
    expect(len(free) in (0, 1), f"no block was free; now that give_back({blocks}) has raised, {len(free)} are: one is good")
    found = all_of(free)
    expect(found in ([], [good]), f"no block was free; now that give_back({blocks}) has raised, the blocks {found} are")


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


# TODO 2, 3 and 5: the manager, with a ledger

ALLOCATION, GROWTH, FREE = "TODO 2: All-or-nothing allocation", "TODO 3: Growth at the block edge", "TODO 5: Free exactly once"


class Watched:
    """A block manager, and what each request was given according to the judge.

    Free blocks are compared with those that the manager began with, so that a wrong free list (TODO 1)
    costs nothing here.
    """

    def __init__(self, lab: Remote, num_blocks: int, block_size: int) -> None:
        self.manager = lab.BlockManager(num_blocks, block_size)
        self.size = block_size
        self.usable = self.free()
        self.given: dict[str, int] = {}
        self.tables: dict[str, list[int]] = {}

    def free(self) -> int:
        return self.manager.num_free_blocks

    def blocks(self, request: str) -> int:
        return blocks_for(self.given.get(request, 0), self.size)

    def held(self) -> int:
        return sum(map(self.blocks, self.given))

    def story(self) -> str:
        said = ", ".join(f"{name} {tokens}" for name, tokens in self.given.items()) or "nobody anything"
        return f"blocks of {self.size}, {self.usable} usable; given so far, in tokens: {said}"

    def allocate(self, request: str, num_tokens: int) -> bool:
        """Asks, and says whether it fitted; the answer and all that follows from it must be right."""
        wanted = max(num_tokens, self.given.get(request, 0))
        fits = self.held() - self.blocks(request) + blocks_for(wanted, self.size) <= self.usable
        story = self.story()
        try:
            answer = self.manager.allocate(request, num_tokens)
        except Raised as error:
            expect("OutOfBlocks" not in error.kinds,
                   f"allocate({request!r}, {num_tokens}) let OutOfBlocks out; the answer is False then ({story})")
            raise
        expect(type(answer) is bool, f"allocate({request!r}, {num_tokens}) returned {shown(answer)}; expected True or False")
        expect(answer == fits, f"allocate({request!r}, {num_tokens}) said {answer} and {fits} is right ({story})")
        if fits:
            self.given[request] = wanted
        self.look(f"after allocate({request!r}, {num_tokens}), which said {answer}")
        return answer

    def release(self, request: str) -> None:
        self.manager.free(request)
        self.given.pop(request, None)
        self.tables.pop(request, None)
        self.look(f"after free({request!r})")

    def look(self, when: str) -> None:
        """Every block is free or in one table, and tables only grow."""
        tables = {request: self.table(request) for request in self.given}
        held = [block for table in tables.values() for block in table]
        expect(len(set(held)) == len(held), f"{when} a block is held twice: {tables}")
        expect(0 not in held, f"{when} the null block is held: {tables}")
        for request, table in tables.items():
            expect(len(table) == self.blocks(request),
                   f"{when} {request} holds {table}: {self.blocks(request)} blocks are right ({self.story()})")
            before = self.tables.get(request, [])
            expect(table[: len(before)] == before,
                   f"{when} {request}, which had the blocks {before}, has {table}: they stay, in their order")
        self.tables = tables
        expect(self.free() == self.usable - len(held),
               f"{when} {self.usable - len(held)} blocks should be free; num_free_blocks says {self.free()} ({self.story()})")

    def table(self, request: str) -> list[int]:
        table = self.manager.block_table(request)
        expect(isinstance(table, list) and all(map(whole, table)),
               f"block_table({request!r}) returned {shown(table)}; expected a list of block numbers")
        return table

    def knows(self, request: str) -> bool:
        try:
            self.manager.block_table(request)
        except KeyError:
            return False
        return True


def pool(lab: Remote, dice: random.Random) -> Watched:
    """Five to nine usable blocks of three to six tokens."""
    return Watched(lab, dice.randrange(6, 11), dice.randrange(3, 7))


@check(todo=2, points=5, section=ALLOCATION, concept="tokens into blocks")
def the_last_block_may_be_partly_empty_but_not_wholly(lab: Remote, dice: random.Random) -> None:
    size = dice.randrange(2, 33)
    cases = [(0, size), (1, size), *((k * size + d, size) for k in (1, 2, dice.randrange(3, 60)) for d in (-1, 0, 1)),
             (dice.randrange(2, 9), 1)]
    for num_tokens, block_size in cases:
        found, right = lab.blocks_needed(num_tokens, block_size), blocks_for(num_tokens, block_size)
        expect(whole(found) and found == right,
               f"{num_tokens} tokens in blocks of {block_size} need {right} blocks; blocks_needed() said {shown(found)}")


@check(todo=2, points=5, section=ALLOCATION, concept="a request gets what it needs")
def newcomers_get_the_blocks_they_need_and_share_none(lab: Remote, dice: random.Random) -> None:
    pool_ = pool(lab, dice)
    size = pool_.size
    pool_.allocate("A", size + dice.randrange(1, size + 1))
    pool_.allocate("B", dice.randrange(1, size + 1))
    for edge in (-1, 0, 1):
        fresh = Watched(lab, 7, size)
        fresh.allocate("A", 2 * size + edge)


@check(todo=2, points=4, section=ALLOCATION, concept="all or nothing")
def a_newcomer_that_does_not_fit_changes_nothing(lab: Remote, dice: random.Random) -> None:
    pool_ = pool(lab, dice)
    pool_.allocate("A", 2 * pool_.size + 1)
    before = pool_.free()
    pool_.allocate("C", pool_.size * before + dice.randrange(1, pool_.size))
    expect(not pool_.knows("C"), "C was refused, yet block_table('C') does not raise KeyError")
    pool_.allocate("C", pool_.size * before - dice.randrange(pool_.size))


@check(todo=2, points=2, section=ALLOCATION, concept="the whole pool", hidden=True)
def the_last_free_block_can_be_had(lab: Remote, dice: random.Random) -> None:
    pool_ = pool(lab, dice)
    pool_.allocate("A", pool_.size * pool_.usable)
    pool_.allocate("B", 1)
    other = pool(lab, dice)
    other.allocate("C", other.size * other.usable + 1)
    other.allocate("C", other.size * other.usable)


@check(todo=2, points=2, section=ALLOCATION, concept="whose list a block table is", hidden=True)
def a_block_table_is_the_callers_to_change(lab: Remote, dice: random.Random) -> None:
    pool_ = pool(lab, dice)
    pool_.allocate("A", 2 * pool_.size)
    theirs = kept(pool_.manager.block_table, "A")
    theirs.append(77)
    expect(pool_.table("A") == pool_.tables["A"],
           f"a caller appended to the list it got, and A's table became {pool_.table('A')}: return a copy")


@check(todo=3, points=5, section=GROWTH, concept="a block at each edge")
def a_request_that_generates_takes_a_block_at_each_edge(lab: Remote, dice: random.Random) -> None:
    pool_ = pool(lab, dice)
    for num_tokens in range(1, pool_.size * pool_.usable + 1):
        pool_.allocate("A", num_tokens)


@check(todo=3, points=4, section=GROWTH, concept="several edges at once")
def a_chunk_may_cross_several_edges(lab: Remote, dice: random.Random) -> None:
    for _ in range(4):
        pool_ = pool(lab, dice)
        first = dice.randrange(1, 2 * pool_.size)
        pool_.allocate("A", first)
        pool_.allocate("A", dice.randrange(first + 1, pool_.size * pool_.usable + 1))


@check(todo=3, points=3, section=GROWTH, concept="tokens in all, not in addition")
def tokens_are_counted_in_all(lab: Remote, dice: random.Random) -> None:
    pool_ = pool(lab, dice)
    for num_tokens in (pool_.size + 1, pool_.size + 1, 2 * pool_.size, 1, dice.randrange(1, 2 * pool_.size)):
        pool_.allocate("A", num_tokens)


@check(todo=3, points=3, section=GROWTH, concept="growth that does not fit", hidden=True)
def growth_that_does_not_fit_changes_nothing(lab: Remote, dice: random.Random) -> None:
    pool_ = pool(lab, dice)
    pool_.allocate("A", pool_.size + 1)
    pool_.allocate("B", 1)
    pool_.allocate("A", pool_.size * (pool_.usable - 1) + dice.randrange(1, pool_.size))
    pool_.allocate("A", pool_.size * (pool_.usable - 1))
    pool_.allocate("B", dice.randrange(2, pool_.size + 1))
    pool_.allocate("B", pool_.size + 1)


@check(todo=5, points=3, section=FREE, concept="every block comes back")
def free_gives_every_block_back(lab: Remote, dice: random.Random) -> None:
    pool_ = pool(lab, dice)
    pool_.allocate("A", pool_.size + 1)
    pool_.allocate("B", dice.randrange(1, pool_.size + 1))
    pool_.allocate("A", 2 * pool_.size + 1)
    pool_.release("A")
    pool_.allocate("C", pool_.size * (pool_.usable - 1))


@check(todo=5, points=3, section=FREE, concept="freeing twice")
def freeing_twice_gives_back_once(lab: Remote, dice: random.Random) -> None:
    pool_ = pool(lab, dice)
    pool_.allocate("A", 2 * pool_.size)
    pool_.release("A")
    pool_.allocate("B", 3 * pool_.size)
    pool_.release("A")
    pool_.allocate("C", pool_.size * (pool_.usable - 3))


@check(todo=5, points=2, section=FREE, concept="a request without blocks")
def a_request_without_blocks_may_be_freed(lab: Remote, dice: random.Random) -> None:
    pool_ = pool(lab, dice)
    pool_.release(f"stranger {dice.randrange(100)}")
    pool_.allocate("A", pool_.size * pool_.usable)
    pool_.allocate("C", 1)
    pool_.release("C")


@check(todo=5, points=2, section=FREE, concept="who was freed is forgotten", hidden=True)
def a_freed_request_is_forgotten(lab: Remote, dice: random.Random) -> None:
    pool_ = pool(lab, dice)
    pool_.allocate("A", 3 * pool_.size + 1)
    pool_.allocate("A", 99 * pool_.size)
    pool_.release("A")
    expect(not pool_.knows("A"), "A was freed, yet block_table('A') does not raise KeyError")
    pool_.allocate("A", dice.randrange(1, pool_.size))


@check(todo=5, points=3, section=FREE, concept="any calls in any order", hidden=True)
def no_block_is_lost_or_doubled_in_any_order(lab: Remote, dice: random.Random) -> None:
    for _ in range(3):
        pool_ = pool(lab, dice)
        for _ in range(30):
            request = dice.choice(NAMES)
            if dice.random() < 0.3:
                pool_.release(request)
            else:
                pool_.allocate(request, dice.randrange(1, pool_.size * 5))


# TODO 4

SLOTS = "TODO 4: Slots of positions"


def layout(table: list[int], block_size: int) -> list[int]:
    """The slots of the blocks of a table, laid out one by one."""
    return [block * block_size + offset for block in table for offset in range(block_size)]


@check(todo=4, points=4, section=SLOTS, concept="a position's block, and its place in it")
def a_position_is_found_by_its_block_and_its_place_in_it(lab: Remote, dice: random.Random) -> None:
    for size in (1, 3, 4, dice.randrange(5, 33)):
        table = dice.sample(range(1, 60), 5)
        length = dice.randrange(4 * size + 1, 5 * size + 1)
        found, right = lab.slots(table, range(length), size), layout(table, size)[:length]
        expect(isinstance(found, list), f"slots() returned {shown(found)}; expected a list")
        expect(found == right,
               f"{length} positions in blocks {table} of {size}: expected {shown(right)}, slots() said {shown(found)}")


@check(todo=4, points=4, section=SLOTS, concept="any positions in any order")
def any_positions_in_any_order(lab: Remote, dice: random.Random) -> None:
    size, table = dice.randrange(2, 9), dice.sample(range(1, 60), 3)
    where = layout(table, size)
    start = dice.randrange(1, size)
    cases: list[Sequence[int]] = [range(start, 2 * size + 1), dice.sample(range(3 * size), 4), []]
    for positions in cases:
        found, right = lab.slots(tuple(table), positions, size), [where[position] for position in positions]
        expect(found == right,
               f"positions {shown(list(positions))} in blocks {table} of {size}: "
               f"expected {shown(right)}, slots() said {shown(found)}")


@check(todo=4, points=2, section=SLOTS, concept="positions that the table does not cover")
def refuses_a_position_that_the_table_does_not_cover(lab: Remote, dice: random.Random) -> None:
    size, table = dice.randrange(2, 9), dice.sample(range(1, 60), 2)
    for position in (2 * size, 2 * size + 1, dice.randrange(300, 400)):
        said = refusal("IndexError", lambda position=position: lab.slots(table, [0, position], size),
                       f"2 blocks of {size} do not cover position {position}")
        expect(names(position, said), f"the error must name position {position}; it says {said!r}")


@check(todo=4, points=2, section=SLOTS, concept="positions that there are not", hidden=True)
def refuses_a_negative_position_and_reads_an_iterator_once(lab: Remote, dice: random.Random) -> None:
    size, table = dice.randrange(2, 9), dice.sample(range(1, 60), 2)
    for position in (-1, -size, -2 * size):
        said = refusal("IndexError", lambda position=position: lab.slots(table, [0, position], size),
                       f"position {position} of a request there is not")
        expect(names(position, said), f"the error must name position {position}; it says {said!r}")
    once = lab._peer.root.package("builtins").iter([1, size])
    found, where = lab.slots(table, once, size), layout(table, size)
    expect(found == [where[1], where[size]],
           f"positions 1 and {size} were given as an iterator, which can be read once; slots() said {shown(found)}")


# TODO 6

CAPACITY = "TODO 6: Capacity and waste"


def room(num_blocks: int, block_size: int, tokens_each: int) -> int:
    """Requests that fit, found by letting them in one after the other."""
    free, held = num_blocks - 1, blocks_for(tokens_each, block_size)
    count = 0
    while free >= held:
        free, count = free - held, count + 1
    return count


@check(todo=6, points=3, section=CAPACITY, concept="whole requests in whole blocks")
def a_pool_has_room_for_whole_requests_in_whole_blocks(lab: Remote, dice: random.Random) -> None:
    cases = [(6, 4, 6), (6, 4, 21), (2, 16, 1)]
    for _ in range(12):
        size, each = dice.randrange(2, 17), dice.randrange(1, 60)
        held = blocks_for(each, size)
        cases.append((held * dice.randrange(1, 6) + dice.choice([0, 1, 1]) + (held == 1), size, each))
    for num_blocks, block_size, tokens_each in cases:
        found, right = lab.capacity(num_blocks, block_size, tokens_each), room(num_blocks, block_size, tokens_each)
        expect(found == right,
               f"a pool of {num_blocks} blocks of {block_size}, the null block among them, "
               f"has room for {right} of {tokens_each} tokens; capacity() said {shown(found)}")


@check(todo=6, points=1, section=CAPACITY, concept="the share of slots without a token")
def waste_is_the_share_of_slots_without_a_token(lab: Remote, dice: random.Random) -> None:
    slots = dice.randrange(10, 99)
    tokens = dice.randrange(1, slots)
    for filled, held, right in ((tokens, slots, (slots - tokens) / slots), (slots, slots, 0.0), (0, 0, 0.0)):
        waste = lab.Usage(filled, held, 0).waste
        expect(isinstance(waste, float | int) and abs(waste - right) < 1e-9,
               f"{filled} tokens in {held} slots waste {right:.6f}; waste is {shown(waste)}")


def measured(trace: list[dict[str, int]], size: int, reserve: int) -> tuple[int, int, int]:
    """Tokens, slots and most blocks of a trace, added up step by step."""
    blocks: dict[str, int] = {}
    tokens = slots = peak = 0
    for step in trace:
        blocks = {name: max(blocks.get(name, 0), blocks_for(max(count, reserve), size)) for name, count in step.items()}
        held = sum(blocks.values())
        tokens, slots, peak = tokens + sum(step.values()), slots + held * size, max(peak, held)
    return tokens, slots, peak


def expect_replay(lab: Remote, trace: list[dict[str, int]], num_blocks: int, size: int, reserve: int = 0) -> None:
    """replay() of a trace that fits says what it kept, and leaves nothing behind."""
    manager = lab.BlockManager(num_blocks, size)
    before = manager.num_free_blocks
    try:
        usage = lab.replay(manager, trace, reserve)
    except Raised as error:
        expect("OutOfBlocks" not in error.kinds,
               f"replay() raised OutOfBlocks ({error.text}), and {shown(trace)} fits "
               "if who has left is freed before the others allocate")
        raise
    found, right = (usage.tokens, usage.slots, usage.peak_blocks), measured(trace, size, reserve)
    expect(found == right,
           f"replay of {shown(trace)} in blocks of {size}, reserve {reserve}: "
           f"expected (tokens, slots, peak_blocks) {right}, found {shown(found)}")
    expect(manager.num_free_blocks == before,
           f"{before} blocks were free before replay(), and {manager.num_free_blocks} after it")


def growing(dice: random.Random, steps: int) -> list[dict[str, int]]:
    """Requests A and B, which get a token a step."""
    a, b = dice.randrange(3, 9), dice.randrange(1, 6)
    return [{"A": a + i, "B": b + i} for i in range(steps)]


@check(todo=6, points=3, section=CAPACITY, concept="pages are held as tokens come")
def pages_are_held_as_tokens_come(lab: Remote, dice: random.Random) -> None:
    expect_replay(lab, growing(dice, dice.randrange(4, 9)), 40, dice.randrange(2, 6))


@check(todo=6, points=2, section=CAPACITY, concept="a reservation is held from the start")
def a_reservation_is_held_from_the_first_step(lab: Remote, dice: random.Random) -> None:
    size = dice.randrange(2, 6)
    expect_replay(lab, growing(dice, 4), 60, size, reserve=dice.randrange(20, 30))
    expect_replay(lab, [{"A": 3}, {"A": 6 * size + 1}], 60, size, reserve=2 * size)


@check(todo=6, points=2, section=CAPACITY, concept="who leaves makes room for who comes", hidden=True)
def who_leaves_makes_room_for_who_comes(lab: Remote, dice: random.Random) -> None:
    size = dice.randrange(2, 6)
    full = 5 * size
    expect_replay(lab, [{"A": full}, {"B": full - dice.randrange(size)}, {}, {"A": size - 1, "B": 3 * size}], 6, size)
    expect_replay(lab, [], 6, size)


@check(todo=6, points=2, section=CAPACITY, concept="a trace that does not fit", hidden=True)
def a_trace_that_does_not_fit_is_refused_by_name_and_leaves_nothing(lab: Remote, dice: random.Random) -> None:
    size = dice.randrange(3, 6)
    manager = lab.BlockManager(6, size)
    before, bad = manager.num_free_blocks, dice.randrange(1, 5)
    trace = [*([{"A": size + 1, "B": 3 * size}] * bad), {"A": 3 * size + 1, "B": 3 * size}]
    said = refusal("OutOfBlocks", lambda: lab.replay(manager, trace), f"in step {bad} A needs 4 blocks, and B holds 3 of 5")
    expect(names(bad, said) and names("A", said), f"in step {bad} A got no block; the error must name both, and says {said!r}")
    expect(manager.num_free_blocks == before,
           f"{before} blocks were free before replay(), which gave up in step {bad}; now {manager.num_free_blocks} are")
    refusal("OutOfBlocks", lambda: lab.replay(manager, growing(dice, 3), 3 * size), "6 blocks were reserved, and the pool has 5")
    expect(manager.num_free_blocks == before,
           f"{before} blocks were free before replay(), which gave up when A had its blocks and B got none; "
           f"now {manager.num_free_blocks} are")


@functools.cache
def seam() -> Any:
    """How the engine uses the part: the lab's own `seam.py`."""
    return loading.run_file(find_lab("06").seam, "_lab06_seam_of_the_judge")


def engine_with(part: Callable | None) -> Any:
    """The course's model in a pool so small that requests are preempted, in the judge's process."""
    from nano_qwen3_serving import LLM
    from nano_qwen3_serving.components import Components

    components = Components() if part is None else Components().using(block_manager=part)
    return LLM("course-draft", components=components, device="cpu", dtype="float32", num_gpu_blocks_override=14, block_size=4,
               max_num_batched_tokens=16, check_invariants=part is not None, enable_prefix_caching=False)


@check(todo=6, points=2, section=CAPACITY, concept="in the engine", hidden=True)
def the_engine_runs_on_these_blocks(lab: Remote, dice: random.Random) -> None:
    from nano_qwen3_serving import SamplingParams

    prompts = [{"prompt_token_ids": [dice.randrange(300, 500) for _ in range(dice.randrange(4, 12))]} for _ in range(3)]
    greedy = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    expect(lab.capacity(14, 4, 12) == room(14, 4, 12), "capacity() is wrong for the engine's pool")

    def tokens(part: Callable | None) -> list[list[int]]:
        return [output.outputs[0].token_ids for output in engine_with(part).generate(prompts, greedy)]

    found, right = tokens(lambda config: seam().block_manager(lab, config)), tokens(None)
    expect(found == right, f"the engine on these blocks generated {shown(found)}, and on its own {shown(right)}")
