"""Pictures of attention: pairs that turn with the position, which head reads which KV head, and attention weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import dist
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Patch, Rectangle
from torch import Tensor

from nano_qwen3_serving.model.layers import RotaryEmbedding
from nano_qwen3_serving.model.operators import Operators
from nano_qwen3_serving.pictures.card import COLOURS, FAINT, INK, PAPER, Picture, canvas, fill_of, letters_on, write_in

WEIGHT = COLOURS[5]  # over the paper, as strong as the weight is large
UNSEEN: dict[str, Any] = {"facecolor": PAPER, "edgecolor": FAINT, "hatch": "///", "linewidth": 0.0}
MARKERS, LINES = "os^D", (COLOURS[5], COLOURS[6], COLOURS[2], COLOURS[7])

Points = Sequence[Sequence[float]]


def turned(head: Tensor, rotary: Any, positions: Sequence[int]) -> Tensor:
    """The engine's rotary embedding of one head at some positions, [positions, head_dim]; brought to length √head_dim."""
    heads, ones = head.expand(len(positions), 1, -1), torch.ones(len(head))
    return Operators().norm_and_rotate(heads, ones, 0.0, rotary.cos, rotary.sin, torch.tensor(list(positions)))[:, 0]


def turned_by_hand(head: Sequence[float], theta: float, positions: Sequence[int]) -> Tensor:
    """A small head of your own, turned without being brought to another length: [positions, head_dim]."""
    rotary = RotaryEmbedding(head_dim=len(head), theta=theta, max_positions=max(positions) + 1)
    rotary.finalize_weights(torch.device("cpu"), torch.float32)
    numbers = torch.tensor(head, dtype=torch.float32)
    return turned(numbers, rotary, positions) * numbers.square().mean().sqrt()


def products_apart(network: Any, positions: Sequence[int], distances: Sequence[int]) -> dict[int, dict[int, float]]:
    """Products of a head as query with itself as key so many tokens behind: by distance, by the query's position.

    The head's numbers are the sines of 0, 1, 2, ...: no matter which, as long as they differ.

    Args:
        network: the engine's; its rotary embedding turns them.
        positions: of the query.
        distances: of the key, in tokens.
    """
    rotary = network.model.rotary
    head = torch.arange(rotary.head_dim).sin()
    query = turned(head, rotary, positions)
    products = {}
    for apart in distances:
        key = turned(head, rotary, [position - apart for position in positions])
        products[apart] = dict(zip(positions, (query * key).sum(dim=1).tolist(), strict=True))
    return products


def rotary_pairs(pairs: Mapping[str, Points], products: Mapping[int, Mapping[int, float]]) -> Picture:
    """Pairs of numbers as points that turn with the position, and products of turned queries and keys.

    Args:
        pairs: for each name the points, at the positions 0, 1, 2 …
        products: by distance in tokens: the product, by the query's position.
    """
    with canvas(3.6, panels=len(pairs) + 1, width_ratios=[1] * len(pairs) + [1.2]) as (figure, (*circles, lines)):
        for circle, (name, points) in zip(circles, pairs.items(), strict=True):
            circle.add_patch(Circle((0, 0), 1, facecolor="none", edgecolor=FAINT))
            circle.plot(*zip(*points, strict=True), color=LINES[0], marker="o", linestyle="")
            crowded = len(points) > 1 and dist(points[0], points[1]) < 0.3  # then only the ends are numbered
            for position, (x, y) in enumerate(points):
                circle.plot([0, x], [0, y], color=FAINT, linewidth=0.6, zorder=0)
                if not crowded or position in (0, len(points) - 1):
                    circle.text(1.22 * x, 1.22 * y, str(position), ha="center", va="center", fontsize=8)
            circle.set(aspect="equal", xlabel="first number", xlim=(-1.4, 1.4), ylim=(-1.4, 1.4))
            circle.set(xticks=[-1, 0, 1], yticks=[-1, 0, 1])
            circle.set_title(name, fontsize=9)
        circles[0].set_ylabel("second number")
        for i, (distance, by_position) in enumerate(products.items()):
            style: dict[str, Any] = {"color": LINES[i % len(LINES)], "marker": MARKERS[i % len(MARKERS)], "markevery": 5}
            lines.plot(list(by_position), list(by_position.values()), **style, linewidth=1.2, label=str(distance))
        lines.set(xlabel="position of the query", ylabel="product of query and key")
        lines.set_title("query and key, moved along the text", fontsize=9)
        lines.legend(title="tokens apart", loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4, fontsize=8)
    return Picture(
        figure, f"Left, points of {len(pairs)} pairs on circles of radius 1, one for each position. Right, lines of the product "
        f"of query and key over the query's position, for {len(products)} distances.")


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
    square = min(0.34, 5.4 / len(panels) / len(labels))
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
        shade = Patch(facecolor=WEIGHT, alpha=0.5, edgecolor=INK, label="weight in percent (empty: below 0.5)")
        keys = [shade, Patch(**UNSEEN, label="exactly 0")]
        figure.legend(handles=keys, loc="outside lower right", ncols=2)
    return Picture(figure, f"Heat maps of attention weights, {len(labels)} tokens by {len(labels)}: {', '.join(panels)}.")


def _weight(axes: Axes, row: int, column: int, weight: float) -> None:
    """One square; a number in it from 1 percent on."""
    place = (column - 0.5, row - 0.5)
    if weight == 0:
        axes.add_patch(Rectangle(place, 1, 1, **UNSEEN))
        return
    axes.add_patch(Rectangle(place, 1, 1, facecolor=WEIGHT, alpha=weight, edgecolor="none"))
    axes.add_patch(Rectangle(place, 1, 1, facecolor="none", edgecolor=FAINT, linewidth=0.4))
    if weight >= 0.005:
        colour = letters_on(WEIGHT) if weight > 0.6 else INK
        axes.text(column, row, f"{100 * weight:.0f}", ha="center", va="center", fontsize=7, color=colour)
