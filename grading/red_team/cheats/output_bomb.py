"""Prints until something stops it.

lab = "06"
base = "solution"
worth = 73
todos = [4]
"""

import sys


def slots(block_table, positions, block_size):
    while True:
        sys.stdout.write("x" * 65536)
        sys.stderr.write("y" * 65536)
