"""Pictures of attention: pairs that turn with the position, who reads whom, and with which weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Circle, Patch, Rectangle

from nano_qwen3_serving.pictures.card import COLOURS, FAINT, INK, PAPER, Picture, canvas, fill_of, write_in

WEIGHT = LinearSegmentedColormap.from_list("weight", [PAPER, COLOURS[5]])
UNSEEN: dict[str, Any] = {"facecolor": PAPER, "edgecolor": FAINT, "hatch": "///", "linewidth": 0.0}
MARKERS, LINES = "os^D", (COLOURS[5], COLOURS[6], COLOURS[2], COLOURS[7])

Points = Sequence[Sequence[float]]


def rotary_pairs(pairs: Mapping[str, Points], products: Mapping[int, Mapping[int, float]]) -> Picture:
    """Pairs of numbers as points that turn with the position, and products of turned queries and keys.

    Args:
        pairs: for each name the points, at the positions 0, 1, 2 …
        products: by distance in tokens: the product, by the query's position.
    """
    with canvas(4.0, panels=2, width_ratios=[1, 1.25]) as (figure, (circle, lines)):
        circle.add_patch(Circle((0, 0), 1, facecolor="none", edgecolor=FAINT))
        for i, (name, points) in enumerate(pairs.items()):
            size = 1 + 0.32 * i  # each pair on a circle of its own
            circle.add_patch(Circle((0, 0), size, facecolor="none", edgecolor=FAINT))
            style: dict[str, Any] = {"color": LINES[i], "marker": MARKERS[i], "linestyle": ""}
            circle.plot([size * x for x, _ in points], [size * y for _, y in points], **style, label=name)
            for position, (x, y) in enumerate(points):
                circle.text((size - 0.17) * x, (size - 0.17) * y, str(position), ha="center", va="center", fontsize=7)
        circle.set(aspect="equal", xlabel="first number", ylabel="second number", xticks=[], yticks=[])
        circle.set_title("a pair at the positions 0, 1, 2 …")
        circle.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), fontsize=9)
        for i, (distance, found) in enumerate(products.items()):
            style = {"color": LINES[i % len(LINES)], "marker": MARKERS[i % len(MARKERS)], "markevery": 5}
            lines.plot(list(found), list(found.values()), **style, linewidth=1.2, label=str(distance))
        lines.set(xlabel="position of the query", ylabel="product of query and key")
        lines.set_title("query and key, moved along the text")
        lines.legend(title="tokens apart", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4)
    return Picture(
        figure, f"Left, points of {len(pairs)} pairs on circles, one for each position. Right, lines of the product of query "
        f"and key over the query's position, for {len(products)} distances.")


def heads_sharing(read: Sequence[int], num_kv_heads: int) -> Picture:
    """Query heads in a row above the KV heads, with a line from each to the one that it reads.

    Args:
        read: for each query head the KV head.
        num_kv_heads: of the layer.
    """
    names = [f"KV {i}" for i in range(num_kv_heads)]
    with canvas(2.3) as (figure, axes):
        places = [(len(read) * (2 * i + 1) / (2 * num_kv_heads) - 0.5) for i in range(num_kv_heads)]
        for name, place in zip(names, places, strict=True):
            axes.add_patch(Rectangle((place - 0.8, 0), 1.6, 0.7, **fill_of(names, name)))
            write_in(axes, place, 0.35, f"{name}: keys and values")
        for head, kv_head in enumerate(read):
            axes.plot([head, places[kv_head]], [2, 0.7], color=INK, linewidth=0.8)
            axes.add_patch(Rectangle((head - 0.35, 2), 0.7, 0.7, **fill_of(names, names[kv_head])))
            write_in(axes, head, 2.35, f"q {head}")
        axes.set(xlim=(-0.6, len(read) - 0.4), ylim=(-0.1, 2.8), xticks=[], yticks=[0.35, 2.35])
        axes.set_yticklabels(["KV heads", "query heads"])
        axes.tick_params(left=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return Picture(figure, f"{len(read)} query heads above {num_kv_heads} KV heads; a line leads from each to the one it reads.")


def attention_weights(panels: Mapping[str, Points], labels: Sequence[str]) -> Picture:
    """A heat map for each head: a row for each query, a column for each key, the weight in percent.

    Args:
        panels: by title, the weights [tokens, tokens].
        labels: of the tokens.
    """
    square = min(0.34, 6.2 / len(panels) / len(labels))
    below = 0.08 * max(map(len, labels))  # the labels stand upright there
    with canvas(2.1 + below + square * len(labels), panels=len(panels), squeeze=False) as (figure, grid):
        for axes, (title, weights) in zip(grid[0], panels.items(), strict=True):
            for row, of_query in enumerate(weights):
                for column, weight in enumerate(of_query):
                    _weight(axes, row, column, float(weight))
            edge = len(labels) - 0.5
            axes.set(xlim=(-0.5, edge), ylim=(edge, -0.5), aspect="equal", anchor="N", xlabel="key: read from")
            axes.set_xticks(range(len(labels)), labels, rotation=90)
            axes.set_yticks(range(len(labels)), labels if axes is grid[0, 0] else [""] * len(labels))
            axes.set_title(title)
        grid[0, 0].set_ylabel("query: who reads")
        shade = Patch(facecolor=WEIGHT(0.5), edgecolor=INK, label="weight in percent (empty: below 0.5)")
        keys = [shade, Patch(**UNSEEN, label="exactly 0")]
        figure.legend(handles=keys, loc="outside lower right", ncols=2)
    return Picture(figure, f"Heat maps of attention weights, {len(labels)} tokens by {len(labels)}: {', '.join(panels)}.")


def _weight(axes: Axes, row: int, column: int, weight: float) -> None:
    """One square; a number in it from 1 percent on."""
    place = (column - 0.5, row - 0.5)
    if weight == 0:
        axes.add_patch(Rectangle(place, 1, 1, **UNSEEN))
        return
    axes.add_patch(Rectangle(place, 1, 1, facecolor=WEIGHT(weight), edgecolor=FAINT, linewidth=0.4))
    if weight >= 0.005:
        colour = PAPER if weight > 0.6 else INK
        axes.text(column, row, f"{100 * weight:.0f}", ha="center", va="center", fontsize=7, color=colour)
