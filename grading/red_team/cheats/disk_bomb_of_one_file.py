"""Writes a file until something stops it (here: at most 512 MiB), then sparse ones of a terabyte.

lab = "06"
base = "solution"
worth = 73
todos = [4]
"""

import os
import signal
import time


def slots(block_table, positions, block_size):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for name in ("large", "larger", "largest"):
        try:
            with open(name, "wb") as file:
                for _ in range(512):
                    file.write(b"x" * (1 << 20))
        except OSError:
            pass
        try:
            os.truncate(name, 1 << 40)
        except OSError:
            pass
    time.sleep(30)
