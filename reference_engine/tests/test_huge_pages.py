"""Large memory is offered to the system as huge pages, and keeps what is in it."""

from __future__ import annotations

import sys

import torch

from nano_qwen3_serving.model import huge_pages
from nano_qwen3_serving.model.huge_pages import HUGE_PAGE, large_areas, use_huge_pages

MAPS = """\
7f0000100000-7f0000900000 rw-p 00000000 00:00 0 
7f0001000000-7f0001200000 r--p 00000000 00:00 0 
7f0002000000-7f0002600000 rw-p 00001000 fe:01 1234                      /usr/lib/library.so
55d000000000-55d000500000 rw-p 00000000 00:00 0                          [heap]
7ffd00000000-7ffd00800000 rw-p 00000000 00:00 0                          [stack]
7f0003000000-7f00031ff000 rw-p 00000000 00:00 0 
"""


def test_areas_are_the_whole_huge_pages_of_private_memory():
    assert list(large_areas(MAPS)) == [(0x7F0000200000, 3 * HUGE_PAGE), (0x55D000000000, 2 * HUGE_PAGE)]


def test_contents_stay():
    numbers = torch.arange(8 << 20)
    copy = numbers.clone()
    use_huge_pages()
    assert torch.equal(numbers, copy)


def test_other_systems_are_not_asked(monkeypatch):
    asked: list[object] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(huge_pages.ctypes, "CDLL", asked.append)
    use_huge_pages()
    assert asked == []
