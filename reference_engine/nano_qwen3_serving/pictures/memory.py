"""Waste: the slots that requests hold beside those in which they keep a token, counted and drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from nano_qwen3_serving.pictures.card import INK, PAPER, Picture, canvas, fill_of, whole_numbers
from nano_qwen3_serving.scheduling.block_manager import BlockManager

WASTED: dict[str, Any] = {"facecolor": PAPER, "edgecolor": "#d55e00", "hatch": "xx", "linewidth": 0.6}


def slots_in_blocks(lengths: Mapping[str, int], block_size: int) -> dict[str, int]:
    """The slots that the engine's block manager gives requests which keep so many tokens, in whole blocks."""
    manager = BlockManager(sum(lengths.values()) + 1, block_size, enable_prefix_caching=False)
    for name, length in lengths.items():
        manager.allocate(name, length)
    return {name: len(manager.block_table(name)) * block_size for name in lengths}


def slots_held(lengths: Mapping[str, int], held: Mapping[str, Mapping[str, int]], block_size: int) -> Picture:
    """A panel for each way of giving out memory, with a row for each request: slots in use, and slots wasted.

    Args:
        lengths: tokens kept for each request.
        held: slots of each request, by the name of the way; in whole blocks in the last one.
        block_size: slots in a block there.
    """
    names, widest = list(lengths), max(max(slots.values()) for slots in held.values())
    with canvas(1.5 + 0.5 * len(names), panels=len(held), sharey=True) as (figure, panels):
        for axes, (title, slots) in zip(panels, held.items(), strict=True):
            for row, name in enumerate(names):
                _bar(axes, row, 0, lengths[name], fill_of(names, name))
                _bar(axes, row, lengths[name], slots[name], WASTED)
                if axes is panels[-1]:
                    axes.vlines(range(0, slots[name] + 1, block_size), row - 0.38, row + 0.38, INK, linewidth=2)
            axes.set_title(f"{title}: {1 - sum(lengths.values()) / sum(slots.values()):.0%} wasted")
            axes.set(xlim=(-0.3, widest + 0.5), ylim=(len(names) - 0.4, -0.6), xlabel="slots held")
            whole_numbers(axes, "x")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylabel("request")
        keys = [Patch(facecolor="#999999", edgecolor=INK, label="keeps a token"), Patch(**WASTED, label="wasted")]
        figure.legend(handles=keys, loc="outside lower right", ncols=2)
    return Picture(figure, f"Bars of the slots that {len(names)} requests hold, in {len(held)} panels: {', '.join(held)}.")


def _bar(axes: Axes, row: int, start: int, stop: int, fill: dict[str, Any]) -> None:
    if stop > start:
        axes.add_patch(Rectangle((start, row - 0.38), stop - start, 0.76, **fill))
