"""Plays a workload through a scheduler and prints the limit, the reference, the naive way and yours side by side.

    python explore.py essays --budget 512 --lookahead 100 --victim cheapest
    python explore.py essays --mine              with the policy that your policy_for() chooses
    python explore.py documents --machine        on this machine's measured roofline, not the published one

Costs are fixed and published unless you ask for this machine's. `--solution` plays ours, in courses that have it.
Nothing here is graded.
"""

import argparse
import random
from pathlib import Path
from types import ModuleType
from typing import Any

from labs.harness.catalog import lab_at
from labs.harness.loading import load
from labs.harness.policy_simulator.costs import PUBLISHED, StepCosts, calibrated
from labs.harness.policy_simulator.engine_scheduler import EngineScheduler
from labs.harness.policy_simulator.log import Log, percentile
from labs.harness.policy_simulator.play import play
from labs.harness.policy_simulator.traffic import WORKLOADS, Arrival, traffic
from labs.harness.todo import run_lab

NAIVE = 8192
"""A budget that holds any prompt whole."""


def main() -> None:
    """The table of one workload."""
    options = read_options()
    lab = lab_at(Path(__file__).parent)
    module = load(lab, lab.solution if options.solution else lab.starter)
    policy = module.Policy(options.budget, options.lookahead, options.victim)
    if options.mine:
        policy = module.policy_for(options.workload)
    costs = calibrated() if options.machine else PUBLISHED
    arrivals = traffic(options.workload, random.Random(options.seed), options.requests)
    show(options.workload, arrivals, module, policy, costs)


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workload", choices=list(WORKLOADS))
    parser.add_argument("--budget", type=int, default=512)
    parser.add_argument("--lookahead", type=int, default=0)
    parser.add_argument("--victim", choices=["last", "cheapest"], default="last")
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    for flag in ("mine", "machine", "solution"):
        parser.add_argument(f"--{flag}", action="store_true")
    return parser.parse_args()


def show(workload: str, arrivals: list[Arrival], module: ModuleType, policy: Any, costs: StepCosts) -> None:
    """Prints a line a scheduler, under what no scheduler can do better."""
    kind = WORKLOADS[workload]
    pool = kind.pool
    shape = pool.num_blocks, pool.block_size, pool.max_seqs
    logs = {
        "the engine's": play(EngineScheduler(*shape, policy.token_budget), arrivals, pool, policy.token_budget, costs),
        "naive": play(EngineScheduler(*shape, NAIVE), arrivals, pool, NAIVE, costs),
        "yours": play(module.Scheduler(*shape, policy), arrivals, pool, policy.token_budget, costs),
    }
    print(f"{workload}: {kind.says}; {len(arrivals)} requests, {kind.rate} a second; yours has {policy}\n")
    print(f"{'':14}goodput  TTFT p90  ITL p99  worst gap  computed again  preempted  steps")
    needed = sum(arrival.prompt + arrival.answer - 1 for arrival in arrivals)
    fewest = -(-needed // policy.token_budget)
    print(f"{'limit':14}{'100%':>7}{kind.limits.ttft:9.2f}s{kind.limits.itl:8.3f}s{'':11}{0:16}{0:11}{fewest:7}")
    for name, log in logs.items():
        print(line_of(name, log, kind.limits))


def line_of(name: str, log: Log, limits: Any) -> str:
    """A log's figures in a line."""
    ttft, itl = percentile(log.ttfts(), 0.9), percentile(log.itls(), 0.99)
    return (f"{name:14}{log.goodput(limits):7.0%}{ttft:9.2f}s{itl:8.3f}s{log.worst_gap():11}{log.recomputed:16}"
            f"{log.preemptions:11}{log.steps:7}")


if __name__ == "__main__":
    run_lab(main)
