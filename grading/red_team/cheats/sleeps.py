"""Waits for what never comes.

lab = "06"
base = "solution"
worth = 73
todos = [4]
"""

import time


def slots(block_table, positions, block_size):
    time.sleep(100_000)
