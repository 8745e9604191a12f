"""Lab 08's one suite. It tests what `starter.py` does, in states described by hand, in many workloads, and in the engine.

All of it: pytest test_lab.py        One TODO: pytest test_lab.py -k todo_3
"""

import functools
from pathlib import Path

import pytest

from labs.harness.catalog import lab_at
from labs.harness.event_log import counts, judge
from labs.harness.event_log.by_hand import ByHand
from labs.harness.event_log.play import play
from labs.harness.mixed_engine.part import load_seam
from labs.harness.suite.expecting import shown
from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.components import Components

ROOMY = {"max_num_seqs": 8, "max_num_batched_tokens": 64}


def request(name: str, prompt: int, output: int, **more) -> dict:
    """An arrival in step 0, unless the test says otherwise."""
    return {"request": name, "step": 0, "prompt": prompt, "output": output, **more}


def blocks_for(num_tokens: int) -> int:
    """Blocks of four that `num_tokens` tokens take, counted and not divided."""
    return len(range(0, num_tokens, 4))


def by_hand(lab, there, bounds=None, num_blocks: int = 64, **state):
    """The learner's scheduler in a state."""
    return there.of(ByHand)(lab.Scheduler, bounds or ROOMY, num_blocks, **state)


# TODO 1: the step


class Parts:
    """Scheduler, executor and output processor in one, which note every call. Each answer is a word of the test's."""

    def __init__(self, rng):
        words = [f"{word} {rng.randrange(1000)}" for word in ("batch", "result", "updates", "outputs", "stopped")]
        self.batch, self.result, self.updates, self.outputs, self.stopped = words
        self.calls = []

    def schedule(self):
        self.calls.append(("schedule",))
        return self.batch

    def execute(self, batch):
        self.calls.append(("execute", batch))
        return self.result

    def update(self, batch, result):
        self.calls.append(("update", batch, result))
        return self.updates

    def process(self, updates):
        self.calls.append(("process", updates))
        return self.outputs, self.stopped

    def finish(self, stopped):
        self.calls.append(("finish", stopped))


def one_step(lab, there, rng):
    """A step's parts after it, and what it returned."""
    parts = Parts(rng)
    returned = lab.step(
        there.lend(parts, "schedule", "update", "finish"), there.lend(parts, "execute"), there.lend(parts, "process"))
    return parts, returned


@pytest.mark.todo(1, points=5)
def test_todo_1_the_five_calls_come_once_each_and_in_order(lab, rng, there):
    parts, _ = one_step(lab, there, rng)
    called, expected = [call[0] for call in parts.calls], ["schedule", "execute", "update", "process", "finish"]
    assert called == expected, f"step() called {', '.join(called) or 'nothing'}; expected {', '.join(expected)}"


@pytest.mark.todo(1, points=5)
def test_todo_1_each_call_gets_what_the_one_before_returned(lab, rng, there):
    parts, _ = one_step(lab, there, rng)
    given = {call[0]: call[1:] for call in parts.calls}
    expected = {"execute": (parts.batch,), "update": (parts.batch, parts.result), "process": (parts.updates,),
                "finish": (parts.stopped,)}
    for name, arguments in expected.items():
        assert name in given, f"step() did not call {name}()"
        assert given[name] == arguments, f"{name}() got {shown(given[name])}; expected {shown(arguments)}"


@pytest.mark.todo(1, points=4)
def test_todo_1_returns_the_outputs(lab, rng, there):
    parts, returned = one_step(lab, there, rng)
    assert returned == parts.outputs, f"step() returned {shown(returned)}; expected the outputs of process(), {parts.outputs!r}"


# TODO 2: admission


@pytest.mark.todo(2, points=5)
def test_todo_2_one_that_fits_runs_and_its_chunk_is_the_whole_prompt(lab, rng, there):
    prompt = rng.randrange(3, 12)
    hand = by_hand(lab, there, waiting=[request("A", prompt, 4), request("B", 3, 4)])
    chunk = hand.admit("B", 3)
    assert chunk is not None, "admit() said None for B, whose 3 tokens fit into the 3 that are left"
    assert hand.state()["waiting"] == ["A"] and hand.state()["running"] == ["B"], (
        f"B was admitted: A should wait and B run; now {hand.state()}")
    assert hand.look("B")["status"] == "running", f"B was admitted; its status is {hand.look('B')['status']!r}"
    chunk = hand.admit("A", 40)
    assert chunk is not None and (chunk["start"], len(chunk["tokens"]), chunk["samples"]) == (0, prompt, True), (
        f"the chunk of A should be its {prompt} tokens from 0 on, and sample; it is {shown(chunk)}")
    assert hand.state()["running"] == ["B", "A"], f"B was admitted, then A; running is {hand.state()['running']}"


@pytest.mark.todo(2, points=4)
@pytest.mark.parametrize("taken, fits", [(0, True), (1, True), (2, False)])
def test_todo_2_no_more_run_than_max_num_seqs(lab, there, taken, fits):
    running = [request(name, 3, 5) for name in "XY"[:taken]]
    hand = by_hand(lab, there, {**ROOMY, "max_num_seqs": 2}, waiting=[request("A", 3, 4)], running=running)
    expect_admitted(hand, "A", 40, fits, f"{taken} run, and max_num_seqs is 2")


@pytest.mark.todo(2, points=4)
@pytest.mark.parametrize("less, fits", [(0, True), (1, False), (-3, True)])
def test_todo_2_a_prompt_is_admitted_whole_or_not_at_all(lab, rng, there, less, fits):
    prompt = rng.randrange(5, 20)
    hand = by_hand(lab, there, waiting=[request("A", prompt, 4)])
    expect_admitted(hand, "A", prompt - less, fits, f"the prompt has {prompt} tokens and {prompt - less} are left in the step")


@pytest.mark.todo(2, points=5)
@pytest.mark.parametrize("short", [0, 1])
def test_todo_2_takes_blocks_for_the_prompt_and_all_it_may_generate(lab, rng, there, short):
    prompt, output = rng.randrange(3, 12), rng.randrange(6, 20)
    needed = blocks_for(prompt + output)
    hand = by_hand(lab, there, num_blocks=needed + 1 - short, waiting=[request("A", prompt, output)])
    why = f"{prompt} + {output} tokens take {needed} blocks, and {needed - short} are free"
    expect_admitted(hand, "A", 40, not short, why)
    assert short or hand.state()["free"] == 0, f"{why}; after admission {hand.state()['free']} are free instead of 0"


def expect_admitted(hand, name: str, tokens_left: int, fits: bool, why: str) -> None:
    """admit() answers right; where it answers None nothing has changed."""
    before = hand.state()
    chunk = hand.admit(name, tokens_left)
    if fits:
        assert chunk is not None, f"admit() said None for {name}: {why}"
        return
    assert chunk is None, f"admit() should say None for {name} ({why}); it returned {shown(chunk)}"
    after = hand.state()
    assert after == before, f"admit() said None for {name} and must change nothing; it was {before}, and is {after}"
    assert hand.look(name)["status"] == "waiting", f"{name} was not admitted; its status is {hand.look(name)['status']!r}"


@pytest.mark.todo(2, points=4)
def test_todo_2_the_chunk_has_the_requests_block_table(lab, rng, there):
    prompt, output = rng.randrange(3, 9), rng.randrange(3, 9)
    chunk = by_hand(lab, there, waiting=[request("A", prompt, output)]).admit("A", 40)
    assert chunk is not None and chunk["blocks"] == blocks_for(prompt + output), (
        f"A has {blocks_for(prompt + output)} blocks; its chunk is {shown(chunk)}")


# TODO 3: everyone who runs decodes


@pytest.mark.todo(3, points=6)
def test_todo_3_everyone_who_runs_has_one_chunk(lab, rng, there):
    names = [f"r{number}" for number in range(rng.randrange(3, 8))]
    chunks = by_hand(lab, there, running=[request(name, rng.randrange(2, 6), 5) for name in names]).decodes()
    found = [chunk["request"] for chunk in chunks]
    assert sorted(found) == sorted(names), f"{', '.join(names)} run; the chunks are of {', '.join(found) or 'nobody'}"
    assert by_hand(lab, there, waiting=[request("A", 3, 4)]).decodes() == [], "nobody runs, and decodes() returned chunks"


@pytest.mark.todo(3, points=7)
def test_todo_3_a_chunk_is_the_one_token_that_is_not_computed(lab, rng, there):
    prompt = rng.randrange(3, 12)
    hand = by_hand(lab, there, waiting=[request("W", 2, 2)], running=[request("A", prompt, 6)])
    before = (hand.state(), hand.look("A"))
    [chunk] = hand.decodes()
    assert (chunk["start"], chunk["tokens"], chunk["samples"]) == (prompt, [77], True), (
        f"A has {prompt} computed tokens and then token 77: the chunk is [77], starts at {prompt} and samples; "
        f"it is {shown(chunk)}")
    assert chunk["blocks"] == blocks_for(prompt + 6), f"the chunk should have A's block table; it has {chunk['blocks']} blocks"
    assert (hand.state(), hand.look("A")) == before, "decodes() only says what is computed; it changed the queues or A"


# TODO 4: after the step


@pytest.mark.todo(4, points=5)
def test_todo_4_tokens_grow(lab, rng, there):
    prompt, token = rng.randrange(3, 12), rng.randrange(100, 200)
    hand = by_hand(lab, there, running=[request("A", prompt, 6), request("B", 4, 6)])
    updates = hand.update({"A": [token], "B": [token + 1]})
    seen = hand.look("A")
    assert seen["output"] == [77, token], f"A had [77] and got {token}; its output is {seen['output']}"
    assert seen["computed"] == prompt + 1, f"{prompt} + 1 tokens of A are computed; num_computed_tokens is {seen['computed']}"
    expected = [{"request": "A", "new": [token], "logprobs": True}, {"request": "B", "new": [token + 1], "logprobs": True}]
    assert updates == expected, f"the updates should be {expected}; they are {shown(updates)}"
    assert hand.state()["running"] == ["A", "B"], f"nobody is done; running is {hand.state()['running']}"


@pytest.mark.todo(4, points=5)
@pytest.mark.parametrize("how", ["length", "eos"])
def test_todo_4_who_is_done_leaves_and_frees(lab, rng, there, how):
    output, token = (2, 50) if how == "length" else (9, 0)
    hand = by_hand(lab, there, running=[request("A", rng.randrange(3, 9), output), request("B", 4, 9)])
    free, held = hand.state()["free"], 64 - 1 - hand.state()["free"] - blocks_for(13)
    updates = hand.update({"A": [token], "B": [60]})
    seen, expected = hand.look("A"), "length" if how == "length" else "stop"
    assert (seen["status"], seen["reason"]) == ("finished", expected), (
        f"A has its last token ({how}); it should be finished, {expected!r}, and is {seen['status']}, {seen['reason']!r}")
    assert hand.state()["running"] == ["B"], f"A is done and should leave; running is {hand.state()['running']}"
    assert hand.state()["free"] == free + held, f"A held {held} blocks; {free} were free, and now {hand.state()['free']} are"
    assert [one["request"] for one in updates] == ["A", "B"], f"A got a token, too: its update is missing in {shown(updates)}"


@pytest.mark.todo(4, points=4)
def test_todo_4_one_that_ended_while_it_was_computed_gets_nothing(lab, there):
    hand = by_hand(lab, there, running=[request("A", 5, 6), request("B", 4, 6)])
    updates = hand.update({"A": [50], "B": [60]}, ["A"])
    assert [one["request"] for one in updates] == ["B"], f"A was aborted during the step; the updates are {shown(updates)}"
    seen = hand.look("A")
    assert (seen["output"], seen["reason"]) == ([77], "abort"), f"A was aborted and must stay as it was; it is {seen}"


@pytest.mark.todo(4, points=6)
def test_todo_4_finish_ends_requests_wherever_they_are(lab, there):
    hand = by_hand(lab, there, waiting=[request("W", 3, 4)], running=[request("A", 5, 6), request("B", 4, 6)])
    hand.update({"A": [50], "B": [60]})
    hand.finish(["nobody", "stop"], ["A", "stop", "END", 1], ["W", "abort"])
    seen = hand.look("A")
    assert (seen["reason"], seen["stop_reason"], seen["output"]) == ("stop", "END", [77]), (
        f"A was stopped by the string 'END' after 1 of its tokens, 77; it is {seen}")
    assert (hand.look("W")["reason"], hand.look("W")["status"]) == ("abort", "finished"), f"W was aborted: {hand.look('W')}"
    free = 63 - blocks_for(10)
    assert hand.state() == {"waiting": [], "running": ["B"], "free": free}, (
        f"A and W ended, B has {blocks_for(10)} blocks of 63; now {hand.state()}")
    hand.finish(["A", "abort"])
    assert hand.look("A")["reason"] == "stop" and hand.state()["free"] == free, "A ended already: a late abort is a no-op"


# TODO 5: order and a fairness bound


@pytest.mark.todo(5, points=3)
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_todo_5_who_waits_stands_in_order(lab, rng, there, policy):
    hand = by_hand(lab, there, {**ROOMY, "policy": policy})
    priorities = {name: rng.randrange(3) for name in "ABCDEF"}
    for name, priority in priorities.items():
        hand.add(request(name, 3, 3, priority=priority))
    expected = sorted(priorities, key=lambda name: priorities[name] if policy == "priority" else 0)
    found = hand.state()["waiting"]
    assert found == expected, f"{policy}, priorities {priorities}: waiting should be {expected}, and is {found}"


@pytest.mark.todo(5, points=3)
def test_todo_5_with_bound_0_nobody_is_overtaken(lab, there):
    hand = by_hand(lab, there, waiting=[request("A", 3, 4), request("B", 30, 4), request("C", 2, 4)])
    chunks = hand.admissions(10)
    assert [chunk["request"] for chunk in chunks] == ["A"], (
        f"10 tokens are left: A's 3 fit, B's 30 do not, and C may not overtake B; admitted: {shown(chunks)}")
    assert hand.state()["waiting"] == ["B", "C"], f"B and C should wait in this order; waiting is {hand.state()['waiting']}"


@pytest.mark.todo(5, points=4)
@pytest.mark.parametrize("bound", [1, 2, 3])
def test_todo_5_one_that_does_not_fit_is_overtaken_so_many_times_in_its_life(lab, there, bound):
    waiting = [request("big", 30, 4), *(request(f"s{number}", 2, 4) for number in range(5))]
    hand = by_hand(lab, there, waiting=waiting, more={"max_overtaken": bound})
    admitted = [[chunk["request"] for chunk in hand.admissions(2)] for _ in range(5)]
    expected = [[f"s{number}"] if number < bound else [] for number in range(5)]
    assert admitted == expected, (
        f"five steps have 2 tokens left each, big needs 30, and max_overtaken is {bound}: expected {expected}, "
        f"and these were admitted: {admitted}")
    assert [chunk["request"] for chunk in hand.admissions(31)] == ["big"], "31 tokens are left: big, the first, fits"


def drawn_workload(rng, count: int) -> list[dict]:
    """Requests of every kind: three ways to end, aborts, priorities."""
    workload = []
    for number in range(count):
        ends = rng.choice(["length", "eos", "stop"])
        output = rng.randrange(1, 9)
        more = {} if ends == "length" else {"max_tokens": output + rng.randrange(1, 6)}
        one = request(f"r{number}", rng.randrange(1, 12), output, ends=ends, priority=rng.randrange(3), **more)
        one["step"] = number // 3
        if rng.random() < 0.15:
            one["abort"] = one["step"] + rng.randrange(1, 10)
        workload.append(one)
    return workload


@pytest.mark.todo(5, points=3)
def test_todo_5_whatever_arrives_the_log_is_in_order_within_budgets_and_loses_no_block(lab, rng, there):
    for _ in range(6):
        workload, num_blocks = drawn_workload(rng, 24), rng.randrange(8, 40)
        bounds = {"max_num_seqs": rng.randrange(1, 6), "max_num_batched_tokens": rng.randrange(16, 30),
                  "policy": rng.choice(["fcfs", "priority"])}
        log = there.of(play)(lab.Scheduler, workload, bounds, num_blocks)
        ordered = workload if bounds["policy"] == "priority" else [{**one, "priority": 0} for one in workload]
        wrong = judge.first_fault(
            judge.within_budgets(log, bounds["max_num_seqs"], bounds["max_num_batched_tokens"]),
            judge.chunks_fit(log, workload), judge.tables_cover(log, 4), judge.everyone_decodes(log),
            judge.in_order(log, ordered), judge.makes_progress(log), judge.everyone_ends(log, workload),
            judge.no_block_is_lost(log, num_blocks))
        assert wrong is None, f"{wrong}. The workload: {len(workload)} requests, {bounds}, {num_blocks} blocks of 4"


@pytest.mark.todo(5, points=2)
def test_todo_5_seats_are_filled_again_at_once(lab, there):
    outputs = [3, 20, 4, 6, 2, 12, 5, 16, 2, 7, 3, 8]
    workload = [request(f"r{number}", 4, output) for number, output in enumerate(outputs)]
    log = there.of(play)(lab.Scheduler, workload, {"max_num_seqs": 4, "max_num_batched_tokens": 24}, 100)
    steps, least = counts.steps(log), -(-sum(outputs) // 4)
    # the limit is 22 steps, one for every four tokens; this order of arrival comes to 27, static batching to 44
    assert steps <= 28, f"{steps} steps; {least} is the limit, 27 is what continuous batching needs, 44 static batching"


@pytest.mark.practice
@pytest.mark.todo(5, points=1)
def test_todo_5_the_engine_runs_on_your_scheduler_and_says_what_transformers_says(lab):
    part = functools.partial(load_seam(lab_at(Path(__file__).parent)).scheduler, lab)
    llm = LLM("course", components=Components().using(scheduler=part), device="cpu", dtype="float32",
              num_gpu_blocks_override=40, block_size=4, max_num_seqs=3, max_num_batched_tokens=64, enable_prefix_caching=False)
    prompts = ["Hello", "What is a KV cache?", "Once upon a time", "Why does a server batch requests?", "What is a block table?"]
    encoded = [llm.get_tokenizer().encode(prompt) for prompt in prompts]
    outputs = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=12))
    from nano_qwen3_serving.model.checkpoint import BUNDLED
    from nano_qwen3_serving.testing.oracle import Oracle

    oracle = Oracle(BUNDLED / "course")
    oracle.compare(encoded, oracle.greedy(encoded, 12), [output.outputs[0].token_ids for output in outputs])
    llm.llm_engine.check_invariants()  # idle: every block is back


if __name__ == "__main__":
    raise SystemExit("These are tests. Run them with: pytest test_lab.py")
