"""One token on its way through the network: what each layer reads for it, and what the network would say after each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nano_qwen3_serving.pictures.card import COLOURS, FAINT, POINTS, WIDTH
from nano_qwen3_serving.pictures.film import Film
from nano_qwen3_serving.pictures.insides import WatchedEngine


class Station(NamedTuple):
    """A place on the last token's way.

    Attributes:
        name: what has just been added to its row.
        probabilities: of each token, if the network ended here: the row through the last norm and `lm_head`, [vocab_size].
        weights: what the row took from each token, the mean over heads, [tokens]; None after an MLP.
    """

    name: str
    probabilities: Tensor
    weights: Tensor | None


def stations(watched: WatchedEngine, text: str) -> list[Station]:
    """The way of a text's last token, station by station: the embedding, then attention and MLP of each layer."""
    network, rows = watched.network, []
    norms = [norm for layer in network.model.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    hooks = [norm.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0][-1].clone()))
             for norm in [*norms, network.model.norm]]
    watched.compute(text=text)
    for hook in hooks:
        hook.remove()
    names = ["embedding", *(f"layer {i}: {what}" for i in range(len(network.model.layers)) for what in ("attention", "MLP"))]
    with torch.inference_mode():
        says = [network.lm_head(network.model.norm(row[None]))[0].softmax(dim=-1) for row in rows]
    reads = [watched.weights[i // 2][-1].mean(dim=0) if i % 2 == 0 else None for i in range(len(rows) - 1)]
    return [Station(*station) for station in zip(names, says, [None, *reads], strict=True)]


def layers_film(way: Sequence[Station], words: Sequence[str], candidates: Sequence[tuple[str, int]]) -> Film:
    """The way as a film: the token climbs from layer to layer, reads from the others, and the network's opinion changes.

    Args:
        way: the stations.
        words: the text's tokens.
        candidates: text and id of the next tokens to be shown.
    """
    film = Film(f"Film of a token's way through {len(way)} stations; at each, bars for how likely {len(candidates)} next tokens "
                "would be, and for what it reads from the tokens of the text.",
                126 + 18 * len(candidates), len(way), seconds=1.4, still=len(way) - 1)
    floor = 34 + 18 * len(candidates)
    for i, station in enumerate(way):
        film.box(8, floor + 20 - 17 * i, 120, 15, "none", FAINT)
        film.text(68, floor + 27.5 - 17 * i, station.name, size=7.5)
    film.box(8, floor + 20, 120, 15, "none", COLOURS[6], path=[(0.0, -17.0 * i) for i in range(len(way))])
    film.text(150, 8, "if the network ended here, the next token would be", anchor="start", bold=True)
    for row, (word, token) in enumerate(candidates):
        y, shares = 26 + 18 * row, [float(station.probabilities[token]) for station in way]
        film.text(220, y, word, anchor="end")
        film.box(226, y - 7, 290, 14, COLOURS[0], grown=shares)
        film.texts(WIDTH * POINTS - 8, y, [f"{share:.0%}" for share in shares], anchor="end")
    wide, most = 420 / len(words), max(float(station.weights.max()) for station in way if station.weights is not None)
    for i, word in enumerate(words):
        x = 150 + wide * i
        film.text(x + wide / 2, floor + 56, word, size=7.5)
        reads = [0.0 if station.weights is None else float(station.weights[i]) / most for station in way]
        film.box(x + 4, floor + 8, wide - 8, 38, COLOURS[1], grown=reads, upwards=True)
    film.text(150, floor - 2, "what attention reads from each token of the text (mean of all heads)", anchor="start", size=7.5)
    film.clock(floor + 84, [f"after the {station.name}" if i == 0 else f"after {station.name}" for i, station in enumerate(way)])
    return film
