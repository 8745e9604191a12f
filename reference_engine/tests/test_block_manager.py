"""The block manager: examples by hand, and a state machine against a model of dicts and lists.

The model does not know hashes, counts or orders of eviction. It knows which request holds how many
blocks, and what was written into which block, and so what may be shared and what must not.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from nano_qwen3_serving.exceptions import InvalidParametersError
from nano_qwen3_serving.interfaces import NULL_BLOCK
from nano_qwen3_serving.scheduling.block_manager import BlockManager, hash_block

A = [10, 11, 12, 13, 14, 15, 16, 17]  # two blocks of 4
B = [20, 21, 22, 23, 24, 25, 26, 27]


def manager(num_blocks: int = 6, block_size: int = 4, **more) -> BlockManager:
    """Five usable blocks of four tokens."""
    return BlockManager(num_blocks, block_size, **more)


def compute(blocks: BlockManager, request_id: str, tokens: list[int], salt: str = "") -> int:
    """Runs a prompt as a scheduler does; how many of its tokens were cached."""
    cached = blocks.find_cached_prefix("asks", tokens, salt)
    assert blocks.allocate(request_id, len(tokens), tokens[:cached], salt)
    blocks.commit(request_id, tokens)
    blocks.check_integrity()
    return cached


def test_a_pool_needs_the_null_block_and_one_more():
    with pytest.raises(InvalidParametersError, match="num_blocks must be at least 2"):
        BlockManager(1, 4)


def test_the_null_block_is_never_given_away():
    blocks = manager()
    assert blocks.num_free_blocks == 5
    assert blocks.allocate("A", 20)
    assert sorted(blocks.block_table("A")) == [1, 2, 3, 4, 5]
    assert NULL_BLOCK not in blocks.block_table("A")


@pytest.mark.parametrize("tokens, expected", [(1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_a_block_table_covers_its_tokens_and_no_more(tokens, expected):
    blocks = manager()
    assert blocks.allocate("A", tokens)
    assert len(blocks.block_table("A")) == expected


def test_a_growing_request_keeps_its_blocks_and_gets_one_at_each_edge():
    blocks = manager()
    seen: list[int] = []
    for tokens in range(1, 13):
        assert blocks.allocate("A", tokens)
        table = blocks.block_table("A")
        assert table[: len(seen)] == seen and len(table) == -(-tokens // 4)
        seen = table


def test_an_allocation_that_does_not_fit_changes_nothing():
    blocks = manager()
    assert blocks.allocate("A", 12)
    assert not blocks.allocate("B", 12)
    assert not blocks.allocate("A", 24)
    blocks.check_integrity()
    assert blocks.num_free_blocks == 2 and len(blocks.block_table("A")) == 3
    with pytest.raises(KeyError):
        blocks.block_table("B")


def test_free_returns_every_block_when_a_later_allocation_fails():
    blocks = manager()
    assert blocks.allocate("A", 8) and not blocks.allocate("A", 40)
    blocks.free("A")
    assert blocks.num_free_blocks == 5


def test_freeing_twice_or_somebody_unknown_is_no_error_and_frees_nothing():
    blocks = manager()
    assert blocks.allocate("A", 4) and blocks.allocate("B", 4)
    for request_id in ("A", "A", "nobody"):
        blocks.free(request_id)
    blocks.check_integrity()
    assert blocks.num_free_blocks == 4 and len(blocks.block_table("B")) == 1


def test_a_block_table_that_was_read_stays_true_while_its_request_grows_and_is_freed():
    blocks = manager()
    blocks.allocate("A", 5)
    table = blocks.block_table("A")
    first = list(table)
    assert blocks.allocate("A", 12) and table[:2] == first
    blocks.free("A")
    blocks.allocate("B", 16)
    assert table[:2] == first


def test_a_forked_request_shares_full_blocks_and_gets_a_copy_of_the_rest():
    blocks = manager()
    compute(blocks, "A", A[:6])
    first, second = blocks.block_table("A")
    copies = blocks.fork("A", "B", 6)
    assert blocks.block_table("B")[0] == first and copies == [(second, blocks.block_table("B")[1])]
    assert blocks.fork("A", "C", 4) == [] and list(blocks.block_table("C")) == [first]
    blocks.check_integrity()
    for name in "ACB":
        blocks.free(name)
    blocks.check_integrity()
    assert blocks.num_free_blocks == 5


def test_a_fork_for_whose_copy_no_block_is_left_changes_nothing():
    blocks = manager(num_blocks=3)
    compute(blocks, "A", A[:6])
    assert blocks.fork("A", "B", 6) is None
    blocks.check_integrity()
    with pytest.raises(KeyError):
        blocks.block_table("B")
    assert blocks.fork("A", "B", 4) == []


def test_what_is_hashed_once_is_not_hashed_again_while_a_request_waits():
    hashed = []

    def count(parent, tokens):
        hashed.append(tokens)
        return hash_block(parent, tokens)

    blocks = manager(num_blocks=9, hash_function=count)
    compute(blocks, "A", A)
    hashed.clear()
    for _ in range(10):
        assert blocks.find_cached_prefix("B", [*A, 1]) == 8
    assert len(hashed) == 2
    assert blocks.allocate("B", 9, A) and len(hashed) == 2
    assert blocks.find_cached_prefix("C", [*A[:4], 9, 9, 9, 9, 1]) == 4
    blocks.free("C")  # it gave up waiting; another may take its name
    assert blocks.find_cached_prefix("C", [*A, 1]) == 8
    assert blocks.find_cached_prefix("C", [*B, 1]) == 0  # though nobody said that C is another one now
    assert blocks.find_cached_prefix("C", [*A, 1], "salt") == 0


def test_a_commit_needs_only_the_tokens_of_the_blocks_that_it_fills():
    whole, in_parts = manager(num_blocks=9), manager(num_blocks=9)
    for blocks in (whole, in_parts):
        blocks.allocate("A", 10)
    whole.commit("A", A)
    in_parts.commit("A", A[:5])
    in_parts.commit("A", A[4:8], 4)
    for blocks in (whole, in_parts):
        assert blocks.find_cached_prefix("asks", [*A, 1]) == 8


def test_equal_beginnings_share_blocks():
    blocks = manager()
    assert compute(blocks, "A", [*A, 1]) == 0
    assert compute(blocks, "B", [*A, 2]) == 8
    assert blocks.block_table("A")[:2] == blocks.block_table("B")[:2]
    assert blocks.block_table("A")[2] != blocks.block_table("B")[2]


@pytest.mark.parametrize("length, cached", [(4, 0), (5, 4), (8, 4), (9, 8)])
def test_a_full_hit_leaves_a_token_to_compute(length, cached):
    blocks = manager(12)
    compute(blocks, "A", [*A, 18, 19, 20, 21])
    assert blocks.find_cached_prefix("asks", [*A, 18][:length]) == cached


def test_a_shared_block_is_free_when_the_last_one_let_it_go():
    blocks = manager()
    compute(blocks, "A", [*A, 1])
    compute(blocks, "B", [*A, 2])
    assert blocks.num_free_blocks == 1
    blocks.free("A")
    assert blocks.num_free_blocks == 2  # A's own third block
    blocks.free("B")
    assert blocks.num_free_blocks == 5


def test_blocks_are_found_after_their_request_is_gone():
    blocks = manager()
    compute(blocks, "A", [*A, 1])
    blocks.free("A")
    assert blocks.num_free_blocks == 5 and compute(blocks, "B", [*A, 2]) == 8


def test_another_salt_shares_nothing():
    blocks = manager(12)
    compute(blocks, "A", [*A, 1], salt="alice")
    assert blocks.find_cached_prefix("asks", [*A, 1], "bob") == 0
    assert blocks.find_cached_prefix("asks", [*A, 1], "") == 0
    assert compute(blocks, "B", [*A, 1], salt="bob") == 0
    assert not set(blocks.block_table("A")) & set(blocks.block_table("B"))


def test_equal_tokens_after_another_beginning_are_not_shared():
    blocks = manager(12)
    compute(blocks, "A", [*A, 1])
    assert blocks.find_cached_prefix("asks", [*B[:4], *A[4:], 1]) == 0
    assert blocks.find_cached_prefix("asks", [*A[:4], *B[4:], 1]) == 4


def test_of_a_beginning_the_tail_is_evicted_first_and_of_two_the_older():
    blocks = manager()
    compute(blocks, "A", A)
    compute(blocks, "B", B)
    blocks.free("A")
    blocks.free("B")
    assert blocks.allocate("C", 8)  # the fifth block, and one that was known
    assert blocks.num_evictions == 1
    assert blocks.find_cached_prefix("asks", [*A, 1]) == 4 and blocks.find_cached_prefix("asks", [*B, 1]) == 8


def test_a_hit_makes_blocks_young_again():
    blocks = manager()
    compute(blocks, "A", A)
    compute(blocks, "B", B)
    blocks.free("A")
    blocks.free("B")
    compute(blocks, "again", [*A[:4], 1])
    blocks.free("again")
    assert blocks.allocate("C", 16)  # the fifth block, A's tail, and both of B's
    assert blocks.find_cached_prefix("asks", [*A, 1]) == 4 and blocks.find_cached_prefix("asks", [*B, 1]) == 0


def test_shared_evictable_blocks_do_not_count_as_room_for_the_rest():
    blocks = manager(4)  # three usable
    compute(blocks, "A", A)
    blocks.free("A")
    assert blocks.num_free_blocks == 3
    assert not blocks.allocate("B", 16, A)  # two shared, two more needed, one left
    blocks.check_integrity()
    assert blocks.num_free_blocks == 3
    assert blocks.allocate("B", 12, A)


def test_two_that_computed_the_same_at_once_keep_a_copy_each_and_one_is_found():
    blocks = manager(12)
    for request_id in ("A", "B"):
        assert blocks.allocate(request_id, 8)
    for request_id in ("A", "B"):
        blocks.commit(request_id, A)
    assert not set(blocks.block_table("A")) & set(blocks.block_table("B"))
    assert blocks.num_cached_blocks == 2 and blocks.find_cached_prefix("asks", [*A, 1]) == 8
    blocks.free("A")
    blocks.free("B")
    blocks.check_integrity()


def test_reset_forgets_everything_and_is_refused_while_somebody_holds_blocks():
    blocks = manager()
    compute(blocks, "A", A)
    assert blocks.reset_prefix_cache() is False and blocks.find_cached_prefix("asks", [*A, 1]) == 8
    blocks.free("A")
    assert blocks.reset_prefix_cache() is True
    blocks.check_integrity()
    assert blocks.find_cached_prefix("asks", [*A, 1]) == 0 and blocks.num_free_blocks == 5


def test_without_prefix_caching_nothing_is_found():
    blocks = manager(enable_prefix_caching=False)
    assert compute(blocks, "A", A) == 0 and blocks.find_cached_prefix("asks", [*A, 1]) == 0
    blocks.free("A")
    assert blocks.num_free_blocks == 5


def test_with_a_hash_that_always_collides_nobody_gets_foreign_blocks():
    blocks = manager(12, hash_function=lambda parent, tokens: b"same")
    compute(blocks, "A", [*A, 1])
    assert blocks.find_cached_prefix("asks", [*B, 1]) == 0
    assert compute(blocks, "B", [*B, 1]) == 0
    assert blocks.find_cached_prefix("asks", [*A, 1]) == 4  # of A only the first block could be entered
    assert blocks.find_cached_prefix("asks", [*A, 1], "salt") == 0


def test_integrity_notices_a_lost_block():
    blocks = manager()
    blocks.allocate("A", 8)
    blocks._holdings["A"].table.pop()
    with pytest.raises(AssertionError):
        blocks.check_integrity()


# --- against a model ---

SALTS = st.sampled_from(["", "salt"])
TOKENS = st.lists(st.sampled_from([1, 2]), min_size=1, max_size=14)  # two tokens: beginnings often agree


def weak_hash(parent: bytes, tokens) -> bytes:
    """Two values: almost everything collides."""
    return bytes([(sum(parent) + sum(tokens)) % 2])


class Pool(RuleBasedStateMachine):
    """A pool of a few blocks, and what it must be.

    held      request → its blocks
    lengths   request → how many tokens its blocks are for
    content   block → (salt, all tokens up to its end), once it was computed
    """

    requests = Bundle("requests")

    @initialize(num_blocks=st.integers(2, 9), size=st.integers(1, 3), weak=st.booleans(), caching=st.booleans())
    def build(self, num_blocks, size, weak, caching):
        more = {"hash_function": weak_hash} if weak else {}
        self.pool = BlockManager(num_blocks, size, caching, **more)
        self.size, self.usable, self.weak, self.caching = size, num_blocks - 1, weak, caching
        self.held: dict[str, list[int]] = {}
        self.sequences: dict[str, tuple[str, list[int]]] = {}
        self.computed: dict[str, int] = {}
        self.content: dict[int, tuple[str, tuple[int, ...]]] = {}
        self.count = 0

    def needed(self, tokens: int) -> int:
        return -(-tokens // self.size)

    def free_blocks(self) -> int:
        return self.usable - len({b for blocks in self.held.values() for b in blocks})

    def taken(self, block: int) -> None:
        """A block that is given to somebody has nobody, and what was in it is gone."""
        assert all(block not in blocks for blocks in self.held.values()), f"block {block} was given away twice"
        self.content.pop(block, None)

    @rule(target=requests, tokens=TOKENS, salt=SALTS, share=st.booleans(), part=st.integers(1, 14))
    def start(self, tokens, salt, share, part):
        """A request's first chunk, on what is cached of it."""
        request_id = f"r{self.count}"
        self.count += 1
        cached = self.pool.find_cached_prefix("asks", tokens, salt) if share else 0
        assert cached % self.size == 0 and cached < len(tokens), f"{cached} of {len(tokens)} tokens are cached"
        length = min(cached + part, len(tokens))
        least, most = self.idle_hits(tokens, cached, salt)
        missing, free = self.needed(length) - cached // self.size, self.free_blocks()
        got = self.pool.allocate(request_id, length, tokens[:cached], salt)
        assert got or missing > free - most, f"{missing} blocks are missing, {free} free, and it was refused"
        if not got:
            return request_id
        assert missing <= free - least, f"{missing} blocks were missing and {free} free, and it was granted"
        table = list(self.pool.block_table(request_id))
        assert len(table) == self.needed(length)
        for i, block in enumerate(table):
            if i < cached // self.size:
                mine = (salt, tuple(tokens[: (i + 1) * self.size]))
                assert self.content.get(block) == mine, f"block {block} is {self.content.get(block)}, not {mine}"
            else:
                self.taken(block)
        self.held[request_id], self.sequences[request_id] = table, (salt, tokens)
        self.computed[request_id] = cached
        return request_id

    def idle_hits(self, tokens, cached, salt) -> tuple[int, int]:
        """Of the blocks to be shared, how many nobody holds, at least and at most: those count as
        free until they are shared. Of two copies of a content the model does not know which is found."""
        in_use = {b for blocks in self.held.values() for b in blocks}
        least = most = 0
        for end in range(self.size, cached + 1, self.size):
            copies = [b for b, content in self.content.items() if content == (salt, tuple(tokens[:end]))]
            least += not any(b in in_use for b in copies)
            most += any(b not in in_use for b in copies)
        return least, most

    @rule(request_id=requests, more=st.integers(0, 6))
    def grow(self, request_id, more):
        """A live request gets room for more tokens, or nothing happens."""
        if request_id not in self.held:
            return
        salt, tokens = self.sequences[request_id]
        length = len(self.held[request_id]) * self.size + more
        old, free = self.held[request_id], self.free_blocks()
        fits = self.needed(length) - len(old) <= free
        got = self.pool.allocate(request_id, length)
        assert got == fits, f"{free} blocks are free, {length} tokens are wanted, and allocate() says {got}"
        new = list(self.pool.block_table(request_id))
        assert new[: len(old)] == old and len(new) == (self.needed(length) if got else len(old))
        for block in new[len(old) :]:
            self.taken(block)
        self.held[request_id] = new
        if got:
            self.sequences[request_id] = (salt, tokens + [1] * max(0, length - len(tokens)))

    @rule(request_id=requests, part=st.integers(1, 14))
    def compute(self, request_id, part):
        """Some of its tokens are in the cache now."""
        if request_id not in self.held:
            return
        salt, tokens = self.sequences[request_id]
        table = self.held[request_id]
        end = min(self.computed[request_id] + part, len(tokens), len(table) * self.size)
        first = self.computed[request_id] // self.size * self.size
        self.pool.commit(request_id, tokens[first:end], first)
        for i in range(end // self.size):
            self.content[table[i]] = (salt, tuple(tokens[: (i + 1) * self.size]))
        self.computed[request_id] = max(self.computed[request_id], end)

    @rule(target=requests, request_id=requests, part=st.integers(1, 14))
    def fork(self, request_id, part):
        """Another request goes on from what this one computed."""
        child = f"r{self.count}"
        self.count += 1
        computed = min(part, self.computed.get(request_id, 0))
        if request_id not in self.held or not computed:
            return child
        table, full, rest = self.held[request_id], computed // self.size, computed % self.size
        fits = not rest or self.free_blocks() > 0
        copies = self.pool.fork(request_id, child, computed)
        assert (copies is not None) == fits, f"{self.free_blocks()} blocks are free, and fork() says {copies}"
        if copies is None:
            return child
        mine = list(self.pool.block_table(child))
        assert mine[:full] == table[:full] and len(mine) == full + bool(rest)
        assert copies == ([(table[full], mine[full])] if rest else [])
        for block in mine[full:]:
            self.taken(block)
        salt, tokens = self.sequences[request_id]
        self.held[child], self.sequences[child], self.computed[child] = mine, (salt, tokens[:computed]), computed
        return child

    @rule(request_id=consumes(requests))
    def free(self, request_id):
        self.pool.free(request_id)
        self.held.pop(request_id, None)

    @rule(request_id=st.sampled_from(["nobody", "r0"]))
    def free_unknown_request(self, request_id):
        if request_id not in self.held:
            self.pool.free(request_id)

    @rule()
    def reset(self):
        assert self.pool.reset_prefix_cache() == (not self.held)
        if not self.held:
            self.content.clear()

    @rule(tokens=TOKENS, salt=SALTS)
    def look_up(self, tokens, salt):
        """What is found was computed, with this salt, and with these tokens before it."""
        cached = self.pool.find_cached_prefix("asks", tokens, salt)
        known = set(self.content.values())
        for end in range(self.size, cached + 1, self.size):
            assert (salt, tuple(tokens[:end])) in known, f"{tokens[:end]} was found and never computed"

    @precondition(lambda self: self.caching and not self.weak)
    @rule(request_id=requests)
    def everything_that_a_live_request_computed_is_found(self, request_id):
        if request_id in self.held:
            salt, tokens = self.sequences[request_id]
            full = self.computed[request_id] // self.size * self.size
            assert self.pool.find_cached_prefix("asks", [*tokens[:full], 9], salt) == full

    @invariant()
    def every_block_is_where_it_belongs(self):
        self.pool.check_integrity()
        assert self.pool.num_free_blocks == self.free_blocks()
        for request_id, table in self.held.items():
            assert self.pool.block_table(request_id) == table, f"{request_id}'s blocks moved"


Pool.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, derandomize=True)
test_the_pool_agrees_with_its_model = Pool.TestCase
