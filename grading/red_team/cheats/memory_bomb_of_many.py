"""Fills memory by several processes, none of which has much, and with files that lie in memory.

lab = "06"
base = "solution"
worth = 73
todos = [4]
"""

import os
import time


def slots(block_table, positions, block_size):
    for _ in range(12):
        try:
            if os.fork() == 0:
                break
        except OSError:
            break
    kept = [bytearray(b"x") * (16 << 20) for _ in range(12)]
    try:
        for number in range(32):
            file = os.memfd_create(str(number))
            os.write(file, kept[0])
    except OSError:
        pass
    time.sleep(30)
    os._exit(0)
