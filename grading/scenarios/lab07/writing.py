"""Lab 07, TODO 2: keys and values are written."""

import random
from itertools import product

import torch
from torch import Tensor

from grading.judge.checks import Wrong, check, expect, hold, look, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.lab07.pool import DTYPES, GARBAGE, VAST_BLOCK, VAST_HEADS, Vast, bits, cut_out, expect_unchanged

WRITE = "TODO 2: Write keys and values"


def rows_of(first: float, count: int, dtype: torch.dtype = torch.float32, heads: int = 2) -> Tensor:
    """[count, heads, 4] that can be told apart by eye: token i has first + i, and .25 more in each further head."""
    tokens = torch.arange(count)[:, None, None] + first + 0.25 * torch.arange(heads)[:, None]
    return tokens.expand(-1, -1, 4).to(dtype).contiguous()


def expect_written(lab: Remote, cache: Tensor, slots: list[int], k: Tensor, v: Tensor, but_block_0: bool = False) -> None:
    """write_kv of k and v, into caches that both begin as `cache`, writes these slots and no others."""
    held = [hold(lab, cache) for _ in "kv"]
    lab.write_kv(*held, k, v, torch.tensor(slots))
    for name, there, rows in (("k_cache", held[0], k), ("v_cache", held[1], v)):
        want = cache.clone().flatten(0, 1)
        want[torch.tensor(slots)] = rows
        got = look(there).flatten(0, 1)
        expect(got.shape == want.shape and got.dtype == want.dtype, f"{name} became {shown(got)}")
        begins = cache.shape[1] if but_block_0 else 0
        wrong = ((bits(got) != bits(want)).flatten(1).any(dim=1).nonzero().flatten()).tolist()
        wrong = [slot for slot in wrong if slot >= begins]
        if wrong:
            raise Wrong(f"{name} after writing slots {slots}: slots {shown(wrong)} are wrong; slot {wrong[0]} should begin with "
                        f"{want[wrong[0], 0, 0].item()} and begins with {got[wrong[0], 0, 0].item()}")


@check(todo=2, points=3, section=WRITE, concept="each token into its slot")
def every_token_lands_in_its_slot_and_nothing_else_changes(lab: Remote, rng: random.Random) -> None:
    for dtype in DTYPES:
        size = rng.randrange(3, 7)
        one, two, three = rng.sample(range(1, 7), 3)
        scattered = [one * size + size - 1, two * size, 8 * size - 1, three * size + 1]
        slot, first = rng.randrange(1, 3 * size), rng.randrange(10, 50)
        ends = [slot, slot + 3 * size, slot + 2 * size, slot + 3]  # as far apart as in a row of four, by chance
        for slots in (scattered, ends, *([slot + step for step in steps] for steps in ((0, 2, 1, 3), (3, 2, 1, 0), range(4)))):
            expect_written(lab, torch.full((8, size, 2, 4), -1.0, dtype=dtype), slots, rows_of(first, 4, dtype),
                           rows_of(first + 50, 4, dtype))


@check(todo=2, points=2, section=WRITE, concept="k and v of any strides")
def takes_keys_and_values_of_any_strides(lab: Remote, rng: random.Random) -> None:
    for heads, size in product((1, 3), (1, 4, 16)):
        generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
        k, v = (torch.randn(3, heads, 8, generator=generator) for _ in "kv")
        slots = torch.tensor(rng.sample(range(4, 20), 3))
        caches = [hold(lab, torch.zeros(1 + 20 // size, size, heads, 8)) for _ in "kv"]
        given = cut_out(lab, k), cut_out(lab, v), hold(lab, slots)
        lab.write_kv(*caches, *given)
        for name, cache, rows in (("k_cache", caches[0], k), ("v_cache", caches[1], v)):
            found = look(cache).flatten(0, 1)[slots]
            expect(torch.equal(found, rows),
                   f"{name}, blocks of {size}: k and v were cut out of a wider tensor, and other numbers arrived")
        expect_unchanged(k=(given[0], k), v=(given[1], v), slot_mapping=(given[2], slots))


@check(todo=2, points=2, section=WRITE, concept="padding rows")
def padding_goes_into_the_null_block(lab: Remote, rng: random.Random) -> None:
    cache, first = torch.zeros(4, 4, 2, 4), rng.randrange(10, 50)
    slot, other = rng.sample(range(4, 16), 2)
    expect_written(lab, cache, [slot], rows_of(first, 1), rows_of(first + 50, 1))
    expect_written(lab, cache, [slot, other, 0, 0], rows_of(first, 4), rows_of(first + 50, 4), but_block_0=True)


@check(todo=2, points=2, section=WRITE, concept="slots that were used before", hidden=True)
def what_was_in_a_slot_before_is_overwritten_whatever_it_was(lab: Remote, rng: random.Random) -> None:
    for before in GARBAGE.values():
        for dtype in DTYPES:
            slots = rng.sample(range(4, 32), 5)
            expect_written(lab, torch.full((8, 4, 3, 4), before, dtype=dtype), slots, rows_of(3, 5, dtype, heads=3),
                           rows_of(60, 5, dtype, heads=3))


@check(todo=2, points=1, section=WRITE, concept="the pool is not copied")
def does_not_copy_the_cache(lab: Remote, rng: random.Random) -> None:
    for dtype in DTYPES:
        vast = Vast(lab, rng, (0, 3), dtype=dtype)
        k, v = (torch.randn(3, *VAST_HEADS[1:]).to(dtype) for _ in "kv")
        offsets = torch.tensor(rng.sample(range(VAST_BLOCK), 3))
        blocks = vast.ids[torch.tensor(rng.sample(range(len(vast.ids)), 3))]
        vast.within_its_blocks(lab.write_kv, vast.k_cache, vast.v_cache, k, v, blocks * VAST_BLOCK + offsets)
        for name, cache, rows in (("k_cache", vast.k_cache, k), ("v_cache", vast.v_cache, v)):
            found = cache.index_select(0, blocks)[torch.arange(3), offsets]
            expect(torch.equal(found, rows), f"{name} of {vast.what}: what was written is not there")
