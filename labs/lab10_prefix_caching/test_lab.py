"""Lab 10's one suite. It tests what `starter.py` does, by small examples, against a model of the cache, and in the engine.

All of it: pytest test_lab.py        One TODO: pytest test_lab.py -k todo_1
"""

import functools
import random
from pathlib import Path

import pytest

from labs.harness.catalog import lab_at
from labs.harness.mixed_engine.part import load_seam
from labs.harness.suite.expecting import refusal, same, shown
from labs.lab10_prefix_caching import workloads
from nano_qwen3_serving import EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.scheduling.scheduler import Scheduler


def drawn(rng, count: int) -> list[int]:
    """So many token ids."""
    return [rng.randrange(2**17) for _ in range(count)]


def give(manager, request_id: str, num_tokens: int, *prefix) -> list[int]:
    """The request's block table after an allocation that must succeed."""
    assert same(manager.allocate(request_id, num_tokens, *prefix), True), (
        f"allocate({request_id!r}, {num_tokens}) was refused; {manager.num_free_blocks} blocks are free, which is enough")
    return manager.block_table(request_id)


def compute(manager, request_id: str, tokens: list[int]) -> list[int]:
    """The request's block table when all its tokens are computed."""
    table = give(manager, request_id, len(tokens))
    manager.commit(request_id, tokens)
    return table


def assert_free(manager, expected: int, when: str) -> None:
    """So many blocks are free; `when` says what happened before."""
    assert same(manager.num_free_blocks, expected), f"{when}: {expected} blocks should be free, {manager.num_free_blocks} are"


# TODO 1: reference counts and fork


@pytest.mark.todo(1, points=3)
def test_todo_1_a_block_is_free_when_its_only_holder_has_gone(lab, rng):
    usable = rng.randrange(6, 12)
    manager = lab.BlockManager(usable + 1, 4)
    for _ in range(3):
        give(manager, "A", 9)
        give(manager, "B", 4 * (usable - 3))
        assert_free(manager, 0, "A and B hold all blocks")
        manager.free("A")
        assert_free(manager, 3, "A, with three blocks, was freed")
        manager.free("A")
        assert_free(manager, 3, "A was freed twice")
        manager.free("B")
        assert_free(manager, usable, "all were freed")


@pytest.mark.todo(1, points=4)
@pytest.mark.parametrize("rest", [0, 1, 3])
def test_todo_1_a_fork_shares_full_blocks_and_copies_the_rest(lab, rng, rest):
    full = rng.randrange(1, 5)
    manager = lab.BlockManager(20, 4)
    parent = give(manager, "A", 4 * full + 4)
    copies = manager.fork("A", "B", 4 * full + rest)
    child = manager.block_table("B")
    said = f"A has {parent}; a fork of {full} full blocks and {rest} tokens gave B {child} and the copies {shown(copies)}"
    assert child[:full] == parent[:full], f"{said}: full blocks are shared"
    assert len(child) == full + (rest > 0), f"{said}: B has {full + (rest > 0)} blocks"
    assert not rest or child[full] not in parent, f"{said}: both would write to block {child[-1]}"
    assert same([tuple(copy) for copy in copies], [(parent[full], child[full])] if rest else []), (
        f"{said}: a copy is due of the block that is not full, and of no other")
    assert manager.block_table("A") == parent, f"the fork changed A's table from {parent} to {manager.block_table('A')}"
    give(manager, "B", 4 * full + 12)
    assert manager.block_table("A") == parent, "B has grown, and A's table with it"


@pytest.mark.todo(1, points=3)
@pytest.mark.parametrize("first", ["A", "B"])
def test_todo_1_a_shared_block_is_held_until_the_last_has_gone(lab, rng, first):
    full = rng.randrange(1, 4)
    manager = lab.BlockManager(12, 4)
    table = give(manager, "A", 4 * full)
    manager.fork("A", "B", 4 * full)
    manager.fork("B", "C", 4 * full)
    assert_free(manager, 11 - full, f"{full} blocks are shared by three")
    manager.free(first)
    manager.free("C")
    assert_free(manager, 11 - full, "one of three still holds the blocks")
    others = give(manager, "D", 4 * (11 - full))
    assert not set(others) & set(table), f"blocks {table} are held, and others got {others}"
    manager.free("B" if first == "A" else "A")
    assert_free(manager, full, "the last holder has gone")


@pytest.mark.todo(1, points=2)
def test_todo_1_a_fork_without_a_block_for_the_copy_changes_nothing(lab):
    manager = lab.BlockManager(4, 4)
    table = give(manager, "A", 10)
    copies = manager.fork("A", "B", 10)
    assert copies is None, f"no block is free for the copy: None, and {shown(copies)} came"
    refusal("KeyError", lambda: manager.block_table("B"), "the fork was refused, so B has no table")
    manager.free("A")
    assert_free(manager, 3, f"A held {table} alone, as B's fork was refused")


@pytest.mark.todo(1, points=2)
def test_todo_1_a_fork_at_a_block_edge_needs_no_free_block(lab):
    manager = lab.BlockManager(4, 4)
    table = give(manager, "A", 12)
    copies = manager.fork("A", "B", 12)
    assert copies is not None and list(copies) == [], f"12 tokens fill three blocks: nothing to copy, {shown(copies)} came"
    assert manager.block_table("B") == table, f"B shares {table}, and has {manager.block_table('B')}"


# TODO 2: chained hashes


@pytest.mark.todo(2, points=2)
def test_todo_2_a_hash_depends_on_every_token_their_order_and_the_parent(lab, rng):
    tokens, parent = rng.sample(range(2, 2**17), 4), bytes([rng.randrange(256)]) * 32
    key = lab.hash_block(parent, tokens)
    assert isinstance(key, bytes), f"a hash is bytes; {shown(key)} came"
    assert lab.hash_block(parent, list(tokens)) == key, "the same block has another hash the second time"
    others = {f"token {place}": [*tokens[:place], tokens[place] ^ 1, *tokens[place + 1 :]] for place in range(4)}
    others["the order"] = tokens[::-1]
    others["the high bits"] = [tokens[0] ^ 2**16, *tokens[1:]]
    for what, other in others.items():
        assert lab.hash_block(parent, other) != key, f"{tokens} and {other} differ in {what} and have one hash"
    assert lab.hash_block(bytes(32), tokens) != key or parent == bytes(32), "the hash does not depend on the parent's"
    assert lab.hash_block(parent, [1, 23]) != lab.hash_block(parent, [12, 3]), "[1, 23] and [12, 3] have one hash"


@pytest.mark.todo(2, points=2)
def test_todo_2_a_hash_is_as_strong_as_sha256(lab, rng):
    keys = {lab.hash_block(b"", [number, 7]) for number in range(500)}
    assert len(keys) == 500, f"500 blocks have {len(keys)} different hashes"
    assert all(len(key) >= 16 for key in keys), f"a hash of {min(map(len, keys))} bytes can be made to collide; 16 or more"


@pytest.mark.todo(2, points=4)
@pytest.mark.parametrize("size", [1, 4, 5])
def test_todo_2_there_is_a_hash_for_each_full_block_chained_from_the_root(lab, rng, there, size):
    calls = []

    def numbered(parent: bytes, token_ids) -> bytes:
        calls.append((bytes(parent), list(token_ids)))
        return b"%d" % len(calls)

    for count in (0, size - 1, size, 3 * size - (size > 1), 3 * size):
        calls.clear()
        tokens = drawn(rng, count)
        keys = lab.block_hashes(tokens, size, b"root", there.lend(numbered))
        full = count // size
        assert same(list(keys), [b"%d" % (i + 1) for i in range(full)]), f"{count} tokens, blocks of {size}: {shown(keys)} came"
        expected = [(b"%d" % i if i else b"root", tokens[i * size : (i + 1) * size]) for i in range(full)]
        assert calls == expected, f"hash_function was called with {shown(calls)}, expected {shown(expected)}"


@pytest.mark.todo(2, points=2)
def test_todo_2_a_block_behind_another_beginning_has_another_hash(lab, rng):
    same_block, one, other = drawn(rng, 4), drawn(rng, 4), drawn(rng, 4)
    keys = [lab.block_hashes([*first, *same_block, *same_block], 4) for first in (one, other)]
    assert not set(keys[0]) & set(keys[1]), "equal blocks after different ones have equal hashes: their keys and values differ"
    assert len(set(keys[0])) == 3, "the same tokens in the second block and in the third have one hash"
    assert lab.block_hashes(one, 4, b"x") != lab.block_hashes(one, 4), "the root makes no difference"
    assert lab.block_hashes([*one, *other], 4)[:1] == lab.block_hashes(one, 4), "a longer prompt has another first hash"


# TODO 3: content behind a hash


def chain_of(lab, blocks, salt: str = "", key: bytes = b"same"):
    """Entries with one hash, each the parent of the next; the last one."""
    entry = None
    for number, tokens in enumerate(blocks, start=1):
        entry = lab.CachedBlock(number, key, tuple(tokens), entry, salt)
    return entry


def says(lab, entry, tokens, parent, salt: str, expected: bool, why: str) -> None:
    """is_content() answers so."""
    answer = lab.is_content(entry, tokens, parent, salt)
    assert same(answer, expected), f"is_content() should say {expected}, as {why}; it said {shown(answer)}"


@pytest.mark.todo(3, points=3)
def test_todo_3_tokens_and_salt_are_compared_though_the_hash_is_the_same(lab, rng):
    tokens = drawn(rng, 4)
    entry = chain_of(lab, [tokens], "me")
    says(lab, entry, tokens, None, "me", True, "tokens and salt are the same")
    says(lab, entry, list(tokens), None, "me", True, "a list has the tokens of the tuple")
    for place in (0, 3):
        other = [token ^ (index == place) for index, token in enumerate(tokens)]
        says(lab, entry, other, None, "me", False, f"token {place} differs")
    says(lab, entry, tokens, None, "you", False, "it is of another tenant")
    says(lab, entry, sorted(tokens), None, "me", sorted(tokens) == tokens, "the order differs")


@pytest.mark.todo(3, points=3)
def test_todo_3_everything_before_the_block_is_compared(lab, rng):
    first, second, third, other = (drawn(rng, 4) for _ in range(4))
    entry, parent = chain_of(lab, [first, second, third]), chain_of(lab, [first, second])
    for blocks in ([other, second], [first, other], [second], [first, first, second]):
        says(lab, entry, third, chain_of(lab, blocks), "", False, f"what comes before is {shown(blocks)}")
    says(lab, entry, third, None, "", False, "the entry has something before it")
    says(lab, chain_of(lab, [third]), third, parent, "", False, "the entry has nothing before it")
    mixed = lab.CachedBlock(9, b"same", tuple(third), chain_of(lab, [first, second], "you"), "")
    says(lab, mixed, third, parent, "", False, "what comes before is another tenant's")


@pytest.mark.todo(3, points=2)
def test_todo_3_a_beginning_that_was_evicted_and_computed_again_is_the_same(lab, rng):
    first, second, third = (drawn(rng, 4) for _ in range(3))
    says(lab, chain_of(lab, [first, second, third]), third, chain_of(lab, [first, second]), "", True,
         "the same tokens are before it, in other entries")
    long = [[number] for number in range(3000)]
    says(lab, chain_of(lab, long), long[-1], chain_of(lab, long[:-1]), "", True, "3000 blocks are equal")


# TODO 4: hit and share


@pytest.mark.todo(4, points=3)
def test_todo_4_full_blocks_that_are_computed_are_found_up_to_the_first_that_differs(lab, rng):
    tokens = drawn(rng, 15)
    manager = lab.BlockManager(20, 4)
    table = give(manager, "A", 15)
    assert manager.cached_blocks(tokens) == [], "nothing is computed yet, and something was found"
    manager.commit("A", tokens[:9])
    assert manager.cached_blocks(tokens) == table[:2], "9 computed tokens fill two blocks of 4, which should be found"
    manager.commit("A", tokens)
    for count, differs in ((15, None), (12, None), (11, None), (3, None), (15, 9), (15, 4), (15, 0)):
        prompt = [token ^ (index == differs) for index, token in enumerate(tokens[:count])]
        expected = table[: (count if differs is None else differs) // 4]
        found = manager.cached_blocks(prompt)
        assert found == expected, (
            f"A's {count} first tokens, differing at {differs}: {expected} should be found, and {found} were")


@pytest.mark.todo(4, points=3)
def test_todo_4_what_is_found_is_shared_and_the_rest_is_new(lab, rng):
    tokens, manager = drawn(rng, 12), lab.BlockManager(9, 4)
    table = compute(manager, "A", tokens)
    other = give(manager, "B", 18, tokens)
    assert other[:3] == table, f"A's blocks {table} hold B's first 12 tokens; B has {other}"
    assert len(other) == 5 and not set(other[3:]) & set(table), f"B needs 5 blocks, two of its own; it has {other}"
    assert_free(manager, 3, "A has three blocks of eight, and B two more")
    assert manager.block_table("A") == table, "A's table changed when B shared it"
    assert same(manager.allocate("C", 30, tokens), False), "C needs 8 blocks, shares 3, and 3 are free: that does not fit"
    refusal("KeyError", lambda: manager.block_table("C"), "C was refused, and has a table")
    assert_free(manager, 3, "C was refused")
    give(manager, "C", 24, tokens)
    assert_free(manager, 0, "C needs 6 blocks, of which 3 are shared and 3 were free")


@pytest.mark.todo(4, points=3)
def test_todo_4_an_evictable_block_that_is_shared_is_no_longer_free_for_the_rest(lab, rng):
    tokens, manager = drawn(rng, 12), lab.BlockManager(6, 4)
    table = compute(manager, "A", tokens)
    manager.free("A")
    assert_free(manager, 5, "all are free, three of them with known content")
    assert same(manager.allocate("B", 24, tokens), False), (
        "B needs 6 blocks of 5; three of those that are free are the very ones that it shares")
    assert_free(manager, 5, "B was refused")
    assert manager.cached_blocks(tokens) == table, "B was refused, and what it would have shared is not found any more"
    assert give(manager, "B", 20, tokens)[:3] == table, "B should share A's three blocks"
    assert_free(manager, 0, "B has all five blocks: three were shared, and two taken")
    manager.free("B")
    assert_free(manager, 5, "B is gone")


@pytest.mark.todo(4, points=2)
def test_todo_4_only_computed_full_blocks_within_the_table_are_entered(lab, rng):
    tokens, manager = drawn(rng, 16), lab.BlockManager(20, 4)
    table = give(manager, "A", 8)
    manager.commit("A", tokens)
    assert manager.cached_blocks(tokens) == table, "A's table has two blocks, and two can be found"
    give(manager, "A", 16)
    manager.commit("A", tokens[:11])
    assert len(manager.cached_blocks(tokens)) == 2, "the third block is not full: 11 tokens are computed"
    manager.commit("A", tokens)
    assert manager.cached_blocks(tokens) == manager.block_table("A"), "all four blocks are computed, and should be found"


@pytest.mark.todo(4, points=3)
def test_todo_4_two_that_computed_the_same_have_one_entry_and_go_on(lab, rng):
    tokens, more, manager = drawn(rng, 8), drawn(rng, 4), lab.BlockManager(20, 4)
    first = compute(manager, "A", tokens)
    second = compute(manager, "B", [*tokens, *more])
    assert not set(first) & set(second), "B computed its own blocks"
    assert manager.cached_blocks([*tokens, *more]) == [*first, second[2]], (
        f"A keeps {first} and B {second}: A's entries stay, and B's third block follows them")
    for request_id in "AB":
        manager.commit(request_id, tokens)
    assert manager.cached_blocks(tokens) == first, "committing again changes nothing"
    manager.free("A")
    manager.free("B")
    assert_free(manager, 19, "both are gone")


def weak_hash(parent: bytes, token_ids) -> bytes:
    """All blocks with one sum of tokens have one hash, whatever is before them."""
    return bytes([sum(token_ids) % 3])


def first_token_hash(parent: bytes, token_ids) -> bytes:
    """All blocks with one first token have one hash."""
    return bytes([token_ids[0]])


@pytest.mark.todo(4, points=1)
def test_todo_4_nothing_is_entered_behind_a_block_whose_hash_is_anothers(lab, there):
    manager = lab.BlockManager(20, 2, there.lend(first_token_hash))
    table = compute(manager, "A", [1, 1, 2, 0])
    compute(manager, "B", [1, 5, 3, 0])
    found = manager.cached_blocks([1, 1, 3, 0])
    assert found == table[:1], (
        f"[3, 0] was computed behind [1, 5], whose hash is that of [1, 1]; of [1, 1, 3, 0] {table[:1]} is known, not {found}")


@pytest.mark.todo(4, points=3)
def test_todo_4_a_colliding_hash_never_serves_another_prompts_blocks(lab, rng, there):
    manager = lab.BlockManager(60, 2, there.lend(weak_hash))
    owner: dict[int, tuple[int, ...]] = {}
    for number in range(12):
        tokens = [rng.randrange(3) for _ in range(8)]
        found = manager.cached_blocks(tokens)
        for index, block in enumerate(found):
            expected = tuple(tokens[: 2 * index + 2])
            assert owner[block] == expected, f"{tokens} were served block {block}, which keeps the end of {owner[block]}"
        table = give(manager, str(number), 8, tokens[: 2 * len(found)])
        manager.commit(str(number), tokens)
        for index, block in enumerate(table):
            owner.setdefault(block, tuple(tokens[: 2 * index + 2]))
        again = manager.cached_blocks(tokens)
        assert again[: len(found)] == found, f"{tokens} found {found}, and after its own blocks were computed {again}"


# TODO 5: eviction


@pytest.mark.todo(5, points=2)
def test_todo_5_what_is_evicted_is_not_found_and_what_is_not_is(lab, rng):
    prompts, manager = [drawn(rng, 8) for _ in range(4)], lab.BlockManager(9, 4)
    for number, prompt in enumerate(prompts):
        compute(manager, str(number), prompt)
        manager.free(str(number))
    assert_free(manager, 8, "all four are gone")
    give(manager, "new", 12)
    found = [len(manager.cached_blocks(prompt)) for prompt in prompts]
    assert found == [0, 1, 2, 2], f"3 of 8 blocks were taken: of the prompts [0, 1, 2, 2] blocks are left; found {found}"
    assert same(manager.num_evictions, 3), f"three blocks were evicted; num_evictions says {manager.num_evictions}"
    assert_free(manager, 5, "three blocks are held")


@pytest.mark.todo(5, points=2)
def test_todo_5_a_hit_makes_a_block_young_again(lab, rng):
    one, two, manager = drawn(rng, 8), drawn(rng, 8), lab.BlockManager(5, 4)
    for name, prompt in (("one", one), ("two", two)):
        compute(manager, name, prompt)
        manager.free(name)
    give(manager, "again", 8, one)
    manager.free("again")
    give(manager, "new", 8)
    found = [len(manager.cached_blocks(prompt)) for prompt in (one, two)]
    assert found == [2, 0], f"one was used after two, so two goes first; blocks found of one and two: {found}"


@pytest.mark.todo(5, points=2)
def test_todo_5_an_evicted_block_is_anothers_and_can_be_known_again(lab, rng):
    manager = lab.BlockManager(4, 4)
    for turn in range(6):
        prompt = drawn(rng, 12)
        table = compute(manager, f"{turn}", prompt)
        assert sorted(table) == [1, 2, 3], f"the pool's three blocks are taken again and again; the table is {table}"
        assert manager.cached_blocks(prompt) == table, "a block that was evicted and computed anew should be found"
        manager.free(f"{turn}")
    assert same(manager.num_evictions, 15), f"five times three blocks were evicted; num_evictions says {manager.num_evictions}"


@pytest.mark.todo(5, points=2)
@pytest.mark.parametrize("shared", [0, 4, 7])
def test_todo_5_a_working_set_counts_each_beginning_once(lab, rng, shared):
    beginning = drawn(rng, shared)
    prompts = [[*beginning, *drawn(rng, 13 - shared)] for _ in range(5)]
    prompts += [list(prompts[0]), prompts[1][:6]]
    expected = len({tuple(prompt[:end]) for prompt in prompts for end in range(4, len(prompt) + 1, 4)})
    answer = lab.working_set(prompts, 4)
    assert same(answer, expected), f"five prompts of 13 tokens share {shared}: {expected} blocks; {shown(answer)} came"


class Cell:
    """A block of the model: its content, if others can find it, and who holds it."""

    def __init__(self, number: int) -> None:
        self.number, self.content, self.holders = number, None, set()


class CacheModel:
    """What is resident, by content: no hashes. A content is a salt and all tokens up to the end of a block."""

    def __init__(self, usable: int, size: int) -> None:
        self.usable, self.size = usable, size
        self.resident: dict[tuple, Cell] = {}
        self.unheld: list[Cell] = []  # known, the next to be evicted first
        self.cells: dict[str, list[Cell]] = {}
        self.salts: dict[str, str] = {}
        self.known: dict[str, int] = {}  # request → blocks of its that were committed

    @property
    def free(self) -> int:
        return self.usable - len({cell for cells in self.cells.values() for cell in cells})

    def contents(self, tokens, salt: str) -> list[tuple]:
        return [(salt, tuple(tokens[:end])) for end in range(self.size, len(tokens) + 1, self.size)]

    def found(self, tokens, salt: str) -> list[Cell]:
        cells = []
        for content in self.contents(tokens, salt):
            if content not in self.resident:
                break
            cells.append(self.resident[content])
        return cells

    def fits(self, request: str, num_tokens: int, prefix, salt: str) -> bool:
        shared = self.found(prefix, salt) if request not in self.cells else []
        missing = -(-num_tokens // self.size) - len(shared or self.cells.get(request, []))
        return missing <= self.free - sum(not cell.holders for cell in shared)

    def allocated(self, request: str, table: list[int], prefix, salt: str) -> None:
        """The request got `table`; it must be what this model allows."""
        if request not in self.cells:
            shared = self.found(prefix, salt)
            self.cells[request], self.salts[request], self.known[request] = [], salt, len(shared)
            for cell in shared:
                self.hold(cell, request)
        mine = self.cells[request]
        old = [cell.number for cell in mine]
        assert table[: len(mine)] == old, f"{request}'s table should begin with {old}, and is {table}"
        held = {cell.number for cells in self.cells.values() for cell in cells}
        blank = self.usable - len(held) - len(self.unheld)
        for number in table[len(mine) :]:
            assert number not in held, f"{request} got block {number}, which is held: {table}"
            if blank:
                blank -= 1
                kept = [cell.number for cell in self.unheld]
                assert number not in kept, f"{request} got block {number} with known content, and empty ones were left"
            else:
                victim = self.unheld.pop(0)
                assert number == victim.number, f"the oldest block, {victim.number}, should be evicted; it was {number}"
                del self.resident[victim.content]
            held.add(number)
            self.hold(Cell(number), request)

    def hold(self, cell: Cell, request: str) -> None:
        if cell in self.unheld:
            self.unheld.remove(cell)
        cell.holders.add(request)
        self.cells[request].append(cell)

    def commit(self, request: str, tokens) -> None:
        contents = self.contents(tokens, self.salts[request])[: len(self.cells[request])]
        for index in range(self.known[request], len(contents)):
            cell = self.cells[request][index]
            if contents[index] not in self.resident and cell.content is None:
                self.resident[contents[index]], cell.content = cell, contents[index]
        self.known[request] = max(self.known[request], len(contents))

    def free_request(self, request: str) -> None:
        for cell in reversed(self.cells.pop(request, [])):
            cell.holders.discard(request)
            if not cell.holders and cell.content is not None:
                self.unheld.append(cell)


def play(manager, usable: int, size: int, rng: random.Random, operations: int) -> None:
    """Random allocations, commits and frees on the manager and on the model, which must agree after each."""
    model, texts, done = CacheModel(usable, size), dict[str, list[int]](), 0
    while done < operations:
        done += 1
        request = rng.choice("ABCDE")
        salt = rng.choice(["", "", "tenant"])
        if request in texts and rng.random() < 0.45:
            manager.free(request)
            model.free_request(request)
            del texts[request]
        else:
            tokens = texts.get(request) or [rng.randrange(2) for _ in range(rng.randrange(1, 5 * size))]
            new = request not in texts
            tokens = tokens if new else [*tokens, *(rng.randrange(2) for _ in range(rng.randrange(1, size + 2)))]
            found = len(model.found(tokens[:-1], salt)) * size if new else 0
            if new:
                looked = manager.cached_blocks(tokens, salt)
                expected = [cell.number for cell in model.found(tokens, salt)]
                assert looked == expected, f"blocks {expected} keep the beginning of {tokens} for {salt!r}; {looked} were found"
            prefix = tokens[:found]
            fits = model.fits(request, len(tokens), prefix, salt)
            answer = manager.allocate(request, len(tokens), prefix, salt)
            assert same(answer, fits), f"allocate({request!r}, {len(tokens)}) is {fits} with {model.free} free; {answer} came"
            if fits:
                model.allocated(request, manager.block_table(request), prefix, salt)
                texts[request] = tokens
                if rng.random() < 0.8:
                    computed = tokens[: rng.randrange(len(tokens) + 1)] if rng.random() < 0.3 else tokens
                    manager.commit(request, computed)
                    model.commit(request, computed)
        assert_free(manager, model.free, f"after {done} operations in {usable} blocks of {size}")


@pytest.mark.todo(5, points=2)
def test_todo_5_a_model_of_the_cache_agrees_after_every_operation(lab, rng):
    for _ in range(8):
        usable, size = rng.randrange(6, 20), rng.randrange(1, 4)
        play(lab.BlockManager(usable + 1, size), usable, size, rng, 60)


@pytest.mark.todo(5, points=2)
@pytest.mark.parametrize("name", workloads.WORKLOADS)
def test_todo_5_the_hit_rate_is_the_references_and_not_the_naive_one(lab, name):
    limit, reference, naive, mine = workloads.columns(
        name, lambda num_blocks, size: served_by(lab.BlockManager(num_blocks, size)))
    assert mine >= (reference + naive) / 2, (
        f"{name}: of the tokens {limit:.1%} could be found; the reference finds {reference:.1%}, one that evicts the block with "
        f"the smallest number {naive:.1%}, and yours {mine:.1%}: at least {(reference + naive) / 2:.1%} is asked")


def served_by(manager):
    """A manager whose hits are counted from `cached_blocks`, so that a trace does not run on TODO 6."""

    class Served:
        allocate, commit, free = manager.allocate, manager.commit, manager.free

        @staticmethod
        def find_cached_prefix(request_id: str, tokens: list[int]) -> int:
            return len(manager.cached_blocks(tokens[: len(tokens) - 1])) * workloads.SIZE

    return Served


# TODO 6: the last token


@pytest.mark.todo(6, points=2)
def test_todo_6_whole_blocks_are_counted_and_never_the_last_token(lab, rng):
    tokens, manager = drawn(rng, 13), lab.BlockManager(20, 4)
    compute(manager, "A", tokens)
    for count, expected in ((13, 12), (12, 8), (11, 8), (9, 8), (8, 4), (5, 4), (4, 0), (1, 0)):
        answer = manager.find_cached_prefix("B", tokens[:count])
        assert same(answer, expected), f"of A's first {count} tokens {expected} need not be computed; {shown(answer)} came"
    before = manager.num_free_blocks
    manager.find_cached_prefix("C", tokens)
    assert_free(manager, before, "somebody asked what is in the cache")


@pytest.mark.todo(6, points=2)
def test_todo_6_a_block_size_of_one_computes_one_token(lab, rng):
    tokens, manager = drawn(rng, 5), lab.BlockManager(20, 1)
    compute(manager, "A", tokens)
    answer = manager.find_cached_prefix("B", tokens)
    assert same(answer, 4), f"all 5 tokens are known, and the last is computed for its logits: 4; {shown(answer)} came"
    assert same(manager.find_cached_prefix("B", [*tokens, 1]), 5), "of 6 tokens 5 are known, and the last is not"


@pytest.mark.practice
@pytest.mark.todo(6, points=2)
def test_todo_6_the_engine_says_the_same_with_sharing_in_a_pool_that_is_too_small(lab, rng):
    beginning = [rng.randrange(300, 900) for _ in range(12)]
    prompts = [[*beginning, *(rng.randrange(300, 900) for _ in range(rng.randrange(3)))] for _ in range(5)]
    prompts += [list(beginning), list(beginning)]
    settings = {"num_gpu_blocks_override": 14, "max_num_batched_tokens": 16}
    engine = engine_with(lab, check_invariants=True, **settings)
    plain = engine_with(None, enable_prefix_caching=False, **settings)
    found, expected = run(engine, prompts, 12), run(plain, prompts, 12)
    assert found == expected, f"the engine on these blocks generated {shown(found)}, and without sharing {shown(expected)}"
    assert any(step["preempted"] for step in engine.recorder.steps), "nobody was preempted: the pool is not small enough"
    assert computed(engine) < computed(plain), f"{computed(engine)} tokens computed with sharing, {computed(plain)} without"
    engine.check_invariants()


# TODO 7: salts


@pytest.mark.todo(7, points=4)
def test_todo_7_tenants_do_not_find_each_others_blocks(lab, rng):
    tokens, manager = drawn(rng, 8), lab.BlockManager(30, 4)
    give(manager, "A", 8, (), "a")
    manager.commit("A", tokens)
    found = {salt: manager.cached_blocks(tokens, salt) for salt in ("a", "b", "", "A", "aa", "ä")}
    assert {salt for salt, blocks in found.items() if blocks} == {"a"}, f"only the tenant 'a' computed these tokens: {found}"
    roots = [lab.root_of(salt) for salt in ("a", "b", "ab", "ä", "A")]
    assert all(isinstance(root, bytes) for root in roots), f"a root is bytes; {shown(roots)} came"
    assert len(set(roots)) == 5 and roots[0] == lab.root_of("a"), "each salt has a root of its own, and always the same"


class Server:
    """Computes as many tokens a step as `budget`, and knows what it has computed, for each salt."""

    def __init__(self, budget: int, size: int) -> None:
        self.budget, self.size, self.known, self.asked = budget, size, set(), 0

    def serve(self, tokens: list[int], salt: str = "") -> int:
        tokens, found, self.asked = list(tokens), 0, self.asked + 1
        while found + self.size < len(tokens) and (salt, *tokens[: found + self.size]) in self.known:
            found += self.size
        ends = range(self.size, len(tokens) + 1, self.size)
        self.known |= {(salt, *tokens[:end]) for end in ends}
        return -(-(len(tokens) - found) // self.budget)


@pytest.mark.todo(7, points=3)
def test_todo_7_the_neighbours_prompt_is_read_without_a_salt_and_not_with_one(lab, rng, there):
    guesses = [drawn(rng, 4) for _ in range(5)]
    secret = [token for _ in range(3) for token in rng.choice(guesses)]
    for salt, expected in (("", secret), ("the neighbour's", [])):
        server = Server(4, 4)
        server.serve(secret, salt)
        answer = lab.read_prefix(there.lend(server.serve), guesses, 3)
        assert same(list(answer), expected), f"the neighbour's salt is {salt!r}: {shown(expected)} expected; {shown(answer)} came"
    assert server.asked <= 1 + 5, f"no guess was faster, so nothing more can be read; {server.asked} prompts were sent"


@pytest.mark.todo(7, points=2)
def test_todo_7_reading_ends_where_the_neighbours_prompt_does(lab, rng, there):
    guesses = [drawn(rng, 4) for _ in range(4)]
    secret, server = [*guesses[2], *guesses[1]], Server(2, 4)
    server.serve([*secret, 77])
    answer = lab.read_prefix(there.lend(server.serve), guesses, 5)
    assert same(list(answer), secret), f"{secret} can be read, and nothing behind it; {shown(answer)} came"
    server = Server(2, 4)
    server.serve([*secret, 77])
    answer = lab.read_prefix(there.lend(server.serve), guesses, 1)
    assert same(list(answer), secret[:4]), f"one block was asked for: {secret[:4]}; {shown(answer)} came"


@pytest.mark.practice
@pytest.mark.todo(7, points=1)
def test_todo_7_the_attack_works_on_the_engine_until_the_neighbour_has_a_salt(lab, rng):
    guesses = [[rng.randrange(300, 900) for _ in range(8)] for _ in range(4)]
    secret = [token for _ in range(3) for token in rng.choice(guesses)]
    for salt, expected in (("", secret), ("the neighbour's", [])):
        engine = engine_with(lab, max_num_batched_tokens=8)
        steps_to_first_token(engine, [*secret, 300], salt)
        read = list(lab.read_prefix(lambda prompt, engine=engine: steps_to_first_token(engine, prompt), guesses, 3))
        assert read == expected, f"the neighbour's salt is {salt!r}: {shown(expected)} can be read; {shown(read)} came"


def steps_to_first_token(engine: LLMEngine, prompt: list[int], salt: str = "") -> int:
    """How many steps the engine takes until the prompt has its first token."""
    before = len(engine.recorder.steps)
    wishes = {"prompt_token_ids": list(prompt), "cache_salt": salt} if salt else {"prompt_token_ids": list(prompt)}
    engine.add_request(f"request {before}", wishes, SamplingParams(temperature=0.0, max_tokens=1))
    while engine.has_unfinished_requests():
        engine.step()
    return len(engine.recorder.steps) - before


# TODO 8: on its way


@pytest.mark.todo(8, points=3)
def test_todo_8_a_prompt_waits_for_the_block_that_it_lacks(lab, rng):
    tokens = drawn(rng, 13)
    other = [*tokens[:6], tokens[6] ^ 1, *tokens[7:]]
    cases = [
        (0, [tokens[:8]], True, "the first block is being computed"), (0, [tokens[:4]], True, "just the first block is"),
        (4, [tokens[:7]], False, "the second block is not full when the step is over"),
        (4, [tokens[:8]], True, "the second block is full when the step is over"),
        (4, [other], False, "the other's second block is different"), (0, [other], True, "the other's first block is the same"),
        (8, [drawn(rng, 20), tokens], True, "the second request computes the third block"), (0, [], False, "nobody computes"),
        (8, [[*drawn(rng, 8), *tokens[8:]]], False, "the same tokens are behind another beginning"),
    ]
    for cached, computing, expected, why in cases:
        answer = lab.is_coming(tokens, cached, computing, 4)
        assert same(answer, expected), f"{cached} of 13 tokens are cached, and {why}: {expected}; {shown(answer)} came"


@pytest.mark.todo(8, points=2)
def test_todo_8_nobody_waits_for_a_block_with_the_last_token(lab, rng):
    for count in (4, 3, 8, 7):
        tokens = drawn(rng, count)
        answer = lab.is_coming(tokens, (count - 1) // 4 * 4, [[*tokens, 1, 2, 3]], 4)
        assert same(answer, False), f"a prompt of {count} tokens computes its last block itself; waiting gains nothing: {answer}"


class Waiting(Scheduler):
    """The engine's scheduler, which asks the lab whether a prompt should wait."""

    ask = None

    def _is_coming(self, tokens, cached, salt, budget):
        chunks = budget.batch().chunks
        computing = [chunk.request.token_ids(0, chunk.known_end) for chunk in chunks if chunk.request.cache_salt == salt]
        return type(self).ask(list(tokens), cached, computing, self.block_manager.block_size)


def engine_with(lab, waits=None, **settings) -> LLMEngine:
    """The course's small model on the part, with a flight recorder."""
    seam = load_seam(lab_at(Path(__file__).parent))
    parts = {"block_manager": functools.partial(seam.block_manager, lab)} if lab is not None else {}
    if waits is not None:
        asking = type("AskingScheduler", (Waiting,), {"ask": staticmethod(waits)})
        parts["scheduler"] = lambda config, manager: asking(config.scheduler, manager)
    settings = {"num_gpu_blocks_override": 400, "block_size": 4} | settings
    args = EngineArgs(model="course-draft", device="cpu", dtype="float32", **settings)
    return LLMEngine.from_engine_args(args, components=Components().using(**parts), recorder=Recorder())


def run(engine: LLMEngine, prompts, max_tokens: int = 4) -> list[list[int]]:
    """The tokens of each prompt, all of which arrive together."""
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), {"prompt_token_ids": list(prompt)},
                           SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True))
    tokens = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)
    return [tokens[str(number)] for number in range(len(prompts))]


def computed(engine: LLMEngine) -> int:
    """How many tokens the engine has computed."""
    return sum(chunk["num_tokens"] for step in engine.recorder.steps for chunk in step["chunks"])


@pytest.mark.practice
@pytest.mark.todo(8, points=2)
def test_todo_8_sixteen_that_arrive_together_compute_their_beginning_once(lab, rng):
    beginning = [rng.randrange(300, 900) for _ in range(512)]
    prompts = [[*beginning, 300 + number, *range(400, 406)] for number in range(16)]
    settings = {"block_size": 16, "max_num_batched_tokens": 2048, "max_num_seqs": 16, "max_model_len": 600}
    engine = engine_with(lab, lab.is_coming, check_invariants=True, **settings)
    found = run(engine, prompts, 2)
    assert found == run(engine_with(None, enable_prefix_caching=False, **settings), prompts, 2), "other tokens with sharing"
    least = 512 + 16 * (7 + 1)
    assert computed(engine) == least, (
        f"16 prompts share 512 tokens, have 7 more each and generate 2: {least} tokens to compute; {computed(engine)} were")


if __name__ == "__main__":
    raise SystemExit("These are tests. Run them with: pytest test_lab.py")
