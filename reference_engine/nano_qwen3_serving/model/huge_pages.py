"""Memory in pages of 2 MB instead of 4 KB.

A decode step reads all weights once. In small pages the processor looks up a third of a million of
them for each gigabyte; on the machine of `benchmarks/results` a step of one request read 47 GB/s that way,
and 79 GB/s from huge pages. Linux hands those out only on request.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path

HUGE_PAGE = 2 << 20
MADV_HUGEPAGE = 14  # for pages not touched yet
MADV_COLLAPSE = 25  # for pages already in memory; Linux 6.1
ANONYMOUS = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0\s*(?:\[heap\])?$", re.MULTILINE)


def use_huge_pages() -> None:
    """Asks for huge pages for all large private memory of this process; contents stay.

    Best effort: if the system has no huge pages left, or is not Linux, nothing changes.
    """
    if sys.platform != "linux":
        return
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    for start, size in large_areas(Path("/proc/self/maps").read_text(encoding="utf-8")):
        for advice in (MADV_HUGEPAGE, MADV_COLLAPSE):
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice)


def large_areas(maps: str) -> Iterator[tuple[int, int]]:
    """(address, bytes) of the whole huge pages within each anonymous area of a `/proc/PID/maps`."""
    for area in ANONYMOUS.finditer(maps):
        first, last = int(area[1], 16), int(area[2], 16)
        start, end = -(-first // HUGE_PAGE) * HUGE_PAGE, last // HUGE_PAGE * HUGE_PAGE
        if end > start:
            yield start, end - start
