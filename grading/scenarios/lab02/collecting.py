"""Lab 02, TODO 4: a stream is read to its end, and new text passed on as it arrives."""

import itertools
import random
from collections.abc import Iterator
from typing import Any

from grading.judge.checks import check, expect, kept, refusal, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.engines import as_it_is, text_of, tokens_of
from grading.scenarios.lab02.streams import Handed, engine_beside, expect_output, listener, stepwise
from labs.harness.scripted_engine.own_engine import clear_prompts, exactly, own_llm, some_prompts, words
from nano_qwen3_serving import RequestOutput

COLLECT = "TODO 4: Process Async Results"


def saying(texts: list[str], request_id: str) -> Iterator[RequestOutput]:
    """Outputs with these texts, the last one finished; a real one's otherwise."""
    for place, text in enumerate(texts, start=1):
        [output] = own_llm().generate("?", exactly(place), use_tqdm=False)
        output.request_id, output.finished, output.outputs[0].text = request_id, place == len(texts), text
        if not output.finished:
            output.outputs[0].finish_reason = None
        yield output


def growing(rng: random.Random, count: int) -> list[str]:
    """A text of so many words, a word more each time."""
    each = [words(rng, 1) for _ in range(count)]
    return [" ".join(each[:end]) for end in range(1, count + 1)]


def collected(lab: Remote, handed: Handed, *heard: Any) -> Remote:
    """What collect_output() returns, which must be the last output."""
    output = lab.collect_output(handed.stream(), *heard)
    expect_output(output, lab, "what collect_output() returned")
    last = handed.outputs[-1]
    found = (output.request_id, output.finished, tokens_of(output), text_of(output))
    right = (last.request_id, True, tokens_of(last), text_of(last))
    expect(last.finished and found == right,
           f"collect_output() should return the last output, whose (id, finished, tokens, text) are {right}; it returned "
           f"{shown(found)}")
    expect(handed.ended, "you read the last output, but not the end of the stream: go on until the stream ends by itself")
    return output


@check(todo=4, points=5, section=COLLECT, concept="to the end of the stream")
def reads_to_the_end(lab: Remote, rng: random.Random) -> None:
    [known], count = clear_prompts(rng, 1, 12), rng.randrange(9, 13)
    output = lab.collect_output(as_it_is(lab, engine_beside(lab).generate, known["prompt"], exactly(count), "req-end"))
    expect_output(output, lab, "what collect_output() returned")
    expect(output.finished, "you returned an output before the last one: go on until the stream ends by itself")
    expect(tokens_of(output) == known["course-draft"][:count],
           f"the engine generated {known['course-draft'][:count]}; the output has {shown(tokens_of(output))}")


@check(todo=4, points=4, section=COLLECT, concept="with a listener and without")
def returns_the_whole_text_with_or_without_a_listener(lab: Remote, rng: random.Random) -> None:
    for given in ([], [None], [listener(lab, lambda piece: None)]):
        [prompt], count = some_prompts(rng, 1), rng.randrange(8, 20)
        collected(lab, Handed(lab, stepwise(prompt, count, f"req-{count}")), *given)
    heard, texts = empty_listener(lab), growing(rng, 4)
    collected(lab, Handed(lab, saying(texts, "req-listener")), heard)
    pieces = lab._peer.root.package("builtins").list(heard)
    expect("".join(pieces) == texts[-1],
           f"on_text should have been called with the pieces of {texts[-1]!r}, and got {pieces}. It was a callable object that "
           "counts as false: test `on_text is not None`, not `if on_text`")


def empty_listener(lab: Remote) -> Remote:
    """A listener there that keeps what it is told; as long as that is nothing, it counts as false."""
    builtins = lab._peer.root.package("builtins")
    return kept(kept(builtins.type, "Heard", (builtins.list,), {"__call__": builtins.list.append}))


def expect_heard(lab: Remote, texts: list[str]) -> None:
    """Each new piece is passed on when it arrives: before the next output is asked for."""
    handed, heard = Handed(lab, saying(texts, "req-heard")), []
    collected(lab, handed, listener(lab, lambda piece: heard.append((piece, len(handed.outputs)))))
    before, right = "", []
    for place, text in enumerate(texts, start=1):
        right += [(text[len(before) :], place)] if text != before else []
        before = text
    expect(heard == right,
           f"outputs with the texts {texts}: on_text should get (piece, number of the output) {right}; it got "
           f"{shown(heard)}")


@check(todo=4, points=4, section=COLLECT, concept="new text as it arrives")
def passes_new_text_on_as_it_arrives(lab: Remote, rng: random.Random) -> None:
    expect_heard(lab, growing(rng, rng.randrange(5, 12)))


@check(todo=4, points=3, section=COLLECT, concept="what is new in a text", hidden=True)
def passes_on_what_repeats_and_nothing_empty(lab: Remote, rng: random.Random) -> None:
    again = words(rng, 1)
    texts = ["", again, again, again * 2, again * 2, f"{again * 2}!", f"{again * 2}!{again * 2}!"]
    for place in sorted(rng.sample(range(1, len(texts)), 2), reverse=True):
        texts.insert(place, texts[place])
    expect_heard(lab, texts)
    expect_heard(lab, [""] * rng.randrange(1, 4))


@check(todo=4, points=4, section=COLLECT, concept="an error whenever it comes", hidden=True)
def lets_an_error_through_whenever_it_comes(lab: Remote, rng: random.Random) -> None:
    package, some = lab._peer.root.package, rng.randrange(2, 6)
    errors = package("nano_qwen3_serving.exceptions").EngineError, package("asyncio").CancelledError
    for make, (outputs, finished) in itertools.product(errors, ((some, False), (0, False), (some, True))):
        text, texts = f"the engine lost its {words(rng, 2)}", growing(rng, outputs)
        stream = list(saying(texts, "req-error")) if finished else list(saying([*texts, "never"], "req-error"))[:-1]
        handed = Handed(lab, iter([*stream, make(text)]))
        kind = "CancelledError" if make is errors[1] else "EngineError"
        said = refusal(kind, lambda handed=handed: lab.collect_output(handed.stream()),
                       f"the stream raised it after {outputs} outputs, {'the last' if finished else 'none'} of them finished")
        expect(said == text, f"the stream raised an error that says {text!r}; the one that reached the caller says {said!r}")
