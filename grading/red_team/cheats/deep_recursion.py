"""Calls itself without end.

lab = "06"
base = "solution"
worth = 73
todos = [4]
"""


def slots(block_table, positions, block_size):
    return slots(block_table, positions, block_size)
