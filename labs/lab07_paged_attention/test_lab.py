"""Lab 07's one suite. It tests what `starter.py` does: alone, on small caches, and in the real engine.

All of it: pytest test_lab.py        One TODO: pytest test_lab.py -k todo_3
"""

import contextlib
import functools
import gc
import math
import random
import re
import tempfile
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from labs.harness.catalog import lab_at
from labs.harness.mixed_engine.part import load_seam
from labs.harness.todo import TodoError
from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.config import ModelConfig
from nano_qwen3_serving.execution.model_runner import ModelRunner
from nano_qwen3_serving.execution.sampler import Sampler
from nano_qwen3_serving.interfaces import AttentionMetadata, ScheduledBatch, ScheduledChunk
from nano_qwen3_serving.model.checkpoint import BUNDLED
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.request import Request
from nano_qwen3_serving.testing.checkpoints import Shape, write_random_checkpoint
from nano_qwen3_serving.testing.oracle import Oracle

CPU = torch.device("cpu")
EDGES = [k * 4 + d for k in (1, 2, 5) for d in (-1, 0, 1)]
"""Lengths around a block's edge, for blocks of 4."""


def numbers(values) -> list:
    """A list or a tensor as nested lists."""
    return values.tolist() if isinstance(values, torch.Tensor) else list(values)


def model_config(num_heads: int = 4, num_kv_heads: int = 2, head_dim: int = 16, layers: int = 1) -> ModelConfig:
    return ModelConfig(
        vocab_size=10, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads, head_dim=head_dim, max_position_embeddings=1024)


# The oracle: attention written out in float64, in loops, and how far a right answer may be from it.


def dense(q, keys, values, start: int) -> torch.Tensor:
    """q [count, num_heads, dim] at positions start, start + 1, …; keys, values [seq_len, num_kv_heads, dim]."""
    count, num_heads, dim = q.shape
    group = num_heads // keys.shape[1]
    out = torch.empty(count, num_heads, dim, dtype=torch.float64)
    for j in range(count):
        for head in range(num_heads):
            k, v = (t[: start + j + 1, head // group].double() for t in (keys, values))
            out[j, head] = torch.softmax(k @ q[j, head].double() / math.sqrt(dim), dim=0) @ v
    return out


def allowed_error(q, keys, values) -> float:
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
    return values.abs().max().item() * (math.expm1(2 * score_error) + 3 * u + len(keys) * u32)


def with_mistake(request, keys=None, values=None, scale=0.0, reads=None, kv_head=None, hidden=-math.inf) -> torch.Tensor:
    """Attention of `request` in which something is not as it should be; what is left out is as it should be.

    keys, values: [n, num_kv_heads, dim]. scale: what scores are multiplied by. reads: [count], how many keys each row
    sees. kv_head: query head → KV head. hidden: the score of a key that a row does not see.
    """
    q = request.q.double()
    keys, values = (request.keys if keys is None else keys).double(), (request.values if values is None else values).double()
    _, num_heads, dim = q.shape
    group = num_heads // keys.shape[1]
    heads = torch.tensor([kv_head(h) if kv_head else h // group for h in range(num_heads)])
    scores = torch.einsum("thd,nhd->thn", q, keys[:, heads]) * (scale or dim**-0.5)
    reads = request.reads() if reads is None else reads
    later = torch.arange(len(keys))[None, :] >= reads[:, None]
    weights = torch.softmax(scores.masked_fill(later[:, None], hidden), dim=-1)
    return torch.einsum("thn,nhd->thd", weights, values[:, heads])


def mistakes(request):
    """(what is wrong, in a sentence; what attention gives then), of mistakes that are often made."""
    num_heads, dim = request.q.shape[1:]
    num_kv_heads, reads = request.keys.shape[1], request.reads()
    for scale, why in ((1.0, "were not divided by the square root of head_dim"), (1 / dim, "were divided by head_dim itself"),
                       (num_heads**-0.5, "were divided by the square root of the number of heads")):
        yield f"The scores {why}", with_mistake(request, scale=scale)
    yield "Query head h read KV head h % num_kv_heads, not h // group", with_mistake(request, kv_head=lambda h: h % num_kv_heads)
    yield "All query heads read KV head 0", with_mistake(request, kv_head=lambda h: 0)
    yield "Keys were weighed in place of values", with_mistake(request, values=request.keys)
    yield "Values stood in for keys", with_mistake(request, keys=request.values)
    yield "All keys had the same weight", with_mistake(request, keys=torch.zeros_like(request.keys))
    yield "Each row read one key too few: a token sees itself", with_mistake(request, reads=(reads - 1).clamp(min=1))
    yield "Row j read j + 1 keys; it stands at num_computed_tokens + j", with_mistake(request, reads=reads - request.start)
    yield "Every row saw all keys, later ones, too", with_mistake(request, reads=torch.full_like(reads, request.seq_len))
    yield "Scores of later positions became 0, and e^0 is a weight: take minus infinity", with_mistake(request, hidden=0.0)
    yield from mistakes_about_blocks(request)


def mistakes_about_blocks(request):
    """As `mistakes`, of those that read slots which are not the request's, or in another order."""
    if not request.table:
        return
    room = len(request.table) * request.block_size
    keys, values = (
        torch.cat([one, torch.full((room - len(one), *one.shape[1:]), request.garbage, dtype=one.dtype)])
        for one in (request.keys, request.values))
    whole = torch.where(request.reads() == request.seq_len, room, request.reads())
    yield "The whole last block was read, slots in it that nobody wrote, too", with_mistake(request, keys, values, reads=whole)
    yield "Each row read one key too many", with_mistake(request, keys, values, reads=(request.reads() + 1).clamp(max=room))
    order = torch.tensor(sorted(range(len(request.table)), key=request.table.__getitem__))
    keys, values = (one.unflatten(0, (-1, request.block_size))[order].flatten(0, 1) for one in (keys, values))
    yield "The blocks were read in the order of their numbers; it is that of the block table", with_mistake(request, keys, values)


def story(got, want, request, limit: float) -> str:
    """Which mistake gives `got`, in a sentence before a full stop; nothing if none that we know does."""
    near = max(10 * limit, 1e-3)
    fits = [why for why, wrong in mistakes(request)
            if bool(wrong.isfinite().all()) and (got.double() - wrong).abs().max() < near < (want - wrong).abs().max() / 3]
    if fits:
        return f" {'. Or: '.join(fits)}."
    if 6 < abs(request.garbage) < 1e3 and got.abs().max() > 6:
        return f" {request.garbage:g} stands in all slots that nobody wrote, and in those of nobody's blocks: some were read."
    return ""


def check(right: bool, message: str) -> None:
    """Fails with `message` alone: whole tensors beside it would hide it."""
    __tracebackhide__ = True
    if not right:
        pytest.fail(message, pytrace=False)


def assert_attends(got, request, *, what: str) -> None:
    """`got`, [count, num_heads, head_dim], is dense attention of `request`."""
    __tracebackhide__ = True
    want = dense(request.q, request.keys, request.values, request.start)
    check(isinstance(got, torch.Tensor), f"{what}: expected a tensor, got {got!r}")
    check(got.shape == want.shape, f"{what}: expected shape {list(want.shape)}, got {list(got.shape)}")
    check(got.dtype == request.q.dtype, f"{what}: q is {request.q.dtype}, so the result is too; got {got.dtype}")
    differences = (got.double() - want).abs()
    rows = (~differences.isfinite()).flatten(1).any(dim=1).nonzero().flatten() + request.start
    check(not len(rows), (
        f"{what}: NaN or infinity at positions {rows.tolist()}. Was something read that nobody wrote, or has a row "
        "no key at all to read?"))
    limit = allowed_error(request.q, request.keys, request.values)
    worst = differences.amax(dim=(1, 2))
    row, head = int(worst.argmax()), int(differences.amax(dim=2)[int(worst.argmax())].argmax())
    check(worst.max() <= limit, (
        f"{what}: wrong in {int((worst > limit).sum())} of {len(worst)} rows. Worst is position {request.start + row}, "
        f"query head {head}: expected {first_of(want[row, head])}, got {first_of(got[row, head])}; "
        f"rounding alone explains a difference of {limit:.1e}.{story(got, want, request, limit)}"))


def first_of(row) -> str:
    """The first three numbers of a head."""
    return "[" + ", ".join(f"{number:.4f}" for number in row[:3].tolist()) + ", …]"


def assert_unchanged(before: dict, **after) -> None:
    """The arguments that a function was given, bit for bit; `before` is from `bits`."""
    __tracebackhide__ = True
    changed = [
        name for name, tensor in after.items()
        if tensor.shape != before[name].shape or not torch.equal(bits(tensor), before[name])]
    check(not changed, f"{', '.join(changed)} changed: an argument that belongs to the caller was written to")


# Requests in a cache. Nothing here is the lab's code.


class Asked:
    """One request: q stands at positions start, …; keys and values are those of all its tokens."""

    def __init__(self, start, count, num_heads, num_kv_heads, head_dim, dtype, generator):
        def noise(*shape):
            return torch.randn(*shape, generator=generator).to(dtype)

        self.start, self.count = start, count
        self.q = noise(count, num_heads, head_dim)
        self.keys, self.values = (noise(start + count, num_kv_heads, head_dim) for _ in "kv")
        self.table: list[int] = []
        self.block_size, self.garbage = 0, math.nan  # of its pool

    @property
    def seq_len(self) -> int:
        return self.start + self.count

    def reads(self) -> torch.Tensor:
        """How many keys each row sees, [count]."""
        return torch.arange(self.start, self.seq_len) + 1

    def rows(self) -> torch.Tensor:
        """A copy of q to hand to the lab: whoever changes it does not change what is expected."""
        return self.q.clone()


class Pool:
    """A cache of one layer with requests in scattered blocks; `garbage` in every slot that nobody wrote.

    spans: (tokens computed before, tokens of this step) of each request, those of one token first.
    """

    def __init__(
        self, *spans, block_size=4, num_heads=4, num_kv_heads=2, head_dim=16, dtype=torch.float32, garbage=50.0,
        seed=0, spare_blocks=3,
    ):
        generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
        self.block_size = block_size
        self.requests = [Asked(*span, num_heads, num_kv_heads, head_dim, dtype, generator) for span in spans]
        needed = [-(-request.seq_len // block_size) for request in self.requests]
        num_blocks = 1 + sum(needed) + spare_blocks
        blocks = list(range(1, num_blocks))
        rng.shuffle(blocks)
        shape = (num_blocks, block_size, num_kv_heads, head_dim)
        self.k_cache, self.v_cache = (torch.full(shape, garbage, dtype=dtype) for _ in "kv")
        self.nobodys = blocks.pop()
        for request, count in zip(self.requests, needed, strict=True):
            request.table = sorted((blocks.pop() for _ in range(count)), reverse=True)  # never in rising order
            request.block_size, request.garbage = block_size, garbage
            self.put(request, request.keys, request.values)

    def put(self, request, keys, values) -> None:
        """Writes a request's keys and values, a slot at a time."""
        for i in range(request.seq_len):
            place = request.table[i // self.block_size], i % self.block_size
            self.k_cache[place], self.v_cache[place] = keys[i], values[i]

    def tables(self, spare: int = 0) -> torch.Tensor:
        """[num_requests, longest + spare]. The engine fills up with the null block, or with a block too many.

        What stands there means nothing, so here it is a block of nobody's, full of garbage.
        """
        longest = max(len(request.table) for request in self.requests) + spare
        return torch.tensor([r.table + [self.nobodys] * (longest - len(r.table)) for r in self.requests])

    def table(self, i: int = 0, spare: int = 2) -> torch.Tensor:
        """The block table of request i, with some that are not its own after those that are."""
        return self.tables(spare)[i]

    def query_starts(self) -> list[int]:
        return [sum(r.count for r in self.requests[:i]) for i in range(len(self.requests) + 1)]

    def seq_lens(self) -> list[int]:
        return [request.seq_len for request in self.requests]

    def q(self) -> torch.Tensor:
        """All rows of the step, [num_tokens, num_heads, head_dim]."""
        return torch.cat([request.q for request in self.requests])

    def metadata(self) -> AttentionMetadata:
        slots = [r.table[p // self.block_size] * self.block_size + p % self.block_size
                 for r in self.requests for p in range(r.start, r.seq_len)]
        return AttentionMetadata(
            query_lens=[r.count for r in self.requests], seq_lens=self.seq_lens(), block_tables=self.tables(),
            slot_mapping=torch.tensor(slots), num_decodes=sum(r.count == 1 for r in self.requests),
            block_size=self.block_size)


def bits(tensor) -> torch.Tensor:
    """A copy that can be compared exactly, NaN included."""
    same_size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().clone().view(same_size)


def all_bits(**tensors) -> dict:
    """`bits` of each, by name."""
    return {name: bits(tensor) for name, tensor in tensors.items()}


def where_q_is(call):
    """`call()`, while tensors that are made without a device land elsewhere: on "meta", which has no numbers.

    Whoever makes one there and never brings it together with q's, as to read numbers from it, is not judged.
    """
    __tracebackhide__ = True
    try:
        with torch.device("meta"):
            got = call()
        if isinstance(got, torch.Tensor) and got.device == CPU:
            return got
        message = f"the result is on {got.device}, and q on {CPU}: make what you make with device=q.device"
    except TodoError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        if not re.search("expected device|same device|different device", str(error)):
            return call()
        message = f"something was made on torch's default device, and q is on another: make it with device=q.device ({error})"
    pytest.fail(message, pytrace=False)


def of_other_strides(tensor) -> torch.Tensor:
    """The same numbers, cut out of a wider tensor, as q, k and v are cut out of one product in the engine."""
    rows, heads, dim = tensor.shape
    wide = torch.full((rows, heads + 3, dim + 1), 7.0, dtype=tensor.dtype)
    wide[:, 1:-2, 1:] = tensor
    return wide[:, 1:-2, 1:]


class Copied(TorchDispatchMode):
    """Counts the bytes that torch writes into new memory. A view is none."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        old = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() not in old:
                self.bytes += leaf.numel() * leaf.element_size()
        return result


def assert_did_not_copy_the_pool(copied: Copied, pool: Pool, share: int = 16) -> None:
    """Fewer bytes were copied than 1 / `share` of the pool's keys.

    Scores against all keys of the pool are an eighth of it for a row of four heads in float32 or bfloat16.
    """
    __tracebackhide__ = True
    size = pool.k_cache.nbytes
    own = 2 * sum(len(r.table) for r in pool.requests) * size // len(pool.k_cache)
    check(copied.bytes < size / share, (
        f"{copied.bytes:,} bytes of {pool.k_cache.dtype} were made to use {own:,} bytes of keys and values; all keys of "
        f"the pool are {size:,}. Take the request's blocks first, and work on those alone."))


# TODO 1: lay out the batch


def example(lab):
    """The README's A and B."""
    return (lab.Chunk(token_ids=[17], num_computed_tokens=6, block_table=[5, 2]),
            lab.Chunk(token_ids=[21, 22], num_computed_tokens=1, block_table=[7]))


def slots_or_error(lab, table, positions, block_size):
    """The list of slots, or what an IndexError said."""
    try:
        slots = lab.slots_of(table, positions, block_size)
    except IndexError as error:
        return f"IndexError: {error}"
    check(is_list_of_ints(slots), f"slots_of() returned {slots!r}; expected a list of ints")
    return slots


def is_list_of_ints(values) -> bool:
    """Not tensors, floats or bools that equal them."""
    return isinstance(values, list) and all(type(value) is int for value in values)


def laid_out(lab, chunks, block_size, what: str):
    """`lay_out` of the chunks; an IndexError with what it was given."""
    __tracebackhide__ = True
    try:
        return lab.lay_out(chunks, block_size)
    except IndexError as error:
        given = [(c.num_computed_tokens, len(c.token_ids), c.block_table) for c in chunks]
        message = f"{what}, blocks of {block_size}, chunks (computed, tokens, block table) {given}: IndexError: {error}"
    pytest.fail(message, pytrace=False)


@pytest.mark.todo(1, points=3)
@pytest.mark.parametrize(
    ("block_size", "blocks", "positions", "slots"),
    [(4, [7, 2, 5], range(2, 10), [30, 31, 8, 9, 10, 11, 20, 21]), (4, [5, 2], range(3, 5), [23, 8]),
     (4, [3, 9, 5], range(2, 10), [14, 15, 36, 37, 38, 39, 20, 21]),  # the ends are as far apart as in a row of blocks
     (4, [3, 4, 5], range(2, 10), [14, 15, 16, 17, 18, 19, 20, 21]), (4, [6], range(4), [24, 25, 26, 27]),
     (1, [3, 9, 4], range(1, 3), [9, 4]), (16, [2, 1], range(15, 17), [47, 16]),
     (4, [7], range(4, 4), [])],
)
def test_todo_1_a_slot_is_block_id_times_block_size_plus_offset(lab, block_size, blocks, positions, slots):
    table = list(blocks)
    got = slots_or_error(lab, table, positions, block_size)
    check(got == slots, (
        f"blocks of {block_size}, block table {table}, positions {list(positions)}: expected slots {slots}, got {got}"))
    table.insert(0, 11)  # the engine's list, some steps later
    got, moved = slots_or_error(lab, table, range(block_size), block_size), [11 * block_size + i for i in range(block_size)]
    check(got == moved, f"the same list is {table} now, so its first block has the slots {moved}; got {got}")


@pytest.mark.todo(1, points=3)
def test_todo_1_lays_out_the_example_of_the_readme(lab):
    a, b = example(lab)
    layout = laid_out(lab, [a, b], 4, "A and B")
    # by hand: A's position 6 is offset 2 of its second block, 2 * 4 + 2; B's are 7 * 4 + 1 and 7 * 4 + 2
    wanted = {
        "token_ids": [17, 21, 22], "positions": [6, 1, 2], "slot_mapping": [10, 29, 30], "query_starts": [0, 1, 3],
        "seq_lens": [7, 3], "block_tables": [[5, 2], [7, 0]],
    }
    for name, want in wanted.items():
        got = numbers(getattr(layout, name))
        assert got == want, f"{name} of A and B: expected {want}, got {got}"
    assert layout.num_decodes == 1, f"A computes one token, B two: num_decodes is 1, not {layout.num_decodes}"
    for name in ("token_ids", "positions", "slot_mapping", "block_tables"):
        tensor = getattr(layout, name)
        assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.long, f"{name}: expected a torch.long tensor"
    for name in ("query_starts", "seq_lens"):
        check(is_list_of_ints(getattr(layout, name)), f"{name}: expected a list of ints, got {getattr(layout, name)!r}")


@pytest.mark.todo(1, points=3)
@pytest.mark.parametrize(("lengths", "expected"), [
    ([3, 1, 2, 1, 1, 4], [1, 3, 4, 0, 2, 5]), ([1, 3, 1], [0, 2, 1]), ([4, 1, 2], [1, 0, 2]), ([1, 2, 3], [0, 1, 2])], ids=str)
def test_todo_1_chunks_of_one_token_come_first_and_otherwise_the_order_stays(lab, lengths, expected):
    chunks = [lab.Chunk([100 * i + j for j in range(n)], 0, [i + 1]) for i, n in enumerate(lengths)]
    layout = laid_out(lab, chunks, 4, f"chunks of {lengths} tokens")
    order = [chunk.block_table[0] - 1 for chunk in layout.chunks]
    assert order == expected, f"chunks of {lengths} tokens: expected the order {expected}, got {order}"
    tokens = [token for i in order for token in chunks[i].token_ids]
    assert numbers(layout.token_ids) == tokens, "chunks and token_ids are not in the same order"
    assert [row[0] - 1 for row in numbers(layout.block_tables)] == order, "chunks and block_tables are not in the same order"
    decodes = lengths.count(1)
    assert layout.num_decodes == decodes, f"{decodes} of the chunks have one token; num_decodes was {layout.num_decodes}"


def engine_chunk(rng: random.Random, name: str, count: int, block_size: int) -> ScheduledChunk:
    """A chunk as the scheduler makes it: `count` tokens after some others, in any blocks, at times one too many."""
    start = rng.choice([0, block_size - 1, block_size, rng.randrange(30)])
    blocks = -(-(start + count) // block_size) + rng.choice([0, 0, 1])
    tokens = [rng.randrange(1000) for _ in range(start + count + rng.randrange(3))]
    request = Request(name, None, tokens, SamplingParams(), seed=0, max_total_tokens=1000)
    return ScheduledChunk(request, start, count, rng.sample(range(1, 200), blocks))


@pytest.mark.todo(1, points=4)
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_todo_1_is_what_the_engines_model_runner_lays_out(lab, block_size):
    rng = random.Random(block_size)
    for case in range(12):
        counts = [rng.choice([1, 1, 2, 5, block_size, block_size + 1]) for _ in range(rng.randrange(1, 6))]
        chunks = [engine_chunk(rng, f"r{i}", n, block_size) for i, n in enumerate(counts)]
        mine = laid_out(
            lab, [lab.Chunk(c.request.token_ids(c.start, c.end), c.start, list(c.block_table)) for c in chunks], block_size,
            f"case {case}")
        attention = TorchPagedAttention(model_config(), block_size, torch.float32, CPU)
        runner = ModelRunner(None, attention, None, num_blocks=2, block_size=block_size, device=CPU)
        theirs = runner.lay_out(ScheduledBatch(chunks))
        starts = [sum(theirs.metadata.query_lens[:i]) for i in range(len(chunks) + 1)]
        for name, want in {
            "token_ids": theirs.token_ids, "positions": theirs.positions, "slot_mapping": theirs.metadata.slot_mapping,
            "query_starts": starts, "seq_lens": theirs.metadata.seq_lens, "block_tables": theirs.metadata.block_tables,
            "num_decodes": [theirs.metadata.num_decodes],
        }.items():
            got = getattr(mine, name)
            got = [got] if name == "num_decodes" else numbers(got)
            assert got == numbers(want), (
                f"case {case}, chunks (computed, tokens) {[(c.start, c.num_tokens) for c in chunks]}, blocks of {block_size}: "
                f"{name} expected {numbers(want)}, got {got}")


@pytest.mark.todo(1, points=1)
def test_todo_1_leaves_the_chunks_as_they_are(lab):
    a, b = example(lab)
    chunks = [b, a]
    lab.lay_out(chunks, 4)
    assert (chunks[0] is b and chunks[1] is a) and (a, b) == example(lab), (
        f"the chunks belong to the scheduler, which uses them again; after lay_out they were {chunks}")


# TODO 2: write keys and values


def tokens_of(first: int, count: int, num_kv_heads=2, head_dim=4, dtype=torch.float32) -> torch.Tensor:
    """Keys that can be told apart by eye: token i has first + i, and .25 more in each further head."""
    tokens = torch.arange(first, first + count, dtype=torch.float32)[:, None, None]
    return (tokens + 0.25 * torch.arange(num_kv_heads)[:, None]).expand(-1, -1, head_dim).to(dtype).contiguous()


@pytest.mark.todo(2, points=4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("slots", "what"), [
    ([23, 8, 31, 16], "the last slot of block 5, the first of 2, the last of the cache, the first of 4"),
    ([8, 29, 18, 11], "rows of several requests: the first and the last slot happen to be as far apart as in a row of four"),
    ([8, 10, 9, 11], "the slots of block 2, in another order"), ([11, 10, 9, 8], "the slots of block 2, from the last"),
    ([8, 9, 10, 11], "block 2, whole"), ([14, 15, 16, 17], "slots in a row, of two blocks")],
    ids=["scattered", "ends", "mixed", "falling", "one block", "a row"])
def test_todo_2_every_token_lands_in_its_slot_and_nothing_else_changes(lab, dtype, slots, what):
    k_cache, v_cache = (torch.full((8, 4, 2, 4), -1.0, dtype=dtype) for _ in "kv")
    k, v = tokens_of(10, 4, dtype=dtype), tokens_of(20, 4, dtype=dtype)
    lab.write_kv(k_cache, v_cache, k, v, torch.tensor(slots))
    for name, cache, new in (("k_cache", k_cache, k), ("v_cache", v_cache, v)):
        want = torch.full((32, 2, 4), -1.0, dtype=dtype)
        for row, slot in enumerate(slots):
            want[slot] = new[row]
        got = cache.view(32, 2, 4)
        wrong = (got != want).flatten(1).any(dim=1).nonzero().flatten().tolist()
        heads = ", ".join(f"KV head {head}: expected {want[slot, head, 0].item()}, got {got[slot, head, 0].item()}"
                          for slot in wrong[:1] for head in range(2) if not torch.equal(got[slot, head], want[slot, head]))
        assert not wrong, f"{name} after writing slots {slots} ({what}): slots {wrong} are wrong. Slot {wrong[0]}, {heads}"


@pytest.mark.todo(2, points=3)
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("num_kv_heads", [1, 3])
def test_todo_2_takes_keys_and_values_of_any_strides(lab, num_kv_heads, block_size):
    k_cache, v_cache = (torch.zeros(1 + 20 // block_size, block_size, num_kv_heads, 8) for _ in "kv")
    k, v = (torch.randn(3, num_kv_heads, 8, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    strided_k, strided_v, slots = of_other_strides(k), of_other_strides(v), torch.tensor([6, 5, 19])
    before = all_bits(k=strided_k, v=strided_v, slot_mapping=slots)
    lab.write_kv(k_cache, v_cache, strided_k, strided_v, slots)
    for name, cache, new in (("k_cache", k_cache, k), ("v_cache", v_cache, v)):
        got = torch.stack([cache[slot // block_size, slot % block_size] for slot in (6, 5, 19)])
        check(torch.equal(got, new), (
            f"{name}, blocks of {block_size}: k and v, cut out of a wider tensor, were to go to the slots 6, 5 and 19, and other "
            "numbers are there"))
    assert_unchanged(before, k=strided_k, v=strided_v, slot_mapping=slots)  # the next layer uses the same slots


@pytest.mark.todo(2, points=2)
def test_todo_2_one_token_alone_and_padding_in_the_null_block(lab):
    k_cache, v_cache = (torch.zeros(4, 4, 2, 4) for _ in "kv")
    lab.write_kv(k_cache, v_cache, tokens_of(10, 1), tokens_of(20, 1), torch.tensor([5]))
    lab.write_kv(k_cache, v_cache, tokens_of(11, 3), tokens_of(21, 3), torch.tensor([6, 0, 0]))
    live = k_cache[1:, :, 0, 0].flatten().tolist(), v_cache[1:, :, 0, 0].flatten().tolist()
    want = [0, 10, 11, *[0] * 9], [0, 20, 21, *[0] * 9]
    assert live == want, f"keys and values outside the null block: expected {want}, got {live}"


@pytest.mark.todo(2, points=1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_todo_2_does_not_copy_the_cache(lab, dtype):
    pool = Pool((0, 3), spare_blocks=1000, dtype=dtype)
    slots = torch.tensor([pool.requests[0].table[0] * 4 + i for i in range(3)])
    with Copied() as copied:
        lab.write_kv(pool.k_cache, pool.v_cache, pool.requests[0].keys, pool.requests[0].values, slots)
    assert_did_not_copy_the_pool(copied, pool)


# TODO 3: decode one request


@pytest.mark.todo(3, points=3)
@pytest.mark.parametrize(("table", "length"), [
    *(([5, 2], length) for length in (1, 3, 4, 5, 7, 8)),
    ([3, 6, 5], 12), ([3, 5, 4, 6], 15),  # the first and the last are as far apart as in a row of blocks
    ([3, 4, 5], 10), ([5, 4, 3], 12)], ids=str)
def test_todo_3_gather_follows_the_block_table_and_stops_at_the_last_token(lab, table, length):
    cache = torch.full((8, 4, 2, 3), -1.0)
    a = tokens_of(10, 4 * len(table), head_dim=3)  # A has keys 10, 11, 12, …
    cache[torch.tensor(table)], cache[7, :3] = a.unflatten(0, (-1, 4)), tokens_of(40, 3, head_dim=3)
    got = lab.gather(cache, torch.tensor([*table, 7, 0]), length)  # the last two are not A's
    assert tuple(got.shape) == (length, 2, 3), f"expected shape {(length, 2, 3)}, got {tuple(got.shape)}"
    check(torch.equal(got, a[:length]), (
        f"A's keys are 10, 11, … in blocks {table}; asked for the first {length}, got those that begin with "
        f"{got[:, 0, 0].tolist()} (-1 is a slot nobody wrote, 40 and more is B's)"))


@pytest.mark.todo(3, points=2)
def test_todo_3_an_example_by_hand_five_tokens_four_heads(lab):
    k_cache, v_cache = (torch.zeros(8, 4, 2, 4) for _ in "kv")
    v_cache[5, :, 0], v_cache[5, :, 1] = 0, 300
    k_cache[2, :, :, 0] = math.log(4)
    v_cache[2, 0, 0], v_cache[2, 0, 1] = 30, 330
    v_cache[2, 1:, 0], v_cache[2, 1:, 1] = 60, 360
    q = torch.tensor([2.0, 0, 0, 0]).repeat(4, 1)
    got = lab.decode_attention(q, k_cache, v_cache, torch.tensor([5, 2, 0]), 5)
    # A score is 2 * log(weight) / sqrt(4), so tokens weigh 1, 1, 1, 1, 4. KV head 0 has the values 0, 0, 0, 0, 30:
    # 4 * 30 / 8 = 15, and KV head 1 has 300 more. The three slots after the fifth token have 60 and 360.
    want = (15.0, 15.0, 315.0, 315.0)
    known = {
        (15.0, 315.0, 15.0, 315.0): " Query heads 0 and 1 share KV head 0, 2 and 3 share KV head 1: h // 2, not h % 2.",
        (24.0, 24.0, 324.0, 324.0): " The scores were not divided by the square root of head_dim, which is 2.",
        (10.0, 10.0, 310.0, 310.0): " The scores were divided by head_dim, or twice by its square root.",
        (6.0, 6.0, 306.0, 306.0): " All tokens had the same weight, whatever their keys are.",
        (0.0, 0.0, 300.0, 300.0): " The fifth token, the newest, was not read.",
        (30.0, 30.0, 330.0, 330.0): " A sixth token was read, and there are five.",
        (0.693, 0.693, 0.693, 0.693): " The keys were weighed in place of the values.",
        (15.0, 15.0, 15.0, 15.0): " All query heads read KV head 0.",
        (42.0, 42.0, 342.0, 342.0): " The whole last block was read, and only one of its slots is the request's.",
    }
    check(tuple(got.shape) == (4, 4), f"expected shape [4, 4], num_heads and head_dim, got {list(got.shape)}")
    found = tuple(round(number, 3) for number in got[:, 0].tolist())
    check(torch.allclose(got, torch.tensor(want)[:, None].expand(4, 4), atol=1e-3), (
        f"weights 1, 1, 1, 1, 4 and values 0, 0, 0, 0, 30 (KV head 1: 300 more): expected heads {want}, got {found}."
        f"{known.get(found, '')}"))


@pytest.mark.todo(3, points=2)
@pytest.mark.parametrize("block_size", [1, 3, 4])
@pytest.mark.parametrize("length", [1, 2, *EDGES])
def test_todo_3_decode_reads_all_its_keys_and_no_other_at_every_block_edge(lab, length, block_size):
    pool = Pool((length - 1, 1), (6, 1), block_size=block_size)
    got = lab.decode_attention(pool.requests[0].rows()[0], pool.k_cache, pool.v_cache, pool.table(0), length)
    assert_attends(got[None], pool.requests[0], what=f"decode over {length} tokens, blocks of {block_size}")


def rewritten(pool: Pool, i: int = 0) -> str:
    """Writes other keys and values into the slots of request i, as another request that gets its blocks; says so."""
    request = pool.requests[i]
    request.keys, request.values = -2 * request.keys, request.values + 3
    pool.put(request, request.keys, request.values)
    return "the second of two calls, between which other keys and values were written to the same slots"


@pytest.mark.todo(3, points=1)
@pytest.mark.parametrize("read", ["gather", "decode_attention"])
def test_todo_3_each_call_reads_the_cache_anew(lab, read):
    pool = Pool((8, 1))
    request, table = pool.requests[0], pool.table()
    for what in ("the first call", None):
        what = what or rewritten(pool)
        if read == "gather":
            for name, cache, want in (("keys", pool.k_cache, request.keys), ("values", pool.v_cache, request.values)):
                check(torch.equal(lab.gather(cache, table, 9), want), f"gather of {name}, {what}: other numbers came")
        else:
            got = lab.decode_attention(request.rows()[0], pool.k_cache, pool.v_cache, table, 9)
            assert_attends(got[None], request, what=what)


@pytest.mark.todo(3, points=2)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 4, 16), (4, 2, 8), (8, 2, 16), (6, 1, 32), (1, 1, 2)])
def test_todo_3_query_head_i_reads_kv_head_i_over_group_size(lab, num_heads, num_kv_heads, head_dim):
    pool = Pool((9, 1), num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    got = lab.decode_attention(pool.requests[0].rows()[0], pool.k_cache, pool.v_cache, pool.table(), 10)
    assert_attends(got[None], pool.requests[0], what=f"{num_heads} query heads, {num_kv_heads} KV heads of {head_dim}")


@pytest.mark.todo(3, points=2)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, 3e38], ids=["nan", "inf", "huge"])
def test_todo_3_what_nobody_wrote_never_reaches_the_result(lab, garbage):
    pool = Pool((8, 1), garbage=garbage)  # nine tokens: three slots of the last block are free
    got = lab.decode_attention(pool.requests[0].rows()[0], pool.k_cache, pool.v_cache, pool.table(), 9)
    assert_attends(got[None], pool.requests[0], what=f"{garbage} in every slot that nobody wrote")


@pytest.mark.todo(3, points=1)
@pytest.mark.parametrize("spread", [1.0, 0.01], ids=["keys that differ", "600 keys almost alike"])
def test_todo_3_bfloat16_is_as_exact_as_bfloat16_can_be(lab, spread):
    pool = Pool((599, 1), dtype=torch.bfloat16, block_size=16)
    request = pool.requests[0]
    request.keys, request.values = request.keys * spread, request.values * spread + 1
    pool.put(request, request.keys, request.values)
    got = lab.decode_attention(request.rows()[0], pool.k_cache, pool.v_cache, pool.table(), 600)
    assert_attends(got[None], request, what="decode over 600 tokens in bfloat16")


@pytest.mark.todo(3, points=1)
@pytest.mark.parametrize("times", [100.0, -100.0])
def test_todo_3_large_scores_do_not_overflow(lab, times):
    pool = Pool((9, 1))
    pool.requests[0].q *= times  # scores of some hundreds; e^89 is more than float32 can hold
    got = lab.decode_attention(pool.requests[0].rows()[0], pool.k_cache, pool.v_cache, pool.table(), 10)
    assert_attends(got[None], pool.requests[0], what=f"q times {times}, scores of some hundreds")
    pool.requests[0].q[:, 0] *= 5  # one head far from the others
    got = lab.decode_attention(pool.requests[0].rows()[0], pool.k_cache, pool.v_cache, pool.table(), 10)
    assert_attends(got[None], pool.requests[0], what="scores of query head 0 five times as large as those of the others")


@pytest.mark.todo(3, points=1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_todo_3_reads_a_view_and_changes_nothing(lab, dtype):
    pool = Pool((6, 1), (2, 1), dtype=dtype)
    request, table = pool.requests[0], pool.table(0)
    q = of_other_strides(request.q)[0]
    before = all_bits(q=q, k_cache=pool.k_cache, v_cache=pool.v_cache, block_table=table)
    got = where_q_is(lambda: lab.decode_attention(q, pool.k_cache, pool.v_cache, table, 7))
    assert_attends(got[None], request, what="q cut out of a wider tensor")
    assert_unchanged(before, q=q, k_cache=pool.k_cache, v_cache=pool.v_cache, block_table=table)


@pytest.mark.todo(3, points=1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_todo_3_copies_no_more_than_the_requests_own_blocks(lab, dtype):
    pool = Pool((8, 1), spare_blocks=4000, dtype=dtype)
    with Copied() as copied:
        lab.decode_attention(pool.requests[0].rows()[0], pool.k_cache, pool.v_cache, pool.table(), 9)
    assert_did_not_copy_the_pool(copied, pool)


@pytest.mark.todo(3, points=1)
def test_todo_3_gather_fetches_only_the_blocks_that_hold_its_tokens(lab):
    pool = Pool((39, 1), num_kv_heads=1, head_dim=64)  # 40 tokens in 10 blocks; its neighbour in the batch has many more
    table, own = pool.table(spare=1000), 10 * pool.k_cache[0].nbytes
    with Copied() as copied:
        lab.gather(pool.k_cache, table, 40)
    # Each block once would be `own`. Three times that leaves room for joining them, and for numbers of slots.
    assert copied.bytes <= 3 * own, (
        f"{copied.bytes:,} bytes were copied to gather 10 blocks, {own:,} bytes, whose block table has 1,000 entries more: "
        "what stands there means nothing, and is not fetched")


# TODO 4: chunks


@pytest.mark.todo(4, points=2)
def test_todo_4_the_example_of_the_readme(lab):
    k_cache, v_cache = (torch.full((8, 4, 1, 1), 50.0) for _ in "kv")
    k_cache[7, :3, 0, 0] = torch.tensor([0.0, math.log(2), math.log(3)])
    v_cache[7, :3, 0, 0] = torch.tensor([30.0, 60.0, 90.0])
    q = torch.tensor([[1.0], [0.0]]).repeat(2, 1, 1)  # the first head asks with 1, the second with 0
    got = lab.chunk_attention(q, k_cache, v_cache, torch.tensor([7, 0]), 1)
    # head 0 weighs by e^key = 1, 2, 3: (30 + 120) / 3 and (30 + 120 + 270) / 6; head 1 takes the mean
    want = [[50.0, 45.0], [70.0, 60.0]]
    rows = got[:, :, 0].tolist()
    known = {
        (30.0, 50.0): " That is each row one key short: the first row stands at position num_computed_tokens, not 0.",
        (70.0, 70.0): " The first row has seen the key of the second.",
        (60.0, 70.0): " A later position's score was set to 0, and e^0 is 1: a weight, not none.",
    }
    found = tuple(round(row[0], 3) for row in rows)
    check(torch.allclose(got[:, :, 0], torch.tensor(want), atol=1e-4), (
        f"B's positions 1 and 2: expected {want}, got {rows}.{known.get(found, '')}"))


SPANS = [(0, 2), (0, 4), (0, 5), (0, 9), (1, 2), (3, 2), (3, 5), (4, 4), (5, 3), (7, 2), (8, 3), (8, 8), (15, 6),
         (20, 2), (2, 40)]


@pytest.mark.todo(4, points=4)
@pytest.mark.parametrize(("computed", "count"), SPANS)
def test_todo_4_row_j_reads_the_keys_up_to_computed_plus_j(lab, computed, count):
    pool = Pool((computed, count), (5, 2))
    got = lab.chunk_attention(pool.requests[0].rows(), pool.k_cache, pool.v_cache, pool.table(0), computed)
    assert_attends(got, pool.requests[0], what=f"a chunk of {count} after {computed} computed tokens, blocks of 4")


@pytest.mark.todo(4, points=1)
def test_todo_4_each_call_reads_the_cache_anew(lab):
    pool = Pool((5, 4))
    request, table = pool.requests[0], pool.table()
    for what in ("the first call", None):
        what = what or rewritten(pool)
        assert_attends(lab.chunk_attention(request.rows(), pool.k_cache, pool.v_cache, table, 5), request, what=what)


@pytest.mark.todo(4, points=1)
def test_todo_4_a_later_key_has_no_weight_however_low_the_others_score(lab):
    pool = Pool((0, 3), num_heads=1, num_kv_heads=1, head_dim=1)
    request = pool.requests[0]
    request.q, request.values = torch.ones(3, 1, 1), torch.tensor([30.0, 60.0, 90.0])[:, None, None]
    for low in (-40_000.0, -1e30):  # q is 1, so that is what all three keys score
        request.keys = torch.full((3, 1, 1), low)
        pool.put(request, request.keys, request.values)
        got = lab.chunk_attention(request.rows(), pool.k_cache, pool.v_cache, pool.table(), 0)
        first = got.flatten()[0].item()
        check(abs(first - 30) < 1e-3, (  # of one key the weight is 1, however its score is rounded
            f"three keys that score {low:g} each, values 30, 60, 90: the first row sees the first key alone, so it is 30; got "
            f"{first:g}. Hide later positions with minus infinity: a finite number is larger than some scores"))
        if low > -1e5:  # of scores far below that, rounding leaves nothing in which two could be compared
            assert_attends(got, request, what=f"three keys that score {low:g} each")


@pytest.mark.todo(4, points=1)
@pytest.mark.parametrize("computed", [0, 3, 4, 11])
def test_todo_4_a_chunk_of_one_token_is_a_decode(lab, computed):
    pool = Pool((computed, 1))
    got = lab.chunk_attention(pool.requests[0].rows(), pool.k_cache, pool.v_cache, pool.table(), computed)
    assert_attends(got, pool.requests[0], what=f"a chunk of 1 after {computed} computed tokens")


@pytest.mark.todo(4, points=1)
@pytest.mark.parametrize("cuts", [[1], [4], [3, 8], [5, 6, 7], list(range(1, 11))])
def test_todo_4_a_prompt_cut_into_chunks_gives_what_it_gives_whole(lab, cuts):
    pool = Pool((0, 11), block_size=3)
    request, parts = pool.requests[0], []
    for start, stop in zip([0, *cuts], [*cuts, 11], strict=True):
        parts.append(lab.chunk_attention(request.rows()[start:stop], pool.k_cache, pool.v_cache, pool.table(), start))
    assert_attends(torch.cat(parts), request, what=f"11 tokens cut at {cuts}, blocks of 3")


@pytest.mark.todo(4, points=2)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, 3e38], ids=["nan", "inf", "huge"])
def test_todo_4_what_nobody_wrote_never_reaches_the_result(lab, garbage):
    pool = Pool((3, 6), garbage=garbage)
    got = lab.chunk_attention(pool.requests[0].rows(), pool.k_cache, pool.v_cache, pool.table(), 3)
    assert_attends(got, pool.requests[0], what=f"{garbage} in every slot that nobody wrote")


@pytest.mark.todo(4, points=2)
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(4, 4, 8), (8, 2, 16), (6, 1, 32), (14, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"])
def test_todo_4_grouped_heads_any_dtype_and_any_strides(lab, num_heads, num_kv_heads, head_dim, dtype):
    pool = Pool((6, 7), num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype)
    q, table = of_other_strides(pool.requests[0].q), pool.table()
    before = all_bits(q=q, k_cache=pool.k_cache, v_cache=pool.v_cache, block_table=table)
    got = where_q_is(lambda: lab.chunk_attention(q, pool.k_cache, pool.v_cache, table, 6))
    assert_attends(got, pool.requests[0], what=f"{num_heads} query heads, {num_kv_heads} KV heads, {dtype}")
    assert_unchanged(before, q=q, k_cache=pool.k_cache, v_cache=pool.v_cache, block_table=table)


@pytest.mark.todo(4, points=1)
@pytest.mark.parametrize("times", [100.0, -100.0])
def test_todo_4_large_scores_do_not_overflow(lab, times):
    pool = Pool((5, 4))
    pool.requests[0].q *= times  # scores of some hundreds; e^89 is more than float32 can hold
    got = lab.chunk_attention(pool.requests[0].rows(), pool.k_cache, pool.v_cache, pool.table(), 5)
    assert_attends(got, pool.requests[0], what=f"q times {times}, scores of some hundreds")
    pool.requests[0].q[1, 2] *= 5  # one row and head far from the others
    got = lab.chunk_attention(pool.requests[0].rows(), pool.k_cache, pool.v_cache, pool.table(), 5)
    assert_attends(got, pool.requests[0], what="scores of one row and head five times as large as those of the others")


@pytest.mark.todo(4, points=1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_todo_4_copies_no_more_than_the_requests_own_blocks(lab, dtype):
    pool = Pool((6, 3), spare_blocks=4000, dtype=dtype)
    with Copied() as copied:
        lab.chunk_attention(pool.requests[0].rows(), pool.k_cache, pool.v_cache, pool.table(), 6)
    assert_did_not_copy_the_pool(copied, pool)


# TODO 5: a batch of requests


def attend_batch(lab, pool: Pool, q=None, spare: int = 0):
    q = pool.q() if q is None else q
    return lab.batch_attention(q, pool.k_cache, pool.v_cache, pool.query_starts(), pool.seq_lens(), pool.tables(spare))


def assert_batch_attends(got, pool: Pool, only=None, what: str = "") -> None:
    """Each request's rows are dense attention over its own tokens."""
    __tracebackhide__ = True
    starts = pool.query_starts()
    check(got.shape == pool.q().shape, f"{what}expected shape {list(pool.q().shape)}, got {list(got.shape)}")
    for i, request in enumerate(pool.requests):
        if only is None or i == only:
            who = f"{what}request {i} of {len(pool.requests)}, {request.count} tokens after {request.start}"
            assert_attends(got[starts[i] : starts[i + 1]], request, what=who)


BATCHES = {
    "one decode": [(8, 1)], "one chunk": [(4, 4)], "decodes": [(0, 1), (3, 1), (4, 1), (21, 1)],
    "chunks": [(0, 9), (3, 2), (8, 8), (0, 2)],
    "decodes and chunks": [(7, 1), (0, 1), (16, 1), (0, 4), (5, 3), (12, 7)],
}


@pytest.mark.todo(5, points=4)
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("spans", BATCHES.values(), ids=BATCHES)
def test_todo_5_every_request_attends_to_its_own_tokens(lab, spans, block_size):
    pool = Pool(*spans, block_size=block_size)
    assert_batch_attends(attend_batch(lab, pool), pool)


@pytest.mark.todo(5, points=1)
def test_todo_5_each_call_reads_cache_and_tables_anew(lab):
    pool = Pool((7, 1), (2, 1), (5, 3))
    q, starts, lens, tables = pool.q(), pool.query_starts(), pool.seq_lens(), pool.tables()
    for what in ("the first call: ", "the second of two calls, between which other keys and values were written: ",
                 "the third call, for which the first two requests have changed their rows of block_tables: "):
        if "second" in what:
            rewritten(pool, 1)
        if "third" in what:
            first, second = pool.requests[:2]  # both tables are two blocks long, padding included
            first.table, second.table = tables[1].tolist(), tables[0].tolist()
            tables[:2] = tables[:2].flip(0).clone()
            pool.put(second, second.keys, second.values)
            pool.put(first, first.keys, first.values)
        assert_batch_attends(lab.batch_attention(q, pool.k_cache, pool.v_cache, starts, lens, tables), pool, what=what)


@pytest.mark.todo(5, points=2)
@pytest.mark.parametrize("clean", range(4))
def test_todo_5_nothing_of_a_neighbour_reaches_a_request(lab, clean):
    pool = Pool((7, 1), (2, 1), (0, 4), (5, 3), garbage=math.nan)
    for i, request in enumerate(pool.requests):
        if i != clean:
            pool.put(request, request.keys * math.nan, request.values * math.nan)
    q = pool.q()
    got = attend_batch(lab, pool, q)
    assert_batch_attends(got, pool, only=clean, what="NaN in all others' keys and values: ")


@pytest.mark.todo(5, points=1)
def test_todo_5_two_requests_may_share_a_block(lab):
    pool = Pool((8, 1), (6, 3))
    first, second = pool.requests
    second.table[0] = first.table[0]  # the same first four tokens, stored once
    second.keys[:4], second.values[:4] = first.keys[:4], first.values[:4]
    assert_batch_attends(attend_batch(lab, pool), pool, what="the first block is in both tables: ")


@pytest.mark.todo(5, points=1)
@pytest.mark.parametrize("seed", range(6))
def test_todo_5_random_batches(lab, seed):
    rng = random.Random(seed)
    decodes = [(rng.randrange(40), 1) for _ in range(rng.randrange(4))]
    chunks = [(rng.randrange(20), rng.randrange(2, 15)) for _ in range(rng.randrange(not decodes, 4))]
    heads = dict(zip(("num_heads", "num_kv_heads"), rng.choice([(4, 4), (4, 2), (8, 2), (3, 1)]), strict=True))
    pool = Pool(*decodes, *chunks, block_size=rng.choice([1, 3, 4, 16]), seed=seed, **heads)
    assert_batch_attends(attend_batch(lab, pool), pool)


@pytest.mark.todo(5, points=2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"])
def test_todo_5_any_strides_longer_tables_and_nothing_changed(lab, dtype):
    pool = Pool((3, 1), (4, 1), (6, 5), dtype=dtype)
    q = of_other_strides(pool.q())
    starts, lens, tables = pool.query_starts(), pool.seq_lens(), pool.tables(spare=3)
    before = all_bits(q=q, k_cache=pool.k_cache, v_cache=pool.v_cache, block_tables=tables)
    got = where_q_is(lambda: lab.batch_attention(q, pool.k_cache, pool.v_cache, starts, lens, tables))
    assert_batch_attends(got, pool, what="q cut out of a wider tensor, tables with three spare entries: ")
    assert_unchanged(before, q=q, k_cache=pool.k_cache, v_cache=pool.v_cache, block_tables=tables)
    assert (starts, lens) == (pool.query_starts(), pool.seq_lens()), "query_starts or seq_lens was changed"


@pytest.mark.todo(5, points=1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_todo_5_copies_no_more_than_the_requests_own_blocks(lab, dtype):
    pool = Pool((8, 1), (9, 1), (6, 5), (5, 6), spare_blocks=12000, dtype=dtype)
    with Copied() as copied:
        attend_batch(lab, pool)
    # 13 rows one at a time, each with its blocks in float64, copy a twentieth of this pool, and that is allowed
    assert_did_not_copy_the_pool(copied, pool, share=8)


# TODO 6: swap in


def part(lab, config=None, block_size=4, dtype=torch.float32, device=CPU):
    return lab.PagedAttention(config or model_config(), block_size, dtype, device)


@contextlib.contextmanager
def unset_memory_is_nan():
    """`torch.empty` gives NaN in here, where it would give whatever was in memory, which may be zeros."""
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("warn")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


@pytest.mark.todo(6, points=2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_todo_6_a_cache_of_two_tensors_per_layer_each_its_own(lab, dtype):
    with unset_memory_is_nan():
        cache = part(lab, model_config(num_kv_heads=2, head_dim=8, layers=3), dtype=dtype).make_cache(5)
    assert len(cache) == 3 and all(len(pair) == 2 for pair in cache), "three layers: three pairs of keys and values"
    tensors = [tensor for pair in cache for tensor in pair]
    for tensor in tensors:
        assert tuple(tensor.shape) == (5, 4, 2, 8), f"expected [5, 4, 2, 8], got {tuple(tensor.shape)}"
        assert tensor.dtype == dtype and tensor.is_contiguous(), f"expected contiguous {dtype}, got {tensor.dtype}"
        assert not tensor.any(), "the cache begins with zeros"
    for i, tensor in enumerate(tensors):
        tensor.fill_(i + 1)
    assert [t.flatten()[0].item() for t in tensors] == [1, 2, 3, 4, 5, 6], "two of the six tensors are one and the same"
    again = part(lab, model_config(num_kv_heads=2, head_dim=8, layers=3), dtype=dtype)
    for pair in again.make_cache(5):
        for tensor in pair:
            tensor.fill_(9)
    left = [tensor.any().item() for pair in again.make_cache(5) for tensor in pair]
    check(not any(left), "a second make_cache() has in it what was written to the first: every tensor its own, and zeros")
    elsewhere = part(lab, dtype=dtype, device=torch.device("meta")).make_cache(2)  # has shapes and no memory
    found = sorted({tensor.device.type for pair in elsewhere for tensor in pair})
    check(found == ["meta"], f"self.device was 'meta', so the whole cache is there; it was made on {', '.join(found)}")


@pytest.mark.todo(6, points=2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("layers", "num_kv_heads", "head_dim", "block_size"), [(1, 1, 2, 1), (3, 2, 8, 4), (4, 2, 32, 16)])
def test_todo_6_bytes_per_block_is_what_a_block_takes(lab, layers, num_kv_heads, head_dim, block_size, dtype):
    attention = part(lab, model_config(4, num_kv_heads, head_dim, layers), block_size, dtype)
    got = attention.bytes_per_block
    # 10 blocks in `layers` layers, keys and values, counted in the tensors that the README asks for
    pool = [torch.empty(10, block_size, num_kv_heads, head_dim, dtype=dtype) for _ in range(2 * layers)]
    want = sum(t.numel() * t.element_size() for t in pool) // 10
    assert got == want, (
        f"{layers} layers, blocks of {block_size}, {num_kv_heads} KV heads of {head_dim}, {dtype}: "
        f"expected {want} bytes, got {got}")


@pytest.mark.todo(6, points=1)
@pytest.mark.parametrize("spans", BATCHES.values(), ids=BATCHES)
def test_todo_6_forward_is_what_the_engines_attention_computes(lab, spans):
    config = model_config(num_heads=8, num_kv_heads=2)
    pool = Pool(*spans, num_heads=8, num_kv_heads=2)
    got = part(lab, config).forward(pool.q(), (pool.k_cache, pool.v_cache), pool.metadata())
    assert_batch_attends(got, pool)
    theirs = TorchPagedAttention(config, 4, torch.float32, CPU).forward(
        pool.q(), (pool.k_cache, pool.v_cache), pool.metadata())
    limit = 2 * max(allowed_error(r.q, r.keys, r.values) for r in pool.requests)
    assert (got - theirs).abs().max() <= limit, "another result than the engine's own attention"


@pytest.mark.todo(6, points=1)
def test_todo_6_forward_changes_nothing(lab):
    pool = Pool((6, 1), (9, 1), (2, 5))
    q, metadata, fresh = of_other_strides(pool.q()), pool.metadata(), pool.metadata()
    before = all_bits(q=q, k_cache=pool.k_cache, v_cache=pool.v_cache)
    got = where_q_is(lambda: part(lab).forward(q, (pool.k_cache, pool.v_cache), metadata))
    for name in ("query_lens", "seq_lens", "block_tables", "slot_mapping"):
        was, is_now = (numbers(getattr(which, name)) for which in (fresh, metadata))
        check(is_now == was, (
            f"forward changed metadata.{name}: the next layer uses the same one. Before {was}, after {is_now}"))
    assert_unchanged(before, q=q, k_cache=pool.k_cache, v_cache=pool.v_cache)
    assert_batch_attends(got, pool)


@pytest.mark.todo(6, points=1)
def test_todo_6_each_step_is_computed_from_its_own_metadata(lab):
    attention, metadata = part(lab), Pool((0, 1)).metadata()
    for spans in ([(6, 1), (2, 5)], [(3, 1), (4, 1), (6, 5)], [(0, 9)]):
        pool = Pool(*spans)
        vars(metadata).clear()  # an object at the address of the last step's, as Python often makes one: here it is the same
        vars(metadata).update(vars(pool.metadata()))
        got = attention.forward(pool.q(), (pool.k_cache, pool.v_cache), metadata)
        assert_batch_attends(got, pool, what="steps one after the other, metadata at the same address: ")


@pytest.mark.todo(6, points=1)
def test_todo_6_nothing_of_a_step_is_kept(lab):
    pool, attention, counts = Pool((6, 1), (2, 5)), part(lab), []
    layer_cache, rows = (pool.k_cache, pool.v_cache), pool.q()
    for steps in (2, 10):
        for _ in range(steps):
            metadata = pool.metadata()
            attention.write(layer_cache, rows[:, :2], rows[:, :2], metadata.slot_mapping)
            attention.forward(rows, layer_cache, metadata)
        del metadata
        gc.collect()
        counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
    check(counts[1] - counts[0] < 10, (
        f"after 10 more steps there are {counts[1] - counts[0]} more tensors than before: something of each step is kept, and "
        "an engine makes millions"))


@pytest.mark.todo(6, points=2)
@pytest.mark.parametrize(("padding", "dtype"), [(1, torch.float32), (12, torch.float32), (3, torch.bfloat16)])
def test_todo_6_padding_rows_come_back_as_zeros(lab, padding, dtype):
    pool = Pool((6, 1), (4, 1), (2, 5), garbage=math.nan, dtype=dtype)
    q = torch.cat([pool.q(), torch.full((padding, 4, 16), math.nan, dtype=dtype)])
    with unset_memory_is_nan():
        got = part(lab, dtype=dtype).forward(q, (pool.k_cache, pool.v_cache), pool.metadata())
    check(len(got) == len(q), f"{len(q)} rows went in, {padding} of them padding; {len(got)} came out")
    rows = len(pool.q())
    assert_batch_attends(got[:rows], pool, what="with padding rows after the last request: ")
    check(bool((got[rows:] == 0).all()), (
        f"the {padding} padding rows belong to nobody and must be zeros, whatever their q holds (here NaN): they go on "
        f"through the layers. Got {[first_of(row) for row in got[rows:, 0]][:3]}"))


def swapped_in(lab, model: str, **arguments) -> LLM:
    """An engine with the lab's attention."""
    seam = load_seam(lab_at(Path(__file__).parent))
    components = arguments.pop("components", Components()).using(attention=functools.partial(seam.attention, lab))
    return LLM(model, components=components, dtype="float32", device="cpu", check_invariants=True, **arguments)


class KeepsLogits(Sampler):
    """The engine's sampler; keeps each row of logits under the tokens it follows."""

    def __init__(self):
        super().__init__()
        self.rows = {}

    def sample(self, logits, rows):
        for row, logits_row in zip(rows, logits, strict=True):
            self.rows[(*row.prompt_token_ids, *row.output_token_ids)] = logits_row.clone()
        return super().sample(logits, rows)


IN_THE_ENGINE = "See 'All right alone, wrong in the engine' in the README."
RANDOM_SHAPE = Shape(num_attention_heads=8, num_key_value_heads=2, head_dim=12, num_hidden_layers=3)


@functools.cache
def random_checkpoint() -> tuple[tempfile.TemporaryDirectory, Oracle]:
    """A Qwen3 with random weights of an odd shape, and transformers on it; the folder lives as long as this."""
    folder = tempfile.TemporaryDirectory()
    write_random_checkpoint(Path(folder.name), RANDOM_SHAPE)
    return folder, Oracle(Path(folder.name))


@pytest.mark.todo(6, points=3)
def test_todo_6_in_the_engine_logits_of_random_weights_are_those_of_transformers(lab):
    part(lab, block_size=4).make_cache(2)
    folder, oracle = random_checkpoint()
    sampler = KeepsLogits()
    llm = swapped_in(
        lab, folder.name, components=Components(sampler=lambda config: sampler), block_size=4, max_num_batched_tokens=7,
        max_num_seqs=4)
    rng = random.Random(7)
    prompts = [[rng.randrange(512) for _ in range(n)] for n in (1, 4, 9, 18)]
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, detokenize=False), use_tqdm=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        sequence = prompt + output.outputs[0].token_ids
        for end, want in list(enumerate(oracle.logits(sequence), start=1))[len(prompt) - 1 : -1]:
            got, where = sampler.rows[tuple(sequence[:end])], f"prompt of {len(prompt)} tokens, logits after token {end - 1}"
            check(bool(got.isfinite().all()), f"{where}: NaN or infinity, with your attention in all layers. {IN_THE_ENGINE}")
            error = (got - want).abs().max() / want.abs().max()
            check(bool(error < 1e-4), (
                f"{where}: off by {error:.1e} of the largest; float32 in another order explains 1e-4 at most. {IN_THE_ENGINE}"))


WAYS = {
    "blocks of 1, steps of 7": {"block_size": 1, "max_num_batched_tokens": 7, "max_num_seqs": 4},
    "blocks of 4, padding rows": {"block_size": 4, "max_num_batched_tokens": 9, "max_num_seqs": 4, "batch_invariant": True},
    "blocks of 16": {"block_size": 16, "max_num_batched_tokens": 24, "max_num_seqs": 4},
}
PROMPTS = ["What is paged attention?", "Hello", "Explain the difference between throughput and latency to a beginner.",
           "What is a block table?"]


@functools.cache
def expected_tokens(prompts: tuple[tuple[int, ...], ...]):
    oracle = Oracle(BUNDLED / "course")
    return oracle, oracle.greedy([list(prompt) for prompt in prompts], 10)


@pytest.mark.todo(6, points=3)
@pytest.mark.parametrize("arguments", WAYS.values(), ids=WAYS)
def test_todo_6_in_the_engine_greedy_tokens_are_those_of_transformers(lab, arguments):
    llm = swapped_in(lab, "course", **arguments)
    recorder = llm.llm_engine.recorder = Recorder()
    outputs = llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=10), use_tqdm=False)
    counts = [{min(chunk["num_tokens"], 2) for chunk in step["chunks"]} for step in recorder.steps]
    assert {1, 2} in counts, "no step had decodes and chunks together: this test would not have tested much"
    prompts = tuple(tuple(output.prompt_token_ids) for output in outputs)
    oracle, expected = expected_tokens(prompts)
    got = [output.outputs[0].token_ids for output in outputs]
    try:
        oracle.compare([list(p) for p in prompts], expected, got)
    except AssertionError as difference:
        message = (
            f"With your attention the engine generated {got}; transformers generates {[e.token_ids for e in expected]} "
            f"({difference}). {IN_THE_ENGINE}")
    else:
        return
    pytest.fail(message, pytrace=False)


if __name__ == "__main__":
    raise SystemExit("These are tests. Run them with: pytest test_lab.py")
