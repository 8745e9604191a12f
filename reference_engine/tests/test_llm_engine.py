"""`LLMEngine`: one `step()` at a time."""

import json
from itertools import pairwise

import pytest

from nano_qwen3_serving import EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.components import Components
from nano_qwen3_serving.exceptions import EngineDeadError
from nano_qwen3_serving.interfaces import ScheduledBatch, ScheduledChunk
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.sampling_params import RequestOutputKind
from nano_qwen3_serving.scheduling.scheduler import Scheduler
from nano_qwen3_serving.testing.doubles import (
    ManualClock,
    continuation,
    continued_text,
    double_components,
    script,
)

CUMULATIVE, DELTA, FINAL = RequestOutputKind.CUMULATIVE, RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY


def greedy(max_tokens=8, **kwargs):
    return SamplingParams(temperature=0, max_tokens=max_tokens, **kwargs)


def make(components=None, recorder=None, clock=None, **args):
    args = {"model": "course", "num_gpu_blocks_override": 33, "block_size": 4, "check_invariants": True} | args
    kwargs = {"clock": clock} if clock else {}
    return LLMEngine.from_engine_args(
        EngineArgs(**args), components or double_components(), recorder=recorder, **kwargs)


def run(engine):
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    engine.check_invariants()
    return outputs


def chunks_of(recorder, name):
    return [(c["start"], c["num_tokens"]) for s in recorder.steps for c in s["chunks"] if c["request"] == name]


# --- steps


def test_an_idle_engine_steps_to_nothing():
    engine = make()
    assert not engine.has_unfinished_requests() and engine.step() == []


def test_a_step_gives_each_running_request_one_token():
    engine = make()
    for name in "AB":
        engine.add_request(name, name, greedy(3))
    assert engine.get_num_unfinished_requests() == 2
    for count in (1, 2, 3):
        outputs = engine.step()
        assert {o.request_id: o.outputs[0].token_ids for o in outputs} == {
            name: continuation(name, count) for name in "AB"}
        assert all(o.finished is (count == 3) for o in outputs)
    assert not engine.has_unfinished_requests()


def test_a_request_that_comes_later_joins_the_batch_at_the_next_step():
    recorder = Recorder()
    engine = make(recorder=recorder)
    engine.add_request("A", "first", greedy(6))
    engine.step()
    engine.add_request("B", "second", greedy(3))
    run(engine)
    assert [len(s["chunks"]) for s in recorder.steps] == [1, 2, 2, 2, 1, 1]


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks_beside_a_decode():
    recorder = Recorder()
    engine = make(recorder=recorder, max_num_batched_tokens=8, max_num_seqs=4)
    engine.add_request("A", "hi", greedy(5))
    engine.step()
    engine.add_request("B", "twenty tokens long..", greedy(2))
    texts = {o.request_id: o.outputs[0].text for o in run(engine) if o.finished}
    assert texts == {"A": continued_text("hi", 5), "B": continued_text("twenty tokens long..", 2)}
    assert chunks_of(recorder, "B") == [(0, 7), (7, 7), (14, 6), (20, 1)]  # one of the eight is A's
    assert all(s["chunks"][0]["request"] == "A" for s in recorder.steps[:4])


def test_the_long_prefill_threshold_bounds_a_chunk():
    recorder = Recorder()
    engine = make(recorder=recorder, long_prefill_token_threshold=5)
    engine.add_request("A", "twelve bytes", greedy(1))
    run(engine)
    assert chunks_of(recorder, "A") == [(0, 5), (5, 5), (10, 2)]


def test_without_chunked_prefill_a_prompt_is_computed_whole_or_waits():
    recorder = Recorder()
    engine = make(recorder=recorder, enable_chunked_prefill=False, max_num_batched_tokens=32, max_model_len=32,
                  max_num_seqs=8)  # fmt: skip
    for name in "ABC":
        engine.add_request(name, f"{name} of fourteen", greedy(2))
    run(engine)
    assert [chunks_of(recorder, name)[0] for name in "ABC"] == [(0, 13)] * 3
    assert [[c["request"] for c in s["chunks"]] for s in recorder.steps][:2] == [["A", "B"], ["A", "B", "C"]]


def test_no_more_requests_run_than_max_num_seqs():
    recorder = Recorder()
    engine = make(recorder=recorder, max_num_seqs=2)
    for i in range(5):
        engine.add_request(f"{i}", f"{i}", greedy(4))
    run(engine)
    assert max(len(s["running"]) for s in recorder.steps) == 2


@pytest.mark.parametrize("blocks", [33, 12, 9, 7])
@pytest.mark.parametrize("budget", [1, 5, 2048])
@pytest.mark.parametrize("caching", [True, False])
def test_no_pool_budget_or_cache_changes_a_token(blocks, budget, caching):
    engine = make(num_gpu_blocks_override=blocks, max_num_batched_tokens=budget, max_num_seqs=min(budget, 8),
                  enable_prefix_caching=caching)  # fmt: skip
    prompts = ["shared start, A", "shared start, B", "x", "shared start, A", "other", "shared"]
    for i, prompt in enumerate(prompts):
        engine.add_request(f"{i}", prompt, greedy(5 + i % 3))
    texts = {o.request_id: o.outputs[0].text for o in run(engine) if o.finished}
    assert texts == {f"{i}": continued_text(p, 5 + i % 3) for i, p in enumerate(prompts)}


# --- what is shown


def test_cumulative_outputs_hold_everything_so_far():
    engine = make()
    engine.add_request("A", "hello", greedy(5, output_kind=CUMULATIVE))
    texts = [o.outputs[0].text for o in run(engine)]
    assert texts == [continued_text("hello", i) for i in range(1, 6)]


def test_deltas_hold_what_is_new():
    engine = make()
    engine.add_request("A", "hello", greedy(5, output_kind=DELTA, logprobs=1))
    outputs = run(engine)
    assert [o.outputs[0].text for o in outputs] == list(continued_text("hello", 5))
    assert [len(o.outputs[0].logprobs) for o in outputs] == [1] * 5


def test_final_only_shows_one_output():
    engine = make()
    engine.add_request("A", "hello", greedy(5, output_kind=FINAL))
    outputs = run(engine)
    assert len(outputs) == 1 and outputs[0].finished
    assert outputs[0].outputs[0].text == continued_text("hello", 5)


@pytest.mark.parametrize("kind", [CUMULATIVE, DELTA])
def test_the_stream_interval_is_the_tokens_between_two_outputs_after_the_first(kind):
    engine = make(stream_interval=4)
    engine.add_request("A", "hello", greedy(11, output_kind=kind))
    sizes = [len(o.outputs[0].token_ids) for o in run(engine)]
    assert sizes == ([1, 4, 4, 2] if kind is DELTA else [1, 5, 9, 11])


def test_an_end_of_sequence_token_is_among_the_tokens_and_not_in_the_text():
    engine = make(double_components(**script("abc")))
    engine.add_request("A", "|", greedy(20))
    (final,) = [o for o in run(engine) if o.finished]
    completion = final.outputs[0]
    assert completion.text == "abc" and len(completion.token_ids) == 4
    assert completion.token_ids[-1] in engine.config.model.eos_token_ids
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)


def test_min_tokens_puts_off_the_end_of_sequence():
    engine = make(double_components(**script("abc")))
    engine.add_request("A", "|", greedy(20, min_tokens=9))
    (final,) = [o for o in run(engine) if o.finished]
    assert len(final.outputs[0].token_ids) == 10  # nine, and then the end


def test_min_tokens_puts_off_a_stop_string():
    engine = make(double_components(**script("abcabcabc")))
    engine.add_request("A", "|", greedy(20, min_tokens=4, stop="c"))
    (final,) = [o for o in run(engine) if o.finished]
    assert final.outputs[0].text == "abcab"


def test_a_prompt_of_tokens_keeps_its_text_if_it_was_given():
    engine = make()
    engine.add_request("A", {"prompt_token_ids": list(b"hello")}, greedy(3))
    engine.add_request("B", {"prompt_token_ids": list(b"hello"), "prompt": "HELLO"}, greedy(3))
    engine.add_request("C", {"prompt": "hello"}, greedy(3))
    final = {o.request_id: o for o in run(engine) if o.finished}
    assert [final[i].prompt for i in "ABC"] == [None, "HELLO", "hello"]
    assert {final[i].outputs[0].text for i in "ABC"} == {continued_text("hello", 3)}
    assert {tuple(final[i].prompt_token_ids) for i in "ABC"} == {tuple(b"hello")}


def test_logprobs_name_the_chosen_token_first_and_its_text():
    engine = make()
    engine.add_request("A", "hello", SamplingParams(temperature=1.0, seed=4, max_tokens=6, logprobs=3))
    completion = run(engine)[-1].outputs[0]
    assert len(completion.logprobs) == 6
    for token, entries in zip(completion.token_ids, completion.logprobs, strict=True):
        assert next(iter(entries)) == token and 3 <= len(entries) <= 4
        assert all(e.decoded_token == chr(t) for t, e in entries.items())
        assert sorted(e.rank for e in entries.values())[:3] == [1, 2, 3]
    total = sum(e[t].logprob for t, e in zip(completion.token_ids, completion.logprobs, strict=True))
    assert completion.cumulative_logprob == pytest.approx(total)


def test_n_completions_have_their_own_seeds_and_indices():
    engine = make()
    engine.add_request("A", "hello", SamplingParams(n=3, seed=7, max_tokens=8))
    final = run(engine)[-1]
    assert [o.index for o in final.outputs] == [0, 1, 2]
    assert len({o.text for o in final.outputs}) == 3
    assert final.metrics.num_generation_tokens == 24
    again = make()
    again.add_request("other name", "hello", SamplingParams(n=3, seed=7, max_tokens=8))
    assert [o.text for o in run(again)[-1].outputs] == [o.text for o in final.outputs]


def test_requests_without_a_seed_draw_from_the_engines():
    def texts(seed):
        engine = make(seed=seed)
        for i in range(3):
            engine.add_request(f"{i}", "hello", SamplingParams(max_tokens=8))
        return [o.outputs[0].text for o in run(engine) if o.finished]

    assert texts(1) == texts(1) != texts(2)
    assert len(set(texts(1))) == 3


@pytest.mark.parametrize("how", ["in a batch", "in chunks", "preempted", "after a cached beginning"])
def test_a_seeded_request_gives_the_same_tokens(how):
    params = [SamplingParams(seed=i, max_tokens=14, temperature=1.2, top_k=9) for i in range(4)]
    expected = {}
    for i, one in enumerate(params):
        engine = make()
        engine.add_request(f"{i}", f"prompt {i} begins", one)
        expected[f"{i}"] = run(engine)[-1].outputs[0].text
    engine = make(**{"in chunks": {"long_prefill_token_threshold": 3}, "preempted": {"num_gpu_blocks_override": 12}}
                  .get(how, {}))  # fmt: skip
    for _ in range(2 if how == "after a cached beginning" else 1):
        for i, one in enumerate(params):
            engine.add_request(f"{i}", f"prompt {i} begins", one)
        final = {o.request_id: o for o in run(engine) if o.finished}
    assert {i: o.outputs[0].text for i, o in final.items()} == expected
    assert (sum(o.metrics.num_preemptions for o in final.values()) > 0) is (how == "preempted")
    if how == "after a cached beginning":
        assert all(o.num_cached_tokens for o in final.values())


# --- prefix caching


def test_a_request_finds_the_blocks_of_others_with_the_same_beginning():
    recorder = Recorder()
    engine = make(recorder=recorder)
    for name, prompt in (("A", "abcdefghij"), ("B", "abcdefghXY"), ("C", "abcdXYghij"), ("D", "abcdefghijk")):
        engine.add_request(name, prompt, greedy(3))
        final = run(engine)[-1]
        assert final.outputs[0].text == continued_text(prompt, 3)
        assert final.num_cached_tokens == {"A": 0, "B": 8, "C": 4, "D": 8}[name]
    assert chunks_of(recorder, "B")[0] == (8, 2)


def test_generated_tokens_can_be_found_too():
    engine = make()
    engine.add_request("turn 1", "hello", greedy(12))
    answer = run(engine)[-1].outputs[0].text
    engine.add_request("turn 2", "hello" + answer + " and", greedy(3))
    final = run(engine)[-1]
    assert final.num_cached_tokens == 16  # of the 5 + 12 tokens, the last was never computed
    assert final.outputs[0].text == continued_text("hello" + answer + " and", 3)


def test_the_blocks_that_were_used_longest_ago_are_evicted_first():
    engine = make(num_gpu_blocks_override=9)  # eight blocks
    for prompt in ("aaaabbbbcccc.", "ddddeeeeffff."):  # three full blocks each, and one that is not
        engine.add_request(prompt, prompt, greedy(1))
        run(engine)
    engine.add_request("touch", "aaaabbbbcccc,", greedy(1))
    assert run(engine)[-1].num_cached_tokens == 12
    engine.add_request("new", "gggghhhhiiii.", greedy(1))  # two free blocks, and two of the oldest go
    run(engine)
    cached = {}
    for prompt in ("aaaabbbbcccc?", "ddddeeeeffff?"):
        cached[prompt[0]] = engine.block_manager.find_cached_prefix("asks", list(prompt.encode()))
    assert cached == {"a": 12, "d": 4}  # of a beginning, the tail goes first


def test_resetting_the_prefix_cache_forgets_everything_but_not_under_a_request():
    engine = make()
    engine.add_request("A", "hello hello hello", greedy(6))
    engine.step()
    assert engine.reset_prefix_cache() is False
    run(engine)
    assert engine.block_manager.find_cached_prefix("asks", list(b"hello hello hello")) == 16
    assert engine.reset_prefix_cache() is True
    assert engine.block_manager.find_cached_prefix("asks", list(b"hello hello hello")) == 0


def test_without_prefix_caching_nothing_is_found():
    engine = make(enable_prefix_caching=False)
    for name in "AB":
        engine.add_request(name, "hello hello hello", greedy(3))
        assert run(engine)[-1].num_cached_tokens == 0


# --- abort, numbers, records


def test_an_abort_returns_the_last_output_and_frees_the_blocks():
    engine = make()
    engine.add_request("A", "hello", greedy(20))
    engine.step()
    engine.step()
    (output,) = engine.abort_request("A")
    assert output.finished and output.outputs[0].finish_reason == "abort"
    assert output.outputs[0].text == continued_text("hello", 2)
    assert engine.block_manager.num_free_blocks == 32


def test_an_abort_shows_the_text_that_was_kept_back_for_a_stop_string():
    engine = make(double_components(**script("abcdEN and more")))
    engine.add_request("A", "|", greedy(50, stop="END"))
    shown = [output for _ in range(6) for output in engine.step()][-1].outputs[0].text
    (output,) = engine.abort_request(["A"])
    assert shown == "abcd" and output.outputs[0].text == "abcdEN"


def test_an_abort_of_a_waiting_request_has_nothing_to_free():
    engine = make(max_num_seqs=1)
    for name in "AB":
        engine.add_request(name, name, greedy(4))
    engine.step()
    (output,) = engine.abort_request("B")
    assert output.outputs[0].token_ids == [] and output.metrics.scheduled_ts == 0.0
    assert [o.request_id for o in run(engine) if o.finished] == ["A"]


def test_stats_are_of_this_moment():
    engine = make(max_num_seqs=1)
    for name in "AB":
        engine.add_request(name, "hello", greedy(4))
    engine.step()
    assert engine.stats() == {
        "num_requests_running": 1, "num_requests_waiting": 1, "num_free_blocks": 30, "num_total_blocks": 32,
        "kv_cache_usage": pytest.approx(2 / 32)} | {
            k: v for k, v in engine.stats().items() if not k.startswith(("num_", "kv_"))}  # fmt: skip


def test_metrics_tell_when_things_happened():
    clock = ManualClock(100)
    engine = make(clock=clock, max_num_seqs=1)
    engine.add_request("A", "hello", greedy(2))
    engine.add_request("B", "hello", greedy(2), arrival_time=90)
    final = {}
    while engine.has_unfinished_requests():
        clock.advance(1)
        final |= {o.request_id: o for o in engine.step() if o.finished}
    times = {i: (m.arrival_time, m.queued_ts, m.scheduled_ts, m.first_token_ts, m.last_token_ts)
             for i, m in ((i, o.metrics) for i, o in final.items())}  # fmt: skip
    assert times == {"A": (100, 100, 101, 101, 102), "B": (90, 100, 103, 103, 104)}
    assert final["B"].metrics.first_token_latency == 13


def test_the_recorder_writes_one_json_line_for_each_step(tmp_path):
    recorder = Recorder(tmp_path / "trace.jsonl")
    engine = make(recorder=recorder, num_gpu_blocks_override=8)
    for name in "AB":
        engine.add_request(name, f"{name} begins", greedy(12))
    run(engine)
    recorder.close()
    lines = [json.loads(line) for line in (tmp_path / "trace.jsonl").read_text().splitlines()]
    assert lines == json.loads(json.dumps(recorder.steps)) and len(lines) > 12
    assert [s["step"] for s in lines] == list(range(len(lines)))
    assert {"chunks", "block_tables", "running", "waiting", "preempted", "sampled", "finished"} <= set(lines[0])
    assert [s["finished"] for s in lines if s["finished"]] == [{"A": "length"}, {"B": "length"}]
    assert [p for s in lines for p in s["preempted"]] == ["B"]
    sampled = [t for s in lines for t in s["sampled"].get("B", [])]
    assert sampled == continuation("B begins", 12)


def test_a_recorder_changes_nothing():
    plain, watched = make(), make(recorder=Recorder())
    for engine in (plain, watched):
        engine.add_request("A", "hello", SamplingParams(seed=1, max_tokens=9))
    assert [o.outputs[0] for o in run(plain)] == [o.outputs[0] for o in run(watched)]


def test_block_tables_grow_a_block_at_a_time_and_only_when_one_is_full():
    recorder = Recorder()
    engine = make(recorder=recorder)
    engine.add_request("A", "hello", greedy(9))
    run(engine)
    sizes = [len(s["block_tables"]["A"]) for s in recorder.steps]
    assert sizes == [2, 2, 2, 2, 3, 3, 3, 3, 4]  # 5 tokens, then one more each step, blocks of 4
    assert all(b - a in (0, 1) for a, b in pairwise(sizes))


def test_a_scheduler_that_schedules_nothing_while_requests_wait_is_named(make_llm):
    class Idle(Scheduler):
        def schedule(self):
            return ScheduledBatch([])

    llm = make_llm(components=Components(scheduler=lambda config, blocks: Idle(config.scheduler, blocks)))
    with pytest.raises(EngineDeadError, match="scheduled nothing, and 1 requests are in flight"):
        llm.generate("Hello", SamplingParams(max_tokens=2))


def test_blocks_are_copied_before_anything_is_computed():
    contexts = []
    engine = make(double_components(on_forward=contexts.extend))
    runner, blocks = engine.model_runner, engine.block_manager
    (parent,) = engine.make_requests("A", "abcdef", greedy())
    blocks.allocate("A", 6)
    runner.execute(ScheduledBatch([ScheduledChunk.of(parent, 0, 6, blocks.block_table("A"))]))
    (child,) = engine.make_requests("B", "abcdefg", greedy())
    copies = blocks.fork("A", "B", 6)
    blocks.allocate("B", 7)
    chunk = ScheduledChunk.of(child, 6, 1, blocks.block_table("B"))
    (token,) = runner.execute(ScheduledBatch([chunk], block_copies=copies)).token_ids["B"]
    assert bytes(contexts[-1]) == b"abcdefg" and token == continuation("abcdefg", 1)[0]
