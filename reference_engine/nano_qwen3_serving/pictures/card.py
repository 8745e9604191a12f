"""A picture that says what to see, and is checked against its own data.

Knows how every picture looks (colours, hatches, sizes, the background that holds in a light and in a dark
page) and how a notebook shows it; knows nothing of engines.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

WIDTH = 8.0  # inches: as wide as GitHub shows a notebook's output
DPI = 100
PAPER, INK, FAINT = "#fcfcfa", "#222222", "#b8b8b4"

# Okabe and Ito's palette, and a brown: told apart with any kind of colour blindness; hatches repeat what they say.
COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#0072b2", "#d55e00", "#8c6d31")
HATCHES = ("", "///", "...", "\\\\\\", "xxx", "|||", "---", "++")

LOOK: dict[Any, Any] = {
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER, "text.color": INK,
    "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "font.size": 10,
    "font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.6,
    "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False, "figure.constrained_layout.use": True,
}


class Picture:
    """A figure, what it shows, and one sentence of what to see in it.

    A notebook shows it as PNG; the text alternative is what it shows and says.

    Args:
        figure: drawn.
        shows: the kind of picture and its axes, for who does not see it.
    """

    def __init__(self, figure: Figure, shows: str) -> None:
        self.figure = figure
        self.shows = shows
        self.sentence = ""

    def says(self, sentence: str, holds: bool) -> Picture:
        """Writes the sentence over the picture.

        Args:
            sentence: what to see.
            holds: whether the data of the picture show it.

        Raises:
            AssertionError: they do not.
        """
        assert holds, f"the picture does not show what it says: {sentence}"
        self.sentence = sentence
        with mpl.rc_context(LOOK):
            self.figure.suptitle(textwrap.fill(sentence, 80), x=0.01, ha="left", fontsize=11, fontweight="bold")
        return self

    @property
    def alternative(self) -> str:
        """The text in place of the picture."""
        return f"{self.shows} {self.sentence}".strip()

    def png(self) -> bytes:
        """The picture as a file's contents."""
        with mpl.rc_context(LOOK):
            FigureCanvasAgg(self.figure)
            out = io.BytesIO()
            self.figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
        return out.getvalue()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"image/png": self.png(), "text/plain": self.alternative}, {"image/png": {"alt": self.alternative}}


@contextmanager
def canvas(height: float, panels: int = 1, **subplots: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure and its axes (one, or an array of them) to draw on, in the look of all pictures.

    Args:
        height: inches.
        panels: axes side by side.
        subplots: as matplotlib's `Figure.subplots` takes them.
    """
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        yield figure, figure.subplots(**({"ncols": panels} | subplots))


def fill_of(names: Sequence[str], name: str) -> dict[str, Any]:
    """Colour and hatch of one of `names`: the same wherever the same names are drawn."""
    i = list(names).index(name) % len(COLOURS)
    return {"facecolor": COLOURS[i], "hatch": HATCHES[i], "edgecolor": INK, "linewidth": 0.6}


def write_in(axes: Axes, x: float, y: float, text: str) -> None:
    """Small text in the middle of something filled, readable over its hatch."""
    box = {"boxstyle": "round,pad=0.15", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.8}
    axes.text(x, y, text, ha="center", va="center", fontsize=8, bbox=box)


def whole_numbers(axes: Axes, axis: str) -> None:
    """Ticks at whole numbers only."""
    getattr(axes, f"{axis}axis").set_major_locator(MaxNLocator(integer=True))
