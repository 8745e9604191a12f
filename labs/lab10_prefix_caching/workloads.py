"""Traces of prompts, and what the hit rate is on them: `python workloads.py` prints limit, reference, naive and yours.

The limit is a pool in which everything fits. The naive manager evicts the block with the smallest number.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from labs.harness import loading
from labs.harness.catalog import lab_at
from nano_qwen3_serving.scheduling import block_manager

Prompts = list[list[int]]
SIZE = 4


def shared_beginning() -> Prompts:
    """A long beginning that every third prompt has; the others are asked once."""
    rng, beginning = random.Random(1), list(range(64))
    return [(beginning if turn % 3 == 0 else []) + [rng.randrange(10**6) for _ in range(24)] for turn in range(120)]


def chats() -> Prompts:
    """Four chats, the first the liveliest; each prompt is the one before of its chat and sixteen tokens more."""
    rng, chats = random.Random(2), [[number] for number in range(4)]
    prompts = []
    for _ in range(48):
        chat = rng.choices(chats, [4, 2, 1, 1])[0]
        chat += [rng.randrange(10**6) for _ in range(16)]
        prompts.append(list(chat))
    return prompts


def favourites() -> Prompts:
    """Twenty documents; the first ones are asked about much more often than the last."""
    rng = random.Random(3)
    weights = [1 / (rank + 1) for rank in range(20)]
    picks = rng.choices(range(20), weights, k=240)
    return [[1000 * pick + i for i in range(24)] + [rng.randrange(10**6) for _ in range(4)] for pick in picks]


WORKLOADS: dict[str, tuple[Callable[[], Prompts], int]] = {
    "a shared beginning": (shared_beginning, 33), "four chats": (chats, 161), "favourites": (favourites, 61),
}
"""Prompts, and how many blocks the pool has."""


def hit_rate(manager, prompts: Sequence[Sequence[int]]) -> float:
    """The share of the prompts' tokens that are found, each prompt served alone."""
    hits = 0
    for number, prompt in enumerate(prompts):
        found = manager.find_cached_prefix(str(number), prompt)
        assert manager.allocate(str(number), len(prompt), prompt[:found]), f"{len(prompt)} tokens do not fit"
        manager.commit(str(number), prompt)
        manager.free(str(number))
        hits += found
    return hits / sum(map(len, prompts))


class NaiveBlockManager(block_manager.BlockManager):
    """The engine's, with another victim: the evictable block that has the smallest number."""

    def _evict(self) -> int:
        self._evictable.move_to_end(min(self._evictable), last=False)
        return super()._evict()


def columns(name: str, mine: Callable[[int, int], object] | None = None) -> list[float]:
    """Limit, reference and naive hit rate on a workload, and that of managers which `mine` makes."""
    make, num_blocks = WORKLOADS[name]
    prompts = make()
    managers = [block_manager.BlockManager(10_000, SIZE), block_manager.BlockManager(num_blocks, SIZE),
                NaiveBlockManager(num_blocks, SIZE)]
    return [hit_rate(manager, prompts) for manager in managers + ([mine(num_blocks, SIZE)] if mine else [])]


def main() -> None:
    """The table."""
    lab = lab_at(Path(__file__).parent)
    part = loading.load(lab, lab.starter)
    print(f"{'hit rate':20} {'limit':>9} {'reference':>9} {'naive':>9} {'yours':>9}")
    for name in WORKLOADS:
        print(f"{name:20} " + " ".join(f"{rate:9.1%}" for rate in columns(name, part.BlockManager)))


if __name__ == "__main__":
    main()
