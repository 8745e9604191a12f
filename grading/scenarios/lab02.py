"""Lab 02: an engine beside the submission whose tokens the judge chooses, and streams whose outputs it hands out.

The sampler of the engine is the judge's, so each step comes by here: who shared it is what the judge saw
(`engines.py`). While such an engine runs, its thread is the only one that talks to the judge.
"""

import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from grading.checks import Wrong, check, expect, ours, refusal, shown
from grading.scenarios.engines import (
    SMALL,
    PatientLedger,
    as_it_is,
    clear_prompts,
    components_of,
    exactly,
    expect_served,
    is_a,
    judges_llm,
    some_prompts,
    spare_memory,
    stdout_of,
    text_of,
    tokenizer,
    tokens_of,
    words,
)
from grading.worker.peer import Remote
from nano_qwen3_serving import LLM, RequestOutput, SamplingParams

ID = r"req-[0-9A-Za-z-]{4,}"


def parts(lab: Remote) -> Remote:
    """What `grading/worker/parts.py` has, there."""
    return lab._peer.root.package("worker.parts")


def engine_beside(lab: Remote, ledger: PatientLedger | None = None) -> Remote:
    """An `AsyncLLMEngine` beside the submission; with a ledger, its sampler is that."""
    package = lab._peer.root.package("nano_qwen3_serving")
    components = None if ledger is None else components_of(lab, ledger)
    return package.AsyncLLMEngine.from_engine_args(package.AsyncEngineArgs(model="course-draft", **SMALL), components=components)


def all_outputs(lab: Remote, *streams: Remote) -> list[list[Remote]]:
    """The outputs of streams that are read at the same time."""
    return parts(lab).all_at_once(list(streams))


def listener(lab: Remote, heard: Callable[[str], None]) -> Remote:
    """A function there whose calls come by here."""
    return parts(lab).as_function(ours(heard))


def expect_output(output: Any, lab: Remote, what: str) -> None:
    expect(is_a(lab, output, "nano_qwen3_serving", "RequestOutput"), f"{what} is {shown(output)}; expected a RequestOutput")


# TODO 1

CREATE = "TODO 1: Initialize AsyncLLMEngine"


def created(lab: Remote, *arguments: Any, **named: Any) -> Remote:
    """What create_engine() returns, which must be an engine."""
    spare_memory(lab)
    engine = lab.create_engine(*arguments, **named)
    expect(is_a(lab, engine, "nano_qwen3_serving", "AsyncLLMEngine"),
           f"create_engine() returned {shown(engine)}; expected an AsyncLLMEngine")
    return engine


def expect_model(lab: Remote, engine: Remote, model: str, dice: random.Random) -> None:
    """The tokens that an engine generates are those of this model."""
    for known in clear_prompts(dice, 2):
        last = engine.generate(known["prompt"], exactly(6), f"req-{dice.randrange(10**6)}")[-1]
        expect(last.finished, "the engine's last output says that it is not finished")
        expect(tokens_of(last) == known[model],
               f"an engine that serves {model!r} answers {known['prompt']!r} with the tokens {known[model]}; "
               f"this one answered with {shown(tokens_of(last))}")


@check(todo=1, points=5, section=CREATE, concept="an engine that answers")
def creates_an_engine_that_answers(lab: Remote, dice: random.Random) -> None:
    expect_model(lab, created(lab), "course", dice)


@check(todo=1, points=4, section=CREATE, concept="how many requests run at once")
def hands_on_how_many_requests_may_run_at_once(lab: Remote, dice: random.Random) -> None:
    most = dice.randrange(1, 4)
    engine, ledger = created(lab, "course-draft", max_num_seqs=most), PatientLedger(dice, most)
    engine.engine.model_runner.sampler = parts(lab).asking_sampler(ours(ledger.choose))(None)
    prompts = some_prompts(dice, 5)
    streams = [as_it_is(lab, engine.generate, prompt, exactly(12), f"req-{place}") for place, prompt in enumerate(prompts)]
    outputs = [every[-1] for every in all_outputs(lab, *streams)]
    expect_served(ledger, outputs, prompts)
    expect(ledger.most == most,
           f"with max_num_seqs={most}, of 5 requests at most {most} run at once, and {most} do; here at most {ledger.most} "
           "shared a step")


@check(todo=1, points=2, section=CREATE, concept="a model that is not there")
def lets_the_error_of_a_wrong_model_through(lab: Remote, dice: random.Random) -> None:
    spare_memory(lab)
    name = f"/no/such/model/{dice.randrange(10**6)}"
    refusal("ModelLoadError", lambda: lab.create_engine(name),
            f"there is no model {name!r}, and the engine's own error has to come through")


@check(todo=1, points=4, section=CREATE, concept="which model is served", hidden=True)
def serves_the_model_that_was_asked_for(lab: Remote, dice: random.Random) -> None:
    for model in dice.sample(["course", "course-draft"], 2):
        expect_model(lab, created(lab, model, max_num_seqs=dice.randrange(2, 9)), model, dice)


# TODO 2

IDS = "TODO 2: Generate Request ID"


def ids_of(lab: Remote, count: int) -> list[str]:
    """What so many calls return."""
    package = lab._peer.root.package
    calls = package("itertools").repeat((), count)
    return package("builtins").list(package("itertools").starmap(lab.new_request_id, calls))


def expect_ids(ids: list[Any]) -> None:
    for one in ids:
        expect(isinstance(one, str) and re.fullmatch(ID, one) is not None,
               f"{shown(one)} is not 'req-' followed by at least four letters, digits or hyphens")


def repeated(ids: list[Any]) -> int:
    return len(ids) - len(set(map(str, ids)))


@check(todo=2, points=4, section=IDS, concept="how an id looks")
def ids_look_like_ids(lab: Remote, dice: random.Random) -> None:
    expect_ids([lab.new_request_id() for _ in range(3)])


@check(todo=2, points=6, section=IDS, concept="ids that never come again")
def ten_thousand_calls_give_ten_thousand_ids(lab: Remote, dice: random.Random) -> None:
    """Of random ids of 48 bits two are the same once in five million times, so who repeats himself is asked again."""
    count = dice.randrange(10_100, 11_000)
    again = repeated(ids_of(lab, count)) and repeated(ids_of(lab, count))
    expect(not again, f"twice {count} calls were made, and each time ids came again, {again} the second time. "
           "Four random digits repeat after about a hundred calls; the clock stands still between two of them.")


@check(todo=2, points=1, section=IDS, concept="how an id looks, later", hidden=True)
def ids_look_like_ids_after_many_calls(lab: Remote, dice: random.Random) -> None:
    expect_ids(ids_of(lab, dice.randrange(1100, 1200))[-50:])


@check(todo=2, points=4, section=IDS, concept="who may ask for an id", hidden=True)
def threads_never_get_the_same_id(lab: Remote, dice: random.Random) -> None:
    each = dice.randrange(110, 130)
    ids = [one for mine in parts(lab).called_by_threads(lab.new_request_id, lab_file(lab), 4, each) for one in mine]
    expect(len(ids) == 4 * each and repeated(ids) == 0,
           f"4 threads asked for {each} ids each and got {len(set(map(str, ids)))} different ones. "
           "Between reading a counter and raising it, another thread may read it too.")


def lab_file(lab: Remote) -> str:
    """Where the submission's code says that it is from."""
    return lab._peer.root.package("builtins").getattr(lab, "__file__")


# TODO 3

SUBMIT = "TODO 3: Submit Async Request"


def submitted(lab: Remote, engine: Any, prompt: str, params: SamplingParams, request_id: str) -> Remote:
    """What submit_request() returns, which must be a stream."""
    stream, package = as_it_is(lab, lab.submit_request, engine, prompt, params, request_id), lab._peer.root.package
    awaited = isinstance(stream, Remote) and package("inspect").iscoroutine(stream)
    expect(not awaited, "submit_request() returned a coroutine: it is a plain def, and generate() is not awaited")
    iterable = isinstance(stream, Remote) and package("builtins").hasattr(stream, "__aiter__")
    expect(iterable, f"submit_request() returned {shown(stream)}, which `async for` cannot iterate over")
    return stream


@check(todo=3, points=5, section=SUBMIT, concept="a stream comes back")
def returns_a_stream_at_once(lab: Remote, dice: random.Random) -> None:
    [known], request_id = clear_prompts(dice, 1), f"req-{dice.randrange(10**6)}"
    [outputs] = all_outputs(lab, submitted(lab, engine_beside(lab), known["prompt"], exactly(6), request_id))
    expect(bool(outputs), "the stream ended without an output")
    expect_output(outputs[-1], lab, "what the stream gave")
    expect(tokens_of(outputs[-1]) == known["course-draft"],
           f"the engine given answers {known['prompt']!r} with {known['course-draft']}; the stream had "
           f"{shown(tokens_of(outputs[-1]))}")


@check(todo=3, points=3, section=SUBMIT, concept="prompt, parameters and id arrive")
def hands_on_prompt_parameters_and_id_unchanged(lab: Remote, dice: random.Random) -> None:
    engine = engine_beside(lab)
    for known in clear_prompts(dice, 2):
        count, request_id = dice.randrange(2, 6), f"{words(dice, 1)}-{dice.randrange(10**6)}"
        [outputs] = all_outputs(lab, submitted(lab, engine, known["prompt"], exactly(count), request_id))
        last = outputs[-1]
        expect(last.request_id == request_id,
               f"the output must carry the id that the caller chose, {request_id!r}; it carries {shown(last.request_id)}")
        expect(last.prompt == known["prompt"],
               f"the prompt was {known['prompt']!r}, and the output is of {shown(last.prompt)}")
        expect(tokens_of(last) == known["course-draft"][:count],
               f"{known['prompt']!r} with max_tokens={count} has the tokens {known['course-draft'][:count]}; "
               f"there came {shown(tokens_of(last))}")


@check(todo=3, points=2, section=SUBMIT, concept="whose parameters are used", hidden=True)
def hands_on_every_parameter(lab: Remote, dice: random.Random) -> None:
    ledger = PatientLedger(dice, 1)
    given = SamplingParams(temperature=0.5, top_p=0.75, top_k=dice.randrange(5, 50), seed=dice.randrange(99),
                           max_tokens=dice.randrange(17, 30), ignore_eos=True)
    [prompt] = some_prompts(dice, 1)
    [outputs] = all_outputs(lab, submitted(lab, engine_beside(lab, ledger), prompt, given, "req-parameters"))
    used, names = (ledger.requests[0].params if ledger.requests else {},
                   ("temperature", "top_p", "top_k", "seed", "max_tokens", "ignore_eos"))
    wrong = {name: used.get(name) for name in names if used.get(name) != getattr(given, name)}
    expect(not wrong,
           f"the parameters given are {({name: getattr(given, name) for name in names})}; the engine was asked for {wrong}")
    expect(len(tokens_of(outputs[-1])) == given.max_tokens,
           f"{given.max_tokens} tokens were asked for; there came {len(tokens_of(outputs[-1]))}")


class Handed:
    """A stream of an engine of the judge's, which takes a step when its next output is wanted.

    Attributes:
        outputs: those that were handed out.
        ended: whether somebody asked for one more.
    """

    def __init__(self, lab: Remote, outputs: Iterator[Any]) -> None:
        self._lab, self._outputs = lab, outputs
        self.outputs: list[Any] = []
        self.ended = False

    def next(self) -> Any:
        output = next(self._outputs, None)
        if output is None:
            self.ended = True
        else:
            self.outputs.append(output)
        return output

    def generate(self, prompt: str, sampling_params: Any, request_id: str, **more: Any) -> Remote:
        """What an engine's method of this name returns."""
        return self.stream()

    def stream(self) -> Remote:
        """The stream, there."""
        return as_it_is(self._lab, parts(self._lab).handed_out, ours(self.next))


def stepwise(prompt: str, num_tokens: int, request_id: str) -> Iterator[RequestOutput]:
    """The outputs of an engine, computed as they are read."""
    engine = LLM("course-draft", **SMALL).llm_engine
    engine.add_request(request_id, prompt, exactly(num_tokens))
    while engine.has_unfinished_requests():
        yield from engine.step()


@check(todo=3, points=5, section=SUBMIT, concept="text while it grows")
def the_stream_shows_text_while_it_grows(lab: Remote, dice: random.Random) -> None:
    [prompt], count = some_prompts(dice, 1), dice.randrange(25, 40)
    handed = Handed(lab, stepwise(prompt, count, "req-growing"))
    stream = submitted(lab, ours(handed, "generate"), prompt, exactly(count), "req-growing")
    first = lab._peer.root.package("builtins").anext(stream)
    expect(not handed.ended and len(tokens_of(handed.outputs[-1])) < count,
           f"the first output came when all {count} tokens were there: hand each output on as it comes")
    counts = [len(tokens_of(output)) for output in [first, *all_outputs(lab, stream)[0]]]
    right = [len(tokens_of(output)) for output in handed.outputs]
    expect(counts == right,
           f"the engine's outputs held {right} tokens; those of the stream {counts}: hand on the engine's stream, do not "
           "collect it first")


# TODO 4

COLLECT = "TODO 4: Process Async Results"


def saying(texts: list[str], request_id: str) -> Iterator[RequestOutput]:
    """Outputs with these texts, the last one finished; a real one's otherwise."""
    for place, text in enumerate(texts, start=1):
        [output] = judges_llm().generate("?", exactly(place), use_tqdm=False)
        output.request_id, output.finished, output.outputs[0].text = request_id, place == len(texts), text
        if not output.finished:
            output.outputs[0].finish_reason = None
        yield output


def growing(dice: random.Random, count: int) -> list[str]:
    """A text of so many words, a word more each time."""
    each = [words(dice, 1) for _ in range(count)]
    return [" ".join(each[:end]) for end in range(1, count + 1)]


def collected(lab: Remote, handed: Handed, *heard: Any) -> Remote:
    """What collect_output() returns, which must be the last output."""
    output = lab.collect_output(handed.stream(), *heard)
    expect_output(output, lab, "what collect_output() returned")
    last = handed.outputs[-1]
    found = (output.request_id, output.finished, tokens_of(output), text_of(output))
    right = (last.request_id, True, tokens_of(last), text_of(last))
    expect(last.finished and found == right,
           f"the last output of the stream says (id, finished, tokens, text) {right}, all text so far; what came back says "
           f"{shown(found)}")
    return output


@check(todo=4, points=5, section=COLLECT, concept="to the end of the stream")
def reads_to_the_end(lab: Remote, dice: random.Random) -> None:
    [known], count = clear_prompts(dice, 1, 12), dice.randrange(9, 13)
    output = lab.collect_output(as_it_is(lab, engine_beside(lab).generate, known["prompt"], exactly(count), "req-end"))
    expect_output(output, lab, "what collect_output() returned")
    expect(output.finished, "this is not the last output: go on until the stream ends by itself")
    expect(tokens_of(output) == known["course-draft"][:count],
           f"the engine generated {known['course-draft'][:count]}; the output has {shown(tokens_of(output))}")


@check(todo=4, points=4, section=COLLECT, concept="with a listener and without")
def returns_the_whole_text_with_or_without_a_listener(lab: Remote, dice: random.Random) -> None:
    for given in ([], [None], [listener(lab, lambda piece: None)]):
        [prompt], count = some_prompts(dice, 1), dice.randrange(8, 20)
        collected(lab, Handed(lab, stepwise(prompt, count, f"req-{count}")), *given)


def expect_heard(lab: Remote, texts: list[str]) -> None:
    """Each new piece is passed on when it arrives: before the next output is asked for."""
    handed, heard = Handed(lab, saying(texts, "req-heard")), []
    collected(lab, handed, listener(lab, lambda piece: heard.append((piece, len(handed.outputs)))))
    before, right = "", []
    for place, text in enumerate(texts, start=1):
        right += [(text[len(before) :], place)] if text != before else []
        before = text
    expect(heard == right,
           f"the outputs' texts were {texts}; on_text should get (piece, number of the output) {right}, and got "
           f"{shown(heard)}")


@check(todo=4, points=4, section=COLLECT, concept="new text as it arrives")
def passes_new_text_on_as_it_arrives(lab: Remote, dice: random.Random) -> None:
    expect_heard(lab, growing(dice, dice.randrange(5, 12)))


@check(todo=4, points=3, section=COLLECT, concept="what is new in a text", hidden=True)
def passes_on_what_repeats_and_nothing_empty(lab: Remote, dice: random.Random) -> None:
    again = words(dice, 1)
    texts = ["", again, again, again * 2, again * 2, f"{again * 2}!", f"{again * 2}!{again * 2}!"]
    for place in sorted(dice.sample(range(1, len(texts)), 2), reverse=True):
        texts.insert(place, texts[place])
    expect_heard(lab, texts)


@check(todo=4, points=4, section=COLLECT, concept="an error in the middle", hidden=True)
def lets_an_error_in_the_middle_through(lab: Remote, dice: random.Random) -> None:
    text, texts = f"the engine lost its {words(dice, 2)}", growing(dice, dice.randrange(2, 6))
    error = lab._peer.root.package("nano_qwen3_serving.exceptions").EngineError(text)
    handed = Handed(lab, iter([*list(saying([*texts, "never"], "req-error"))[:-1], error]))
    said = refusal("EngineError", lambda: lab.collect_output(handed.stream()), f"after {len(texts)} outputs the stream raised it")
    expect(said == text, f"the stream raised an error that says {text!r}; what reached the caller says {said!r}")


# TODO 5

MANY = "TODO 5: Handle Multiple Concurrent Requests"


def served(lab: Remote, engine: Remote, prompts: list[str], params: SamplingParams) -> list[Remote]:
    """What serve_many() returns, which must be an output for each prompt."""
    outputs = lab.serve_many(engine, prompts, params)
    expect(isinstance(outputs, list | tuple),
           f"serve_many() returned {shown(outputs)}, not a list of outputs: is asyncio.gather() awaited?")
    expect(len(outputs) == len(prompts),
           f"{len(prompts)} prompts gave {len(outputs)} outputs; the same prompt twice is two requests")
    for output in outputs:
        expect_output(output, lab, "one of the outputs")
    return list(outputs)


@check(todo=5, points=5, section=MANY, concept="requests that share steps")
def the_requests_share_one_step(lab: Remote, dice: random.Random) -> None:
    spare_memory(lab)
    prompts = some_prompts(dice, 3) * 2
    dice.shuffle(prompts)
    ledger = PatientLedger(dice, len(prompts))
    outputs = served(lab, engine_beside(lab, ledger), prompts, exactly(dice.randrange(20, 30)))
    expect(ledger.most == 6,
           f"at most {ledger.most} of the 6 requests were ever computed in one step of this engine. Each was awaited before "
           "the next was submitted, or another engine was used: start them all, then wait for all.")
    expect_served(ledger, outputs, prompts)


@check(todo=5, points=2, section=MANY, concept="whose id is whose", hidden=True)
def every_request_has_an_id_of_its_own(lab: Remote, dice: random.Random) -> None:
    engine, ids = engine_beside(lab), []
    for count in dice.sample(range(2, 6), 2):
        prompts = some_prompts(dice, count)
        ids += [output.request_id for output in served(lab, engine, [*prompts, prompts[0]], exactly(3))]
    expect_ids(ids)
    expect(repeated(ids) == 0,
           f"serve_many() was called twice, for {len(ids)} prompts altogether; the ids were {ids}: take each from "
           "new_request_id()")


@check(todo=5, points=3, section=MANY, concept="in which order outputs come")
def returns_outputs_in_the_order_of_the_prompts(lab: Remote, dice: random.Random) -> None:
    prompts = some_prompts(dice, 5)
    lengths = dict(zip(prompts, [30, *dice.sample([3, 8, 13, 18], 4)], strict=True))
    answers = {tuple(tokenizer().encode(prompt)): [dice.randrange(300, 2000) for _ in range(lengths[prompt])]
               for prompt in prompts}
    ledger = PatientLedger(dice, len(prompts), script=lambda prompt, params: answers.get(tuple(prompt), []))
    outputs = served(lab, engine_beside(lab, ledger), prompts, SamplingParams(temperature=0.0, max_tokens=64))
    found = [output.prompt for output in outputs]
    expect(found == prompts,
           f"the prompts were {prompts}, and the first of them was answered last; the outputs came in the order "
           f"{shown(found)}")
    expect_served(ledger, outputs, prompts)
    expect(all(output.finished for output in outputs), "an output that came back is not finished")


@check(todo=5, points=3, section=MANY, concept="a request that fails", hidden=True)
def the_error_of_one_request_reaches_the_caller(lab: Remote, dice: random.Random) -> None:
    engine, prompts = engine_beside(lab), some_prompts(dice, 3)
    prompts[dice.randrange(3)] = ""
    refusal("InvalidParametersError", lambda: lab.serve_many(engine, prompts, exactly(3)),
            f"the engine refuses the empty prompt among {prompts}")


class WatchfulLedger(PatientLedger):
    """Looks before each step whether other work on the event loop got a turn since the last one, and waits for it a while.

    Attributes:
        free: steps between which it did.
    """

    def __init__(self, dice: random.Random, neighbour: Remote, seconds: float = 5.0) -> None:
        super().__init__(dice, 1)
        self._neighbour, self._turns, self._left = neighbour, 0, seconds
        self.free = 0

    def choose(self, rows: list[dict]) -> list[int]:
        while (turns := self._neighbour.turns) <= self._turns and self._left > 0:
            time.sleep(0.005)
            self._left -= 0.005
        self.free += turns > self._turns
        self._turns = turns
        return super().choose(rows)


@check(todo=5, points=3, section=MANY, concept="what else runs on the event loop", hidden=True)
def leaves_the_event_loop_free(lab: Remote, dice: random.Random) -> None:
    neighbour = parts(lab).Neighbour()
    ledger, prompts = WatchfulLedger(dice, neighbour), some_prompts(dice, 2)
    outputs = neighbour.beside(lab.serve_many, engine_beside(lab, ledger), prompts, exactly(24))
    expect(isinstance(outputs, list | tuple) and len(outputs) == 2, f"serve_many() returned {shown(outputs)}")
    expect(ledger.free >= 5,
           f"while {len(ledger.steps)} steps were taken, other work on the event loop got a turn before {ledger.free} of "
           "them: something blocks it")
    expect(neighbour.sleeps == 0,
           f"time.sleep() was called {neighbour.sleeps} times on the event loop, which stops every request: await "
           "asyncio.sleep() instead")


@check(todo=5, points=4, section=MANY, concept="the whole program")
def the_whole_program_prints_what_the_readme_shows(lab: Remote, dice: random.Random) -> None:
    answer, loads = f"{words(dice, 9)}, {words(dice, 5)}.", []
    ledger = PatientLedger(dice, 1, script=lambda prompt, params: tokenizer().encode(f" {answer}"))

    def create() -> Remote:
        loads.append(engine_beside(lab, ledger))
        return loads[-1]

    lab.create_engine = parts(lab).as_coroutine(ours(create))
    said = stdout_of(lab, lambda: lab.main())
    shape = (
        r"=== vLLM Async Online Serving Lab ===\n\n"
        r"Initializing AsyncLLMEngine\.\.\.\nEngine initialized successfully!\n\n"
        rf"Processing single request\.\.\.\nRequest ID: ({ID})\n"
        rf"Prompt: Explain async programming in Python\nGenerated: {re.escape(answer)}\n\n"
        r"Processing concurrent requests\.\.\.\n"
        rf"Request 1 \(({ID})\): Complete\nRequest 2 \(({ID})\): Complete\nRequest 3 \(({ID})\): Complete\n\n"
        r"All 3 requests completed in \d+\.\d\d seconds\nThroughput: \d+\.\d\d requests/second\n")
    found = re.fullmatch(shape, said)
    if found is None:
        raise Wrong(f"README.md, Expected Output, shows another shape than this, of a model that always says {answer!r}:\n{said}")
    expect(len(set(found.groups())) == 4, f"two of the four requests had the same id: {found.groups()}")
    expect(len(loads) == 1 and len(ledger.requests) == 4,
           f"main() makes one engine, and 4 requests to it; it made {len(loads)}, and {len(ledger.requests)}")
