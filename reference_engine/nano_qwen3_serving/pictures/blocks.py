"""Pictures of the KV pool: who holds which block in which step, and which blocks one query reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from nano_qwen3_serving.pictures.card import (
    FAINT,
    INK,
    POINTS,
    WIDTH,
    Picture,
    canvas,
    fill_of,
    letters_on,
    whole_numbers,
    write_in,
)
from nano_qwen3_serving.pictures.film import Film, colour_of


def pool_over_time(steps: Sequence[Mapping[str, Any]], num_blocks: int, names: Sequence[str] | None = None) -> Picture:
    """The pool as a grid: a row for each block, a column for each step; a bar says whose block it is, and which of theirs.

    Args:
        steps: the flight recorder's.
        num_blocks: of the pool, the null block with them.
        names: requests in the order of their colours; all that ever ran, if None.
    """
    names = list(names or dict.fromkeys(r for step in steps for r in step["block_tables"]))
    with canvas(1.2 + 0.24 * num_blocks) as (figure, axes):
        axes.add_patch(Rectangle((-0.5, -0.5), len(steps), 1, facecolor=FAINT, edgecolor=INK, linewidth=0.6))
        axes.text(len(steps) / 2 - 0.5, 0, "null block", ha="center", va="center", fontsize=8)
        for block in range(1, num_blocks):
            holders = [_holder(step, block) for step in steps]
            for holder, columns in groupby(range(len(steps)), holders.__getitem__):
                if holder:
                    _stay(axes, list(columns), block, holder, colour_of(names, holder[0]))
        axes.set(xlim=(-0.5, len(steps) - 0.5), ylim=(num_blocks - 0.5, -0.5), xlabel="step", ylabel="block of the pool")
        for axis in "xy":
            whole_numbers(axes, axis)
    return Picture(figure, f"Grid of {num_blocks} blocks by {len(steps)} steps, coloured by who holds the block.")


def _stay(axes: Axes, columns: Sequence[int], block: int, holder: tuple[str, int], colour: str) -> None:
    """One bar for the steps in which a block stays with a request, with the request's name and the block's place."""
    first, count = columns[0], len(columns)
    axes.add_patch(Rectangle((first - 0.5, block - 0.5), count, 1, facecolor=colour, edgecolor=INK, linewidth=0.6))
    axes.text(first + (count - 1) / 2, block, f"{holder[0]}{holder[1]}", ha="center", va="center", fontsize=8,
              color=letters_on(colour))


def attention_reads(
    tables: Mapping[str, Sequence[int]], lengths: Mapping[str, int], num_blocks: int, block_size: int, reader: str
) -> Picture:
    """The pool as one row of slots, and above it the text of one request, whose query reads through its table.

    Args:
        tables: blocks of each request, in the order of its tokens.
        lengths: tokens of each that are kept.
        num_blocks, block_size: of the pool.
        reader: the request whose last token attends.
    """
    names = list(tables)
    middle = num_blocks * block_size / 2
    with canvas(2.9) as (figure, axes):
        for block in range(num_blocks):
            face: dict[str, Any] = {"facecolor": FAINT if block == 0 else "none", "edgecolor": INK, "linewidth": 1.4}
            axes.add_patch(Rectangle((block * block_size, 0), block_size, 1, zorder=3, fill=block == 0, **face))
            axes.text(block * block_size + block_size / 2, -0.35, f"block {block}", ha="center", va="center", fontsize=8)
        for name, table in tables.items():
            for position in range(lengths[name]):
                slot = table[position // block_size] * block_size + position % block_size
                axes.add_patch(Rectangle((slot, 0), 1, 1, **fill_of(names, name)))
                write_in(axes, slot + 0.5, 0.5, f"{name.lower()}{position}")
                if name != reader:
                    continue
                above = middle - lengths[name] / 2 + position
                axes.add_patch(Rectangle((above, 2.6), 1, 1, **fill_of(names, name)))
                write_in(axes, above + 0.5, 3.1, f"{name.lower()}{position}")
                axes.plot([above + 0.5, slot + 0.5], [2.6, 1], color=INK, linewidth=0.8)
        axes.text(-0.3, 3.1, f"text of {reader}", ha="left", va="center")
        axes.set(
            xlim=(-0.5, num_blocks * block_size + 0.5), ylim=(-0.8, 3.8), xlabel="slot of the pool", yticks=[],
            xticks=range(0, num_blocks * block_size + 1, block_size))
        axes.spines["left"].set_visible(False)
    return Picture(
        figure, f"A row of {num_blocks * block_size} slots in {num_blocks} blocks; lines lead from each token of {reader}'s "
        "text to the slot that keeps its key and value.")


def pool_film(steps: Sequence[Mapping[str, Any]], num_blocks: int, names: Sequence[str]) -> Film:
    """The same run as `pool_over_time`, played: requests come in, take blocks, give them back, and leave.

    Args:
        steps: the flight recorder's.
        num_blocks: of the pool, the null block with them.
        names: requests in the order of their colours.
    """
    film = Film(f"Film of a pool of {num_blocks} blocks over {len(steps)} steps: {', '.join(names)} wait, run and are done, and "
                "each block is coloured by who holds it.", 196, len(steps), still=len(steps) // 2)
    for y, label in ((14, "waiting"), (42, "running"), (70, "done")):
        film.text(8, y, label, anchor="start")
    for name in names:
        film.tile(70, 4, 26, 20, colour_of(names, name), name, path=_places(steps, name, names))
    wide = 560 / num_blocks
    for block in range(num_blocks):
        x = 8 + block * wide
        film.box(x, 100, wide - 3, 34, FAINT if block == 0 else "none")
        film.text(x + wide / 2 - 1.5, 144, str(block), size=7.5)
        holders = [_holder(step, block) for step in steps]
        for holder in dict.fromkeys(filter(None, holders)):
            label = f"{holder[0]}{holder[1]}"
            film.tile(x, 100, wide - 3, 34, colour_of(names, holder[0]), label, when=[now == holder for now in holders])
    film.text(WIDTH * POINTS - 8, 92, "blocks of the pool (grey: the null block)", anchor="end", size=8)
    film.clock(182, [_what_happens(step) for step in steps])
    return film


def _holder(step: Mapping[str, Any], block: int) -> tuple[str, int] | None:
    """The request that holds a block in a step, and the block's place in its table."""
    return next(((name, table.index(block)) for name, table in step["block_tables"].items() if block in table), None)


def _places(steps: Sequence[Mapping[str, Any]], name: str, names: Sequence[str]) -> list[tuple[float, float]]:
    """Where a request's tile is in each step, seen from the first place of those who wait."""
    places: list[tuple[float, float]] = []
    for step in steps:
        row = next((row for row, kind in enumerate(("waiting", "running")) if name in step[kind]), 2)
        column = names.index(name) if row == 2 else step[("waiting", "running")[row]].index(name)
        places.append((30.0 * column, 28.0 * row))
    return places


def _what_happens(step: Mapping[str, Any]) -> str:
    """A step's number, who lost its blocks in it, and who is done with it."""
    events = [f"{' and '.join(who)} {what}" for who, what in (
        (list(step["preempted"]), "preempted: gives all blocks back"), (list(step["finished"]), "done after this step")) if who]
    return f"step {step['step']}" + "".join(f" · {part}" for part in events)
