"""Lab 07's caches: requests in scattered blocks, what attention gives there, and tensors that lie where the submission is.

Knows nothing of the lab's functions. What is right is worked out in float64, in loops.
"""

import math
import mmap
import random
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grading.judge.checks import Wrong, expect, expect_nothing_replaced, hold, kept, look, shorter, shown
from grading.sandbox.worker.peer import Raised, Remote
from nano_qwen3_serving.config import ModelConfig

DTYPES = (torch.float32, torch.bfloat16)
ALL_DTYPES = (*DTYPES, torch.float16)
"""What the engine may be told to compute in."""
GARBAGE = {"NaN": math.nan, "infinity": math.inf, "3e38": 3e38}
"""What may be in a slot that nobody wrote."""


def model_config(num_heads: int = 4, num_kv_heads: int = 2, head_dim: int = 16, layers: int = 1) -> ModelConfig:
    """The shape of a model, of which only heads and layers matter here."""
    return ModelConfig(
        vocab_size=10, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads, head_dim=head_dim, max_position_embeddings=1024)


# What is right, and how far from it rounding may lead.


def dense(q: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    """q [count, num_heads, dim] at positions start, start + 1, ...; keys, values [seq_len, num_kv_heads, dim]."""
    count, num_heads, dim = q.shape
    group = num_heads // keys.shape[1]
    out = torch.empty(count, num_heads, dim, dtype=torch.float64)
    for row in range(count):
        for head in range(num_heads):
            k, v = (one[: start + row + 1, head // group].double() for one in (keys, values))
            out[row, head] = torch.softmax(k @ q[row, head].double() / math.sqrt(dim), dim=0) @ v
    return out


def allowed_error(q: Tensor, keys: Tensor, values: Tensor) -> float:
    """The largest difference from `dense` that comes of rounding alone.

    With u the unit roundoff of q's dtype (2^-24 for float32, 2^-8 for bfloat16): a score is a sum of
    head_dim products. Scaling q, multiplying, adding up and storing the score round 4 times, each by at most
    u times the sum of the products' sizes; adding them in float32 adds head_dim * 2^-24 of it. A score
    that is off by e changes a weight's numerator and the softmax's sum by a factor of exp(e) each. Weights,
    result and what is between them round 3 times more, and n values are added in float32.
    """
    u, u32 = torch.finfo(q.dtype).eps / 2, 2.0**-24
    dim, group = q.shape[-1], q.shape[1] // keys.shape[1]
    sizes = torch.einsum("thd,nhd->thn", q.double().abs(), keys.double().abs().repeat_interleave(group, dim=1))
    score_error = (4 * u + dim * u32) * sizes.max().item() / math.sqrt(dim)
    return values.double().abs().max().item() * (math.expm1(2 * score_error) + 3 * u + len(keys) * u32)


def expect_tensor(got: Any, shape: Sequence[int], what: str) -> None:
    """It is a tensor of this shape."""
    expect(isinstance(got, Tensor), f"{what}: expected a tensor, and {shown(got)} came")
    expect(list(got.shape) == list(shape), f"{what}: expected shape {list(shape)}, got {list(got.shape)}")


def first_of(row: Tensor) -> str:
    """The first three numbers of a head."""
    return "[" + ", ".join(f"{number:.4f}" for number in row[:3].tolist()) + ", ...]"


# Requests in a cache. Nothing here is the lab's code.


class Asked:
    """One request: q stands at positions start, ...; keys and values are those of all its tokens."""

    def __init__(
        self, start: int, count: int, heads: tuple[int, int, int], dtype: torch.dtype, generator: torch.Generator
    ) -> None:
        num_heads, num_kv_heads, head_dim = heads

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        self.start, self.count, self.seq_len = start, count, start + count
        self.q = noise(count, num_heads, head_dim)
        self.keys, self.values = (noise(self.seq_len, num_kv_heads, head_dim) for _ in "kv")
        self.table: list[int] = []

    def expect_attended(self, got: Any, what: str) -> None:
        """`got`, [count, num_heads, head_dim], is dense attention of this request."""
        want = dense(self.q, self.keys, self.values, self.start)
        expect_tensor(got, want.shape, what)
        expect(got.dtype == self.q.dtype, f"{what}: q is {self.q.dtype}, so the result is too; got {got.dtype}")
        off = (got.double() - want).abs()
        rows = (~off.isfinite()).flatten(1).any(dim=1).nonzero().flatten() + self.start
        expect(not len(rows), (
            f"{what}: NaN or infinity at positions {shown(rows.tolist())}. Was something read that nobody wrote, or "
            "has a row no key at all to read?"))
        limit = allowed_error(self.q, self.keys, self.values)
        worst = off.amax(dim=(1, 2))
        row = int(worst.argmax())
        head = int(off[row].amax(dim=1).argmax())
        expect(bool(worst.max() <= limit), (
            f"{what}: wrong in {int((worst > limit).sum())} of {len(worst)} rows. Worst is position {self.start + row}, "
            f"query head {head}: expected {first_of(want[row, head])}, got {first_of(got[row, head])}; "
            f"rounding alone explains a difference of {limit:.1e}"))


class Pool:
    """A cache of one layer with requests in scattered blocks; `garbage` in every slot that nobody wrote.

    Args:
        spans: (tokens computed before, tokens of this step) of each request, those of one token first.
        heads: query heads, KV heads, head_dim.
    """

    def __init__(
        self, rng: random.Random, *spans: tuple[int, int], block_size: int = 4, heads: tuple[int, int, int] = (4, 2, 16),
        dtype: torch.dtype = torch.float32, garbage: float = 50.0,
    ) -> None:
        generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
        self.rng, self.block_size, self.heads, self.dtype = rng, block_size, heads, dtype
        self.requests = [Asked(*span, heads, dtype, generator) for span in spans]
        needed = [-(-request.seq_len // block_size) for request in self.requests]
        blocks = list(range(1, sum(needed) + 4))
        rng.shuffle(blocks)
        shape = (len(blocks) + 1, block_size, *heads[1:])
        self.k_cache, self.v_cache = (torch.full(shape, garbage, dtype=dtype) for _ in "kv")
        self.nobodys = blocks.pop()
        for request, count in zip(self.requests, needed, strict=True):
            request.table = sorted((blocks.pop() for _ in range(count)), reverse=True)  # never in rising order
            self.put(request, request.keys, request.values)

    def put(self, request: Asked, keys: Tensor, values: Tensor) -> None:
        """Writes a request's keys and values, a slot at a time."""
        for i in range(request.seq_len):
            place = request.table[i // self.block_size], i % self.block_size
            self.k_cache[place], self.v_cache[place] = keys[i], values[i]

    def rewrite(self, index: int = 0) -> None:
        """Puts other keys and values into the slots of a request, as another that gets its blocks."""
        request = self.requests[index]
        request.keys, request.values = -2 * request.keys, request.values + 3
        self.put(request, request.keys, request.values)

    def held(self, lab: Remote) -> tuple[Remote, Remote]:
        """Both caches, there."""
        return hold(lab, self.k_cache), hold(lab, self.v_cache)

    def tables(self, spare: int = 0) -> Tensor:
        """[num_requests, longest + spare]; after a request's own blocks one of nobody's, full of garbage."""
        longest = max(len(request.table) for request in self.requests) + spare
        return torch.tensor([one.table + [self.nobodys] * (longest - len(one.table)) for one in self.requests])

    def table(self) -> Tensor:
        """The block table of the first request, with two entries after its own."""
        return self.tables(spare=2)[0]

    def query_starts(self) -> list[int]:
        """Each request's first row, and the number of rows."""
        return [sum(one.count for one in self.requests[:i]) for i in range(len(self.requests) + 1)]

    def seq_lens(self) -> list[int]:
        """Tokens of each request, those of this step among them."""
        return [request.seq_len for request in self.requests]

    def q(self) -> Tensor:
        """All rows of the step, [num_tokens, num_heads, head_dim]."""
        return torch.cat([request.q for request in self.requests])

    def slots(self) -> list[int]:
        """Where the step's keys and values lie."""
        return [one.table[p // self.block_size] * self.block_size + p % self.block_size
                for one in self.requests for p in range(one.start, one.seq_len)]

    def expect_attended(self, got: Any, what: str, only: int | None = None) -> None:
        """Each request's rows are dense attention over its own tokens."""
        expect_tensor(got, self.q().shape, what)
        starts = self.query_starts()
        for i, request in enumerate(self.requests):
            if only is None or i == only:
                request.expect_attended(
                    got[starts[i] : starts[i + 1]],
                    f"{what}: request {i} of {len(self.requests)}, {request.count} tokens after {request.start}")

    def described(self) -> str:
        """Heads and dtype in words."""
        num_heads, num_kv_heads, head_dim = self.heads
        return f"{num_heads} query heads, {num_kv_heads} KV heads of {head_dim}, {str(self.dtype).removeprefix('torch.')}"


# Tensors where the submission is.


def numbers(value: Any) -> Any:
    """Tensors and tuples as lists."""
    return value.tolist() if isinstance(value, Tensor) else list(value) if isinstance(value, tuple) else value


def list_of_ints(value: Any) -> bool:
    """Not tensors, floats or bools that equal them."""
    return isinstance(value, list) and all(type(one) is int for one in value)


def elsewhere_by_default(lab: Remote, call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call(*arguments)` gives, while tensors made there without a device land on "meta", which has no numbers."""
    there = module_there(lab, "torch")
    there.set_default_device("meta")
    try:
        return call(*arguments)
    except Raised as error:
        if not re.search("expected device|same device|different device", error.text):
            there.set_default_device("cpu")  # as one who reads numbers from a tensor of their own, which never meets q's
            return call(*arguments)
        raise Wrong("something was made on torch's default device, and q is on another: make it with device=q.device "
                    f"({shorter(error.text)})") from None
    finally:
        there.set_default_device("cpu")


def module_there(lab: Remote, name: str) -> Remote:
    """A module of the runtime in which the submission is."""
    return lab._peer.root.package(name)


def cut_out(lab: Remote, tensor: Tensor) -> Remote:
    """The same numbers, there, cut out of a wider tensor, as q, k and v are cut out of one product in the engine."""
    rows, heads, dim = tensor.shape
    wide = torch.full((rows, heads + 3, dim + 1), 7.0, dtype=tensor.dtype)
    wide[:, 1:-2, 1:] = tensor
    some_heads = kept(hold(lab, wide).narrow, 1, 1, heads)
    return kept(some_heads.narrow, 2, 1, dim)


def bits(tensor: Tensor) -> Tensor:
    """What can be compared exactly, NaN included."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def same(one: Any, other: Tensor) -> bool:
    """Whether one is a tensor with the other's dtype, shape and bits."""
    return isinstance(one, Tensor) and one.dtype == other.dtype and one.shape == other.shape and torch.equal(
        bits(one), bits(other))


def expect_unchanged(**pairs: tuple[Remote, Tensor]) -> None:
    """Arguments that were given, each with what it was before."""
    changed = [name for name, (now, before) in pairs.items() if not same(look(now), before)]
    expect(not changed, f"{', '.join(changed)} changed: an argument that belongs to the caller was written to")


VAST = (1 << 41, 1 << 38, 1 << 35, 1 << 32, 1 << 28)
"""Bytes of a vast cache, the first for which the machine has addresses: 2 TiB nearly everywhere. The last is for machines
that give no addresses without memory; there a copy would go unnoticed."""
VAST_BLOCK = 256
VAST_HEADS = (32, 2, 64)


def vast_cache(lab: Remote, dtype: torch.dtype) -> Remote:
    """A cache that is larger than any memory, [num_blocks, 256, 2, 64], zeroed.

    It has addresses, and memory only for the pages that somebody writes. So a copy of it, or scores for all of
    it, cannot be had from the machine, or are more than a check may use; a few of its blocks cost what they cost in any.
    """
    expect_nothing_replaced(lab, "maps")  # an mmap that refuses would make the cache small
    there, maps = module_there(lab, "torch"), module_there(lab, "mmap")
    unreserved = 0x4000 if sys.platform == "linux" else 0  # MAP_NORESERVE
    for size in VAST:
        try:
            addresses = maps.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | unreserved)
            break
        except Raised:
            if size == VAST[-1]:
                raise
    flat = kept(there.frombuffer, addresses, dtype=dtype)
    return kept(flat.view, -1, VAST_BLOCK, *VAST_HEADS[1:])


def within_memory(otherwise: str, call: Remote, *arguments: Any) -> Any:
    """What the call gives. Where it wants more memory than there is, `otherwise` says what is wrong."""
    try:
        return call(*arguments)
    except Raised as error:
        if "alloc" in error.text or "MemoryError" in error.kinds:
            raise Wrong(f"{otherwise} ({shorter(error.text)})") from None
        raise


class Vast:
    """The requests of a pool, of blocks of 256, in two vast caches.

    Attributes:
        k_cache, v_cache: there.
        tables: as `Pool.tables`, with the blocks' ids here.
    """

    def __init__(self, lab: Remote, rng: random.Random, *spans: tuple[int, int], dtype: torch.dtype) -> None:
        self.pool = Pool(rng, *spans, block_size=VAST_BLOCK, heads=VAST_HEADS, dtype=dtype)
        self.k_cache, self.v_cache = (vast_cache(lab, dtype) for _ in "kv")
        self.ids = torch.tensor(rng.sample(range(1, self.k_cache.shape[0]), len(self.pool.k_cache)))
        for cache, blocks in ((self.k_cache, self.pool.k_cache), (self.v_cache, self.pool.v_cache)):
            kept(cache.index_copy_, 0, self.ids, blocks)
        self.tables = self.ids[self.pool.tables()]
        self.what = f"a pool of {self.k_cache.shape[0]:,} blocks in {str(dtype).removeprefix('torch.')}"

    def within_its_blocks(self, call: Remote, *arguments: Any) -> Any:
        """What the call gives; it must not need memory for the pool."""
        return within_memory(
            f"{self.what}, and something of its size was to be made: take the request's blocks first, and work on those alone",
            call, *arguments)
