"""Work that grows: tokens computed in each step, and altogether, as a picture and as a film."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from nano_qwen3_serving.pictures.card import COLOURS, FAINT, INK, POINTS, WIDTH, Picture, canvas, whole_numbers
from nano_qwen3_serving.pictures.film import Film

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


def cache_film(cached: Sequence[int], uncached: Sequence[int]) -> Film:
    """One request with and without a cache, step by step: which tokens are computed, and which are kept from before.

    Args:
        cached: tokens computed in each step with a cache.
        uncached: without one, in as many steps.
    """
    film = Film(f"Film of {len(cached)} steps of one request, with and without a cache: the tokens of its text, lit up where "
                "they are computed, and how many were computed so far.", 172, len(cached), still=len(cached) - 1)
    length = uncached[-1]
    wide = min(26.0, (WIDTH * POINTS - 16) / length)
    before = [0, *itertools.accumulate(cached)]
    for y, title, counts in ((10, "without a cache", uncached), (80, "with a cache", cached)):
        film.text(8, y, title, anchor="start", bold=True)
        sums = [f"computed so far: {total:,}" for total in itertools.accumulate(counts)]
        film.texts(WIDTH * POINTS - 8, y, sums, anchor="end")
        for place in range(length):
            first = next(step for step, count in enumerate(uncached) if place < count)  # when the token is there
            now = [place < count if counts is uncached else before[step] <= place < before[step + 1]
                   for step, count in enumerate(counts)]
            kept = [counts is cached and place < before[step] for step in range(len(counts))]
            x, there = 8 + place * wide, [step >= first for step in range(len(counts))]
            film.box(x, y + 12, wide - 3, 26, edge=FAINT, when=there)
            film.tile(x, y + 12, wide - 3, 26, COLOURS[0], "kv", when=kept)
            film.tile(x, y + 12, wide - 3, 26, COLOURS[1], str(place), when=now)
    both = enumerate(zip(uncached, cached, strict=True))
    film.clock(160, [f"step {step}: {a} computed without, {b} with" for step, (a, b) in both])
    return film
