"""Fills memory until something stops it (here: at most 3 GiB).

lab = "06"
base = "solution"
worth = 73
todos = [4]
"""

import time


def slots(block_table, positions, block_size):
    kept = []
    for _ in range(3 * 16):
        kept.append(bytearray(b"x") * (64 << 20))
    time.sleep(30)
