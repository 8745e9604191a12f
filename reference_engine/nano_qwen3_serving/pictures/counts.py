"""A picture of work that grows: tokens computed in each step, and altogether."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from nano_qwen3_serving.pictures.card import COLOURS, INK, Picture, canvas, whole_numbers

STROKES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))


def tokens_computed(runs: Mapping[str, Sequence[int]]) -> Picture:
    """A line for each run, in two panels: tokens computed in each step, and in all steps so far.

    Args:
        runs: tokens computed in each step, by the run's name; at most four runs.
    """
    with canvas(3.4, panels=2) as (figure, panels):
        for (name, counts), colour, (line, marker) in zip(runs.items(), COLOURS, STROKES, strict=False):
            for axes, numbers in zip(panels, (counts, list(itertools.accumulate(counts))), strict=True):
                axes.plot(numbers, line, marker=marker, markevery=max(1, len(counts) // 8), color=colour,
                          markeredgecolor=INK, markersize=5, linewidth=2, label=name)
        for axes, title in zip(panels, ("in each step", "in all steps so far"), strict=True):
            axes.set(xlabel="step", ylabel="tokens computed", ylim=(0, None))
            axes.set_title(title)
            for axis in "xy":
                whole_numbers(axes, axis)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", ncols=len(runs))
    return Picture(figure, f"Two line charts of the tokens computed, by step and added up, for {' and '.join(runs)}.")
