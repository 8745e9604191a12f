"""What only the judge asks of Lab 10: the engine runs in the judge's process, on the part in the worker."""

import functools
import random
from typing import Any

from grading.judge.suite import hidden
from labs.harness.catalog import find_lab
from labs.harness.mixed_engine.part import load_seam
from labs.harness.suite.expecting import shown


def engine_with(part: Any, **settings: Any) -> Any:
    """The course's small model on the part, or on the engine's own if that is None."""
    from nano_qwen3_serving import EngineArgs, LLMEngine
    from nano_qwen3_serving.components import Components
    from nano_qwen3_serving.observe.trace import Recorder

    own = Components()
    parts = own if part is None else own.using(block_manager=functools.partial(load_seam(find_lab("10")).block_manager, part))
    settings = {"num_gpu_blocks_override": 60, "block_size": 4} | settings
    args = EngineArgs(model="course-draft", device="cpu", dtype="float32", **settings)
    return LLMEngine.from_engine_args(args, components=parts, recorder=Recorder())


def run(engine: Any, prompts: list[list[int]], max_tokens: int) -> dict[str, list[int]]:
    """The tokens of prompts that arrive together."""
    from nano_qwen3_serving import SamplingParams

    tokens = {}
    for number, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        engine.add_request(str(number), {"prompt_token_ids": prompt}, params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)
    return tokens


@hidden("test_todo_6_the_engine_says_the_same_with_sharing_in_a_pool_that_is_too_small", concept="in the engine")
def test_todo_6_the_engine_generates_the_same_tokens_with_sharing(lab: Any, rng: random.Random) -> None:
    beginning = [rng.randrange(300, 900) for _ in range(12)]
    prompts = [[*beginning, *(rng.randrange(300, 900) for _ in range(rng.randrange(3)))] for _ in range(4)]
    prompts.append(list(beginning))
    settings = {"num_gpu_blocks_override": 14, "max_num_batched_tokens": 16}
    found = run(engine_with(lab, **settings), prompts, 8)
    expected = run(engine_with(None, enable_prefix_caching=False, **settings), prompts, 8)
    assert found == expected, f"the engine on these blocks generated {shown(found)}, and without sharing {shown(expected)}"


@hidden("test_todo_7_the_attack_works_on_the_engine_until_the_neighbour_has_a_salt", concept="salts in the engine")
def test_todo_7_a_salt_keeps_the_engine_from_sharing(lab: Any, rng: random.Random) -> None:
    tokens = [rng.randrange(300, 900) for _ in range(8)]
    assert lab.root_of("a") != lab.root_of("b"), "two salts have one root"
    manager = lab.BlockManager(20, 4)
    manager.allocate("A", 8, (), "a")
    manager.commit("A", tokens)
    found = [manager.find_cached_prefix("B", [*tokens, 1], salt) for salt in ("a", "b", "")]
    assert found == [8, 0, 0], f"the tenant 'a' computed 8 tokens; a, b and one without a salt found {found}"


@hidden("test_todo_8_sixteen_that_arrive_together_compute_their_beginning_once", concept="many at once")
def test_todo_8_whoever_shares_the_next_block_waits(lab: Any, rng: random.Random) -> None:
    for _ in range(12):
        tokens = [rng.randrange(3) for _ in range(rng.randrange(1, 14))]
        size, computing = rng.randrange(1, 4), [[rng.randrange(3) for _ in range(rng.randrange(14))] for _ in range(3)]
        computing.append(tokens[: rng.randrange(len(tokens) + 1)])
        cached = rng.randrange((len(tokens) - 1) // size + 1) * size
        end = cached + size
        expected = end < len(tokens) and tokens[:end] in [known[:end] for known in computing]
        answer = lab.is_coming(tokens, cached, computing, size)
        assert answer is expected, f"is_coming({tokens}, {cached}, {computing}, {size}) is {expected}, and not {shown(answer)}"
