"""Gantt charts of batches: which request computes what in which step, and which seat stays empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from matplotlib.patches import Patch, Rectangle

from nano_qwen3_serving.pictures.card import INK, Picture, canvas, fill_of, whole_numbers, write_in
from nano_qwen3_serving.pictures.memory import WASTED

PROMPT: dict[str, Any] = {"facecolor": "#e69f00", "hatch": "///", "edgecolor": INK, "linewidth": 0.6}
TOKEN: dict[str, Any] = {"facecolor": "#56b4e9", "hatch": "", "edgecolor": INK, "linewidth": 0.6}
MANY_STEPS = 80


def batches_over_time(runs: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]) -> Picture:
    """A panel for each run with a row for each request: the steps in which it computes, prompt and tokens apart.

    Args:
        runs: the flight recorder's steps, by title.
        names: requests from top to bottom.
    """
    longest = max(len(steps) for steps in runs.values())
    edges = {} if longest <= MANY_STEPS else {"linewidth": 0}  # else they would be all that one sees
    with canvas(0.9 + len(runs) * (0.7 + 0.24 * len(names)), panels=1, nrows=len(runs), sharex=True, squeeze=False) as (
        figure, grid):
        for axes, (title, steps) in zip(grid[:, 0], runs.items(), strict=True):
            for column, step in enumerate(steps):
                for chunk in step["chunks"]:
                    fill = PROMPT if chunk["start"] == 0 or chunk["num_tokens"] > 1 else TOKEN
                    axes.add_patch(Rectangle((column, names.index(chunk["request"]) - 0.4), 1, 0.8, **fill | edges))
            axes.set_title(f"{title}: {len(steps)} steps")
            axes.set(xlim=(0, 1.005 * longest), ylim=(len(names) - 0.4, -0.6), ylabel="request")
            axes.set_yticks(range(len(names)), names)
        grid[-1, 0].set_xlabel("step")
        whole_numbers(grid[-1, 0], "x")
        keys = [Patch(**PROMPT, label="prompt computed"), Patch(**TOKEN, label="one token computed")]
        figure.legend(handles=keys, loc="outside lower right", ncols=2)
    return Picture(figure, f"Gantt chart, {len(names)} requests by step, in {len(runs)} panels: {', '.join(runs)}.")


def seats_over_time(runs: Mapping[str, Sequence[Mapping[str, Any]]], num_seats: int) -> Picture:
    """A panel for each run with a row for each seat of the batch: who sits there in which step, and who does not.

    Args:
        runs: the flight recorder's steps, by title.
        num_seats: the engine's max_num_seqs.
    """
    longest = max(len(steps) for steps in runs.values())
    names = list(dict.fromkeys(name for steps in runs.values() for step in steps for name in step["running"]))
    with canvas(1.2 + len(runs) * (0.7 + 0.36 * num_seats), nrows=len(runs), sharex=True, squeeze=False) as (figure, grid):
        for axes, (title, steps) in zip(grid[:, 0], runs.items(), strict=True):
            empty = 0
            seats = seats_taken(steps, num_seats)
            for column, row in product(range(len(steps)), range(num_seats)):
                name = seats[column][row]
                empty += name is None
                axes.add_patch(Rectangle((column, row - 0.4), 1, 0.8, **fill_of(names, name) if name else WASTED))
                if name and (column == 0 or seats[column - 1][row] != name):
                    write_in(axes, column + 0.5, row, name)
            axes.set_title(f"{title}: {len(steps)} steps, bubbles in {empty} of {num_seats * len(steps)} places")
            axes.set(xlim=(0, 1.005 * longest), ylim=(num_seats - 0.4, -0.6), ylabel="seat of the batch")
            axes.set_yticks(range(num_seats))
        grid[-1, 0].set_xlabel("step")
        whole_numbers(grid[-1, 0], "x")
        figure.legend(handles=[Patch(**WASTED, label="a bubble: nobody sits there in that step")], loc="outside lower right")
    return Picture(figure, f"Gantt chart, {num_seats} seats of a batch by step, in {len(runs)} panels: {', '.join(runs)}.")


def seats_taken(steps: Sequence[Mapping[str, Any]], num_seats: int) -> list[list[str | None]]:
    """Who sits where in each step: requests keep their seat while they run, a new one takes the first free one."""
    seats: list[str | None] = [None] * num_seats
    history = []
    for step in steps:
        seats = [name if name in step["running"] else None for name in seats]
        for name in step["running"]:
            if name not in seats:
                seats[seats.index(None)] = name
        history.append(seats.copy())
    return history
