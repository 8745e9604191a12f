"""How the engine uses this lab's part: `Components.block_manager`.

The lab's class has what this lab is about. What the engine's protocol has besides, for shared
prefixes (Lab 10) and for its own checks, is added here: nothing is ever found in a cache.
"""

from collections.abc import Sequence
from types import ModuleType

from nano_qwen3_serving.config import EngineConfig
from nano_qwen3_serving.interfaces import NULL_BLOCK, BlockManager


def block_manager(lab: ModuleType, config: EngineConfig) -> BlockManager:
    """The lab's `BlockManager` for this engine."""
    num_blocks, block_size = config.cache.num_blocks, config.cache.block_size
    return WholeBlockManager(lab.BlockManager(num_blocks, block_size), num_blocks, block_size)


class WholeBlockManager:
    """Hands everything on to the lab's part; finds no prefixes, and checks what the part says."""

    def __init__(self, part, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.enable_prefix_caching = False
        self._part = part
        self._num_blocks = num_blocks
        self._holders: dict[str, None] = {}  # requests that were given blocks and not freed since

    @property
    def num_free_blocks(self) -> int:
        return self._part.num_free_blocks

    def find_cached_prefix(self, request_id: str, token_ids: Sequence[int], salt: str = "") -> int:
        """No tokens: every prompt is computed."""
        return 0

    def allocate(self, request_id: str, num_tokens: int, cached_prefix: Sequence[int] = (), salt: str = "") -> bool:
        got = self._part.allocate(request_id, num_tokens)
        if got:
            self._holders[request_id] = None
        return got

    def block_table(self, request_id: str) -> list[int]:
        return self._part.block_table(request_id)

    def commit(self, request_id: str, token_ids: Sequence[int], start: int = 0) -> None:
        """Nothing: no block is shared, so nobody has to know what is in it."""

    def fork(self, parent_id: str, child_id: str, num_tokens: int) -> list[tuple[int, int]] | None:
        """New blocks for the child, into which the parent's are copied; None if there are not enough."""
        if not self.allocate(child_id, num_tokens):
            return None
        return list(zip(self.block_table(parent_id), self.block_table(child_id), strict=False))

    def free(self, request_id: str) -> None:
        self._part.free(request_id)
        self._holders.pop(request_id, None)

    def reset_prefix_cache(self) -> bool:
        """Whether nobody holds blocks; there is nothing to forget."""
        return not self._holders

    def check_integrity(self) -> None:
        """Raises AssertionError unless every block is free, the null block, or in one block table."""
        tables = {request_id: self._part.block_table(request_id) for request_id in self._holders}
        held = [block for table in tables.values() for block in table]
        assert len(set(held)) == len(held), f"a block is in two block tables, or twice in one: {tables}"
        assert NULL_BLOCK not in held, f"the null block is in a block table: {tables}"
        free, usable = self._part.num_free_blocks, self._num_blocks - 1
        assert free + len(held) == usable, f"{free} blocks are free and {len(held)} held, of {usable}"
