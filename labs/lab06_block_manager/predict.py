"""The truth behind predict.toml: each question's function asks the engine's own block manager."""

import itertools

from nano_qwen3_serving import EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.attention.torch_paged import TorchPagedAttention
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.scheduling.block_manager import BlockManager

LARGE = 1000  # blocks


def case(random) -> dict:
    """A pool, the lengths of A and B, and a position to look up.

    Drawn so that each question's point decides the answer: what A keeps in the end fills its blocks
    exactly, so that one token more would take another; and B needs all that A and the null block
    leave over, or one block more than that, though A's last block has empty slots as well.
    """
    block_size = random.choice([4, 8])
    num_blocks = random.randint(9, 14)
    prompt_a = block_size + random.randint(1, 2 * block_size - 1)
    held_a = 4 * block_size + random.choice([1, 2, 3, block_size + 1, block_size + 2, block_size + 3])
    left = num_blocks - 1 - (held_a // block_size + 1)
    return {
        "block_size": block_size,
        "num_blocks": num_blocks,
        "prompt_a": prompt_a,
        "tokens_a": random.randint(4, 5) * block_size - prompt_a + 1,
        "position": random.randint(block_size, 3 * block_size - 1),
        "held_a": held_a,
        "prompt_b": left * block_size + random.choice([1, -1]),
    }


def usable_blocks(case: dict) -> int:
    return _pool(case).num_free_blocks


def blocks_of_a(case: dict) -> int:
    return len(_table(case, case["prompt_a"]))


def blocks_while_generating(case: dict) -> int:
    args = EngineArgs(model="course-draft", block_size=case["block_size"], enable_prefix_caching=False)
    engine = LLMEngine.from_engine_args(args, recorder=Recorder())
    prompt = {"prompt_token_ids": list(itertools.islice(itertools.count(300), case["prompt_a"]))}
    engine.add_request("A", prompt, SamplingParams(temperature=0.0, max_tokens=case["tokens_a"], ignore_eos=True))
    while engine.has_unfinished_requests():
        engine.step()
    held = [len(step["block_tables"]["A"]) for step in engine.recorder.steps]
    return held[-1] - held[0]


def slot(case: dict) -> int:
    args = EngineArgs(model="course-draft", block_size=case["block_size"])
    config = args.create_engine_config()
    attention = TorchPagedAttention(config.model, config.cache.block_size, config.dtype, config.device)
    return attention.slots([7, 2, 5], range(case["position"], case["position"] + 1))[0]


def is_b_admitted(case: dict) -> str:
    pool = _pool(case)
    assert pool.allocate("A", case["held_a"])
    return "yes" if pool.allocate("B", case["prompt_b"]) else "no"


def free_in_the_end(case: dict) -> int:
    pool = _pool(case)
    assert pool.allocate("A", case["held_a"])
    assert not pool.allocate("C", case["num_blocks"] * case["block_size"])
    pool.free("A")
    pool.free("A")
    return pool.num_free_blocks


def empty_slots(case: dict) -> int:
    lengths = [case["held_a"], case["prompt_a"], case["prompt_b"]]
    return sum(len(_table(case, length)) * case["block_size"] - length for length in lengths)


def _pool(case: dict) -> BlockManager:
    return BlockManager(case["num_blocks"], case["block_size"], enable_prefix_caching=False)


def _table(case: dict, num_tokens: int) -> list[int]:
    """The blocks that the engine's block manager gives a request of `num_tokens` tokens."""
    pool = BlockManager(LARGE, case["block_size"], enable_prefix_caching=False)
    assert pool.allocate("request", num_tokens)
    return pool.block_table("request")
