"""The map at the top of each notebook: the way from a call to a token, and where on it the reader is.

    python -m nano_qwen3_serving.pictures.journey notebooks/*.ipynb   # draws it anew in each
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

from nano_qwen3_serving.observe.files import write_atomically
from nano_qwen3_serving.pictures.card import COLOURS, FAINT, INK, PAPER, POINTS, WIDTH, document, letters_on
from nano_qwen3_serving.pictures.film import SIZE

WAY = ("generate", "tokenise", "schedule", "blocks", "model", "attention", "sampler", "text", "stream")
LOOP = ("schedule", "sampler")  # what happens again in every step
ALT = "Map of the way from a call to a token"


About = dict[str, list[str]]
"""Part of the way → the numbers of the notebooks that are about it."""


def about_what(folder: Path) -> About:
    """What a folder's notebooks are about, by `way` in their metadata: `"way": ["blocks"]`."""
    about: About = {part: [] for part in WAY}
    for path in sorted(folder.glob("[0-9]*.ipynb")):
        for part in json.loads(path.read_text(encoding="utf-8"))["metadata"].get("way", ()):
            about[part].append(path.stem[:2])
    return about


def svg(notebook: str, about: About) -> str:
    """The map, with the parts lit that the notebook of this number is about."""
    gap, top, high = 9.0, 10.0, 30.0
    wide = (WIDTH * POINTS - 12 - gap * (len(WAY) - 1)) / len(WAY)
    left = {part: 6 + i * (wide + gap) for i, part in enumerate(WAY)}
    drawn = [f'<rect width="{WIDTH * POINTS:g}" height="82" fill="{PAPER}"/>']
    for part, numbers in about.items():
        x, here = left[part], notebook in numbers
        fill, edge, letters = (COLOURS[1], INK, letters_on(COLOURS[1])) if here else ("none", FAINT, INK)
        drawn.append(f'<rect x="{x:.1f}" y="{top}" width="{wide:.1f}" height="{high}" rx="5" fill="{fill}" stroke="{edge}"/>')
        drawn.append(_text(x + wide / 2, top + high / 2, part, letters, bold=here))
        drawn.append(_text(x + wide / 2, top + high + 10, " ".join(numbers), INK, bold=here, size=7.5))
        if part != WAY[0]:
            drawn.append(f'<path d="M{x - gap:.1f} {top + high / 2}h{gap - 3:.1f}m-3 -3l3 3l-3 3" fill="none" stroke="{INK}"/>')
    begin, end = left[LOOP[0]] + wide / 2, left[LOOP[1]] + wide / 2
    drawn.append(f'<path d="M{end:.1f} {top + high + 17}v7H{begin:.1f}v-7m-3 4l3 -4l3 4" fill="none" stroke="{INK}"/>')
    drawn.append(_text((begin + end) / 2, top + high + 32, "again in every step: one token more for each request", INK, size=8))
    drawn.append(_text(6, top + high + 32, "numbers: notebooks", INK, size=7.5, anchor="start"))
    return document(f'viewBox="0 0 {WIDTH * POINTS:g} 82"', "\n".join(drawn), alternative(notebook, about))


def alternative(notebook: str, about: About) -> str:
    """The text in place of the map."""
    here = [part for part, numbers in about.items() if notebook in numbers]
    return f"{ALT}: {', '.join(WAY)}. You are here: {' and '.join(here)}."


def markdown(notebook: str, about: About) -> str:
    """The map as a line of a markdown cell: whole, so that no page has to find a file beside the notebook."""
    data = base64.b64encode(svg(notebook, about).encode()).decode()
    return f"![{alternative(notebook, about)}](data:image/svg+xml;base64,{data})"


def _text(x: float, y: float, text: str, fill: str, bold: bool = False, size: float = SIZE, anchor: str = "middle") -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (f'<text x="{x:.1f}" y="{y + 0.36 * size:.1f}" font-size="{size:g}" text-anchor="{anchor}" fill="{fill}"{weight}>'
            f"{text}</text>")


def main(paths: list[str]) -> None:
    """Draws the map anew in each notebook, in the cell that holds it."""
    for path in map(Path, paths):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        (cell,) = [cell for cell in notebook["cells"] if "".join(cell["source"]).startswith(f"![{ALT}")]
        cell["source"] = [markdown(path.stem[:2], about_what(path.parent))]
        write_atomically(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", mode=0o644)


if __name__ == "__main__":
    main(sys.argv[1:])
