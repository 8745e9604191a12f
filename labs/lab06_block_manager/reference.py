"""The engine's part under this lab's names, for `--impl reference`.

The engine does admission and growth in one method. It has no free list of its own to test (TODO 1),
its slots are the attention backend's and trust their caller (TODO 4), and it replays no traces
(TODO 6): tests of these have nothing to run on.
"""

from collections.abc import Iterator, MutableMapping

from nano_qwen3_serving.scheduling import block_manager


class Tables(MutableMapping[str, list[int]]):
    """The block tables in the engine's records of who holds what, to be read and changed in place."""

    def __init__(self, holdings: dict[str, block_manager.Holding]) -> None:
        self._holdings = holdings

    def __getitem__(self, request_id: str) -> list[int]:
        return self._holdings[request_id].table

    def __setitem__(self, request_id: str, table: list[int]) -> None:
        self._holdings[request_id].table = table

    def __delitem__(self, request_id: str) -> None:
        del self._holdings[request_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._holdings)

    def __len__(self) -> int:
        return len(self._holdings)


class BlockManager(block_manager.BlockManager):
    """The engine's `BlockManager`. Nothing is shared here, because no test commits a block."""

    @property
    def tables(self) -> Tables:
        """Request id → its blocks, under the lab's name."""
        return Tables(self._holdings)

    def admit(self, request_id: str, num_tokens: int) -> bool:
        """Blocks for a request that begins, or False."""
        return self.allocate(request_id, num_tokens)

    def grow(self, request_id: str, num_tokens: int) -> bool:
        """Blocks for a request that got longer, or False."""
        return self.allocate(request_id, num_tokens)


def blocks_needed(num_tokens: int, block_size: int) -> int:
    """As the engine's block manager counts."""
    return block_manager.BlockManager(2, block_size).blocks_for(num_tokens)
