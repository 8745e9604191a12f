"""Lab 02's one suite. It tests what `starter.py` does, on real engines and the bundled models.

In many tests the test itself chooses what the model says, see `labs/harness/scripted_engine`, or hands out an engine's outputs
one by one: the right answer can then only come from the engine, or the stream, that was given. What is drawn from `rng` differs
from student to student where labs are graded.

All of it: pytest test_lab.py        One TODO: pytest test_lab.py -k todo_3
"""

import asyncio
import copy
import importlib.util
import inspect
import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from labs.harness.scripted_engine.engines import read_outputs, scripted_async_engine, spare_memory
from labs.harness.scripted_engine.ledger import PatientLedger, assert_served
from labs.harness.scripted_engine.own_engine import SMALL, clear_prompts, exactly, own_llm, some_prompts, tokenizer, words
from labs.harness.suite import beside
from labs.harness.suite.expecting import kinds_of, refusal, shown
from nano_qwen3_serving import LLM, AsyncEngineArgs, AsyncLLMEngine, RequestOutput, SamplingParams
from nano_qwen3_serving.exceptions import EngineError
from nano_qwen3_serving.execution.verifier import SamplingVerifier
from nano_qwen3_serving.observe.trace import Recorder

PROMPT = "Explain async programming in Python"
A, B, C = "What is machine learning?", "How does AI work?", "Explain neural networks"


def some_id(rng) -> str:
    """An id that a caller chose."""
    return f"{words(rng, 1)}-{rng.randrange(10**6)}"


class Handed:
    """An engine of the test's, which hands out outputs one by one, when they are wanted.

    It notes what was asked for, which outputs were fetched, and whether anybody asked for one more after the last.
    """

    def __init__(self, there, outputs: Iterator) -> None:
        self._there, self._outputs = there, outputs
        self.asked, self.fetched, self.ended = [], [], False

    def generate(self, prompt, sampling_params, request_id):
        """What an engine's method of this name returns."""
        self.asked.append((prompt, sampling_params, request_id))
        return self.stream()

    def stream(self):
        """The stream of the outputs, where the part is."""
        return self._there.unawaited(self._there.of(beside.handed_out), self._there.lend(self._next))

    def _next(self):
        output = next(self._outputs, None)
        if output is None:
            self.ended = True
        else:
            self.fetched.append(output)
        return output


def stepwise(prompt: str, num_tokens: int, request_id: str) -> Iterator[RequestOutput]:
    """The outputs of an engine, computed as they are fetched."""
    engine = LLM("course-draft", **SMALL).llm_engine
    engine.add_request(request_id, prompt, exactly(num_tokens))
    while engine.has_unfinished_requests():
        yield from engine.step()


def saying(texts: list[str], request_id: str) -> Iterator[RequestOutput]:
    """Outputs with these texts, of a token more each time; the last one is finished."""
    [whole] = own_llm().generate("?", exactly(len(texts)), use_tqdm=False) if texts else [None]
    for place, text in enumerate(texts, start=1):
        output = copy.deepcopy(whole)
        output.request_id, output.finished = request_id, place == len(texts)
        completion = output.outputs[0]
        completion.text, completion.token_ids = text, completion.token_ids[:place]
        completion.finish_reason = completion.finish_reason if output.finished else None
        yield output


# TODO 1: create the engine


def created(lab, there, *arguments, **named):
    """What create_engine() returns, which must be an engine."""
    spare_memory(there)
    engine = there.awaited(lab.create_engine, *arguments, **named)
    assert there.is_a(AsyncLLMEngine, engine), f"create_engine() returned {shown(engine)}; expected an AsyncLLMEngine"
    there.at_end(engine.shutdown)
    return engine


def assert_model(there, rng, engine, model: str) -> None:
    """The tokens that an engine generates are those of this model."""
    for known in clear_prompts(rng, 2):
        stream = there.unawaited(engine.generate, known["prompt"], exactly(6), some_id(rng))
        last = read_outputs(there, there.awaited(beside.read, stream)[-1:])[0]
        assert last["finished"], "the engine's last output says that it is not finished"
        tokens, expected = last["tokens"], known[model]
        assert tokens == expected, (
            f"an engine that serves {model!r} answers {known['prompt']!r} with the tokens {expected}; this one answered with "
            f"{tokens}")


@pytest.mark.todo(1, points=5)
def test_todo_1_creates_an_engine_that_answers(lab, rng, there):
    assert_model(there, rng, created(lab, there), "course")
    for model in rng.sample(["course", "course-draft"], 2):
        assert_model(there, rng, created(lab, there, model, max_num_seqs=rng.randrange(2, 9)), model)


@pytest.mark.todo(1, points=5)
@pytest.mark.parametrize("most", [1, 20, "any"])
def test_todo_1_hands_on_how_many_requests_may_run_at_once(lab, rng, there, most):
    most = rng.randrange(2, 8) if most == "any" else most
    engine = created(lab, there, "course-draft", max_num_seqs=most)
    ledger, prompts = PatientLedger(rng, most), some_prompts(rng, most + 2)
    sampler = there.of(beside.asking_sampler)(there.lend(ledger.choose))(None)
    engine.engine.model_runner.verifier = there.of(SamplingVerifier)(sampler)
    requests = [(prompt, exactly(5), f"req-{place}") for place, prompt in enumerate(prompts)]
    outputs = there.awaited(beside.read_all, engine.generate, requests)
    assert_served(ledger, read_outputs(there, [every[-1] for every in outputs]), prompts)
    at_once = ledger.most
    assert at_once == most, (
        f"with max_num_seqs={most}, {most} of {most + 2} requests should run at once and the others wait; {at_once} ran at once")


@pytest.mark.todo(1, points=1)
def test_todo_1_every_call_makes_an_engine_of_its_own(lab, rng, there):
    most, [prompt] = rng.randrange(1, 8), some_prompts(rng, 1)
    first, second = (created(lab, there, "course-draft", max_num_seqs=most) for _ in range(2))
    first.shutdown()
    outputs = there.awaited(beside.read, there.unawaited(second.generate, prompt, exactly(2), some_id(rng)))
    assert outputs and outputs[-1].finished, (
        f"create_engine('course-draft', {most}) was called twice, and the first engine was shut down; now the second one does "
        "not answer. Each call creates a new engine")


@pytest.mark.todo(1, points=4)
def test_todo_1_lets_the_error_of_a_wrong_model_through(lab, rng, there):
    spare_memory(there)
    name = f"/no/such/model/{rng.randrange(10**6)}"
    refusal("ModelLoadError", lambda: there.awaited(lab.create_engine, name),
            f"there is no model {name!r}, and the engine's own error has to reach the caller")


# TODO 2: request ids

ID = r"req-[0-9A-Za-z-]{4,}"


def ids_of(lab, there, count: int) -> list:
    """What so many calls return."""
    return there.of(beside.called)(lab.new_request_id, count)


def assert_ids(ids: list) -> None:
    """Each is an id as the README describes it."""
    for request_id in ids:
        fits = isinstance(request_id, str) and re.fullmatch(ID, request_id) is not None
        assert fits, f"{shown(request_id)} is not 'req-' followed by at least four letters, digits or hyphens"


def repeated(ids: list) -> int:
    """How many have been there before."""
    return len(ids) - len(set(map(str, ids)))


@pytest.mark.todo(2, points=1)
def test_todo_2_ids_look_like_ids(lab, rng, there):
    assert_ids([lab.new_request_id()])
    assert_ids(ids_of(lab, there, rng.randrange(1100, 1200)))


@pytest.mark.todo(2, points=2)
def test_todo_2_ten_thousand_calls_give_ten_thousand_ids(lab, rng, there):
    count = rng.randrange(10_000, 11_000)  # of random ids of 48 bits two are the same once in five million times: then once more
    again = repeated(ids_of(lab, there, count)) and repeated(ids_of(lab, there, count))
    assert not again, (
        f"{count} calls should give {count} different ids; {again} ids had been returned before. "
        "Four random digits repeat after about a hundred calls; a clock may show the same time in two of them.")


@pytest.mark.todo(2, points=2)
def test_todo_2_two_calls_at_the_same_time_of_the_clock_differ(lab, rng, there):
    count = rng.randrange(100, 200)
    again = repeated(there.of(beside.called_while_clocks_stand)(lab.new_request_id, lab, count))
    assert not again, (
        f"{count} calls at the same time of the clock should give {count} different ids; they gave {count - again}. "
        "However fine a clock is, two threads or two servers can read the same time")


@pytest.mark.todo(2, points=1)
def test_todo_2_no_id_comes_again_when_random_numbers_are_seeded_again(lab, rng, there):
    seed, each = rng.getrandbits(31), rng.randrange(5, 20)  # as programs do that want the same numbers in each run
    first, second = (there.of(beside.called_after_seeding)(lab.new_request_id, seed, each) for _ in range(2))
    again = repeated(first + second)
    assert again == 0, (
        f"random.seed({seed}), {each} ids, random.seed({seed}) again, {each} ids: all should differ; {again} came twice. All "
        "code shares the generators of random, numpy and torch, and any of it may seed them again")


@pytest.mark.todo(2, points=2)
def test_todo_2_threads_never_get_the_same_id(lab, rng, there):
    each, file = rng.randrange(110, 200), there.of(getattr)(lab, "__file__")
    ids = [request_id for mine in there.of(beside.called_by_threads)(lab.new_request_id, file, 4, each) for request_id in mine]
    different = len(set(map(str, ids)))
    assert different == 4 * each, (
        f"4 threads asked for {each} ids each, and all {4 * each} should differ; {different} did. "
        "After you read a counter and before you raise it, another thread may read it too.")


# TODO 3: submit


def submitted(lab, there, engine, prompt: str, params: SamplingParams, request_id: str):
    """What submit_request() returns, which must be a stream."""
    stream = there.unawaited(lab.submit_request, engine, prompt, params, request_id)
    if there.of(inspect.iscoroutine)(stream):
        stream.close()
        raise AssertionError("submit_request() returned a coroutine: write it as a plain def, and do not await generate()")
    iterable = there.of(hasattr)(stream, "__aiter__")
    assert iterable, f"submit_request() returned {shown(stream)}, which `async for` cannot iterate over"
    return stream


def last_of(there, stream) -> dict:
    """What the last output of a stream says, which must be a RequestOutput."""
    outputs = there.awaited(beside.read, stream)
    assert outputs, "the stream ended without an output"
    assert there.is_a(RequestOutput, *outputs), f"the stream gave {shown(outputs)}; expected outputs, each a RequestOutput"
    return read_outputs(there, outputs[-1:])[0]


@pytest.mark.todo(3, points=4)
def test_todo_3_returns_a_stream_at_once(lab, rng, there):
    [known], engine, request_id = clear_prompts(rng, 1), scripted_async_engine(there), some_id(rng)
    last = last_of(there, submitted(lab, there, engine, known["prompt"], exactly(6), request_id))
    whose, tokens, expected = last["request_id"], last["tokens"], known["course-draft"]
    assert whose == request_id, f"the caller chose the id {request_id!r}; the outputs carry {whose!r}"
    assert tokens == expected, f"the engine given answers {known['prompt']!r} with the tokens {expected}; the stream had {tokens}"


@pytest.mark.todo(3, points=2)
def test_todo_3_changes_neither_the_prompt_nor_any_parameter(lab, rng, there):
    handed, request_id = Handed(there, saying(["word", "word word"], "of-the-engine")), some_id(rng)
    prompt = f"  {words(rng, 2)}  {words(rng, 1)}\tprogramming\n"
    params = SamplingParams(temperature=0.5, top_p=0.75, top_k=rng.randrange(5, 50), min_p=0.01, seed=rng.randrange(99),
                            max_tokens=rng.randrange(17, 30), min_tokens=2, stop=["zzz"], presence_penalty=0.25,
                            frequency_penalty=0.5, repetition_penalty=1.25, ignore_eos=True, logprobs=2)
    last_of(there, submitted(lab, there, there.lend(handed, "generate"), prompt, params.clone(), request_id))
    calls = len(handed.asked)
    assert calls == 1, f"one request is one call of the engine's generate(); it was called {calls} times"
    [(asked, used, whose)] = handed.asked
    assert asked == prompt, f"the engine should get the prompt {prompt!r}, white space included; it got {shown(asked)}"
    assert whose == request_id, f"the caller chose the id {request_id!r}; the engine got {shown(whose)}"
    assert there.is_a(SamplingParams, used), f"the engine should get the caller's parameters; it got {shown(used)}"
    used, expected = there.of(beside.params_dict)(used), beside.params_dict(params)
    differ = {name: value for name, value in used.items() if value != expected[name]}
    assert not differ, (
        f"the engine should get the caller's parameters, {({name: expected[name] for name in differ})}; it got {differ}")


@pytest.mark.todo(3, points=4)
def test_todo_3_hands_on_prompt_parameters_and_id_unchanged(lab, rng, there):
    engine = scripted_async_engine(there)
    for known in clear_prompts(rng, 2):
        prompt, count, request_id = known["prompt"], rng.randrange(2, 6), some_id(rng)
        last = last_of(there, submitted(lab, there, engine, prompt, exactly(count), request_id))
        whose, answered, tokens, expected = last["request_id"], last["prompt"], last["tokens"], known["course-draft"][:count]
        assert whose == request_id, f"the caller chose the id {request_id!r}; the output carries {shown(whose)}"
        assert answered == prompt, f"the output should be for the prompt {prompt!r}; it is for {shown(answered)}"
        assert tokens == expected, (
            f"for {prompt!r} with max_tokens={count} the engine generates the tokens {expected}; yours has {tokens}")
        reason = last["finish_reason"]
        assert reason == "length", f"the parameters allow {count} tokens, so the finish reason is 'length'; it is {reason!r}"


@pytest.mark.todo(3, points=5)
def test_todo_3_the_stream_shows_text_while_it_grows(lab, rng, there):
    [prompt], count, request_id = some_prompts(rng, 1), rng.randrange(12, 20), some_id(rng)
    handed = Handed(there, stepwise(prompt, count, request_id))
    stream, outputs = submitted(lab, there, there.lend(handed, "generate"), prompt, exactly(count), request_id), []
    for place in (1, 2, 3):
        outputs.append(there.awaited(anext, stream))
        fetched, tokens = len(handed.fetched), len(handed.fetched[-1].outputs[0].token_ids)
        assert not handed.ended and tokens < count, (
            f"your output {place} came after all {count} tokens had been generated: pass each output on as it comes")
        assert fetched == place, (
            f"when your stream gave output {place}, {fetched} outputs had been fetched from the engine: pass each one on before "
            "you ask for the next")
    outputs += there.awaited(beside.read, stream)
    expected = [(len(output.outputs[0].token_ids), output.finished) for output in handed.fetched]
    passed_on = [(len(output["tokens"]), output["finished"]) for output in read_outputs(there, outputs)]
    assert passed_on == expected, (
        f"the engine's outputs held so many tokens, and were finished or not: {expected}; yours {passed_on}. Pass on the "
        "engine's stream, do not collect it first")
    assert handed.ended, (
        "your stream ended before the engine's did: go on until the engine's stream ends by itself, because an error can come "
        "after the last output")


# TODO 4: collect


def growing(rng, count: int) -> list[str]:
    """A text of so many words, a word more each time."""
    spoken = [words(rng, 1) for _ in range(count)]
    return [" ".join(spoken[:end]) for end in range(1, count + 1)]


def assert_collected(lab, there, handed: Handed, *listener) -> None:
    """collect_output() reads to the end of the stream, and returns the last output."""
    output = there.awaited(lab.collect_output, handed.stream(), *listener)
    assert there.is_a(RequestOutput, output), f"collect_output() returned {shown(output)}; expected a RequestOutput"
    [last], names = read_outputs(there, [output]), ("request_id", "finished", "tokens", "text")
    expected = beside.output_dicts(handed.fetched[-1:])[0]
    assert last["finished"] and all(last[name] == expected[name] for name in names), (
        f"collect_output() should return the last output, {({name: expected[name] for name in names})}; it returned "
        f"{({name: last[name] for name in names})}: go on until the stream ends by itself")
    assert handed.ended, "you read the last output, but not the end of the stream: go on until the stream ends by itself"


@pytest.mark.todo(4, points=5)
def test_todo_4_reads_to_the_end(lab, rng, there):
    [known], count = clear_prompts(rng, 1, 12), rng.randrange(9, 13)
    stream = there.unawaited(scripted_async_engine(there).generate, known["prompt"], exactly(count), some_id(rng))
    output = there.awaited(lab.collect_output, stream)
    assert there.is_a(RequestOutput, output), f"collect_output() returned {shown(output)}; expected a RequestOutput"
    [last], expected = read_outputs(there, [output]), known["course-draft"][:count]
    assert last["finished"], "you returned an output before the last one: go on until the stream ends by itself"
    tokens = last["tokens"]
    assert tokens == expected, f"the stream generated the tokens {expected}; the output that you returned has {tokens}"
    assert_collected(lab, there, Handed(there, stepwise(known["prompt"], 9, some_id(rng))))


@pytest.mark.todo(4, points=4)
def test_todo_4_returns_the_whole_text_with_or_without_a_listener(lab, rng, there):
    for listener in ([], [None], [there.of(beside.as_function)(there.lend(lambda piece: None))]):
        assert_collected(lab, there, Handed(there, saying(growing(rng, rng.randrange(5, 9)), some_id(rng))), *listener)
    texts, heard = growing(rng, 4), there.kept(there.of(beside.Listener))
    assert_collected(lab, there, Handed(there, saying(texts, some_id(rng))), heard)
    pieces = list(there.look(heard))
    assert "".join(pieces) == texts[-1], (
        f"on_text should have been called with the pieces of {texts[-1]!r}, and got {pieces}. It was a callable object that "
        "counts as false: test `on_text is not None`, not `if on_text`")


def assert_heard(lab, rng, there, texts: list[str]) -> None:
    """Each new piece is passed on when it arrives: before the next output is asked for."""
    handed, heard = Handed(there, saying(texts, some_id(rng))), []
    listener = there.of(beside.as_function)(there.lend(lambda piece: heard.append((piece, len(handed.fetched)))))
    assert_collected(lab, there, handed, listener)
    expected = [(text[len(before):], place) for place, (before, text) in enumerate(itertools.pairwise(["", *texts]), start=1)
                if text != before]
    assert heard == expected, (
        f"outputs with the texts {texts}: on_text should get (piece, number of the output) {expected}; it got {shown(heard)}")


@pytest.mark.todo(4, points=4)
def test_todo_4_passes_new_text_on_as_it_arrives(lab, rng, there):
    assert_heard(lab, rng, there, growing(rng, rng.randrange(5, 12)))


@pytest.mark.todo(4, points=3)
def test_todo_4_passes_on_what_repeats_and_nothing_empty(lab, rng, there):
    assert_heard(lab, rng, there, ["", "ha", "haha", "haha", "haha!"])  # a token that is half a character adds no text
    again = words(rng, 1)
    texts = ["", again, again, again * 2, f"{again * 2}!", f"{again * 2}!{again * 2}!"]
    for place in sorted(rng.sample(range(1, len(texts)), 2), reverse=True):
        texts.insert(place, texts[place])
    assert_heard(lab, rng, there, texts)
    assert_heard(lab, rng, there, [""] * rng.randrange(1, 4))


@pytest.mark.todo(4, points=4)
@pytest.mark.parametrize("error", [EngineError, asyncio.CancelledError])
@pytest.mark.parametrize("when", ["at once", "in the middle", "after the last output"])
def test_todo_4_lets_an_error_through_whenever_it_comes(lab, rng, there, when, error):
    count, text = 0 if when == "at once" else rng.randrange(1, 5), f"the engine lost its {words(rng, 2)}"
    outputs = list(saying(growing(rng, count + (when == "in the middle")), some_id(rng)))[:count]
    handed = Handed(there, iter([*outputs, there.of(error)(text)]))
    message = refusal(error.__name__, lambda: there.awaited(lab.collect_output, handed.stream()),
                      f"the stream raised it after {count} outputs, {when}, and collect_output() should raise it too")
    assert message == text, f"the stream raised {text!r}; what you raised says {message!r}"


# TODO 5: many at once


def served(lab, there, engine, prompts, params: SamplingParams) -> list[dict]:
    """What the outputs say that serve_many() returns, one for each prompt."""
    outputs = there.awaited(lab.serve_many, engine, prompts, params)
    assert isinstance(outputs, list | tuple), (
        f"serve_many() returned {shown(outputs)}, not a list of outputs: do you await asyncio.gather()?")
    count = len(prompts)
    assert len(outputs) == count, f"{count} prompts should give {count} outputs, equal prompts one each; they gave {len(outputs)}"
    assert there.is_a(RequestOutput, *outputs), f"serve_many() returned {shown(outputs)}; expected outputs, each a RequestOutput"
    return read_outputs(there, outputs)


@pytest.mark.todo(5, points=8)
@pytest.mark.parametrize("count", [6, 40])
def test_todo_5_the_requests_share_one_step(lab, rng, there, count):
    spare_memory(there)
    prompts = some_prompts(rng, count // 2) * 2
    rng.shuffle(prompts)
    ledger = PatientLedger(rng, count)
    params = exactly(rng.randrange(20, 30) if count == 6 else rng.randrange(8, 12))
    outputs = served(lab, there, scripted_async_engine(there, ledger), tuple(prompts), params)
    most, ids = ledger.most, [output["request_id"] for output in outputs]
    assert most == count, (
        f"at most {most} of the {count} requests were ever computed in one step of this engine. Each was awaited before the next "
        "was submitted, or another engine was used: start them all, then wait for all.")
    assert len(set(ids)) == count, f"{count} requests need {count} ids; they had {sorted(ids)}"
    assert_served(ledger, outputs, prompts)


@pytest.mark.todo(5, points=2)
def test_todo_5_takes_each_id_from_new_request_id(lab, rng, there):
    engine, ids = scripted_async_engine(there), []
    for count in rng.sample(range(2, 5), 2):
        prompts = some_prompts(rng, count)
        ids += [output["request_id"] for output in served(lab, there, engine, [*prompts, prompts[0]], exactly(2))]
    assert_ids(ids)
    assert repeated(ids) == 0, f"serve_many() was called twice, and {repeated(ids)} ids came again: {ids}"
    first, made = rng.randrange(10**6), []

    def make() -> str:
        made.append(f"req-made-{first + len(made)}")
        return made[-1]

    there.put(lab, "new_request_id", make)
    used = sorted(output["request_id"] for output in served(lab, there, engine, [A, B, A], exactly(2)))
    expected = sorted(made)
    assert used == expected, f"the requests should have the ids that new_request_id() returned, {expected}; they had {used}"


@pytest.mark.todo(5, points=4)
def test_todo_5_returns_outputs_in_the_order_of_the_prompts(lab, rng, there):
    prompts = some_prompts(rng, 5)
    lengths = [30, *rng.sample([3, 8, 13, 18], 4)]
    answers = {tuple(tokenizer().encode(prompt)): [rng.randrange(300, 2000) for _ in range(length)]
               for prompt, length in zip(prompts, lengths, strict=True)}
    ledger = PatientLedger(rng, len(prompts), script=lambda prompt, params: answers.get(tuple(prompt), []))
    outputs = served(lab, there, scripted_async_engine(there, ledger), prompts, SamplingParams(temperature=0.0, max_tokens=64))
    order = [output["prompt"] for output in outputs]
    assert order == prompts, f"the first of the prompts {prompts} was answered last; the outputs came in the order {shown(order)}"
    finished = [output["finished"] for output in outputs]
    assert all(finished), f"each output should be its stream's last, and finished; finished are {finished}"
    assert_served(ledger, outputs, prompts)
    nobody = there.awaited(lab.serve_many, scripted_async_engine(there), [], exactly(2))
    assert isinstance(nobody, list | tuple) and not nobody, (
        f"for no prompts serve_many() should return an empty list; it returned {shown(nobody)}")


@pytest.mark.todo(5, points=4)
@pytest.mark.parametrize("place", [0, 1, 2, 7], ids=["first", "second", "third", "last of eight"])
def test_todo_5_the_error_of_one_request_reaches_the_caller(lab, rng, there, place):
    prompts = some_prompts(rng, 3 if place < 3 else 8)
    prompts[place] = ""
    engine = scripted_async_engine(there)
    try:
        refusal("InvalidParametersError", lambda: there.awaited(lab.serve_many, engine, prompts, exactly(3)),
                f"the engine refuses the empty prompt among {prompts}")
    except BaseException as error:
        if "BaseExceptionGroup" not in kinds_of(error):
            raise
        raise AssertionError(
            f"the request's own error should reach the caller, not an exception group ({error}): a TaskGroup wraps errors, "
            "gather() does not") from error


class Losing:
    """An engine of the test's: of its requests the one at `place`, from 0, is cancelled after `count` outputs."""

    def __init__(self, there, place: int, count: int) -> None:
        self._there, self._place, self._count, self._asked = there, place, count, 0

    def generate(self, prompt, sampling_params, request_id):
        """What an engine's method of this name returns."""
        self._asked += 1
        if self._asked != self._place + 1:
            return Handed(self._there, saying(["a word"], request_id)).stream()
        outputs = list(saying(["word"] * (self._count + 1), request_id))[:-1]
        cancelled = self._there.of(asyncio.CancelledError)("the request was cancelled")
        return Handed(self._there, iter([*outputs, cancelled])).stream()


@pytest.mark.todo(5, points=1)
def test_todo_5_a_request_that_is_cancelled_is_no_output(lab, rng, there):
    for count in (0, rng.randrange(1, 4)):
        engine, prompts = there.lend(Losing(there, rng.randrange(3), count), "generate"), some_prompts(rng, 3)
        refusal("CancelledError",
                lambda engine=engine, prompts=prompts: there.awaited(lab.serve_many, engine, prompts, exactly(3)),
                f"one of three requests was cancelled after {count} outputs, and asyncio.CancelledError, which is no Exception, "
                "should reach the caller")


class WatchfulLedger(PatientLedger):
    """Looks before each step whether other work on the event loop got a turn since the last one, and waits for it a while.

    Attributes:
        free: steps between which it did.
    """

    def __init__(self, rng, neighbour, seconds: float = 5.0) -> None:
        super().__init__(rng, 1)
        self._neighbour, self._turns, self._left = neighbour, 0, seconds
        self.free = 0

    def choose(self, rows: list[dict]) -> list[int]:
        """Waits for the neighbour's turn, `seconds` in all, then chooses as every ledger."""
        while (turns := self._neighbour.turns) <= self._turns and self._left > 0:
            time.sleep(0.005)
            self._left -= 0.005
        self.free += turns > self._turns
        self._turns = turns
        return super().choose(rows)


@pytest.mark.todo(5, points=4)
def test_todo_5_leaves_the_event_loop_free(lab, rng, there):
    neighbour = there.of(beside.Neighbour)()
    ledger, prompts = WatchfulLedger(rng, neighbour), some_prompts(rng, 2)
    outputs = there.awaited(neighbour.beside, lab.serve_many, scripted_async_engine(there, ledger), prompts, exactly(24))
    assert isinstance(outputs, list | tuple) and len(outputs) == 2, f"2 prompts should give 2 outputs, and gave {shown(outputs)}"
    free, steps = ledger.free, len(ledger.steps)
    assert free >= 5, f"of {steps} steps, {free} came after other work on the event loop had got a turn: something blocks it"
    there.nothing_replaced("turns")
    sleeps = neighbour.sleeps
    assert sleeps == 0, f"time.sleep() was called {sleeps} times on the event loop: it stops every request; await asyncio.sleep()"


@pytest.mark.todo(5, points=4)
def test_todo_5_the_whole_program_prints_what_the_readme_shows(lab, rng, there):
    answer, loads = f"{words(rng, 9)}, {words(rng, 5)}.", []
    ledger = PatientLedger(rng, 1, script=lambda prompt, params: tokenizer().encode(f" {answer}"))

    async def create(model="course", max_num_seqs=16):
        loads.append(scripted_async_engine(there, ledger, max_num_seqs))
        return loads[-1]

    there.put(lab, "create_engine", create)
    printed = there.printed(lambda: there.awaited(lab.main))
    shape = (
        r"=== vLLM Async Online Serving Lab ===\n\n"
        r"Initializing AsyncLLMEngine\.\.\.\nEngine initialized successfully!\n\n"
        rf"Processing single request\.\.\.\nRequest ID: ({ID})\n"
        rf"Prompt: {PROMPT}\nGenerated: {re.escape(answer)}\n\n"
        r"Processing concurrent requests\.\.\.\n"
        rf"Request 1 \(({ID})\): Complete\nRequest 2 \(({ID})\): Complete\nRequest 3 \(({ID})\): Complete\n\n"
        r"All 3 requests completed in \d+\.\d\d seconds\nThroughput: \d+\.\d\d requests/second\n\n"
        r"The same 3 prompts in three ways\n"
        r"  one after the other +\d+\.\d\d seconds, 1\.00 tokens a step\n"
        r"  at the same time +\d+\.\d\d seconds, [123]\.\d\d tokens a step\n"
        r"  at the same time, max_num_seqs=1 +\d+\.\d\d seconds, 1\.00 tokens a step\n")
    fits = re.fullmatch(shape, printed)
    assert fits is not None, (
        f"with a model that always says {answer!r}, the output should look like Expected Output in README.md; it is:\n{printed}")
    ids, counts = fits.groups(), (len(loads), len(ledger.requests))
    assert len(set(ids)) == 4, f"two of the four requests had the same id: {ids}"
    assert counts == (2, 13), f"main() makes 2 engines and 13 requests to them; it made {counts[0]}, and {counts[1]}"


# Going Further: no points. Tests yours if starter.py has a function of that name.


@pytest.fixture(scope="module")
def engine():
    """One real engine for all tests of this section."""
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="course"))
    yield engine
    engine.shutdown()


async def ours(engine, prompt, params, request_id="ours") -> list[RequestOutput]:
    """All outputs of one request, read by the test itself."""
    return [output async for output in engine.generate(prompt, params, request_id)]


async def within(seconds, awaitable, hint):
    """What `awaitable` returns, or a failure that says why it may be hanging."""
    try:
        return await asyncio.wait_for(awaitable, seconds)
    except TimeoutError:
        pytest.fail(f"nothing came back within {seconds} seconds. {hint}", pytrace=False)


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
    reasons = output.outputs[0].finish_reason, (await neighbour)[-1].outputs[0].finish_reason
    assert reasons == ("abort", "length"), (
        f"the request that was cancelled should end with 'abort', and its neighbour with 'length'; they ended with {reasons}")


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
    reason = output.outputs[0].finish_reason
    assert reason == "abort", f"a request that was cancelled ends with 'abort'; this one ended with {reason!r}"


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
        last = [output async for output in busy][-1]
        assert last.finished, f"the request that ran before the others should run to its end; it has {shown(last)}"
    finally:
        engine.shutdown()
    order = [output.prompt for output in outputs]
    assert order == [A, B, C], f"the outputs should be in the order of the jobs, {[A, B, C]}; they are in the order {order}"
    begun = [output.prompt for output in sorted(outputs, key=lambda output: output.metrics.first_token_ts)]
    assert begun == [B, C, A], f"by priority the requests are served in the order {[B, C, A]}; they were in the order {begun}"


@pytest.mark.optional
async def test_optional_3_a_timeout_returns_what_there_is(extra, engine):
    serve = extra("serve_within")
    output = await within(30, serve(engine, A, exactly(2000), 0.1), "Was timeout= handed to generate()?")
    used = 0 if output is None else len(output.outputs[0].token_ids)
    assert used < 2000, f"0.1 seconds are not enough for 2000 tokens, and the output has {used}: is timeout= handed on?"
    output = await serve(engine, A, exactly(2), 60.0)
    assert output.finished, f"60 seconds are enough for 2 tokens; the output is not finished: {shown(output)}"


@pytest.mark.optional
async def test_optional_4_a_web_service_answers_streams_and_refuses(extra, engine):
    httpx = pytest.importorskip("httpx")
    transport = httpx.ASGITransport(app=extra("create_app")(engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://lab") as client:
        answer = (await client.post("/generate", json={"prompt": PROMPT, "max_tokens": 6})).json()
        streamed = await client.post("/generate", json={"prompt": PROMPT, "max_tokens": 6, "stream": True})
        refused = await client.post("/generate", json={"prompt": "", "max_tokens": 6})
    assert answer["text"] and answer["request_id"].startswith("req-"), f"expected a text, and an id like 'req-1'; got {answer}"
    assert streamed.text == answer["text"], f"streamed, the text should be the same, {answer['text']!r}; it is {streamed.text!r}"
    status, detail = refused.status_code, refused.json()["detail"]
    assert status == 400 and "prompt" in detail, (
        f"an empty prompt should be answered with 400 and what is wrong with the prompt; it was with {status}, {detail!r}")


@pytest.mark.optional
async def test_optional_5_queue_depths_and_times_can_be_read(extra):
    depths, times = extra("queue_depths"), extra("times")
    recorder = Recorder()
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="course-draft", max_num_seqs=1), recorder=recorder)
    try:
        outputs = await asyncio.gather(*(ours(engine, prompt, exactly(64), prompt) for prompt in (A, B, C)))
    finally:
        engine.shutdown()
    most = [max(depth) for depth in zip(*depths(recorder.steps), strict=True)]
    assert most[0] == 1 and most[1] >= 1, (
        f"with max_num_seqs=1 one request runs and others wait; at most {most[0]} ran and {most[1]} waited")
    slowest = max((times(each[-1]) for each in outputs), key=lambda seconds: seconds["total"])
    assert 0 <= slowest["waiting"] <= slowest["to_first_token"] <= slowest["total"], (
        f"waiting, to_first_token and total all count from the request's arrival, so none is below the one before; got {slowest}"
    )
    assert slowest["total"] == pytest.approx(slowest["to_first_token"] + slowest["generating"]), (
        f"total should be to_first_token and generating together; got {slowest}")


if __name__ == "__main__":
    raise SystemExit("These are tests. Run them with: pytest test_lab.py")
