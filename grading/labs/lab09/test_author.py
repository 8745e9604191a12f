"""Lab 09's own promises: the README's example, the thresholds' margins, and the simulator against the real engine."""

import random
import re
from pathlib import Path

import pytest

from labs.harness.catalog import find_lab
from labs.harness.loading import load
from labs.harness.mixed_engine.part import load_seam
from labs.harness.policy_simulator.engine_scheduler import EngineScheduler
from labs.harness.policy_simulator.play import play
from labs.harness.policy_simulator.traffic import WORKLOADS, Arrival, Pool, traffic
from nano_qwen3_serving import EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.observe.trace import Recorder

pytestmark = pytest.mark.slow

LAB = find_lab("09", Path(__file__).parents[3] / "labs")
README = (LAB.folder / "README.md").read_text(encoding="utf-8")
POOL = Pool(24, 4, 8)
POLICIES = {"naive": (96, 0, "last"), "chunks": (16, 0, "cheapest"), "looks ahead": (16, 20, "cheapest")}


@pytest.fixture(scope="module")
def solution():
    return load(LAB, LAB.solution)


def test_the_example_of_the_readme(solution):
    scheduler = solution.Scheduler(5, 4, 4, solution.Policy(6))
    log = play(scheduler, [Arrival("r1", 0.0, 6, 8, 8), Arrival("r2", 0.0, 9, 4, 4)], Pool(5, 4, 4), 6)
    assert (log.steps, log.recomputed, log.preemptions) == (12, 9, 1)
    assert "a tax of 9 tokens" in README and log.events[3].preempted == ["r2"]
    assert [dict(event.chunks) for event in log.events[:3]] == [{"r1": 6}, {"r1": 1, "r2": 5}, {"r1": 1, "r2": 4}]
    assert solution.split_budget(6, [1, 9]) == [1, 5] and solution.split_budget(6, [9, 1]) == [5, 1]


def test_the_lookahead_of_the_readme_computes_nothing_twice(solution):
    scheduler = solution.Scheduler(5, 4, 4, solution.Policy(6, lookahead=4))
    log = play(scheduler, [Arrival("r1", 0.0, 6, 8, 8), Arrival("r2", 0.0, 9, 4, 4)], Pool(5, 4, 4), 6)
    assert "4 in all, and 3 are free. B waits, and no token is\n  computed twice" in README
    assert log.recomputed == 0 and "r2" not in log.events[1].chunks


def test_the_targets_are_missed_by_the_engines_policy_and_reached_with_margin(solution):
    rows = re.findall(r'^\| `"(\w+)"` .*\| (\d+) % \| (\d+) % \|$', README, re.MULTILINE)
    assert [row[0] for row in rows] == list(WORKLOADS)
    for name, asked, allowed in rows:
        kind, goodput, tax = WORKLOADS[name], int(asked) / 100, int(allowed) / 100
        for seed in range(5):
            arrivals = traffic(name, random.Random(seed), 120)
            good, paid = measured(solution.Scheduler, solution.policy_for(name), kind, arrivals)
            assert good >= goodput + 0.05 and paid <= tax * 0.75, (name, seed, good, paid)
            good, paid = measured(lambda *shape: EngineScheduler(*shape[:3], 8192), solution.Policy(8192), kind, arrivals)
            assert good < goodput - 0.05 or paid > tax * 1.25, (name, seed, good, paid)


def measured(scheduler, policy, kind, arrivals):
    pool = kind.pool
    log = play(scheduler(pool.num_blocks, pool.block_size, pool.max_seqs, policy), arrivals, pool, policy.token_budget)
    return log.goodput(kind.limits), log.recomputed / (log.computed - log.recomputed)


@pytest.mark.parametrize("budget", [5, 16, 64])
def test_without_a_lookahead_the_solution_decides_as_the_engine_does(solution, budget):
    arrivals = crowd(random.Random(budget), 12)
    yours = play(solution.Scheduler(24, 4, 8, solution.Policy(budget)), arrivals, POOL, budget)
    engines = play(EngineScheduler(24, 4, 8, budget), arrivals, POOL, budget)
    assert (yours.steps, yours.recomputed) == (engines.steps, engines.recomputed)


def crowd(rng: random.Random, count: int) -> list[Arrival]:
    return [Arrival(f"r{i}", 0.0, rng.randrange(4, 40), 24, 24) for i in range(count)]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_simulator_counts_what_the_real_engine_does(solution, policy):
    """Steps, tokens computed and preemptions are equal: so the ranking of policies by counted work is that of the engine."""
    budget, *more = POLICIES[policy]
    arrivals = crowd(random.Random(7), 10)
    log = play(solution.Scheduler(24, 4, 8, solution.Policy(budget, *more)), arrivals, POOL, budget)
    part = type("Part", (), {"Scheduler": solution.Scheduler, "Policy": lambda token_budget: solution.Policy(budget, *more)})
    seam = load_seam(LAB)
    args = EngineArgs(
        model="course-draft", block_size=4, num_gpu_blocks_override=25, max_num_seqs=8, max_num_batched_tokens=budget,
        enable_prefix_caching=False, check_invariants=True)
    recorder = Recorder()
    engine = LLMEngine.from_engine_args(args, Components().using(
        scheduler=lambda config, blocks: seam.scheduler(part, config, blocks)), recorder=recorder)
    for arrival in arrivals:
        engine.add_request(arrival.name, {"prompt_token_ids": list(range(300, 300 + arrival.prompt))}, SamplingParams(
            temperature=0.0, max_tokens=arrival.answer, ignore_eos=True))
    while engine.has_unfinished_requests():
        engine.step()
    steps = [{chunk["request"]: chunk["num_tokens"] for chunk in step["chunks"]} for step in recorder.steps]
    assert steps == [event.chunks for event in log.events]
    assert sum(len(step["preempted"]) for step in recorder.steps) == log.preemptions


def test_the_simulator_ranks_the_policies_as_their_taxes(solution):
    arrivals = crowd(random.Random(7), 10)
    taxes = [play(solution.Scheduler(24, 4, 8, solution.Policy(*policy)), arrivals, POOL, policy[0]).recomputed
             for policy in POLICIES.values()]
    assert taxes == sorted(taxes, reverse=True) and taxes[0] > taxes[1] > taxes[2]
