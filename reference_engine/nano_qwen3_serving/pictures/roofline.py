"""Pictures of why a batch pays: the roofline with measured throughput under it, and bytes read for a token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.pictures.card import COLOURS, FAINT, INK, Picture, canvas, filled

READING, COMPUTING, MEASURED = COLOURS[0], COLOURS[6], COLOURS[2]


class Work(NamedTuple):
    """What a decode step computes, and the bytes that it reads for it."""

    flops: int
    num_bytes: int

    @property
    def intensity(self) -> float:
        """FLOPs for each byte."""
        return self.flops / self.num_bytes


class Roof(NamedTuple):
    """What a machine allows a decode step, in which every weight is read once and used for each request.

    Attributes:
        by_memory: decode steps per second that reading the weights allows: so many tokens per second for each
            request of the batch.
        by_compute: tokens per second that computing allows, whatever the batch.
    """

    by_memory: float
    by_compute: float

    @classmethod
    def over(cls, weights: int, itemsize: int, bandwidth: float, rate: float) -> Roof:
        """The roof over a model.

        Args:
            weights: bytes of all weights.
            itemsize: bytes of one weight.
            bandwidth: bytes per second that the machine reads.
            rate: floating-point operations per second that it makes.
        """
        flops = 2 * weights // itemsize  # for each token: every weight is multiplied, and the product added
        return cls(bandwidth / weights, rate / flops)

    @property
    def ridge(self) -> float:
        """The batch size, not rounded, at which both allow the same."""
        return self.by_compute / self.by_memory

    def at(self, batch: float) -> float:
        """Tokens per second that both allow."""
        return min(batch * self.by_memory, self.by_compute)


def decode_work(matrices: Sequence[Tensor], batch: int) -> Work:
    """What a step does for `batch` tokens with these matrices: FLOPs as torch counts them, and the bytes of the matrices."""
    with FlopCounterMode(display=False) as counter:
        for matrix in matrices:
            torch.ones(batch, matrix.shape[1], dtype=matrix.dtype, device=matrix.device) @ matrix.T
    return Work(counter.get_total_flops(), sum(matrix.nbytes for matrix in matrices))


def qwen3_06b() -> ModelConfig:
    """The shape of Qwen3-0.6B."""
    return ModelConfig(
        vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True, max_position_embeddings=40_960)


def kept_for_a_token(shape: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of one token's keys and values in all layers, as the engine's attention allots them."""
    return TorchPagedAttention(shape, 1, dtype, torch.device("cpu")).bytes_per_block  # a block of one token


class Bench(Protocol):
    """What can be prepared to do one decode step of any number of requests, and notes how long each step took."""

    recorder: Recorder

    def prepare(self, batch: int) -> Callable[[], object]:
        """Starts so many requests; what is returned does a step."""


def throughput(bench: Bench, batches: Sequence[int], steps: int = 8) -> dict[int, float]:
    """Tokens per second at each batch size: the best of some steps, in two rounds, so that one busy moment does no harm."""
    best = dict.fromkeys(batches, 0.0)
    for batch in [*batches, *batches]:
        step = bench.prepare(batch)
        for _ in range(steps):
            step()
        seconds = [sum(record["seconds"].values()) for record in bench.recorder.steps[-steps:]]
        best[batch] = max(best[batch], batch / min(seconds))
    return best


def roofline(measured: Mapping[int, float], roof: Roof) -> Picture:
    """Throughput by batch size under the two ceilings of a machine, both axes logarithmic.

    Args:
        measured: tokens per second by batch size.
        roof: of the machine over the model.
    """
    low, high, ridge = min(measured) / 1.25, max(measured) * 1.25, roof.ridge
    bottom, top = min(roof.by_memory, *measured.values()) / 1.6, max(roof.by_compute, *measured.values()) * 3
    places = low, min(max(ridge, low), high), high
    edge = [roof.at(batch) for batch in places]
    with canvas(4.2) as (figure, axes):
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top))
        axes.plot([low, high], [low * roof.by_memory, high * roof.by_memory], "--", color=READING, linewidth=2,
                  label="reading the weights allows")
        axes.plot([low, high], [roof.by_compute, roof.by_compute], "-.", color=COMPUTING, linewidth=2, label="computing allows")
        axes.fill_between(places, edge, top, facecolor="none", edgecolor=FAINT, hatch="//", linewidth=0)
        axes.plot(places, edge, "-", color=INK, linewidth=3, label="roof: the lower of both")
        axes.plot(list(measured), list(measured.values()), "o", color=MEASURED, markeredgecolor=INK, markersize=8,
                  label="measured")
        if low < ridge < high:
            axes.axvline(ridge, color=INK, linestyle=":", linewidth=1.2)
            side, away = ("left", 5) if ridge * ridge < low * high else ("right", -5)
            axes.annotate(f"ridge: batch {ridge:.1f}", (ridge, bottom), (away, 6), textcoords="offset points", ha=side,
                          fontsize=9)
        axes.set(xlabel="batch size (requests in a step)", ylabel="throughput (tokens per second)")
        _plain_ticks(axes, list(measured), bottom, top)
        figure.legend(loc="outside lower right", ncols=4, fontsize=9)
    return Picture(figure, f"Throughput at batch sizes {min(measured)} to {max(measured)} under a roof that rises, then is flat.")


def _plain_ticks(axes: Axes, batches: Sequence[int], bottom: float, top: float) -> None:
    """Batch sizes, and round numbers of tokens, as they are said."""
    rates = [digit * 10**power for power in range(9) for digit in (1, 2, 5) if bottom < digit * 10**power < top]
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_yticks(rates, [f"{rate:,}" for rate in rates])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())


def bytes_for_a_token(weights: int, own: int, batches: Sequence[int]) -> Picture:
    """A bar for each batch size: what is read for one new token, in percent: its part of the weights, and its own cache.

    Args:
        weights: bytes of the weights, read once in a step.
        own: bytes of the keys and values that one request reads in a step.
        batches: requests in a step.
    """
    places, shares = range(len(batches)), [weights / batch for batch in batches]
    of_weights = [100 * share / (share + own) for share in shares]
    with canvas(3.4) as (figure, axes):
        axes.bar(places, of_weights, 0.7, **filled(COLOURS[0]), label="weights, shared")
        axes.bar(places, [100 - share for share in of_weights], 0.7, of_weights, **filled(COLOURS[1], "///"),
                 label="its own keys and values")
        axes.axhline(50, color=INK, linestyle=":", linewidth=1.2)
        for place, share in zip(places, shares, strict=True):
            axes.text(place, 103, f"{(share + own) / 1e9:.2f} GB", ha="center", fontsize=9)
        axes.set_xticks(places, [str(batch) for batch in batches])
        axes.set(xlabel="batch size (requests in a step)", ylabel="percent of the bytes", ylim=(0, 112), yticks=range(0, 101, 25))
        figure.legend(loc="outside lower right", ncols=2)
    return Picture(figure, "Stacked bars of what the bytes read for one token are, in percent, at batch sizes "
                   f"{batches[0]} to {batches[-1]}; on top how many GB.")
