"""A picture of waiting: from a request's arrival to its first token, and from each token to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.patches import Patch, Rectangle

from nano_qwen3_serving.pictures.card import INK, PAPER, Picture, canvas, write_in
from nano_qwen3_serving.pictures.schedule import PROMPT, TOKEN

MARK: dict[str, Any] = {"marker": "o", "markersize": 7, "color": INK, "markeredgecolor": PAPER}  # seen on a bar and beside it


def latencies(arrivals: Mapping[str, float], tokens: Mapping[str, Sequence[float]]) -> Picture:
    """A row for each request: a bar for its TTFT, one for each gap between tokens, and a mark at each token.

    Args:
        arrivals: when each request arrived, in milliseconds.
        tokens: when each of its tokens came.
    """
    with canvas(1.5 + 0.55 * len(arrivals)) as (figure, axes):
        for row, (name, arrival) in enumerate(arrivals.items()):
            for begin, end in pairwise([arrival, *tokens[name]]):
                fill = PROMPT if begin == arrival else TOKEN
                axes.add_patch(Rectangle((begin, row - 0.3), end - begin, 0.6, **fill))
                write_in(axes, (begin + end) / 2, row, f"{end - begin:g}")
            axes.plot(tokens[name], [row] * len(tokens[name]), linestyle="none", **MARK)
        axes.set(xlim=(-1, max(max(times) for times in tokens.values()) + 2), ylim=(len(arrivals) - 0.4, -0.6),
                 xlabel="milliseconds", ylabel="request")
        axes.set_yticks(range(len(arrivals)), list(arrivals))
        keys = [Patch(**PROMPT, label="TTFT"), Patch(**TOKEN, label="a gap between two tokens")]
        keys.append(axes.plot([], [], linestyle="none", **MARK, label="a token")[0])
        figure.legend(handles=keys, loc="outside lower right", ncols=3)
    return Picture(figure, f"Bars over time for {len(arrivals)} requests: the wait for the first token, then each gap.")
