"""Lab 06, TODO 4: slots of positions."""

import random
from collections.abc import Sequence
from itertools import product

from grading.judge.checks import check, expect, hold, refusal, same, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab06.answers import names, wholes

SLOTS = "TODO 4: Slots of positions"


def layout(table: list[int], block_size: int) -> list[int]:
    """The slots of the blocks of a table, laid out one by one."""
    return [block * block_size + offset for block in table for offset in range(block_size)]


@check(todo=4, points=4, section=SLOTS, concept="a position's block, and its place in it")
def a_position_is_found_by_its_block_and_its_place_in_it(lab: Remote, dice: random.Random) -> None:
    first = dice.randrange(1, 50)
    # Two tables whose ends are as far apart as if their blocks lay in a row, and one whose blocks do.
    tables = [[first, 60, first + 2, 61, first + 4], [first + step for step in (0, 3, 2, 1, 4)], list(range(first, first + 5))]
    for size, table in product((1, 3, 4, dice.randrange(5, 33)), [dice.sample(range(1, 60), 5), *tables]):
        length = dice.randrange(4 * size + 1, 5 * size + 1)
        found, right = lab.slots(table, range(length), size), layout(table, size)[:length]
        expect(wholes(found), f"slots() returned {shown(found)}; expected a list of ints")
        expect(found == right,
               f"{length} positions in blocks {table} of {size}: expected {shown(right)}, slots() said {shown(found)}")


@check(todo=4, points=4, section=SLOTS, concept="any positions in any order")
def any_positions_in_any_order(lab: Remote, dice: random.Random) -> None:
    size, table = dice.randrange(2, 9), dice.sample(range(1, 60), 3)
    where = layout(table, size)
    start = dice.randrange(1, size)
    cases: list[Sequence[int]] = [range(start, 2 * size + 1), dice.sample(range(3 * size), 4), [], [start, start, 0],
                                   [start, 0, start + 2], [start, start + 2, start + 1, start + 3]]
    for positions in cases:
        found, right = lab.slots(tuple(table), positions, size), [where[position] for position in positions]
        expect(same(found, right),
               f"positions {shown(list(positions))} in blocks {table} of {size}: "
               f"expected {shown(right)}, slots() said {shown(found)}")
    there = hold(lab, table)
    there.reverse()
    there.append(60)
    now = [*reversed(table), 60]
    found, right = lab.slots(there, range(4 * size), size), layout(now, size)
    expect(found == right, f"blocks {now} of {size}: expected {shown(right)}, slots() said {shown(found)}")
    there.reverse()
    found, right = lab.slots(there, range(4 * size), size), layout(now[::-1], size)
    expect(found == right, f"the same list is {now[::-1]} now: expected {shown(right)}, slots() said {shown(found)}")


@check(todo=4, points=2, section=SLOTS, concept="positions that the table does not cover")
def refuses_a_position_that_the_table_does_not_cover(lab: Remote, dice: random.Random) -> None:
    size, table = dice.randrange(2, 9), dice.sample(range(1, 60), 2)
    for position in (2 * size, 2 * size + 1, dice.randrange(300, 400)):
        for positions in ([0, position], [position, 0], [0, position, 1]):
            said = refusal("IndexError", lambda positions=positions: lab.slots(table, positions, size),
                           f"2 blocks of {size} do not cover position {position}")
            others = [one for one in positions if one != position]
            expect(names(position, said, *others),
                   f"slots of {positions}: the error must name position {position} alone; it says {said!r}")


@check(todo=4, points=2, section=SLOTS, concept="positions that there are not", hidden=True)
def refuses_a_negative_position_and_reads_an_iterator_once(lab: Remote, dice: random.Random) -> None:
    size, table = dice.randrange(2, 9), dice.sample(range(1, 60), 2)
    for position in (-1, -size, -2 * size, 2 * size + dice.randrange(9)):
        others = dice.sample(range(2 * size), 3)
        said = refusal("IndexError", lambda asked=[*others[:2], position, *others[2:]]: lab.slots(table, asked, size),
                       f"position {position} of a request there is not")
        expect(names(position, said, *others), f"the error must name position {position} alone; it says {said!r}")
    once = lab._peer.root.package("builtins").iter([1, size])
    found, where = lab.slots(table, once, size), layout(table, size)
    expect(same(found, [where[1], where[size]]),
           f"positions 1 and {size} were given as an iterator, which can be read once; slots() said {shown(found)}")
