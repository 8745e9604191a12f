"""Over the clock: when one request's tokens are computed, and when streams hear of theirs; and a film of these streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from nano_qwen3_serving.outputs import RequestOutput
from nano_qwen3_serving.pictures.card import FAINT, INK, PAPER, Picture, canvas, fill_of
from nano_qwen3_serving.pictures.film import Film, colour_of
from nano_qwen3_serving.pictures.schedule import PROMPT, TOKEN

MILLISECONDS = 1000
GENERATED: dict[str, Any] = {"marker": "o", "markersize": 6, "markerfacecolor": PAPER, "markeredgecolor": INK}
ASKED: dict[str, Any] = {"marker": ">", "markersize": 8, "markerfacecolor": INK, "markeredgecolor": INK}


def tokens_over_time(steps: Sequence[Mapping[str, Any]], request: str, texts: Sequence[str], arrival: float) -> Picture:
    """A row for each token of one request, a bar for the step that computes it, a ring where it is generated.

    Args:
        steps: the flight recorder's.
        request: its id.
        texts: of its tokens, prompt and output.
        arrival: seconds on the engine's clock; the picture counts milliseconds from there.
    """
    rings: list[tuple[float, int]] = []
    with canvas(1.4 + 0.24 * len(texts)) as (figure, axes):
        for begin, end, chunk in _chunks(steps, request, arrival):
            fill = PROMPT if chunk["start"] == 0 else TOKEN
            after = chunk["start"] + chunk["num_tokens"]
            for row in range(chunk["start"], after):
                axes.add_patch(Rectangle((begin, row - 0.4), end - begin, 0.8, **fill))
            if chunk["samples"]:
                rings.append((end, after))
        axes.plot(*zip(*rings, strict=True), linestyle="none", **GENERATED)
        first, (last_but_one, _), last = rings[0][0], rings[-2], rings[-1]
        _measure(axes, 0.0, first, -1, f"TTFT {first:.1f} ms", first)
        _measure(axes, last_but_one, *last, f"one ITL {last[0] - last_but_one:.1f} ms", last_but_one)
        axes.set(xlim=(0, rings[-1][0] * 1.02), ylim=(len(texts) - 0.4, -1.6), xlabel="milliseconds since it arrived")
        axes.set_yticks(range(len(texts)), [_visible(text) for text in texts], fontsize=9)
        axes.legend(loc="lower left", handles=[
            Patch(**PROMPT, label="prompt computed"), Patch(**TOKEN, label="one token computed"),
            Line2D([], [], linestyle="none", **GENERATED, label="a token generated")])
    return Picture(figure, f"A staircase of {len(texts)} tokens by time: bars where each is computed, rings where generated.")


def answer_over_time(steps: Sequence[Mapping[str, Any]], output: RequestOutput, tokenizer: Any) -> Picture:
    """The same for a request of one sequence that is done, from its output.

    Args:
        steps: the flight recorder's.
        output: the request's last one.
        tokenizer: of the model.
    """
    assert output.metrics is not None
    texts = [tokenizer.decode([token]) for token in output.prompt_token_ids + output.outputs[0].token_ids]
    return tokens_over_time(steps, output.request_id, texts, output.metrics.arrival_time)


def streams_over_time(
    steps: Sequence[Mapping[str, Any]], asked: Mapping[str, float], received: Mapping[str, Sequence[float]]
) -> Picture:
    """A lane for the step thread, its bars divided among who is in the step, and one for each stream's outputs.

    Args:
        steps: the flight recorder's.
        asked: when each request was handed in, in seconds on the engine's clock.
        received: when its reader got each of its outputs.
    """
    names, origin = list(asked), min(asked.values())
    with canvas(2.3 + 0.5 * len(names)) as (figure, axes):
        for step in steps:
            begin, end = _span(step, origin)
            who = sorted((chunk["request"] for chunk in step["chunks"]), key=names.index)
            for part, name in enumerate(who):
                share = 1.6 / len(who)
                axes.add_patch(Rectangle((begin, -1.6 + part * share), end - begin, share, **fill_of(names, name)))
        for lane, name in enumerate(names, 1):
            times = [MILLISECONDS * (time - origin) for time in received[name]]
            axes.axhline(lane, color=INK, linewidth=0.5, zorder=0)
            axes.plot(MILLISECONDS * (asked[name] - origin), lane, **ASKED)
            axes.plot(times, [lane] * len(times), linestyle="none", **GENERATED | {
                "markersize": 7, "markerfacecolor": fill_of(names, name)["facecolor"]})
        axes.set(ylim=(len(names) + 0.6, -1.9), xlabel="milliseconds since the first request was handed in")
        axes.set_yticks([-0.8, *range(1, len(names) + 1)], ["step thread", *(f"reader of {name}" for name in names)])
        keys: list[Any] = [Patch(**fill_of(names, name), label=f"computes {name}") for name in names]
        keys += [Line2D([], [], linestyle="none", **ASKED, label="handed in"),
                 Line2D([], [], linestyle="none", **GENERATED, label="an output arrives")]
        figure.legend(handles=keys, loc="outside lower center", ncols=len(keys))
    return Picture(figure, f"Lanes over time: the step thread's {len(steps)} steps, and the outputs of {', '.join(names)}.")


def streams_film(steps: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Film:
    """Steps as a film: who is in the step thread's batch, and the token that goes to each reader at its end.

    Args:
        steps: the flight recorder's.
        names: requests, in the order in which they came.
    """
    lane = 34.0
    film = Film(f"Film of {len(steps)} steps: the batch of each on the left, and on the right the tokens that reach the readers "
                f"of {', '.join(names)}.", 30 + lane * len(names) + 34, len(steps), seconds=0.5, still=len(steps) - 1)
    film.text(8, 10, "batch of the step thread", anchor="start", size=7.5)
    film.box(8, 20, 112, lane * len(names), "none", FAINT)
    wide = 360 / max(sum(name in step["sampled"] for step in steps) for name in names)
    for row, name in enumerate(names):
        y, colour = 22 + lane * row, colour_of(names, name)
        running = [name in step["block_tables"] for step in steps]
        film.tile(14, y + 3, 100, 24, colour, f"computes {name}", when=running)
        film.text(206, y + 15, f"reader of {name}", anchor="end")
        film.line((212, y + 27), (566, y + 27), FAINT)
        times = [number for number, step in enumerate(steps) if name in step["sampled"]]
        for place, time in enumerate(times):
            path = [(0.0, 0.0) if frame < time else (212 + wide * place - 100, 0.0) for frame in range(len(steps))]
            film.box(100, y + 5, wide - 1.5, 20, colour, path=path, when=[frame >= time for frame in range(len(steps))])
    film.clock(20 + lane * len(names) + 32, [
        f"step {number}: a token for {' and '.join(step['sampled'])}" for number, step in enumerate(steps)])
    return film


def _span(step: Mapping[str, Any], origin: float) -> tuple[float, float]:
    """Milliseconds after `origin` at which a step began, and at which its tokens were there."""
    began, sampled = step["time"] - sum(step["seconds"].values()), step["time"] - step["seconds"]["output"]
    return MILLISECONDS * (began - origin), MILLISECONDS * (sampled - origin)


def _chunks(
    steps: Sequence[Mapping[str, Any]], request: str, origin: float
) -> Iterator[tuple[float, float, Mapping[str, Any]]]:
    for step in steps:
        for chunk in step["chunks"]:
            if chunk["request"] == request:
                yield *_span(step, origin), chunk


def _measure(axes: Axes, begin: float, end: float, row: int, text: str, at: float) -> None:
    """A line between two times in a row, and at one of them what it measures, on the outside."""
    axes.plot([begin, end], [row, row], color=INK, marker="|", markersize=9, linewidth=1, zorder=1)
    side, away = ("left", 6) if at == end else ("right", -6)
    axes.annotate(text, (at, row), (away, 0), textcoords="offset points", ha=side, va="center", fontsize=9)


def _visible(text: str) -> str:
    return text.replace("\n", "↵").replace(" ", "␣")
