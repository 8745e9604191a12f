"""Faults on order: parts that work until they are told to fail.

Each wraps a real part, so that the engine under test is the real one. A request's own faults are
found by its seed, which the fuzzer makes unique.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nano_qwen3_serving.components import Components
from nano_qwen3_serving.interfaces import SamplingRow, TextDelta
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.testing.fuzz.episode import SEEDS_PER_REQUEST


class InjectedError(RuntimeError):
    """A fault that the fuzzer asked for."""


class FatalError(BaseException):
    """A fault that no engine can survive."""


class BrokenText(str):
    """A prompt that makes the tokenizer raise."""


class HeldText(str):
    """A prompt whose tokenisation stands still until it is released."""

    def __init__(self, text: str) -> None:
        self.entered = threading.Event()
        self.released = threading.Event()


@dataclass
class Faults:
    """The faults to inject.

    Attributes:
        model: the next model call: "before" its writes, "between" keys and values, "after" both, "oom", or "die"; "step"
            is every call until it is cleared.
        sampler: request → number of its tokens after which its sampling raises.
        detokenizer: request → number of its tokens after which its detokenizer raises.
        struck: how many faults happened.
    """

    model: str | None = None
    sampler: dict[int, int] = field(default_factory=dict)
    detokenizer: dict[int, int] = field(default_factory=dict)
    struck: int = 0

    def strike(self, at: str) -> None:
        """Raises what is armed for this place of a model call."""
        armed = self.model
        if armed is None or at != (armed if armed in ("between", "after") else "before"):
            return
        if armed != "step":
            self.model = None
        self.struck += 1
        if armed == "die":
            raise FatalError("injected: the engine must die")
        if armed == "oom":
            raise torch.OutOfMemoryError("injected: out of memory")
        raise InjectedError(f"injected: model, {armed}")


def with_faults(parts: Components, faults: Faults) -> Components:
    """The same parts, failing when `faults` says so."""
    return parts.using(
        tokenizer=lambda config: FaultyTokenizer(parts.tokenizer(config), faults),
        attention=lambda config: FaultyAttention(parts.attention(config), faults),
        model=lambda config, attention: FaultyModel(parts.model(config, attention), faults),
        sampler=lambda config: FaultySampler(parts.sampler(config), faults),
        detokenizer=lambda tokenizer, params: FaultyDetokenizer(parts.detokenizer(tokenizer, params), params, faults),
    )


class FaultyTokenizer:
    """Stands still on a `HeldText`, raises on a `BrokenText`."""

    def __init__(self, inner: Any, faults: Faults) -> None:
        self._inner, self._faults = inner, faults

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`."""
        if isinstance(text, HeldText):
            text.entered.set()
            text.released.wait()
        if isinstance(text, BrokenText):
            self._faults.struck += 1
            raise InjectedError("injected: tokenizer")
        return self._inner.encode(str(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class FaultyModel:
    """Raises before or after it has written keys and values."""

    def __init__(self, inner: Any, faults: Faults) -> None:
        self._inner, self._faults = inner, faults

    def __call__(self, *args: Any) -> Tensor:
        self._faults.strike("before")
        hidden = self._inner(*args)
        self._faults.strike("after")
        return hidden

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """The inner model's."""
        return self._inner.compute_logits(hidden)


class FaultyAttention:
    """Raises when it has written the keys, and not yet the values."""

    def __init__(self, inner: Any, faults: Faults) -> None:
        self._inner, self._faults = inner, faults

    def write(self, layer_cache: Any, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """The inner backend's."""
        if self._faults.model == "between":
            _, old = self._inner.read(layer_cache, slots.tolist())
            self._inner.write(layer_cache, k, old, slots)
        self._faults.strike("between")
        self._inner.write(layer_cache, k, v, slots)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class FaultySampler:
    """Raises as long as a doomed request is in the batch."""

    def __init__(self, inner: Any, faults: Faults) -> None:
        self._inner, self._faults = inner, faults

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow]) -> Any:
        """The inner sampler's."""
        for row in rows:
            if self._faults.sampler.get(row.seed // SEEDS_PER_REQUEST) == len(row.output_token_ids):
                self._faults.struck += 1
                raise InjectedError("injected: sampler")
        return self._inner.sample(logits, rows)


class FaultyDetokenizer:
    """Raises at the token that follows a certain number of them."""

    def __init__(self, inner: Any, params: SamplingParams, faults: Faults) -> None:
        self._inner, self._faults = inner, faults
        self._count = 0
        self._doom = faults.detokenizer.get((params.seed or 0) // SEEDS_PER_REQUEST)

    def add(self, token_ids: Sequence[int]) -> TextDelta:
        """The inner detokenizer's."""
        if self._doom is not None and self._count <= self._doom < self._count + max(len(token_ids), 1):
            self._faults.struck += 1
            raise InjectedError("injected: detokenizer")
        self._count += len(token_ids)
        return self._inner.add(token_ids)

    def finish(self) -> TextDelta:
        """The inner detokenizer's."""
        return self._inner.finish()
