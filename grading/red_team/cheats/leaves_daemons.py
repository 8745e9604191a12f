"""Leaves processes behind, in sessions of their own and without a parent; does its work besides.

lab = "06"
base = "solution"
worth = 85
todos = []
"""

import os
import sys
import time


def daemon():
    """A grandchild that nobody waits for; it would live for ten minutes."""
    if os.fork():
        os.wait()
        return
    os.setsid()
    try:
        os.setpgid(0, 0)
    except OSError:
        pass
    if os.fork() == 0:
        os.closerange(0, 256)
        time.sleep(600)
    os._exit(0)


if "starter" in sys.modules:
    daemon()
