"""The truth behind predict.toml: each question's function runs the reference engine."""

from typing import Any

from nano_qwen3_serving import EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.observe.trace import Recorder


def case(random) -> dict:
    """Lengths of four requests. A and B differ much, and so do C and D, so that static batching wastes steps."""
    short, long = random.sample(range(3, 6), 2), random.sample(range(9, 14), 2)
    first, second = random.sample([short[0], long[0]], 2), random.sample([short[1], long[1]], 2)
    return {
        "block_size": random.choice([4, 8]), "prompt_a": random.randint(5, 15), "mib": random.choice([300, 500, 1200]),
        "output_a": first[0], "output_b": first[1], "output_c": second[0], "output_d": second[1]}


def steps_alone(case: dict) -> int:
    return len(_steps(case, ["A"]))


def blocks_at_admission(case: dict) -> int:
    from nano_qwen3_serving.scheduling.block_manager import BlockManager

    blocks = BlockManager(100, case["block_size"])
    assert blocks.allocate("A", case["prompt_a"] + case["output_a"])
    return len(blocks.block_table("A"))


def steps_static(case: dict) -> int:
    return len(_static(case))


def steps_continuous(case: dict) -> int:
    return len(_steps(case, list("ABCD")))


def occupancy_static(case: dict) -> int:
    return sum(2 - len(step["chunks"]) for step in _static(case))


def weights_saved(case: dict) -> int:
    return (len(_static(case)) - len(_steps(case, list("ABCD")))) * case["mib"]


def _static(case: dict) -> list[dict[str, Any]]:
    """Two runs of the engine, one after the other."""
    return [*_steps(case, ["A", "B"]), *_steps(case, ["C", "D"])]


def _steps(case: dict, names: list[str]) -> list[dict[str, Any]]:
    """The steps in which the engine serves these requests, two at once."""
    args = EngineArgs(model="course-draft", block_size=case["block_size"], max_num_seqs=2, enable_prefix_caching=False)
    engine = LLMEngine.from_engine_args(args, recorder=Recorder())
    for name in names:
        params = SamplingParams(temperature=0.0, max_tokens=case[f"output_{name.lower()}"], ignore_eos=True)
        engine.add_request(name, {"prompt_token_ids": list(range(300, 300 + case["prompt_a"]))}, params)
    while engine.has_unfinished_requests():
        engine.step()
    return engine.recorder.steps
