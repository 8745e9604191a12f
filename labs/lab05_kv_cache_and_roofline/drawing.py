"""Given: the predicted and the measured throughput in one picture, in the terminal or as SVG.

Knows two curves and where the ridge is; knows nothing of how they came about. Both axes are logarithmic.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROWS = 14
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 420, 80, 20, 40, 60


class Curves(NamedTuple):
    """Tokens per second by batch size, and the batch size at the ridge."""

    predicted: dict[int, float]
    measured: dict[int, float]
    ridge: float


def draw_in_terminal(curves: Curves) -> None:
    """Print the picture: o is measured, - the prediction, a column of : the ridge."""
    columns = max(40, min(72, shutil.get_terminal_size().columns - 12))
    x, y, marks = _scales(curves, columns - 1, ROWS - 1)
    grid = [[" "] * columns for _ in range(ROWS)]

    def put(batch: float, rate: float, sign: str) -> None:
        grid[ROWS - 1 - round(y(rate))][round(x(batch))] = sign

    if min(curves.predicted) <= curves.ridge <= max(curves.predicted):
        for row in grid:
            row[round(x(curves.ridge))] = ":"
    for (b0, r0), (b1, r1) in zip(list(curves.predicted.items()), list(curves.predicted.items())[1:], strict=False):
        for i in range(columns):
            share = i / columns
            put(b0 * (b1 / b0) ** share, r0 * (r1 / r0) ** share, "-")
    for batch, rate in curves.measured.items():
        put(batch, rate, "o")
    print(f"\ntokens/s   - predicted   o measured   : ridge, batch {curves.ridge:.1f}")
    labels = {ROWS - 1 - round(y(mark)): f"{mark:,}" for mark in marks}
    for number, row in enumerate(grid):
        print(f"{labels.get(number, ''):>9} |{''.join(row).rstrip()}")
    axis = [" "] * (columns + 4)
    for batch in curves.measured:
        axis[round(x(batch)) : round(x(batch)) + len(str(batch))] = str(batch)
    print(" " * 10 + "+" + "-" * columns)
    print(" " * 11 + "".join(axis).rstrip() + "   sequences in a step")


def write_svg(curves: Curves, path: Path) -> None:
    """Write the picture as an SVG file."""
    x, y, marks = _scales(curves, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)

    def at(batch: float, rate: float) -> str:
        return f"{LEFT + x(batch):.1f},{HEIGHT - BOTTOM - y(rate):.1f}"

    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        "<title>Decode throughput against batch size, predicted and measured</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<path d="M{LEFT},{TOP} V{bottom} H{right}" fill="none" stroke="black"/>',
    ]
    for mark in marks:
        height = bottom - y(mark)
        parts.append(f'<path d="M{LEFT},{height:.1f} H{right}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{mark:,}</text>')
    for batch in curves.measured:
        parts.append(f'<text x="{LEFT + x(batch):.1f}" y="{bottom + 20}" text-anchor="middle">{batch}</text>')
    if min(curves.predicted) <= curves.ridge <= max(curves.predicted):
        place = LEFT + x(curves.ridge)
        parts.append(f'<path d="M{place:.1f},{TOP} V{bottom}" stroke="#888888" stroke-dasharray="4 4"/>')
        parts.append(f'<text x="{place + 6:.1f}" y="{bottom - 10}" fill="#555555">ridge: batch {curves.ridge:.1f}</text>')
    for name, curve, colour, dash, place in (
        ("predicted ceiling", curves.predicted, "#b04a00", "6 4", 18), ("measured", curves.measured, "#0055aa", "none", 34)):
        points = " ".join(at(*point) for point in curve.items())
        line = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        parts.append(f'<polyline points="{points}" fill="none" {line}/>')
        parts.append(f'<text x="{LEFT + 12}" y="{place}" fill="{colour}">{name}</text>')
    for point in curves.measured.items():
        a, b = at(*point).split(",")
        parts.append(f'<circle cx="{a}" cy="{b}" r="4" fill="#0055aa"/>')
    parts += [
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 14}" text-anchor="middle">batch size (sequences in a step)</text>',
        f'<text x="18" y="{(TOP + bottom) / 2}" text-anchor="middle" transform="rotate(-90 18 {(TOP + bottom) / 2})">'
        "throughput (tokens per second)</text>",
        "</svg>",
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _scales(curves: Curves, width: float, height: float) -> tuple[Callable, Callable, list[int]]:
    """Batch → 0 to width, tokens per second → 0 to height, both logarithmic; and round rates to label."""
    rates = [*curves.predicted.values(), *curves.measured.values()]
    low, high = math.log(min(rates) / 1.3), math.log(max(rates) * 1.3)
    first, last = math.log(min(curves.predicted)), math.log(max(curves.predicted))
    marks = [step * 10**power for power in range(9) for step in (1, 2, 5) if low < math.log(step * 10**power) < high]
    return (
        lambda batch: (math.log(batch) - first) / ((last - first) or 1) * width,
        lambda rate: (math.log(rate) - low) / (high - low) * height,
        marks,
    )
