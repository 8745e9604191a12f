"""Lab 06, TODO 6: capacity and waste, and the engine on these blocks."""

import functools
import random
from collections.abc import Callable
from typing import Any

from grading.judge.checks import check, expect, hold, look, refusal, same, shown
from grading.sandbox.worker.peer import Raised, Remote
from grading.scenarios.lab06.answers import blocks_for, names
from labs.harness import loading
from labs.harness.catalog import find_lab

CAPACITY = "TODO 6: Capacity and waste"


def room(num_blocks: int, block_size: int, tokens_each: int) -> int:
    """Requests that fit, found by letting them in one after the other."""
    free, held = num_blocks - 1, blocks_for(tokens_each, block_size)
    count = 0
    while free >= held:
        free, count = free - held, count + 1
    return count


@check(todo=6, points=3, section=CAPACITY, concept="whole requests in whole blocks")
def a_pool_has_room_for_whole_requests_in_whole_blocks(lab: Remote, dice: random.Random) -> None:
    cases = [(6, 4, 6), (6, 4, 21), (2, 16, 1)]
    for _ in range(12):
        size, each = dice.randrange(2, 17), dice.randrange(1, 60)
        held = blocks_for(each, size)
        cases.append((held * dice.randrange(1, 6) + dice.choice([0, 1, 1]) + (held == 1), size, each))
    for num_blocks, block_size, tokens_each in cases:
        found, right = lab.capacity(num_blocks, block_size, tokens_each), room(num_blocks, block_size, tokens_each)
        expect(same(found, right),
               f"a pool of {num_blocks} blocks of {block_size}, the null block among them, "
               f"has room for {right} of {tokens_each} tokens; capacity() said {shown(found)}")


@check(todo=6, points=1, section=CAPACITY, concept="the share of slots without a token")
def waste_is_the_share_of_slots_without_a_token(lab: Remote, dice: random.Random) -> None:
    slots = dice.randrange(10, 99)
    tokens = dice.randrange(1, slots)
    for filled, held, right in ((tokens, slots, (slots - tokens) / slots), (slots, slots, 0.0), (0, 0, 0.0)):
        waste = lab.Usage(filled, held, 0).waste
        expect(type(waste) in (float, int) and abs(waste - right) < 1e-9,
               f"{filled} tokens in {held} slots waste {right:.6f}; waste is {shown(waste)}")


def measured(trace: list[dict[str, int]], size: int, reserve: int) -> tuple[int, int, int]:
    """Tokens, slots and most blocks of a trace, added up step by step."""
    blocks: dict[str, int] = {}
    tokens = slots = peak = 0
    for step in trace:
        blocks = {name: max(blocks.get(name, 0), blocks_for(max(count, reserve), size)) for name, count in step.items()}
        held = sum(blocks.values())
        tokens, slots, peak = tokens + sum(step.values()), slots + held * size, max(peak, held)
    return tokens, slots, peak


def expect_replay(lab: Remote, trace: list[dict[str, int]], num_blocks: int, size: int, reserve: int = 0) -> None:
    """replay() of a trace that fits says what it kept, and leaves nothing behind."""
    manager, there = lab.BlockManager(num_blocks, size), hold(lab, trace)
    for _ in range(2):
        expect_usage(lab, manager, there, trace, size, reserve)


def expect_usage(lab: Remote, manager: Remote, there: Remote, trace: list[dict[str, int]], size: int, reserve: int) -> None:
    """replay() of the trace, which lies `there`, with a manager that holds nothing."""
    before = manager.num_free_blocks
    try:
        usage = lab.replay(manager, there, reserve)
    except Raised as error:
        expect("OutOfBlocks" not in error.kinds,
               f"replay() raised OutOfBlocks ({error.text}), and {shown(trace)} fits "
               "if who has left is freed before the others allocate")
        raise
    found, right = (usage.tokens, usage.slots, usage.peak_blocks), measured(trace, size, reserve)
    expect(same(found, right),
           f"replay of {shown(trace)} in blocks of {size}, reserve {reserve}: "
           f"expected (tokens, slots, peak_blocks) {right}, found {shown(found)}")
    expect(manager.num_free_blocks == before,
           f"{before} blocks were free before replay(), and {manager.num_free_blocks} after it")
    expect(look(there) == trace, f"the trace is the caller's; replay() made {shown(look(there))} of {shown(trace)}")


def growing(dice: random.Random, steps: int) -> list[dict[str, int]]:
    """Requests A and B, which get a token a step."""
    a, b = dice.randrange(3, 9), dice.randrange(1, 6)
    return [{"A": a + i, "B": b + i} for i in range(steps)]


@check(todo=6, points=3, section=CAPACITY, concept="pages are held as tokens come")
def pages_are_held_as_tokens_come(lab: Remote, dice: random.Random) -> None:
    expect_replay(lab, growing(dice, dice.randrange(4, 9)), 40, dice.randrange(2, 6))


@check(todo=6, points=2, section=CAPACITY, concept="a reservation is held from the start")
def a_reservation_is_held_from_the_first_step(lab: Remote, dice: random.Random) -> None:
    size = dice.randrange(2, 6)
    expect_replay(lab, growing(dice, 4), 60, size, reserve=dice.randrange(20, 30))
    expect_replay(lab, [{"A": 3}, {"A": 6 * size + 1}], 60, size, reserve=2 * size)


@check(todo=6, points=2, section=CAPACITY, concept="who leaves makes room for who comes", hidden=True)
def who_leaves_makes_room_for_who_comes(lab: Remote, dice: random.Random) -> None:
    size = dice.randrange(2, 6)
    full = 5 * size
    expect_replay(lab, [{"A": full}, {"B": full - dice.randrange(size)}, {}, {"A": size - 1, "B": 3 * size}], 6, size)
    expect_replay(lab, [], 6, size)


@check(todo=6, points=2, section=CAPACITY, concept="a trace that does not fit", hidden=True)
def a_trace_that_does_not_fit_is_refused_by_name_and_leaves_nothing(lab: Remote, dice: random.Random) -> None:
    size = dice.randrange(3, 6)
    manager = lab.BlockManager(6, size)
    before, bad = manager.num_free_blocks, dice.randrange(1, 5)
    trace = [*([{"A": size + 1, "B": 3 * size}] * bad), {"A": 3 * size + 1, "B": 3 * size}]
    said = refusal("OutOfBlocks", lambda: lab.replay(manager, trace), f"in step {bad} A needs 4 blocks, and B holds 3 of 5")
    others = [step for step in range(bad + 1) if step != bad]
    expect(names(bad, said, *others) and names("A", said),
           f"in step {bad} A got no block; the error must name both, and says {said!r}")
    expect(manager.num_free_blocks == before,
           f"{before} blocks were free before replay(), which gave up in step {bad}; now {manager.num_free_blocks} are")
    refusal("OutOfBlocks", lambda: lab.replay(manager, growing(dice, 3), 3 * size), "6 blocks were reserved, and the pool has 5")
    expect(manager.num_free_blocks == before,
           f"{before} blocks were free before replay(), which gave up when A had its blocks and B got none; "
           f"now {manager.num_free_blocks} are")


@functools.cache
def seam() -> Any:
    """How the engine uses the part: the lab's own `seam.py`."""
    return loading.run_file(find_lab("06").seam, "_lab06_seam_of_the_judge")


def engine_with(part: Callable | None) -> Any:
    """The course's model in a pool so small that requests are preempted, in the judge's process."""
    from nano_qwen3_serving import LLM
    from nano_qwen3_serving.components import Components

    components = Components() if part is None else Components().using(block_manager=part)
    return LLM("course-draft", components=components, device="cpu", dtype="float32", num_gpu_blocks_override=14, block_size=4,
               max_num_batched_tokens=16, check_invariants=part is not None, enable_prefix_caching=False)


@check(todo=6, points=2, section=CAPACITY, concept="in the engine", hidden=True)
def the_engine_runs_on_these_blocks(lab: Remote, dice: random.Random) -> None:
    from nano_qwen3_serving import SamplingParams

    prompts = [{"prompt_token_ids": [dice.randrange(300, 500) for _ in range(dice.randrange(4, 12))]} for _ in range(3)]
    greedy = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
    expect(same(lab.capacity(14, 4, 12), room(14, 4, 12)), "capacity() is wrong for the engine's pool")

    def tokens(part: Callable | None) -> list[list[int]]:
        return [output.outputs[0].token_ids for output in engine_with(part).generate(prompts, greedy)]

    found, right = tokens(lambda config: seam().block_manager(lab, config)), tokens(None)
    expect(found == right, f"the engine on these blocks generated {shown(found)}, and on its own {shown(right)}")
