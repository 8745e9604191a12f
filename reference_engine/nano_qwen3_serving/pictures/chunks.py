"""Pictures of a step: its flat rows and where they write, and which keys each row of a chunk sees."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from nano_qwen3_serving.pictures.card import COLOURS, FAINT, INK, PAPER, Picture, canvas, fill_of, filled, write_in
from nano_qwen3_serving.pictures.film import Film, colour_of

BEFORE = filled(COLOURS[0])
OWN = filled(COLOURS[1], "///")
HIDDEN: dict[str, Any] = {"facecolor": PAPER, "hatch": "", "edgecolor": FAINT, "linewidth": 0.6}


def flat_batch(rows: Sequence[tuple[str, int, int]], num_blocks: int, block_size: int) -> Picture:
    """The rows of a step side by side, and below them the pool, with a line from each row to the slot it writes.

    Args:
        rows: request, position and slot of each row, in the order of the batch.
        num_blocks, block_size: of the pool.
    """
    names, slots = sorted({name for name, _, _ in rows}), num_blocks * block_size
    width = min(2.4, 0.7 * slots / len(rows))
    left = (slots - width * len(rows)) / 2
    with canvas(3.6) as (figure, axes):
        _pool(axes, num_blocks, block_size)
        for row, (name, position, slot) in enumerate(rows):
            x = left + width * (row + 0.5)
            axes.add_patch(Rectangle((x - width / 2, 2.6), width, 1, **fill_of(names, name)))
            axes.add_patch(Rectangle((slot, 0), 1, 1, **fill_of(names, name)))
            write_in(axes, x, 3.1, f"{name.lower()}{position}")
            axes.plot([x, slot + 0.5], [2.6, 1], color=INK, linewidth=0.8)
            for height, number in ((4.9, row), (4.4, position), (3.9, slot)):
                axes.text(x, height, str(number), ha="center", va="center", fontsize=9)
        for height, label in ((4.9, "row"), (4.4, "position"), (3.9, "slot"), (3.1, "token")):
            axes.text(left - 0.6, height, label, ha="right", va="center")
        _query_lengths(axes, [name for name, _, _ in rows], left, width)
        axes.set(xlim=(-0.5, slots + 0.5), ylim=(-0.8, 6.4), xlabel="slot of the pool", yticks=[],
                 xticks=range(0, slots + 1, block_size))
        axes.spines["left"].set_visible(False)
    return Picture(figure, f"The {len(rows)} rows of a step, and lines from each to its slot in a pool of {slots} slots.")


def _pool(axes: Axes, num_blocks: int, block_size: int) -> None:
    """A row of empty blocks from height 0 to 1, the null block grey."""
    for block in range(num_blocks):
        x, face = block * block_size, FAINT if block == 0 else "none"
        axes.add_patch(Rectangle((x, 0), block_size, 1, zorder=3, facecolor=face, fill=block == 0, edgecolor=INK, linewidth=1.4))
        axes.text(x + block_size / 2, -0.4, f"block {block}", ha="center", va="center", fontsize=8)


def _query_lengths(axes: Axes, names: Sequence[str], left: float, width: float) -> None:
    """A bracket over the rows of each request, with their number."""
    start = 0
    for name, same in itertools.groupby(names):
        count = len(list(same))
        x, stop = left + width * start + 0.15, left + width * (start + count) - 0.15
        axes.plot([x, x, stop, stop], [5.25, 5.4, 5.4, 5.25], color=INK, linewidth=1)
        axes.text((x + stop) / 2, 5.8, f"{name}: {count} row{'s' * (count > 1)}", ha="center", va="center", fontsize=9)
        start += count


def seen_keys(masks: Mapping[str, Sequence[Sequence[bool]]], start: int) -> Picture:
    """Causal masks of one chunk, a panel for each way of making it: a row for each token, a column for each key.

    Args:
        masks: by title, [rows of the chunk][keys], True where the row attends to the key.
        start: position of the chunk's first row: so many keys were computed before.
    """
    rows, keys = (len(side) for side in (next(iter(masks.values())), next(iter(masks.values()))[0]))
    with canvas(1.8 + 0.32 * rows, panels=len(masks), squeeze=False, sharey=True) as (figure, grid):
        for axes, (title, mask) in zip(grid[0], masks.items(), strict=True):
            for row, key in itertools.product(range(rows), range(keys)):
                fill = HIDDEN if not mask[row][key] else BEFORE if key < start else OWN
                axes.add_patch(Rectangle((key - 0.5, row - 0.5), 1, 1, **fill))
            axes.set(xlim=(-0.6, keys - 0.4), ylim=(rows - 0.4, -0.6), xticks=range(keys), xlabel="position of the key")
            axes.set_title(title)
        grid[0, 0].set_yticks(range(rows), [str(start + row) for row in range(rows)])
        grid[0, 0].set_ylabel("position of the row")
        kinds = ((BEFORE, "computed before"), (OWN, "of this chunk"), (HIDDEN, "not seen"))
        figure.legend(handles=[Patch(**fill, label=label) for fill, label in kinds], loc="outside lower right", ncols=3)
    return Picture(
        figure, f"Grids of {rows} rows of a chunk by {keys} keys, filled where the row sees the key: {', '.join(masks)}.")


def rows_film(steps: Sequence[Mapping[str, Any]], num_blocks: int, block_size: int) -> Film:
    """Steps laid out one after the other: the rows stand side by side, then each goes to the slot that its table says.

    Args:
        steps: the flight recorder's, of a run without preemption.
        num_blocks, block_size: of the pool.
    """
    names = sorted({name for step in steps for name in step["block_tables"]})
    rows = [rows_of(step, block_size) for step in steps]
    first = [sum(len(before) + 1 for before in rows[:i]) for i in range(len(steps))]  # frame in which a step is laid out
    frames = sum(len(some) + 1 for some in rows)
    film = Film(f"Film of {len(steps)} steps: the rows of each, and how each of them goes to its slot in a pool of "
                f"{num_blocks * block_size} slots.", 176, frames, seconds=0.6, still=first[0])
    wide = 560 / (num_blocks * block_size)
    for slot in range(num_blocks * block_size):
        film.box(8 + slot * wide, 96, wide, 28, FAINT if slot < block_size else "none", FAINT)
    for block in range(num_blocks):
        film.box(8 + block * block_size * wide, 96, block_size * wide, 28)
        film.text(8 + (block + 0.5) * block_size * wide, 133, f"block {block}", size=7.5)
    film.text(8, 10, "rows of the step", anchor="start")
    for name in names:
        tables = [f"table of {name}: {step['block_tables'].get(name, [])}" for step, some in zip(steps, rows, strict=True)
                  for _ in range(1 + len(some))]
        film.texts(566, 10 + 14 * names.index(name), tables, anchor="end")
    for step, of_step in enumerate(rows):
        for row, (name, position, slot) in enumerate(of_step):
            there, moved = (8 + 24.0 * row, 36.0), first[step] + 1 + row
            path = [(0.0, 0.0) if frame < moved else (8 + slot * wide - there[0], 60.0) for frame in range(frames)]
            when = [frame >= first[step] for frame in range(frames)]
            film.tile(*there, wide, 28, colour_of(names, name), f"{name.lower()}{position}", path=path, when=when)
    film.clock(164, [label for step, of_step in enumerate(rows) for label in (
        f"step {step}: {len(of_step)} rows", *(f"step {step}: {name}, position {position} → slot {slot} = {slot // block_size} × "
        f"{block_size} + {slot % block_size}" for name, position, slot in of_step))])
    return film


def rows_of(step: Mapping[str, Any], block_size: int) -> list[tuple[str, int, int]]:
    """Request, position and slot of each row of a recorded step; rows of one-token chunks come first."""
    rows = []
    for chunk in sorted(step["chunks"], key=lambda chunk: chunk["num_tokens"] > 1):
        for position in range(chunk["start"], chunk["start"] + chunk["num_tokens"]):
            block = step["block_tables"][chunk["request"]][position // block_size]
            rows.append((chunk["request"], position, block * block_size + position % block_size))
    return rows
