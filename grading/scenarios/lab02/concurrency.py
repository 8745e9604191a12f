"""Lab 02, TODO 5: many requests share the steps of one engine, and the event loop stays free."""

import random
import re
import time
from typing import Any

from grading.judge.checks import Wrong, check, expect, expect_nothing_replaced, ours, refusal, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.engines import expect_served, spare_memory, stdout_of
from grading.scenarios.lab02.collecting import saying
from grading.scenarios.lab02.request_ids import ID, expect_ids, repeated
from grading.scenarios.lab02.streams import Handed, engine_beside, expect_output, parts
from labs.harness.scripted_engine.ledger import PatientLedger
from labs.harness.scripted_engine.own_engine import exactly, some_prompts, tokenizer, words
from nano_qwen3_serving import SamplingParams

MANY = "TODO 5: Handle Multiple Concurrent Requests"


def served(lab: Remote, engine: Remote, prompts: list[str], params: SamplingParams) -> list[Remote]:
    """What serve_many() returns, which must be an output for each prompt."""
    outputs = lab.serve_many(engine, prompts, params)
    expect(isinstance(outputs, list | tuple),
           f"serve_many() returned {shown(outputs)}, not a list of outputs: do you await asyncio.gather()?")
    expect(len(outputs) == len(prompts),
           f"{len(prompts)} prompts should give {len(prompts)} outputs, equal prompts one each; they gave {len(outputs)}")
    for output in outputs:
        expect_output(output, lab, "one of the outputs")
    return list(outputs)


@check(todo=5, points=8, section=MANY, concept="requests that share steps")
def the_requests_share_one_step(lab: Remote, rng: random.Random) -> None:
    spare_memory(lab)
    for different, tokens in ((3, rng.randrange(20, 30)), (rng.randrange(17, 21), rng.randrange(8, 12))):
        prompts = some_prompts(rng, different) * 2
        rng.shuffle(prompts)
        ledger = PatientLedger(rng, len(prompts))
        outputs = served(lab, engine_beside(lab, ledger), prompts, exactly(tokens))
        expect(ledger.most == len(prompts),
               f"at most {ledger.most} of the {len(prompts)} requests were ever computed in one step of this engine. Each was "
               "awaited before the next was submitted, or another engine was used: start them all, then wait for all.")
        expect_served(ledger, outputs, prompts)


@check(todo=5, points=2, section=MANY, concept="where an id comes from", hidden=True)
def every_id_is_from_new_request_id(lab: Remote, rng: random.Random) -> None:
    engine, first = engine_beside(lab), rng.randrange(10**6)
    made: list[str] = []

    def make() -> str:
        made.append(f"req-judge-{first + len(made)}")
        return made[-1]

    lab.new_request_id = parts(lab).as_function(ours(make))
    outputs = served(lab, engine, some_prompts(rng, rng.randrange(3, 6)), exactly(2))
    used = sorted(output.request_id for output in outputs)
    expect(used == sorted(made),
           f"the requests should have the ids that new_request_id() returned, {sorted(made)}; they had {used}")


@check(todo=5, points=2, section=MANY, concept="whose id is whose", hidden=True)
def every_request_has_an_id_of_its_own(lab: Remote, rng: random.Random) -> None:
    engine, ids = engine_beside(lab), []
    for count in rng.sample(range(2, 6), 2):
        prompts = some_prompts(rng, count)
        ids += [output.request_id for output in served(lab, engine, [*prompts, prompts[0]], exactly(3))]
    expect_ids(ids)
    expect(repeated(ids) == 0,
           f"serve_many() was called twice, for {len(ids)} prompts altogether; the ids were {ids}: take each from "
           "new_request_id()")


@check(todo=5, points=4, section=MANY, concept="in which order outputs come")
def returns_outputs_in_the_order_of_the_prompts(lab: Remote, rng: random.Random) -> None:
    prompts = some_prompts(rng, 5)
    lengths = dict(zip(prompts, [30, *rng.sample([3, 8, 13, 18], 4)], strict=True))
    answers = {tuple(tokenizer().encode(prompt)): [rng.randrange(300, 2000) for _ in range(lengths[prompt])]
               for prompt in prompts}
    ledger = PatientLedger(rng, len(prompts), script=lambda prompt, params: answers.get(tuple(prompt), []))
    outputs = served(lab, engine_beside(lab, ledger), prompts, SamplingParams(temperature=0.0, max_tokens=64))
    found = [output.prompt for output in outputs]
    expect(found == prompts,
           f"the prompts were {prompts}, and the first of them was answered last; the outputs came in the order "
           f"{shown(found)}")
    expect_served(ledger, outputs, prompts)
    expect(all(output.finished for output in outputs), "an output that you returned is not finished")
    nobody = lab.serve_many(engine_beside(lab), [], exactly(2))
    expect(isinstance(nobody, list | tuple) and not nobody,
           f"for no prompts serve_many() should return an empty list; it returned {shown(nobody)}")


class Losing:
    """An engine of the judge's: one of its requests is cancelled.

    Args:
        place: which, from 0.
        after: how many outputs it has had by then.
    """

    def __init__(self, lab: Remote, place: int, after: int) -> None:
        self._lab, self._place, self._after, self._asked = lab, place, after, 0

    def generate(self, prompt: str, sampling_params: Any, request_id: str, **more: Any) -> Remote:
        """What an engine's method of this name returns."""
        self._asked += 1
        if self._asked != self._place + 1:
            return Handed(self._lab, saying(["a word"], request_id)).stream()
        outputs = list(saying(["word"] * (self._after + 1), request_id))[:-1]
        lost = self._lab._peer.root.package("asyncio").CancelledError("the request was cancelled")
        return Handed(self._lab, iter([*outputs, lost])).stream()


@check(todo=5, points=1, section=MANY, concept="a request that is cancelled", hidden=True)
def a_request_that_is_cancelled_is_no_output(lab: Remote, rng: random.Random) -> None:
    for after in (0, rng.randrange(1, 4)):
        engine, prompts = ours(Losing(lab, rng.randrange(3), after), "generate"), some_prompts(rng, 3)
        refusal("CancelledError", lambda engine=engine, prompts=prompts: lab.serve_many(engine, prompts, exactly(3)),
                f"one of three requests was cancelled after {after} outputs, and asyncio.CancelledError, which is not an "
                "Exception, should reach the caller")


@check(todo=5, points=3, section=MANY, concept="a request that fails", hidden=True)
def the_error_of_one_request_reaches_the_caller(lab: Remote, rng: random.Random) -> None:
    engine = engine_beside(lab)
    for count, place in ((3, rng.randrange(2)), (3, 2), (8, 7)):
        prompts = some_prompts(rng, count)
        prompts[place] = ""
        refusal("InvalidParametersError", lambda prompts=prompts: lab.serve_many(engine, prompts, exactly(3)),
                f"the engine refuses the empty prompt among {prompts}")


class WatchfulLedger(PatientLedger):
    """Looks before each step whether other work on the event loop got a turn since the last one, and waits for it a while.

    Attributes:
        free: steps between which it did.
    """

    def __init__(self, rng: random.Random, neighbour: Remote, seconds: float = 5.0) -> None:
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


@check(todo=5, points=3, section=MANY, concept="what else runs on the event loop", hidden=True)
def leaves_the_event_loop_free(lab: Remote, rng: random.Random) -> None:
    neighbour = parts(lab).Neighbour()
    ledger, prompts = WatchfulLedger(rng, neighbour), some_prompts(rng, 2)
    outputs = neighbour.beside(lab.serve_many, engine_beside(lab, ledger), prompts, exactly(24))
    expect(isinstance(outputs, list | tuple) and len(outputs) == 2, f"serve_many() returned {shown(outputs)}")
    expect(ledger.free >= 5,
           f"while {len(ledger.steps)} steps were taken, other work on the event loop got a turn before {ledger.free} of "
           "them: something blocks it")
    expect_nothing_replaced(lab, "turns")
    expect(neighbour.sleeps == 0,
           f"time.sleep() was called {neighbour.sleeps} times on the event loop, which stops every request: await "
           "asyncio.sleep() instead")


@check(todo=5, points=4, section=MANY, concept="the whole program")
def the_whole_program_prints_what_the_readme_shows(lab: Remote, rng: random.Random) -> None:
    answer, loads = f"{words(rng, 9)}, {words(rng, 5)}.", []
    ledger = PatientLedger(rng, 1, script=lambda prompt, params: tokenizer().encode(f" {answer}"))

    def create(*arguments: object) -> Remote:
        loads.append(engine_beside(lab, ledger, *arguments[1:]))
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
        r"All 3 requests completed in \d+\.\d\d seconds\nThroughput: \d+\.\d\d requests/second\n\n"
        r"The same 3 prompts in three ways\n"
        r"  one after the other +\d+\.\d\d seconds, 1\.00 tokens a step\n"
        r"  at the same time +\d+\.\d\d seconds, [123]\.\d\d tokens a step\n"
        r"  at the same time, max_num_seqs=1 +\d+\.\d\d seconds, 1\.00 tokens a step\n")
    found = re.fullmatch(shape, said)
    if found is None:
        raise Wrong(
            f"with a model that always says {answer!r}, the output should look like Expected Output in README.md; it is:\n{said}")
    expect(len(set(found.groups())) == 4, f"two of the four requests had the same id: {found.groups()}")
    expect(len(loads) == 2 and len(ledger.requests) == 13,
           f"main() makes two engines, and 13 requests to them; it made {len(loads)}, and {len(ledger.requests)}")
