"""What could come next: the likeliest tokens, what parameters make of them, draws, and repetitions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from nano_qwen3_serving.pictures.card import COLOURS, FAINT, INK, PAPER, POINTS, WIDTH, Picture, canvas, letters_on, tick_on
from nano_qwen3_serving.pictures.film import Film

NEW: dict[str, Any] = {"marker": "o", "color": COLOURS[5], "label": "for the first time"}
AGAIN: dict[str, Any] = {"marker": "x", "color": COLOURS[6], "label": "again"}
KEPT: dict[str, Any] = {"facecolor": COLOURS[0], "edgecolor": INK, "linewidth": 0.6}
CUT: dict[str, Any] = {"facecolor": PAPER, "edgecolor": COLOURS[6], "hatch": "xxx", "linewidth": 0.6}


def likeliest(words: Sequence[str], probabilities: Sequence[float]) -> Picture:
    """The most probable tokens as bars, with their probability in percent.

    Args:
        words: the tokens' texts, from top to bottom.
        probabilities: of each.
    """
    with canvas(1.2 + 0.24 * len(words)) as (figure, axes):
        for row, probability in enumerate(probabilities):
            _bar(axes, row, probability, KEPT)
            axes.annotate(f"{probability:.1%}", (probability, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
        _rows(axes, words)
        axes.set(xlim=(0, 1.12 * max(probabilities)), xlabel="probability", ylabel="next token")
    return Picture(figure, f"Bars of the probabilities of {len(words)} tokens.")


def probabilities_changed(
    words: Sequence[str], before: Sequence[float], panels: Mapping[str, Sequence[float]], columns: int = 4
) -> Picture:
    """A panel for each way of choosing: what it makes of the same distribution, and what it cuts off.

    Args:
        words: the tokens' texts, from top to bottom.
        before: their probabilities as the network gave them: a tick on each bar.
        panels: by title, the probabilities afterwards; 0 is cut off.
        columns: panels side by side.
    """
    rows = ceil(len(panels) / columns)
    with canvas(1.1 + rows * (0.6 + 0.19 * len(words)), nrows=rows, panels=columns, sharey=True, squeeze=False) as (
        figure, grid):
        for axes, (title, after) in zip(grid.flat, panels.items(), strict=False):
            for row, (old, new) in enumerate(zip(before, after, strict=True)):
                _bar(axes, row, new or old, KEPT if new else CUT)
                tick_on(axes, old, row)
            _rows(axes, words)
            axes.set(xlim=(0, 1.03), xticks=[0, 0.5, 1])
            axes.set_title(title, fontsize=9)
        for axes in list(grid.flat)[len(panels):]:
            axes.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel("probability")
        keys = [
            Patch(**KEPT, label="probability afterwards"), Patch(**CUT, label="cut off"),
            Patch(facecolor=INK, label="tick: as the network gave it"),
        ]
        figure.legend(handles=keys, loc="outside lower right", ncols=3)
    return Picture(figure, f"Bars of the probabilities of {len(words)} tokens, in {len(panels)} panels: {', '.join(panels)}.")


def shares_drawn(words: Sequence[str], probabilities: Sequence[float], drawn: Mapping[int, Sequence[float]]) -> Picture:
    """A panel for each number of draws: how often each token came, beside its probability.

    Args:
        words: the tokens' texts, from top to bottom.
        probabilities: of each, a tick on each bar.
        drawn: by the number of draws, the share of each token.
    """
    widest = 1.1 * max(max(probabilities), *(max(shares) for shares in drawn.values()))
    with canvas(1.3 + 0.24 * len(words), panels=len(drawn), sharey=True, squeeze=False) as (figure, grid):
        for axes, (count, shares) in zip(grid[0], drawn.items(), strict=True):
            for row, (probability, share) in enumerate(zip(probabilities, shares, strict=True)):
                _bar(axes, row, share, KEPT)
                tick_on(axes, probability, row)
            apart = max(abs(p - s) for p, s in zip(probabilities, shares, strict=True))
            _rows(axes, words)
            axes.set_title(f"{count:,} draws: off by {apart:.3f}")
            axes.set(xlim=(0, widest), xlabel="share of the draws")
        keys = [Patch(**KEPT, label="drawn"), Patch(facecolor=INK, label="tick: probability")]
        figure.legend(handles=keys, loc="outside lower right", ncols=2)
    return Picture(
        figure, f"Bars of how often each of {len(words)} tokens was drawn, in {len(drawn)} panels, with ticks at the "
        "probabilities.")


def tokens_again(texts: Mapping[str, Sequence[int]]) -> Picture:
    """A panel for each text: its tokens, numbered as they first come, over their place in the text.

    Args:
        texts: token ids by title.
    """
    highest = max(len(set(tokens)) for tokens in texts.values())
    with canvas(3.6, panels=len(texts), sharey=True, squeeze=False) as (figure, grid):
        for axes, (title, tokens) in zip(grid[0], texts.items(), strict=True):
            number = {token: i for i, token in enumerate(dict.fromkeys(tokens), start=1)}
            first = {tokens.index(token) for token in number}
            again = set(range(len(tokens))) - first
            for places, style in ((sorted(again), AGAIN), (sorted(first), NEW)):
                axes.plot(places, [number[tokens[place]] for place in places], linestyle="", markersize=5, **style)
            axes.set_title(f"{title}: {len(number)} different tokens")
            axes.set(xlabel="place in the text", ylim=(0, highest + 1))
        grid[0, 0].set_ylabel("token, in order of first use")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return Picture(figure, f"Points of tokens over their place in the text, in {len(texts)} panels: {', '.join(texts)}.")


def _bar(axes: Axes, row: int, width: float, fill: Mapping[str, Any]) -> None:
    if width > 0:
        axes.add_patch(Rectangle((0, row - 0.38), width, 0.76, **fill))


def _rows(axes: Axes, words: Sequence[str]) -> None:
    axes.set_ylim(len(words) - 0.4, -0.6)
    axes.set_yticks(range(len(words)), words)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_color(FAINT)


def cut_film(words: Sequence[str], ids: Sequence[int], stages: Mapping[str, Sequence[float]], number: float) -> Film:
    """A distribution on its way to one token: a frame for each stage, and one in which a random number falls.

    Args:
        words: the tokens' texts; the last may be all others, if they are cut off in the end.
        ids: of the tokens, in whose order the sampler lays the pieces side by side.
        stages: by title, the probability of each token; 0 where it is cut off. The last one is drawn from.
        number: the random number, from 0 to 1.
    """
    *_, last = stages.values()
    order = sorted(range(len(ids)), key=ids.__getitem__)
    ends = list(itertools.accumulate(last[i] for i in order))
    drawn = order[next(place for place, end in enumerate(ends) if number * ends[-1] < end)]
    titles = [*stages, f"the number {number:.3f} falls on {words[drawn]}"]
    frames = [*stages.values(), last]
    film = Film(f"Film of the probabilities of {len(words)} tokens in {len(frames)} stages: {'; '.join(titles)}.",
                90 + 20 * len(words), len(frames), seconds=2.2, still=len(stages) - 1)
    for row, word in enumerate(words):
        y, now = 12 + 20 * row, [frame[row] for frame in frames]
        film.text(90, y, word, anchor="end")
        film.box(96, y - 8, 400, 16, KEPT["facecolor"], grown=now)
        film.box(96, y - 8, 400 * last[row], 16, COLOURS[1], when=[i == len(stages) and row == drawn for i in range(len(frames))])
        shown = [f"{share:.1%}" if share else "cut off" for share in now]
        film.texts(WIDTH * POINTS - 8, y, shown, anchor="end")
    y, left = 22 + 20 * len(words), 96.0
    film.text(90, y + 8, "0 … 1", anchor="end")
    for row in order:
        share = last[row]
        if share:
            there = [i >= len(stages) - 1 for i in range(len(frames))]
            film.box(left, y, 400 * share, 16, COLOURS[1] if row == drawn else "none", when=there)
            if share > 0.05:
                letters = letters_on(COLOURS[1]) if row == drawn else INK
                film.text(left + 200 * share, y + 8, words[row], size=7.5, fill=letters, when=there)
            left += 400 * share
    falls = [(0.0, -12.0 if i < len(frames) - 1 else 0.0) for i in range(len(frames))]
    mark = 96 + 400 * number
    film.line((mark, y - 4), (mark, y + 20), path=falls, when=[i == len(frames) - 1 for i in range(len(frames))])
    film.clock(78 + 20 * len(words), titles)
    return film
