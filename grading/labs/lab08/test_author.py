"""Lab 08's own promises: the README's worked example, and its comparison with static batching."""

import re
from pathlib import Path

from labs.harness import loading
from labs.harness.catalog import find_lab
from labs.harness.event_log import counts
from labs.harness.event_log.play import play
from nano_qwen3_serving.scheduling.scheduler import Scheduler

LAB = find_lab("08", Path(__file__).parents[3] / "labs")
README = (LAB.folder / "README.md").read_text(encoding="utf-8")
BOUNDS = {"max_num_seqs": 2, "max_num_batched_tokens": 8}
EXAMPLE = [{"request": "A", "step": 0, "prompt": 6, "output": 4}, {"request": "B", "step": 0, "prompt": 3, "output": 4},
           {"request": "C", "step": 2, "prompt": 5, "output": 2}]


def test_the_table_of_the_worked_example_is_what_the_solution_does():
    solution = loading.load(LAB, LAB.solution)
    log = play(solution.Scheduler, EXAMPLE, BOUNDS, 7, step=solution.step)
    rows = []
    for step in log:
        computed = {chunk["request"]: chunk["num_tokens"] for chunk in step["chunks"]}
        cells = [step["step"], *(computed.get(name, "") for name in "ABC"), sum(computed.values()), step["free_blocks"]]
        rows.append([*map(str, cells), ", ".join(step["waiting"])])
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\| \d .*$", README, re.MULTILINE)]
    assert table == rows
    assert f"= **{counts.occupancy(log, 2):.0%}**".replace("%", " %") in README
    assert len(play(solution.StaticScheduler, EXAMPLE, BOUNDS, 7)) == 8


def test_with_bound_0_it_is_the_reference_without_chunks():
    solution = loading.load(LAB, LAB.solution)
    workload = [{"request": str(i), "step": 0, "prompt": prompt, "output": output}
                for i, (prompt, output) in enumerate(solution.WORKLOAD)]
    bounds = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "enable_chunked_prefill": False}

    def chunks(scheduler):
        return [step["chunks"] for step in play(scheduler, workload, bounds, 200)]

    def as_sets(found):
        return [sorted(map(str, step)) for step in found]

    assert as_sets(chunks(solution.Scheduler)) == as_sets(chunks(Scheduler))


def test_static_batching_loses_nothing_where_all_are_alike():
    solution = loading.load(LAB, LAB.solution)
    alike = [{"request": str(i), "step": 0, "prompt": 4, "output": 6} for i in range(8)]
    bounds = {"max_num_seqs": 4, "max_num_batched_tokens": 16}
    steps = {len(play(kind, alike, bounds, 200)) for kind in (solution.Scheduler, solution.StaticScheduler)}
    assert steps == {12}
