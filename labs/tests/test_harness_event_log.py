"""The engine without a model, and the judgements: the reference scheduler passes them, and each names its own fault."""

import copy
import random

import pytest

from labs.harness.event_log import counts, judge
from labs.harness.event_log.play import engine_step, play
from nano_qwen3_serving.scheduling.scheduler import Scheduler

TWO = {"max_num_seqs": 2, "max_num_batched_tokens": 16}
AB = [{"request": "A", "step": 0, "prompt": 6, "output": 4}, {"request": "B", "step": 1, "prompt": 3, "output": 2},
      {"request": "C", "step": 1, "prompt": 5, "output": 2}]


def random_workload(rng, count=30):
    """Requests of every kind: three ways to end, aborts, two priorities."""
    workload = []
    for number in range(count):
        arrival = {"request": f"r{number}", "step": number // 3, "prompt": rng.randrange(1, 12), "output": rng.randrange(1, 9),
                   "ends": rng.choice(["length", "eos", "stop"]), "priority": rng.randrange(2)}
        if arrival["ends"] != "length":
            arrival["max_tokens"] = arrival["output"] + 5
        if rng.random() < 0.15:
            arrival["abort"] = arrival["step"] + rng.randrange(1, 12)
        workload.append(arrival)
    return workload


def verdict(log, workload, bounds, num_blocks):
    """All judgements that hold of any policy."""
    return judge.first_fault(
        judge.within_budgets(log, bounds["max_num_seqs"], bounds["max_num_batched_tokens"]), judge.chunks_fit(log, workload),
        judge.tables_cover(log, 4), judge.everyone_decodes(log), judge.in_order(log, workload),
        judge.makes_progress(log), judge.everyone_ends(log, workload), judge.no_block_is_lost(log, num_blocks))


@pytest.mark.parametrize("seed", range(8))
def test_the_reference_scheduler_passes_every_judgement(seed):
    rng = random.Random(seed)
    workload, num_blocks = random_workload(rng), rng.choice([7, 12, 60])
    bounds = {"max_num_seqs": rng.randrange(2, 6), "max_num_batched_tokens": rng.randrange(8, 40), "policy": "priority",
              "max_model_len": 24}
    log = play(Scheduler, workload, bounds, num_blocks)
    assert verdict(log, workload, bounds, num_blocks) is None


def test_counts_of_a_log_that_can_be_checked_by_hand():
    log = play(Scheduler, AB, TWO, 12)
    assert [[(c["request"], c["start"], c["num_tokens"]) for c in step["chunks"]] for step in log] == [
        [("A", 0, 6)], [("A", 6, 1), ("B", 0, 3)], [("A", 7, 1), ("B", 3, 1)], [("A", 8, 1), ("C", 0, 5)], [("C", 5, 1)]]
    assert (counts.steps(log), counts.occupancy(log, 2), counts.computed_tokens(log)) == (5, 8 / 10, 19)
    assert counts.ttft_in_steps(log) == {"A": 1, "B": 1, "C": 3}
    assert counts.itl_in_tokens(log) == {"A": 6, "B": 2, "C": 1}
    assert counts.keys_read(log) == 7 + 8 + 4 + 9 + 6
    assert counts.recomputed_tokens(log) == 0


def test_what_a_preempted_request_computes_again_is_counted():
    pair = [{"request": name, "step": 0, "prompt": 8, "output": 8} for name in "AB"]
    log = play(Scheduler, pair, TWO, 6)
    lost = [name for step in log for name in step["preempted"]]
    assert lost == ["B"] and counts.recomputed_tokens(log) == 8
    assert verdict(log, pair, TWO, 6) is None


def broken(log, change):
    log = copy.deepcopy(log)
    change(log)
    return log


FAULTS = {
    "a token too many": (lambda log: log[0]["chunks"][0].update(num_tokens=17), "step 0: 17 tokens are computed"),
    "a request too many": (lambda log: log[2]["running"].append("C"), "step 2: 3 requests run"),
    "a gap": (lambda log: log[1]["chunks"][0].update(start=7), "the chunk of A starts at 7; 6 of its tokens"),
    "twice": (lambda log: log[1]["chunks"].append(log[1]["chunks"][0]), "A is in the batch twice"),
    "too early": (lambda log: log[1].update(arrived=[]), "B is in the batch, and has ended or not arrived yet"),
    "no decode": (lambda log: log[2]["chunks"].pop(0), "step 2: A has given tokens and runs, and gets none"),
    "out of order": (lambda log: log[1]["waiting"].append("C") or swap(log[1], "B", "C"), "C is admitted, and B, before it"),
    "short table": (lambda log: log[0]["block_tables"].update(A=[1]), "A has 1 blocks of 4 for 6 tokens"),
    "nothing": (lambda log: log[4].update(chunks=[]), "step 4: nothing is computed, and C is there"),
    "no end": (lambda log: log[4].update(finished={}), "C never ended: 2 of its 2 tokens"),
    "wrong end": (lambda log: log[4].update(finished={"C": "stop"}), "C ended with finish_reason 'stop'; expected 'length'"),
    "a lost block": (lambda log: log[4].update(free_blocks=10), "10 of 11 blocks are free"),
    "a shared block": (lambda log: log[1]["block_tables"].update(B=[1]), "step 1: a block is in two block tables"),
}


def swap(step, one, other):
    """In a step's record, `other` is admitted in place of `one`."""
    step["admitted"] = [other]
    step["chunks"][1]["request"] = other
    step["block_tables"][other] = step["block_tables"].pop(one)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_judgement_names_step_and_request(fault):
    change, said = FAULTS[fault]
    log = broken(play(Scheduler, AB, TWO, 12), change)
    judgements = [
        judge.within_budgets(log, 2, 16), judge.chunks_fit(log, AB), judge.tables_cover(log, 4), judge.everyone_decodes(log),
        judge.in_order(log, AB), judge.makes_progress(log), judge.everyone_ends(log, AB), judge.no_block_is_lost(log, 12)]
    assert any(said in judgement for judgement in judgements if judgement), judgements


def test_a_fairness_bound_counts_those_who_overtake():
    many = [{"request": name, "step": 0, "prompt": 3, "output": 2} for name in "ABCD"]

    class ShortestFirst(Scheduler):
        def add(self, request):
            request.priority = 1 if request.request_id == "A" else 0
            super().add(request)

    log = play(ShortestFirst, many, {**TWO, "max_num_seqs": 1, "policy": "priority"}, 12)
    assert judge.fair_within(log, many, 3) is None
    assert "3 requests that came after A were admitted before it" in judge.fair_within(log, many, 2)


def test_a_scheduler_that_never_moves_ends_the_game():
    class Asleep(Scheduler):
        def _admit(self, request, budget):
            return False

    log = play(Asleep, AB, TWO, 12)
    assert len(log) < 10
    assert "A never ended: 0 of its 4 tokens" in judge.everyone_ends(log, AB)


def test_a_step_function_of_ones_own_is_played():
    seen = []

    def step(scheduler, executor, output_processor):
        seen.append(len(scheduler.running))
        return engine_step(scheduler, executor, output_processor)

    assert len(play(Scheduler, AB, TWO, 12, step=step)) == len(seen)
