"""The truth behind predict.toml: each question's function asks the engine's own block manager."""

from nano_qwen3_serving.scheduling.block_manager import BlockManager


def case(random) -> dict:
    """A block size, a prompt A, a prompt B that shares its beginning, and prompts that take turns in a pool."""
    block_size, full = random.choice([4, 8]), random.randint(3, 6)
    tokens_a = block_size * full + random.randint(1, block_size - 1)
    shared = block_size * random.randint(1, full - 1) + random.randint(1, block_size - 1)
    per_prompt = random.randint(2, 4)
    return {
        "block_size": block_size, "tokens_a": tokens_a, "shared": shared, "tokens_b": tokens_a + random.randint(1, 9),
        "full_hit": block_size * full, "forked": tokens_a, "per_prompt": per_prompt, "turns": random.randint(5, 7),
        "pool": per_prompt * random.randint(2, 3) + per_prompt - 1,
    }


def found_by_b(case: dict) -> int:
    pool, a = _served(case)
    b = [*a[: case["shared"]], *range(5000, 5000 + case["tokens_b"] - case["shared"])]
    return pool.find_cached_prefix("B", b)


def found_in_a_full_hit(case: dict) -> int:
    pool, a = _served(case)
    return pool.find_cached_prefix("again", a[: case["full_hit"]])


def found_with_another_salt(case: dict) -> int:
    pool, a = _served(case)
    return pool.find_cached_prefix("B", a, salt="another tenant")


def blocks_of_a_fork(case: dict) -> int:
    pool, _ = _served(case)
    before = pool.num_free_blocks
    assert pool.fork("A", "A2", case["forked"]) is not None
    return before - pool.num_free_blocks


def free_when_a_is_gone(case: dict) -> int:
    pool, a = _served(case)
    found = pool.find_cached_prefix("B", a)
    assert pool.allocate("B", len(a), a[:found])
    pool.free("A")
    return 999 - pool.num_free_blocks


def hits_in_turn(case: dict) -> int:
    """Prompts of some blocks and a token more take turns in a pool, twice; how many tokens the second round finds."""
    size, prompts = case["block_size"], case["pool"] // case["per_prompt"] + 1
    pool, hits = BlockManager(case["pool"] + 1 + 1, size), 0
    for turn in range(2 * prompts):
        tokens = [1000 * (turn % prompts) + i for i in range(case["per_prompt"] * size + 1)]
        found = pool.find_cached_prefix(str(turn), tokens)
        assert pool.allocate(str(turn), len(tokens), tokens[:found])
        pool.commit(str(turn), tokens)
        pool.free(str(turn))
        hits += found
    return hits


def _served(case: dict) -> tuple[BlockManager, list[int]]:
    """A large pool in which A, which is computed, runs; and A's tokens."""
    pool, tokens = BlockManager(1000, case["block_size"]), list(range(case["tokens_a"]))
    assert pool.allocate("A", len(tokens))
    pool.commit("A", tokens)
    return pool, tokens
