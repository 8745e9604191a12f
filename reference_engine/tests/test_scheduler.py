"""The scheduler: examples by hand, and a state machine that plays the rest of the engine.

A toy takes the model's place: its memory is a dict of slots, what it samples is a function of the
whole prefix as found there, and an oracle computes the same from the prompt alone. So a block that
is lost, shared by mistake or written twice shows as another token.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nano_qwen3_serving import SamplingParams
from nano_qwen3_serving.config import SchedulerConfig
from nano_qwen3_serving.interfaces import SampledTokens, ScheduledBatch, ScheduledChunk, StoppedRequest
from nano_qwen3_serving.request import Request, RequestStatus
from nano_qwen3_serving.scheduling.block_manager import BlockManager
from nano_qwen3_serving.scheduling.budget import Budget
from nano_qwen3_serving.scheduling.invariants import check_schedule
from nano_qwen3_serving.scheduling.scheduler import Scheduler

EOS = 0


class Toy:
    """A scheduler with a pool, and a model that reads its own memory.

    Args:
        blocks, size: the pool's usable blocks, and tokens in each.
        config: bounds of a step.
    """

    def __init__(self, blocks: int = 8, size: int = 4, caching: bool = True, **config) -> None:
        bounds = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": blocks * size, **config}
        self.config = SchedulerConfig(**bounds)
        self.pool = BlockManager(blocks + 1, size, caching)
        self.scheduler = Scheduler(self.config, self.pool)
        self.memory: dict[int, tuple[int, int, str]] = {}
        self.arrivals = 0

    def add(self, name: str, prompt: list[int], max_tokens: int = 4, priority: int = 0, salt: str = "", **params):
        """Queues a request; it is returned."""
        request = Request(
            name, None, list(prompt), SamplingParams(max_tokens=max_tokens, **params), seed=0,
            max_total_tokens=min(len(prompt) + max_tokens, self.config.max_model_len), priority=priority,
            arrival_number=self.arrivals, eos_token_ids=frozenset({EOS}), cache_salt=salt)
        self.arrivals += 1
        self.scheduler.add(request)
        return request

    def schedule(self) -> ScheduledBatch:
        """A batch, with everything checked that must hold of it."""
        batch = self.scheduler.schedule()
        check_schedule(batch, self.scheduler.running, self.pool, self.config)
        self.pool.check_integrity()
        return batch

    def compute(self, batch: ScheduledBatch) -> SampledTokens:
        """Writes the chunks into memory, reads every prefix back, and samples."""
        for chunk in batch.chunks:
            for i, token in enumerate(chunk.request.token_ids(chunk.start, chunk.end), chunk.start):
                self.memory[self.slot(chunk.block_table, i)] = (token, i, chunk.request.cache_salt)
        sampled = {}
        for chunk in batch.chunks:
            request = chunk.request
            found = [self.memory.get(self.slot(chunk.block_table, i)) for i in range(chunk.end)]
            mine = [(t, i, request.cache_salt) for i, t in enumerate(request.token_ids(0, chunk.end))]
            assert found == mine, f"{request.request_id} finds {found} in its blocks, not {mine}"
            if chunk.samples:
                sampled[request.request_id] = [next_token(request.token_ids(0, chunk.end))]
        return SampledTokens(sampled)

    def slot(self, table: list[int], position: int) -> int:
        return table[position // self.pool.block_size] * self.pool.block_size + position % self.pool.block_size

    def step(self) -> dict[str, int]:
        """One whole step: how many tokens each request computed."""
        batch = self.schedule()
        self.scheduler.update(batch, self.compute(batch))
        self.pool.check_integrity()
        return {c.request.request_id: c.num_tokens for c in batch.chunks}

    def run(self, bound: int = 500) -> list[dict[str, int]]:
        """Steps until nobody is left."""
        steps = []
        while self.scheduler.running or self.scheduler.waiting:
            steps.append(self.step())
            assert len(steps) <= bound, "no end in sight"
        assert self.pool.num_free_blocks == self.pool.num_blocks - 1
        return steps


def next_token(prefix: list[int]) -> int:
    """What the toy says after a prefix: a token in [0, 7)."""
    h = 0
    for i, token in enumerate(prefix):
        h = (h * 31 + token * 7 + i + 1) % 1_000_003
    return h % 7


def alone(request: Request) -> list[int]:
    """What the request's output must be."""
    tokens = list(request.prompt_token_ids)
    while True:
        tokens.append(next_token(tokens))
        output = tokens[len(request.prompt_token_ids) :]
        p = request.params
        ends = len(output) >= p.min_tokens and tokens[-1] in {EOS, *(p.stop_token_ids or ())}
        if ends or len(tokens) >= request.max_total_tokens:
            return output


def names(requests) -> list[str]:
    return [r.request_id for r in requests]


A, B = [10, 11, 12, 13, 14], [20, 21, 22, 23, 24, 25, 26]


def test_a_prompt_is_computed_and_then_a_token_a_step():
    toy = Toy()
    a = toy.add("A", A, max_tokens=3, min_tokens=3)
    assert toy.run() == [{"A": 5}, {"A": 1}, {"A": 1}]
    assert a.output_token_ids == alone(a) and a.finish_reason == "length"


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks():
    toy = Toy(max_num_batched_tokens=4)
    a = toy.add("A", B, max_tokens=1)
    assert toy.run() == [{"A": 4}, {"A": 3}]
    assert a.output_token_ids == alone(a)


def test_requests_that_decode_come_before_prompts_and_prompts_get_what_is_left():
    toy = Toy(max_num_batched_tokens=6)
    toy.add("A", A, max_tokens=9, min_tokens=9)
    toy.step()
    toy.add("B", B, max_tokens=1)
    assert toy.step() == {"A": 1, "B": 5}
    assert toy.step() == {"A": 1, "B": 2}


def test_a_long_prompt_is_cut_by_its_own_threshold():
    toy = Toy(long_prefill_token_threshold=3)
    toy.add("A", B, max_tokens=1)
    assert toy.run() == [{"A": 3}, {"A": 3}, {"A": 1}]


def test_without_chunked_prefill_a_prompt_waits_until_it_fits_whole():
    toy = Toy(max_num_batched_tokens=8, max_model_len=8, enable_chunked_prefill=False)
    toy.add("A", A, max_tokens=1)
    toy.add("B", B, max_tokens=1)
    assert toy.run() == [{"A": 5}, {"B": 7}]


def test_no_more_than_max_num_seqs_run():
    toy = Toy(max_num_seqs=2)
    for first, name in enumerate("ABC"):
        toy.add(name, [first, *A], max_tokens=2, min_tokens=2)
    assert set(toy.step()) == {"A", "B"}
    assert names(toy.scheduler.waiting) == ["C"]


def test_the_last_in_order_gives_its_blocks_back_and_later_says_the_same():
    toy = Toy(blocks=4, caching=False)
    a = toy.add("A", A, max_tokens=9, min_tokens=9)
    b = toy.add("B", B, max_tokens=8, min_tokens=8)
    toy.run()
    assert (a.metrics.num_preemptions, b.metrics.num_preemptions) == (0, 1)
    assert a.output_token_ids == alone(a) and b.output_token_ids == alone(b)


def test_two_requests_that_cannot_fit_together_both_finish():
    toy = Toy(blocks=3)
    both = [toy.add(name, prompt, max_tokens=12, min_tokens=5) for name, prompt in (("A", A), ("B", B))]
    toy.run()
    assert [r.output_token_ids for r in both] == [alone(r) for r in both]


def test_nobody_is_admitted_in_a_step_that_preempts():
    toy = Toy(blocks=4, caching=False)
    toy.add("A", A, max_tokens=9, min_tokens=9)
    toy.add("B", B, max_tokens=8, min_tokens=8)
    while not (batch := toy.schedule()).preempted:
        toy.scheduler.update(batch, toy.compute(batch))
        toy.scheduler.waiting or toy.add(f"late {toy.arrivals}", [9])
    assert names(batch.preempted)[-1] in names(toy.scheduler.waiting)
    assert all(c.start > 0 for c in batch.chunks)


def test_the_smaller_priority_number_goes_first_and_ties_go_by_arrival():
    toy = Toy(policy="priority", max_num_seqs=1)
    for name, priority in (("A", 1), ("B", 0), ("C", 1), ("D", -1)):
        toy.add(name, A, max_tokens=1, priority=priority)
    assert [list(step) for step in toy.run()] == [["D"], ["B"], ["A"], ["C"]]


def test_first_come_first_served_ignores_priorities():
    toy = Toy(max_num_seqs=1)
    toy.add("A", A, max_tokens=1, priority=5)
    toy.add("B", A, max_tokens=1, priority=-5)
    assert [list(step) for step in toy.run()] == [["A"], ["B"]]


def test_a_cached_beginning_is_not_computed_again_and_is_noted():
    toy = Toy()
    toy.add("A", B, max_tokens=1)
    toy.run()
    b = toy.add("B", [*B, 1, 2], max_tokens=1)
    assert toy.run() == [{"B": 5}] and b.num_cached_tokens == 4


def test_a_prompt_that_is_cached_as_a_whole_still_computes_its_last_block():
    toy = Toy()
    toy.add("A", [*B, 9], max_tokens=1)
    toy.run()
    b = toy.add("B", [*B, 9], max_tokens=1)
    assert toy.run() == [{"B": 4}] and b.output_token_ids == alone(b)


def test_recomputation_after_a_preemption_is_no_hit():
    toy = Toy(blocks=4)
    toy.add("A", A, max_tokens=9, min_tokens=9)
    b = toy.add("B", B, max_tokens=8, min_tokens=8)
    toy.run()
    assert b.metrics.num_preemptions > 0 and b.num_cached_tokens == 0


def test_an_abort_frees_the_blocks_wherever_the_request_is():
    toy = Toy(max_num_seqs=1)
    running, waiting = toy.add("A", A), toy.add("B", B)
    toy.step()
    for request in (running, waiting):
        toy.scheduler.abort(request.request_id)
        toy.scheduler.abort(request.request_id)
    assert toy.pool.num_free_blocks == 8
    assert [(r.status, r.finish_reason) for r in (running, waiting)] == [(RequestStatus.FINISHED, "abort")] * 2


def test_aborting_somebody_unknown_is_no_error():
    toy = Toy()
    toy.add("A", A)
    free = toy.pool.num_free_blocks
    toy.scheduler.abort("nobody")
    assert [r.request_id for r in toy.scheduler.waiting] == ["A"] and toy.pool.num_free_blocks == free


def test_a_request_that_ends_while_it_is_computed_takes_no_more_tokens():
    toy = Toy()
    a = toy.add("A", A)
    batch = toy.schedule()
    result = toy.compute(batch)
    toy.scheduler.finish([StoppedRequest("A", "error")])
    assert toy.scheduler.update(batch, result) == []
    assert a.output_token_ids == [] and toy.pool.num_free_blocks == 8


@pytest.mark.parametrize("params, reason, stop", [
    ({"max_tokens": 3, "min_tokens": 3}, "length", None),
    ({"max_tokens": 9, "stop_token_ids": [1, 2, 3, 4, 5, 6]}, "stop", "token"),
])
def test_a_request_ends_by_length_or_by_a_stop_token(params, reason, stop):
    toy = Toy()
    a = toy.add("A", A, **params)
    toy.run()
    assert a.finish_reason == reason
    assert a.stop_reason == (a.output_token_ids[-1] if stop else None)


def test_a_request_never_outgrows_the_model():
    toy = Toy(blocks=2)
    a = toy.add("A", B, max_tokens=99, min_tokens=99)
    toy.run()
    assert a.num_tokens == 8 and a.finish_reason == "length"


# --- the budget ---


def test_a_budget_has_what_is_left_and_gets_back_what_a_victim_was_given():
    toy = Toy()
    a, b = toy.add("A", A), toy.add("B", B)
    budget = Budget(SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=8, max_model_len=32), num_running=2)
    assert (budget.tokens, budget.seqs) == (8, 2)
    assert budget.chunk_size(a.num_uncomputed_tokens) == 5
    budget.spend(ScheduledChunk.of(a, 0, 5, [1, 2]))
    assert budget.chunk_size(b.num_uncomputed_tokens) == 3
    budget.spend(ScheduledChunk.of(b, 0, 3, [3]))
    assert budget.chunk_size(1) == 0
    budget.take_back(b)
    assert (budget.tokens, budget.seqs) == (3, 3)
    batch = budget.batch()
    assert [c.request for c in batch.chunks] == [a] and batch.preempted == [b]


@pytest.mark.parametrize("bounds, fits", [
    ({}, {3: 3, 8: 8, 20: 8}), ({"long_prefill_token_threshold": 4}, {3: 3, 8: 4, 20: 4}),
    ({"enable_chunked_prefill": False, "max_model_len": 8}, {3: 3, 8: 8, 20: 0}),
])
def test_a_chunk_is_what_fits_of_a_request_or_all_of_it_or_nothing(bounds, fits):
    config = SchedulerConfig(**{"max_num_seqs": 4, "max_num_batched_tokens": 8, "max_model_len": 32} | bounds)
    budget = Budget(config, num_running=0)
    assert {tokens: budget.chunk_size(tokens) for tokens in fits} == fits


# --- the judge must see what it is there to see ---


def judge(toy: Toy, batch: ScheduledBatch, **config) -> None:
    check_schedule(batch, toy.scheduler.running, toy.pool, replace(toy.config, **config))


def test_the_judge_sees_a_batch_over_the_budget_and_too_many_requests():
    toy = Toy()
    toy.add("A", A)
    toy.add("B", B)
    batch = toy.schedule()
    with pytest.raises(AssertionError, match="12 tokens in a step of at most 11"):
        judge(toy, batch, max_num_batched_tokens=11)
    with pytest.raises(AssertionError, match="2 requests run"):
        judge(toy, batch, max_num_seqs=1)


def test_the_judge_sees_a_surplus_block_and_a_missing_one():
    toy = Toy()
    toy.add("A", A)
    batch = toy.schedule()
    toy.pool.allocate("A", 9)
    table = toy.pool.block_table("A")
    batch = ScheduledBatch([replace(batch.chunks[0], block_table=table)])
    with pytest.raises(AssertionError, match="A: 3 blocks of 4 for 5 tokens"):
        judge(toy, batch)


def test_the_judge_sees_a_block_that_two_would_write():
    toy = Toy()
    toy.add("A", A)
    toy.add("B", B)
    batch = toy.schedule()
    toy.pool._holdings["B"] = toy.pool._holdings["A"]
    chunks = [replace(c, block_table=toy.pool.block_table(c.request.request_id)) for c in batch.chunks]
    with pytest.raises(AssertionError, match="A writes to blocks that others hold too"):
        judge(toy, ScheduledBatch(chunks))


def test_the_judge_sees_a_block_table_that_is_out_of_date():
    toy = Toy()
    toy.add("A", A)
    batch = toy.schedule()
    with pytest.raises(AssertionError, match="its table is"):
        judge(toy, ScheduledBatch([replace(batch.chunks[0], block_table=[7, 8])]))


# --- against a model ---


class Life(RuleBasedStateMachine):
    """Requests come, run, are stopped and aborted in any order; everybody leaves once.

    `known` has every request that ever came; `last` the step in which it last computed something
    or began to wait.
    """

    @initialize(
        blocks=st.integers(2, 8), size=st.integers(1, 4), seqs=st.integers(1, 4), extra=st.integers(0, 8),
        chunked=st.booleans(), threshold=st.sampled_from([0, 0, 1, 3]), caching=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority"]))
    def build(self, blocks, size, seqs, extra, chunked, threshold, caching, policy):
        budget = seqs + extra if chunked else max(seqs + extra, blocks * size)
        self.toy = Toy(
            blocks, size, caching, max_num_seqs=seqs, max_num_batched_tokens=budget, policy=policy,
            enable_chunked_prefill=chunked, long_prefill_token_threshold=threshold if chunked else 0)
        self.scheduler, self.config = self.toy.scheduler, self.toy.config
        self.known: dict[str, Request] = {}
        self.ended: dict[str, str] = {}
        self.steps = 0
        self.last: dict[str, int] = {}

    @rule(prompt=st.lists(st.integers(1, 2), min_size=1, max_size=20), max_tokens=st.integers(1, 9),
          priority=st.integers(-1, 1), salt=st.sampled_from(["", "salt"]), stop=st.booleans())
    def add(self, prompt, max_tokens, priority, salt, stop):
        prompt = prompt[: self.config.max_model_len - 1]
        name = f"r{len(self.known)}"
        stops = {"stop_token_ids": [3]} if stop else {}
        self.known[name] = self.toy.add(name, prompt, max_tokens, priority, salt, **stops)

    @rule(number=st.integers(0, 9), reason=st.sampled_from(["abort", "stop", "error"]))
    def end_from_outside(self, number, reason):
        self._end(f"r{number}", reason)

    @rule(count=st.integers(1, 4))
    def step(self, count):
        for _ in range(count):
            self._step()

    @rule(reason=st.sampled_from(["abort", "error"]))
    def step_in_which_a_request_fails(self, reason):
        """As when the model raises for one request: it ends between computing and update."""
        self._step(fail=reason)

    def _end(self, name: str, reason: str) -> None:
        if name in self.known and name not in self.ended:
            self.ended[name] = reason
        if reason == "abort":
            self.scheduler.abort(name)
        else:
            self.scheduler.finish([StoppedRequest(name, reason)])

    def _step(self, fail: str | None = None) -> None:
        before = set(names(self.scheduler.running))
        first = self.scheduler.running[0] if self.scheduler.running else None
        batch = self.toy.schedule()
        self._judge(batch, before, first)
        result = self.toy.compute(batch)
        if fail and batch.chunks:
            name = batch.chunks[0].request.request_id
            result.token_ids.pop(name, None)
            self._end(name, fail)
        updates = self.scheduler.update(batch, result)
        for update in updates:
            request = update.request
            assert request.output_token_ids == alone(request)[: len(request.output_token_ids)]
            if request.finish_reason is not None:
                assert request.output_token_ids == alone(request), f"{request.request_id} ended too early"
                assert request.request_id not in self.ended, f"{request.request_id} ended twice"
                self.ended[request.request_id] = request.finish_reason

    def _judge(self, batch: ScheduledBatch, before: set[str], first: Request | None) -> None:
        """Who was scheduled, admitted and preempted, and who was not."""
        self.steps += 1
        scheduled = {c.request.request_id for c in batch.chunks}
        running, waiting = self.scheduler.running, self.scheduler.waiting
        assert scheduled or not (running or waiting), "there is work, and the step does nothing"
        assert first is None or first.request_id in scheduled, f"{first.request_id} is first, and does not advance"
        admitted = [r for r in running if r.request_id not in before]
        for request in admitted:
            assert all(request.order < w.order for w in waiting), f"{request.request_id} went before its turn"
            assert not batch.preempted, f"{request.request_id} was admitted where others had to go"
        for victim in batch.preempted:
            assert all(r.order < victim.order for r in running), f"{victim.request_id} was not the last in order"
            assert victim.num_computed_tokens == 0 and victim in waiting
        for request in running:
            name = request.request_id
            if name in scheduled or name not in before:
                self.last[name] = self.steps
            waited = self.steps - self.last[name]
            assert waited <= sum(r.num_tokens for r in running), f"{name} runs, and has waited {waited} steps"

    @invariant()
    def everyone_is_in_one_place(self):
        if not hasattr(self, "toy"):
            return
        running, waiting = self.scheduler.running, self.scheduler.waiting
        assert sorted(names(running) + names(waiting) + list(self.ended)) == sorted(self.known)
        assert [r.order for r in running] == sorted(r.order for r in running)
        assert [r.order for r in waiting] == sorted(r.order for r in waiting)
        for name, reason in self.ended.items():
            request = self.known[name]
            assert (request.status, request.finish_reason) == (RequestStatus.FINISHED, reason)
        for request in running:
            size = self.toy.pool.block_size
            table = self.toy.pool.block_table(request.request_id)
            assert len(table) == -(-request.num_computed_tokens // size), f"{request.request_id}: {table}"
        for request in waiting:
            with pytest.raises(KeyError):
                self.toy.pool.block_table(request.request_id)

    def teardown(self):
        """Everybody who is left finishes, with the right tokens, and no block is lost."""
        if not hasattr(self, "toy"):
            return
        left = [*self.scheduler.running, *self.scheduler.waiting]
        bound = (len(left) + 1) * sum(r.max_total_tokens for r in left)
        while self.scheduler.running or self.scheduler.waiting:
            bound -= 1
            assert bound >= 0, "no end in sight"
            self._step()
        self.everyone_is_in_one_place()
        assert all(r.output_token_ids == alone(r) for r in left)
        assert self.toy.pool.num_free_blocks == self.toy.pool.num_blocks - 1


Life.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)
test_the_scheduler_agrees_with_its_model = Life.TestCase


# --- prefixes that arrive together


def test_a_prefix_that_sixteen_requests_share_is_computed_once():
    shared = [i % 7 + 1 for i in range(512)]
    toy = Toy(blocks=1000, size=16, max_num_seqs=16, max_num_batched_tokens=2048, max_model_len=1000)
    for i in range(16):
        toy.add(f"r{i}", [*shared, *[i % 5 + 1] * 15, i], max_tokens=1)
    steps = toy.run()
    assert sum(sum(step.values()) for step in steps) == 512 + 16 * 16
    assert [len(step) for step in steps] == [1, 15]


def test_completions_of_one_prompt_share_it_though_they_begin_together():
    toy = Toy(blocks=1000, size=16, max_num_seqs=8, max_num_batched_tokens=2048, max_model_len=1000)
    for i in range(8):
        toy.add(f"{i}_r", [i % 7 + 1 for i in range(500)], max_tokens=1)
    assert sum(sum(step.values()) for step in toy.run()) == 500 + 7 * 4  # 31 of 32 blocks are full


def test_who_waits_for_a_prefix_that_takes_several_steps_computes_nothing_of_it():
    shared = [i % 7 + 1 for i in range(40)]
    toy = Toy(blocks=40, size=4, max_num_batched_tokens=16, max_model_len=100)
    toy.add("A", [*shared, 1], max_tokens=1)
    toy.add("B", [*shared, 2], max_tokens=1)
    assert toy.run() == [{"A": 16}, {"A": 16}, {"A": 9}, {"B": 1}]


@pytest.mark.parametrize("why", ["caching is off", "other salts", "other beginnings", "prompt_logprobs"])
def test_nobody_waits_for_blocks_that_cannot_be_shared(why):
    toy = Toy(blocks=40, size=4, caching=why != "caching is off", max_num_batched_tokens=64, max_model_len=100)
    for i in range(2):
        beginning = [i if why == "other beginnings" else 5] * 8
        toy.add(f"r{i}", beginning, max_tokens=1, salt=str(i) if why == "other salts" else "",
                **({"prompt_logprobs": 1} if why == "prompt_logprobs" else {}))
    assert len(toy.run()) == 1


def test_who_waited_for_a_request_that_was_aborted_begins_in_the_next_step():
    toy = Toy(blocks=40, size=4, max_num_batched_tokens=16, max_model_len=100)
    toy.add("A", [5] * 40, max_tokens=1)
    toy.add("B", [5] * 40, max_tokens=1)
    assert toy.step() == {"A": 16}
    toy.scheduler.abort("A")
    assert toy.step() == {"B": 16}  # four blocks of A's are found, and the next are B's own
