"""The truth behind predict.toml: each question's function plays the engine's own scheduler."""

from labs.harness.policy_simulator.engine_scheduler import EngineScheduler
from labs.harness.policy_simulator.log import Log
from labs.harness.policy_simulator.play import play
from labs.harness.policy_simulator.traffic import Arrival, Pool


def case(random) -> dict:
    """A budget, those that decode, a prompt; and two requests that outgrow a pool which their prompts nearly fill."""
    decodes, budget = random.randint(2, 6), random.randint(20, 40)
    prompt_a, prompt_b = random.randint(9, 20), random.randint(9, 20)
    return {"decodes": decodes, "budget": budget, "prompt": random.randint(120, 300), "prompt_a": prompt_a, "prompt_b": prompt_b,
            "blocks": -(-prompt_a // 4) + -(-prompt_b // 4) + 1}


def chunk_beside_decodes(case: dict) -> int:
    return _prompts_chunks(case)[0]


def steps_of_the_prompt(case: dict) -> int:
    return len(_prompts_chunks(case))


def worst_gap(case: dict) -> int:
    return _beside_decodes(case).worst_gap()


def computed_again(case: dict) -> int:
    log, first = _two_in_a_small_pool(case)
    return sum(event.chunks.get("r2", 0) for event in log.events[:first])


def who_pays(case: dict) -> str:
    log, first = _two_in_a_small_pool(case)
    return {"r1": "A", "r2": "B"}[log.events[first].preempted[0]]


def to_go(case: dict) -> int:
    log, first = _two_in_a_small_pool(case)
    return case["prompt_b"] + sum(1 for event in log.events[:first] if "r2" in event.chunks)


def _prompts_chunks(case: dict) -> list[int]:
    """The chunks of the long prompt; its only token ends it."""
    return [event.chunks["r9"] for event in _beside_decodes(case).events if "r9" in event.chunks]


def _beside_decodes(case: dict) -> Log:
    arrivals = [Arrival(f"r{number}", 0.0, 2, 200, 200) for number in range(case["decodes"])]
    arrivals.append(Arrival("r9", 0.02, case["prompt"], 1, 1))
    return play(EngineScheduler(2000, 4, 16, case["budget"]), arrivals, Pool(2000, 4, 16), case["budget"])


def _two_in_a_small_pool(case: dict) -> tuple[Log, int]:
    """The log, and the first step that preempted."""
    arrivals = [Arrival("r1", 0.0, case["prompt_a"], 12, 12), Arrival("r2", 0.0, case["prompt_b"], 12, 12)]
    log = play(EngineScheduler(case["blocks"], 4, 4, 64), arrivals, Pool(case["blocks"], 4, 4), 64)
    return log, next(number for number, event in enumerate(log.events) if event.preempted)
