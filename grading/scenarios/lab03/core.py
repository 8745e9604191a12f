"""Requests in blocks of 4, as the engine lays them out, and attention over them, kept by the judge."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grading.judge.checks import expect, ours, shown
from grading.sandbox.worker.peer import Raised, Remote
from grading.scenarios.lab03.compare import HEADS, expect_tensor
from grading.scenarios.lab03.network import attention
from nano_qwen3_serving.config import ModelConfig

BLOCK = 4


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, end) of a request, whose position i lies in block table[i // 4]."""

    start: int
    end: int
    table: list[int]

    def slots(self, positions: Iterable[int]) -> list[int]:
        """Where these positions of the request lie."""
        return [self.table[i // BLOCK] * BLOCK + i % BLOCK for i in positions]


def tables(rng: random.Random, *lengths: int) -> list[list[int]]:
    """Blocks for requests of these lengths, in no order."""
    blocks = rng.sample(range(1, 40), sum(-(-length // BLOCK) for length in lengths))
    return [[blocks.pop() for _ in range(-(-length // BLOCK))] for length in lengths]


class Step:
    """What is computed at once: chunks of requests, those of one token first, then rows of padding, in block 0.

    Args:
        first: position of each request's first token.
    """

    def __init__(self, chunks: list[Chunk], padding: int = 0, first: int = 0) -> None:
        self.chunks = chunks
        self.query_lens, self.seq_lens = [c.end - c.start for c in chunks], [c.end for c in chunks]
        self.positions = torch.tensor([first + i for c in chunks for i in range(c.start, c.end)] + [0] * padding)
        self.slots = [slot for c in chunks for slot in c.slots(range(c.start, c.end))] + [0] * padding
        self.rows = [sum(self.query_lens[: i + 1]) - 1 for i in range(len(chunks))]
        self.padding = padding

    def tokens(self, texts: Iterable[Tensor]) -> Tensor:
        """[num_tokens]; padding is token 0."""
        parts = [text[chunk.start : chunk.end] for text, chunk in zip(texts, self.chunks, strict=True)]
        return torch.cat([*parts, torch.zeros(self.padding, dtype=torch.long)])

    def metadata(self, lab: Remote) -> Remote:
        """The engine's own object for it, where the submission runs."""
        longest = max(len(c.table) for c in self.chunks)
        return lab._peer.root.package("nano_qwen3_serving.interfaces").AttentionMetadata(
            query_lens=self.query_lens, seq_lens=self.seq_lens, slot_mapping=torch.tensor(self.slots),
            block_tables=torch.tensor([[*c.table, *[0] * (longest - len(c.table))] for c in self.chunks]),
            num_decodes=sum(count == 1 for count in self.query_lens), block_size=BLOCK)


class LayerCache:
    """One layer's keys and values, by slot."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}

    def read(self, slots: list[int]) -> tuple[Tensor, Tensor]:
        """Keys and values of these slots, [num_slots, num_kv_heads, head_dim] each."""
        keys, values = zip(*(self.rows[slot] for slot in slots), strict=True)
        return torch.stack(keys), torch.stack(values)


class Core:
    """Attention over blocks, kept by the judge: notes who calls what, and what it was given.

    Args:
        attend: what attends, one request at a time: `attention`, or the submission's.
    """

    def __init__(self, config: ModelConfig, attend: Callable = attention, dtype: torch.dtype = torch.float32) -> None:
        self.config, self.attend, self.dtype = config, attend, dtype
        self.caches = [LayerCache() for _ in range(config.num_hidden_layers)]
        self.calls: list[str] = []
        self.step: Step  # set while one is computed
        self.problem: Exception | None = None

    def exported(self) -> tuple[Any, list]:
        """The core and the layers' caches as a submission gets them."""
        return ours(self, "write", "forward"), [ours(cache) for cache in self.caches]

    def during(self, step: Step, call: Callable, *arguments: Any) -> Any:
        """`call(*arguments)`, which computes this step. Raises what was wrong with the use of the core."""
        self.step, self.calls = step, []
        try:
            answer = call(*arguments)
        except Raised:
            if self.problem is None:
                raise
        if self.problem is not None:
            raise self.problem from None
        return answer

    def write(self, layer_cache: Any, k: Any, v: Any, slots: Any) -> None:
        self._noting(self._write, layer_cache, k, v, slots)

    def forward(self, q: Any, layer_cache: Any, metadata: Any) -> Tensor:
        return self._noting(self._forward, q, layer_cache, metadata)

    def _noting(self, do: Callable, *arguments: Any) -> Any:
        """What goes wrong in here reaches the judge, whatever the submission makes of it."""
        try:
            return do(*arguments)
        except Exception as error:
            self.problem = self.problem or error
            raise

    def _write(self, layer_cache: Any, k: Any, v: Any, slots: Any) -> None:
        self.calls.append("write")
        expect(isinstance(layer_cache, LayerCache), f"core.write got {shown(layer_cache)} instead of the layer's cache")
        found = slots.tolist() if isinstance(slots, Tensor) else slots
        right = self.step.slots
        expect(found == right, f"core.write got the slots {shown(found)}; metadata.slot_mapping is {shown(right)}")
        for name, tensor in (("k", k), ("v", v)):
            size = (len(self.step.slots), self.config.num_key_value_heads, self.config.head_dim)
            expect_tensor(tensor, f"{name} that core.write got", size, self.dtype, HEADS)
        layer_cache.rows |= dict(zip(self.step.slots, zip(k, v, strict=True), strict=True))

    def _forward(self, q: Any, layer_cache: Any, metadata: Any) -> Tensor:
        self.calls.append("forward")
        expect(isinstance(layer_cache, LayerCache), f"core.forward got {shown(layer_cache)} instead of the layer's cache")
        same = getattr(metadata, "seq_lens", None) == self.step.seq_lens
        expect(same, f"core.forward got {shown(metadata)} instead of the metadata")
        size = (len(self.step.slots), self.config.num_attention_heads, self.config.head_dim)
        expect_tensor(q, "q that core.forward got", size, self.dtype, HEADS)
        written = set(self.step.slots) <= set(layer_cache.rows)
        expect(written, "core.forward was called before core.write: a token sees its own key, too")
        out, start = torch.zeros_like(q), 0
        for chunk in self.step.chunks:
            count = chunk.end - chunk.start
            found = self.attend(q[start : start + count], *layer_cache.read(chunk.slots(range(chunk.end))))
            expect_tensor(found, "attention", (count, *q.shape[1:]), self.dtype, HEADS)
            out[start : start + count] = found
            start += count
        return out
