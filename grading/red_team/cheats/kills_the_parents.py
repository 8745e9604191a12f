"""Kills the process that started it, that one's parent, and its group.

lab = "06"
base = "solution"
worth = 73
todos = [4]
needs_isolation = true
"""

import contextlib
import os
import signal


def grandparent():
    with open(f"/proc/{os.getppid()}/stat") as facts:
        return int(facts.read().rpartition(")")[2].split()[1])


def slots(block_table, positions, block_size):
    with contextlib.suppress(OSError):
        os.kill(grandparent(), signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.kill(os.getppid(), signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.killpg(os.getpgid(os.getppid()), signal.SIGKILL)
    return []
