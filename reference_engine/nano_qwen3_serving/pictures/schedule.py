"""Batches over time: which request computes what in which step, and which seat stays empty; as pictures and as a film."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from matplotlib.patches import Patch, Rectangle

from nano_qwen3_serving.pictures.card import COLOURS, FAINT, INK, Picture, canvas, filled, letters_on, whole_numbers
from nano_qwen3_serving.pictures.film import Film, colour_of
from nano_qwen3_serving.pictures.memory import WASTED

PROMPT = filled(COLOURS[1], "///")
TOKEN = filled(COLOURS[0])
FILLS = {"prompt": PROMPT, "token": TOKEN}
MANY_STEPS = 80


def batches_over_time(runs: Mapping[str, Sequence[Mapping[str, Any]]], names: Sequence[str]) -> Picture:
    """A panel for each run with a row for each request: the steps in which it computes, prompt and tokens apart.

    Args:
        runs: the flight recorder's steps, by title.
        names: requests from top to bottom.
    """
    longest = max(len(steps) for steps in runs.values())
    with canvas(0.9 + len(runs) * (0.7 + 0.24 * len(names)), panels=1, nrows=len(runs), sharex=True, squeeze=False) as (
        figure, grid):
        for axes, (title, steps) in zip(grid[:, 0], runs.items(), strict=True):
            for row, name in enumerate(names):
                kinds = [_kind(step, name) for step in steps]
                for (kind, _), same in groupby(enumerate(kinds), lambda pair: (pair[1], longest <= MANY_STEPS and pair[0])):
                    columns = [column for column, _ in same]  # one step, or where there are many, all steps of a kind
                    if kind:
                        axes.add_patch(Rectangle((columns[0], row - 0.4), len(columns), 0.8, **FILLS[kind]))
            axes.set_title(f"{title}: {len(steps)} steps")
            axes.set(xlim=(0, 1.005 * longest), ylim=(len(names) - 0.4, -0.6), ylabel="request")
            axes.set_yticks(range(len(names)), names)
        grid[-1, 0].set_xlabel("step")
        whole_numbers(grid[-1, 0], "x")
        keys = [Patch(**PROMPT, label="prompt computed"), Patch(**TOKEN, label="one token computed")]
        figure.legend(handles=keys, loc="outside lower right", ncols=2)
    return Picture(figure, f"Gantt chart, {len(names)} requests by step, in {len(runs)} panels: {', '.join(runs)}.")


def _kind(step: Mapping[str, Any], name: str) -> str | None:
    """What a step computes of a request."""
    for chunk in step["chunks"]:
        if chunk["request"] == name:
            return "prompt" if chunk["start"] == 0 or chunk["num_tokens"] > 1 else "token"
    return None


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
            seats = seats_taken(steps, num_seats)
            empty = sum(of_step.count(None) for of_step in seats)
            for row, history in enumerate(zip(*seats, strict=True)):
                for name, stay in groupby(range(len(steps)), history.__getitem__):
                    columns = list(stay)
                    fill: dict[str, Any] = WASTED
                    if name:
                        fill = {"facecolor": colour_of(names, name), "edgecolor": INK, "linewidth": 0.6}
                    axes.add_patch(Rectangle((columns[0], row - 0.4), len(columns), 0.8, **fill))
                    if name:
                        axes.text(columns[0] + len(columns) / 2, row, name, ha="center", va="center", fontsize=8,
                                  color=letters_on(fill["facecolor"]))
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


def seats_film(runs: Mapping[str, Sequence[Mapping[str, Any]]], num_seats: int) -> Film:
    """The same runs as in `seats_over_time`, played side by side: requests sit down, get up, and the next one comes.

    Args:
        runs: the flight recorder's steps, by title; the same requests in each.
        num_seats: the engine's max_num_seqs.
    """
    everyone = {name for steps in runs.values() for step in steps for name in step["running"]}
    names = sorted(everyone, key=lambda name: (len(name), name))
    frames = max(len(steps) for steps in runs.values()) + 1
    film = Film(f"Film of {len(names)} requests and {num_seats} seats, in {len(runs)} ways: {', '.join(runs)}. Requests wait on "
                "the left, sit in the middle while they run, and are done on the right.",
                78 * len(runs) + 34, frames, seconds=0.8)
    for lane, (title, steps) in enumerate(runs.items()):
        top = 78.0 * lane
        seats = seats_taken(steps, num_seats) + [[None] * num_seats] * (frames - len(steps))
        busy = [f"{title}: {num_seats - of_step.count(None)} of {num_seats} seats taken" if step < len(steps)
                else f"{title}: done after {len(steps)} steps" for step, of_step in enumerate(seats)]
        film.texts(8, top + 10, busy, anchor="start", bold=True)
        for x, label in ((8, "waiting"), (240, "seats of the batch"), (390, "done")):
            film.text(x, top + 28, label, anchor="start", size=7.5)
        for seat in range(num_seats):
            film.box(240 + 40 * seat, top + 36, 36, 26, "none", FAINT)
        for i, name in enumerate(names):
            path = _way_of(name, seats, len(names) - 1 - i, i)
            film.tile(8, top + 36, 20, 26, colour_of(names, name), name, path=path)
    film.clock(78 * len(runs) + 22, [f"step {step}" if step < frames - 1 else "all done" for step in range(frames)])
    return film


def _way_of(name: str, seats: Sequence[Sequence[str | None]], last: int, place: int) -> list[tuple[float, float]]:
    """How far a request's tile is moved in each step: waiting (the first in the queue stands next to the seats), seat, done."""
    sat = [step for step, of_step in enumerate(seats) if name in of_step]
    path = []
    for step, of_step in enumerate(seats):
        if name in of_step:
            path.append((240.0 + 40 * of_step.index(name), 0.0))
        else:
            path.append((24.0 * last, 0.0) if step < sat[0] else (382.0 + 23 * place, 0.0))
    return path
