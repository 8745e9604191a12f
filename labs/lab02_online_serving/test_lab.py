"""Lab 02's one suite. It tests what `starter.py` does, on the real engine and the bundled model.

All of it: pytest test_lab.py        One TODO: pytest test_lab.py -k todo_3
"""

import asyncio
import contextlib
import copy
import datetime
import importlib.util
import inspect
import itertools
import random
import re
import sys
import threading
import time
from pathlib import Path

import numpy
import pytest
import torch

from nano_qwen3_serving import AsyncEngineArgs, AsyncLLMEngine, RequestOutput, SamplingParams
from nano_qwen3_serving.exceptions import EngineError, InvalidParametersError, ModelLoadError
from nano_qwen3_serving.observe.trace import Recorder

PROMPT = "Explain async programming in Python"
A, B, C = "What is machine learning?", "How does AI work?", "Explain neural networks"


@pytest.fixture(scope="module")
def recorder():
    """Notes every step of `engine`."""
    return Recorder()


@pytest.fixture(scope="module")
def engine(recorder):
    """One real engine for all tests of this file."""
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="course"), recorder=recorder)
    yield engine
    engine.shutdown()


def exactly(num_tokens: int) -> SamplingParams:
    """Greedy, and `num_tokens` tokens whatever the model would say."""
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)


async def ours(engine, prompt, params, request_id="ours") -> list[RequestOutput]:
    """All outputs of one request, read by the test itself."""
    return [output async for output in engine.generate(prompt, params, request_id)]


async def within(seconds, awaitable, hint):
    """What `awaitable` returns, or a failure that says why it may be hanging."""
    try:
        return await asyncio.wait_for(awaitable, seconds)
    except TimeoutError:
        pytest.fail(f"nothing came back within {seconds} seconds. {hint}", pytrace=False)


# TODO 1: create the engine


@pytest.mark.todo(1, points=5)
async def test_todo_1_creates_an_engine_that_answers(lab):
    engine = await lab.create_engine()
    assert isinstance(engine, AsyncLLMEngine), f"create_engine() returned {engine!r}; expected an AsyncLLMEngine"
    try:
        outputs = await ours(engine, PROMPT, exactly(3))
        used = len(outputs[-1].outputs[0].token_ids)
        assert outputs[-1].finished and used == 3, f"an engine that answers gives the 3 tokens asked for; this one gave {used}"
    finally:
        engine.shutdown()


@pytest.mark.todo(1, points=5)
@pytest.mark.parametrize("most", [1, 20])
async def test_todo_1_hands_on_how_many_requests_may_run_at_once(lab, most):
    engine = await lab.create_engine("course-draft", max_num_seqs=most)
    try:
        outputs = await asyncio.gather(*(ours(engine, A, exactly(64), f"request {i}") for i in range(most + 1)))
    finally:
        engine.shutdown()
    times = [each[-1].metrics for each in outputs]
    at_once = max(sum(other.first_token_ts <= one.first_token_ts < other.last_token_ts for other in times) for one in times)
    assert at_once == most, (
        f"with max_num_seqs={most}, of {most + 1} requests {most} run at once and one waits; here {at_once} ran at once")


@pytest.mark.todo(1, points=1)
async def test_todo_1_every_call_makes_an_engine_of_its_own(lab):
    first, second = [await lab.create_engine("course-draft", max_num_seqs=2) for _ in range(2)]
    first.shutdown()
    try:
        assert second is not first, (
            "two calls of create_engine() with the same arguments returned one engine: whoever shuts it down shuts down both")
        answered = await ours(second, PROMPT, exactly(2))
        assert answered[-1].finished, "the second engine did not answer to the end"
    finally:
        second.shutdown()


@pytest.mark.todo(1, points=4)
async def test_todo_1_lets_the_error_of_a_wrong_model_through(lab):
    with pytest.raises(ModelLoadError):
        await lab.create_engine("/no/such/model")


# TODO 2: request ids


@pytest.mark.todo(2, points=1)
def test_todo_2_ids_look_like_ids(lab):
    request_id = lab.new_request_id()
    assert isinstance(request_id, str) and re.fullmatch(r"req-[0-9A-Za-z-]{4,}", request_id), (
        f"{request_id!r} is not 'req-' followed by at least four letters, digits or hyphens"
    )


@pytest.mark.todo(2, points=2)
def test_todo_2_ten_thousand_calls_give_ten_thousand_ids(lab):
    ids = [lab.new_request_id() for _ in range(10_000)]
    assert len(set(ids)) == len(ids), (
        f"{len(ids) - len(set(ids))} of 10,000 ids were given out before. "
        "Four random digits repeat after about a hundred calls; the clock stands still between two of them."
    )


CLOCKS = [time.time, time.time_ns, time.monotonic, time.monotonic_ns, time.perf_counter, time.perf_counter_ns]


@pytest.mark.todo(2, points=2)
def test_todo_2_two_calls_at_the_same_time_of_the_clock_differ(lab, monkeypatch):
    for clock in CLOCKS:
        stopped = itertools.repeat(clock()).__next__
        for known in [name for name, value in vars(lab).items() if value is clock]:  # from time import time_ns
            monkeypatch.setattr(lab, known, stopped)
        monkeypatch.setattr(time, clock.__name__, stopped)
    _stop_datetime(lab, monkeypatch)
    ids = [lab.new_request_id() for _ in range(100)]
    assert len(set(ids)) == 100, (
        f"100 calls while the clock stood still gave {len(set(ids))} different ids, {ids[0]!r} for one. However finely a clock "
        "counts, two threads, or two servers, can read the same time"
    )


def _stop_datetime(lab, monkeypatch) -> None:
    """Whatever the lab calls datetime, the module or its class, always says the same time."""
    now = datetime.datetime.now()

    class Stopped(datetime.datetime):
        now = classmethod(lambda cls, tz=None: now)
        utcnow = classmethod(lambda cls: now)

    for name, value in list(vars(lab).items()):
        if value is datetime.datetime:
            monkeypatch.setattr(lab, name, Stopped)
    monkeypatch.setattr(datetime, "datetime", Stopped)


@pytest.fixture
def seeded():
    """`seeded()` seeds everybody's random numbers, each time alike; after the test they go on as if it had not been."""
    python, nump = random.getstate(), numpy.random.get_state()

    def seed() -> None:
        random.seed(7)
        numpy.random.seed(7)
        torch.default_generator.manual_seed(7)

    with torch.random.fork_rng(devices=[]):
        yield seed
    random.setstate(python)
    numpy.random.set_state(nump)


@pytest.mark.todo(2, points=1)
def test_todo_2_no_id_comes_again_when_random_numbers_are_seeded_again(lab, seeded):
    ids = []
    for _ in range(2):  # as programs do that want the same numbers in each run
        seeded()
        ids += [lab.new_request_id() for _ in range(10)]
    assert len(set(ids)) == 20, (
        f"random.seed(7), 10 ids, random.seed(7) again, 10 ids: {20 - len(set(ids))} of them came twice, {ids[10]!r} for one. "
        "The numbers of random, numpy and torch are everybody's, and anybody may have them begin anew"
    )


@pytest.mark.todo(2, points=2)
def test_todo_2_threads_never_get_the_same_id(lab):
    ids: list[list[str]] = [[] for _ in range(4)]
    start = threading.Barrier(4)

    def let_the_others_run(frame, event, arg):
        """A trace function: between any two instructions of the lab's file, another thread may run."""
        if frame.f_code.co_filename != lab.__file__:
            return None
        frame.f_trace_opcodes = True
        time.sleep(0)
        return let_the_others_run

    def ask(mine: list[str]) -> None:
        start.wait()
        sys.settrace(let_the_others_run)  # of this thread alone
        try:
            for _ in range(200):
                mine.append(lab.new_request_id())
        finally:
            sys.settrace(None)

    threads = [threading.Thread(target=ask, args=(mine,)) for mine in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = [request_id for mine in ids for request_id in mine]
    if not everything:
        lab.new_request_id()  # shows here what stopped the threads
    different = len(set(everything))
    assert different == 800, (
        f"4 threads asked for 200 ids each and got {different} different ones. "
        "Between reading a counter and raising it, another thread may read it too."
    )


# TODO 3: submit


@pytest.mark.todo(3, points=4)
async def test_todo_3_returns_a_stream_at_once(lab, engine):
    stream = lab.submit_request(engine, PROMPT, exactly(2), "at-once")
    if inspect.iscoroutine(stream):
        stream.close()
        pytest.fail("submit_request() returned a coroutine: it is a plain def, and generate() is not awaited", pytrace=False)
    assert hasattr(stream, "__aiter__"), f"submit_request() returned {stream!r}, which `async for` cannot iterate over"
    last = [output async for output in stream][-1]
    assert last.request_id == "at-once", f"the caller chose the id 'at-once'; the outputs carry {last.request_id!r}"


class Handed:
    """An engine beside the real one: notes what it is asked for, which of its outputs were fetched, and whether to the end."""

    def __init__(self, engine):
        self._engine = engine
        self.asked, self.fetched, self.ended = [], 0, False

    async def generate(self, prompt, sampling_params, request_id):
        self.asked.append((prompt, sampling_params, request_id))
        async for output in self._engine.generate(prompt, sampling_params, request_id):
            self.fetched += 1
            yield output
        self.ended = True


@pytest.mark.todo(3, points=2)
async def test_todo_3_changes_neither_the_prompt_nor_any_parameter(lab, engine):
    handed = Handed(engine)
    prompt = "  Explain  async\tprogramming\n"
    params = SamplingParams(temperature=0.5, top_p=0.75, top_k=9, min_p=0.01, seed=3, max_tokens=3, min_tokens=2, stop=["zzz"],
                            presence_penalty=0.25, repetition_penalty=1.1, logprobs=2, logit_bias={5: 1.0})
    [*_, last] = [output async for output in lab.submit_request(handed, prompt, params.clone(), "req-all")]
    [(asked, used, request_id)] = handed.asked
    assert asked == prompt, f"the prompt was {prompt!r}, and the engine was asked {asked!r}: white space is part of a prompt"
    assert used == params, f"the parameters given are\n{params}\nand the engine was asked for\n{used}"
    ids = request_id, last.request_id
    assert ids == ("req-all", "req-all"), f"the caller chose the id 'req-all'; the engine was given, and gave back, {ids}"


@pytest.mark.todo(3, points=4)
async def test_todo_3_hands_on_prompt_parameters_and_id_unchanged(lab, engine):
    expected = (await ours(engine, PROMPT, exactly(5)))[-1]
    outputs = [output async for output in lab.submit_request(engine, PROMPT, exactly(5), "req-42")]
    final = outputs[-1]
    assert final.request_id == "req-42", "the output must carry the id that the caller chose"
    assert final.prompt == PROMPT, f"the prompt was {PROMPT!r}, and the output is of {final.prompt!r}"
    assert final.outputs[0].token_ids == expected.outputs[0].token_ids, "same prompt and parameters, other tokens"
    reason = final.outputs[0].finish_reason
    assert reason == "length", f"the parameters allow 5 tokens, so the finish reason is 'length'; it is {reason!r}"


@pytest.mark.todo(3, points=5)
async def test_todo_3_the_stream_shows_text_while_it_grows(lab, engine, recorder):
    handed = Handed(engine)
    stream = lab.submit_request(handed, PROMPT, exactly(4), "one-by-one")
    for place in (1, 2, 3):
        await anext(stream)
        assert handed.fetched == place, (
            f"output {place} came when output {handed.fetched} had been fetched from the engine: hand each one on before you ask "
            "for the next"
        )
    await stream.aclose()
    stream = lab.submit_request(engine, PROMPT, exactly(500), "first-of-500")
    await anext(stream)
    done = any("first-of-500" in step["finished"] for step in recorder.steps)
    await stream.aclose()
    assert not done, "the first output came when all 500 tokens were there: hand each output on as it comes"
    outputs = [output async for output in lab.submit_request(engine, PROMPT, exactly(12), "growing")]
    counts = [len(output.outputs[0].token_ids) for output in outputs]
    assert len(outputs) > 1, "all came at once: hand on the engine's stream, do not collect it first"
    assert counts == sorted(set(counts)) and counts[-1] == 12, f"the outputs held {counts} tokens"
    finished = [output.finished for output in outputs]
    assert finished == [False] * (len(outputs) - 1) + [True], f"only the last output is finished; here they say {finished}"
    handed = Handed(engine)
    assert [output async for output in lab.submit_request(handed, PROMPT, exactly(2), "to-the-end")]
    assert handed.ended, (
        "your stream ended, and the engine's had not yet: who hands outputs on does so until the engine's stream ends by itself. "
        "An error can come after the last output, too")


# TODO 4: collect


@pytest.mark.todo(4, points=5)
async def test_todo_4_reads_to_the_end(lab, engine):
    handed = Handed(engine)
    output = await lab.collect_output(handed.generate(PROMPT, exactly(9), "to-the-end"))
    assert isinstance(output, RequestOutput), f"collect_output() returned {output!r}; expected a RequestOutput"
    assert output.finished, "this is not the last output: go on until the stream ends by itself"
    used = len(output.outputs[0].token_ids)
    assert used == 9, f"the stream generated 9 tokens; the output that came back has {used}"
    assert handed.ended, "the last output was read, the stream's end was not: go on until the stream ends by itself"


@pytest.mark.todo(4, points=4)
async def test_todo_4_returns_the_whole_text_with_or_without_a_listener(lab, engine):
    expected = (await ours(engine, PROMPT, exactly(9)))[-1].outputs[0].text
    heard = Heard()
    quiet = await lab.collect_output(lab.submit_request(engine, PROMPT, exactly(9), "quiet"))
    loud = await lab.collect_output(lab.submit_request(engine, PROMPT, exactly(9), "loud"), heard)
    assert quiet.outputs[0].text == expected, "the last output holds the whole text, not only what is new"
    assert loud.outputs[0].text == expected, "with a listener, too, the last output holds the whole text"
    assert "".join(heard) == expected, (
        f"on_text was given, an empty list that can be called, and heard {heard}: whether there is a listener is `is not None`, "
        "not whether it counts as true")


class Heard(list):
    """A listener that keeps what it is told; as long as that is nothing, it counts as false."""

    __call__ = list.append


@pytest.mark.todo(4, points=4)
async def test_todo_4_passes_new_text_on_as_it_arrives(lab, engine):
    heard: list[tuple[str, int]] = []
    read = 0

    async def counted():
        nonlocal read
        async for output in engine.generate(PROMPT, exactly(12), "new-text"):
            read += 1
            yield output

    output = await lab.collect_output(counted(), lambda piece: heard.append((piece, read)))
    pieces = [piece for piece, _ in heard]
    assert "".join(pieces) == output.outputs[0].text, "the pieces joined must be the whole text, nothing twice"
    assert len(pieces) > 1 and heard[0][1] < read, "a piece must be passed on when it arrives, not at the end"
    assert all(pieces), "on_text was called without new text"


@pytest.mark.todo(4, points=3)
async def test_todo_4_passes_on_what_repeats_and_nothing_empty(lab, engine):
    last = (await ours(engine, PROMPT, exactly(1)))[-1]
    read = 0

    async def saying(texts: list[str]):
        nonlocal read
        for read, text in enumerate(texts, start=1):
            output = copy.deepcopy(last)
            output.outputs[0].text, output.finished = text, read == len(texts)
            yield output

    laugh = ["", "ha", "haha", "haha", "haha!"]  # a token that is half a character adds no text
    for texts, right in ((laugh, [("ha", 2), ("ha", 3), ("!", 5)]), (["", ""], [])):
        heard: list[tuple[str, int]] = []
        output = await lab.collect_output(saying(texts), lambda piece, heard=heard: heard.append((piece, read)))
        assert isinstance(output, RequestOutput) and output.finished, (
            f"the outputs' texts were {texts}; collect_output() returned {output!r}, which is not the last output")
        said = output.outputs[0].text
        assert said == texts[-1], f"the last of the outputs' texts, {texts}, is the answer; it is {said!r}"
        assert heard == right, f"the outputs' texts were {texts}; on_text got (piece, number of the output) {heard}"


@pytest.mark.todo(4, points=4)
@pytest.mark.parametrize("error", [EngineError, asyncio.CancelledError])
@pytest.mark.parametrize("outputs", [0, 1, 3], ids=["at once", "in the middle", "after the last output"])
async def test_todo_4_lets_an_error_through_whenever_it_comes(lab, engine, outputs, error):
    last = (await ours(engine, PROMPT, exactly(1)))[-1]

    async def breaks():
        for place in range(1, outputs + 1):
            output = copy.deepcopy(last)
            output.finished = place == 3
            yield output
        raise error("the engine went away")

    try:
        returned = await lab.collect_output(breaks())
    except error as raised:
        assert "went away" in str(raised), f"the stream raised 'the engine went away'; what reached the caller says {raised}"
        return
    pytest.fail(
        f"after {outputs} outputs, {'the last' if outputs == 3 else 'none'} of them finished, the stream raised "
        f"{error.__name__}; collect_output() returned {returned!r}", pytrace=False)


# TODO 5: many at once


async def served(lab, engine, prompts, params) -> list[RequestOutput]:
    """What serve_many() returns, or a failure that says why that cannot be the outputs."""
    outputs = await within(60, lab.serve_many(engine, prompts, params), "Does serve_many() wait for something?")
    if asyncio.isfuture(outputs):
        with contextlib.suppress(Exception):
            await outputs
        pytest.fail("serve_many() returned a future, not the outputs: asyncio.gather() is awaited", pytrace=False)
    return outputs


@pytest.mark.todo(5, points=8)
@pytest.mark.parametrize("count", [6, 40])
async def test_todo_5_the_requests_share_one_step(lab, engine, recorder, count):
    before, prompts = len(recorder.steps), [(A, B, C)[i % 3] for i in range(count)]
    outputs = await served(lab, engine, tuple(prompts), exactly(64 if count == 6 else 24))
    ids = {output.request_id for output in outputs}
    assert len(outputs) == count, f"{count} prompts, of which some are equal, gave {len(outputs)} outputs"
    assert len(ids) == count, f"{count} requests need {count} ids; they had {sorted(output.request_id for output in outputs)}"
    together = [ids & {chunk["request"] for chunk in step["chunks"]} for step in recorder.steps[before:]]
    most = max(map(len, together), default=0)
    assert most == count, (
        f"at most {most} of the {count} requests were ever computed in one step of this engine. Each was awaited before "
        "the next was submitted, or another engine was used: start them all, then wait for all."
    )


@pytest.mark.todo(5, points=2)
async def test_todo_5_takes_each_id_from_new_request_id(lab, engine, monkeypatch):
    made, make = [], lab.new_request_id

    def noted() -> str:
        made.append(make())
        return made[-1]

    monkeypatch.setattr(lab, "new_request_id", noted)
    outputs = await served(lab, engine, [A, B, A], exactly(2))
    used = sorted(output.request_id for output in outputs)
    assert used == sorted(made), f"new_request_id() gave the ids {sorted(made)}; the requests had {used}"


@pytest.mark.todo(5, points=4)
async def test_todo_5_returns_outputs_in_the_order_of_the_prompts(lab, engine):
    prompts = [f"{A} " * 3, B, f"{C} " * 2, A]
    outputs = await served(lab, engine, prompts, SamplingParams(temperature=0.0, max_tokens=8))
    found = [output.prompt for output in outputs]
    assert found == prompts, f"the prompts were {prompts}; their outputs came in the order {found}"
    assert all(output.finished for output in outputs), "an output that came back is not finished, so not the last of its stream"
    late_first = await served(lab, _FirstIsLast(engine), [A, B, C], exactly(2))
    assert [output.prompt for output in late_first] == [A, B, C], "the order is that of the prompts, not of finishing"
    nobody = await served(lab, engine, [], exactly(2))
    assert list(nobody) == [], f"no prompts have no outputs; serve_many() returned {nobody!r}"
    again = {output.request_id for output in outputs} & {output.request_id for output in late_first}
    assert not again, f"two calls of serve_many() used the same ids, {sorted(again)}: take them from new_request_id()"


class _FirstIsLast:
    """The real engine, except that the request submitted first is answered last."""

    def __init__(self, engine):
        self._engine, self._submitted, self._others_done = engine, 0, asyncio.Event()

    async def generate(self, *args, **kwargs):
        self._submitted += 1
        if self._submitted == 1:
            with contextlib.suppress(TimeoutError):  # whoever submits one after the other waits in vain
                await asyncio.wait_for(self._others_done.wait(), 3)
        async for output in self._engine.generate(*args, **kwargs):
            yield output
        self._others_done.set()


@pytest.mark.todo(5, points=4)
@pytest.mark.parametrize("place", [0, 1, 2, 7], ids=["first", "second", "third", "last of eight"])
async def test_todo_5_the_error_of_one_request_reaches_the_caller(lab, engine, place):
    prompts = [A, B, C] if place < 3 else [A, B] * 4
    prompts[place] = ""
    try:
        await served(lab, engine, prompts, exactly(3))
    except InvalidParametersError:
        return
    except BaseExceptionGroup as group:
        pytest.fail(f"the caller got {group!r}; gather() raises the request's own error, a TaskGroup wraps it", pytrace=False)
    pytest.fail("the engine refuses an empty prompt, but serve_many() returned as if nothing had happened", pytrace=False)


class _LosesOne:
    """The real engine, except that it cancels whoever asks for `B`."""

    def __init__(self, engine):
        self._engine = engine

    async def generate(self, prompt, *args, **kwargs):
        async for output in self._engine.generate(prompt, *args, **kwargs):
            if prompt == B:
                raise asyncio.CancelledError("the request was cancelled")
            yield output


@pytest.mark.todo(5, points=1)
async def test_todo_5_a_request_that_is_cancelled_is_no_output(lab, engine):
    try:
        outputs = await served(lab, _LosesOne(engine), [A, B, C], exactly(3))
    except asyncio.CancelledError:
        return
    pytest.fail(
        f"one of three requests was cancelled, and serve_many() returned {[type(output).__name__ for output in outputs]}: "
        "asyncio.CancelledError is an error, too, though it is no Exception", pytrace=False)


@pytest.mark.todo(5, points=4)
async def test_todo_5_leaves_the_event_loop_free(lab, engine, monkeypatch):
    loop_thread, sleep = threading.get_ident(), time.sleep

    def watched_sleep(seconds):
        assert threading.get_ident() != loop_thread, "time.sleep() stops every request: await asyncio.sleep() instead"
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", watched_sleep)
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    ticker = asyncio.create_task(tick())
    await served(lab, engine, [A, B], exactly(48))
    ticker.cancel()
    assert ticks >= 5, f"while 48 tokens were generated, other work on the event loop got {ticks} turns: something blocks it"


@pytest.mark.todo(5, points=4)
async def test_todo_5_the_whole_program_prints_what_the_readme_shows(lab, capsys):
    await lab.main()
    said = capsys.readouterr().out
    shape = (
        r"=== vLLM Async Online Serving Lab ===\n\n"
        r"Initializing AsyncLLMEngine\.\.\.\nEngine initialized successfully!\n\n"
        r"Processing single request\.\.\.\nRequest ID: (req-\S+)\n"
        r"Prompt: Explain async programming in Python\nGenerated: \S.+\n\n"
        r"Processing concurrent requests\.\.\.\n"
        r"Request 1 \((req-\S+)\): Complete\nRequest 2 \((req-\S+)\): Complete\nRequest 3 \((req-\S+)\): Complete\n\n"
        r"All 3 requests completed in \d+\.\d\d seconds\nThroughput: \d+\.\d\d requests/second\n\n"
        r"The same 3 prompts in three ways\n"
        r"  one after the other +\d+\.\d\d seconds, 1\.00 tokens a step\n"
        r"  at the same time +\d+\.\d\d seconds, [12]\.\d\d tokens a step\n"
        r"  at the same time, max_num_seqs=1 +\d+\.\d\d seconds, 1\.00 tokens a step\n"
    )
    found = re.fullmatch(shape, said, re.DOTALL)
    assert found, f"README.md, Expected Output, shows another shape than this:\n{said}"
    assert len(set(found.groups())) == 4, "two of the four requests had the same id"


# Going Further: no points. Tests yours if starter.py has a function of that name.


@pytest.fixture
def extra(lab, pytestconfig):
    """A Going Further function by name: yours, or for --impl solution ours."""

    def find(name: str):
        if not hasattr(lab, name) and pytestconfig.getoption("--impl") == "solution":
            spec = importlib.util.spec_from_file_location("lab02_going_further", Path(__file__).with_name("going_further.py"))
            ours_module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(ours_module)
            return getattr(ours_module, name)
        if not hasattr(lab, name):
            pytest.skip(f"optional: write {name}() in starter.py; README.md, Going Further, says how")
        return getattr(lab, name)

    return find


@pytest.mark.optional
async def test_optional_1_cancelling_ends_one_request_and_no_other(extra, engine):
    cancel = asyncio.Event()
    neighbour = asyncio.create_task(ours(engine, B, exactly(20), "neighbour"))
    cancelled = asyncio.create_task(extra("serve_until")(engine, A, exactly(500), "cancelled", cancel))
    await asyncio.sleep(0.1)
    cancel.set()
    output = await within(30, cancelled, "Was engine.abort(request_id) awaited?")
    assert output.outputs[0].finish_reason == "abort"
    assert (await neighbour)[-1].outputs[0].finish_reason == "length"


@pytest.mark.optional
async def test_optional_1_a_request_that_still_waits_is_cancelled_too(extra):
    serve, cancel = extra("serve_until"), asyncio.Event()
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="course-draft", max_num_seqs=1))
    try:
        busy = engine.generate(PROMPT, exactly(2000), "busy")
        await anext(busy)  # it runs, so the other has to wait
        cancelled = asyncio.create_task(serve(engine, A, exactly(5), "waiting", cancel))
        await asyncio.sleep(0.1)
        cancel.set()
        output = await within(30, cancelled, "A waiting request has no outputs: who looks at cancel?")
        await busy.aclose()
    finally:
        engine.shutdown()
    generated = len(output.outputs[0].token_ids)
    assert generated == 0, f"cancel was set while it waited, yet it was served, and generated {generated} tokens"
    assert output.outputs[0].finish_reason == "abort"


@pytest.mark.optional
async def test_optional_2_the_smaller_priority_number_is_served_first(extra):
    serve = extra("serve_by_priority")
    engine = AsyncLLMEngine.from_engine_args(
        AsyncEngineArgs(model="course-draft", scheduling_policy="priority", max_num_seqs=1)
    )
    try:
        busy = engine.generate(PROMPT, exactly(400), "busy")
        await anext(busy)  # it runs, so the others have to wait, and are chosen by priority
        outputs = await serve(engine, [(A, 5), (B, 0), (C, 2)], exactly(2))
        assert [output async for output in busy][-1].finished
    finally:
        engine.shutdown()
    assert [output.prompt for output in outputs] == [A, B, C]
    assert [o.prompt for o in sorted(outputs, key=lambda o: o.metrics.first_token_ts)] == [B, C, A]


@pytest.mark.optional
async def test_optional_3_a_timeout_returns_what_there_is(extra, engine):
    serve = extra("serve_within")
    output = await within(30, serve(engine, A, exactly(2000), 0.1), "Was timeout= handed to generate()?")
    assert output is None or 0 <= len(output.outputs[0].token_ids) < 2000
    assert (await serve(engine, A, exactly(2), 60.0)).finished


@pytest.mark.optional
async def test_optional_4_a_web_service_answers_streams_and_refuses(extra, engine):
    httpx = pytest.importorskip("httpx")
    transport = httpx.ASGITransport(app=extra("create_app")(engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://lab") as client:
        one = (await client.post("/generate", json={"prompt": PROMPT, "max_tokens": 6})).json()
        streamed = await client.post("/generate", json={"prompt": PROMPT, "max_tokens": 6, "stream": True})
        refused = await client.post("/generate", json={"prompt": "", "max_tokens": 6})
    assert one["text"] and one["request_id"].startswith("req-")
    assert streamed.text == one["text"]
    assert refused.status_code == 400 and "prompt" in refused.json()["detail"]


@pytest.mark.optional
async def test_optional_5_queue_depths_and_times_can_be_read(extra):
    depths, times = extra("queue_depths"), extra("times")
    recorder = Recorder()
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="course-draft", max_num_seqs=1), recorder=recorder)
    try:
        outputs = await asyncio.gather(*(ours(engine, prompt, exactly(64), prompt) for prompt in (A, B, C)))
    finally:
        engine.shutdown()
    assert max(running for running, _ in depths(recorder.steps)) == 1
    assert max(waiting for _, waiting in depths(recorder.steps)) >= 1
    slowest = max((times(each[-1]) for each in outputs), key=lambda seconds: seconds["total"])
    assert 0 <= slowest["waiting"] <= slowest["to_first_token"] <= slowest["total"], (
        f"waiting, to_first_token and total all begin at the request's arrival; times() said {slowest}"
    )
    assert slowest["total"] == pytest.approx(slowest["to_first_token"] + slowest["generating"])


if __name__ == "__main__":
    raise SystemExit("These are tests. Run them with: pytest test_lab.py")
