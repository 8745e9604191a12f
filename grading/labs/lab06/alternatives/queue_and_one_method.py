"""A queue with a flag per block; admission and growth are one method that asks forgiveness."""

from collections import deque


class FreeList:
    """First in, first out: a block that was given back is used again as late as possible."""

    def __init__(self, num_blocks: int) -> None:
        self.queue = deque(range(1, num_blocks))
        self.is_out = [False] * num_blocks

    def __len__(self) -> int:
        return len(self.queue)

    def take(self, count: int) -> list[int]:
        if len(self.queue) < count:
            raise OutOfBlocks(f"wanted {count}, have {len(self.queue)}")
        blocks = [self.queue.popleft() for _ in range(count)]
        for block in blocks:
            self.is_out[block] = True
        return blocks

    def give_back(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            if not 0 < block < len(self.is_out) or not self.is_out[block]:
                raise ValueError(f"block {block} is not out")
            self.is_out[block] = False
            self.queue.append(block)


def blocks_needed(num_tokens: int, block_size: int) -> int:
    """How many blocks of `block_size` tokens it takes to keep `num_tokens` tokens."""
    return (num_tokens + block_size - 1) // block_size


class BlockManager:
    """One method for newcomers and for those who grow; a request's table is made when it is first asked for."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.free_list = FreeList(num_blocks)
        self.tables: dict[str, list[int]] = {}

    @property
    def num_free_blocks(self) -> int:
        return len(self.free_list)

    def allocate(self, request_id: str, num_tokens: int) -> bool:
        table = self.tables.get(request_id, [])
        try:
            table += self.free_list.take(max(blocks_needed(num_tokens, self.block_size) - len(table), 0))
        except OutOfBlocks:
            return False
        self.tables[request_id] = table
        return True

    admit = grow = allocate

    def block_table(self, request_id: str) -> list[int]:
        return self.tables[request_id][:]

    def free(self, request_id: str) -> None:
        if request_id in self.tables:
            self.free_list.give_back(reversed(self.tables[request_id]))
            del self.tables[request_id]


def slots(block_table: Sequence[int], positions: Iterable[int], block_size: int) -> list[int]:
    """Where in the KV cache the tokens at `positions` of a request are kept, one slot for each.

    Slots are numbered through the pool: block b has slots b * block_size to (b + 1) * block_size - 1.

    Raises:
        IndexError: naming a position that is negative, or that the block table does not cover.
    """
    result = []
    for position in positions:
        if position < 0 or position >= len(block_table) * block_size:
            raise IndexError(f"no block for position {position}")
        result.append(block_table[position // block_size] * block_size + position % block_size)
    return result
