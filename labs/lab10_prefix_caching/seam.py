"""How the engine uses this lab's part: `Components.block_manager`.

The lab's class shares blocks. What the engine's protocol has besides, switching the sharing off and checking
that nothing is lost, is added here. It makes the same part as Lab 06, and replaces that lab's where both are named.
"""

from collections import Counter
from collections.abc import Sequence
from types import ModuleType

from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.interfaces import NULL_BLOCK, BlockManager


def block_manager(lab: ModuleType, config: EngineConfig) -> BlockManager:
    """The lab's `BlockManager` for this engine."""
    cache = config.cache
    part = lab.BlockManager(cache.num_blocks, cache.block_size)
    return SharingBlockManager(lab, part, cache.num_blocks, cache.block_size, cache.enable_prefix_caching)


class SharingBlockManager:
    """Hands everything on to the lab's part, with a request's tokens from its first, and checks what the part says."""

    def __init__(self, lab: ModuleType, part, num_blocks: int, block_size: int, sharing: bool) -> None:
        self.block_size = block_size
        self.enable_prefix_caching = sharing
        self._lab, self._part, self._num_blocks = lab, part, num_blocks
        self._tokens: dict[str, list[int]] = {}  # of requests that were given blocks, those that are computed

    @property
    def num_free_blocks(self) -> int:
        return self._part.num_free_blocks

    @property
    def num_evictions(self) -> int:
        return self._part.num_evictions

    def find_cached_prefix(self, request_id: str, token_ids: Sequence[int], salt: str = "") -> int:
        return self._part.find_cached_prefix(request_id, list(token_ids), salt) if self.enable_prefix_caching else 0

    def allocate(self, request_id: str, num_tokens: int, cached_prefix: Sequence[int] = (), salt: str = "") -> bool:
        got = self._part.allocate(request_id, num_tokens, list(cached_prefix), salt)
        if got:
            self._tokens.setdefault(request_id, list(cached_prefix))
        return got

    def block_table(self, request_id: str) -> list[int]:
        return self._part.block_table(request_id)

    def commit(self, request_id: str, token_ids: Sequence[int], start: int = 0) -> None:
        """Tells the part all tokens that are computed; the engine says only those from `start` on."""
        if self.enable_prefix_caching:
            known = self._tokens[request_id]
            known[start:] = token_ids
            self._part.commit(request_id, list(known))

    def fork(self, parent_id: str, child_id: str, num_tokens: int) -> list[tuple[int, int]] | None:
        copies = self._part.fork(parent_id, child_id, num_tokens)
        if copies is not None:
            self._tokens[child_id] = self._tokens[parent_id][:num_tokens]
        return copies

    def free(self, request_id: str) -> None:
        self._part.free(request_id)
        self._tokens.pop(request_id, None)

    def reset_prefix_cache(self) -> bool:
        """A new part with nothing in it, unless a request holds blocks."""
        if self._tokens:
            return False
        self._part = self._lab.BlockManager(self._num_blocks, self.block_size)
        return True

    def check_integrity(self) -> None:
        """Raises AssertionError unless each block is held as often as it is counted, and every other one is to be had."""
        tables = {request_id: self._part.block_table(request_id) for request_id in self._tokens}
        held = Counter(block for table in tables.values() for block in table)
        assert all(len(set(table)) == len(table) for table in tables.values()), f"a block is twice in one table: {tables}"
        assert NULL_BLOCK not in held, f"the null block is in a block table: {tables}"
        counts = {block: count for block, count in enumerate(self._part.ref_counts) if count}
        assert counts == held, f"reference counts are {counts}, and the tables hold {dict(held)}"
        free, usable = self._part.num_free_blocks, self._num_blocks - 1
        assert free + len(held) == usable, f"{free} blocks are free and {len(held)} held, of {usable}"
