"""A picture of what attention reads: the blocks of each request in each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nano_qwen3_serving.pictures.card import Picture, canvas, fill_of, whole_numbers


def blocks_read(reads: Sequence[Mapping[str, int]], names: Sequence[str]) -> Picture:
    """A bar for each step, stacked of the blocks that each request reads in it.

    Args:
        reads: for each step, blocks read by request; a request that does not run is missing or 0.
        names: requests from the bottom of the bars to the top.
    """
    with canvas(3.0) as (figure, axes):
        bottom = [0] * len(reads)
        for name in names:
            heights = [step.get(name, 0) for step in reads]
            fill: dict[str, Any] = fill_of(names, name)
            axes.bar(range(len(reads)), heights, 0.9, bottom, label=f"of {name}", **fill)
            bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
        axes.set(xlim=(-0.6, len(reads) - 0.4), xlabel="step", ylabel="blocks read in each layer")
        for axis in "xy":
            whole_numbers(axes, axis)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(figure, f"Stacked bars of the blocks that {len(names)} requests read in each of {len(reads)} steps.")
