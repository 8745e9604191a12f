"""The engine's part under this lab's names, for `--impl reference`.

The engine does admission and growth in one method. It has no free list of its own to test (TODO 1),
its slots are the attention backend's and trust their caller (TODO 4), and it replays no traces
(TODO 6): tests of these have nothing to run on.
"""

from nano_qwen3_serving.scheduling import block_manager


class BlockManager(block_manager.BlockManager):
    """The engine's `BlockManager`. Nothing is shared here, because no test commits a block."""

    @property
    def tables(self) -> dict[str, list[int]]:
        """Request id → its blocks, under the lab's name. A test may give requests that hold blocks other tables."""
        return {request_id: holding.table for request_id, holding in self._holdings.items()}

    @tables.setter
    def tables(self, tables: dict[str, list[int]]) -> None:
        for request_id, table in tables.items():
            self._holdings[request_id].table = table

    def block_table(self, request_id: str) -> list[int]:
        """A copy of the request's blocks. The engine hands out its own list, for its readers change nothing."""
        return list(super().block_table(request_id))

    def admit(self, request_id: str, num_tokens: int) -> bool:
        """Blocks for a request that begins, or False."""
        return self.allocate(request_id, num_tokens)

    def grow(self, request_id: str, num_tokens: int) -> bool:
        """Blocks for a request that got longer, or False."""
        return self.allocate(request_id, num_tokens)


def blocks_needed(num_tokens: int, block_size: int) -> int:
    """As the engine's block manager counts."""
    return block_manager.BlockManager(2, block_size).blocks_for(num_tokens)
