"""Makes a failing list of operations short: delta debugging (Zeller and Hildebrandt, 2002).

Knows nothing of engines: it is given a question that a list answers with yes or no.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def shrink(items: list[T], fails: Callable[[list[T]], bool], tries: int = 200, seconds: float = 60.0) -> list[T]:
    """A shorter list that still fails, found by leaving out ever smaller pieces.

    Args:
        items: fails as a whole.
        fails: whether a list fails; asked at most `tries` times, and not after `seconds`.
    """
    last = time.monotonic() + seconds
    size = max(len(items) // 2, 1)
    while True:
        start = 0
        removed = False
        while start < len(items):
            if tries == 0 or time.monotonic() > last:
                return items
            tries -= 1
            shorter = items[:start] + items[start + size :]
            if fails(shorter):
                items, removed = shorter, True
            else:
                start += size
        if size == 1 and not removed:
            return items
        size = size if removed and size == 1 else max(size // 2, 1)
