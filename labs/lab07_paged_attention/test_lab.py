"""Lab 07's one suite. It tests what `starter.py` does: alone, on small caches, and in the real engine.

All of it: pytest test_lab.py        One TODO: pytest test_lab.py -k todo_3
"""

import contextlib
import functools
import gc
import itertools
import math
import operator
import random
import re
import tempfile
from pathlib import Path

import pytest
import torch

from labs.harness.catalog import lab_at
from labs.harness.mixed_engine.part import load_seam
from labs.harness.suite.expecting import same, shown
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
TWO_DTYPES = (torch.float32, torch.bfloat16)
DTYPES = (*TWO_DTYPES, torch.float16)
"""What the engine may be told to compute in."""
GARBAGE = (math.nan, math.inf, 3e38)
"""What may be in a slot that nobody wrote."""
EDGES = [k * 4 + d for k in (1, 2, 5) for d in (-1, 0, 1)]
"""Lengths around a block's edge, for blocks of 4."""


def numbers(values):
    """A tensor, list or tuple as nested lists; anything else as it is."""
    return values.tolist() if isinstance(values, torch.Tensor) else list(values) if isinstance(values, list | tuple) else values


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
    return values.double().abs().max().item() * (math.expm1(2 * score_error) + 3 * u + len(keys) * u32)


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


def story(output, expected, request, limit: float) -> str:
    """Which mistake gives `output`, in a sentence before a full stop; nothing if none that we know does."""
    near = max(10 * limit, 1e-3)
    fits = [why for why, wrong in mistakes(request)
            if bool(wrong.isfinite().all()) and (output.double() - wrong).abs().max() < near < (expected - wrong).abs().max() / 3]
    if fits:
        return f" {'. Or: '.join(fits)}."
    if 6 < abs(request.garbage) < 1e3 and output.abs().max() > 6:
        return f" {request.garbage:g} stands in all slots that nobody wrote, and in those of nobody's blocks: some were read."
    return ""


def check(holds: bool, message: str) -> None:
    """Fails with `message` alone: whole tensors beside it would hide it."""
    __tracebackhide__ = True
    if not holds:
        pytest.fail(message, pytrace=False)


def check_shape(output, shape, what: str) -> None:
    """`output` is a tensor of this shape."""
    __tracebackhide__ = True
    check(isinstance(output, torch.Tensor), f"{what}: expected a tensor, got {shown(output)}")
    check(tuple(output.shape) == tuple(shape), f"{what}: expected shape {list(shape)}, got {list(output.shape)}")


def assert_attends(output, request, *, what: str) -> None:
    """`output`, [count, num_heads, head_dim], is dense attention of `request`."""
    __tracebackhide__ = True
    expected = dense(request.q, request.keys, request.values, request.start)
    check_shape(output, expected.shape, what)
    check(output.dtype == request.q.dtype, f"{what}: q is {request.q.dtype}, so the result is too; got {output.dtype}")
    differences = (output.double() - expected).abs()
    rows = (~differences.isfinite()).flatten(1).any(dim=1).nonzero().flatten() + request.start
    check(not len(rows), (
        f"{what}: NaN or infinity at positions {rows.tolist()}. Was something read that nobody wrote, or has a row "
        "no key at all to read?"))
    limit = allowed_error(request.q, request.keys, request.values)
    worst = differences.amax(dim=(1, 2))
    row, head = int(worst.argmax()), int(differences.amax(dim=2)[int(worst.argmax())].argmax())
    if worst.max() > limit:
        check(False, (
            f"{what}: wrong in {int((worst > limit).sum())} of {len(worst)} rows. Worst is position {request.start + row}, "
            f"query head {head}: expected {first_of(expected[row, head])}, got {first_of(output[row, head])}; "
            f"rounding alone explains a difference of {limit:.1e}.{story(output, expected, request, limit)}"))


def assert_decodes(output, request, *, what: str) -> None:
    """`output`, [num_heads, head_dim], is dense attention of the request's only row."""
    __tracebackhide__ = True
    check_shape(output, request.q[0].shape, what)
    assert_attends(output[None], request, what=what)


def first_of(row) -> str:
    """The first three numbers of a head."""
    return "[" + ", ".join(f"{number:.4f}" for number in row[:3].tolist()) + ", …]"


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
        self, rng: random.Random, *spans, block_size=4, num_heads=4, num_kv_heads=2, head_dim=16, dtype=torch.float32,
        garbage=50.0, spare_blocks=3,
    ):
        generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
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

    def rewrite(self, i: int = 0) -> None:
        """Writes other keys and values into the slots of request i, as another request that gets its blocks."""
        request = self.requests[i]
        request.keys, request.values = -2 * request.keys, request.values + 3
        self.put(request, request.keys, request.values)

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

    def metadata(self) -> dict:
        """The fields of the engine's `AttentionMetadata` of this step."""
        slots = [r.table[p // self.block_size] * self.block_size + p % self.block_size
                 for r in self.requests for p in range(r.start, r.seq_len)]
        return {
            "query_lens": [r.count for r in self.requests], "seq_lens": self.seq_lens(), "block_tables": self.tables(),
            "slot_mapping": torch.tensor(slots), "num_decodes": sum(r.count == 1 for r in self.requests),
            "block_size": self.block_size}


# Tensors where the lab's code is: in this process, or in another where labs are graded.


def held(there, *tensors):
    """A copy of each, as an object there."""
    return [there.hold(tensor.clone()) for tensor in tensors]


def cut_out(there, tensor):
    """The same numbers, there, cut out of a wider tensor, as q, k and v are cut out of one product in the engine."""
    rows, heads, dim = tensor.shape
    wide = torch.full((rows, heads + 3, dim + 1), 7.0, dtype=tensor.dtype)
    wide[:, 1:-2, 1:] = tensor
    some_heads = there.kept(there.hold(wide).narrow, 1, 1, heads)
    return there.kept(some_heads.narrow, 2, 1, dim)


def bits(tensor) -> torch.Tensor:
    """What can be compared exactly, NaN included."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def same_bits(tensor, other) -> bool:
    """Whether `tensor` is one of the other's dtype, shape and bits."""
    return isinstance(tensor, torch.Tensor) and tensor.dtype == other.dtype and tensor.shape == other.shape and torch.equal(
        bits(tensor), bits(other))


def assert_unchanged(there, **arguments) -> None:
    """Each argument is (what the lab was given, what it was before), and still is, bit for bit."""
    __tracebackhide__ = True
    after = there.look(there.hold([now for now, _ in arguments.values()]))
    changed = [name for (name, (_, before)), now in zip(arguments.items(), after, strict=True) if not same_bits(now, before)]
    check(not changed, f"{', '.join(changed)} changed: an argument that belongs to the caller was written to")


def where_q_is(there, call, *arguments):
    """`call(*arguments)`, while tensors that are made without a device land elsewhere: on "meta", which has no numbers.

    Whoever makes one there and never brings it together with q's, as to read numbers from it, is not judged.
    """
    __tracebackhide__ = True
    set_default_device = there.of(torch.set_default_device)
    set_default_device("meta")
    try:
        output = there.kept(call, *arguments)
        device = output.device.type
    except Exception as error:
        if not re.search("expected device|same device|different device", str(error)):
            set_default_device(None)
            return call(*arguments)
        message = (f"something was made on torch's default device, and q is on another: make it with device=q.device "
                   f"({str(error).splitlines()[0][:200]})")
    else:
        if device == "cpu":
            return there.look(output)
        message = f"the result is on {device}, and q on cpu: make what you make with device=q.device"
    finally:
        set_default_device(None)
    pytest.fail(message, pytrace=False)


def bytes_made(there, call, *arguments) -> int:
    """The bytes that torch writes into new memory during `call(*arguments)`. A view is none."""
    log, made = there.operators(), 0
    log.watch(call, *arguments)
    for event in log.events:
        known = {piece.memory for piece in [*event.given, *event.changed]}
        made += sum(piece.num_bytes for piece in event.made if piece.memory not in known)
    return made


def assert_does_not_copy_the_pool(made: int, pool: Pool, share: int = 16) -> None:
    """Fewer bytes were `made` than 1 / `share` of the pool's keys.

    Scores against all keys of the pool are an eighth of it for a row of four heads in float32 or bfloat16.
    """
    __tracebackhide__ = True
    size = pool.k_cache.nbytes
    own = 2 * sum(len(r.table) for r in pool.requests) * size // len(pool.k_cache)
    check(made < size / share, (
        f"{made:,} bytes of {pool.k_cache.dtype} were made to use {own:,} bytes of keys and values; all keys of "
        f"the pool are {size:,}. Take the request's blocks first, and work on those alone."))


# TODO 1: lay out the batch


class Piece:
    """A chunk of the lab's class, there, and what it was made of."""

    def __init__(self, lab, token_ids: list[int], num_computed_tokens: int, block_table: list[int]):
        self.fields = {"token_ids": token_ids, "num_computed_tokens": num_computed_tokens, "block_table": block_table}
        self.chunk = lab.Chunk(token_ids=list(token_ids), num_computed_tokens=num_computed_tokens, block_table=list(block_table))

    def __repr__(self) -> str:
        tokens, computed, table = self.fields.values()
        return f"{len(tokens)} tokens after {computed} in blocks {table}"


def fields_of(chunk) -> dict:
    """What a chunk that came back is made of."""
    return {name: numbers(getattr(chunk, name, None)) for name in ("token_ids", "num_computed_tokens", "block_table")}


def example(lab) -> list[Piece]:
    """The README's A and B."""
    return [Piece(lab, [17], 6, [5, 2]), Piece(lab, [21, 22], 1, [7])]


def slots_of(lab, table, positions, block_size: int) -> list[int] | str:
    """The list of slots, or what an IndexError said."""
    try:
        slots = lab.slots_of(table, positions, block_size)
    except IndexError as error:
        return f"IndexError: {error}"
    check(is_list_of_ints(slots), f"slots_of() returned {shown(slots)}; expected a list of ints")
    return slots


def is_list_of_ints(values) -> bool:
    """Not tensors, floats or bools that equal them."""
    return isinstance(values, list) and all(type(value) is int for value in values)


def laid_out(lab, pieces: list[Piece], block_size: int):
    """`lay_out` of the chunks; an IndexError with what it was given."""
    __tracebackhide__ = True
    try:
        return lab.lay_out([piece.chunk for piece in pieces], block_size)
    except IndexError as error:
        message = f"chunks of {pieces}, blocks of {block_size}: IndexError: {error}"
    pytest.fail(message, pytrace=False)


def assert_layout(layout, pieces: list[Piece], block_size: int, **expected) -> None:
    """The fields of a layout that are named are as expected, and of the README's types."""
    __tracebackhide__ = True
    for name, value in expected.items():
        field = getattr(layout, name, None)
        if name in ("token_ids", "positions", "slot_mapping", "block_tables"):
            check(isinstance(field, torch.Tensor) and field.dtype == torch.long,
                  f"{name}: expected a torch.long tensor, got {shown(field)}")
        if name in ("query_starts", "seq_lens"):
            check(is_list_of_ints(field), f"{name}: expected a list of ints, got {shown(field)}")
        check(numbers(field) == value,
              f"chunks of {pieces}, blocks of {block_size}: expected {name} {value}, got {numbers(field)}")


def slot_by_hand(table, position: int, block_size: int) -> int:
    """The slot of a position, found by laying out the blocks of the table, one slot after the other."""
    return [block * block_size + offset for block in table for offset in range(block_size)][position]


@pytest.mark.todo(1, points=2)
@pytest.mark.parametrize(
    "block_size, blocks, positions, slots",
    [(4, [7, 2, 5], range(2, 10), [30, 31, 8, 9, 10, 11, 20, 21]), (4, [5, 2], range(3, 5), [23, 8]),
     (4, [3, 9, 5], range(2, 10), [14, 15, 36, 37, 38, 39, 20, 21]),  # the ends are as far apart as in a row of blocks
     (4, [3, 4, 5], range(2, 10), [14, 15, 16, 17, 18, 19, 20, 21]), (4, [6], range(4), [24, 25, 26, 27]),
     (1, [3, 9, 4], range(1, 3), [9, 4]), (16, [2, 1], range(15, 17), [47, 16]),
     (4, [7], range(4, 4), [])],
)
def test_todo_1_a_slot_is_block_id_times_block_size_plus_offset(lab, there, block_size, blocks, positions, slots):
    table = there.hold(list(blocks))
    answer = slots_of(lab, table, positions, block_size)
    check(answer == slots, (
        f"blocks of {block_size}, block table {blocks}, positions {list(positions)}: expected slots {slots}, got {answer}"))
    table.insert(0, 11)  # the engine's list, some steps later
    answer, moved = slots_of(lab, table, range(block_size), block_size), [11 * block_size + i for i in range(block_size)]
    check(answer == moved, f"the same list is {[11, *blocks]} now, so its first block has the slots {moved}; got {answer}")


@pytest.mark.todo(1, points=1)
def test_todo_1_slots_of_any_table(lab, rng):
    for size in (1, 4, rng.randrange(2, 20), 16):
        block = rng.randrange(1, 50)
        ends = [block, block + 5, 60, block + 3]  # as far apart as in a row of blocks
        for blocks, (first, last) in itertools.product((rng.sample(range(1, 60), 4), ends, list(range(block, block + 4))), (
                (size - 1, size + 1), (rng.randrange(2 * size), 4 * size))):
            answer = slots_of(lab, blocks, range(first, last), size)
            slots = [slot_by_hand(blocks, position, size) for position in range(first, last)]
            check(answer == slots, (
                f"blocks of {size}, block table {blocks}, positions {first} to {last - 1}: "
                f"expected slots {shown(slots)}, got {shown(answer)}"))


@pytest.mark.todo(1, points=3)
def test_todo_1_lays_out_the_example_of_the_readme(lab, rng):
    pieces = example(lab)
    # by hand: A's position 6 is offset 2 of its second block, 2 * 4 + 2; B's are 7 * 4 + 1 and 7 * 4 + 2
    assert_layout(laid_out(lab, pieces, 4), pieces, 4, token_ids=[17, 21, 22], positions=[6, 1, 2], slot_mapping=[10, 29, 30],
                  query_starts=[0, 1, 3], seq_lens=[7, 3], block_tables=[[5, 2], [7, 0]], num_decodes=1)
    size, blocks, tokens = rng.randrange(3, 8), rng.sample(range(1, 60), 4), rng.sample(range(10, 999), 3)
    computed, longer = rng.randrange(size, 2 * size), [blocks[2], blocks[3], blocks[0]]
    pieces = [Piece(lab, tokens[:1], computed, blocks[:2]), Piece(lab, tokens[1:], size - 1, longer)]
    assert_layout(
        laid_out(lab, pieces, size), pieces, size, token_ids=tokens, positions=[computed, size - 1, size],
        slot_mapping=[slot_by_hand(blocks, computed, size), blocks[2] * size + size - 1, blocks[3] * size],
        query_starts=[0, 1, 3], seq_lens=[computed + 1, size + 1], block_tables=[[*blocks[:2], 0], longer], num_decodes=1)


@pytest.mark.todo(1, points=3)
@pytest.mark.parametrize("lengths, expected", [
    ([3, 1, 2, 1, 1, 4], [1, 3, 4, 0, 2, 5]), ([1, 3, 1], [0, 2, 1]), ([4, 1, 2], [1, 0, 2]), ([1, 2, 3], [0, 1, 2]),
    ("any", None)], ids=str)
def test_todo_1_chunks_of_one_token_come_first_and_otherwise_the_order_stays(lab, rng, lengths, expected):
    if lengths == "any":
        longest = rng.randrange(3, 6)
        lengths, expected = [longest, 1, rng.randrange(2, longest), 1, 1, rng.randrange(2, 9)], [1, 3, 4, 0, 2, 5]
    pieces = [Piece(lab, [100 * i + j for j in range(n)], 0, [i + 1, i + 21]) for i, n in enumerate(lengths)]
    layout, ordered = laid_out(lab, pieces, 8), [pieces[i].fields for i in expected]
    order = [fields_of(chunk)["token_ids"] for chunk in layout.chunks]
    assert order == [fields["token_ids"] for fields in ordered], (
        f"chunks of {lengths} tokens, those of chunk i being 100 i, 100 i + 1, …: expected the order {expected}; the chunks of "
        f"the layout have the tokens {order}")
    assert_layout(layout, pieces, 8, token_ids=[token for fields in ordered for token in fields["token_ids"]],
                  block_tables=[fields["block_table"] for fields in ordered], num_decodes=lengths.count(1))


def engine_chunk(rng: random.Random, count: int, block_size: int, spare: int) -> ScheduledChunk:
    """A chunk as the scheduler makes it: `count` tokens after some others, in any blocks, `spare` of them too many."""
    start = rng.choice([0, block_size - 1, block_size, rng.randrange(30)])
    blocks = -(-(start + count) // block_size) + spare
    tokens = [rng.randrange(1000) for _ in range(start + count + rng.randrange(3))]
    request = Request(f"r{rng.random()}", None, tokens, SamplingParams(), seed=0, max_total_tokens=1000)
    return ScheduledChunk.of(request, start, count, rng.sample(range(1, 200), blocks))


def by_the_engine(chunks: list[ScheduledChunk], block_size: int) -> dict:
    """What the engine's own model runner makes of them, by the names of `Layout`."""
    attention = TorchPagedAttention(model_config(), block_size, torch.float32, CPU)
    runner = ModelRunner(None, attention, None, num_blocks=2, block_size=block_size, device=CPU)
    inputs = runner.lay_out(ScheduledBatch(chunks))
    metadata = inputs.metadata
    fields = {"token_ids": inputs.token_ids, "positions": inputs.positions, "slot_mapping": metadata.slot_mapping,
              "query_starts": [sum(metadata.query_lens[:i]) for i in range(len(chunks) + 1)], "seq_lens": metadata.seq_lens,
              "block_tables": metadata.block_tables, "num_decodes": metadata.num_decodes}
    return {name: numbers(field) for name, field in fields.items()}


@pytest.mark.todo(1, points=4)
@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_todo_1_is_what_the_engines_model_runner_lays_out(lab, rng, block_size):
    for case in range(6):
        counts = [rng.choice([1, 1, 2, 5, block_size, block_size + 1]) for _ in range(rng.randrange(1, 6))]
        chunks = [engine_chunk(rng, n, block_size, spare=rng.choice([0, case % 2])) for n in counts]
        pieces = [Piece(lab, c.request.token_ids(c.start, c.end), c.start, c.block_table) for c in chunks]
        assert_layout(laid_out(lab, pieces, block_size), pieces, block_size, **by_the_engine(chunks, block_size))


@pytest.mark.todo(1, points=1)
def test_todo_1_leaves_the_chunks_as_they_are(lab, rng, there):
    size, blocks = rng.randrange(3, 8), rng.sample(range(1, 60), 5)
    drawn = [Piece(lab, [3, 4, rng.randrange(99)], 0, blocks[:1]), Piece(lab, [rng.randrange(99)], size, blocks[1:4]),
             Piece(lab, [5], 1, blocks[4:])]
    for pieces, block_size in ((example(lab)[::-1], 4), (drawn, size)):
        chunks = there.hold([piece.chunk for piece in pieces])
        lab.lay_out(chunks, block_size)
        after = [fields_of(chunk) for chunk in there.look(chunks)]
        assert after == [piece.fields for piece in pieces], (
            f"the chunks belong to the scheduler, which uses them again: {pieces}; after lay_out the list held {after}")


# TODO 2: write keys and values


def tokens_of(first: float, count: int, num_kv_heads=2, head_dim=4, dtype=torch.float32) -> torch.Tensor:
    """Keys that can be told apart by eye: token i has first + i, and .25 more in each further head."""
    tokens = torch.arange(count, dtype=torch.float32)[:, None, None] + first
    return (tokens + 0.25 * torch.arange(num_kv_heads)[:, None]).expand(-1, -1, head_dim).to(dtype).contiguous()


def assert_written(lab, there, cache, slots: list[int], k, v, what: str, null_block: bool = True) -> None:
    """write_kv of k and v, into caches that both begin as `cache`, writes these slots and no others.

    null_block: whether it matters what is in block 0.
    """
    __tracebackhide__ = True
    caches = held(there, cache, cache)
    lab.write_kv(*caches, k.clone(), v.clone(), torch.tensor(slots))
    for name, now, rows in (("k_cache", caches[0], k), ("v_cache", caches[1], v)):
        expected, now = cache.clone().flatten(0, 1), there.look(now)
        for row, slot in enumerate(slots):
            expected[slot] = rows[row]
        check(isinstance(now, torch.Tensor) and now.dtype == cache.dtype and now.shape == cache.shape,
              f"{name} became {shown(now)}")
        now, first = now.flatten(0, 1), 0 if null_block else cache.shape[1]
        wrong = (bits(now) != bits(expected)).flatten(1).any(dim=1).nonzero().flatten().tolist()
        wrong = [slot for slot in wrong if slot >= first]
        heads = ", ".join(
            f"KV head {head}: expected {expected[slot, head, 0].item()}, got {now[slot, head, 0].item()}"
            for slot in wrong[:1] for head in range(now.shape[1]) if not same_bits(now[slot, head], expected[slot, head]))
        assert not wrong, f"{name} after writing slots {slots} ({what}): slots {wrong} are wrong. Slot {wrong[0]}, {heads}"


@pytest.mark.todo(2, points=3)
@pytest.mark.parametrize("dtype", TWO_DTYPES, ids=str)
@pytest.mark.parametrize("slots, what", [
    ([23, 8, 31, 16], "the last slot of block 5, the first of 2, the last of the cache, the first of 4"),
    ([8, 29, 18, 11], "rows of several requests: the first and the last slot happen to be as far apart as in a row of four"),
    ([8, 10, 9, 11], "the slots of block 2, in another order"), ([11, 10, 9, 8], "the slots of block 2, from the last"),
    ([8, 9, 10, 11], "block 2, whole"), ([14, 15, 16, 17], "slots in a row, of two blocks")],
    ids=["scattered", "ends", "mixed", "falling", "one block", "a row"])
def test_todo_2_every_token_lands_in_its_slot_and_nothing_else_changes(lab, rng, there, dtype, slots, what):
    first = rng.randrange(10, 50)
    assert_written(lab, there, torch.full((8, 4, 2, 4), -1.0, dtype=dtype), slots, tokens_of(first, 4, dtype=dtype),
                   tokens_of(first + 50, 4, dtype=dtype), what)


@pytest.mark.todo(2, points=1)
@pytest.mark.parametrize("dtype", TWO_DTYPES, ids=str)
def test_todo_2_whatever_was_in_a_slot_before_is_overwritten(lab, rng, there, dtype):
    for before in (-1.0, *GARBAGE):
        size, first = rng.randrange(3, 7), rng.randrange(10, 50)
        slot = rng.randrange(size, 4 * size)
        ends = [slot, slot + 3 * size, slot + 2 * size, slot + 3]  # as far apart as in a row of four, by chance
        drawn, mixed = rng.sample(range(size, 8 * size), 5), [slot + step for step in (0, 2, 1, 3)]
        for slots in (drawn, ends, mixed) if before == -1 else (drawn,):
            k, v = (tokens_of(number, len(slots), num_kv_heads=3, dtype=dtype) for number in (first, first + 50))
            assert_written(lab, there, torch.full((8, size, 3, 4), before, dtype=dtype), slots, k, v,
                           f"blocks of {size}; {before} was in all slots before")


@pytest.mark.todo(2, points=3)
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("num_kv_heads", [1, 3])
def test_todo_2_takes_keys_and_values_of_any_strides(lab, rng, there, num_kv_heads, block_size):
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    k, v = (torch.randn(3, num_kv_heads, 8, generator=generator) for _ in "kv")
    slots = torch.tensor(rng.sample(range(4, 20), 3))
    empty = torch.zeros(1 + 20 // block_size, block_size, num_kv_heads, 8)
    *caches, slot_mapping = held(there, empty, empty, slots)
    strided_k, strided_v = cut_out(there, k), cut_out(there, v)
    lab.write_kv(*caches, strided_k, strided_v, slot_mapping)
    for name, cache, rows in (("k_cache", caches[0], k), ("v_cache", caches[1], v)):
        check(torch.equal(there.look(cache).flatten(0, 1)[slots], rows), (
            f"{name}, blocks of {block_size}: k and v, cut out of a wider tensor, were to go to the slots {slots.tolist()}, and "
            "other numbers are there"))
    # the next layer uses the same slots
    assert_unchanged(there, k=(strided_k, k), v=(strided_v, v), slot_mapping=(slot_mapping, slots))


@pytest.mark.todo(2, points=2)
def test_todo_2_one_token_alone_and_padding_in_the_null_block(lab, rng, there):
    empty, first = torch.zeros(4, 4, 2, 4), rng.randrange(10, 50)
    for slot, other in ((5, 6), rng.sample(range(4, 16), 2)):
        assert_written(lab, there, empty, [slot], tokens_of(first, 1), tokens_of(first + 50, 1), "one token")
        assert_written(lab, there, empty, [slot, other, 0, 0], tokens_of(first, 4), tokens_of(first + 50, 4),
                       "two tokens and two rows of padding", null_block=False)


@pytest.mark.todo(2, points=1)
@pytest.mark.parametrize("dtype", TWO_DTYPES, ids=str)
def test_todo_2_does_not_copy_the_cache(lab, rng, there, dtype):
    pool = Pool(rng, (0, 3), spare_blocks=1000, dtype=dtype)
    [request], slots = pool.requests, torch.tensor([pool.requests[0].table[0] * 4 + i for i in range(3)])
    made = bytes_made(there, lab.write_kv, pool.k_cache, pool.v_cache, request.keys, request.values, slots)
    assert_does_not_copy_the_pool(made, pool)


# TODO 3: decode one request


def assert_gathers(lab, table: list[int], length: int, block_size: int, first: int) -> None:
    """The first `length` keys of a request come in the order of its blocks; its keys are first, first + 1, …

    Block 9 is another request's, and its number stands in the table behind the request's own.
    """
    __tracebackhide__ = True
    cache, keys = torch.full((10, block_size, 2, 3), -1.0), tokens_of(first, block_size * len(table), head_dim=3)
    cache[torch.tensor(table)] = keys.unflatten(0, (-1, block_size))
    cache[9] = tokens_of(first + 100, block_size, head_dim=3)
    output = lab.gather(cache, torch.tensor([*table, 9, 0]), length)
    what = f"the first {length} keys in blocks {table} of {block_size}"
    check_shape(output, (length, 2, 3), what)
    check(torch.equal(output, keys[:length]), (
        f"{what}: they are {first}, {first + 1}, …; got those that begin with {output[:, 0, 0].tolist()} (-1 is a slot nobody "
        f"wrote, {first + 100} and more is another request's)"))


@pytest.mark.todo(3, points=2)
@pytest.mark.parametrize("table, length", [
    *(([5, 2], length) for length in (1, 3, 4, 5, 7, 8)),
    ([3, 6, 5], 12), ([3, 5, 4, 6], 15),  # the first and the last are as far apart as in a row of blocks
    ([3, 4, 5], 10), ([5, 4, 3], 12)], ids=str)
def test_todo_3_gather_follows_the_block_table_and_stops_at_the_last_token(lab, table, length):
    assert_gathers(lab, table, length, block_size=4, first=10)


@pytest.mark.todo(3, points=1)
def test_todo_3_gather_in_blocks_of_any_size(lab, rng):
    size, first = rng.choice([3, 5, 6]), rng.randrange(10, 50)
    for length in (1, size - 1, size, size + 1, 2 * size - 1, 2 * size, 2 * size + 1, 3 * size):
        assert_gathers(lab, rng.sample(range(1, 9), 3), length, size, first)


@pytest.mark.todo(3, points=2)
@pytest.mark.parametrize("weight, value", [(4, 30), (9, "any")])
def test_todo_3_an_example_by_hand_five_tokens_four_heads(lab, rng, weight, value):
    value = rng.choice([30, 60, 90]) if value == "any" else value
    k_cache, v_cache = (torch.zeros(8, 4, 2, 4) for _ in "kv")
    k_cache[2, :, :, 0] = math.log(weight)
    v_cache[2, 0], v_cache[2, 1:] = value, 2 * value
    v_cache[:, :, 1] += 300
    q = torch.tensor([2.0, 0, 0, 0]).repeat(4, 1)
    output = lab.decode_attention(q, k_cache, v_cache, torch.tensor([5, 2, 0]), 5)
    # A score is 2 * log(weight) / sqrt(4), so tokens weigh 1, 1, 1, 1 and, say, 4. KV head 0 has the values 0, 0, 0, 0, 30:
    # 4 * 30 / 8 = 15, and KV head 1 has 300 more. The three slots after the fifth token have 60 and 360.

    def heads(weight: float, more: int = 0) -> tuple[float, ...]:
        """The four heads, if the fifth token weighs so much and so many slots after it are read."""
        mean = (weight * value + more * weight * 2 * value) / (4 + weight * (1 + more))
        return tuple(round(number, 3) for number in (mean, mean, 300 + mean, 300 + mean))

    expected, key = heads(weight), round(weight * math.log(weight) / (4 + weight), 3)
    known = {
        (*expected[1:3], *expected[1:3]): " Query heads 0 and 1 share KV head 0, 2 and 3 share KV head 1: h // 2, not h % 2.",
        heads(weight**2): " The scores were not divided by the square root of head_dim, which is 2.",
        heads(weight**0.5): " The scores were divided by head_dim, or twice by its square root.",
        heads(1): " All tokens had the same weight, whatever their keys are.",
        heads(0): " The fifth token, the newest, was not read.",
        heads(weight, 1): " A sixth token was read, and there are five.",
        (key,) * 4: " The keys were weighed in place of the values.",
        expected[:1] * 4: " All query heads read KV head 0.",
        heads(weight, 3): " The whole last block was read, and only one of its slots is the request's.",
    }
    check_shape(output, (4, 4), "one token of num_heads and head_dim")
    first_numbers = tuple(round(number, 3) for number in output[:, 0].tolist())
    check(torch.allclose(output.float(), torch.tensor(expected)[:, None].expand(4, 4), atol=1e-3), (
        f"weights 1, 1, 1, 1, {weight} and values 0, 0, 0, 0, {value} (KV head 1: 300 more): expected heads {expected}, got "
        f"{first_numbers}.{known.get(first_numbers, '')}"))


def assert_decode(lab, pool: Pool, what: str) -> None:
    """decode_attention of the pool's first request is dense attention."""
    __tracebackhide__ = True
    request = pool.requests[0]
    output = lab.decode_attention(request.rows()[0], pool.k_cache, pool.v_cache, pool.table(), request.seq_len)
    assert_decodes(output, request, what=what)


@pytest.mark.todo(3, points=2)
@pytest.mark.parametrize("block_size", [1, 3, 4])
@pytest.mark.parametrize("length", [1, 2, *EDGES])
def test_todo_3_decode_reads_all_its_keys_and_no_other_at_every_block_edge(lab, rng, length, block_size):
    assert_decode(lab, Pool(rng, (length - 1, 1), (6, 1), block_size=block_size),
                  f"decode over {length} tokens, blocks of {block_size}")


def calls_before_and_after(there, pool: Pool, caches):
    """Names of two calls; before the second, other keys and values are written to the same slots, there."""
    yield "the first call"
    pool.rewrite()
    for cache, now in zip(caches, (pool.k_cache, pool.v_cache), strict=True):
        there.kept(cache.copy_, now)
    yield "the second of two calls, between which other keys and values were written to the same slots"


@pytest.mark.todo(3, points=1)
@pytest.mark.parametrize("read", ["gather", "decode_attention"])
def test_todo_3_each_decode_reads_the_cache_anew(lab, rng, there, read):
    pool = Pool(rng, (8, 1))
    request, caches, [table] = pool.requests[0], held(there, pool.k_cache, pool.v_cache), held(there, pool.table())
    for call in calls_before_and_after(there, pool, caches):
        if read == "gather":
            for name, cache, expected in zip(("keys", "values"), caches, (request.keys, request.values), strict=True):
                check(same_bits(lab.gather(cache, table, 9), expected), f"gather of {name}, {call}: other numbers came")
        else:
            assert_decodes(lab.decode_attention(request.rows()[0], *caches, table, 9), request, what=call)


@pytest.mark.todo(3, points=2)
@pytest.mark.parametrize(
    "num_heads, num_kv_heads, head_dim", [(4, 4, 16), (4, 2, 8), (8, 2, 16), (6, 3, 4), (6, 1, 32), (1, 1, 2)])
def test_todo_3_query_head_i_reads_kv_head_i_over_group_size(lab, rng, num_heads, num_kv_heads, head_dim):
    pool = Pool(rng, (rng.randrange(5, 12), 1), num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    assert_decode(lab, pool, f"{num_heads} query heads, {num_kv_heads} KV heads of {head_dim}")


@pytest.mark.todo(3, points=2)
@pytest.mark.parametrize("garbage", GARBAGE, ids=["nan", "inf", "huge"])
def test_todo_3_what_nobody_wrote_never_reaches_a_decode(lab, rng, garbage):
    pool = Pool(rng, (4 * rng.randrange(1, 4), 1), garbage=garbage)  # three slots of the last block are free
    assert_decode(lab, pool, f"{garbage} in every slot that nobody wrote")


@pytest.mark.todo(3, points=1)
@pytest.mark.parametrize("spread", [1.0, 0.01], ids=["keys that differ", "600 keys almost alike"])
def test_todo_3_bfloat16_is_as_exact_as_bfloat16_can_be(lab, rng, spread):
    pool = Pool(rng, (rng.randrange(560, 640), 1), dtype=torch.bfloat16, block_size=16)
    request = pool.requests[0]
    request.keys, request.values = request.keys * spread, request.values * spread + 1
    pool.put(request, request.keys, request.values)
    assert_decode(lab, pool, f"decode over {request.seq_len} tokens in bfloat16")


@pytest.mark.todo(3, points=1)
@pytest.mark.parametrize("times", [100.0, -100.0])
def test_todo_3_large_scores_of_a_decode_do_not_overflow(lab, rng, times):
    pool = Pool(rng, (rng.randrange(9, 30), 1))
    pool.requests[0].q *= times  # scores of some hundreds; e^89 is more than float32 can hold
    assert_decode(lab, pool, f"q times {times}, scores of some hundreds")
    pool.requests[0].q[:, 0] *= 5  # one head far from the others
    assert_decode(lab, pool, "scores of query head 0 five times as large as those of the others")


@pytest.mark.todo(3, points=1)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_todo_3_reads_a_view_and_changes_nothing(lab, rng, there, dtype):
    pool = Pool(rng, (rng.randrange(4, 8), 1), (2, 1), dtype=dtype)
    request, table = pool.requests[0], pool.table()
    q = there.kept(cut_out(there, request.q).select, 0, 0)
    k_cache, v_cache, block_table = held(there, pool.k_cache, pool.v_cache, table)
    output = where_q_is(there, lab.decode_attention, q, k_cache, v_cache, block_table, request.seq_len)
    assert_decodes(output, request, what=f"q of {dtype} cut out of a wider tensor")
    assert_unchanged(there, q=(q, request.q[0]), k_cache=(k_cache, pool.k_cache), v_cache=(v_cache, pool.v_cache),
                     block_table=(block_table, table))


@pytest.mark.todo(3, points=1)
@pytest.mark.parametrize("dtype", TWO_DTYPES, ids=str)
def test_todo_3_a_decode_copies_no_more_than_the_requests_own_blocks(lab, rng, there, dtype):
    pool = Pool(rng, (8, 1), spare_blocks=2000, dtype=dtype)
    row = pool.requests[0].rows()[0]
    made = bytes_made(there, lab.decode_attention, row, pool.k_cache, pool.v_cache, pool.table(), 9)
    assert_does_not_copy_the_pool(made, pool)


@pytest.mark.todo(3, points=1)
def test_todo_3_gather_fetches_only_the_blocks_that_hold_its_tokens(lab, rng, there):
    pool = Pool(rng, (39, 1), num_kv_heads=1, head_dim=64)  # 40 tokens in 10 blocks; its neighbour in the batch has many more
    made, own = bytes_made(there, lab.gather, pool.k_cache, pool.table(spare=1000), 40), 10 * pool.k_cache[0].nbytes
    # Each block once would be `own`. Three times that leaves room for joining them, and for numbers of slots.
    assert made <= 3 * own, (
        f"{made:,} bytes were copied to gather 10 blocks, {own:,} bytes, whose block table has 1,000 entries more: "
        "what stands there means nothing, and is not fetched")


# TODO 4: chunks


@pytest.mark.todo(4, points=2)
@pytest.mark.parametrize("weights, values", [([1, 2, 3], [30.0, 60.0, 90.0]), ("any", "any")], ids=["README", "any"])
def test_todo_4_the_example_of_the_readme(lab, rng, weights, values):
    if weights == "any":
        weights, values = rng.sample([1, 2, 3, 4, 5], 3), rng.sample([30.0, 60.0, 90.0, 120.0, 150.0], 3)
    k_cache, v_cache = (torch.full((8, 4, 1, 1), 50.0) for _ in "kv")
    k_cache[7, :3, 0, 0], v_cache[7, :3, 0, 0] = torch.tensor(weights).log(), torch.tensor(values)
    q = torch.tensor([[1.0], [0.0]]).repeat(2, 1, 1)  # the first head asks with 1, the second with 0
    output = lab.chunk_attention(q, k_cache, v_cache, torch.tensor([7, 0]), 1)

    def mean(*weighed: float) -> float:
        return sum(w * v for w, v in zip(weighed, values, strict=False)) / sum(weighed)

    # head 0 weighs by e^key = 1, 2, 3: (30 + 120) / 3 and (30 + 120 + 270) / 6; head 1 takes the mean
    expected = [[mean(*weights[:2]), mean(1, 1)], [mean(*weights), mean(1, 1, 1)]]
    known = {
        (values[0], mean(*weights[:2])):
            " That is each row one key short: the first row stands at position num_computed_tokens, not 0.",
        (mean(*weights),) * 2: " The first row has seen the key of the second.",
        (mean(*weights[:2], 1), mean(*weights)): " A later position's score was set to 0, and e^0 is 1: a weight, not none.",
    }
    check_shape(output, (2, 2, 1), "two rows, two heads of one number")
    rows = [[round(number, 3) for number in row] for row in output[:, :, 0].tolist()]
    heads = torch.tensor([row[0] for row in rows])
    why = next((why for pair, why in known.items() if (heads - torch.tensor(pair)).abs().max() < 1e-2), "")
    check(torch.allclose(output[:, :, 0].float(), torch.tensor(expected), atol=1e-3), (
        f"keys log {weights}, values {values}; positions 1 and 2, whose heads ask with 1 and 0: expected "
        f"{[[round(number, 3) for number in row] for row in expected]}, got {rows}.{why}"))


SPANS = [(0, 2), (0, 4), (0, 5), (0, 9), (1, 2), (3, 2), (3, 5), (4, 4), (5, 3), (7, 2), (8, 3), (8, 8), (15, 6),
         (20, 2), (2, 40)]


def assert_chunk(lab, pool: Pool, what: str) -> None:
    """chunk_attention of the pool's first request is dense attention."""
    __tracebackhide__ = True
    request = pool.requests[0]
    output = lab.chunk_attention(request.rows(), pool.k_cache, pool.v_cache, pool.table(), request.start)
    assert_attends(output, request, what=what)


@pytest.mark.todo(4, points=4)
@pytest.mark.parametrize("computed, count", [*SPANS, ("any", "any")])
def test_todo_4_row_j_reads_the_keys_up_to_computed_plus_j(lab, rng, computed, count):
    size = 4
    if computed == "any":
        size, computed, count = rng.choice([3, 5]), rng.randrange(1, 40), rng.randrange(2, 12)
    pool = Pool(rng, (computed, count), (5, 2), block_size=size)
    assert_chunk(lab, pool, f"a chunk of {count} after {computed} computed tokens, blocks of {size}")


@pytest.mark.todo(4, points=1)
def test_todo_4_each_chunk_reads_the_cache_anew(lab, rng, there):
    pool = Pool(rng, (rng.randrange(1, 9), 4))
    request, caches, [table] = pool.requests[0], held(there, pool.k_cache, pool.v_cache), held(there, pool.table())
    for call in calls_before_and_after(there, pool, caches):
        assert_attends(lab.chunk_attention(request.rows(), *caches, table, request.start), request, what=call)


@pytest.mark.todo(4, points=1)
def test_todo_4_a_later_key_has_no_weight_however_low_the_others_score(lab, rng):
    pool = Pool(rng, (0, 3), num_heads=1, num_kv_heads=1, head_dim=1)
    request = pool.requests[0]
    request.q, request.values = torch.ones(3, 1, 1), torch.tensor([30.0, 60.0, 90.0])[:, None, None]
    for low in (-1000.0 * rng.randrange(30, 60), -1e30):  # q is 1, so that is what all three keys score
        request.keys = torch.full((3, 1, 1), low)
        pool.put(request, request.keys, request.values)
        output = lab.chunk_attention(request.rows(), pool.k_cache, pool.v_cache, pool.table(), 0)
        check_shape(output, (3, 1, 1), "three rows, one head of one number")
        first = output.flatten()[0].item()
        check(abs(first - 30) < 1e-3, (  # of one key the weight is 1, however its score is rounded
            f"three keys that score {low:g} each, values 30, 60, 90: the first row sees the first key alone, so it is 30; got "
            f"{first:g}. Hide later positions with minus infinity: a finite number is larger than some scores"))
        if low > -1e5:  # of scores far below that, rounding leaves nothing in which two could be compared
            assert_attends(output, request, what=f"three keys that score {low:g} each")


@pytest.mark.todo(4, points=1)
@pytest.mark.parametrize("computed", [0, 3, 4, "any"])
def test_todo_4_a_chunk_of_one_token_is_a_decode(lab, rng, computed):
    computed = rng.randrange(5, 30) if computed == "any" else computed
    assert_chunk(lab, Pool(rng, (computed, 1)), f"a chunk of 1 after {computed} computed tokens")


@pytest.mark.todo(4, points=1)
@pytest.mark.parametrize("cuts", [[1], [4], [3, 8], [5, 6, 7], list(range(1, 11)), "any"], ids=str)
def test_todo_4_a_prompt_cut_into_chunks_gives_what_it_gives_whole(lab, rng, cuts):
    cuts = sorted(rng.sample(range(1, 11), 3)) if cuts == "any" else cuts
    pool = Pool(rng, (0, 11), block_size=3)
    request, parts = pool.requests[0], []
    for start, stop in zip([0, *cuts], [*cuts, 11], strict=True):
        rows, what = request.rows()[start:stop], f"11 tokens cut at {cuts}, blocks of 3"
        parts.append(lab.chunk_attention(rows, pool.k_cache, pool.v_cache, pool.table(), start))
        check_shape(parts[-1], rows.shape, what)
    assert_attends(torch.cat(parts), request, what=what)


@pytest.mark.todo(4, points=2)
@pytest.mark.parametrize("garbage", GARBAGE, ids=["nan", "inf", "huge"])
def test_todo_4_what_nobody_wrote_never_reaches_a_chunk(lab, rng, garbage):
    computed = rng.randrange(2, 7)
    pool = Pool(rng, (computed, 4 * rng.randrange(2, 4) + 1 - computed), garbage=garbage)
    assert_chunk(lab, pool, f"{garbage} in every slot that nobody wrote")


@pytest.mark.todo(4, points=2)
@pytest.mark.parametrize("num_heads, num_kv_heads, head_dim", [(4, 4, 8), (8, 2, 16), (6, 1, 32), (14, 2, 2)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_todo_4_grouped_heads_any_dtype_and_any_strides(lab, rng, there, num_heads, num_kv_heads, head_dim, dtype):
    pool = Pool(rng, (6, rng.randrange(2, 9)), num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype)
    request, table, q = pool.requests[0], pool.table(), cut_out(there, pool.requests[0].q)
    k_cache, v_cache, block_table = held(there, pool.k_cache, pool.v_cache, table)
    attend = functools.partial(where_q_is, there, lab.chunk_attention) if dtype == torch.float32 else lab.chunk_attention
    output = attend(q, k_cache, v_cache, block_table, 6)
    assert_attends(output, request, what=f"{num_heads} query heads, {num_kv_heads} KV heads of {head_dim}, {dtype}")
    assert_unchanged(there, q=(q, request.q), k_cache=(k_cache, pool.k_cache), v_cache=(v_cache, pool.v_cache),
                     block_table=(block_table, table))


@pytest.mark.todo(4, points=1)
@pytest.mark.parametrize("times", [100.0, -100.0])
def test_todo_4_large_scores_of_a_chunk_do_not_overflow(lab, rng, times):
    pool = Pool(rng, (rng.randrange(5, 20), rng.randrange(4, 12)))
    pool.requests[0].q *= times  # scores of some hundreds; e^89 is more than float32 can hold
    assert_chunk(lab, pool, f"q times {times}, scores of some hundreds")
    pool.requests[0].q[1, 2] *= 5  # one row and head far from the others
    assert_chunk(lab, pool, "scores of one row and head five times as large as those of the others")


@pytest.mark.todo(4, points=1)
@pytest.mark.parametrize("dtype", TWO_DTYPES, ids=str)
def test_todo_4_a_chunk_copies_no_more_than_the_requests_own_blocks(lab, rng, there, dtype):
    pool = Pool(rng, (6, 3), spare_blocks=2000, dtype=dtype)
    made = bytes_made(there, lab.chunk_attention, pool.requests[0].rows(), pool.k_cache, pool.v_cache, pool.table(), 6)
    # A running softmax over the blocks, all of it in float64, makes a fifteenth of this pool, and that is allowed
    assert_does_not_copy_the_pool(made, pool, share=8)


# TODO 5: a batch of requests


def attend_batch(lab, pool: Pool, spare: int = 0):
    return lab.batch_attention(pool.q(), pool.k_cache, pool.v_cache, pool.query_starts(), pool.seq_lens(), pool.tables(spare))


def assert_batch_attends(output, pool: Pool, only=None, what: str = "") -> None:
    """Each request's rows are dense attention over its own tokens."""
    __tracebackhide__ = True
    starts = pool.query_starts()
    check_shape(output, pool.q().shape, f"{what}the rows of all requests")
    for i, request in enumerate(pool.requests):
        if only is None or i == only:
            who = f"{what}request {i} of {len(pool.requests)}, {request.count} tokens after {request.start}"
            assert_attends(output[starts[i] : starts[i + 1]], request, what=who)


BATCHES = {
    "one decode": [(8, 1)], "one chunk": [(4, 4)], "decodes": [(0, 1), (3, 1), (4, 1), (21, 1)],
    "chunks": [(0, 9), (3, 2), (8, 8), (0, 2)],
    "decodes and chunks": [(7, 1), (0, 1), (16, 1), (0, 4), (5, 3), (12, 7)],
}


@pytest.mark.todo(5, points=4)
@pytest.mark.parametrize("block_size", [1, 4, 16])
@pytest.mark.parametrize("spans", BATCHES.values(), ids=BATCHES)
def test_todo_5_every_request_attends_to_its_own_tokens(lab, rng, spans, block_size):
    pool = Pool(rng, *spans, block_size=block_size)
    assert_batch_attends(attend_batch(lab, pool), pool)


@pytest.mark.todo(5, points=1)
def test_todo_5_each_call_reads_cache_and_tables_anew(lab, rng, there):
    pool = Pool(rng, (7, 1), (2, 1), (5, 3))
    caches, [tables] = held(there, pool.k_cache, pool.v_cache), held(there, pool.tables())
    for call in ("the first call: ", "the second of two calls, between which other keys and values were written: ",
                 "the third call, for which the first two requests have changed their rows of block_tables: "):
        if "second" in call:
            pool.rewrite(1)
        if "third" in call:
            (first, second, _), rows = pool.requests, pool.tables()  # both tables are two blocks long, padding included
            first.table, second.table = rows[1].tolist(), rows[0].tolist()
            there.kept(tables.copy_, torch.stack([rows[1], rows[0], rows[2]]))
            pool.put(second, second.keys, second.values)
            pool.put(first, first.keys, first.values)
        for cache, now in zip(caches, (pool.k_cache, pool.v_cache), strict=True):
            there.kept(cache.copy_, now)
        output = lab.batch_attention(pool.q(), *caches, pool.query_starts(), pool.seq_lens(), tables)
        assert_batch_attends(output, pool, what=call)


@pytest.mark.todo(5, points=2)
@pytest.mark.parametrize("clean", range(4))
def test_todo_5_nothing_of_a_neighbour_reaches_a_request(lab, rng, clean):
    pool = Pool(rng, (7, 1), (2, 1), (0, 4), (5, 3), garbage=math.nan)
    for i, request in enumerate(pool.requests):
        if i != clean:
            pool.put(request, request.keys * math.nan, request.values * math.nan)
    assert_batch_attends(attend_batch(lab, pool), pool, only=clean, what="NaN in all others' keys and values: ")


@pytest.mark.todo(5, points=1)
def test_todo_5_two_requests_may_share_a_block(lab, rng):
    pool = Pool(rng, (rng.randrange(4, 12), 1), (6, 3))
    first, second = pool.requests
    second.table[0] = first.table[0]  # the same first four tokens, stored once
    second.keys[:4], second.values[:4] = first.keys[:4], first.values[:4]
    assert_batch_attends(attend_batch(lab, pool), pool, what="the first block is in both tables: ")


@pytest.mark.todo(5, points=1)
@pytest.mark.parametrize("num_heads, num_kv_heads", [(4, 4), (4, 2), (8, 2), (3, 1)])
def test_todo_5_random_batches(lab, rng, num_heads, num_kv_heads):
    for size in (rng.choice([1, 3]), rng.choice([4, 16])):
        decodes = [(rng.randrange(40), 1) for _ in range(rng.randrange(4))]
        chunks = [(rng.randrange(20), rng.randrange(2, 12)) for _ in range(rng.randrange(not decodes, 4))]
        pool = Pool(rng, *decodes, *chunks, block_size=size, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=8)
        assert_batch_attends(attend_batch(lab, pool), pool, what=f"{num_heads} query heads, {num_kv_heads} KV heads: ")


@pytest.mark.todo(5, points=2)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_todo_5_any_strides_longer_tables_and_nothing_changed(lab, rng, there, dtype):
    pool = Pool(rng, (3, 1), (rng.randrange(4, 9), 1), (6, 5), dtype=dtype)
    tables, q = pool.tables(spare=3), cut_out(there, pool.q())
    k_cache, v_cache, block_tables = held(there, pool.k_cache, pool.v_cache, tables)
    starts, lens = there.hold(pool.query_starts()), there.hold(pool.seq_lens())
    output = where_q_is(there, lab.batch_attention, q, k_cache, v_cache, starts, lens, block_tables)
    assert_batch_attends(output, pool, what=f"q of {dtype} cut out of a wider tensor, tables with three spare entries: ")
    assert_unchanged(there, q=(q, pool.q()), k_cache=(k_cache, pool.k_cache), v_cache=(v_cache, pool.v_cache),
                     block_tables=(block_tables, tables))
    before, after = (pool.query_starts(), pool.seq_lens()), (there.look(starts), there.look(lens))
    assert after == before, f"query_starts and seq_lens were {before}, and are {after} after the call"


@pytest.mark.todo(5, points=1)
@pytest.mark.parametrize("dtype", TWO_DTYPES, ids=str)
def test_todo_5_a_batch_copies_no_more_than_the_requests_own_blocks(lab, rng, there, dtype):
    pool = Pool(rng, (8, 1), (9, 1), (6, 3), spare_blocks=4000, dtype=dtype)
    made = bytes_made(there, lab.batch_attention, pool.q(), pool.k_cache, pool.v_cache, pool.query_starts(), pool.seq_lens(),
                      pool.tables())
    # Five rows one at a time, each with its blocks in float64, copy a thirtieth of this pool, and that is allowed
    assert_does_not_copy_the_pool(made, pool, share=8)


# TODO 6: swap in


def part(lab, there, config=None, block_size=4, dtype=torch.float32, device="cpu"):
    return lab.PagedAttention(config or model_config(), block_size, dtype, there.kept(torch.device, device))


def metadata_of(there, pool: Pool):
    """The pool's requests as the engine describes a step, there."""
    return there.of(AttentionMetadata)(**pool.metadata())


def tensors_of(there, cache) -> list:
    """The tensors of a cache, there, layer by layer: keys, then values."""
    pairs = [there.kept(operator.getitem, cache, layer) for layer in range(len(cache))]
    return [there.kept(operator.getitem, pair, i) for pair in pairs for i in range(len(pair))]


@contextlib.contextmanager
def unset_memory_is_nan(there):
    """`torch.empty` gives NaN in here, where it would give whatever was in memory, which may be zeros."""
    set_mode, before = there.of(torch.set_deterministic_debug_mode), there.of(torch.get_deterministic_debug_mode)()
    set_mode("warn")
    try:
        yield
    finally:
        set_mode(before)


@pytest.mark.todo(6, points=2)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_todo_6_a_cache_of_two_tensors_per_layer_each_its_own(lab, rng, there, dtype):
    layers, blocks = rng.randrange(2, 5), rng.randrange(4, 9)
    attention = part(lab, there, model_config(num_kv_heads=2, head_dim=8, layers=layers), dtype=dtype)
    with unset_memory_is_nan(there):
        cache = there.kept(attention.make_cache, blocks)
    pairs = there.look(cache)
    assert len(pairs) == layers and all(len(pair) == 2 for pair in pairs), f"{layers} layers: as many pairs of keys and values"
    for tensor in itertools.chain(*pairs):
        check_shape(tensor, (blocks, 4, 2, 8), f"make_cache({blocks})")
        assert tensor.dtype == dtype, f"expected {dtype}, got {tensor.dtype}"
        check(bool((tensor == 0).all()), "the cache begins with zeros")
    tensors = tensors_of(there, cache)
    for i, tensor in enumerate(tensors):
        assert tensor.is_contiguous(), "the tensors of a cache are contiguous"
        there.kept(tensor.fill_, i + 1)
    first_numbers = [tensor.flatten()[0].item() for pair in there.look(cache) for tensor in pair]
    assert first_numbers == list(range(1, 2 * layers + 1)), f"two of the {2 * layers} tensors are one and the same"
    left = [bool(tensor.any()) for pair in there.look(there.kept(attention.make_cache, blocks)) for tensor in pair]
    check(not any(left), "a second make_cache() has in it what was written to the first: every tensor its own, and zeros")
    elsewhere = there.kept(part(lab, there, dtype=dtype, device="meta").make_cache, 2)  # has shapes and no memory
    devices = sorted({tensor.device.type for tensor in tensors_of(there, elsewhere)})
    check(devices == ["meta"], f"self.device was 'meta', so the whole cache is there; it was made on {', '.join(devices)}")


@pytest.mark.todo(6, points=2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layers, num_kv_heads, head_dim, block_size", [(1, 1, 2, 1), (3, 2, 8, 4), (4, 2, 32, 16), ("any",) * 4])
def test_todo_6_bytes_per_block_is_what_a_block_takes(lab, rng, there, layers, num_kv_heads, head_dim, block_size, dtype):
    if layers == "any":
        layers, num_kv_heads, head_dim, block_size = rng.randrange(2, 9), 2, rng.randrange(4, 40), rng.randrange(2, 20)
    count = part(lab, there, model_config(4, num_kv_heads, head_dim, layers), block_size, dtype).bytes_per_block
    # 10 blocks in `layers` layers, keys and values, counted in the tensors that the README asks for
    pool = [torch.empty(10, block_size, num_kv_heads, head_dim, dtype=dtype) for _ in range(2 * layers)]
    expected = sum(t.numel() * t.element_size() for t in pool) // 10
    assert same(count, expected), (
        f"{layers} layers, blocks of {block_size}, {num_kv_heads} KV heads of {head_dim}, {dtype}: "
        f"expected {expected} bytes, got {shown(count)}")


@pytest.mark.todo(6, points=1)
@pytest.mark.parametrize("spans", BATCHES.values(), ids=BATCHES)
def test_todo_6_forward_is_what_the_engines_attention_computes(lab, rng, there, spans):
    config = model_config(num_heads=8, num_kv_heads=2)
    pool = Pool(rng, *spans, num_heads=8, num_kv_heads=2)
    layer_cache = pool.k_cache, pool.v_cache
    output = part(lab, there, config).forward(pool.q(), layer_cache, metadata_of(there, pool))
    assert_batch_attends(output, pool)
    engines = TorchPagedAttention(config, 4, torch.float32, CPU).forward(
        pool.q(), layer_cache, AttentionMetadata(**pool.metadata()))
    limit = 2 * max(allowed_error(r.q, r.keys, r.values) for r in pool.requests)
    check(bool((output - engines).abs().max() <= limit), "another result than the engine's own attention")


@pytest.mark.todo(6, points=1)
def test_todo_6_forward_changes_nothing(lab, rng, there):
    pool = Pool(rng, (rng.randrange(3, 9), 1), (9, 1), (2, 5))
    q, metadata, layer_cache = cut_out(there, pool.q()), metadata_of(there, pool), held(there, pool.k_cache, pool.v_cache)
    output = where_q_is(there, part(lab, there).forward, q, tuple(layer_cache), metadata)
    for name in ("query_lens", "seq_lens", "block_tables", "slot_mapping"):
        before, after = numbers(pool.metadata()[name]), numbers(getattr(metadata, name))
        check(after == before, (
            f"forward changed metadata.{name}: the next layer uses the same one. Before {before}, after {after}"))
    assert_unchanged(there, q=(q, pool.q()), k_cache=(layer_cache[0], pool.k_cache), v_cache=(layer_cache[1], pool.v_cache))
    assert_batch_attends(output, pool)


@pytest.mark.todo(6, points=1)
def test_todo_6_each_step_is_computed_from_its_own_metadata(lab, rng, there):
    attention, metadata = part(lab, there), metadata_of(there, Pool(rng, (0, 1)))
    for spans in ([(6, 1), (2, 5)], [(3, 1), (4, 1), (6, 5)], [(0, 9)]):
        pool, fields = Pool(rng, *spans), there.kept(vars, metadata)
        fields.clear()  # an object at the address of the last step's, as Python often makes one: here it is the same
        fields.update(there.kept(vars, metadata_of(there, pool)))
        output = attention.forward(pool.q(), (pool.k_cache, pool.v_cache), metadata)
        assert_batch_attends(output, pool, what="steps one after the other, metadata at the same address: ")


def tensors_alive(there) -> int:
    """How many tensors there are, there. It is counted there, for a list of all objects is too long to send."""
    there.of(gc.collect)()
    objects = there.kept(there.of(itertools.chain).from_iterable, there.kept(map, there.of(gc.get_objects), [None]))
    kinds, tensor = there.kept(map, there.of(type), objects), there.kept(itertools.repeat, there.of(torch.Tensor))
    return there.of(sum)(there.kept(map, there.of(issubclass), kinds, tensor))


@pytest.mark.todo(6, points=1)
def test_todo_6_nothing_of_a_step_is_kept(lab, rng, there):
    pool, attention, counts = Pool(rng, (6, 1), (2, 5)), part(lab, there), []
    layer_cache, metadata = tuple(held(there, pool.k_cache, pool.v_cache)), metadata_of(there, pool)
    fields = there.kept(vars, metadata)
    for steps in (2, 10):
        for _ in range(steps):
            rows, step = pool.q(), pool.metadata()
            attention.write(layer_cache, rows[:, :2], rows[:, :2], step["slot_mapping"])
            fields.update(step)
            attention.forward(rows, layer_cache, metadata)
        del rows, step
        counts.append(tensors_alive(there))
    check(counts[1] - counts[0] < 10, (
        f"after 10 more steps there are {counts[1] - counts[0]} more tensors than before: something of each step is kept, and "
        "an engine makes millions"))


@pytest.mark.todo(6, points=2)
@pytest.mark.parametrize("padding, dtype", [(1, torch.float32), (12, torch.float32), (3, torch.bfloat16)])
def test_todo_6_padding_rows_come_back_as_zeros(lab, rng, there, padding, dtype):
    pool = Pool(rng, (6, 1), (4, 1), (2, rng.randrange(2, 7)), garbage=math.nan, dtype=dtype)
    q, rows = torch.cat([pool.q(), torch.full((padding, 4, 16), math.nan, dtype=dtype)]), len(pool.q())
    attention, metadata = part(lab, there, dtype=dtype), metadata_of(there, pool)
    with unset_memory_is_nan(there):
        output = attention.forward(q, (pool.k_cache, pool.v_cache), metadata)
    check_shape(output, q.shape, f"{len(q)} rows, {padding} of them padding")
    assert_batch_attends(output[:rows], pool, what="with padding rows after the last request: ")
    check(bool((output[rows:] == 0).all()), (
        f"the {padding} padding rows belong to nobody and must be zeros, whatever their q holds (here NaN): they go on "
        f"through the layers. Got {[first_of(row) for row in output[rows:, 0]][:3]}"))


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


@pytest.mark.practice
@pytest.mark.todo(6, points=3)
def test_todo_6_in_the_engine_logits_of_random_weights_are_those_of_transformers(lab, rng, there):
    part(lab, there).make_cache(2)
    folder, oracle = random_checkpoint()
    sampler = KeepsLogits()
    llm = swapped_in(
        lab, folder.name, components=Components(sampler=lambda config: sampler), block_size=4, max_num_batched_tokens=7,
        max_num_seqs=4)
    prompts = [[rng.randrange(512) for _ in range(n)] for n in (1, 4, 9, 18)]
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, detokenize=False), use_tqdm=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        sequence = prompt + output.outputs[0].token_ids
        for end, expected in list(enumerate(oracle.logits(sequence), start=1))[len(prompt) - 1 : -1]:
            logits, where = sampler.rows[tuple(sequence[:end])], f"prompt of {len(prompt)} tokens, logits after token {end - 1}"
            check(bool(logits.isfinite().all()), f"{where}: NaN or infinity, with your attention in all layers. {IN_THE_ENGINE}")
            error = (logits - expected).abs().max() / expected.abs().max()
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


@pytest.mark.practice
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
    tokens = [output.outputs[0].token_ids for output in outputs]
    try:
        oracle.compare([list(p) for p in prompts], expected, tokens)
    except AssertionError as difference:
        message = (
            f"With your attention the engine generated {tokens}; transformers generates {[e.token_ids for e in expected]} "
            f"({difference}). {IN_THE_ENGINE}")
    else:
        return
    pytest.fail(message, pytrace=False)


if __name__ == "__main__":
    raise SystemExit("These are tests. Run them with: pytest test_lab.py")
