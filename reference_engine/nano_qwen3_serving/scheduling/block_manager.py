"""Who owns which block of the KV cache.

Knows blocks, counts and token ids; knows nothing of tensors, requests' lives or steps. The blocks
of one request, its block table, need not lie side by side: that is paged attention's idea (Kwon et
al., 2023). Full blocks are found again by a hash of everything up to their end (vLLM's automatic
prefix caching), so that requests with the same beginning share them.

Every block is in exactly one state:

    null         block 0: padding writes there, nobody reads it
    free         nobody holds it, nothing worth keeping in it
    evictable    nobody holds it, but its content is known: found by hash, or evicted, oldest first
    referenced   held by as many block tables as its reference count says

What a block is, is in its `Block`; what a request has, in its `Holding`; what is known of one that waits, in its
`HashedPrompt`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nano_qwen3_serving.exceptions import InvalidParametersError
from nano_qwen3_serving.interfaces import NULL_BLOCK

BlockHash = bytes
HashFunction = Callable[[BlockHash, Sequence[int]], BlockHash]


def hash_block(parent: BlockHash, token_ids: Sequence[int]) -> BlockHash:
    """Hash of a block: of its tokens and, through its parent's hash, of all tokens before it."""
    return hashlib.sha256(parent + b"".join(t.to_bytes(4, "little") for t in token_ids)).digest()


@dataclass(eq=False)
class CachedBlock:
    """A full block whose content is known: these tokens, after those of `parent`, for this salt.

    The parent may have been evicted. When its content is known again, in another block, `parent` becomes that one.
    """

    block_id: int
    key: BlockHash
    token_ids: tuple[int, ...]
    parent: CachedBlock | None
    salt: str


@dataclass(eq=False, slots=True)
class Block:
    """A block of the pool.

    Attributes:
        block_id: its number.
        ref_count: the block tables that hold it.
        cached: what is known to be in it, if others can find it.
    """

    block_id: int
    ref_count: int = 0
    cached: CachedBlock | None = None


@dataclass(eq=False, slots=True)
class Holding:
    """What a request has.

    Attributes:
        salt: it shares blocks only with requests of the same salt.
        table: its block table: numbers of blocks, in the order of its tokens.
        chain: what is known of its first full blocks, in order. An entry may be of another block with equal content.
    """

    salt: str
    table: list[int] = field(default_factory=list)
    chain: list[CachedBlock] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class HashedPrompt:
    """The full blocks of a request that waits, as far as they were looked for.

    Attributes:
        salt, token_ids: what was hashed.
        blocks: the tokens of each block.
        keys: their hashes.
    """

    salt: str
    token_ids: list[int]
    blocks: list[tuple[int, ...]] = field(default_factory=list)
    keys: list[BlockHash] = field(default_factory=list)


class BlockManager:
    """Allocates blocks, counts who holds them, and shares full ones.

    Args:
        num_blocks: blocks of the pool, the null block among them.
        block_size: tokens in a block.
        enable_prefix_caching: keep full blocks to be shared.
        hash_function: replaceable, so that a test can make it collide.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = True,
        hash_function: HashFunction = hash_block,
    ) -> None:
        if num_blocks < 2:
            raise InvalidParametersError(
                f"num_blocks must be at least 2 (one is the null block), got {num_blocks}",
                parameter="num_blocks", value=num_blocks)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self._hash = hash_function
        self._blocks = [Block(block_id) for block_id in range(num_blocks)]
        self._holdings: dict[str, Holding] = {}
        self._hashed: dict[str, HashedPrompt] = {}  # of requests that wait
        self._free = list(range(num_blocks - 1, NULL_BLOCK, -1))  # popped from the end: 1, 2, 3, …
        self._evictable: OrderedDict[int, None] = OrderedDict()  # the oldest first
        self._by_hash: dict[BlockHash, CachedBlock] = {}
        self.num_evictions = 0  # known blocks that were given to another request

    @property
    def num_free_blocks(self) -> int:
        """Blocks that an allocation could get: free and evictable ones."""
        return len(self._free) + len(self._evictable)

    @property
    def num_cached_blocks(self) -> int:
        """Blocks whose content can be found by hash."""
        return len(self._by_hash)

    @property
    def evictable_blocks(self) -> list[int]:
        """Numbers of the blocks that nobody holds and whose content is known, the next to be evicted first."""
        return list(self._evictable)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens take."""
        return -(-num_tokens // self.block_size)

    def find_cached_prefix(self, request_id: str, token_ids: Sequence[int], salt: str = "") -> int:
        """How many of a waiting request's leading tokens are in the cache: whole blocks, and never the last token.

        The last token must be computed even if its block is known, because sampling needs its
        logits; so a full hit recomputes the last block. Hashes are kept until the request is allocated or freed: the
        first of the queue is asked about in every step.
        """
        return len(self._match(request_id, token_ids[: len(token_ids) - 1], salt)) * self.block_size

    def allocate(
        self, request_id: str, num_tokens: int, cached_prefix: Sequence[int] = (), salt: str = ""
    ) -> bool:
        """Makes the request's block table cover `num_tokens` tokens: all of them, or nothing happens.

        A request's first allocation may begin with `cached_prefix`, the tokens that
        `find_cached_prefix` counted: those blocks are shared, not taken.

        Returns:
            Whether there were enough blocks.
        """
        holding = self._holdings.get(request_id)
        if holding is not None and num_tokens <= len(holding.table) * self.block_size:
            return True  # as in most steps of a request that decodes
        shared = self._match(request_id, cached_prefix, salt) if holding is None else []
        missing = self.blocks_for(num_tokens) - len(shared if holding is None else holding.table)
        if missing > self.num_free_blocks - sum(entry.block_id in self._evictable for entry in shared):
            return False
        if holding is None:
            holding = self._holdings[request_id] = Holding(salt, [self._take(entry) for entry in shared], shared)
            self._hashed.pop(request_id, None)
        holding.table.extend(self._new_block() for _ in range(missing))
        return True

    def block_table(self, request_id: str) -> Sequence[int]:
        """The request's block table: block numbers in the order of its tokens. To be read only; it grows at its end."""
        return self._holdings[request_id].table

    def commit(self, request_id: str, token_ids: Sequence[int], start: int = 0) -> None:
        """Says that the request's tokens up to the last of `token_ids` are in the KV cache.

        From now on others can share the blocks they fill; so equal prompts that start in one step
        do not share, each computes its own (nano-vllm #219). A block whose content is known already
        stays private: the two copies are equal, and one entry per content is enough.

        Args:
            token_ids: those from `start` on; full blocks before it were committed already.
            start: the beginning of a block.
        """
        if not self.enable_prefix_caching:
            return
        holding, size = self._holdings[request_id], self.block_size
        chain, first = holding.chain, start // size
        if first > len(chain):
            return  # an earlier block of its could not be entered
        for index in range(len(chain), min(first + len(token_ids) // size, len(holding.table))):
            tokens = tuple(token_ids[(index - first) * size : (index - first + 1) * size])
            parent = chain[-1] if chain else None
            key = self._key(parent, tokens, holding.salt)
            entry, block = self._by_hash.get(key), self._blocks[holding.table[index]]
            if entry is None and block.cached is None:
                entry = CachedBlock(block.block_id, key, tokens, parent, holding.salt)
                self._by_hash[key] = block.cached = entry
            if entry is None or not self._is_content(entry, tokens, parent, holding.salt):
                return  # another content has the same hash: what follows it cannot be found either
            chain.append(entry)

    def fork(self, parent_id: str, child_id: str, num_tokens: int) -> list[tuple[int, int]] | None:
        """Gives a new request the parent's first `num_tokens` tokens, which are computed.

        Full blocks are shared. The rest lies in a block that both will write to, so the child gets a copy of it.

        Returns:
            The copies (source, target) that are due before the child's next step; None if there was no block for
            one, and then nothing has changed.
        """
        parent, full = self._holdings[parent_id], num_tokens // self.block_size
        has_rest = num_tokens % self.block_size > 0
        if has_rest and not self.num_free_blocks:
            return None
        shared = parent.table[:full]
        for block_id in shared:
            self._blocks[block_id].ref_count += 1
        child = self._holdings[child_id] = Holding(parent.salt, shared, parent.chain[:full])
        if not has_rest:
            return []
        child.table.append(self._new_block())
        return [(parent.table[full], child.table[full])]

    def free(self, request_id: str) -> None:
        """Gives the request's blocks back. An unknown id is a no-op, so an abort may come late.

        The last block goes first, so that of a shared beginning the tail is evicted first.
        """
        self._hashed.pop(request_id, None)
        holding = self._holdings.pop(request_id, None)
        if holding is not None:
            for block_id in reversed(holding.table):
                self._release(self._blocks[block_id])

    def reset_prefix_cache(self) -> bool:
        """Forgets all known content; refused (False) while any request holds blocks."""
        if self._holdings:
            return False
        for block_id in self._evictable:
            self._blocks[block_id].cached = None
        self._free.extend(self._evictable)
        self._evictable.clear()
        self._by_hash.clear()
        return True

    def check_integrity(self) -> None:
        """Raises AssertionError unless every block is in exactly one state and counts are right."""
        held = [0] * self.num_blocks
        for holding in self._holdings.values():
            for block_id in holding.table:
                held[block_id] += 1
        counts = [block.ref_count for block in self._blocks]
        assert held == counts, f"reference counts {counts}, tables hold {held}"
        assert held[NULL_BLOCK] == 0, "the null block is in a block table"
        referenced = [block_id for block_id, count in enumerate(held) if count]
        everyone = sorted([NULL_BLOCK, *self._free, *self._evictable, *referenced])
        assert everyone == list(range(self.num_blocks)), f"lost or doubled blocks: {everyone}"
        known = {block.block_id: block.cached for block in self._blocks if block.cached is not None}
        for block_id, entry in known.items():
            assert entry.block_id == block_id and self._by_hash[entry.key] is entry, f"block {block_id}: wrong entry"
        assert len(known) == len(self._by_hash), "two entries for one content"
        assert not known.keys() & set(self._free), "a free block is in the prefix cache"

    def _match(self, request_id: str, token_ids: Sequence[int], salt: str) -> list[CachedBlock]:
        """The longest chain of cached blocks that a waiting request's `token_ids` begin with."""
        if not self.enable_prefix_caching:
            return []
        prompt = self._hashed.get(request_id)
        if prompt is None or prompt.salt != salt or prompt.token_ids[: len(token_ids)] != list(token_ids):
            prompt = self._hashed[request_id] = HashedPrompt(salt, list(token_ids))
        chain: list[CachedBlock] = []
        for index in range(len(token_ids) // self.block_size):
            parent = chain[-1] if chain else None
            if index == len(prompt.keys):
                prompt.blocks.append(tuple(token_ids[index * self.block_size : (index + 1) * self.block_size]))
                prompt.keys.append(self._key(parent, prompt.blocks[index], salt))
            entry = self._by_hash.get(prompt.keys[index])
            if entry is None or not self._is_content(entry, prompt.blocks[index], parent, salt):
                break
            chain.append(entry)
        return chain

    def _key(self, parent: CachedBlock | None, tokens: tuple[int, ...], salt: str) -> BlockHash:
        return self._hash(parent.key if parent else salt.encode(), tokens)

    @staticmethod
    def _is_content(entry: CachedBlock, tokens: tuple[int, ...], parent: CachedBlock | None, salt: str) -> bool:
        """Whether the entry really is this content: a hash alone would serve foreign KV on a collision."""
        return entry.token_ids == tokens and entry.salt == salt and has_parent(entry, parent)

    def _take(self, entry: CachedBlock) -> int:
        self._evictable.pop(entry.block_id, None)
        self._blocks[entry.block_id].ref_count += 1
        return entry.block_id

    def _release(self, block: Block) -> None:
        block.ref_count -= 1
        if block.ref_count == 0:
            if block.cached is not None:
                self._evictable[block.block_id] = None
            else:
                self._free.append(block.block_id)

    def _new_block(self) -> int:
        """A free block, or the oldest evictable one, for one block table."""
        block_id = self._free.pop() if self._free else self._evict()
        self._blocks[block_id].ref_count = 1
        return block_id

    def _evict(self) -> int:
        block_id, _ = self._evictable.popitem(last=False)
        block = self._blocks[block_id]
        assert block.cached is not None  # otherwise it would be in the free list
        del self._by_hash[block.cached.key]
        block.cached = None
        self.num_evictions += 1
        return block_id


def has_parent(entry: CachedBlock, parent: CachedBlock | None) -> bool:
    """Whether the tokens before the entry are those of `parent`'s chain.

    Two chains of equal content are made one on the way up, so that the next entry finds its parent at once. A chain is
    as long as a prompt: a loop, not a recursion.
    """
    equal: list[tuple[CachedBlock, CachedBlock | None]] = []
    while entry.parent is not parent:
        old = entry.parent
        if old is None or parent is None or (old.key, old.token_ids, old.salt) != (parent.key, parent.token_ids, parent.salt):
            return False
        equal.append((entry, parent))
        entry, parent = old, parent.parent
    for child, known in equal:
        child.parent = known
    return True
