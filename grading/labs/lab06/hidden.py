"""What only the judge asks of Lab 06."""

import functools
import random
from typing import Any

from grading.judge.suite import hidden
from labs.harness.catalog import find_lab
from labs.harness.mixed_engine.part import load_seam
from labs.harness.suite.expecting import same, shown


def blocks_for(num_tokens: int, block_size: int) -> int:
    """What `num_tokens` tokens take, counted block by block and not divided."""
    return len(range(0, num_tokens, block_size))


@hidden("test_todo_5_no_block_is_lost_or_doubled_whatever_happens_in_whatever_order", concept="any calls in any order")
def test_todo_5_any_calls_in_any_order_leave_every_block_free_or_in_one_table(lab: Any, rng: random.Random) -> None:
    for _ in range(3):
        num_blocks, size = rng.randrange(6, 11), rng.randrange(3, 7)
        manager = lab.BlockManager(num_blocks, size)
        usable, given, tables = manager.num_free_blocks, dict[str, int](), dict[str, list[int]]()
        for _ in range(30):
            request, calls = rng.choice("ABCD"), f"{given} given, in {usable} usable blocks of {size}"
            if rng.random() < 0.3:
                manager.free(request)
                given.pop(request, None)
                tables.pop(request, None)
            else:
                tokens = rng.randrange(1, 5 * size)
                wanted = max(tokens, given.get(request, 0))
                fits = sum(blocks_for(count, size) for count in ({**given, request: wanted}).values()) <= usable
                assert same(manager.allocate(request, tokens), fits), f"allocate({request!r}, {tokens}) is {fits}: {calls}"
                if fits:
                    given[request] = wanted
            tables = look_at(manager, size, usable, given, tables)


def look_at(manager: Any, size: int, usable: int, given: dict[str, int], before: dict[str, list[int]]) -> dict[str, list[int]]:
    """The tables, in which every block stands once, and which only grew; the other blocks are free."""
    tables = {request: manager.block_table(request) for request in given}
    held = [block for table in tables.values() for block in table]
    assert len(set(held)) == len(held) and 0 not in held, f"a block is held twice, or the null block is: {tables}"
    for request, table in tables.items():
        tokens = given[request]
        assert len(table) == blocks_for(tokens, size), f"{request} has {tokens} tokens in blocks of {size}: {table}"
        was = before.get(request, [])
        assert table[: len(was)] == was, f"{request} had the blocks {was}, and has {table}"
    free = manager.num_free_blocks
    assert same(free, usable - len(held)), f"{len(held)} of {usable} blocks are held; num_free_blocks says {shown(free)}"
    return tables


def engine_with(part: Any) -> Any:
    """The course's model in a pool so small that requests are preempted, in the judge's process."""
    from nano_qwen3_serving import LLM
    from nano_qwen3_serving.components import Components

    components = Components() if part is None else Components().using(block_manager=part)
    return LLM("course-draft", components=components, device="cpu", dtype="float32", num_gpu_blocks_override=14, block_size=4,
               max_num_batched_tokens=16, check_invariants=part is not None, enable_prefix_caching=False)


@hidden("test_todo_6_the_engine_runs_on_your_blocks_and_says_what_transformers_says",
        "test_todo_6_logits_of_a_random_network_are_those_of_transformers", concept="in the engine")
def test_todo_6_the_engine_generates_the_same_tokens_on_these_blocks(lab: Any, rng: random.Random) -> None:
    from nano_qwen3_serving import SamplingParams

    prompts = [{"prompt_token_ids": [rng.randrange(300, 500) for _ in range(rng.randrange(4, 12))]} for _ in range(3)]
    greedy = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    assert same(lab.capacity(14, 4, 12), 4), "capacity() is wrong for the engine's pool"

    def tokens(part: Any) -> list[list[int]]:
        return [output.outputs[0].token_ids for output in engine_with(part).generate(prompts, greedy)]

    found, expected = tokens(functools.partial(load_seam(find_lab("06")).block_manager, lab)), tokens(None)
    assert found == expected, f"the engine on these blocks generated {shown(found)}, and on its own {shown(expected)}"
