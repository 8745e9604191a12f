"""Lab 01, TODO 4: the judge sees what the model reads, and says what it answers."""

import random
from typing import Any

from grading.judge.checks import check, expect, hold, look, shown
from grading.sandbox.worker.peer import Remote
from grading.scenarios.engines import llm_beside
from labs.harness.scripted_engine.ledger import Ledger, Served
from labs.harness.scripted_engine.own_engine import exactly, tokenizer, words
from nano_qwen3_serving import SamplingParams

CHAT = "TODO 4: Chat"


def message(role: str, content: str) -> dict[str, str]:
    """One of a conversation."""
    return {"role": role, "content": content}


def conversation(rng: random.Random, turns: int) -> list[dict[str, str]]:
    """A system message, and so many turns."""
    said = [message(role, f"{words(rng, 4)}.") for _ in range(turns) for role in ("user", "assistant")]
    return [message("system", f"You are a {words(rng, 2)}."), *said]


def turn(
    lab: Remote, llm: Remote, ledger: Ledger, history: list[dict] | Remote, question: str, params: SamplingParams
) -> tuple[Any, Served]:
    """What chat_turn() returns, and the one request that it made."""
    before = len(ledger.requests)
    longer = lab.chat_turn(llm, history, question, params)
    made = ledger.requests[before:]
    expect(len(made) == 1, f"one turn is one request to the engine given; it got {len(made)}")
    expect(isinstance(longer, list), f"chat_turn() returned {shown(longer)}; expected a list of messages")
    return longer, made[0]


def expect_read(served: Served, messages: list[dict], template: str | None = None) -> None:
    """The model read these messages, laid out by its template, and was to answer."""
    wanted = tokenizer().apply_chat_template(messages, tokenize=True, add_generation_prompt=True, chat_template=template)
    expect(served.prompt == wanted,
           f"the model should read\n{tokenizer().decode(wanted, False)!r}\nand it "
           f"read\n{tokenizer().decode(served.prompt, False)!r}")


@check(todo=4, points=3, section=CHAT, concept="what the model reads")
def the_model_reads_the_whole_conversation_through_its_template(lab: Remote, rng: random.Random) -> None:
    for turns in (1, 3, rng.randrange(12, 16)):
        ledger, history, question = Ledger(rng), conversation(rng, turns), f" {words(rng, 3)}?\n"
        _, served = turn(lab, llm_beside(lab, ledger), ledger, history, question, exactly(2))
        expect_read(served, [*history, message("user", question)])


@check(todo=4, points=3, section=CHAT, concept="whose template is used", hidden=True)
def the_model_reads_the_whole_conversation_through_another_template(lab: Remote, rng: random.Random) -> None:
    mark = f"{rng.choice('XYZ')}{rng.randrange(100, 999)}"
    template = ("{% for m in messages %}[" + mark + " {{ m.role }}: {{ m.content }}]\n{% endfor %}"
                "{% if add_generation_prompt %}[" + mark + " answer: {% endif %}")
    ledger, history, question = Ledger(rng), conversation(rng, 2), f"{words(rng, 3)}?"
    llm = llm_beside(lab, ledger)
    llm.get_tokenizer().chat_template = template
    _, served = turn(lab, llm, ledger, history, question, exactly(2))
    expect_read(served, [*history, message("user", question)], template)


@check(todo=4, points=4, section=CHAT, concept="a conversation of several turns")
def every_turn_makes_the_conversation_two_messages_longer(lab: Remote, rng: random.Random) -> None:
    spoken = [f"{words(rng, 4)}, {n}." for n in range(3)]
    ledger = Ledger(rng, lambda prompt, params: tokenizer().encode(spoken[len(ledger.requests)]))
    llm = llm_beside(lab, ledger)
    history: list[dict[str, str]] = []
    for place, answer in enumerate(spoken, start=1):
        question = f"{words(rng, 3)}?"
        history = [*history, message("user", question)]
        longer, served = turn(lab, llm, ledger, history[:-1], question, SamplingParams(temperature=0.0, max_tokens=40))
        expect_read(served, history)
        history.append(message("assistant", answer))
        expect(longer == history, f"after turn {place} the conversation should be\n{history}\nand it is\n{longer}")


@check(todo=4, points=1, section=CHAT, concept="what becomes of the answer", hidden=True)
def the_answer_is_what_the_model_said_unchanged(lab: Remote, rng: random.Random) -> None:
    answer = f"{rng.choice([' ', '  ', chr(10)])}{words(rng, 3)}{rng.choice(['  ', chr(10) * 2, ' ' + chr(10)])}"
    ledger = Ledger(rng, lambda prompt, params: tokenizer().encode(answer))
    longer, _ = turn(lab, llm_beside(lab, ledger), ledger, [], "Hello!", SamplingParams(temperature=0.0, max_tokens=40))
    expect(longer[-1:] == [message("assistant", answer)],
           f"the model said {answer!r}; in the conversation stands {longer[-1:]}")
    ledger = Ledger(rng, lambda prompt, params: [])  # the model ends at once
    longer, _ = turn(lab, llm_beside(lab, ledger), ledger, [], "Hello!", SamplingParams(temperature=0.0, max_tokens=40))
    expect(longer[1:] == [message("assistant", "")],
           f"the model ended at once, and an empty answer is an answer; after the question stands {longer[1:]}")


@check(todo=4, points=2, section=CHAT, concept="whose list the history is")
def the_callers_history_stays_as_it_was(lab: Remote, rng: random.Random) -> None:
    ledger, history = Ledger(rng), conversation(rng, 2)
    theirs = hold(lab, history)
    longer, _ = turn(lab, llm_beside(lab, ledger), ledger, theirs, f"{words(rng, 3)}?", exactly(2))
    expect(look(theirs) == history,
           f"the list that the caller passed in has changed; it is now {look(theirs)}: return a new one")
    expect(len(longer) == len(history) + 2,
           f"{len(history)} messages and one turn make {len(history) + 2}; it returned {len(longer)}")


@check(todo=4, points=2, section=CHAT, concept="whose engine and parameters are used", hidden=True)
def uses_the_engine_and_the_parameters_it_is_given_for_chat(lab: Remote, rng: random.Random) -> None:
    ledger, count = Ledger(rng), rng.randrange(5, 12)
    params = exactly(count).clone(temperature=0.5, top_p=0.75, seed=rng.randrange(99))
    _, served = turn(lab, llm_beside(lab, ledger), ledger, [], f"{words(rng, 3)}?", params)
    expect(len(served.tokens) == count,
           f"the parameters given ask for {count} tokens; this engine made {len(served.tokens)}")
    used = {name: served.params.get(name) for name in ("temperature", "top_p", "seed")}
    expect(used == {name: getattr(params, name) for name in used},
           f"the parameters given are temperature 0.5, top_p 0.75, seed {params.seed}; the engine was given {used}")
