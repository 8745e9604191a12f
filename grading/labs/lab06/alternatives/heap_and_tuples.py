"""A heap that hands out the smallest block; tables of tuples; slots looked up in a drawn-out pool; a replay without a loop over names that left."""

import heapq
import math


class FreeList:
    """The smallest number first, from a heap; a set says who is in it."""

    def __init__(self, num_blocks: int) -> None:
        self.everyone = range(1, num_blocks)
        self.heap = list(self.everyone)
        self.here = set(self.heap)

    def __len__(self) -> int:
        return len(self.heap)

    def take(self, count: int) -> list[int]:
        if count > len(self):
            raise OutOfBlocks(count)
        taken = [heapq.heappop(self.heap) for _ in range(count)]
        self.here.difference_update(taken)
        return taken

    def give_back(self, blocks: Iterable[int]) -> None:
        blocks = list(blocks)
        for block in blocks:
            if block not in self.everyone or block in self.here or blocks.count(block) > 1:
                raise ValueError(f"cannot take {block} back")
        for block in blocks:
            heapq.heappush(self.heap, block)
        self.here.update(blocks)


def blocks_needed(num_tokens: int, block_size: int) -> int:
    """How many blocks of `block_size` tokens it takes to keep `num_tokens` tokens."""
    return math.ceil(num_tokens / block_size)


class BlockManager:
    """Tables are tuples, so nobody can change one; growth makes a longer one."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.free_list = FreeList(num_blocks)
        self.tables: dict[str, tuple[int, ...]] = {}

    def allocate(self, request_id: str, num_tokens: int) -> bool:
        return self.grow(request_id, num_tokens) if request_id in self.tables else self.admit(request_id, num_tokens)

    def admit(self, request_id: str, num_tokens: int) -> bool:
        return self._extend(request_id, (), num_tokens)

    def grow(self, request_id: str, num_tokens: int) -> bool:
        return self._extend(request_id, self.tables[request_id], num_tokens)

    def _extend(self, request_id: str, table: tuple[int, ...], num_tokens: int) -> bool:
        wanted = blocks_needed(num_tokens, self.block_size)
        if wanted - len(table) > self.num_free_blocks:
            return False
        if wanted > len(table):
            table = (*table, *self.free_list.take(wanted - len(table)))
        self.tables[request_id] = table
        return True

    def block_table(self, request_id: str) -> list[int]:
        return [*self.tables[request_id]]

    def free(self, request_id: str) -> None:
        try:
            table = self.tables.pop(request_id)
        except KeyError:
            return
        for block in table:
            self.free_list.give_back([block])


def slots(block_table: Sequence[int], positions: Iterable[int], block_size: int) -> list[int]:
    """Where in the KV cache the tokens at `positions` of a request are kept, one slot for each.

    Slots are numbered through the pool: block b has slots b * block_size to (b + 1) * block_size - 1.

    Raises:
        IndexError: naming a position that is negative, or that the block table does not cover.
    """
    drawn = [slot for block in block_table for slot in range(block * block_size, (block + 1) * block_size)]
    known = dict(enumerate(drawn))
    try:
        return [known[position] for position in positions]
    except KeyError as error:
        raise IndexError(f"position {error.args[0]} is not covered") from None


def capacity(num_blocks: int, block_size: int, tokens_each: int) -> int:
    """How many requests of `tokens_each` tokens a pool keeps at the same time."""
    blocks, count = num_blocks - 1 - blocks_needed(tokens_each, block_size), 0
    while blocks >= 0:
        blocks, count = blocks - blocks_needed(tokens_each, block_size), count + 1
    return count


@dataclass(frozen=True)
class Usage:
    @property
    def waste(self) -> float:
        """The share of the slots that kept no token, in [0, 1]; 0.0 if no slot was held."""
        return (self.slots - self.tokens) / max(self.slots, 1)


def replay(manager: BlockManager, trace: Trace, reserve: int = 0) -> Usage:
    """Holds blocks for the requests of `trace`, step by step, and measures.

    In each step, requests that are no longer there are freed; then each that is there gets blocks
    for its tokens, or for `reserve` tokens if those are more. Whatever happens, the manager holds
    nothing of the trace at the end.

    Args:
        manager: one that holds nothing.
        trace: what is kept in each step.
        reserve: tokens that each request gets room for at once; 0 is paging.

    Raises:
        OutOfBlocks: naming the step and the request that got no blocks.
    """
    usable, blocks_held = manager.num_free_blocks, []
    everybody = {request_id for lengths in trace for request_id in lengths}
    try:
        for step, lengths in enumerate(trace):
            for request_id in everybody:
                if request_id not in lengths:
                    manager.free(request_id)
            for request_id in lengths:
                wanted = max(reserve, lengths[request_id])
                if manager.allocate(request_id, wanted) is False:
                    raise OutOfBlocks(f"no room for {wanted} tokens of {request_id} in step {step}")
            blocks_held.append(usable - manager.num_free_blocks)
    finally:
        for request_id in everybody:
            manager.free(request_id)
    tokens = sum(sum(lengths.values()) for lengths in trace)
    return Usage(tokens, sum(blocks_held) * manager.block_size, max(blocks_held, default=0))
