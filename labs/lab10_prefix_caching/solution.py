"""Lab 10: a block manager that shares blocks between requests which begin alike.

Read README.md first; it has the contract of each TODO. Check your work: pytest test_lab.py
Knows blocks, token ids and salts; knows nothing of tensors, models or time.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from labs.harness.todo import run_lab

NULL_BLOCK = 0
"""Padding is written there and nobody reads it. It belongs to the pool and is never handed out."""

HashFunction = Callable[[bytes, Sequence[int]], bytes]
"""Of the hash of everything before a block, and the block's tokens."""


@dataclass(eq=False)
class CachedBlock:
    """A full block whose content is known: these tokens, after those of `parent`, for this salt.

    Attributes:
        block_id: its number.
        key: its hash.
        token_ids: the tokens in it.
        parent: what was in the block before it; None for the first of a prompt. It may have been evicted since.
        salt: the tenant whose requests may find it.
    """

    block_id: int
    key: bytes
    token_ids: tuple[int, ...]
    parent: CachedBlock | None = None
    salt: str = ""


@dataclass(eq=False)
class Holding:
    """What a request has: its salt, its block table, and what is known of its first full blocks."""

    salt: str
    table: list[int] = field(default_factory=list)
    chain: list[CachedBlock] = field(default_factory=list)


def hash_block(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The hash of a block: of its tokens and, through its parent's hash, of all tokens before it."""
    # TODO 2: hash the parent's hash and the tokens together
    ### BEGIN SOLUTION
    return hashlib.sha256(parent + b"".join(token.to_bytes(4, "little") for token in token_ids)).digest()
    ### END SOLUTION


def block_hashes(
    token_ids: Sequence[int], block_size: int, root: bytes = b"", hash_function: HashFunction = hash_block
) -> list[bytes]:
    """The hashes of the full blocks of `token_ids`, in order; `root` stands before the first."""
    # TODO 2: chain the hashes, block by block
    ### BEGIN SOLUTION
    keys, parent = [], root
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        parent = hash_function(parent, token_ids[start : start + block_size])
        keys.append(parent)
    return keys
    ### END SOLUTION


def is_content(entry: CachedBlock, token_ids: Sequence[int], parent: CachedBlock | None, salt: str) -> bool:
    """Whether `entry` keeps these tokens, after the tokens of `parent` and of all before it, for this salt."""
    # TODO 3: compare the contents, up to the first block
    ### BEGIN SOLUTION
    if (tuple(entry.token_ids), entry.salt) != (tuple(token_ids), salt):
        return False
    ours, theirs = entry.parent, parent
    while ours is not theirs:
        if ours is None or theirs is None or (ours.token_ids, ours.salt) != (theirs.token_ids, theirs.salt):
            return False
        ours, theirs = ours.parent, theirs.parent
    return True
    ### END SOLUTION


def root_of(salt: str) -> bytes:
    """What stands before the first block of a tenant's prompts."""
    # TODO 7: make it different for each salt
    ### BEGIN SOLUTION
    return hashlib.sha256(salt.encode()).digest()
    ### END SOLUTION


def read_prefix(ttft: Callable[[list[int]], int], guesses: Sequence[list[int]], num_blocks: int) -> list[int]:
    """A neighbour's prompt, read from how many steps the first token of one's own takes.

    Args:
        ttft: sends a prompt to the server, and says how many steps its first token took. The server then knows that prompt.
        guesses: what a block may be, two or more, all of one length.
        num_blocks: how many blocks to read at most.

    Returns:
        The tokens found: fewer blocks if no guess was faster than the others.
    """
    # TODO 7: try each guess behind what is known; the one that is faster than the others is right
    ### BEGIN SOLUTION
    known: list[int] = []
    for _ in range(num_blocks):
        steps = [ttft([*known, *guess, 0]) for guess in guesses]
        if min(steps) == max(steps):
            break
        known += guesses[steps.index(min(steps))]
    return known
    ### END SOLUTION


def is_coming(token_ids: Sequence[int], num_cached: int, computing: Sequence[Sequence[int]], block_size: int) -> bool:
    """Whether this step computes the first block that a waiting prompt lacks, for another request.

    Args:
        token_ids: the prompt.
        num_cached: how many of its tokens are in the cache.
        computing: for each request of this step, the tokens that are in the cache when the step is over.
        block_size: tokens in a block.
    """
    # TODO 8: see whether the next block can be shared one step later
    ### BEGIN SOLUTION
    end = num_cached + block_size
    if end >= len(token_ids):
        return False
    return any(len(tokens) >= end and list(tokens[:end]) == list(token_ids[:end]) for tokens in computing)
    ### END SOLUTION


def working_set(prompts: Sequence[Sequence[int]], block_size: int) -> int:
    """How many blocks it takes to keep the full blocks of all prompts, those that begin alike sharing theirs."""
    # TODO 5: count the different beginnings
    ### BEGIN SOLUTION
    return len({key for prompt in prompts for key in block_hashes(prompt, block_size)})
    ### END SOLUTION


class BlockManager:
    """Says which request holds which blocks, and lets requests that begin alike hold the same ones.

    Args:
        num_blocks: blocks of the pool, the null block among them.
        block_size: tokens in a block.
        hash_function: replaceable, so that a test can make it collide.
    """

    def __init__(self, num_blocks: int, block_size: int, hash_function: HashFunction = hash_block) -> None:
        self.block_size = block_size
        self.hash_function = hash_function
        self.ref_counts = [0] * num_blocks  # how many tables hold each block
        self.free_list = list(range(num_blocks - 1, NULL_BLOCK, -1))  # nothing worth keeping; the last is taken next
        self.evictable: OrderedDict[int, None] = OrderedDict()  # held by nobody, but known; the first goes first
        self.cached: dict[int, CachedBlock] = {}  # block → what is known to be in it
        self.by_hash: dict[bytes, CachedBlock] = {}  # the same entries, to be found
        self.requests: dict[str, Holding] = {}
        self.num_evictions = 0

    # These are written for you. They are Lab 06's, and call what you write.

    @property
    def num_free_blocks(self) -> int:
        """Blocks that an allocation could get: those with nothing in them, and the evictable ones."""
        return len(self.free_list) + len(self.evictable)

    def allocate(self, request_id: str, num_tokens: int, cached_prefix: Sequence[int] = (), salt: str = "") -> bool:
        """Makes the request's block table cover `num_tokens` tokens in all, or changes nothing.

        A first allocation may begin with `cached_prefix`, the tokens that `find_cached_prefix` counted.
        Returns whether there were enough blocks.
        """
        if request_id not in self.requests and cached_prefix:
            return self.share(request_id, num_tokens, cached_prefix, salt)
        holding = self.requests.get(request_id) or Holding(salt)
        missing = self.blocks_for(num_tokens) - len(holding.table)
        if missing > self.num_free_blocks:
            return False
        self.requests[request_id] = holding
        holding.table.extend(self.new_block() for _ in range(missing))
        return True

    def block_table(self, request_id: str) -> list[int]:
        """The request's blocks in the order of its tokens. Raises KeyError for an unknown id."""
        return list(self.requests[request_id].table)

    def free(self, request_id: str) -> None:
        """Gives the request's blocks back, the last one first; for an unknown id, does nothing."""
        holding = self.requests.pop(request_id, None)
        for block in reversed(holding.table if holding else []):
            self.release(block)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks `num_tokens` tokens take."""
        return -(-num_tokens // self.block_size)

    def keys_of(self, token_ids: Sequence[int], salt: str) -> list[bytes]:
        """The hashes of the full blocks of `token_ids`, for this salt."""
        return block_hashes(token_ids, self.block_size, root_of(salt) if salt else b"", self.hash_function)

    def new_block(self) -> int:
        """A block for one table: one with nothing in it, or else the one that `evict` gives."""
        block = self.free_list.pop() if self.free_list else self.evict()
        self.ref_counts[block] = 1
        return block

    def cached_blocks(self, token_ids: Sequence[int], salt: str = "") -> list[int]:
        """The numbers of the blocks that `match` finds."""
        return [entry.block_id for entry in self.match(token_ids, salt)]

    def hold(self, block: int) -> None:
        """One more table holds a block, whose content is known or which is held already."""
        self.evictable.pop(block, None)
        self.ref_counts[block] += 1

    def retire(self, block: int) -> None:
        """Nobody holds the block any longer: if its content is known, it is evictable, after all that are already."""
        if block in self.cached:
            self.evictable[block] = None
        else:
            self.free_list.append(block)

    # These are yours.

    def release(self, block: int) -> None:
        """One table less holds the block; when none is left, it is retired."""
        # TODO 1: count down, and retire the block when nobody holds it
        ### BEGIN SOLUTION
        self.ref_counts[block] -= 1
        if self.ref_counts[block] == 0:
            self.retire(block)
        ### END SOLUTION

    def fork(self, parent_id: str, child_id: str, num_tokens: int) -> list[tuple[int, int]] | None:
        """Gives a new request the parent's first `num_tokens` tokens, which are computed: full blocks are shared.

        Returns:
            The copies (source, target) that are due before the child's next step; None if there was no block for one,
            and then nothing has changed.
        """
        # TODO 1: share the full blocks, and take a block for a copy of the rest
        ### BEGIN SOLUTION
        parent, (full, rest) = self.requests[parent_id], divmod(num_tokens, self.block_size)
        if rest and not self.num_free_blocks:
            return None
        child = self.requests[child_id] = Holding(parent.salt, parent.table[:full], parent.chain[:full])
        for block in child.table:
            self.hold(block)
        if not rest:
            return []
        child.table.append(self.new_block())
        return [(parent.table[full], child.table[full])]
        ### END SOLUTION

    def match(self, token_ids: Sequence[int], salt: str = "") -> list[CachedBlock]:
        """The known blocks that `token_ids` begin with, from the first to the last before one is missing."""
        # TODO 4: follow the hashes as long as each is there, and is this content
        ### BEGIN SOLUTION
        chain: list[CachedBlock] = []
        for index, key in enumerate(self.keys_of(token_ids, salt)):
            entry, parent = self.by_hash.get(key), chain[-1] if chain else None
            tokens = token_ids[index * self.block_size : (index + 1) * self.block_size]
            if entry is None or not is_content(entry, tokens, parent, salt):
                break
            chain.append(entry)
        return chain
        ### END SOLUTION

    def share(self, request_id: str, num_tokens: int, cached_prefix: Sequence[int], salt: str) -> bool:
        """A first allocation that begins with the known blocks of `cached_prefix`, and takes new ones for the rest.

        Returns whether there were enough blocks; if not, nothing has changed.
        """
        # TODO 4: hold what is known and take what is missing, or change nothing
        ### BEGIN SOLUTION
        chain = self.match(cached_prefix, salt)
        missing = self.blocks_for(num_tokens) - len(chain)
        if missing > self.num_free_blocks - sum(entry.block_id in self.evictable for entry in chain):
            return False
        holding = self.requests[request_id] = Holding(salt, [entry.block_id for entry in chain], chain)
        for block in holding.table:
            self.hold(block)
        holding.table.extend(self.new_block() for _ in range(missing))
        return True
        ### END SOLUTION

    def commit(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Says that the request's tokens `token_ids`, from its first one, are computed: others may find the full blocks.

        A content that is known already keeps the block that it has; the request's own stays private.
        """
        # TODO 4: enter each full block that is not known yet, and stop where another content has the hash
        ### BEGIN SOLUTION
        holding = self.requests[request_id]
        chain = holding.chain
        for index, key in enumerate(self.keys_of(token_ids, holding.salt)[: len(holding.table)]):
            if index < len(chain):
                continue
            tokens = tuple(token_ids[index * self.block_size : (index + 1) * self.block_size])
            entry, parent, block = self.by_hash.get(key), chain[-1] if chain else None, holding.table[index]
            if entry is None and block not in self.cached:
                entry = CachedBlock(block, key, tokens, parent, holding.salt)
                self.by_hash[key] = self.cached[block] = entry
            if entry is None or not is_content(entry, tokens, parent, holding.salt):
                return
            chain.append(entry)
        ### END SOLUTION

    def evict(self) -> int:
        """Takes the block that nobody has held for the longest time; what was in it cannot be found any more."""
        # TODO 5: take the oldest, and forget what is in it
        ### BEGIN SOLUTION
        block, _ = self.evictable.popitem(last=False)
        del self.by_hash[self.cached.pop(block).key]
        self.num_evictions += 1
        return block
        ### END SOLUTION

    def find_cached_prefix(self, request_id: str, token_ids: Sequence[int], salt: str = "") -> int:
        """How many leading tokens of a waiting prompt are in the cache: whole blocks, and never the last token."""
        # TODO 6: count the known blocks, and leave a token to compute
        ### BEGIN SOLUTION
        return len(self.match(token_ids[: len(token_ids) - 1], salt)) * self.block_size
        ### END SOLUTION


@dataclass(frozen=True)
class Replay:
    """What a trace of prompts did to a pool.

    Attributes:
        tokens: tokens of all prompts.
        hits: those that were found.
        evictions: blocks that were forgotten.
    """

    tokens: int
    hits: int
    evictions: int

    @property
    def hit_rate(self) -> float:
        """The share of tokens that were found, in [0, 1]."""
        return self.hits / self.tokens if self.tokens else 0.0


def replay(manager: BlockManager, prompts: Sequence[Sequence[int]]) -> Replay:
    """Serves prompts one after the other, each computed whole and freed, and counts hits (this one is written for you)."""
    hits = 0
    for number, prompt in enumerate(prompts):
        found = manager.find_cached_prefix(str(number), prompt)
        if not manager.allocate(str(number), len(prompt), prompt[:found]):
            raise ValueError(f"a prompt of {len(prompt)} tokens does not fit into the pool")
        manager.commit(str(number), prompt)
        manager.free(str(number))
        hits += found
    return Replay(sum(map(len, prompts)), hits, manager.num_evictions)


def rounds(num_prompts: int, length: int, times: int) -> list[list[int]]:
    """`num_prompts` prompts that share nothing, in turn, `times` times (this one is written for you)."""
    return [[1000 * number + i for i in range(length)] for _ in range(times) for number in range(num_prompts)]


def main() -> None:
    """The README's example, then the cliff."""
    print("=== Lab 10: Prefix caching ===\n")
    show_example()
    show_cliff()


def show_example() -> None:
    """B begins as A did, and C as well, when both are gone."""
    manager = BlockManager(num_blocks=6, block_size=4)
    a, b = list(range(10)), [*range(8), 90, 91]
    manager.allocate("A", len(a))
    manager.commit("A", a)
    found = manager.find_cached_prefix("B", b)
    manager.allocate("B", len(b), b[:found])
    print(f"A has {manager.block_table('A')}; B finds {found} tokens and has {manager.block_table('B')}")
    print(f"fork of A: copies {manager.fork('A', 'A2', len(a))}, table {manager.block_table('A2')}; "
          f"free: {manager.num_free_blocks}")
    for request_id in ("A", "A2", "B"):
        manager.free(request_id)
    print(f"all are gone; free: {manager.num_free_blocks}, evictable, the first first: {list(manager.evictable)}")
    print(f"a prompt of A's first 8 tokens finds {manager.find_cached_prefix('C', a[:8])}: the last one is computed\n")


def show_cliff() -> None:
    """The hit rate of prompts that come in turn, as there are more of them."""
    print("A pool of 32 blocks of 4 tokens; prompts of 16 tokens in turn, ten rounds:\n")
    for number in (4, 6, 7, 8, 9, 12):
        prompts = rounds(number, 16, 10)
        result, blocks = replay(BlockManager(33, 4), prompts), working_set(prompts, 4)
        print(f"{number:2} prompts, {blocks:2} blocks: hit rate {result.hit_rate:6.1%}, {result.evictions:3} evictions")


if __name__ == "__main__":
    run_lab(main)
