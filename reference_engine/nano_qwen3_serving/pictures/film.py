"""An animated picture without a script: shapes that appear, move and grow from frame to frame, for ever.

Knows shapes, frames and CSS; knows nothing of engines. Where nothing moves (on paper, or where a reader has
asked for less motion) the frame `still` is shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from html import escape
from typing import Any

from nano_qwen3_serving.pictures.card import COLOURS, FAINT, INK, PAPER, POINTS, WIDTH, Card, document, letters_on, wrapped

SIZE = 9.0  # of letters, in points
HOLD = 2  # frames that the last one lasts longer
MARK = "\0"  # in a rule's name, until the film is written
Place = tuple[float, float]


def colour_of(names: Sequence[str], name: str) -> str:
    """The colour that `name` has in the other pictures of the same names."""
    return COLOURS[list(names).index(name) % len(COLOURS)]


class Film(Card):
    """Shapes on a card as wide as every picture.

    Each change is given as one value per frame: `when` (is the shape visible?), `path` (how far has it moved?) and `grown`
    (which share of its width or height is drawn?). A shape that does not change needs none.

    Args:
        shows: what the film shows, for readers who do not see it.
        height: of what is drawn, in points; the sentence comes on top.
        frames: of the film.
        seconds: that each lasts.
        still: the frame shown where nothing moves.
    """

    def __init__(self, shows: str, height: float, frames: int, seconds: float = 1.0, still: int = 0) -> None:
        super().__init__(shows)
        self.height, self.frames, self.seconds, self.still = height, frames, seconds, still
        self._shapes: list[str] = []
        self._rules: dict[tuple[str, tuple[str, ...]], str] = {}

    def box(self, x: float, y: float, width: float, height: float, fill: str = "none", edge: str = INK, *,
            upwards: bool = False, **moves: Any) -> None:
        """A rectangle; one that grows does so to the right, or `upwards` from its lower edge."""
        shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" fill="{fill}" stroke="{edge}" '
        if moves.get("grown") is None:
            self._add(f'{shape}stroke-width=".8"', "/>", **moves)
            return
        x, y, bottom = (x, y + height, -height) if upwards else (x, y, 0.0)
        self._shapes.append(f'<g transform="translate({x:g} {y:g})">')
        self._add(f'<rect y="{bottom:g}" width="{width:g}" height="{height:g}" fill="{fill}"', "/>", upwards=upwards, **moves)
        self._shapes.append("</g>")

    def text(self, x: float, y: float, text: str, *, anchor: str = "middle", size: float = SIZE, bold: bool = False,
             fill: str = INK, **moves: Any) -> None:
        """A line of text, whose middle (or start, or end) stands at x, and its own middle at y."""
        weight = ' font-weight="bold"' if bold else ""
        self._add(
            f'<text x="{x:g}" y="{y + 0.36 * size:g}" font-size="{size:g}" text-anchor="{anchor}" fill="{fill}"{weight}',
            f">{escape(text, quote=False)}</text>", **moves)

    def texts(self, x: float, y: float, texts: Sequence[str], **more: Any) -> None:
        """A line of text whose words change from frame to frame."""
        for text in dict.fromkeys(texts):
            if text:
                self.text(x, y, text, when=[other == text for other in texts], **more)

    def typed(self, x: float, y: float, pieces: Sequence[tuple[str, Sequence[bool]]], size: float = SIZE) -> None:
        """A line of text that starts at x, in pieces that appear each in its own frames."""
        spans: list[str] = []
        for piece, when in pieces:
            there = self._rule("fill-opacity", [f"{int(shown)}" for shown in when])
            spans.append(f'<tspan class="m" fill-opacity="{int(when[self.still])}" style="animation-name:{there}">'
                         f"{escape(piece, quote=False)}</tspan>")
        self._shapes.append(f'<text x="{x:g}" y="{y + 0.36 * size:g}" font-size="{size:g}" fill="{INK}">{"".join(spans)}</text>')

    def line(self, start: Place, end: Place, edge: str = INK, **moves: Any) -> None:
        """A straight line."""
        (x1, y1), (x2, y2) = start, end
        self._add(f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" stroke="{edge}" fill="none"', "/>", **moves)

    def tile(self, x: float, y: float, width: float, height: float, fill: str, label: str, **moves: Any) -> None:
        """A coloured box with a word in it."""
        self.box(x, y, width, height, fill, **moves)
        self.text(x + width / 2, y + height / 2, label, fill=letters_on(fill), size=min(SIZE, 0.75 * height), **moves)

    def clock(self, y: float, labels: Sequence[str], left: float = 10, right: float = WIDTH * POINTS - 10) -> None:
        """A line on which a mark moves on from frame to frame, and above it what the frame is called."""
        step = (right - left) / max(1, self.frames - 1)
        self.line((left, y), (right, y), FAINT)
        self.box(left - 3, y - 3, 6, 6, INK, path=[(step * frame, 0) for frame in range(self.frames)])
        self.texts(left - 3, y - 13, labels, anchor="start", bold=True)

    def svg(self) -> str:
        """The film under its sentence."""
        lines = wrapped(self.sentence, 11, 0.93 * WIDTH * POINTS) if self.sentence else []
        top, body = 8 + 15 * len(lines), "\n".join(self._shapes)
        mark = "k" + hashlib.sha256((body + str(self._rules)).encode()).hexdigest()[:5]  # two films may share a page
        title = "".join(f'<text x="6" y="{15 + 15 * i}" font-size="11" font-weight="bold" fill="{INK}">'
                        f"{escape(line, quote=False)}</text>" for i, line in enumerate(lines))
        width, height = WIDTH * POINTS, self.height + top
        paper = f'<rect width="{width:g}" height="{height:g}" fill="{PAPER}"/>'
        drawn = f'{paper}{title}\n<g transform="translate(0 {top})">\n{body.replace(MARK, mark)}\n</g>'
        return document(f'viewBox="0 0 {width:g} {height:g}"', drawn, self.alternative, self._style(mark))

    def _add(self, head: str, tail: str, when: Sequence[bool] | None = None, path: Sequence[Place] | None = None,
             grown: Sequence[float] | None = None, upwards: bool = False) -> None:
        """Puts a shape on the card, with the rules by which it changes, and as it is in the still."""
        names, fixed = [], ""
        if when is not None and len(set(when)) > 1:
            names.append(self._rule("opacity", [f"{int(there)}" for there in when]))
            fixed += f' opacity="{int(when[self.still])}"'
        elif when is not None and not when[0]:
            return
        scale = "scale(1,{:g})" if upwards else "scale({:g},1)"
        turns = ([f"translate({x:g}px,{y:g}px)" for x, y in path] if path else []) or [scale.format(g) for g in grown or []]
        if turns:
            names.append(self._rule("transform", turns))
            fixed += f' transform="{turns[self.still].replace("px", "")}"'
        moved = f' class="m" style="animation-name:{",".join(names)}"' if names else ""
        self._shapes.append(head + fixed + moved + tail)

    def _rule(self, what: str, values: Sequence[str]) -> str:
        assert len(values) == self.frames, f"{len(values)} values for {self.frames} frames"
        return self._rules.setdefault((what, tuple(values)), f"{MARK}{len(self._rules)}")

    def _style(self, mark: str) -> str:
        """The keyframes: a value holds for its frame; a move takes a quarter of the next one, all else is at once."""
        total = self.frames + HOLD
        rules = [f".m{{animation:{total * self.seconds:g}s linear infinite}}",
                 "@media(prefers-reduced-motion:reduce){.m{animation:none!important}}"]
        for (what, values), name in self._rules.items():
            stops, takes = [(0.0, values[0])], 0.25 if what == "transform" else 0.01
            for frame in range(1, self.frames):
                if values[frame] != values[frame - 1]:
                    stops += [(100 * frame / total, values[frame - 1]), (100 * (frame + takes) / total, values[frame])]
            stops.append((100.0, values[-1]))
            frames = "".join(f"{at:.2f}%{{{what}:{value}}}" for at, value in stops)
            rules.append(f"@keyframes {name.replace(MARK, mark)}{{{frames}}}")
        return "".join(rules)
