"""Lab 09: a scheduler that computes prompts in chunks, preempts when blocks run out, and follows a policy.

Read README.md first; it has the contract of each TODO. Check your work: pytest test_lab.py
"""

from bisect import insort
from dataclasses import dataclass

from labs.harness.todo import TodoError, run_lab


@dataclass(eq=False)
class Request:
    """A request, in counts: the scheduler needs to know no token.

    Attributes:
        name: unique among the requests in flight.
        num_prompt: tokens of the prompt.
        max_tokens: it never generates more.
        priority: the smaller number goes first.
        arrival: who came first; unique.
        num_output: tokens generated so far.
        num_computed: of prompt and output, how many are in the KV cache.
        num_blocks: the blocks it holds.
    """

    name: str
    num_prompt: int
    max_tokens: int
    priority: int
    arrival: int
    num_output: int = 0
    num_computed: int = 0
    num_blocks: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens known: prompt and output."""
        return self.num_prompt + self.num_output

    @property
    def to_go(self) -> int:
        """Tokens known and not computed: 1 when it decodes, more when it prefills."""
        return self.num_tokens - self.num_computed

    @property
    def most_tokens(self) -> int:
        """The most tokens it will ever keep: the last one it generates is never computed."""
        return self.num_prompt + self.max_tokens - 1

    @property
    def order(self) -> tuple[int, int]:
        """Who goes first: the smaller priority number, then who came first."""
        return (self.priority, self.arrival)


@dataclass(frozen=True)
class Policy:
    """What an operator chooses.

    Attributes:
        token_budget: tokens computed in a step, at most.
        lookahead: how many tokens ahead admission looks; 0 looks at the newcomer alone.
        victim: who is preempted: "last" in order, or the "cheapest", which has least to compute again.
    """

    token_budget: int
    lookahead: int = 0
    victim: str = "last"


def split_budget(budget: int, to_go: list[int]) -> list[int]:
    """How many tokens of a step each request gets: those that decode first, then prompts, in order."""
    # TODO 1: give each decoding request its token, and the rest of the budget to prompts, in order
    raise TodoError("TODO 1: give each decoding request its token, and the rest of the budget to prompts, in order", lab="09")


class Scheduler:
    """Decides who runs in each step, in counts of tokens and blocks.

    Args:
        num_blocks: blocks that requests can hold, all together.
        block_size: tokens in a block.
        max_seqs: requests that run at the same time.
        policy: what the operator chose.

    Attributes:
        waiting, running: lists of `Request`, in order.
        free_blocks: how many blocks nobody holds.
    """

    def __init__(self, num_blocks: int, block_size: int, max_seqs: int, policy: Policy) -> None:
        self.block_size, self.max_seqs, self.policy = block_size, max_seqs, policy
        self.free_blocks = num_blocks
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.requests: dict[str, Request] = {}
        self.arrivals = 0

    def add(self, name: str, num_prompt: int, max_tokens: int, priority: int = 0) -> None:
        """Queues a new request at its place in order (this one is written for you)."""
        self.arrivals += 1
        request = self.requests[name] = Request(name, num_prompt, max_tokens, priority, self.arrivals)
        insort(self.waiting, request, key=lambda other: other.order)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks keep `num_tokens` tokens (this one is written for you)."""
        return -(-num_tokens // self.block_size)

    def grow(self, request: Request, num_tokens: int) -> bool:
        """Gives a request the blocks it lacks for `num_tokens` tokens, or none; returns whether there were enough.

        (This one is written for you.)
        """
        missing = max(0, self.blocks_for(num_tokens) - request.num_blocks)
        if missing > self.free_blocks:
            return False
        self.free_blocks -= missing
        request.num_blocks += missing
        return True

    def preempt(self, request: Request) -> None:
        """Takes a running request's blocks away; it waits at its place in order, to be computed again."""
        # TODO 2: free its blocks, forget what was computed, and queue it again
        raise TodoError("TODO 2: free its blocks, forget what was computed, and queue it again", lab="09")

    def victim_for(self, request: Request) -> Request:
        """Who makes room for a running request: by the policy, one behind it in order, or else the request itself."""
        # TODO 3: choose among those that run behind it
        raise TodoError("TODO 3: choose among those that run behind it", lab="09")

    def admits(self, request: Request, left: int) -> bool:
        """Whether a waiting request can begin in this step, of whose budget `left` tokens are left, and go on."""
        # TODO 4: look for a place, a token, and blocks: for the newcomer, and for those that run
        raise TodoError("TODO 4: look for a place, a token, and blocks: for the newcomer, and for those that run", lab="09")

    def growth(self, request: Request) -> int:
        """Blocks that a request lacks for its known tokens and the next `lookahead` ones, but for no more than it can keep."""
        # TODO 4: count the blocks it will take, beyond those that it holds
        raise TodoError("TODO 4: count the blocks it will take, beyond those that it holds", lab="09")

    def start(self, request: Request, left: int) -> int:
        """Moves the first waiting request to those that run, with blocks for its chunk; returns the chunk's size.

        (This one is written for you.)
        """
        size = min(request.to_go, left)
        self.waiting.remove(request)
        insort(self.running, request, key=lambda other: other.order)
        self.grow(request, size)
        return size

    def schedule(self) -> tuple[dict[str, int], list[str]]:
        """The next step: how many tokens of whom are computed, and the names of those that were preempted for it."""
        # TODO 5: make room for everyone who runs, in order; then admit, in order, unless somebody was preempted
        raise TodoError("TODO 5: make room for everyone who runs, in order; then admit, in order, unless somebody was preempted", lab="09")

    def update(self, chunks: dict[str, int], ended: list[str]) -> None:
        """Applies a step: tokens are computed, whoever has none to go gets a new one, and those that `ended` leave.

        (This one is written for you.)
        """
        for name, size in chunks.items():
            if name in self.requests:
                request = self.requests[name]
                request.num_computed += size
                request.num_output += request.to_go == 0
        for name in ended:
            self.end(name)

    def end(self, name: str) -> None:
        """Forgets a request, wherever it is, and frees its blocks; an unknown name is a no-op (written for you)."""
        request = self.requests.pop(name, None)
        if request is not None:
            (self.running if request in self.running else self.waiting).remove(request)
            self.free_blocks += request.num_blocks


def policy_for(workload: str) -> Policy:
    """The policy you choose for a kind of traffic: "documents", "essays" or "mixed"."""
    # TODO 6: choose a budget, a lookahead and a victim for each, with explore.py
    raise TodoError("TODO 6: choose a budget, a lookahead and a victim for each, with explore.py", lab="09")


def main() -> None:
    """The README's example: A, B and C in a pool of 5 blocks of 4 tokens, at most 6 tokens a step."""
    print("=== Lab 09: Chunked prefill and preemption ===\n")
    scheduler = Scheduler(num_blocks=5, block_size=4, max_seqs=4, policy=Policy(token_budget=6))
    scheduler.add("A", 6, 8)
    scheduler.add("B", 9, 4)
    outputs: dict[str, int] = {"A": 0, "B": 0}
    step = 0
    while scheduler.requests:
        chunks, preempted = scheduler.schedule()
        got = ", ".join(f"{name} {size}" for name, size in chunks.items())
        print(f"step {step:2}: {got:10} free: {scheduler.free_blocks}", *(f"  {name} preempted" for name in preempted))
        for name, size in chunks.items():
            outputs[name] += scheduler.requests[name].to_go == size
        scheduler.update(chunks, [name for name in chunks if outputs[name] == {"A": 8, "B": 4}[name]])
        step += 1


if __name__ == "__main__":
    run_lab(main)
