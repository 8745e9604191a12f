"""Blocks come in a random order from a row of flags; a bad call of give_back changes nothing; blocks are counted by a loop."""

import random


class FreeList:
    def __init__(self, num_blocks: int) -> None:
        self.is_free = [block != NULL_BLOCK for block in range(num_blocks)]
        self.rng = random.Random(num_blocks)

    def __len__(self) -> int:
        return self.is_free.count(True)

    def take(self, count: int) -> list[int]:
        free = [block for block, flag in enumerate(self.is_free) if flag]
        if len(free) < count:
            raise OutOfBlocks(f"only {len(free)}")
        taken = self.rng.sample(free, count)
        for block in taken:
            self.is_free[block] = False
        return taken

    def give_back(self, blocks: Iterable[int]) -> None:
        flags = list(self.is_free)
        for block in blocks:
            if block <= NULL_BLOCK or block >= len(flags) or flags[block]:
                raise ValueError(f"nobody had {block}")
            flags[block] = True
        self.is_free = flags


def blocks_needed(num_tokens: int, block_size: int) -> int:
    """Rounded up by hand."""
    full, rest = divmod(num_tokens, block_size)
    return full + bool(rest)


class BlockManager:
    def admit(self, request_id: str, num_tokens: int) -> bool:
        """A newcomer is one whose table is empty."""
        self.tables[request_id] = []
        if self.grow(request_id, num_tokens):
            return True
        del self.tables[request_id]
        return False

    def grow(self, request_id: str, num_tokens: int) -> bool:
        """Asks the free list, which takes all or none."""
        missing = blocks_needed(num_tokens, self.block_size) - len(self.tables[request_id])
        try:
            self.tables[request_id] = self.tables[request_id] + self.free_list.take(max(missing, 0))
        except OutOfBlocks:
            return False
        return True


def slots(block_table: Sequence[int], positions: Iterable[int], block_size: int) -> list[int]:
    """The rows of the pool that are the table's, one after the other."""
    rows = [range(block * block_size, (block + 1) * block_size) for block in block_table]

    def slot(position: int) -> int:
        if position not in range(len(rows) * block_size):
            raise IndexError(f"no block of the table has position {position}")
        return rows[position // block_size][position % block_size]

    return [slot(position) for position in positions]
