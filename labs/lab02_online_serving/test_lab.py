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
        assert outputs[-1].finished and used == 3, f"the engine was asked for 3 tokens; it gave {used}"
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
        f"with max_num_seqs={most}, {most} of {most + 1} requests should run at once and one should wait; {at_once} ran at once")


@pytest.mark.todo(1, points=1)
async def test_todo_1_every_call_makes_an_engine_of_its_own(lab):
    first, second = [await lab.create_engine("course-draft", max_num_seqs=2) for _ in range(2)]
    first.shutdown()
    try:
        assert second is not first, (
            "two calls of create_engine() with the same arguments returned the same engine: shutting down one shuts down both")
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
        f"10,000 calls should give 10,000 different ids; {len(ids) - len(set(ids))} ids had been returned before. "
        "Four random digits repeat after about a hundred calls; a clock may show the same time in two of them."
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
        f"100 calls at the same time of the clock should give 100 different ids; they gave {len(set(ids))}, such as {ids[0]!r}. "
        "However fine a clock is, two threads or two servers can read the same time"
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
        f"random.seed(7), 10 ids, random.seed(7) again, 10 ids: all 20 should differ; {20 - len(set(ids))} came twice, such as "
        f"{ids[10]!r}. All code shares the generators of random, numpy and torch, and any of it may seed them again"
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
        f"4 threads asked for 200 ids each, and all 800 should differ; {different} did. "
        "After you read a counter and before you raise it, another thread may read it too."
    )


# TODO 3: submit


@pytest.mark.todo(3, points=4)
async def test_todo_3_returns_a_stream_at_once(lab, engine):
    stream = lab.submit_request(engine, PROMPT, exactly(2), "at-once")
    if inspect.iscoroutine(stream):
        stream.close()
        pytest.fail("submit_request() returned a coroutine: write it as a plain def, and do not await generate()", pytrace=False)
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
    assert asked == prompt, f"the engine should get the prompt {prompt!r}, white space included; it got {asked!r}"
    assert used == params, f"the engine should get the caller's parameters\n{params}\nand it got\n{used}"
    ids = request_id, last.request_id
    assert ids == ("req-all", "req-all"), f"the caller chose the id 'req-all'; the engine got, and the output carries, {ids}"


@pytest.mark.todo(3, points=4)
async def test_todo_3_hands_on_prompt_parameters_and_id_unchanged(lab, engine):
    expected = (await ours(engine, PROMPT, exactly(5)))[-1]
    outputs = [output async for output in lab.submit_request(engine, PROMPT, exactly(5), "req-42")]
    final = outputs[-1]
    assert final.request_id == "req-42", f"the caller chose the id 'req-42'; the output carries {final.request_id!r}"
    assert final.prompt == PROMPT, f"the output should be for the prompt {PROMPT!r}; it is for {final.prompt!r}"
    wanted, found = expected.outputs[0].token_ids, final.outputs[0].token_ids
    assert found == wanted, f"for this prompt and these parameters the engine generates the tokens {wanted}; yours has {found}"
    reason = final.outputs[0].finish_reason
    assert reason == "length", f"the parameters allow 5 tokens, so the finish reason is 'length'; it is {reason!r}"


@pytest.mark.todo(3, points=5)
async def test_todo_3_the_stream_shows_text_while_it_grows(lab, engine, recorder):
    handed = Handed(engine)
    stream = lab.submit_request(handed, PROMPT, exactly(4), "one-by-one")
    for place in (1, 2, 3):
        await anext(stream)
        assert handed.fetched == place, (
            f"when your stream gave output {place}, {handed.fetched} outputs had been fetched from the engine: pass each one on "
            "before you ask for the next"
        )
    await stream.aclose()
    stream = lab.submit_request(engine, PROMPT, exactly(500), "first-of-500")
    await anext(stream)
    done = any("first-of-500" in step["finished"] for step in recorder.steps)
    await stream.aclose()
    assert not done, "your first output came after all 500 tokens had been generated: pass each output on as it comes"
    outputs = [output async for output in lab.submit_request(engine, PROMPT, exactly(12), "growing")]
    counts = [len(output.outputs[0].token_ids) for output in outputs]
    assert len(outputs) > 1, "your stream gave one output only: pass on the engine's stream, do not collect it first"
    assert counts == sorted(set(counts)) and counts[-1] == 12, (
        f"each output should hold more tokens than the one before, the last one 12; they held {counts}")
    finished = [output.finished for output in outputs]
    assert finished == [False] * (len(outputs) - 1) + [True], (
        f"`finished` should be True in the last output only; in yours it is {finished}")
    handed = Handed(engine)
    assert [output async for output in lab.submit_request(handed, PROMPT, exactly(2), "to-the-end")]
    assert handed.ended, (
        "your stream ended before the engine's did: go on until the engine's stream ends by itself, because an error can come "
        "after the last output")


# TODO 4: collect


@pytest.mark.todo(4, points=5)
async def test_todo_4_reads_to_the_end(lab, engine):
    handed = Handed(engine)
    output = await lab.collect_output(handed.generate(PROMPT, exactly(9), "to-the-end"))
    assert isinstance(output, RequestOutput), f"collect_output() returned {output!r}; expected a RequestOutput"
    assert output.finished, "you returned an output before the last one: go on until the stream ends by itself"
    used = len(output.outputs[0].token_ids)
    assert used == 9, f"the stream generated 9 tokens; the output that you returned has {used}"
    assert handed.ended, "you read the last output, but not the end of the stream: go on until the stream ends by itself"


@pytest.mark.todo(4, points=4)
async def test_todo_4_returns_the_whole_text_with_or_without_a_listener(lab, engine):
    expected = (await ours(engine, PROMPT, exactly(9)))[-1].outputs[0].text
    heard = Heard()
    quiet = await lab.collect_output(lab.submit_request(engine, PROMPT, exactly(9), "quiet"))
    loud = await lab.collect_output(lab.submit_request(engine, PROMPT, exactly(9), "loud"), heard)
    for how, text in (("without on_text", quiet.outputs[0].text), ("with on_text", loud.outputs[0].text)):
        assert text == expected, f"{how}, the output should hold the whole text, {expected!r}; it holds {text!r}"
    assert "".join(heard) == expected, (
        f"on_text should have been called with the pieces of {expected!r}, and got {heard}. It was a callable object that counts "
        "as false: test `on_text is not None`, not `if on_text`")


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
    text = output.outputs[0].text
    assert "".join(pieces) == text, f"the pieces joined should be the text {text!r}; on_text got {pieces}"
    assert len(pieces) > 1 and heard[0][1] < read, "on_text was called only at the end: pass each piece on when it arrives"
    assert all(pieces), f"on_text was called with an empty piece: {pieces}"


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
            f"of outputs with the texts {texts} collect_output() should return the last; it returned {output!r}")
        said = output.outputs[0].text
        assert said == texts[-1], f"of outputs with the texts {texts} the last text is the answer; you returned {said!r}"
        assert heard == right, (
            f"outputs with the texts {texts}: on_text should get (piece, number of the output) {right}; it got {heard}")


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
        assert "went away" in str(raised), f"the stream raised 'the engine went away'; what you raised says {raised}"
        return
    pytest.fail(
        f"the stream raised {error.__name__} after {outputs} outputs, {'the last' if outputs == 3 else 'none'} of them finished. "
        f"collect_output() should raise it too; it returned {returned!r}", pytrace=False)


# TODO 5: many at once


async def served(lab, engine, prompts, params) -> list[RequestOutput]:
    """What serve_many() returns, or a failure that says why that cannot be the outputs."""
    outputs = await within(60, lab.serve_many(engine, prompts, params), "Does serve_many() wait for something?")
    if asyncio.isfuture(outputs):
        with contextlib.suppress(Exception):
            await outputs
        pytest.fail("serve_many() returned a future, not the outputs: await asyncio.gather()", pytrace=False)
    return outputs


@pytest.mark.todo(5, points=8)
@pytest.mark.parametrize("count", [6, 40])
async def test_todo_5_the_requests_share_one_step(lab, engine, recorder, count):
    before, prompts = len(recorder.steps), [(A, B, C)[i % 3] for i in range(count)]
    outputs = await served(lab, engine, tuple(prompts), exactly(64 if count == 6 else 24))
    ids = {output.request_id for output in outputs}
    assert len(outputs) == count, f"{count} prompts, some of them equal, should give {count} outputs; they gave {len(outputs)}"
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
    assert used == sorted(made), (
        f"the requests should have the ids that new_request_id() returned, {sorted(made)}; they had {used}")


@pytest.mark.todo(5, points=4)
async def test_todo_5_returns_outputs_in_the_order_of_the_prompts(lab, engine):
    prompts = [f"{A} " * 3, B, f"{C} " * 2, A]
    outputs = await served(lab, engine, prompts, SamplingParams(temperature=0.0, max_tokens=8))
    found = [output.prompt for output in outputs]
    assert found == prompts, f"the outputs should be in the order of the prompts, {prompts}; they are in the order {found}"
    assert all(output.finished for output in outputs), "an output that you returned is not finished: it is not its stream's last"
    late_first = await served(lab, _FirstIsLast(engine), [A, B, C], exactly(2))
    assert [output.prompt for output in late_first] == [A, B, C], (
        "the outputs are in the order in which they finished; they should be in the order of the prompts")
    nobody = await served(lab, engine, [], exactly(2))
    assert list(nobody) == [], f"for no prompts serve_many() should return an empty list; it returned {nobody!r}"
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
        pytest.fail(
            f"the request's own error should reach the caller, not {group!r}: a TaskGroup wraps errors, gather() does not",
            pytrace=False)
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
        "one of three requests was cancelled, so serve_many() should raise asyncio.CancelledError, which is not an Exception; "
        f"it returned {[type(output).__name__ for output in outputs]}", pytrace=False)


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
    assert found, f"the output should look like Expected Output in README.md; it is:\n{said}"
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
        output = await within(30, cancelled, "A waiting request has no outputs yet: does anything look at cancel until then?")
        await busy.aclose()
    finally:
        engine.shutdown()
    generated = len(output.outputs[0].token_ids)
    assert generated == 0, f"cancel was set while the request waited, so it should generate no token; it generated {generated}"
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
        f"waiting, to_first_token and total all count from the request's arrival, so none is below the one before; got {slowest}"
    )
    assert slowest["total"] == pytest.approx(slowest["to_first_token"] + slowest["generating"])


if __name__ == "__main__":
    raise SystemExit("These are tests. Run them with: pytest test_lab.py")
