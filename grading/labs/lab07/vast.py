"""Caches of Lab 07 that are larger than any memory: whoever copies one is noticed, by whatever means it is copied."""

import mmap
import random
import sys
from typing import Any

import torch

from grading.judge.checks import Wrong, expect_nothing_replaced, shorter
from grading.sandbox.worker.peer import Raised, Remote, kept

VAST = (1 << 41, 1 << 38, 1 << 35, 1 << 32, 1 << 28)
"""Bytes of a vast cache, the first for which the machine has addresses: 2 TiB nearly everywhere. The last is for machines
that give no addresses without memory; there a copy would go unnoticed."""
VAST_BLOCK = 256
VAST_HEADS = {"num_heads": 32, "num_kv_heads": 2, "head_dim": 64}


def vast_cache(lab: Remote, dtype: torch.dtype) -> Remote:
    """A cache that is larger than any memory, [num_blocks, 256, 2, 64], zeroed.

    It has addresses, and memory only for the pages that somebody writes. So a copy of it, or scores for all of
    it, cannot be had from the machine, or are more than a check may use; a few of its blocks cost what they cost in any.
    """
    expect_nothing_replaced(lab, "maps")  # an mmap that refuses would make the cache small
    package = lab._peer.root.package
    unreserved = 0x4000 if sys.platform == "linux" else 0  # MAP_NORESERVE
    for size in VAST:
        try:
            addresses = package("mmap").mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | unreserved)
            break
        except Raised:
            if size == VAST[-1]:
                raise
    flat = kept(package("torch").frombuffer, addresses, dtype=dtype)
    return kept(flat.view, -1, VAST_BLOCK, VAST_HEADS["num_kv_heads"], VAST_HEADS["head_dim"])


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
        ids: the block here that has what a block of the pool has, [num_blocks of the pool].
        tables: as those of the pool, with the blocks' ids here.
        what: the cache in words.
    """

    def __init__(self, lab: Remote, rng: random.Random, pool: Any) -> None:
        dtype = pool.k_cache.dtype
        self.k_cache, self.v_cache = (vast_cache(lab, dtype) for _ in "kv")
        self.ids = torch.tensor(rng.sample(range(1, self.k_cache.shape[0]), len(pool.k_cache)))
        for cache, blocks in ((self.k_cache, pool.k_cache), (self.v_cache, pool.v_cache)):
            kept(cache.index_copy_, 0, self.ids, blocks)
        self.tables = self.ids[pool.tables()]
        self.what = f"a pool of {self.k_cache.shape[0]:,} blocks in {str(dtype).removeprefix('torch.')}"

    def within_its_blocks(self, call: Remote, *arguments: Any) -> Any:
        """What the call gives; it must not need memory for the pool."""
        return within_memory(
            f"{self.what}, and something of its size was to be made: take the request's blocks first, and work on those alone",
            call, *arguments)
