"""`LLM`: prompts in, completions out, in order."""

import pytest

from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.exceptions import InvalidParametersError
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.sampling_params import RequestOutputKind
from nano_qwen3_serving.testing.doubles import continued_text, double_components


def greedy(max_tokens=6, **kwargs):
    return SamplingParams(temperature=0, max_tokens=max_tokens, **kwargs)


def make(components=None, **args):
    args = {"model": "course", "num_gpu_blocks_override": 33, "block_size": 4, "check_invariants": True} | args
    return LLM(**args, components=components or double_components())


@pytest.fixture(scope="module")
def course():
    return LLM(model="course", num_gpu_blocks_override=128)


@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_outputs_come_in_the_order_of_the_prompts(count):
    prompts = [f"prompt {i}" for i in range(count)]
    params = [greedy(1 + (i * 7) % 5) for i in range(count)]  # they finish in another order
    outputs = make(max_num_seqs=4).generate(prompts, params)
    assert [o.prompt for o in outputs] == prompts
    assert [o.outputs[0].text for o in outputs] == [
        continued_text(p, s.max_tokens) for p, s in zip(prompts, params, strict=True)]


@pytest.mark.parametrize(
    "prompt",
    ["hello", {"prompt": "hello"}, {"prompt_token_ids": list(b"hello")}, ["hello"], [{"prompt": "hello"}], ("hello",)],
    ids=str,
)
def test_a_prompt_is_text_or_tokens_alone_or_in_a_list(prompt):
    (output,) = make().generate(prompt, greedy())
    assert output.outputs[0].text == continued_text("hello", 6)
    assert output.finished and output.outputs[0].finished()


def test_without_parameters_the_checkpoints_own_are_used():
    llm = make()
    defaults = llm.get_default_sampling_params()
    assert {k: getattr(defaults, k) for k in llm.llm_engine.config.model.generation_defaults} == (
        llm.llm_engine.config.model.generation_defaults)
    (output,) = llm.generate("hello")
    assert len(output.outputs[0].token_ids) == 16


def test_the_callers_parameters_are_not_changed():
    params = greedy(output_kind=RequestOutputKind.DELTA)
    llm = make()
    llm.generate(["a", "b"], params)
    assert params == greedy(output_kind=RequestOutputKind.DELTA)


def test_priorities_change_who_goes_first():
    recorder = Recorder()
    llm = LLM("course", num_gpu_blocks_override=33, max_num_seqs=1, scheduling_policy="priority", recorder=recorder,
              components=double_components())  # fmt: skip
    llm.generate(["low", "high", "normal"], greedy(3), priority=[9, 1, 5])
    order = list(dict.fromkeys(c["request"] for s in recorder.steps for c in s["chunks"]))
    assert order == ["1", "2", "0"]


def test_several_completions_of_each_prompt_come_together():
    outputs = make().generate(["hello", "hi"], SamplingParams(n=3, seed=1, max_tokens=5))
    assert [[c.index for c in o.outputs] for o in outputs] == [[0, 1, 2]] * 2


def test_a_large_batch_is_fed_bit_by_bit():
    llm = make(max_num_seqs=2)
    most = []
    step = llm.llm_engine.step

    def counting():
        most.append(llm.llm_engine.get_num_unfinished_requests())
        return step()

    llm.llm_engine.step = counting
    llm.generate([f"{i}" for i in range(30)], greedy(2))
    assert max(most) <= 4


def test_calls_one_after_the_other_do_not_see_each_other():
    llm = make()
    first = llm.generate(["a", "b"], greedy(4))
    second = llm.generate(["b", "c"], greedy(4))
    assert [o.outputs[0].text for o in first + second] == [continued_text(p, 4) for p in "abbc"]
    assert len({o.request_id for o in first + second}) == 4


@pytest.mark.parametrize("at", [1, 2, 5, 9])
@pytest.mark.parametrize("where", ["network", "sampler", "detokenizer", "scheduler"])
def test_an_interrupt_in_any_part_leaves_nothing_behind(where, at):
    from nano_qwen3_serving.components import Components

    count = 0

    def interrupting(method):
        def wrapped(*args):
            nonlocal count
            count += 1
            if count == at:
                raise KeyboardInterrupt
            return method(*args)

        return wrapped

    def factory(make_part, method):
        def build(*args):
            part = make_part(*args)
            setattr(part, method, interrupting(getattr(part, method)))
            return part

        return build

    defaults = Components()
    parts = {
        "network": {"on_forward": interrupting(lambda contexts: None)},
        "sampler": {"sampler": factory(defaults.sampler, "sample")},
        "detokenizer": {"detokenizer": factory(defaults.detokenizer, "add")},
        "scheduler": {"scheduler": factory(defaults.scheduler, "schedule")},
    }
    llm = make(double_components(**parts[where]))
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["one", "two", "three", "four"], greedy(20))
    engine = llm.llm_engine
    assert not engine.has_unfinished_requests() and not engine.scheduler.running and not engine.scheduler.waiting
    engine.check_invariants()
    outputs = llm.generate(["five", "one"], greedy(5))
    assert [o.outputs[0].text for o in outputs] == [continued_text("five", 5), continued_text("one", 5)]


# --- chat, with the course's own template


QUESTION = [{"role": "user", "content": "What is machine learning?"}]


def test_a_conversation_or_a_list_of_them_goes_through_the_checkpoints_template(course):
    (one,) = course.chat(QUESTION, greedy())
    two = course.chat([QUESTION, [*QUESTION, {"role": "assistant", "content": "It is."}, *QUESTION]], greedy())
    assert one.prompt == two[0].prompt == course.get_tokenizer().apply_chat_template(QUESTION)
    assert one.outputs[0].token_ids == two[0].outputs[0].token_ids
    assert two[1].prompt.count("<|im_start|>") == 4


def test_continue_final_message_ends_inside_the_last_message(course):
    messages = [*QUESTION, {"role": "assistant", "content": "Machine learning is"}]
    (output,) = course.chat(messages, greedy(), add_generation_prompt=False, continue_final_message=True)
    assert output.prompt.endswith("Machine learning is")
    with pytest.raises(InvalidParametersError, match="add_generation_prompt=False"):
        course.chat(messages, greedy(), continue_final_message=True)


def test_a_chat_template_of_the_callers_and_switches_are_used(course):
    (output,) = course.chat(
        QUESTION, greedy(), chat_template="{% for m in messages %}{{ m.content }}{{ mark }}{% endfor %}",
        chat_template_kwargs={"mark": "!"})
    assert output.prompt == "What is machine learning?!"


def test_the_course_model_answers_the_same_alone_and_in_a_batch(course):
    prompts = ["What is machine learning?", "What is a token?", "Explain neural networks"]
    batch = course.generate(prompts, greedy(12))
    assert [o.outputs[0].token_ids for o in batch] == [
        course.generate(p, greedy(12))[0].outputs[0].token_ids for p in prompts]
