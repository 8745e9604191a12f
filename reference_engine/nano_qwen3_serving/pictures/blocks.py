"""Pictures of the KV pool: who holds which block in which step, and which blocks one query reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.patches import Patch, Rectangle

from nano_qwen3_serving.pictures.card import FAINT, INK, Picture, canvas, fill_of, whole_numbers, write_in


def pool_over_time(steps: Sequence[Mapping[str, Any]], num_blocks: int, names: Sequence[str] | None = None) -> Picture:
    """The pool as a grid: a row for each block, a column for each step, coloured by who holds it.

    Args:
        steps: the flight recorder's.
        num_blocks: of the pool, the null block with them.
        names: requests in the order of their colours; all that ever ran, if None.
    """
    names = list(names or dict.fromkeys(r for step in steps for r in step["block_tables"]))
    with canvas(1.4 + 0.26 * num_blocks) as (figure, axes):
        axes.add_patch(Rectangle((-0.5, -0.5), len(steps), 1, facecolor=FAINT, edgecolor=INK, linewidth=0.6))
        for column, step in enumerate(steps):
            for name, table in step["block_tables"].items():
                for place, block in enumerate(table):
                    axes.add_patch(Rectangle((column - 0.5, block - 0.5), 1, 1, **fill_of(names, name)))
                    if len(steps) <= 24:
                        write_in(axes, column, block, str(place))
        axes.set(xlim=(-0.5, len(steps) - 0.5), ylim=(num_blocks - 0.5, -0.5), xlabel="step", ylabel="block of the pool")
        for axis in "xy":
            whole_numbers(axes, axis)
        keys = [Patch(**fill_of(names, name), label=f"held by {name}") for name in names]
        keys.append(Patch(facecolor=FAINT, edgecolor=INK, label="null block"))
        axes.legend(handles=keys, loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(figure, f"Grid of {num_blocks} blocks by {len(steps)} steps, coloured by who holds the block.")


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
