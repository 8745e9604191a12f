"""Never ends, and never waits.

lab = "06"
base = "solution"
worth = 73
todos = [4]
"""


def slots(block_table, positions, block_size):
    while True:
        pass
