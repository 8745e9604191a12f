"""A network that the judge plays, and the shapes it may have.

Knows which keys and values it has handed out; knows nothing of caches, and of generation only what
it comes to.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from grading.judge.checks import shown
from nano_qwen3_serving.config import ModelConfig

Pair = tuple[Tensor, Tensor]


def a_shape(rng: random.Random) -> ModelConfig:
    """A small network's: query heads share KV heads, head_dim is not hidden_size / heads, the MLP is not twice as wide."""
    kv_heads, sharing, head_dim = rng.choice((2, 3)), rng.choice((2, 3)), 2 * rng.randrange(5, 12)
    heads = kv_heads * sharing
    hidden = heads * (head_dim + rng.choice((-2, 2, 4))) + 1
    return ModelConfig(
        vocab_size=rng.randrange(100, 200), hidden_size=hidden, intermediate_size=2 * hidden + rng.randrange(1, 50),
        num_hidden_layers=rng.choice((5, 7)), num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim,
        max_position_embeddings=512, tie_word_embeddings=rng.random() < 0.5)


def words(shape: ModelConfig) -> str:
    """The numbers that costs depend on."""
    return (f"{shape.num_hidden_layers} layers, hidden size {shape.hidden_size}, {shape.num_attention_heads} query heads and "
            f"{shape.num_key_value_heads} KV heads of {shape.head_dim}, an MLP of {shape.intermediate_size}, "
            f"a vocabulary of {shape.vocab_size}")


def numbers_from(rng: random.Random) -> torch.Generator:
    """A generator that is seeded by the rng."""
    return torch.Generator().manual_seed(rng.getrandbits(60))


class Network:
    """A network that the judge plays.

    Whatever `append` returns is compared with the keys and values that this network has handed out for
    these positions, new random ones in every pass. The logits, whole numbers below zero of which each is
    there once, depend on all tokens so far.

    Attributes:
        passes: the first position and the tokens of each.
        fault: the first thing that was wrong with the keys and values, if it was not a shape.
    """

    def __init__(self, rng: random.Random, dtype: torch.dtype = torch.float32, all_end: bool = False) -> None:
        self.config, self.dtype = a_shape(rng), dtype
        if all_end:
            self.config = replace(self.config, eos_token_ids=tuple(range(self.config.vocab_size)))
        self.passes: list[tuple[int, list[int]]] = []
        self.fault = ""
        self._secret, self._random = rng.getrandbits(60), numbers_from(rng)
        self._text: list[int] = []
        self._held = [(self._new(0), self._new(0)) for _ in range(self.config.num_hidden_layers)]

    def __call__(self, token_ids: Iterable[int], start: int, append: Callable[[int, Tensor, Tensor], Pair]) -> Tensor:
        tokens, start = [int(token) for token in token_ids], int(start)
        self.passes.append((start, tokens))
        if not tokens:
            raise ValueError("the network was called without tokens; it computes at least one")
        if not 0 <= start <= len(self._text):
            raise ValueError(f"a pass was to begin at position {start}, and {len(self._text)} positions were computed before")
        self._text[start:] = tokens
        for layer in range(self.config.num_hidden_layers):
            self._attend(layer, start, append)
        return self._logits(self._text)

    def continuation(self, prompt: list[int], count: int) -> list[int]:
        """The tokens that greedy generation comes to."""
        text = list(prompt)
        for _ in range(count):
            text.append(int(self._logits(text).argmax()))
        return text[len(prompt) :]

    def _logits(self, text: list[int]) -> Tensor:
        order = numbers_from(random.Random(f"{self._secret}/{text}"))
        vocabulary = self.config.vocab_size
        return (torch.randperm(vocabulary, generator=order) - vocabulary).to(self.dtype)

    def _new(self, count: int) -> Tensor:
        return torch.randn(count, self.config.num_key_value_heads, self.config.head_dim, generator=self._random).to(self.dtype)

    def _attend(self, layer: int, start: int, append: Callable[[int, Tensor, Tensor], Pair]) -> None:
        last = len(self._text) - 1
        fresh = self._new(last + 1 - start), self._new(last + 1 - start)
        kept_keys, kept_values = (old[:start] for old in self._held[layer])
        self._held[layer] = torch.cat([kept_keys, fresh[0]]), torch.cat([kept_values, fresh[1]])
        keys, values = append(layer, *fresh)
        for name, got, right in zip(("keys", "values"), (keys, values), self._held[layer], strict=True):
            if not isinstance(got, Tensor) or got.shape != right.shape or got.dtype != right.dtype:
                raise ValueError(
                    f"layer {layer}: append returned, as {name}, {shown(got)}; this call computes positions {start} to "
                    f"{last}, so attention needs {shown(right)}")
            if wrong := others(got, right):
                self.fault = self.fault or (
                    f"layer {layer}, when positions {start} to {last} were computed: append returned other {name} than those "
                    f"of positions 0 to {last}: they differ at {shown(wrong)}")


def others(got: Tensor, right: Tensor) -> list[int]:
    """The positions of which two tensors have other numbers."""
    return [i for i in range(len(right)) if not torch.equal(got[i], right[i])]
