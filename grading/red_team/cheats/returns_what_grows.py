"""Returns what is short on the wire and long in memory, again and again: ranges, empty lists, many small tensors.

lab = "06"
base = "solution"
worth = 73
todos = [4]
"""

import torch


def slots(block_table, positions, block_size):
    return (range(10**18), [[]] * 1_000_000, [torch.zeros(0) for _ in range(20_000)], {(number,): [] for number in range(100_000)})[block_size % 4]
