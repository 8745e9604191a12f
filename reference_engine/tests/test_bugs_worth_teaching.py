"""Bugs that real engines had: each row of `ROWS` is at least one test here.

The name of a test begins with its row's; where the bug happened is in the docstring. All run on the
real engine. Most replace the network by `TellTaleModel`, whose output is wrong as soon as one key
in the cache is, and whose right output is known in advance.
"""

import asyncio
import gc
import threading
import time
from itertools import pairwise

import pytest

from nano_qwen3_serving import LLM, AsyncLLM, EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.exceptions import (
    GenerationError,
    InvalidParametersError,
    PromptTooLongError,
    UnknownArgumentError,
)
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.sampling_params import RequestOutputKind
from nano_qwen3_serving.scheduling.block_manager import BlockManager
from nano_qwen3_serving.testing.doubles import (
    StepGate,
    continuation,
    continued_text,
    double_components,
    script,
    serving,
)

pytestmark = pytest.mark.slow

ROWS = """client disconnects, double free, off-by-one at a block edge, KV exhaustion crashes,
one sequence outgrows the pool, prefill starves decode, preemption livelock,
priority inversion victim choice, prefix hit after preemption, fully cached prompt gives an empty query,
identical prompts in one step do not share, hash collision serves another user's KV,
hit rate counts recomputation, stop string leaks while streaming, empty chunks, split UTF-8,
duplicate ids, abort in flight, one bad request kills all, seed depends on neighbours,
interrupted generate leaks into the next, dropped request never answered,
finish_reason always stop, unknown arguments dropped, event loop blocked by the model,
EOS never checked off-by-one chunk, three different chat formats"""

BLOCK = 4
CUMULATIVE, DELTA, FINAL = RequestOutputKind.CUMULATIVE, RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY


def greedy(max_tokens=8, **kwargs):
    return SamplingParams(temperature=0, max_tokens=max_tokens, **kwargs)


def engine(components=None, recorder=None, **args):
    args = {"model": "course", "num_gpu_blocks_override": 33, "block_size": BLOCK, "check_invariants": True} | args
    return LLMEngine.from_engine_args(EngineArgs(**args), components or double_components(), recorder=recorder)


def run(engine, max_steps=500):
    """Steps until nothing is left: the last output of each request."""
    done = {}
    for _ in range(max_steps):
        if not engine.has_unfinished_requests():
            engine.check_invariants()
            return done
        for output in engine.step():
            done[output.request_id] = output
    raise AssertionError(f"not finished after {max_steps} steps: {engine.output_processor.request_ids}")


def texts(done):
    return {i: o.outputs[0].text for i, o in done.items()}


async def collect(stream):
    return [output async for output in stream]


def test_every_row_has_a_test_of_its_name():
    def slug(row):
        return "test_" + "".join(c if c.isalnum() else "_" for c in row.strip().lower().replace("'", ""))

    rows = [slug(row) for row in ROWS.replace("\n", " ").split(",")]
    assert len(rows) == 27
    assert not [row for row in rows if not any(name.startswith(row) for name in globals())]


# --- who goes away


@pytest.mark.parametrize("kind", [CUMULATIVE, DELTA, FINAL])
@pytest.mark.parametrize("how", ["closes its stream", "is cancelled", "forgets its stream"])
async def test_client_disconnects(how, kind):
    """vLLM #10806, #9428, #54947: blocks of a vanished client were never freed, streaming or not."""
    gate = StepGate()
    async with serving(gate=gate) as server:
        manager = server.engine.block_manager
        before = manager.num_free_blocks
        stream = server.generate("hello there", greedy(100, output_kind=kind), "A")
        consumer = asyncio.create_task(anext(stream))
        await gate.at_step(0)  # A is in the engine
        neighbour = asyncio.create_task(collect(await server.add_request("B", "hi", greedy(40))))
        await gate.at_step(3)
        assert manager.num_free_blocks < before
        (known,) = server._steps.streams_of("A")
        if how == "is cancelled" or kind is FINAL:
            consumer.cancel()
        await asyncio.wait([consumer])
        if how == "closes its stream":
            await stream.aclose()
        del stream, consumer
        gc.collect()
        while not known.aborted:  # a forgotten generator is closed by its event loop, a moment later
            await asyncio.sleep(0)
        await gate.at_step(5)
        assert [r.request_id for r in server.engine.scheduler.running] == ["B"]
        gate.open()
        assert (await neighbour)[-1].outputs[0].text == continued_text("hi", 40)
        # `serving` checks that every block is free again


async def test_client_disconnects_from_async_llm_while_streaming_and_while_waiting():
    """vLLM #10806: the same one floor up."""
    async with asyncio.timeout(20), AsyncLLM(num_blocks=33, block_size=4, components=double_components()) as llm:
        async for _ in llm.generate_stream("hello", greedy(100)):
            break
        task = asyncio.create_task(llm.generate("hello there", greedy(100)))
        while not (await llm.get_stats())["scheduler_stats"]["num_requests_running"]:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        while (memory := (await llm.get_stats())["memory_stats"])["num_free_blocks"] < memory["num_blocks"]:
            await asyncio.sleep(0)
        assert (await llm.get_stats())["async_stats"]["failed_async_requests"] == 2


# --- blocks


def test_double_free_by_an_abort_after_the_finish():
    """vLLM #42571, PR #42612; mini-sglang aborted finished requests and freed twice."""
    server = engine()
    server.add_request("A", "hello", greedy(3))
    server.add_request("B", "hello", greedy(9))  # shares nothing yet, but frees beside A
    while "A" in server.output_processor:
        server.step()
    for _ in range(3):
        assert server.abort_request("A") == []
        server.scheduler.abort("A")
        server.block_manager.free("A")
        server.check_invariants()
    assert texts(run(server)) == {"B": continued_text("hello", 9)}


def test_double_free_of_shared_blocks_at_every_step():
    """vLLM #42571: free + used = all blocks at every step, and no reference count is negative."""
    server = engine()
    prompt = "the beginning that all share, "
    for i in range(6):
        server.add_request(f"{i}", prompt + str(i), greedy(4 + i))
        server.step()
        if i % 2:
            server.abort_request([f"{i}", f"{i}"])
        server.check_invariants()
        assert min(block.ref_count for block in server.block_manager._blocks) == 0
    run(server)


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_off_by_one_at_a_block_edge(block_size):
    """nano-vllm #30, #91, #150: prompts of k·block-1, k·block and k·block+1 tokens went wrong."""
    for k in (1, 2, 3):
        for length in (k * block_size - 1, k * block_size, k * block_size + 1):
            if length == 0:
                continue
            server = engine(block_size=block_size, num_gpu_blocks_override=200)
            prompt = "abcdefghijklmnopqrstuvwxyz" * 3
            server.add_request("A", prompt[:length], greedy(2 * block_size + 1))
            assert texts(run(server))["A"] == continued_text(prompt[:length], 2 * block_size + 1), length


def test_off_by_one_at_a_block_edge_with_the_course_model():
    """nano-vllm #30: the same with a real network; one block as long as everything is the oracle."""
    whole = LLM(model="course", block_size=128, num_gpu_blocks_override=20)
    paged = LLM(model="course", block_size=BLOCK, num_gpu_blocks_override=100, check_invariants=True)
    ids = whole.get_tokenizer().encode("What is a block table? What is a request? What is a token?")
    prompts = [{"prompt_token_ids": ids[:n]} for n in (7, 8, 9, 11, 12, 13)]
    expected = [o.outputs[0].token_ids for o in whole.generate(prompts, greedy(10, ignore_eos=True))]
    assert [o.outputs[0].token_ids for o in paged.generate(prompts, greedy(10, ignore_eos=True))] == expected


async def test_kv_exhaustion_crashes():
    """nano-vllm #274: a prompt larger than the pool met a bare assertion and everybody died."""
    async with serving(num_gpu_blocks_override=5) as server:  # 4 blocks of 4 tokens
        others = [asyncio.create_task(collect(server.generate(p, greedy(6), p))) for p in ("A", "B")]
        with pytest.raises(PromptTooLongError, match="the prompt has 17 tokens.* 16 of prompt and output"):
            await collect(server.generate("x" * 17, greedy(), "big"))
        for task, prompt in zip(others, "AB", strict=True):
            assert (await task)[-1].outputs[0].text == continued_text(prompt, 6)


def test_one_sequence_outgrows_the_pool():
    """nano-vllm: a sequence that grew beyond the pool crashed the engine."""
    server = engine(num_gpu_blocks_override=9, max_num_batched_tokens=64)  # 8 blocks, 32 tokens
    server.add_request("neighbour", "hello", greedy(20))
    server.add_request("endless", "hi", greedy(None))
    done = run(server)
    assert texts(done) == {"neighbour": continued_text("hello", 20), "endless": continued_text("hi", 30)}
    assert done["endless"].outputs[0].finish_reason == "length"
    assert done["endless"].metrics.num_preemptions > 0  # there was no room for both


# --- who runs when


@pytest.mark.parametrize("chunked", [True, False])
def test_prefill_starves_decode(chunked):
    """nano-vllm: with one new prompt a step, running requests got no decode step in fifty."""
    recorder = Recorder()
    server = engine(recorder=recorder, max_num_batched_tokens=64, max_num_seqs=64, max_model_len=64,
                    num_gpu_blocks_override=400, enable_chunked_prefill=chunked)  # fmt: skip
    server.add_request("old", "hello", greedy(50))
    for i in range(50):
        server.add_request(f"new {i}", f"prompt {i:2} " + "x" * 40, greedy(2))
        server.step()
    advanced = [s["step"] for s in recorder.steps_with("old")]
    assert len(advanced) == 50
    assert max(b - a for a, b in pairwise(advanced)) == 1  # in every single step
    run(server)


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("caching", [True, False])
def test_preemption_livelock(policy, caching):
    """vLLM #39734, #45388, #15996: two requests that cannot fit together preempted each other for ever."""
    server = engine(num_gpu_blocks_override=8, scheduling_policy=policy, enable_prefix_caching=caching)
    for name, priority in (("A", 1), ("B", 0)):
        server.add_request(name, f"{name} begins", greedy(18), priority=priority)  # 26 of 28 tokens each
    done = run(server, max_steps=80)
    assert texts(done) == {name: continued_text(f"{name} begins", 18) for name in "AB"}
    assert sum(o.metrics.num_preemptions for o in done.values()) >= 1


def test_preemption_livelock_of_many():
    """vLLM #15996: the first in order always advances, so the number of steps is bounded."""
    recorder = Recorder()
    server = engine(recorder=recorder, num_gpu_blocks_override=8, max_num_batched_tokens=8, max_num_seqs=8)
    for i in range(8):
        server.add_request(f"{i}", f"request {i}", greedy(12))
    done = run(server, max_steps=8 * (12 + 3))
    assert texts(done) == {f"{i}": continued_text(f"request {i}", 12) for i in range(8)}
    for step in recorder.steps:
        first = min(step["running"] + step["waiting"], key=int)
        assert first in step["block_tables"], f"step {step['step']}: {first} is first and did not advance"


def test_priority_inversion_victim_choice():
    """vLLM #41951, #54644: the victim was an older or more urgent request, and work was done over and over."""
    recorder = Recorder()
    server = engine(recorder=recorder, num_gpu_blocks_override=12, scheduling_policy="priority",
                    enable_prefix_caching=False)  # fmt: skip
    priorities = {"low": 9, "normal": 5, "high": 1}
    for name in priorities:
        server.add_request(name, f"{name:6} begins", greedy(18), priority=priorities[name])
    done = run(server)
    assert texts(done) == {name: continued_text(f"{name:6} begins", 18) for name in priorities}
    assert done["high"].metrics.num_preemptions == 0
    assert sum(o.metrics.num_preemptions for o in done.values()) > 0
    for step in recorder.steps:
        for victim in step["preempted"]:
            assert all(priorities[victim] > priorities[r] for r in step["running"]), (
                f"{victim} was the victim while {step['running']} ran on")
    computed = sum(c["num_tokens"] for s in recorder.steps for c in s["chunks"])
    needed = sum(len(o.prompt_token_ids) + 18 - 1 for o in done.values())
    recomputed, longest = computed - needed, 13 + 18
    assert 0 < recomputed <= longest * sum(o.metrics.num_preemptions for o in done.values())


def test_priority_inversion_victim_choice_takes_the_youngest_of_equals():
    """vLLM #54644: among equals the one that came last has the least to lose."""
    server = engine(num_gpu_blocks_override=9)
    for name in "ABC":
        server.add_request(name, f"{name} begins", greedy(10))
    done = run(server)
    assert texts(done) == {name: continued_text(f"{name} begins", 10) for name in "ABC"}
    preemptions = [done[name].metrics.num_preemptions for name in "ABC"]
    assert preemptions[0] == 0 and preemptions[2] > 0


# --- prefix caching


@pytest.mark.parametrize("chunk", [3, 64])
def test_prefix_hit_after_preemption(chunk):
    """nano-vllm PR #210, #211: a preempted request met its own blocks in the cache and went wrong."""
    server = engine(num_gpu_blocks_override=12, long_prefill_token_threshold=chunk)
    shared = "a long beginning "
    for name in "ABC":
        server.add_request(name, shared + name, greedy(16))
    done = run(server)
    assert texts(done) == {name: continued_text(shared + name, 16) for name in "ABC"}
    assert sum(o.metrics.num_preemptions for o in done.values()) > 0


@pytest.mark.parametrize("length", [BLOCK, 2 * BLOCK, 5 * BLOCK])
def test_fully_cached_prompt_gives_an_empty_query(length):
    """vLLM PR #3239, #11186, #17999; nano-vllm #144: a prompt that is all in the cache still computes a token."""
    recorder = Recorder()
    server = engine(recorder=recorder)
    prompt = "abcdefghijklmnopqrstuvwxyz"[:length]
    for name in ("first", "again"):
        server.add_request(name, prompt, greedy(5))
        done = run(server)
        assert texts(done)[name] == continued_text(prompt, 5)
    assert done["again"].num_cached_tokens == length - BLOCK  # the last block is computed again
    assert recorder.steps_with("again")[0]["chunks"][0]["num_tokens"] == BLOCK


def test_identical_prompts_in_one_step_do_not_share_before_a_block_is_computed():
    """nano-vllm #208, #219: a block is shared from the step after the one that computes it; the second prompt waits."""
    server = engine()
    prompt = "exactly the same prompt"  # 5 full blocks and 3 tokens
    for name in "AB":
        server.add_request(name, prompt, greedy(5))
    server.step()
    assert [r.request_id for r in server.scheduler.waiting] == ["B"]
    server.add_request("C", prompt, greedy(5))
    server.step()
    first, *others = (set(server.block_manager.block_table(name)) for name in "ABC")
    assert [len(table & first) for table in others] == [5, 5]
    done = run(server)
    assert [done[name].num_cached_tokens for name in "ABC"] == [0, 5 * BLOCK, 5 * BLOCK]
    assert set(texts(done).values()) == {continued_text(prompt, 5)}


@pytest.mark.parametrize(
    "weak", [lambda parent, tokens: b"same", lambda parent, tokens: bytes([sum(tokens) % 2])], ids=["one", "two"]
)
def test_hash_collision_serves_another_users_kv(weak):
    """vLLM PR #12621, #15297; GHSA-rm76-4mrf-v9r8: equal hashes of different contents served foreign KV."""

    def colliding(config):
        return BlockManager(config.cache.num_blocks, config.cache.block_size, hash_function=weak)

    server = engine(double_components(block_manager=colliding))
    prompts = [f"{name} writes something {secret}" for name in ("Ann", "Bob", "Eve") for secret in ("now", "then")]
    for _ in range(2):
        for prompt in prompts:
            server.add_request(prompt, prompt, greedy(9))
            assert texts(run(server)) == {prompt: continued_text(prompt, 9)}
        for prompt in prompts:
            server.add_request(prompt, prompt, greedy(9))
        assert texts(run(server)) == {prompt: continued_text(prompt, 9) for prompt in prompts}


@pytest.mark.parametrize("weak", [False, True])
def test_hash_collision_serves_another_users_kv_with_another_salt(weak):
    """GHSA-rm76-4mrf-v9r8: with another salt nothing is shared, whatever the hash."""

    def manager(config):
        how = {"hash_function": lambda parent, tokens: b"same"} if weak else {}
        return BlockManager(config.cache.num_blocks, config.cache.block_size, **how)

    server = engine(double_components(block_manager=manager))
    cached = {}
    for name, salt in (("mine", "me"), ("mine again", "me"), ("theirs", "them"), ("nobody's", "")):
        server.add_request(name, {"prompt": "a secret of sixteen", "cache_salt": salt}, greedy(4))
        done = run(server)
        assert texts(done)[name] == continued_text("a secret of sixteen", 4)
        cached[name] = done[name].num_cached_tokens
    assert cached["mine"] == cached["theirs"] == cached["nobody's"] == 0
    assert cached["mine again"] > 0


def test_hit_rate_counts_recomputation():
    """vLLM #25780: tokens found again after a preemption were counted as hits."""
    server = engine(num_gpu_blocks_override=10)
    for name in "AB":
        server.add_request(name, f"{name} on its own", greedy(16))
    done = run(server)
    assert sum(o.metrics.num_preemptions for o in done.values()) > 0
    assert [done[name].num_cached_tokens for name in "AB"] == [0, 0]


# --- text


def test_stop_string_leaks_while_streaming():
    """vLLM #3574, #2577, PR #3672: parts of a stop string were shown before it was complete."""
    answer = "the end of the thread is the END of it"
    for stop in ("END", " the END", "e", "the thread is not", ["thread", "the th"], "t", "it", "of it", answer):
        strings = [stop] if isinstance(stop, str) else stop
        found = [(answer.index(s) + len(s), -len(s), s) for s in strings if s in answer]
        expected = answer[: min(found)[0] + min(found)[1]] if found else answer
        for include in (False, True):
            server = engine(double_components(**script(answer)))
            kwargs = {"stop": stop, "include_stop_str_in_output": include}
            server.add_request("stream", "say |", greedy(60, output_kind=DELTA, **kwargs))
            server.add_request("whole", "say |", greedy(60, output_kind=FINAL, **kwargs))
            shown, whole = "", None
            full = expected + (min(found)[2] if include and found else "")
            while server.has_unfinished_requests():
                for output in server.step():
                    if output.request_id == "stream":
                        shown += output.outputs[0].text
                        assert full.startswith(shown), f"{shown!r} was shown with stop={stop!r}"
                    else:
                        whole = output.outputs[0]
            assert shown == whole.text == full
            assert whole.stop_reason == (min(found)[2] if found else None)


def test_stop_string_leaks_while_streaming_computes_nothing_past_the_stop():
    """vLLM PR #3672: no token is computed after the stop string is complete."""
    server = engine(double_components(**script("one two STOP three four five")))
    server.add_request("A", "|", greedy(60, stop="STOP"))
    done = run(server)
    assert done["A"].outputs[0].text == "one two "
    assert len(done["A"].outputs[0].token_ids) == len("one two STOP")


TRICKY = "a😀é日本語 नमस्ते 👩‍👩‍👧 \u202bשלום\u202c!"


@pytest.mark.parametrize("kind", [CUMULATIVE, DELTA])
@pytest.mark.parametrize("stop", [None, "本語 x"])
def test_empty_chunks(kind, stop):
    """vLLM #11089, #13087: chunks without text while a character or a stop string was incomplete."""
    server = engine(double_components(**script(TRICKY)), num_gpu_blocks_override=100)
    server.add_request("A", "|", greedy(200, output_kind=kind, stop=stop))
    shown, chunks = "", 0
    while server.has_unfinished_requests():
        for output in server.step():
            new = output.outputs[0].text if kind is DELTA else output.outputs[0].text[len(shown) :]
            assert new or output.finished, "a chunk without text"
            shown, chunks = shown + new, chunks + 1
    assert shown == TRICKY
    assert chunks > len(TRICKY) // 2


@pytest.mark.parametrize("cut", range(0, 12))
def test_split_utf_8(cut):
    """vLLM #48853, #17448, #21951: U+FFFD in the middle of a text whose characters are several tokens."""
    answer = "日本語😀!"
    data = answer.encode()[: len(answer.encode()) - cut]
    server = engine(double_components(**script(answer)))
    server.add_request("A", "|", greedy(len(data), output_kind=DELTA))
    deltas = []
    while server.has_unfinished_requests():
        deltas += [o.outputs[0].text for o in server.step()]
    assert "".join(deltas) == data.decode(errors="replace")
    assert not any("\N{REPLACEMENT CHARACTER}" in d for d in deltas[:-1])
    assert all(len(d) <= 1 for d in deltas[:-1])  # each character whole, as soon as it is


def test_split_utf_8_with_the_courses_own_tokenizer():
    """vLLM #17448: emoji and CJK of a byte-level vocabulary come out whole."""
    llm = LLM(model="course", num_gpu_blocks_override=64)
    server, tokenizer = llm.llm_engine, llm.get_tokenizer()
    tokens = tokenizer.encode(TRICKY)
    detokenizer = server.output_processor._make_detokenizer(tokenizer, SamplingParams())
    pieces = [detokenizer.add([t]).text for t in tokens] + [detokenizer.finish().text]
    assert "".join(pieces) == TRICKY
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


# --- requests in flight


async def test_duplicate_ids():
    """vLLM #10583, #15041, PR #29355: the second request with an id replaced the first, which never ended."""
    gate = StepGate()
    async with serving(gate=gate) as server:
        streams = [await server.add_request("A", prompt, greedy(9)) for prompt in ("one", "two", "three")]
        # names that look like the engine's own for the second and third
        streams += [await server.add_request(i, i, greedy(9)) for i in ("A#2", "A#3", "A")]
        gate.open()
        outputs = [(await collect(s))[-1] for s in streams]
    assert [o.request_id for o in outputs] == ["A", "A", "A", "A#2", "A#3", "A"]
    expected = [continued_text(p, 9) for p in ("one", "two", "three", "A#2", "A#3", "A")]
    assert [o.outputs[0].text for o in outputs] == expected


async def test_duplicate_ids_of_a_child_and_a_request():
    """vLLM #15041: the children of n=2 are named after their parent; a caller may choose such a name."""
    async with serving() as server:
        several = SamplingParams(n=2, seed=5, max_tokens=6)
        calls = [("A", several), ("0_A", greedy(6)), ("1_A", greedy(6)), ("A", several), ("0_A", several)]
        streams = [await server.add_request(name, "x", params) for name, params in calls]
        outputs = [(await collect(s))[-1] for s in streams]
    assert [o.request_id for o in outputs] == [name for name, _ in calls]
    assert outputs[1].outputs[0].text == outputs[2].outputs[0].text == continued_text("x", 6)
    each = [[c.text for c in outputs[i].outputs] for i in (0, 3, 4)]
    assert each[0] == each[1] == each[2] and len(each[0]) == 2


async def test_duplicate_ids_are_aborted_together():
    """vLLM PR #29355: an abort by id means every request that has it."""
    gate = StepGate()
    async with serving(gate=gate) as server:
        tasks = [asyncio.create_task(collect(server.generate(p, greedy(50), "A"))) for p in ("one", "two")]
        await gate.at_step(3)
        await server.abort("A")
        gate.open()
        assert [(await t)[-1].outputs[0].finish_reason for t in tasks] == ["abort", "abort"]


@pytest.mark.parametrize("n", [1, 2])
def test_abort_in_flight(n):
    """vLLM #42157, #6586, #43226: an abort at some steps left blocks or queue entries behind."""
    params = SamplingParams(n=n, seed=3, max_tokens=6)
    for step in range(12):
        server = engine(max_num_batched_tokens=6, max_num_seqs=4)
        server.add_request("A", "a prompt of several chunks", params)
        server.add_request("B", "hello", greedy(6))
        for _ in range(step):
            server.step()
        finished = "A" not in server.output_processor
        outputs = server.abort_request("A")
        assert [o.outputs[0].finish_reason for o in outputs] == ([] if finished else ["abort"])
        server.check_invariants()
        done = run(server)
        assert "B" not in done or texts(done)["B"] == continued_text("hello", 6)


def poisoned(contexts):
    if any(ord("!") in context for context in contexts):
        raise RuntimeError("the network chokes on '!'")


class PoisonedDetokenizer:
    """Fails on the fourth token of a request that asks for text with a stop string '!'."""

    def __init__(self, tokenizer, params):
        from nano_qwen3_serving.text.detokenizer import make_detokenizer

        self.inner, self.bad, self.count = make_detokenizer(tokenizer, params), params.stop == ["!"], 0

    def add(self, token_ids):
        self.count += len(token_ids)
        if self.bad and self.count == 4:
            raise RuntimeError("no text for this")
        return self.inner.add(token_ids)

    def finish(self):
        return self.inner.finish()


def poison_encode(text):
    if text == "bad!":
        raise RuntimeError("cannot be tokenised")


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ({"on_forward": poisoned}, GenerationError),
        ({"detokenizer": PoisonedDetokenizer}, GenerationError),
        ({"on_encode": poison_encode}, RuntimeError),
    ],
    ids=["network", "detokenizer", "tokenizer"],
)
async def test_one_bad_request_kills_all(parts, error):
    """vLLM PR #16529, #55164, #40302: an error of one request ended the engine and everybody in it."""
    async with serving(double_components(**parts)) as server:
        good = [asyncio.create_task(collect(server.generate(p, greedy(20), p))) for p in ("A", "B", "C")]
        with pytest.raises(error):
            await collect(server.generate("bad!", greedy(20, stop="!"), "bad"))
        for task, prompt in zip(good, "ABC", strict=True):
            assert (await task)[-1].outputs[0].text == continued_text(prompt, 20)
        await server.check_health()
        assert (await collect(server.generate("next", greedy(3), "next")))[-1].outputs[0].text == (
            continued_text("next", 3))


def test_one_bad_request_kills_all_not_in_an_offline_batch_either(caplog):
    """vLLM #55164: the error carries what the others have, and the log says what a step was computed again for."""
    llm = LLM("course", num_gpu_blocks_override=33, components=double_components(on_forward=poisoned))
    with pytest.raises(GenerationError, match="'!'") as caught:
        llm.generate(["good", "bad!", "fine"], greedy(5))
    assert [o.outputs[0].finish_reason for o in caught.value.outputs] == ["length", "error", "length"]
    assert caught.value.outputs[2].outputs[0].text == continued_text("fine", 5)
    (again,) = [record for record in caplog.records if record.name == "nano_qwen3_serving.execution.executor"]
    assert "step of 3 requests failed and is computed again, request by request: RuntimeError: the" in again.getMessage()
    assert isinstance(again.failure, RuntimeError)


@pytest.fixture(scope="module")
def seeded_prompts():
    return ["Once upon a time", "What is machine learning?", "Tell me a story about a cat", "Hello"]


@pytest.mark.parametrize(
    ("how", "args"),
    [
        ("in a batch", {}),
        ("in chunks of one token", {"long_prefill_token_threshold": 1}),
        ("in chunks that cross blocks", {"max_num_batched_tokens": 7, "max_num_seqs": 4}),
        ("preempted", {"num_gpu_blocks_override": 14}),
        ("without prefix caching", {"enable_prefix_caching": False}),
    ],
)
def test_seed_depends_on_neighbours(how, args, seeded_prompts):
    """vLLM #51226: a seeded request got other tokens beside other requests (float32, the course model)."""
    base = {"model": "course", "block_size": BLOCK, "num_gpu_blocks_override": 200, "check_invariants": True}
    params = [SamplingParams(temperature=0.8, top_p=0.9, top_k=30, seed=i, max_tokens=20, ignore_eos=True)
              for i in range(4)]  # fmt: skip
    alone = LLM(**base)
    expected = [alone.generate(p, s)[0].outputs[0].token_ids for p, s in zip(seeded_prompts, params, strict=True)]
    outputs = LLM(**base | args).generate(seeded_prompts, params)
    assert [o.outputs[0].token_ids for o in outputs] == expected
    preemptions = sum(o.metrics.num_preemptions for o in outputs)
    assert (preemptions > 0) is (how == "preempted")


def test_interrupted_generate_leaks_into_the_next():
    """nano-vllm: after Ctrl-C the next call returned the interrupted call's requests, or hung."""
    calls = []

    def interrupt(contexts):
        calls.append(len(contexts))
        if len(calls) == 4:
            raise KeyboardInterrupt

    llm = LLM("course", num_gpu_blocks_override=33, block_size=BLOCK, components=double_components(on_forward=interrupt))
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["one", "two", "three"], greedy(20))
    assert not llm.llm_engine.has_unfinished_requests()
    assert not llm.llm_engine.scheduler.running and not llm.llm_engine.scheduler.waiting
    llm.llm_engine.check_invariants()  # idle: every block is free
    outputs = llm.generate(["four"], greedy(5))
    assert [o.outputs[0].text for o in outputs] == [continued_text("four", 5)]


async def test_dropped_request_never_answered():
    """mini-sglang: a prompt that was too long was logged, and its client waited for ever."""
    async with asyncio.timeout(20), AsyncLLM(num_blocks=9, block_size=4, components=double_components()) as llm:
        for call in (llm.generate, llm.submit_request, lambda p: anext(llm.generate_stream(p))):
            with pytest.raises(PromptTooLongError):
                await call("x" * 50)
        results = await asyncio.gather(*(llm.generate(p, greedy(4)) for p in ("A", "x" * 50, "B")),
                                       return_exceptions=True)  # fmt: skip
        assert isinstance(results[1], PromptTooLongError)
        assert [results[i]["generated_text"] for i in (0, 2)] == [continued_text("A", 4), continued_text("B", 4)]


async def test_finish_reason_always_stop():
    """mini-sglang: length, end of sequence, stop string, stop token and abort were all "stop"."""
    parts = double_components(**script("abcdefgh"))
    gate = StepGate()
    async with serving(parts, gate) as server:
        params = {
            "length": greedy(5), "eos": greedy(50), "string": greedy(50, stop="de"),
            "token": greedy(50, stop_token_ids=[ord("c")]), "ignored": greedy(12, ignore_eos=True),
            "abort": greedy(50, ignore_eos=True)}  # fmt: skip
        tasks = {i: asyncio.create_task(collect(server.generate("|", p, i))) for i, p in params.items()}
        await gate.at_step(14)
        await server.abort("abort")
        gate.open()
        outputs = {i: (await t)[-1].outputs[0] for i, t in tasks.items()}
    assert {i: (o.finish_reason, o.stop_reason) for i, o in outputs.items()} == {
        "length": ("length", None), "eos": ("stop", None), "string": ("stop", "de"), "token": ("stop", ord("c")),
        "ignored": ("length", None), "abort": ("abort", None)}  # fmt: skip
    assert {i: outputs[i].text for i in ("length", "eos", "string", "token")} == {
        "length": "abcde", "eos": "abcdefgh", "string": "abc", "token": "ab"}  # fmt: skip


def test_unknown_arguments_dropped():
    """nano-vllm, mini-sglang: `stop`, `n`, penalties and typing errors were silently ignored."""
    for unknown in ("max_new_tokens", "stop_sequences", "best_of", "length_penalty"):
        with pytest.raises(UnknownArgumentError, match=unknown):
            SamplingParams(**{unknown: 1})
    with pytest.raises(InvalidParametersError, match="structured_outputs"):
        SamplingParams(structured_outputs=5)
    with pytest.raises(InvalidParametersError, match="logprobs"):
        engine().add_request("A", "x", SamplingParams(logprobs=999))


@pytest.mark.parametrize(
    ("given", "check"),
    [
        ({"n": 3, "temperature": 1.0, "seed": 1}, lambda o, plain: len(o.outputs) == 3),
        ({"stop": "PLAIN[4]"}, lambda o, plain: o.outputs[0].text == plain[: plain.index(plain[4])]),
        ({"presence_penalty": 2.0, "frequency_penalty": 2.0}, lambda o, plain: o.outputs[0].text != plain),
        ({"repetition_penalty": 5.0}, lambda o, plain: o.outputs[0].text != plain),
        ({"logit_bias": {ord("q"): 100}}, lambda o, plain: o.outputs[0].text == "q" * 20),
        ({"allowed_token_ids": [ord("z")]}, lambda o, plain: o.outputs[0].text == "z" * 20),
        ({"bad_words": ["e"]}, lambda o, plain: "e" not in o.outputs[0].text),
        ({"logprobs": 2}, lambda o, plain: len(o.outputs[0].logprobs) == 20),
        ({"detokenize": False}, lambda o, plain: not o.outputs[0].text and len(o.outputs[0].token_ids) == 20),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_unknown_arguments_dropped_and_known_ones_have_their_effect(given, check):
    """mini-sglang: what is accepted must do something."""
    plain = continued_text("hello", 20)
    if given.get("stop"):
        given = {"stop": plain[4]}
    server = engine(num_gpu_blocks_override=60)
    server.add_request("A", "hello", SamplingParams(**{"temperature": 0, "max_tokens": 20} | given))
    assert check(run(server)["A"], plain)


async def test_event_loop_blocked_by_the_model():
    """nano-qwen3-serving: the model ran on the event loop, which stood still. Here one step waits for the loop."""
    in_step, go_on = threading.Event(), threading.Event()

    def slow(contexts):
        in_step.set()
        assert go_on.wait(20), "the event loop stood still"

    async with serving(double_components(on_forward=slow)) as server:
        task = asyncio.create_task(collect(server.generate("hello", greedy(3), "A")))
        while not in_step.is_set():
            await asyncio.sleep(0)
        for _ in range(1000):  # the loop turns while the step does not
            await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
        assert (await task)[-1].outputs[0].text == continued_text("hello", 3)


async def test_event_loop_blocked_by_the_model_while_a_10_ms_ticker_ticks():
    """nano-qwen3-serving: steps of 30 ms, and a ticker of 10 ms that must tick at least once in each."""
    steps = []

    def slow(contexts):
        time.sleep(0.03)
        steps.append(len(contexts))

    ticks = []

    async def ticker():
        while True:
            await asyncio.sleep(0.01)
            ticks.append(len(steps))

    async with serving(double_components(on_forward=slow)) as server:
        ticking = asyncio.create_task(ticker())
        await asyncio.gather(*(collect(server.generate(f"{i}", greedy(20), f"{i}")) for i in range(4)))
        ticking.cancel()
        await asyncio.wait([ticking])
    assert len(ticks) >= len(steps) >= 20


async def test_event_loop_blocked_by_the_model_of_the_course():
    """nano-qwen3-serving: the same with a real network and a batch."""
    ticks = 0
    async with asyncio.timeout(30), AsyncLLM(num_blocks=200) as llm:
        task = asyncio.create_task(llm.generate(["What is machine learning?"] * 8, SamplingParams(
            max_tokens=40, ignore_eos=True)))  # fmt: skip
        while not task.done():
            await asyncio.sleep(0.001)
            ticks += 1
        assert all(r["tokens_generated"] == 40 for r in task.result())
    assert ticks >= 40


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 8, 9, 50])
def test_eos_never_checked_off_by_one_chunk(max_tokens):
    """nano-qwen3-serving: generation ran past the end of sequence, and one chunk past max_tokens."""
    server = engine(double_components(**script("abcdefg")))  # 7 tokens, then the end of sequence
    server.add_request("A", "|", greedy(max_tokens, output_kind=DELTA))
    chunks = []
    while server.has_unfinished_requests():
        chunks += server.step()
    assert len(chunks) == min(max_tokens, 8)
    assert [c.finished for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].outputs[0].finish_reason == ("length" if max_tokens < 8 else "stop")
    assert "".join(c.outputs[0].text for c in chunks) == "abcdefg"[:max_tokens]
    assert sum(len(c.outputs[0].token_ids) for c in chunks) == min(max_tokens, 8)


async def test_three_different_chat_formats():
    """nano-qwen3-serving: three places wrote three formats; there is one, the checkpoint's own template."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a token?"}]
    offline = LLM(model="course", num_gpu_blocks_override=64)
    expected = offline.get_tokenizer().apply_chat_template(messages)
    assert "<|im_start|>user\nWhat is a token?<|im_end|>" in expected
    (output,) = offline.chat(messages, greedy(5))
    async with asyncio.timeout(30), AsyncLLM(num_blocks=64) as llm:
        result = await llm.chat(messages, greedy(5))
        chunks = [c async for c in llm.chat_stream(messages, greedy(5))]
    assert output.prompt == result["prompt"] == expected
    assert output.prompt_token_ids == offline.get_tokenizer().encode(expected)
    assert output.outputs[0].text == result["generated_text"] == chunks[-1]["text"]
    assert chunks[-1]["total_tokens"] == result["total_tokens"] == len(output.prompt_token_ids) + len(
        output.outputs[0].token_ids)


def test_the_oracle_of_this_file_is_what_the_engine_says_when_it_is_alone():
    server = engine()
    server.add_request("A", "hello", greedy(20))
    done = run(server)
    assert done["A"].outputs[0].token_ids == continuation("hello", 20)
