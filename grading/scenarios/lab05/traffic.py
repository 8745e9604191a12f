"""What a log of torch's operators comes to: bytes read and written, memory nobody has written, FLOPs of products.

Reads the events of `labs.harness.suite.operators`, where the submission is; knows nothing of the lab.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

LOOKS_LIKE = re.compile("::new_|_like$")
"""Operators that take a tensor's shape and dtype, and read none of its numbers."""


class Traffic:
    """What a log of operators comes to.

    Attributes:
        written: bytes; views write nothing.
    """

    def __init__(self, events: Sequence[Any]) -> None:
        self.written = 0
        self._read: dict[int, Any] = {}  # by address: the longest piece that was read from there
        for event in events:
            self._count(event)

    def _count(self, event: Any) -> None:
        memories = {piece.memory for piece in event.given}
        fresh = [piece for piece in event.made if piece.memory not in memories]
        if event.changed and not event.overload.endswith("out"):  # a write into a part: as much as there is to write
            self.written += sum(piece.num_bytes for piece in event.given) or event.changed[0].num_bytes
        else:
            self.written += sum(piece.num_bytes for piece in fresh)
        if (fresh or event.changed) and not LOOKS_LIKE.search(event.name):  # no view: what was given was read
            for piece in event.given:
                known = self._read.get(piece.address, piece)
                self._read[piece.address] = max(known, piece, key=lambda one: one.num_bytes)

    def memories(self, floating: bool = False) -> dict[int, int]:
        """Bytes read of each memory, or of each that holds floating numbers; never more than it has."""
        read: dict[int, int] = {}
        for piece in self._read.values():
            if piece.floating or not floating:
                read[piece.memory] = min(piece.memory_bytes, read.get(piece.memory, 0) + piece.num_bytes)
        return read

    @property
    def held(self) -> int:
        """Bytes of the memories of which anything was read."""
        return sum({piece.memory: piece.memory_bytes for piece in self._read.values()}.values())

    def dtypes(self) -> str:
        """Of all that was read, in words."""
        return ", ".join(sorted({piece.dtype for piece in self._read.values()}))


def products(events: Sequence[Any]) -> tuple[int, set[str]]:
    """FLOPs by torch's count, and the dtypes of what was multiplied. On the device meta nothing is: its memory has no address."""
    flops, dtypes = 0, set()
    for event in [event for event in events if all(piece.address for piece in event.given)]:
        count = flop_registry.get(getattr(torch.ops.aten, event.name.removeprefix("aten::"), None))
        if count:
            flops += count(*[piece.shape for piece in event.given])
            dtypes |= {piece.dtype for piece in event.given}
    return flops, dtypes


def unwritten(events: Sequence[Any]) -> dict[int, int]:
    """Of each memory that was only asked for, the bytes that nobody has written."""
    left: dict[int, int] = {}
    for event in events:
        if re.match("aten::(new_)?empty", event.name):
            left |= {piece.memory: piece.memory_bytes for piece in event.made}
        for piece in event.changed:
            if piece.memory in left:
                left[piece.memory] -= piece.num_bytes
    return left
