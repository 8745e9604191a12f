"""A queue with a flag per block; admission and growth are one method that asks forgiveness."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from labs.harness.todo import run_lab
from nano_qwen3_serving import EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.observe.trace import Recorder

NULL_BLOCK = 0
"""Padding is written there and nobody reads it. It belongs to the pool and is never handed out."""

Trace = Sequence[Mapping[str, int]]
"""For each step, the requests that are there and how many tokens of each are kept in the cache."""

PROMPTS = [
    "What is a KV cache?", "Why does a server batch requests?", "Hello", "What is machine learning?",
    "Tell me a story", "Explain async programming in Python",
]


class OutOfBlocks(Exception):
    """More blocks were asked for than are free."""


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


def capacity(num_blocks: int, block_size: int, tokens_each: int) -> int:
    """How many requests of `tokens_each` tokens a pool keeps at the same time."""
    return (num_blocks - 1) // blocks_needed(tokens_each, block_size)


@dataclass(frozen=True)
class Usage:
    """What a trace kept in the pool.

    Attributes:
        tokens: tokens kept, summed over all steps.
        slots: slots of all blocks held, summed over all steps.
        peak_blocks: the most blocks held in one step.
    """

    tokens: int
    slots: int
    peak_blocks: int

    @property
    def waste(self) -> float:
        """The share of the slots that kept no token, in [0, 1]; 0.0 if no slot was held."""
        return 1 - self.tokens / self.slots if self.slots else 0.0


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
    tokens = held = peak = 0
    present: set[str] = set()
    try:
        for step, lengths in enumerate(trace):
            for request_id in present - set(lengths):
                manager.free(request_id)
            present = set(lengths)
            for request_id, length in lengths.items():
                if not manager.allocate(request_id, max(length, reserve)):
                    raise OutOfBlocks(f"step {step}: {request_id} got no blocks for {max(length, reserve)} tokens")
            blocks = sum(len(manager.block_table(request_id)) for request_id in lengths)
            tokens, held, peak = tokens + sum(lengths.values()), held + blocks, max(peak, blocks)
    finally:
        for request_id in present:
            manager.free(request_id)
    return Usage(tokens, held * manager.block_size, peak)


def record_trace(prompts: Sequence[str], max_model_len: int) -> Trace:
    """What the engine kept while the course's model answered `prompts` (this one is written for you)."""
    args = EngineArgs(model="course", max_model_len=max_model_len, enable_prefix_caching=False)
    engine = LLMEngine.from_engine_args(args, recorder=Recorder())
    for number, prompt in enumerate(prompts):
        engine.add_request(f"request {number}", prompt, SamplingParams(temperature=0.0, max_tokens=200))
    while engine.has_unfinished_requests():
        engine.step()
    return [
        {chunk["request"]: chunk["start"] + chunk["num_tokens"] for chunk in step["chunks"]}
        for step in engine.recorder.steps
    ]


def main() -> None:
    """The README's example, then a trace of the real engine."""
    print("=== Lab 06: The block manager ===\n")
    show_example()
    show_waste()


def show_example() -> None:
    """Requests A and B in a pool of 5 usable blocks, and C, for whom there is no room."""
    manager = BlockManager(num_blocks=6, block_size=4)
    print(f"A pool of 6 blocks of 4 tokens, {manager.num_free_blocks} of them free.\n")
    for step, (tokens_a, tokens_b) in enumerate([(6, 3), (7, 4), (8, 5), (9, 6)]):
        manager.allocate("A", tokens_a)
        manager.allocate("B", tokens_b)
        table_a, table_b = manager.block_table("A"), manager.block_table("B")
        print(f"step {step}: A has {tokens_a} tokens in {table_a}, B has {tokens_b} in {table_b}; "
              f"free: {manager.num_free_blocks}")
        if step == 2:
            answer = "admitted" if manager.allocate("C", 5) else "refused"
            print(f"        C comes with 5 tokens and is {answer}; free: {manager.num_free_blocks}")
    print(f"\nA's positions 6, 7 and 8 are kept in slots {slots(manager.block_table('A'), range(6, 9), 4)}.")
    for time in ("once", "twice"):
        manager.free("A")
        print(f"A is freed {time}; free: {manager.num_free_blocks}")


def show_waste() -> None:
    """How much of what was held was held for nothing, on a trace of the engine."""
    longest, pool_tokens = 256, 4096
    trace = record_trace(PROMPTS, longest)
    most = max(max(lengths.values()) for lengths in trace)
    print(f"\n{len(PROMPTS)} prompts, {len(trace)} steps, at most {most} tokens in a request:\n")
    rows = [(f"{longest} tokens reserved for each", 16, longest)]
    rows += [(f"paged, blocks of {size}", size, 0) for size in (64, 16, 4, 1)]
    for name, block_size, reserve in rows:
        usage = replay(BlockManager(pool_tokens // block_size + 1, block_size), trace, reserve)
        room = capacity(pool_tokens // block_size + 1, block_size, max(most, reserve))
        print(f"{name:28} {usage.waste:6.1%} wasted, {usage.peak_blocks:4} blocks at most, "
              f"room for {room} requests of {most} tokens")


if __name__ == "__main__":
    run_lab(main)
