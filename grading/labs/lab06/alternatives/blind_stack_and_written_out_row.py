"""A stack and the set of blocks that are out; OutOfBlocks is caught; replay reads what is missing from the pool.

Slots are looked up in the row of all slots, written out.
"""


class FreeList:
    """The blocks of a pool that nobody holds. In which order they are handed out is yours to choose.

    Args:
        num_blocks: blocks of the pool, numbered from 0, the null block among them.
    """

    def __init__(self, num_blocks: int) -> None:
        self.stack = list(range(num_blocks - 1, NULL_BLOCK, -1))
        self.out: set[int] = set()

    def __len__(self) -> int:
        """How many blocks are free."""
        return len(self.stack)

    def take(self, count: int) -> list[int]:
        """Takes `count` blocks out and returns their numbers.

        Raises:
            OutOfBlocks: fewer than `count` are free; then none is taken.
        """
        if count > len(self.stack):
            raise OutOfBlocks(f"{count} wanted, {len(self.stack)} free")
        at = len(self.stack) - count
        taken = self.stack[at:][::-1]
        del self.stack[at:]
        self.out.update(taken)
        return taken

    def give_back(self, blocks: Iterable[int]) -> None:
        """Makes `blocks` free again.

        Raises:
            ValueError: naming a block that was not out: one that is free already, the null block,
                or a number that the pool does not have. Such a block is not added.
        """
        blocks = list(blocks)
        seen = set()
        for block in blocks:  # look at all first: either all go back or none
            if block not in self.out or block in seen:
                raise ValueError(f"block {block} is not out")
            seen.add(block)
        self.out -= seen
        self.stack.extend(reversed(blocks))


def blocks_needed(num_tokens: int, block_size: int) -> int:
    """How many blocks of `block_size` tokens it takes to keep `num_tokens` tokens."""
    full, rest = divmod(num_tokens, block_size)
    return full + 1 if rest else full


class BlockManager:
    def admit(self, request_id: str, num_tokens: int) -> bool:
        """Gives a request that has no block table one that covers `num_tokens` tokens.

        Returns False, and changes nothing, if too few blocks are free.
        """
        try:
            blocks = self.free_list.take(blocks_needed(num_tokens, self.block_size))
        except OutOfBlocks:
            return False
        self.tables[request_id] = blocks
        return True

    def block_table(self, request_id: str) -> list[int]:
        """The request's blocks in the order of its tokens; the list is the caller's to change.

        Raises:
            KeyError: the request has no block table.
        """
        if request_id not in self.tables:
            raise KeyError(f"{request_id} has no block table")
        return self.tables[request_id][:]

    def grow(self, request_id: str, num_tokens: int) -> bool:
        """Makes a block table that exists cover `num_tokens` tokens in all; it never gets shorter.

        Returns False, and changes nothing, if too few blocks are free.
        """
        old = self.tables[request_id]
        needed = max(blocks_needed(num_tokens, self.block_size), len(old))
        try:
            self.tables[request_id] = old + self.free_list.take(needed - len(old))
        except OutOfBlocks:
            return False
        return True

    def free(self, request_id: str) -> None:
        """Gives all blocks of the request back and forgets it; without a block table, does nothing."""
        try:
            blocks = self.block_table(request_id)
        except KeyError:
            return
        del self.tables[request_id]
        self.free_list.give_back(reversed(blocks))


def slots(block_table: Sequence[int], positions: Iterable[int], block_size: int) -> list[int]:
    """Where in the KV cache the tokens at `positions` of a request are kept, one slot for each.

    Slots are numbered through the pool: block b has slots b * block_size to (b + 1) * block_size - 1.

    Raises:
        IndexError: naming a position that is negative, or that the block table does not cover.
    """
    row = [block * block_size + place for block in block_table for place in range(block_size)]
    positions = list(positions)
    for position in positions:
        if position not in range(len(row)):
            raise IndexError(f"no slot for position {position}")
    return [row[position] for position in positions]


def capacity(num_blocks: int, block_size: int, tokens_each: int) -> int:
    """How many requests of `tokens_each` tokens a pool keeps at the same time."""
    usable = len(range(NULL_BLOCK + 1, num_blocks))
    each = blocks_needed(tokens_each, block_size)
    return usable // each


@dataclass(frozen=True)
class Usage:
    @property
    def waste(self) -> float:
        """The share of the slots that kept no token, in [0, 1]; 0.0 if no slot was held."""
        return (self.slots - self.tokens) / self.slots if self.slots else 0.0


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
    all_free = manager.num_free_blocks
    held = []
    previous: Mapping[str, int] = {}
    failed = None
    for number, step in enumerate(trace):
        for request_id in previous:
            if request_id not in step:
                manager.free(request_id)
        previous = step
        refused = [name for name, kept in step.items() if not manager.allocate(name, max(reserve, kept))]
        if refused:
            failed = OutOfBlocks(f"in step {number} there was no room for {refused[0]}")
            break
        held.append(all_free - manager.num_free_blocks)
    for request_id in previous:
        manager.free(request_id)
    if failed is not None:
        raise failed
    return Usage(
        tokens=sum(sum(step.values()) for step in trace),
        slots=sum(held) * manager.block_size,
        peak_blocks=max(held, default=0),
    )
