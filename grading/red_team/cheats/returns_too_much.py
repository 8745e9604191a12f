"""Returns more than fits: long lists, long words, a tensor of a gigabyte that takes a byte, numbers of a million digits.

lab = "06"
base = "solution"
worth = 73
todos = [4]
"""

import sys

import torch


def slots(block_table, positions, block_size):
    sys.set_int_max_str_digits(0)
    return ([0] * 30_000_000, "x" * (100 << 20), torch.zeros(1).expand(1 << 28), 10**1_000_000)[block_size % 4]
