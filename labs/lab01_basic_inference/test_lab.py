"""Lab 01's one suite. It tests what `starter.py` does, on the real engine and the bundled model.

All of it: pytest test_lab.py        One TODO: pytest test_lab.py -k todo_3
"""

import re
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

import pytest

from nano_qwen3_serving import LLM, CompletionOutput, LLMEngine, RequestOutput, SamplingParams
from nano_qwen3_serving.exceptions import InvalidParametersError, ModelLoadError, PromptTooLongError
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.outputs import RequestMetrics

FACT = "What is a token?"
A, B, C = "What is machine learning?", "How does AI work?", "Explain neural networks"
OPENINGS = [
    "Once upon a time", "The password was", "The map showed", "The robot opened the door and",
    "In my bag there is", "My favourite colour is", "The soup tasted like", "Tomorrow we will",
]  # fmt: skip
"""Beginnings with eight or more endings, all about equally likely: here sampling can be seen."""
NUMBER = "How long does an answer take with a TTFT of 1 second and 100 tokens at an ITL of 20 milliseconds?"
"""Its answer has its first full stop inside a number."""

OTHER_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}: {{ m.content }}]\n{% endfor %}{% if add_generation_prompt %}[assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def recorder():
    """Notes every step of `llm`."""
    return Recorder()


@pytest.fixture(scope="module")
def llm(recorder):
    """One real engine for all tests of this file."""
    return LLM(model="course", recorder=recorder)


@pytest.fixture
def served(llm, monkeypatch) -> list[RequestOutput]:
    """The last output of every request that `llm` serves in this test, whoever asked and how."""
    outputs: list[RequestOutput] = []
    step = llm.llm_engine.step

    def watched():
        shown = step()
        outputs.extend(output for output in shown if output.finished)
        return shown

    monkeypatch.setattr(llm.llm_engine, "step", watched)
    return outputs


@pytest.fixture
def loads(monkeypatch) -> list:
    """One entry for every engine built in this test."""
    built, build = [], LLMEngine.__init__

    def counted(self, *args, **kwargs):
        built.append(self)
        build(self, *args, **kwargs)

    monkeypatch.setattr(LLMEngine, "__init__", counted)
    return built


def exactly(num_tokens: int) -> SamplingParams:
    """Greedy, and `num_tokens` tokens whatever the model would say."""
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)


def texts(outputs: list[RequestOutput]) -> list[str]:
    return [output.outputs[0].text for output in outputs]


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


@contextmanager
def raises(error: type[Exception], otherwise: str):
    """Passes if `error` is raised; says `otherwise` if nothing is."""
    try:
        yield
    except error:
        return
    raise AssertionError(otherwise)


# TODO 1: load a model


@pytest.mark.todo(1, points=3)
def test_todo_1_loads_the_course_model_and_it_answers(lab, llm):
    mine = llm_of(lab.load_llm())
    assert tokens(mine.generate(FACT, exactly(6))) == tokens(llm.generate(FACT, exactly(6))), (
        "load_llm() must load the course model: it answered with other tokens"
    )


@pytest.mark.todo(1, points=3)
def test_todo_1_hands_on_the_model_and_the_length(lab):
    mine, draft = llm_of(lab.load_llm("course-draft", max_model_len=21)), LLM(model="course-draft")
    assert tokens(mine.generate(FACT, exactly(12))) == tokens(draft.generate(FACT, exactly(12))), (
        'load_llm("course-draft") must load that model: it answered with other tokens'
    )
    accepted = "load_llm(..., max_model_len=21) accepted a prompt of 22 tokens: is max_model_len handed on, and as it is?"
    with raises(PromptTooLongError, accepted):
        mine.generate({"prompt_token_ids": list(range(300, 322))}, exactly(1))
    [output] = mine.generate({"prompt_token_ids": list(range(300, 318))}, exactly(9))
    used = len(output.outputs[0].token_ids)
    assert used == 3, f"max_model_len=21 leaves a prompt of 18 tokens 3 to generate; it generated {used}"


@pytest.mark.todo(1, points=2)
def test_todo_1_every_call_loads_an_engine_of_its_own(lab):
    short, long, again = (llm_of(lab.load_llm("course-draft", max_model_len=length)) for length in (20, 40, 40))
    prompt = {"prompt_token_ids": list(range(300, 330))}
    used = len(tokens(long.generate(prompt, exactly(2)))[0])
    assert used == 2, f"an engine of max_model_len=40 was asked for 2 tokens after a prompt of 30; it generated {used}"
    with raises(PromptTooLongError, "an engine of max_model_len=20 took 30 tokens after another of 40 was loaded"):
        short.generate(prompt, exactly(2))
    assert again.llm_engine is not long.llm_engine, (
        'load_llm("course-draft", 40) was called twice and gave the same engine; each call creates a new LLM, whatever was '
        "asked for before")


@pytest.mark.todo(1, points=2)
def test_todo_1_lets_the_error_of_a_wrong_model_through(lab):
    with raises(ModelLoadError, 'load_llm("/no/such/model") raised nothing; expected ModelLoadError, as the engine raises it'):
        lab.load_llm("/no/such/model")


def llm_of(returned) -> LLM:
    assert isinstance(returned, LLM), f"load_llm() returned {returned!r}; expected an LLM"
    return returned


# TODO 2: sampling parameters for three tasks


@pytest.mark.todo(2, points=5)
def test_todo_2_a_fact_takes_the_likeliest_token_every_time(lab, llm):
    mine = params_of(lab.fact_params())
    greedy = SamplingParams(temperature=0.0, max_tokens=8)
    both = llm.generate(OPENINGS * 2, [mine.clone(max_tokens=8)] * 8 + [greedy] * 8)
    differ = [prompt for prompt, got, best in zip(OPENINGS, tokens(both[:8]), tokens(both[8:]), strict=True) if got != best]
    assert not differ, (
        f"{len(differ)} of 8 texts were not made of the likeliest tokens, {differ[0]!r} for one. "
        "temperature=1.0 draws at random; a fixed seed only repeats the same luck"
    )
    assert_nothing_shifts(mine)


def assert_nothing_shifts(mine: SamplingParams) -> None:
    """No parameter makes another token the likeliest than the one that is."""
    names = ["presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "allowed_token_ids", "bad_words"]
    more = {name: getattr(mine, name) for name in names if getattr(mine, name) != getattr(SamplingParams(), name)}
    assert not more, f"the contract says the likeliest token, every time; {more} can make another one the likeliest"


MARKS = [".", "!", "?", ",", ";", "\n", "\n\n", " "]


@pytest.mark.todo(2, points=2)
def test_todo_2_facts_and_stories_end_when_the_model_ends_them(lab, llm):
    tokenizer = llm.get_tokenizer()
    for mine in (params_of(lab.fact_params()), params_of(lab.story_params(1))):
        [output] = llm.generate(FACT, mine.clone(allowed_token_ids=[tokenizer.eos_token_id]))
        answer = output.outputs[0]
        assert (len(answer.token_ids), answer.finish_reason) == (1, "stop"), (
            f"a model that ends at once was asked for {len(answer.token_ids)} tokens, finish reason {answer.finish_reason!r}")
        assert_no_mark_ends(llm, mine, MARKS, "when the model ends it, at no string")


def assert_no_mark_ends(llm, mine: SamplingParams, marks: list[str], contract: str) -> None:
    """A model that says one of `marks`, again and again, is heard until its tokens are used up."""
    only = [mine.clone(allowed_token_ids=llm.get_tokenizer().encode(mark)[-1:], max_tokens=6) for mark in marks]
    for output in llm.generate([FACT] * len(only), only):
        answer = output.outputs[0]
        assert (len(answer.token_ids), answer.finish_reason) == (6, "length"), (
            f"the text {answer.text!r} ended at {answer.stop_reason!r}; the contract says: {contract}")


@pytest.mark.todo(2, points=2)
def test_todo_2_a_fact_is_said_to_its_end(lab, llm):
    for output in llm.generate([A, B], params_of(lab.fact_params())):
        assert output.outputs[0].finish_reason == "stop", (
            f"after {len(output.outputs[0].token_ids)} tokens the answer was cut off: {output.outputs[0].text!r}. "
            "What is max_tokens if nobody says it?"
        )


@pytest.mark.todo(2, points=1)
def test_todo_2_every_number_is_a_seed_of_its_own(lab):
    seeds = [0, 1, 2, 16, 100, 256, 1000, 2**16, 2**31, 2**32, 2**40 + 1]
    given = {seed: params_of(lab.story_params(seed)).seed for seed in seeds}
    unseeded = [seed for seed, handed_on in given.items() if handed_on is None]
    assert not unseeded, f"story_params({unseeded[0]}) has no seed: its story would be another every time"
    alike = [seed for seed, handed_on in given.items() if list(given.values()).count(handed_on) > 1]
    assert not alike, f"the seeds {alike} are handed on as {[given[seed] for seed in alike]}: other seeds, and the same story"


@pytest.mark.todo(2, points=3)
def test_todo_2_another_seed_tells_another_story(lab, llm):
    told = texts(llm.generate([OPENINGS[0]] * 16, [params_of(lab.story_params(seed)) for seed in range(16)]))
    assert len(set(told)) >= 4, f"16 seeds told only {len(set(told))} different stories, {told[0]!r} for one"


@pytest.mark.todo(2, points=3)
def test_todo_2_the_same_seed_tells_the_same_story_alone_or_in_company(lab, llm):
    seeds = [7, 8, 9, 10]
    together = texts(llm.generate(OPENINGS[:4] * 2, [params_of(lab.story_params(seed)) for seed in seeds * 2]))
    for opening, seed, one, two in zip(OPENINGS, seeds, together[:4], together[4:], strict=False):
        assert one == two, f"in one batch, {opening!r} with seed {seed} twice gave two stories: {one!r} and {two!r}"
    [alone] = texts(llm.generate(OPENINGS[3], params_of(lab.story_params(10))))
    assert alone == together[3], (
        f"{OPENINGS[3]!r} with seed 10 gave {together[3]!r} in a batch and {alone!r} alone; the same seed tells the same story"
    )


@pytest.mark.todo(2, points=2)
def test_todo_2_a_story_is_drawn_from_what_the_contract_says(lab):
    mine = params_of(lab.story_params(3))
    assert (mine.temperature, mine.top_p) == pytest.approx((0.8, 0.9)), (
        f"temperature {mine.temperature} and top_p {mine.top_p}; the contract says 0.8, and 90 % of the probability"
    )
    rules = ["top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"]
    more = {rule: getattr(mine, rule) for rule in rules if getattr(mine, rule) != getattr(SamplingParams(), rule)}
    assert not more, f"temperature, top_p and the seed choose the token, says the contract; here {more} does, too"


@pytest.mark.todo(2, points=4)
def test_todo_2_one_sentence_ends_with_its_full_stop(lab, llm):
    mine = params_of(lab.sentence_params())
    prompts = [C, "What is greedy decoding?", *OPENINGS[:4], NUMBER]
    both = llm.generate(prompts * 2, [mine] * len(prompts) + [exactly(40)] * len(prompts))
    for prompt, got, whole in zip(prompts, texts(both), texts(both)[len(prompts) :], strict=False):
        sentence = whole[: whole.index(".") + 1]
        assert got == sentence, (
            f"{prompt!r} was answered with {got!r}; of the likeliest tokens, up to the first '.' and with it, it is {sentence!r}"
        )
    assert_nothing_shifts(mine)
    tokenizer = llm.get_tokenizer()
    stop, end = ([ids[-1]] for ids in (tokenizer.encode("."), [tokenizer.eos_token_id]))
    dot, silent = (o.outputs[0] for o in llm.generate([C] * 2, [mine.clone(allowed_token_ids=ids) for ids in (stop, end)]))
    assert dot.text == ".", f"a model that can only say '.' was answered with {dot.text!r}; the first '.' ends the text"
    assert len(silent.token_ids) == 1, f"a model that ends at once was asked for {len(silent.token_ids)} tokens"
    assert_no_mark_ends(llm, mine, [mark for mark in MARKS if mark != "."], "after its first '.', and at no other string")


@pytest.mark.todo(2, points=3)
def test_todo_2_nobody_speaks_longer_than_the_contract_allows(lab, llm):
    limits = {"fact_params": 64, "story_params": 32, "sentence_params": 24}
    mine = [lab.fact_params(), lab.story_params(1), lab.sentence_params()]
    endless = [params_of(p).clone(ignore_eos=True, stop=None, min_tokens=0) for p in mine]
    used = dict(zip(limits, map(len, tokens(llm.generate([FACT] * 3, endless))), strict=True))
    assert used == limits, f"a model that never ends was stopped after {used} tokens; the contract says {limits}"


def params_of(returned) -> SamplingParams:
    assert isinstance(returned, SamplingParams), f"it returned {returned!r}; expected SamplingParams"
    return returned


# TODO 3: a batch


@pytest.mark.todo(3, points=6)
@pytest.mark.parametrize("count", [6, 40])
def test_todo_3_all_prompts_share_the_steps_of_one_batch(lab, llm, recorder, loads, count):
    before, prompts = len(recorder.steps), ([A, B, C, FACT, *OPENINGS] * 4)[:count]
    pairs = pairs_of(lab.complete_batch(llm, prompts, exactly(6)))
    steps = len(recorder.steps) - before
    assert len(pairs) == count and steps > 0, f"{len(pairs)} pairs came back, and this engine took {steps} steps"
    assert not loads, "another engine was built; the one given is enough"
    assert steps == 6, f"{count} prompts of 6 tokens each took {steps} steps. In one batch they take 6: one call, all prompts"


@pytest.mark.todo(3, points=4)
def test_todo_3_each_prompt_comes_back_with_its_own_output_in_order(lab, llm):
    prompts = [C, f"{A}\n", f"  {B} ", f"{A}\n", *OPENINGS, FACT]  # white space is part of a prompt
    limits = [9, 2, 5, 4, 3, 8, 1, 7, 2, 6, 3, 5, 4]  # the first is not the first to finish
    pairs = pairs_of(lab.complete_batch(llm, prompts, [exactly(limit) for limit in limits]))
    expected = llm.generate(prompts, [exactly(limit) for limit in limits])
    assert [prompt for prompt, _ in pairs] == prompts, "the prompts must come back in the order given, repeated ones too"
    none = pairs_of(lab.complete_batch(llm, [], exactly(2)))
    assert none == [], f"a batch of no prompts has no pairs; it gave {none}"
    outputs = [output for _, output in pairs]
    assert [output.prompt for output in outputs] == prompts, "an output stands beside a prompt that is not its own"
    for place, (prompt, got, own) in enumerate(zip(prompts, tokens(outputs), tokens(expected), strict=True), start=1):
        assert got == own, (
            f"prompt {place}, {prompt!r}, came back with {len(got)} tokens, {outputs[place - 1].outputs[0].text!r}; "
            f"with its own parameters it has {len(own)}, {expected[place - 1].outputs[0].text!r}. "
            "(One prompt comes twice, with other parameters.)"
        )


@pytest.mark.todo(3, points=1)
def test_todo_3_a_prompt_that_comes_twice_is_two_requests(lab, llm):
    first, second = (pairs_of(lab.complete_batch(llm, [A, A, B, A], exactly(2))) for _ in range(2))
    assert [prompt for prompt, _ in first] == [A, A, B, A], "the prompts must come back in the order given, repeated ones too"
    requests = len({output.request_id for _, output in first})
    assert requests == 4, (
        f"4 prompts, 3 of them the same, were {requests} requests; expected 4, because what is drawn for each is its own"
    )
    requests = len({output.request_id for _, output in first + second})
    assert requests == 8, f"the same 4 prompts in two calls were {requests} requests; expected 8: a call remembers no other"


@pytest.mark.todo(3, points=2)
def test_todo_3_uses_the_parameters_it_is_given(lab, llm):
    for params, expected in ((exactly(4), [4, 4]), ([exactly(2), exactly(5)], [2, 5]), ((exactly(3), exactly(6)), [3, 6])):
        pairs = pairs_of(lab.complete_batch(llm, [A, B], params))
        used = [len(output.outputs[0].token_ids) for _, output in pairs]
        assert used == expected, f"the parameters given ask for {expected} tokens; the outputs have {used}"


@pytest.mark.todo(3, points=1)
def test_todo_3_the_error_of_a_wrong_prompt_reaches_the_caller(lab, llm, served):
    with raises(InvalidParametersError, "an empty prompt raised nothing; expected the engine's InvalidParametersError"):
        lab.complete_batch(llm, [A, "", C], exactly(3))
    assert not served, f"{len(served)} prompts were computed before the empty one was refused: one call, not a loop"


@pytest.mark.todo(3, points=1)
@pytest.mark.parametrize("number", [2, 4])
def test_todo_3_the_error_of_a_wrong_number_of_parameters_reaches_the_caller(lab, llm, number):
    missing = f"{number} parameters for 3 prompts raised nothing; expected the engine's InvalidParametersError"
    with raises(InvalidParametersError, missing):
        lab.complete_batch(llm, [A, B, C], [exactly(2)] * number)


def pairs_of(returned) -> list[tuple[str, RequestOutput]]:
    assert isinstance(returned, list), f"complete_batch() returned {returned!r}; expected a list of pairs (prompt, RequestOutput)"
    for pair in returned:
        fits = isinstance(pair, tuple) and [type(part) for part in pair] == [str, RequestOutput]
        assert fits, f"complete_batch() returned {pair!r} among others; expected pairs (prompt, RequestOutput)"
    return returned


# TODO 4: chat


HISTORY = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hello! How can I help you today?"},
]


@pytest.mark.todo(4, points=6)
@pytest.mark.parametrize("template", ["its own", "another"])
def test_todo_4_the_model_reads_the_whole_conversation_through_its_template(lab, llm, served, monkeypatch, template):
    tokenizer = llm.get_tokenizer()
    if template == "another":
        monkeypatch.setattr(tokenizer, "chat_template", OTHER_TEMPLATE)
    lab.chat_turn(llm, [dict(message) for message in HISTORY], FACT, exactly(3))
    wanted = tokenizer.apply_chat_template([*HISTORY, user(FACT)], tokenize=True, add_generation_prompt=True)
    assert len(served) == 1, f"one turn is one request to the engine given; it served {len(served)}"
    assert served[0].prompt_token_ids == wanted, (
        f"with {template} chat template the model should read\n{tokenizer.decode(wanted, False)!r}\n"
        f"and it read\n{tokenizer.decode(served[0].prompt_token_ids, False)!r}"
    )


@pytest.mark.todo(4, points=1)
def test_todo_4_a_long_conversation_is_read_from_its_beginning(lab, llm, served):
    history = [HISTORY[0]] + [make(f"{number}.") for number in range(12) for make in (user, assistant)]
    longer = lab.chat_turn(llm, [dict(message) for message in history], FACT, exactly(2))
    wanted = llm.get_tokenizer().apply_chat_template([*history, user(FACT)], tokenize=True, add_generation_prompt=True)
    read = served[0].prompt_token_ids if served else []
    assert read == wanted, f"25 messages and a question are {len(wanted)} tokens for the model to read; it read {len(read)}"
    assert longer[:-1] == [*history, user(FACT)], "what came back is not the conversation given, then the question"


@pytest.mark.todo(4, points=3)
def test_todo_4_two_turns_make_a_conversation_of_four_messages(lab, llm, served):
    first = lab.chat_turn(llm, [], "Hello!", exactly(5))
    assert isinstance(first, list), f"chat_turn() returned {first!r}; expected a list of messages"
    assert len(served) == 1, f"one turn is one request to the engine given; it served {len(served)}"
    one = [user("Hello!"), assistant(texts(served)[0])]
    assert first == one, f"after one turn the conversation should be\n{one}\nand it is\n{first}"
    question = f"  {FACT}\n"  # white space is part of a question
    second = lab.chat_turn(llm, [dict(message) for message in one], question, exactly(5))
    assert len(served) == 2, f"two turns are two requests to the engine given; it served {len(served)}"
    two = [*one, user(question), assistant(texts(served)[1])]
    assert second == two, f"after two turns the conversation should be\n{two}\nand it is\n{second}"
    wanted = llm.get_tokenizer().apply_chat_template([*one, user(question)], tokenize=True, add_generation_prompt=True)
    assert served[1].prompt_token_ids == wanted, "in the second turn the model must read the first one too"


@pytest.mark.todo(4, points=1)
def test_todo_4_the_answer_is_what_the_model_said_unchanged(lab, llm):
    tokenizer = llm.get_tokenizer()
    [line_end] = tokenizer.encode("\n")
    lines = exactly(3).clone(allowed_token_ids=[line_end])
    answer = lab.chat_turn(llm, [], "Hello!", lines)[-1]["content"]
    assert answer == "\n\n\n", f"the model said three line ends, '\\n\\n\\n'; the answer in the conversation is {answer!r}"
    silence = SamplingParams(allowed_token_ids=[tokenizer.eos_token_id])
    said = lab.chat_turn(llm, [], "Hello!", silence)[1:]
    assert said == [assistant("")], f"the model ended at once, and an empty answer is an answer; after the question stands {said}"


@pytest.mark.todo(4, points=2)
def test_todo_4_the_callers_history_stays_as_it_was(lab, llm):
    history = [dict(message) for message in HISTORY]
    longer = lab.chat_turn(llm, history, FACT, exactly(2))
    assert history == HISTORY, "the list that the caller passed in has changed; return a new one"
    assert len(longer) == len(HISTORY) + 2, (
        f"{len(HISTORY)} messages and one turn make {len(HISTORY) + 2}; it returned {len(longer)}"
    )


@pytest.mark.todo(4, points=2)
def test_todo_4_uses_the_engine_and_the_parameters_it_is_given(lab, llm, served, loads):
    lab.chat_turn(llm, [], FACT, exactly(7))
    assert not loads, "another engine was built; the one given is enough"
    used = [len(ids) for ids in tokens(served)]
    assert used == [7], f"the parameters given ask for 7 tokens in one request; this engine made {used}"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# TODO 5: measure


def finished(times: tuple[float, ...], num_tokens: int, reason: str = "stop", text: str = "two words") -> RequestOutput:
    """An output of 5 prompt tokens: `times` are arrival, queued, scheduled, first and last token."""
    return RequestOutput(
        request_id="0", prompt="p", prompt_token_ids=[7] * 5, prompt_logprobs=None, finished=True,
        outputs=[CompletionOutput(0, text, list(range(300, 300 + num_tokens)), finish_reason=reason)],
        metrics=RequestMetrics(*times, num_generation_tokens=num_tokens),
    )  # fmt: skip


@pytest.mark.todo(5, points=6)
def test_todo_5_tokens_and_times_of_a_request_by_hand(lab):
    m = lab.measure(finished((10.0, 10.25, 10.5, 11.0, 14.0), num_tokens=7))
    assert (m.prompt_tokens, m.tokens) == (5, 7), "count tokens, not words or characters, and not the prompt's among them"
    assert m.finish_reason == "stop", f"the output's finish_reason is 'stop', not {m.finish_reason!r}"
    assert m.ttft == pytest.approx(1.0), "arrived at 10.0, first token at 11.0"
    assert m.mean_itl == pytest.approx(0.5), "7 tokens from 11.0 to 14.0 have 6 gaps between them"
    assert m.tokens_per_second == pytest.approx(7 / 4), "7 tokens in the 4 seconds from arrival to the last token"
    m = lab.measure(finished((1.0, 1.25, 1.5, 3.5, 9.5), num_tokens=4))
    assert m.ttft == pytest.approx(2.5), "arrived at 1.0, first token at 3.5"
    assert m.mean_itl == pytest.approx(2.0), "4 tokens from 3.5 to 9.5 have 3 gaps between them"
    assert m.tokens_per_second == pytest.approx(4 / 8.5), "4 tokens in the 8.5 seconds from arrival to the last token"
    m = lab.measure(finished((10.0, 10.25, 10.5, 12.0, 12.0), num_tokens=3))
    assert m.mean_itl == pytest.approx(0.0), (
        f"three tokens that came at once have two gaps of 0.0 seconds, so a mean of 0.0; mean_itl is {m.mean_itl!r}")
    for zero in (0.0, -2.0, -6.0):  # of a clock only differences mean something
        m = lab.measure(finished((zero, zero + 1.0, zero + 1.5, zero + 2.0, zero + 6.0), num_tokens=5))
        found = (m.ttft, m.mean_itl, m.tokens_per_second)
        assert found == pytest.approx((2.0, 1.0, 5 / 6)), (
            f"arrived at {zero}, first token at {zero + 2.0}, fifth and last at {zero + 6.0}: TTFT 2, mean ITL 1, 5/6 tokens "
            f"per second; measure() said {found}")


@pytest.mark.todo(5, points=3)
def test_todo_5_a_single_token_has_no_gap(lab):
    m = lab.measure(finished((10.0, 10.25, 10.5, 12.0, 12.0), num_tokens=1, reason="length"))
    assert m.mean_itl is None, f"mean_itl is {m.mean_itl!r}; where there is no gap there is no mean: None"
    assert m.tokens == 1, f"one token was generated, not {m.tokens}"
    assert m.ttft == pytest.approx(2.0), f"arrived at 10.0, first token at 12.0: 2.0, not {m.ttft}"
    assert m.tokens_per_second == pytest.approx(0.5), f"1 token in 2 seconds: 0.5, not {m.tokens_per_second}"


@pytest.mark.todo(5, points=3)
@pytest.mark.parametrize(("reason", "cut_off"), [("stop", False), ("length", True), ("abort", False)])
def test_todo_5_only_length_means_cut_off(lab, reason, cut_off):
    m = lab.measure(finished((1.0, 1.0, 1.0, 2.0, 3.0), num_tokens=16, reason=reason))
    assert m.finish_reason == reason, f"the output's finish_reason is {reason!r}, not {m.finish_reason!r}"
    assert m.cut_off == cut_off, f"a request that ended with {reason!r} has cut_off {cut_off}, not {m.cut_off!r}"


@pytest.mark.todo(5, points=4)
def test_todo_5_throughput_counts_the_time_once_for_all(lab):
    first, second = finished((3.0, 3, 3, 4.0, 7.0), num_tokens=8), finished((2.0, 2, 2, 2.5, 5.0), num_tokens=13)
    for outputs in ([first, second], [second, first]):
        got = lab.throughput(outputs)
        assert got == pytest.approx(4.2), f"8 + 13 tokens between 2.0 and 7.0 are 21 / 5 = 4.2, not {got}. One division for all"
    long = finished((0.0, 0.5, 1.0, 2.0, 20.0), num_tokens=9)  # arrives first, and its last token is the last of all
    for outputs in ([first, long, second], [long, second, first]):
        got = lab.throughput(outputs)
        assert got == pytest.approx(1.5), f"8 + 9 + 13 tokens between 0.0 and 20.0 are 30 / 20 = 1.5, not {got}"
    got = lab.throughput([second])
    assert got == pytest.approx(13 / 3), f"13 tokens between 2.0 and 5.0 are 13 / 3, not {got}"
    for zero in (-5.0, -20.0):  # the last token at the clock's zero, and all of it before
        got = lab.throughput([finished((zero + 2, zero + 2, zero + 2, zero + 2.5, zero + 5), num_tokens=13)])
        assert got == pytest.approx(13 / 3), (
            f"13 tokens between {zero + 2} and {zero + 5} are 13 / 3, not {got}: of a clock only differences mean something")


ANSWER = r".+(?:\n {12}.+)*"
PROGRAM = [
    r"=== Basic Inference Lab ===",
    r"Loading the model\.\.\.\nReady\.",
    rf"Task 1.+\n  prompt    .+\n  answer    A token is {ANSWER}\n  again     the same",
    r"Task 2.+\n  prompt    .+(?:\n  seed [123]    Once upon a time.+){3}\n  seed 1    the same",
    rf"Task 3.+\n  prompt    .+\n  answer    A neural network {ANSWER}\.\n  ended by  stop, at '\.'",
    rf"A batch of 5 prompts in one call(?:\n  prompt    .+\n  answer    {ANSWER}){{5}}",
    rf"A chat of 2 turns(?:\n  you       .+\n  model     {ANSWER}){{2}}",
    (
        r"What the batch took\n(?:.+\n){4}"
        r"  Count to ten\. +24  length +\d+\.\d+ s  \d+\.\d+ s +\d+\.\d\n"
        r"  Are you a robot\? +1  length +\d+\.\d+ s  none +\d+\.\d\n"
        r"  All together: .+\n"
        r"  Cut off by max_tokens: Count to ten\., Are you a robot\?"
    ),
]
"""What main() prints, part by part, as far as it is the same on every machine."""


@pytest.mark.todo(5, points=4)
def test_todo_5_the_whole_program_loads_once_and_prints_what_the_readme_shows(lab, capsys, loads):
    lab.main()
    said = capsys.readouterr().out
    assert len(loads) == 1, f"the program built {len(loads)} engines in main(); expected exactly one, for everything it does"
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    shown = re.search(r"## Expected Output\n\n```\n(.+?)\n```", readme, re.DOTALL)[1].split("\n\n")
    printed = said.strip().split("\n\n")
    for shape, theirs, mine in zip_longest(PROGRAM, shown, printed, fillvalue=""):
        fits = re.fullmatch(shape, mine) is not None
        assert fits, f"README.md, Expected Output, shows\n{theirs}\nand this program printed\n{mine}"


if __name__ == "__main__":
    raise SystemExit("These are tests. Run them with: pytest test_lab.py")
