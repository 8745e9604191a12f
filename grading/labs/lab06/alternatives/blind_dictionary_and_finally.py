"""Free blocks are a dict's keys; counts are compared before taking; replay sums the tables' lengths and cleans up in finally."""


class FreeList:
    """The blocks of a pool that nobody holds. In which order they are handed out is yours to choose.

    Args:
        num_blocks: blocks of the pool, numbered from 0, the null block among them.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.unused = dict.fromkeys(range(NULL_BLOCK + 1, num_blocks))

    def __len__(self) -> int:
        """How many blocks are free."""
        return len(self.unused)

    def take(self, count: int) -> list[int]:
        """Takes `count` blocks out and returns their numbers.

        Raises:
            OutOfBlocks: fewer than `count` are free; then none is taken.
        """
        if count > len(self.unused):
            raise OutOfBlocks(f"{count} blocks asked for, {len(self.unused)} are free")
        return [self.unused.popitem()[0] for _ in range(count)]

    def give_back(self, blocks: Iterable[int]) -> None:
        """Makes `blocks` free again.

        Raises:
            ValueError: naming a block that was not out: one that is free already, the null block,
                or a number that the pool does not have. Such a block is not added.
        """
        for block in blocks:
            if not NULL_BLOCK < block < self.num_blocks or block in self.unused:
                raise ValueError(f"block {block} was not out")
            self.unused[block] = None


class BlockManager:
    def admit(self, request_id: str, num_tokens: int) -> bool:
        """Gives a request that has no block table one that covers `num_tokens` tokens.

        Returns False, and changes nothing, if too few blocks are free.
        """
        count = blocks_needed(num_tokens, self.block_size)
        if count > self.num_free_blocks:
            return False
        self.tables[request_id] = self.free_list.take(count)
        return True

    def grow(self, request_id: str, num_tokens: int) -> bool:
        """Makes a block table that exists cover `num_tokens` tokens in all; it never gets shorter.

        Returns False, and changes nothing, if too few blocks are free.
        """
        table = self.tables[request_id]
        missing = blocks_needed(num_tokens, self.block_size) - len(table)
        if missing <= 0:
            return True
        if missing > self.num_free_blocks:
            return False
        table.extend(self.free_list.take(missing))
        return True


def slots(block_table: Sequence[int], positions: Iterable[int], block_size: int) -> list[int]:
    """Where in the KV cache the tokens at `positions` of a request are kept, one slot for each.

    Slots are numbered through the pool: block b has slots b * block_size to (b + 1) * block_size - 1.

    Raises:
        IndexError: naming a position that is negative, or that the block table does not cover.
    """
    found = []
    for position in positions:
        if not 0 <= position < len(block_table) * block_size:
            raise IndexError(f"position {position} is not covered by {len(block_table)} blocks of {block_size}")
        found.append(block_table[position // block_size] * block_size + position % block_size)
    return found


@dataclass(frozen=True)
class Usage:
    @property
    def waste(self) -> float:
        """The share of the slots that kept no token, in [0, 1]; 0.0 if no slot was held."""
        if self.slots == 0:
            return 0.0
        return 1 - self.tokens / self.slots


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
    tokens = block_steps = peak = 0
    here = set()
    try:
        for number, step in enumerate(trace):
            for request_id in here - set(step):
                manager.free(request_id)
                here.discard(request_id)
            for request_id, kept in step.items():
                here.add(request_id)
                if not manager.allocate(request_id, max(kept, reserve)):
                    raise OutOfBlocks(f"step {number}: {request_id} got no blocks for {max(kept, reserve)} tokens")
            held = sum(len(manager.block_table(request_id)) for request_id in step)
            tokens += sum(step.values())
            block_steps += held
            peak = max(peak, held)
    finally:
        for request_id in here:
            manager.free(request_id)
    return Usage(tokens, block_steps * manager.block_size, peak)
