"""Lab 01's one suite. It tests what `starter.py` does, on the real engine and the bundled model.

All of it: pytest test_lab.py        One TODO: pytest test_lab.py -k todo_3
"""

import re

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


# TODO 1: load a model


@pytest.mark.todo(1, points=4)
def test_todo_1_loads_the_course_model_and_it_answers(lab, llm):
    mine = lab.load_llm()
    assert isinstance(mine, LLM), f"load_llm() returned {mine!r}; expected an LLM"
    assert tokens(mine.generate(FACT, exactly(6))) == tokens(llm.generate(FACT, exactly(6)))


@pytest.mark.todo(1, points=4)
def test_todo_1_hands_on_the_model_and_the_length(lab):
    mine, draft = lab.load_llm("course-draft", max_model_len=24), LLM(model="course-draft")
    assert tokens(mine.generate(FACT, exactly(12))) == tokens(draft.generate(FACT, exactly(12))), (
        'load_llm("course-draft") must load that model: it answered with other tokens'
    )
    with pytest.raises(PromptTooLongError):
        mine.generate({"prompt_token_ids": list(range(300, 330))}, exactly(1))


@pytest.mark.todo(1, points=2)
def test_todo_1_lets_the_error_of_a_wrong_model_through(lab):
    with pytest.raises(ModelLoadError):
        lab.load_llm("/no/such/model")


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


@pytest.mark.todo(2, points=3)
def test_todo_2_a_fact_is_said_to_its_end(lab, llm):
    for output in llm.generate([A, B], params_of(lab.fact_params())):
        assert output.outputs[0].finish_reason == "stop", (
            f"after {len(output.outputs[0].token_ids)} tokens the answer was cut off: {output.outputs[0].text!r}. "
            "What is max_tokens if nobody says it?"
        )


@pytest.mark.todo(2, points=4)
def test_todo_2_another_seed_tells_another_story(lab, llm):
    told = texts(llm.generate([OPENINGS[0]] * 16, [params_of(lab.story_params(seed)) for seed in range(16)]))
    assert len(set(told)) >= 4, f"16 seeds told only {len(set(told))} different stories, {told[0]!r} for one"


@pytest.mark.todo(2, points=4)
def test_todo_2_the_same_seed_tells_the_same_story_alone_or_in_company(lab, llm):
    seeds = [7, 8, 9, 10]
    together = tokens(llm.generate(OPENINGS[:4] * 2, [params_of(lab.story_params(seed)) for seed in seeds * 2]))
    assert together[:4] == together[4:], "the same opening and the same seed gave two stories in one batch"
    alone = tokens(llm.generate(OPENINGS[3], params_of(lab.story_params(10))))
    assert alone == together[3:4], "the same opening and the same seed gave another story later"


@pytest.mark.todo(2, points=2)
def test_todo_2_a_story_is_drawn_from_what_the_contract_says(lab):
    mine = params_of(lab.story_params(3))
    assert (mine.temperature, mine.top_p) == pytest.approx((0.8, 0.9)), (
        f"temperature {mine.temperature} and top_p {mine.top_p}; the contract says 0.8, and 90 % of the probability"
    )


@pytest.mark.todo(2, points=4)
def test_todo_2_one_sentence_ends_with_its_full_stop(lab, llm):
    mine = params_of(lab.sentence_params())
    prompts = [C, "What is greedy decoding?", *OPENINGS[:4]]
    both = llm.generate(prompts * 2, [mine] * len(prompts) + [exactly(40)] * len(prompts))
    for prompt, got, whole in zip(prompts, texts(both), texts(both)[len(prompts) :], strict=False):
        sentence = whole[: whole.index(".") + 1].strip()
        assert got.strip() == sentence, f"{prompt!r} was answered with {got.strip()!r}; its first sentence is {sentence!r}"


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
def test_todo_3_all_prompts_share_the_steps_of_one_batch(lab, llm, recorder, loads):
    before = len(recorder.steps)
    pairs = pairs_of(lab.complete_batch(llm, [A, B, C, FACT, *OPENINGS[:2]], exactly(6)))
    steps = len(recorder.steps) - before
    assert len(pairs) == 6 and steps > 0, f"{len(pairs)} pairs came back, and this engine took {steps} steps"
    assert not loads, "another engine was built; the one given is enough"
    assert steps == 6, f"6 prompts of 6 tokens each took {steps} steps. In one batch they take 6: one call, all prompts"


@pytest.mark.todo(3, points=5)
def test_todo_3_each_prompt_comes_back_with_its_own_output_in_order(lab, llm):
    prompts = [C, A, B, A, *OPENINGS, FACT]
    limits = [9, 2, 5, 4, 3, 8, 1, 7, 2, 6, 3, 5, 4]  # the first is not the first to finish
    pairs = pairs_of(lab.complete_batch(llm, prompts, [exactly(limit) for limit in limits]))
    expected = llm.generate(prompts, [exactly(limit) for limit in limits])
    assert [prompt for prompt, _ in pairs] == prompts, "the prompts must come back in the order given, repeated ones too"
    outputs = [output for _, output in pairs]
    assert [output.prompt for output in outputs] == prompts, "an output stands beside a prompt that is not its own"
    assert tokens(outputs) == tokens(expected), (
        "a prompt came back with tokens that are not its own. One of them is asked twice, with other parameters each time"
    )


@pytest.mark.todo(3, points=2)
def test_todo_3_uses_the_parameters_it_is_given(lab, llm):
    for params, expected in ((exactly(4), [4, 4]), ([exactly(2), exactly(5)], [2, 5])):
        pairs = pairs_of(lab.complete_batch(llm, [A, B], params))
        assert [len(output.outputs[0].token_ids) for _, output in pairs] == expected


@pytest.mark.todo(3, points=2)
def test_todo_3_the_error_of_a_wrong_prompt_reaches_the_caller(lab, llm, served):
    with pytest.raises(InvalidParametersError):
        lab.complete_batch(llm, [A, "", C], exactly(3))
    assert not served, "the engine refuses the whole call before it computes anything"


def pairs_of(returned) -> list[tuple[str, RequestOutput]]:
    pairs = list(returned)
    for pair in pairs:
        fits = isinstance(pair, tuple) and [type(part) for part in pair] == [str, RequestOutput]
        assert fits, f"complete_batch() returned {pair!r} among others; expected pairs (prompt, RequestOutput)"
    return pairs


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


@pytest.mark.todo(4, points=5)
def test_todo_4_two_turns_make_a_conversation_of_four_messages(lab, llm, served):
    first = lab.chat_turn(llm, [], "Hello!", exactly(5))
    assert isinstance(first, list), f"chat_turn() returned {first!r}; expected a list of messages"
    second = lab.chat_turn(llm, first, FACT, exactly(5))
    said = texts(served)
    assert len(said) == 2 and said[0] and said[1]
    assert first == [user("Hello!"), {"role": "assistant", "content": said[0]}]
    assert second == [*first, user(FACT), {"role": "assistant", "content": said[1]}]
    wanted = llm.get_tokenizer().apply_chat_template([*first, user(FACT)], tokenize=True, add_generation_prompt=True)
    assert served[1].prompt_token_ids == wanted, "in the second turn the model must read the first one too"


@pytest.mark.todo(4, points=2)
def test_todo_4_the_callers_history_stays_as_it_was(lab, llm):
    history = [dict(message) for message in HISTORY]
    longer = lab.chat_turn(llm, history, FACT, exactly(2))
    assert history == HISTORY, "the list that the caller passed in has changed; return a new one"
    assert len(longer) == len(HISTORY) + 2


@pytest.mark.todo(4, points=2)
def test_todo_4_uses_the_engine_and_the_parameters_it_is_given(lab, llm, served, loads):
    lab.chat_turn(llm, [], FACT, exactly(7))
    assert not loads, "another engine was built; the one given is enough"
    assert [len(ids) for ids in tokens(served)] == [7]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


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
    assert m.finish_reason == "stop"
    assert m.ttft == pytest.approx(1.0), "arrived at 10.0, first token at 11.0"
    assert m.mean_itl == pytest.approx(0.5), "7 tokens from 11.0 to 14.0 have 6 gaps between them"
    assert m.tokens_per_second == pytest.approx(7 / 4), "7 tokens in the 4 seconds from arrival to the last token"
    m = lab.measure(finished((1.0, 1.25, 1.5, 3.5, 9.5), num_tokens=4))
    assert m.ttft == pytest.approx(2.5), "arrived at 1.0, first token at 3.5"
    assert m.mean_itl == pytest.approx(2.0), "4 tokens from 3.5 to 9.5 have 3 gaps between them"
    assert m.tokens_per_second == pytest.approx(4 / 8.5), "4 tokens in the 8.5 seconds from arrival to the last token"


@pytest.mark.todo(5, points=3)
def test_todo_5_a_single_token_has_no_gap(lab):
    m = lab.measure(finished((10.0, 10.25, 10.5, 12.0, 12.0), num_tokens=1, reason="length"))
    assert m.mean_itl is None, f"mean_itl is {m.mean_itl!r}; where there is no gap there is no mean: None"
    assert (m.tokens, m.ttft, m.tokens_per_second) == pytest.approx((1, 2.0, 0.5))


@pytest.mark.todo(5, points=3)
@pytest.mark.parametrize(("reason", "cut_off"), [("stop", False), ("length", True), ("abort", False)])
def test_todo_5_only_length_means_cut_off(lab, reason, cut_off):
    m = lab.measure(finished((1.0, 1.0, 1.0, 2.0, 3.0), num_tokens=16, reason=reason))
    assert (m.finish_reason, m.cut_off) == (reason, cut_off)


@pytest.mark.todo(5, points=4)
def test_todo_5_throughput_counts_the_time_once_for_all(lab):
    first, second = finished((3.0, 3, 3, 4.0, 7.0), num_tokens=8), finished((2.0, 2, 2, 2.5, 5.0), num_tokens=13)
    for outputs in ([first, second], [second, first]):
        assert lab.throughput(outputs) == pytest.approx(4.2), "8 + 13 tokens between 2.0 and 7.0"
    assert lab.throughput([second]) == pytest.approx(13 / 3), "13 tokens between 2.0 and 5.0"


@pytest.mark.todo(5, points=4)
def test_todo_5_the_whole_program_loads_once_and_prints_what_the_readme_shows(lab, capsys, loads):
    lab.main()
    said = capsys.readouterr().out
    assert len(loads) == 1, f"the program loaded a model {len(loads)} times; once is enough for everything it does"
    shapes = [
        r"=== Basic Inference Lab ===\n\nLoading the model\.\.\.\nReady\.\n",
        r"  answer    A token is .+(?:\n {12}.+)*\n  again     the same\n",
        r"  seed 1    Once upon a time.+\n  seed 2    Once upon a time.+\n  seed 3    Once upon a time.+\n  seed 1    the same\n",
        r"  answer    A neural network .+\.\n  ended by  stop, at .+\n",
        r"A batch of 5 prompts in one call\n(?:  prompt    .+\n  answer    .+\n(?: {12}.+\n)*){5}\n",
        r"A chat of 2 turns\n(?:  you       .+\n  model     .+\n(?: {12}.+\n)*){2}\n",
        r"  Count to ten\. +24  length +\d+\.\d+ s  \d+\.\d+ s +\d+\.\d\n",
        r"  Are you a robot\? +1  length +\d+\.\d+ s  none +\d+\.\d\n",
        r"  Cut off by max_tokens: Count to ten\., Are you a robot\?\n",
    ]
    for shape in shapes:
        assert re.search(shape, said), f"README.md, Expected Output, shows another shape than this (looking for {shape!r}):\n{said}"
