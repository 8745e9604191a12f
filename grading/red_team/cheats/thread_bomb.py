"""Starts threads until something stops it (here: at most 5000, for 30 seconds).

lab = "06"
base = "solution"
worth = 73
todos = [4]
"""

import threading
import time


def slots(block_table, positions, block_size):
    for _ in range(5000):
        try:
            threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
        except RuntimeError:
            time.sleep(0.01)
    time.sleep(30)
