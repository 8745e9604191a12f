"""Lab 06: the manager there, and the ledger that the judge keeps of it."""

from grading.judge.checks import expect, shown
from grading.sandbox.worker.peer import Raised, Remote
from grading.scenarios.lab06.answers import blocks_for, whole

NAMES = "ABCD"


class Watched:
    """A block manager, and what each request was given according to the judge.

    Free blocks are compared with those that the manager began with, so that a wrong free list (TODO 1)
    costs nothing here.
    """

    def __init__(self, lab: Remote, num_blocks: int, block_size: int) -> None:
        self.manager = lab.BlockManager(num_blocks, block_size)
        self.size = block_size
        self.usable = self.free()
        self.given: dict[str, int] = {}
        self.tables: dict[str, list[int]] = {}

    def free(self) -> int:
        """Blocks that the manager says are free."""
        free = self.manager.num_free_blocks
        expect(whole(free), f"num_free_blocks is {shown(free)}; expected an int")
        return free

    def blocks(self, request: str) -> int:
        """How many a request is to hold."""
        return blocks_for(self.given.get(request, 0), self.size)

    def held(self) -> int:
        """Blocks that all requests are to hold."""
        return sum(map(self.blocks, self.given))

    def story(self) -> str:
        """What each request is to hold now, in words."""
        said = ", ".join(f"{name} {tokens}" for name, tokens in self.given.items()) or "nobody anything"
        return f"blocks of {self.size}, {self.usable} usable; given so far, in tokens: {said}"

    def allocate(self, request: str, num_tokens: int) -> bool:
        """Asks, and says whether it fitted; the answer and all that follows from it must be right."""
        wanted = max(num_tokens, self.given.get(request, 0))
        fits = self.held() - self.blocks(request) + blocks_for(wanted, self.size) <= self.usable
        story = self.story()
        try:
            answer = self.manager.allocate(request, num_tokens)
        except Raised as error:
            expect("OutOfBlocks" not in error.kinds,
                   f"allocate({request!r}, {num_tokens}) let OutOfBlocks out; the answer is False then ({story})")
            raise
        expect(type(answer) is bool, f"allocate({request!r}, {num_tokens}) returned {shown(answer)}; expected True or False")
        expect(answer == fits, f"allocate({request!r}, {num_tokens}) said {answer} and {fits} is right ({story})")
        if fits:
            self.given[request] = wanted
        self.look(f"after allocate({request!r}, {num_tokens}), which said {answer}")
        return answer

    def release(self, request: str) -> None:
        """Ends a request, and looks at what is left."""
        self.manager.free(request)
        self.given.pop(request, None)
        self.tables.pop(request, None)
        self.look(f"after free({request!r})")

    def look(self, when: str) -> None:
        """Every block is free or in one table, and tables only grow."""
        tables = {request: self.table(request) for request in self.given}
        held = [block for table in tables.values() for block in table]
        expect(len(set(held)) == len(held), f"{when} a block is held twice: {tables}")
        expect(0 not in held, f"{when} the null block is held: {tables}")
        for request, table in tables.items():
            expect(len(table) == self.blocks(request),
                   f"{when} {request} holds {table}: {self.blocks(request)} blocks are right ({self.story()})")
            before = self.tables.get(request, [])
            expect(table[: len(before)] == before,
                   f"{when} {request}, which had the blocks {before}, has {table}: they stay, in their order")
        self.tables = tables
        expect(self.free() == self.usable - len(held),
               f"{when} {self.usable - len(held)} blocks should be free; num_free_blocks says {self.free()} ({self.story()})")

    def table(self, request: str) -> list[int]:
        """A request's block table, which must be one."""
        table = self.manager.block_table(request)
        expect(isinstance(table, list) and all(map(whole, table)),
               f"block_table({request!r}) returned {shown(table)}; expected a list of block numbers")
        return table

    def knows(self, request: str) -> bool:
        """Whether the manager has a table for the request."""
        try:
            self.table(request)
        except KeyError:
            return False
        return True
