"""Returns numbers that all have one hash, so that a set of them takes minutes to make.

lab = "06"
base = "solution"
worth = 73
todos = [1]
"""

PRIME = (1 << 61) - 1


class FreeList:
    def __init__(self, num_blocks):
        self.size = 100_000

    def __len__(self):
        return self.size

    def take(self, count):
        return [PRIME * number for number in range(1, count + 1)]

    def give_back(self, blocks):
        raise ValueError(f"block {list(blocks)} was not out")
