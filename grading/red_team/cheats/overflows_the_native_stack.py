"""Calls itself without end and without Python's limit, so that the process crashes.

lab = "06"
base = "solution"
worth = 73
todos = [4]
"""

import ctypes
import sys


class Deep:
    def __repr__(self):
        return repr(self)


def slots(block_table, positions, block_size):
    sys.setrecursionlimit(10**9)
    if block_size % 2:
        ctypes.string_at(8)
    return repr(Deep())
