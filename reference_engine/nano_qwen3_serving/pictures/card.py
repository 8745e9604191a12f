"""A picture that says what to see, and is checked against its own data.

Knows how every picture looks (colours, hatches, sizes, a card of its own that turns dark where pages are dark)
and how a notebook shows it, as SVG; knows nothing of engines.
"""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator

WIDTH = 8.0  # inches: as wide as GitHub shows a notebook's output
POINTS = 72  # of an SVG to the inch
PAPER, INK, FAINT = "#fcfcfa", "#222222", "#b8b8b4"
DARK = {PAPER: "#1d2125", INK: "#e6e6e1", FAINT: "#676d73"}  # the same three where the page is dark
NAMES = {PAPER: "--paper", INK: "--ink", FAINT: "--faint"}

# Okabe and Ito's palette, and a brown: told apart with any kind of colour blindness; hatches repeat what they say.
COLOURS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#0072b2", "#d55e00", "#8c6d31")
HATCHES = ("", "///", "---", "\\\\\\", "xxx", "|||", "++", "//")  # no dots: as SVG they take a hundred kilobytes
FONTS = "DejaVu Sans, Verdana, sans-serif"  # Verdana's letters are as wide as those that the layout is made for

LOOK: dict[Any, Any] = {
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "savefig.facecolor": PAPER, "text.color": INK,
    "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "font.size": 10,
    "font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.6,
    "axes.titlesize": 10, "axes.titlelocation": "left", "legend.frameon": False, "figure.constrained_layout.use": True,
    "svg.fonttype": "none", "svg.hashsalt": "nano_qwen3_serving",  # letters stay letters; the same ids in every run
}


class Card(ABC):
    """What a notebook shows as SVG: something drawn, and one sentence of what to see in it.

    Args:
        shows: the kind of picture and its axes, for readers who do not see it.
    """

    def __init__(self, shows: str) -> None:
        self.shows = shows
        self.sentence = ""

    def says(self, sentence: str, holds: bool) -> Card:
        """Writes the sentence over the picture.

        Args:
            sentence: what to see.
            holds: whether the data of the picture show it.

        Raises:
            AssertionError: the data do not show it.
        """
        assert holds, f"the picture does not show what it says: {sentence}"
        self.sentence = sentence
        return self

    @property
    def alternative(self) -> str:
        """The text in place of the picture."""
        return f"{self.shows} {self.sentence}".strip()

    @abstractmethod
    def svg(self) -> str:
        """The picture, complete in itself: no script, and nothing to be loaded."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"image/svg+xml": self.svg(), "text/plain": self.alternative}, {"image/svg+xml": {"alt": self.alternative}}


class Picture(Card):
    """A figure of matplotlib's, what it shows, and one sentence of what to see in it.

    Args:
        figure: drawn.
        shows: the kind of picture and its axes, for readers who do not see it.
    """

    def __init__(self, figure: Figure, shows: str) -> None:
        super().__init__(shows)
        self.figure = figure

    def svg(self) -> str:
        """The figure under its sentence."""
        with mpl.rc_context(LOOK):
            if self.sentence:
                lines = wrapped(self.sentence, 11, 0.93 * WIDTH * POINTS)
                self.figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=11, fontweight="bold")
            out = io.StringIO()
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            self.figure.savefig(out, format="svg", metadata=nothing)
        drawn = out.getvalue()
        size, body = re.search(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>(.*)</svg>', drawn, re.DOTALL).groups()  # type: ignore[union-attr]
        return document(size, _smaller(body), self.alternative)


def document(size: str, body: str, alternative: str, style: str = "") -> str:
    """An SVG in the three colours of the card, which change places with their dark ones where the page is dark.

    Args:
        size: its `viewBox="…"`.
        body: what is drawn in it.
        alternative: the text in place of the picture.
        style: more rules.
    """
    for colour, name in NAMES.items():
        body = body.replace(colour, f"var({name},{colour})")
    light, dark = (";".join(f"{NAMES[colour]}:{shade}" for colour, shade in shades)
                   for shades in (zip(NAMES, NAMES, strict=True), DARK.items()))
    rules = f".card{{{light}}}@media(prefers-color-scheme:dark){{.card{{{dark}}}}}{style}"
    width, height = re.findall(r"[\d.]+", size)[2:]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" class="card" {size} '
        f'width="{float(width) * 96 / POINTS:g}" height="{float(height) * 96 / POINTS:g}" role="img" '
        f'aria-label="{escape(alternative)}" font-family="{FONTS}">'
        f"<style>{rules}</style>\n{body.strip()}\n</svg>")


def _smaller(body: str) -> str:
    """Matplotlib's SVG without what a browser does not need: comments, ids of groups, the name of the font."""
    body = re.sub(r"<!--.*?-->\n?|<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="(?:figure|axes|patch|text|line2d|legend|matplotlib\.axis|xtick|ytick)\w*">', "<g>", body)
    body = re.sub(r"\s*font-family: [^;\"]*;?|; stroke-linejoin: miter", "", body)
    body = re.sub(r"font: (?:bold |700 )?([\d.]+)px [^;\"]*", lambda font: (
        f"font-size: {font[1]}px" + ("; font-weight: bold" if "bold" in font[0] or "700" in font[0] else "")), body)
    body = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d+\.\d{2})\d+", r"\1", tag[0]), body)
    body = re.sub(r' transform="rotate\(-0 [^"]*"|(?<= )\n(?=L|Q|C|z)|\n(?=z|" style)', "", body)
    return re.sub(r"\n\s*", "\n", body)


def wrapped(text: str, size: float, width: float) -> list[str]:
    """The text in lines that are as full as they can be.

    Args:
        text: in bold letters.
        size, width: of letters and of lines, in points.
    """
    font, lines = FontProperties(family="DejaVu Sans", weight="bold", size=size), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_to_path.get_text_width_height_descent(longer, font, False)[0] > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


@contextmanager
def canvas(height: float, panels: int = 1, **subplots: Any) -> Iterator[tuple[Figure, Any]]:
    """A figure and its axes (one, or an array of them) to draw on, in the look of all pictures.

    Args:
        height: inches.
        panels: axes side by side.
        subplots: as matplotlib's `Figure.subplots` takes them.
    """
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(WIDTH, height), dpi=POINTS)
        yield figure, figure.subplots(**({"ncols": panels} | subplots))


def fill_of(names: Sequence[str], name: str) -> dict[str, Any]:
    """Colour and hatch of one of `names`: the same wherever the same names are drawn."""
    i = list(names).index(name) % len(COLOURS)
    return filled(COLOURS[i], HATCHES[i])


def filled(colour: str, hatch: str = "") -> dict[str, Any]:
    """How something in one of COLOURS is drawn; its hatch can be read in a light page and in a dark one."""
    return {"facecolor": colour, "hatch": hatch, "hatchcolor": letters_on(colour), "edgecolor": INK, "linewidth": 0.6}


def letters_on(colour: str) -> str:
    """The colour of letters that can be read on one of COLOURS, in a light page and in a dark one."""
    return "#ffffff" if colour in (COLOURS[5], COLOURS[7]) else "#161616"


def write_in(axes: Axes, x: float, y: float, text: str) -> None:
    """Small text in the middle of something filled, readable over its hatch."""
    box = {"boxstyle": "square,pad=0.15", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.8}
    axes.text(x, y, text, ha="center", va="center", fontsize=8, bbox=box)


def tick_on(axes: Axes, x: float, row: float) -> None:
    """A mark across a bar, with an edge of paper: it can be read on the bar and beside it."""
    edge = withStroke(linewidth=3.0, foreground=PAPER)
    axes.vlines(x, row - 0.38, row + 0.38, INK, linewidth=1.6, path_effects=[edge])


def whole_numbers(axes: Axes, axis: str) -> None:
    """Ticks at whole numbers only."""
    getattr(axes, f"{axis}axis").set_major_locator(MaxNLocator(integer=True))
