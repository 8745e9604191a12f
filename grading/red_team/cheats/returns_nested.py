"""Returns a list in a list in a list, 100,000 deep.

lab = "06"
base = "solution"
worth = 73
todos = [4]
"""


def slots(block_table, positions, block_size):
    nested = []
    for _ in range(100_000):
        nested = [nested]
    return nested
