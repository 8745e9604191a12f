"""Lab 02, TODO 3: what is handed on to the engine, and a stream that comes back at once."""

import random
from typing import Any

from grading.judge.checks import check, expect, ours, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.engines import as_it_is, tokens_of
from grading.scenarios.lab02.streams import Handed, all_outputs, engine_beside, expect_output, stepwise
from labs.harness.scripted_engine.ledger import PatientLedger
from labs.harness.scripted_engine.own_engine import clear_prompts, exactly, some_prompts, tokenizer, words
from nano_qwen3_serving import SamplingParams

SUBMIT = "TODO 3: Submit Async Request"


def submitted(lab: Remote, engine: Any, prompt: str, params: SamplingParams, request_id: str) -> Remote:
    """What submit_request() returns, which must be a stream."""
    stream, package = as_it_is(lab, lab.submit_request, engine, prompt, params, request_id), lab._peer.root.package
    awaited = isinstance(stream, Remote) and package("inspect").iscoroutine(stream)
    expect(not awaited, "submit_request() returned a coroutine: write it as a plain def, and do not await generate()")
    iterable = isinstance(stream, Remote) and package("builtins").hasattr(stream, "__aiter__")
    expect(iterable, f"submit_request() returned {shown(stream)}, which `async for` cannot iterate over")
    return stream


@check(todo=3, points=5, section=SUBMIT, concept="a stream comes back")
def returns_a_stream_at_once(lab: Remote, rng: random.Random) -> None:
    [known], request_id = clear_prompts(rng, 1), f"req-{rng.randrange(10**6)}"
    [outputs] = all_outputs(lab, submitted(lab, engine_beside(lab), known["prompt"], exactly(6), request_id))
    expect(bool(outputs), "the stream ended without an output")
    expect_output(outputs[-1], lab, "what the stream gave")
    expect(tokens_of(outputs[-1]) == known["course-draft"],
           f"the engine given answers {known['prompt']!r} with {known['course-draft']}; the stream had "
           f"{shown(tokens_of(outputs[-1]))}")


@check(todo=3, points=3, section=SUBMIT, concept="prompt, parameters and id arrive")
def hands_on_prompt_parameters_and_id_unchanged(lab: Remote, rng: random.Random) -> None:
    engine = engine_beside(lab)
    for known in clear_prompts(rng, 2):
        count, request_id = rng.randrange(2, 6), f"{words(rng, 1)}-{rng.randrange(10**6)}"
        [outputs] = all_outputs(lab, submitted(lab, engine, known["prompt"], exactly(count), request_id))
        last = outputs[-1]
        expect(last.request_id == request_id,
               f"the output must carry the id that the caller chose, {request_id!r}; it carries {shown(last.request_id)}")
        expect(last.prompt == known["prompt"],
               f"the output should be for the prompt {known['prompt']!r}; it is for {shown(last.prompt)}")
        expect(tokens_of(last) == known["course-draft"][:count],
               f"{known['prompt']!r} with max_tokens={count} has the tokens {known['course-draft'][:count]}; "
               f"yours has {shown(tokens_of(last))}")


@check(todo=3, points=2, section=SUBMIT, concept="whose parameters are used", hidden=True)
def hands_on_every_parameter(lab: Remote, rng: random.Random) -> None:
    ledger = PatientLedger(rng, 1)
    given = SamplingParams(temperature=0.5, top_p=0.75, top_k=rng.randrange(5, 50), min_p=0.01, seed=rng.randrange(99),
                           max_tokens=rng.randrange(17, 30), min_tokens=rng.randrange(1, 9), ignore_eos=True, stop=["zzz"],
                           presence_penalty=0.25, frequency_penalty=0.5, repetition_penalty=1.25)
    [words_alone] = some_prompts(rng, 1)
    prompt = f"  {words_alone}  {words(rng, 1)}\n"
    [outputs] = all_outputs(lab, submitted(lab, engine_beside(lab, ledger), prompt, given, "req-parameters"))
    used, names = (ledger.requests[0].params if ledger.requests else {},
                   ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "min_tokens", "ignore_eos", "stop",
                    "presence_penalty", "frequency_penalty", "repetition_penalty"))
    read = tokenizer().decode(ledger.requests[0].prompt) if ledger.requests else None
    expect(read == prompt, f"the engine should get the prompt {prompt!r}, white space included; it read {read!r}")
    wrong = {name: used.get(name) for name in names if used.get(name) != getattr(given, name)}
    expect(not wrong,
           f"the engine should get the parameters {({name: getattr(given, name) for name in names})}; it got {wrong}")
    expect(len(tokens_of(outputs[-1])) == given.max_tokens,
           f"{given.max_tokens} tokens were asked for; the output has {len(tokens_of(outputs[-1]))}")


@check(todo=3, points=5, section=SUBMIT, concept="text while it grows")
def the_stream_shows_text_while_it_grows(lab: Remote, rng: random.Random) -> None:
    [prompt], count = some_prompts(rng, 1), rng.randrange(25, 40)
    handed = Handed(lab, stepwise(prompt, count, "req-growing"))
    stream = submitted(lab, ours(handed, "generate"), prompt, exactly(count), "req-growing")
    first = lab._peer.root.package("builtins").anext(stream)
    expect(not handed.ended and len(tokens_of(handed.outputs[-1])) < count,
           f"your first output came after all {count} tokens had been generated: pass each output on as it comes")
    expect(len(handed.outputs) == 1,
           f"when your stream gave its first output, {len(handed.outputs)} had been fetched from the engine: pass each one on "
           "before you ask for the next")
    counts = [len(tokens_of(output)) for output in [first, *all_outputs(lab, stream)[0]]]
    right = [len(tokens_of(output)) for output in handed.outputs]
    expect(counts == right,
           f"the engine's outputs held {right} tokens, and yours {counts}: pass on the engine's stream, do not collect it first")
    expect(handed.ended,
           "your stream ended before the engine's did: go on until the engine's stream ends by itself, because an error can "
           "come after the last output")
