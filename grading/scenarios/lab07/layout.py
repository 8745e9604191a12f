"""Lab 07, TODO 1: the layout of a batch."""

import random
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from grading.judge.checks import check, expect, hold, look, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab07.pool import list_of_ints, model_config, numbers

LAY_OUT = "TODO 1: Lay out the batch"

TENSORS = ("token_ids", "positions", "slot_mapping", "block_tables")


class Piece:
    """A chunk: the judge's knowledge of it, and one made of the submission's `Chunk`."""

    def __init__(self, lab: Remote, token_ids: list[int], computed: int, table: list[int]) -> None:
        self.facts = (token_ids, computed, table)
        self.there = lab.Chunk(token_ids=token_ids, num_computed_tokens=computed, block_table=table)

    def __repr__(self) -> str:
        return f"{len(self.facts[0])} tokens after {self.facts[1]} in blocks {self.facts[2]}"


def facts_of(chunk: Any) -> tuple:
    """(token_ids, computed, table) of a chunk that came back."""
    return tuple(getattr(chunk, name, None) for name in ("token_ids", "num_computed_tokens", "block_table"))


def expect_layout(layout: Any, pieces: Sequence[Piece], size: int, **wanted: Any) -> None:
    """The named fields are as wanted."""
    for name, want in wanted.items():
        got = getattr(layout, name, None)
        expect(name not in TENSORS or (isinstance(got, Tensor) and got.dtype == torch.long),
               f"{name}: expected a torch.long tensor, and {shown(got)} came")
        expect(name not in ("query_starts", "seq_lens") or list_of_ints(got),
               f"{name}: expected a list of ints, and {shown(got)} came")
        expect(numbers(got) == want,
               f"chunks {list(pieces)}, blocks of {size}: expected {name} {shown(want)}, got {shown(numbers(got))}")


def place_of(table: Sequence[int], position: int, size: int) -> int:
    """The slot of a position, found by laying out the blocks of the table."""
    return [block * size + offset for block in table for offset in range(size)][position]


@check(todo=1, points=3, section=LAY_OUT, concept="from a position to its slot")
def a_slot_is_block_id_times_block_size_plus_offset(lab: Remote, rng: random.Random) -> None:
    for size in (1, 4, rng.randrange(2, 20), 16):
        table, block = rng.sample(range(1, 60), 4), rng.randrange(1, 50)
        ends = [block, block + 5, 60, block + 3]  # as far apart as in a row of blocks
        for blocks, (first, last) in product((table, ends, list(range(block, block + 4))), (
                (0, size), (size - 1, size + 1), (rng.randrange(2 * size), 4 * size), (0, 4 * size), (size, size))):
            found = lab.slots_of(blocks, range(first, last), size)
            right = [place_of(blocks, position, size) for position in range(first, last)]
            expect(list_of_ints(found), f"slots_of() returned {shown(found)}; expected a list of ints")
            expect(found == right,
                   f"blocks of {size}, block table {blocks}, positions {shown(list(range(first, last)))}: "
                   f"expected slots {shown(right)}, got {shown(found)}")
        there = hold(lab, table)
        for _ in range(2):  # the engine's list changes from step to step
            there.reverse()
            table.reverse()
            found, right = lab.slots_of(there, range(size), size), [place_of(table, position, size) for position in range(size)]
            expect(found == right, f"the same list is {table} now: expected slots {shown(right)}, got {shown(found)}")


@check(todo=1, points=3, section=LAY_OUT, concept="a decode beside a chunk of a prompt")
def lays_out_a_decode_beside_a_chunk(lab: Remote, rng: random.Random) -> None:
    size, blocks, tokens = rng.randrange(3, 8), rng.sample(range(1, 60), 4), rng.sample(range(10, 999), 4)
    computed = rng.randrange(size, 2 * size)
    a = Piece(lab, tokens[:1], computed, blocks[:2])
    b = Piece(lab, tokens[1:3], size - 1, [blocks[2], blocks[3], blocks[0]])
    layout = lab.lay_out([a.there, b.there], size)
    expect_layout(
        layout, [a, b], size, token_ids=tokens[:3], positions=[computed, size - 1, size], num_decodes=1,
        slot_mapping=[place_of(blocks[:2], computed, size), blocks[2] * size + size - 1, blocks[3] * size],
        query_starts=[0, 1, 3], seq_lens=[computed + 1, size + 1],
        block_tables=[[*blocks[:2], 0], [blocks[2], blocks[3], blocks[0]]])


@check(todo=1, points=3, section=LAY_OUT, concept="the order of the chunks")
def chunks_of_one_token_come_first_and_otherwise_the_order_stays(lab: Remote, rng: random.Random) -> None:
    longest = rng.randrange(3, 6)
    lengths = [longest, 1, rng.randrange(2, longest), 1, 1, rng.randrange(2, 9)]
    expect_order(lab, lengths, [1, 3, 4, 0, 2, 5])
    expect_order(lab, [1, longest, 1], [0, 2, 1])
    expect_order(lab, [longest, 1, longest - 1], [1, 0, 2])


def expect_order(lab: Remote, lengths: list[int], expected: list[int]) -> None:
    """Chunks of so many tokens are laid out in this order."""
    pieces = [Piece(lab, [100 * i + j for j in range(n)], 0, [i + 1, i + 21]) for i, n in enumerate(lengths)]
    layout = lab.lay_out([piece.there for piece in pieces], 8)
    order = [facts_of(chunk)[0] for chunk in layout.chunks]
    right = [pieces[i].facts for i in expected]
    expect(order == [tokens for tokens, _, _ in right],
           f"chunks of {lengths} tokens, those of chunk i being 100 i, 100 i + 1, ...: "
           f"expected the order {expected}; chunks have the tokens {shown(order)}")
    expect_layout(
        layout, pieces, 8, token_ids=[token for tokens, _, _ in right for token in tokens],
        block_tables=[table for _, _, table in right], num_decodes=lengths.count(1))


@check(todo=1, points=1, section=LAY_OUT, concept="whose the chunks are")
def leaves_the_chunks_as_they_are(lab: Remote, rng: random.Random) -> None:
    size, blocks = rng.randrange(3, 8), rng.sample(range(1, 60), 5)
    pieces = [Piece(lab, [3, 4, rng.randrange(99)], 0, blocks[:1]), Piece(lab, [rng.randrange(99)], size, blocks[1:4]),
              Piece(lab, [5], 1, blocks[4:])]
    given = hold(lab, [piece.there for piece in pieces])
    lab.lay_out(given, size)
    now = [facts_of(chunk) for chunk in look(given)]
    expect(now == [piece.facts for piece in pieces],
           f"the chunks {pieces} belong to the scheduler, which uses them again; after lay_out the list held {shown(now)}")


def scheduled(rng: random.Random, count: int, size: int, spare: int) -> Any:
    """A chunk as the scheduler makes it: `count` tokens after some others, in any blocks, and some too many."""
    from nano_qwen3_serving import SamplingParams
    from nano_qwen3_serving.interfaces import ScheduledChunk
    from nano_qwen3_serving.request import Request

    start = rng.choice([0, size - 1, size, rng.randrange(30)])
    tokens = [rng.randrange(1000) for _ in range(start + count + rng.randrange(3))]
    request = Request(f"r{rng.random()}", None, tokens, SamplingParams(), seed=0, max_total_tokens=1000)
    return ScheduledChunk(request, start, count, rng.sample(range(1, 300), -(-(start + count) // size) + spare))


def by_the_engine(chunks: Sequence[Any], size: int) -> dict[str, Any]:
    """What the engine's own model runner makes of them, by the names of `Layout`."""
    from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention
    from nano_qwen3_serving.execution.model_runner import ModelRunner
    from nano_qwen3_serving.interfaces import ScheduledBatch

    cpu = torch.device("cpu")
    attention = TorchPagedAttention(model_config(), size, torch.float32, cpu)
    none: Any = None  # laying out needs neither a model nor a sampler
    runner = ModelRunner(none, attention, none, num_blocks=2, block_size=size, device=cpu)
    inputs = runner.lay_out(ScheduledBatch(list(chunks)))
    lens, rest = inputs.metadata.query_lens, inputs.metadata
    return {"token_ids": inputs.token_ids.tolist(), "positions": inputs.positions.tolist(),
            "slot_mapping": rest.slot_mapping.tolist(), "query_starts": [sum(lens[:i]) for i in range(len(lens) + 1)],
            "seq_lens": rest.seq_lens, "block_tables": rest.block_tables.tolist(), "num_decodes": rest.num_decodes}


@check(todo=1, points=4, section=LAY_OUT, concept="any chunks", hidden=True)
def is_what_the_engines_model_runner_lays_out(lab: Remote, rng: random.Random) -> None:
    for size in (1, 4, 16):
        for case in range(6):
            counts = [rng.choice([1, 1, 2, 5, size, size + 1]) for _ in range(rng.randrange(1, 6))]
            chunks = [scheduled(rng, count, size, spare=case % 2) for count in counts]
            pieces = [Piece(lab, list(c.request.token_ids(c.start, c.end)), c.start, list(c.block_table)) for c in chunks]
            expect_layout(lab.lay_out([piece.there for piece in pieces], size), pieces, size, **by_the_engine(chunks, size))
