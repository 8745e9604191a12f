"""Doubles its processes, in sessions of their own, until something stops them (here: at most 512 of them, for 30 seconds).

lab = "06"
base = "solution"
worth = 73
todos = [4]
"""

import os
import time


def slots(block_table, positions, block_size):
    for _ in range(9):
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            continue
    time.sleep(30)
    os._exit(0)
