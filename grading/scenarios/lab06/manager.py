"""Lab 06, TODO 2, 3 and 5: the manager, one call at a time."""

import random

from grading.judge.checks import check, expect, kept, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab06.answers import blocks_for, whole
from grading.scenarios.lab06.ledger import NAMES, Watched

ALLOCATION, GROWTH, FREE = "TODO 2: All-or-nothing allocation", "TODO 3: Growth at the block edge", "TODO 5: Free exactly once"


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
    for count in (2, 3, 2):  # as growth, and a second life, change it
        now = falling_and_rising(dice, count)
        pool_.manager.tables = {"A": now}
        expect(pool_.table("A") == now, f"self.tables has {now} for A by now; block_table('A') says {pool_.table('A')}")


def falling_and_rising(dice: random.Random, count: int) -> list[int]:
    """Blocks 1 to 5, so many, of which a later one is smaller."""
    first, *others = sorted(dice.sample(range(1, 6), count))
    return [*others, first]


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
    pool_ = pool(lab, dice)
    pool_.allocate("A", 3 * pool_.size)
    low, middle, high = sorted(pool_.tables["A"])
    pool_.tables["A"] = [middle, high, low]  # blocks come as they become free, in any order
    pool_.manager.tables = {"A": [middle, high, low]}
    pool_.allocate("A", pool_.size * pool_.usable)


@check(todo=3, points=3, section=GROWTH, concept="tokens in all, not in addition")
def tokens_are_counted_in_all(lab: Remote, dice: random.Random) -> None:
    pool_ = pool(lab, dice)
    for num_tokens in (pool_.size + 1, pool_.size + 1, 2 * pool_.size, 1, dice.randrange(1, 2 * pool_.size), 1, 2 * pool_.size):
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
    full = Watched(lab, 6, pool_.size)
    full.allocate("A", 3 * full.size)
    full.allocate("B", 2 * full.size)
    if full.usable == 5:  # else it is TODO 1 that is wrong
        full.tables = {"A": [2, 5, 4], "B": [1, 3]}  # blocks come as they become free, in any order
        full.manager.tables = {name: list(table) for name, table in full.tables.items()}
        full.release("A")
        full.allocate("C", 3 * full.size)


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
    pool_.release("A")
    expect(not pool_.knows("A"), "A was freed in its second life, too, yet block_table('A') does not raise KeyError")


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
