"""Several tokens a step: drafts, what becomes of them, and that nobody can tell from the tokens."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from nano_qwen3_serving.engine.arg_utils import EngineArgs
from nano_qwen3_serving.engine.llm_engine import LLMEngine
from nano_qwen3_serving.execution.sampler import Sampler
from nano_qwen3_serving.execution.verifier import SamplingVerifier
from nano_qwen3_serving.interfaces import SamplingRow
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.sampling_params import SamplingParams
from nano_qwen3_serving.testing.doubles import continuation, double_components
from nano_qwen3_serving.testing.fuzz.grammars import ByteGrammarCompiler
from nano_qwen3_serving.testing.telltale import LETTERS, TellTaleDrafter

VOCABULARY = 40


class Script:
    """A drafter that knows what comes, up to a number of tokens."""

    def __init__(self, right: int = 100):
        self.right, self.asked = right, 0

    def propose(self, requests, num_drafts):
        self.asked += 1
        each = []
        for request in requests:
            tokens = request.token_ids(0, request.num_tokens)
            each.append([*continuation(tokens, min(self.right, num_drafts)), ord("?")][:num_drafts])
        return each


def engine(drafter=None, num_drafts: int = 4, blocks: int = 33, **bounds) -> LLMEngine:
    """An engine around the telltale model."""
    args = EngineArgs(model="course", num_gpu_blocks_override=blocks, block_size=4, check_invariants=True)
    config = args.create_engine_config()
    config = replace(config, scheduler=replace(config.scheduler, num_speculative_tokens=num_drafts, **bounds))
    return LLMEngine(config, double_components(drafter=lambda config: drafter), recorder=Recorder())


def run(engine: LLMEngine, *requests: tuple[str, SamplingParams]) -> dict:
    """The last output of each prompt, by the prompt; nothing may be left."""
    for prompt, params in requests:
        engine.add_request(prompt, prompt, params)
    last = {}
    while engine.has_unfinished_requests():
        last |= {output.request_id: output for output in engine.step()}
    engine.check_invariants()
    return {name: output.outputs[0] for name, output in last.items()}


def greedy(**wishes) -> SamplingParams:
    return SamplingParams(temperature=0.0, **wishes)


def steps(engine: LLMEngine) -> list[dict]:
    return engine.recorder.steps


# --- how many steps, and the same tokens


def test_right_drafts_make_five_tokens_a_step_and_wrong_ones_one():
    for right, expected in ((4, 1 + 4), (0, 20)):
        mine = engine(Script(right))
        assert run(mine, ("hello", greedy(max_tokens=20)))["hello"].token_ids == continuation("hello", 20)
        assert len(steps(mine)) == expected, f"{right} of 4 drafts are right"


@pytest.mark.parametrize("seed", range(4))
def test_tokens_text_reasons_and_logprobs_are_those_without_drafts(seed):
    rng = random.Random(seed)
    wishes = [
        SamplingParams(
            temperature=rng.choice([0.0, 1.0]), seed=rng.randrange(99), max_tokens=rng.randint(1, 30), logprobs=2,
            min_tokens=rng.choice([0, 1]), stop=rng.choice([None, ["e", "ab"], [" "]]),
            stop_token_ids=rng.choice([None, [ord("q")]]), presence_penalty=rng.choice([0.0, 1.5]),
            bad_words=rng.choice([None, ["a"]]))
        for _ in range(6)]
    requests = [(f"prompt number {i}"[: rng.randint(1, 15)] + str(i), params) for i, params in enumerate(wishes)]
    drafted = engine(TellTaleDrafter(LETTERS))
    assert run(drafted, *requests) == run(engine(), *requests)
    assert any(chunk["num_tokens"] > 1 for step in steps(drafted)[1:] for chunk in step["chunks"]), "no step had a draft"


# --- where an answer ends


def test_token_ids_logprobs_and_text_end_together_where_a_stop_string_ends_them():
    whole = bytes(continuation("hello", 12)).decode()
    stop = whole[6:8]
    end = whole.index(stop) + 2
    wishes = greedy(max_tokens=12, stop=[stop], logprobs=0, include_stop_str_in_output=True)
    mine = run(engine(Script()), ("hello", wishes))["hello"]
    assert (mine.text, mine.finish_reason, mine.stop_reason) == (whole[:end], "stop", stop)
    assert mine.token_ids == list(whole[:end].encode()) and len(mine.logprobs) == end


def test_a_request_that_a_stop_string_ends_generated_what_belongs_to_it():
    whole = bytes(continuation("hello", 12)).decode()
    mine = engine(Script())
    mine.add_request("A", "hello", greedy(max_tokens=12, stop=[whole[3]]))
    outputs = []
    while mine.has_unfinished_requests():
        outputs += mine.step()
    assert outputs[-1].metrics.num_generation_tokens == len(outputs[-1].outputs[0].token_ids) == whole.index(whole[3]) + 1


@pytest.mark.parametrize("end", ["eos", "stop token", "length"])
def test_nothing_follows_the_first_token_that_ends_an_answer(end):
    whole = continuation("hello", 12)
    wishes = {"eos": {"max_tokens": 12}, "stop token": {"max_tokens": 12, "stop_token_ids": [whole[6]]},
              "length": {"max_tokens": 7}}
    parts = double_components(drafter=lambda config: Script())
    config = engine().config
    if end == "eos":
        config = replace(config, model=replace(config.model, eos_token_ids=(whole[6],)))
    mine = LLMEngine(config, parts)
    got = run(mine, ("hello", greedy(**wishes[end])))["hello"]
    first = whole.index(whole[6]) + 1 if end != "length" else 7
    assert got.token_ids == whole[:first] and got.finish_reason == ("length" if end == "length" else "stop")


def test_no_draft_goes_past_the_last_token_that_a_request_can_have():
    mine = engine(Script(), num_drafts=8)
    run(mine, ("hello", greedy(max_tokens=6)))
    assert [chunk["num_tokens"] for step in steps(mine) for chunk in step["chunks"]] == [5, 5]  # 4 drafts and 1, not 8


# --- drafts take nothing from anybody


def test_drafts_leave_every_running_request_its_token():
    mine = engine(Script(), num_drafts=4, max_num_batched_tokens=6, max_num_seqs=4)
    run(mine, *((name, greedy(max_tokens=12, min_tokens=12)) for name in ("a", "b", "c")))
    for step in steps(mine):
        assert {chunk["request"] for chunk in step["chunks"]} >= set(step["running"])
        assert sum(chunk["num_tokens"] for chunk in step["chunks"]) <= 6


def test_nobody_is_preempted_for_a_draft():
    mine = engine(Script(), blocks=1 + 6)
    run(mine, ("a", greedy(max_tokens=11)), ("b", greedy(max_tokens=11)))  # 12 tokens each: 3 blocks each, all there are
    assert not any(step["preempted"] for step in steps(mine))


def test_a_drafter_that_fails_is_not_asked_again_and_costs_no_token(caplog):
    class Fails(Script):
        def propose(self, requests, num_drafts):
            super().propose(requests, num_drafts)
            raise RuntimeError("no idea")

    drafter = Fails()
    assert run(engine(drafter), ("hello", greedy(max_tokens=9)))["hello"].token_ids == continuation("hello", 9)
    assert drafter.asked == 1 and "no idea" in caplog.text


# --- the verifier


def row(seed: int = 1, output=(), grammar=None, **wishes) -> SamplingRow:
    return SamplingRow(SamplingParams(**wishes), [1, 2], list(output), seed, grammar=grammar)


def test_drafts_stand_as_long_as_they_are_what_would_be_drawn():
    logits = torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(3))
    sampler = Sampler()
    alone = []
    for i in range(5):
        alone += sampler.sample(logits[i : i + 1], [row(output=alone, temperature=1.0)])[0]
    for right in range(5):
        drafts = [*alone[:right], *[(t + 1) % VOCABULARY for t in alone[right:4]]]
        tokens, logprobs = SamplingVerifier(sampler).verify(logits, [row(temperature=1.0)], [drafts])
        assert tokens == [alone[: right + 1]] and logprobs == [None]


def test_rows_of_several_requests_are_cut_where_their_drafts_are():
    logits = torch.zeros(6, VOCABULARY)
    logits[range(6), [3, 4, 5, 6, 7, 8]] = 1.0  # A: 3 then 4; B: 5; C: 6, 7, 8
    rows = [row(temperature=0.0, logprobs=1), row(temperature=0.0), row(temperature=0.0)]
    tokens, logprobs = SamplingVerifier(Sampler()).verify(logits, rows, [[3], [], [6, 9]])
    assert tokens == [[3, 4], [5], [6, 7]]
    assert [len(each) if each else None for each in logprobs] == [2, None, None]


def test_a_forbidden_draft_is_not_looked_at_and_the_grammar_stays_where_it_is():
    from nano_qwen3_serving.sampling_params import StructuredOutputsParams

    grammar = ByteGrammarCompiler(257, 256).compile(StructuredOutputsParams(choice=["ab", "ac"]))
    logits = torch.zeros(3, 257)
    tokens, _ = SamplingVerifier(Sampler()).verify(logits, [row(temperature=0.0, grammar=grammar)], [[ord("a"), ord("z")]])
    assert tokens == [[ord("a"), ord("b")]] and grammar.allowed().nonzero().flatten().tolist() == [ord("a")]


def test_a_wrong_draft_that_leads_to_where_nothing_can_be_drawn_harms_nobody():
    logits = torch.zeros(3, VOCABULARY)
    logits[:, 5] = 1.0

    class Stuck(Sampler):
        def sample(self, logits, rows):
            if any(r.output_token_ids[-1:] == [9] for r in rows):
                raise ValueError("no token is allowed")
            return super().sample(logits, rows)

    tokens, _ = SamplingVerifier(Stuck()).verify(logits, [row(temperature=0.0), row(temperature=0.0)], [[9], []])
    assert tokens == [[5], [5]]
    with pytest.raises(ValueError, match="no token is allowed"):
        SamplingVerifier(Stuck()).verify(logits[:1], [row(temperature=0.0, output=[9])], [[]])
