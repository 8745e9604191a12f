"""Block tables as rows of one array that stays from step to step.

Knows lists of block numbers; knows nothing of slots or tokens. A request's table grows by a block every few steps, so a step
writes what is new and copies the rest as memory, where it would otherwise make a tensor of every list, each as long
as the longest:

    row 0   A   3 8 5 . .        a step of B and A reads   9 2 0
    row 1   B   9 2 . . .                                  3 8 5
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nano_qwen3_serving.interfaces import NULL_BLOCK, ScheduledChunk


@dataclass(slots=True)
class Row:
    """Where a request's table is: the list it was copied from, and how much of it was."""

    index: int
    table: Sequence[int]
    length: int


class BlockTables:
    """The tables of the requests that were in the last step, and perhaps of others.

    Args:
        device: where the tensors go.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._array = np.full((8, 8), NULL_BLOCK, dtype=np.int64)
        self._rows: dict[str, Row] = {}
        self._free = list(range(8))

    def stack(self, chunks: Sequence[ScheduledChunk]) -> Tensor:
        """[len(chunks), longest table], padded with the null block, in the order of the chunks."""
        longest = max(len(chunk.block_table) for chunk in chunks)
        self._make_room(chunks, longest)
        rows = [self._row_of(chunk) for chunk in chunks]
        return torch.from_numpy(self._array[:, :longest][rows]).to(self._device)

    def _row_of(self, chunk: ScheduledChunk) -> int:
        """The chunk's row, brought up to date. A table that is another list is another table: its request was preempted
        since, or its block manager makes a new list every time."""
        request_id, table = chunk.request.request_id, chunk.block_table
        row = self._rows.get(request_id)
        if row is None:
            row = self._rows[request_id] = Row(self._free.pop(), (), 0)
        if row.table is not table:
            self._array[row.index, len(table) : row.length] = NULL_BLOCK
            row.table, row.length = table, 0
        if row.length < len(table):
            self._array[row.index, row.length : len(table)] = table[row.length :]
            row.length = len(table)
        return row.index

    def _make_room(self, chunks: Sequence[ScheduledChunk], longest: int) -> None:
        """A row for each chunk, as long as the longest table: rows of requests that are not in this step go first."""
        height, width = self._array.shape
        names = {chunk.request.request_id for chunk in chunks}
        missing = len(names - self._rows.keys())
        if missing > len(self._free):
            for name in self._rows.keys() - names:
                row = self._rows.pop(name)
                self._array[row.index, : row.length] = NULL_BLOCK
                self._free.append(row.index)
        more = 0 if missing <= len(self._free) else max(height, missing)
        wider = 0 if longest <= width else max(width, longest - width)
        if more or wider:
            self._array = np.pad(self._array, ((0, more), (0, wider)), constant_values=NULL_BLOCK)
            self._free += range(height, height + more)
