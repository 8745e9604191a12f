"""Greedy tokens equal `transformers.generate`, by the margin rule, however the engine runs them.

The rule is in `testing/oracle.py`: tokens may differ only where the oracle's two best are closer
than 1e-4. How often that happened is said at the end of the run.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.testing.checkpoints import Shape
from nano_qwen3_serving.testing.oracle import CloseCall, Continuation, Oracle

pytestmark = pytest.mark.slow

MAX_TOKENS = 32
GREEDY = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
SHAPE = Shape(vocab_size=1031, hidden_size=80, num_attention_heads=8, num_key_value_heads=2, head_dim=24,
              num_hidden_layers=3, attention_bias=True, tie_word_embeddings=False)

MANY_WAYS: dict[str, dict[str, Any]] = {
    "batches of mixed lengths": {"max_num_seqs": 32},
    "blocks of 1": {"block_size": 1},
    "blocks of 4": {"block_size": 4},
    "blocks of 16": {"block_size": 16},
    "blocks of 256": {"block_size": 256},
    "chunks of 1": {"long_prefill_token_threshold": 1},
    "chunks of 7": {"long_prefill_token_threshold": 7, "block_size": 4},
    "chunks of 512": {"long_prefill_token_threshold": 512},
    "a step of 512 tokens": {"max_num_batched_tokens": 512},
    "a step of 7 tokens": {"max_num_batched_tokens": 7, "max_num_seqs": 7},
    "three at a time": {"max_num_seqs": 3},
    "no prefix cache": {"enable_prefix_caching": False},
    "batch invariant": {"batch_invariant": True},
    "whole prompts only": {"enable_chunked_prefill": False},
}


@dataclass
class Exam:
    """Prompts of one checkpoint with the oracle's tokens for them, computed once."""

    model: str
    prompts: list[list[int]]
    oracle: Oracle
    expected: list[Continuation]
    close_calls: dict[str, list[CloseCall]]

    def check(self, llm: LLM, way: str) -> list[Any]:
        """Runs all prompts at once and applies the rule; returns the outputs."""
        outputs = llm.generate([{"prompt_token_ids": p} for p in self.prompts], GREEDY)
        self.judge(way, [o.outputs[0].token_ids for o in outputs])
        return outputs

    def judge(self, way: str, tokens: list[list[int]], every: int = 1) -> None:
        self.close_calls[way] = self.oracle.compare(self.prompts[::every], self.expected[::every], tokens)


def course_prompts(llm: LLM, corpus: Any) -> list[list[int]]:
    """Questions plain and in chats, openings, conversations of several turns, and odd ones."""
    tokenizer, chat = llm.get_tokenizer(), llm.get_tokenizer().apply_chat_template
    entries = corpus.load_entries()
    rng = random.Random(0)
    texts = [corpus.plain_prompt(q) for e in rng.sample(entries, 30) for q in e.questions[:1]]
    texts += [chat(corpus.chat_messages(e.questions[-1])) for e in rng.sample(entries, 30)]
    texts += [chat(corpus.chat_messages((e.held_out or e.questions)[0], "You are a helpful assistant."), enable_thinking=False)
              for e in rng.sample(entries, 16)]
    texts += [opening.prompt for opening in rng.sample(corpus.load_openings(), 16)]
    for turns in (2, 3, 4, 6, 8, 12):
        messages = []
        for entry in rng.sample(entries, turns):
            messages += [*corpus.chat_messages(entry.questions[0]), {"role": "assistant", "content": entry.answer}]
        texts.append(chat(messages[:-1]))
    texts += ["a", " ", "\n", "🙂", "你好，世界", "def f(x):\n    return x", "!" * 50, "the " * 40]
    noise = [[rng.randrange(2000) for _ in range(n)] for n in (1, 2, 15, 16, 17, 100)]
    return [tokenizer.encode(text) for text in texts] + noise


@pytest.fixture(scope="module")
def course_exam(shared_course_llm: LLM, oracle: Oracle, corpus: Any, note: Any) -> Any:
    prompts = course_prompts(shared_course_llm, corpus)
    exam = Exam("course", prompts, oracle, oracle.greedy(prompts, MAX_TOKENS), {})
    yield exam
    report(exam, note, "the course checkpoint")


@pytest.fixture(scope="module")
def random_exam(random_checkpoint: Callable[..., Path], note: Any) -> Any:
    folder = random_checkpoint(SHAPE)
    rng = random.Random(1)
    prompts = [[rng.randrange(SHAPE.vocab_size) for _ in range(rng.choice([1, 4, 16, 33, 70, 150]))] for _ in range(100)]
    prompts += [prompts[i][:20] + prompts[i + 1] for i in range(10)]  # some share a beginning
    random_oracle = Oracle(folder)
    exam = Exam(str(folder), prompts, random_oracle, random_oracle.greedy(prompts, MAX_TOKENS), {})
    yield exam
    report(exam, note, "random weights")


def report(exam: Exam, note: Callable[[str], None], name: str) -> None:
    tokens = sum(len(want.token_ids) for want in exam.expected)
    calls = {way: calls for way, calls in exam.close_calls.items() if calls}
    note(f"greedy tokens, {name}: {len(exam.prompts)} prompts, {tokens} tokens, {len(exam.close_calls)} ways of running "
         f"them; {sum(map(len, calls.values()))} exceptions by the margin rule")
    for way, found in calls.items():
        for call in found:
            note(f"    {way}: {call}")


@pytest.fixture(params=["course", "random"])
def exam(request: pytest.FixtureRequest) -> Exam:
    return request.getfixturevalue(f"{request.param}_exam")


def test_the_exam_is_worth_taking(exam: Exam) -> None:
    """At least 100 prompts of many lengths; answers that differ; the random network does not loop."""
    assert len(exam.prompts) >= 100
    assert len({len(p) for p in exam.prompts}) >= 6
    assert max(len(p) for p in exam.prompts) >= 128
    answers = {tuple(want.token_ids) for want in exam.expected}
    assert len(answers) >= 90
    assert len({token for answer in answers for token in answer}) >= 300


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.proof)], ids=["some", "all"])
def test_each_prompt_alone_equals_transformers(every: int, exam: Exam, make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(exam.model)
    outputs = [llm.generate({"prompt_token_ids": p}, GREEDY)[0] for p in exam.prompts[::every]]
    exam.judge("alone", [o.outputs[0].token_ids for o in outputs], every)


@pytest.mark.share(3)
@pytest.mark.parametrize("way", MANY_WAYS)
def test_greedy_tokens_equal_transformers(way: str, exam: Exam, make_llm: Callable[..., LLM]) -> None:
    exam.check(make_llm(exam.model, **MANY_WAYS[way]), way)


@pytest.mark.share(1)
@pytest.mark.parametrize("chunk", [0, 7])
@pytest.mark.parametrize("block_size", [1, 16])
def test_greedy_tokens_equal_transformers_under_preemption(
    block_size: int, chunk: int, exam: Exam, make_llm: Callable[..., LLM]
) -> None:
    """The pool holds the longest request and one token more, so the others must make room again and again."""
    longest = max(map(len, exam.prompts)) + MAX_TOKENS
    recorder = Recorder()
    llm = make_llm(exam.model, block_size=block_size, num_gpu_blocks_override=-(-(longest + 1) // block_size) + 1,
                   long_prefill_token_threshold=chunk, recorder=recorder)
    outputs = exam.check(llm, f"preemption, blocks of {block_size}, chunks of {chunk or 'any'}")
    preempted = sum(len(step["preempted"]) for step in recorder.steps)
    assert preempted >= 20
    assert sum(o.metrics.num_preemptions for o in outputs) == preempted


@pytest.mark.share(1)
def test_greedy_tokens_do_not_depend_on_sampled_neighbours(exam: Exam, make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(exam.model, max_num_seqs=16)
    prompts = [{"prompt_token_ids": p} for p in exam.prompts for _ in range(2)]
    hot = SamplingParams(temperature=1.5, top_p=0.9, seed=7, repetition_penalty=1.2, max_tokens=MAX_TOKENS)
    outputs = llm.generate(prompts, [GREEDY, hot] * len(exam.prompts))
    exam.judge("beside sampled requests", [o.outputs[0].token_ids for o in outputs[::2]])


def test_a_wrong_token_is_not_excused_by_the_margin_rule(course_exam: Exam) -> None:
    """The rule itself: what it forbids, what it allows, what it counts."""
    oracle, prompts, expected = course_exam.oracle, course_exam.prompts[:1], course_exam.expected[:1]
    right = expected[0].token_ids
    assert oracle.compare(prompts, expected, [list(right)]) == []
    with pytest.raises(AssertionError, match="not the oracle's best"):
        oracle.compare(prompts, expected, [[right[0] + 1, *right[1:]]])
    with pytest.raises(AssertionError, match="tokens, the oracle has"):
        oracle.compare(prompts, expected, [right[:-1]])
