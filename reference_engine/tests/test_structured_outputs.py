"""Structured outputs: what comes out matches, whatever the model would have liked to say."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.exceptions import GenerationError, InvalidParametersError
from nano_qwen3_serving.sampling_params import StructuredOutputsParams
from nano_qwen3_serving.testing.tiny_tokenizer import write_tokenizer
from nano_qwen3_serving.text.grammar import GrammarCompiler
from nano_qwen3_serving.text.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

SCHEMA = {
    "type": "object",
    "properties": {"blocks": {"type": "integer", "minimum": 0, "maximum": 999}, "state": {"enum": ["free", "held"]}},
    "required": ["blocks", "state"],
    "additionalProperties": False,
}


def structured(seed: int = 0, max_tokens: int = 120, **form) -> SamplingParams:
    return SamplingParams(
        temperature=1.0, seed=seed, max_tokens=max_tokens, structured_outputs=StructuredOutputsParams(**form))


def generated(llm: LLM, params: SamplingParams, prompt: str = "How many blocks?") -> tuple[str, str | None]:
    completion = llm.generate(prompt, params)[0].outputs[0]
    return completion.text, completion.finish_reason


@pytest.mark.parametrize("seed", range(5))
def test_a_json_schema_is_obeyed(course_llm: LLM, seed: int):
    text, reason = generated(course_llm, structured(seed, json=SCHEMA))
    value = json.loads(text)
    assert isinstance(value["blocks"], int) and value["state"] in ("free", "held") and len(value) == 2
    assert reason == "stop"


def test_a_schema_may_be_given_as_text(course_llm: LLM):
    assert json.loads(generated(course_llm, structured(json=json.dumps(SCHEMA)))[0]).keys() == {"blocks", "state"}


@pytest.mark.parametrize("seed", range(5))
def test_a_regex_matches_the_whole_text(course_llm: LLM, seed: int):
    text, reason = generated(course_llm, structured(seed, regex=r"[0-9]{3}-[a-z]{2,5}"))
    assert re.fullmatch(r"[0-9]{3}-[a-z]{2,5}", text) and reason == "stop"


def test_every_choice_can_come_out_and_nothing_else(course_llm: LLM):
    choices = ["yes", "no", 'say "perhaps"']
    seen = {generated(course_llm, structured(seed, choice=choices))[0] for seed in range(40)}
    assert seen <= set(choices) and len(seen) >= 2


def test_a_grammar_in_larks_notation_is_obeyed(course_llm: LLM):
    text, _ = generated(course_llm, structured(grammar='start: "block " /[0-9]/ (", " /[0-9]/)~2'))
    assert re.fullmatch(r"block \d, \d, \d", text)


def test_neighbours_without_a_grammar_say_what_they_would_alone(course_llm: LLM):
    plain = SamplingParams(temperature=0, max_tokens=12)
    alone = course_llm.generate("What is a KV cache?", plain)[0].outputs[0].token_ids
    together = course_llm.generate(["What is a KV cache?", "How many?"], [plain, structured(json=SCHEMA)])
    assert together[0].outputs[0].token_ids == alone
    json.loads(together[1].outputs[0].text)


def test_the_state_of_the_grammar_survives_preemption(make_llm: Callable[..., LLM]):
    roomy = make_llm(block_size=4, num_gpu_blocks_override=200)
    tight = make_llm(block_size=4, num_gpu_blocks_override=12)
    params = [structured(seed, max_tokens=40, regex=r"([a-z]{3} ){9}end") for seed in range(4)]
    expected = [o.outputs[0].text for o in roomy.generate(["Say words"] * 4, params)]
    outputs = tight.generate(["Say words"] * 4, params)
    assert sum(o.metrics.num_preemptions for o in outputs) > 0
    assert [o.outputs[0].text for o in outputs] == expected


def test_each_of_n_completions_has_a_state_of_its_own(course_llm: LLM):
    params = SamplingParams(n=3, seed=1, max_tokens=60, structured_outputs=StructuredOutputsParams(json=SCHEMA))
    completions = course_llm.generate("How many?", params)[0].outputs
    assert [json.loads(c.text).keys() for c in completions] == [{"blocks", "state"}] * 3


@pytest.mark.parametrize("form", [{"regex": "[0-9"}, {"json": {"type": "no such type"}}, {"grammar": "start: ("}])
def test_a_malformed_grammar_is_refused_before_anything_is_queued(course_llm: LLM, form: dict):
    with pytest.raises(InvalidParametersError, match="structured_outputs"):
        course_llm.generate("x", structured(**form))
    assert not course_llm.llm_engine.has_unfinished_requests()


@pytest.mark.parametrize("form", [{}, {"json": {}, "regex": "a"}, {"regex": ""}, {"choice": []}, {"choice": [""]},
                                  {"json_object": False}, {"regex": 3}])
def test_exactly_one_form_of_the_right_type(form: dict):
    with pytest.raises(InvalidParametersError, match="structured_outputs"):
        StructuredOutputsParams(**form)


def test_a_grammar_that_leaves_no_token_fails_its_request_alone(course_llm: LLM):
    impossible = structured(choice=["yes"]).clone(allowed_token_ids=[course_llm.get_tokenizer().encode("z")[0]])
    plain = SamplingParams(temperature=0, max_tokens=8)
    with pytest.raises(GenerationError, match="no token") as failure:
        course_llm.generate(["Yes?", "What is a KV cache?"], [impossible, plain])
    bad, good = failure.value.outputs
    assert bad.outputs[0].finish_reason == "error"
    assert good.outputs[0].finish_reason == "length" and len(good.outputs[0].token_ids) == 8
    course_llm.llm_engine.check_invariants()


def test_without_the_library_the_error_names_the_extra(course_llm: LLM, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InvalidParametersError, match=r"\[structured\]"):
        course_llm.generate("x", structured(regex="a"))


CONSTANTS = [
    "plain", "<|im_end|>", "a<|im_end|>b<|endoftext|>", "<think>", "<tool_call>\n{}\n</tool_call>", "e\u0301", "\u212b", "ﬁ①ｱ",
    "\u1100\u1161\u11a8", "🙂👩\u200d👧", "<|im_end", "  two  spaces ", "\u0344", "a\u0315\u0300", "<|image_pad|><|fim_prefix|>",
]  # fmt: skip


@pytest.mark.parametrize("constant", CONSTANTS, ids=ascii)
def test_a_constant_comes_out_as_it_is_whatever_the_tokenizer_would_make_of_it(course_llm: LLM, constant: str):
    """Special tokens written in it, other added tokens, and characters that the tokenizer would compose."""
    for form in ({"json": {"const": constant}}, {"choice": [constant]}, {"regex": re.escape(constant)}):
        text, reason = generated(course_llm, structured(max_tokens=120, **form).clone(temperature=0.0))
        assert (json.loads(text) if "json" in form else text, reason) == (constant, "stop"), form


def test_an_added_token_that_is_text_may_be_generated_as_one_token(course_llm: LLM):
    """A model that was trained to call tools says `<tool_call>` in one token, and a grammar lets it."""
    tokenizer = course_llm.get_tokenizer()
    (call,) = tokenizer.encode("<tool_call>")
    params = structured(regex=r"<tool_call>[a-z]{3}</tool_call>").clone(logit_bias={call: 100.0})
    completion = course_llm.generate("Call it.", params)[0].outputs[0]
    assert completion.token_ids[0] == call
    assert re.fullmatch(r"<tool_call>[a-z]{3}</tool_call>", completion.text)


def qwen_compiler(folder: Path, vocab_size: int = 320) -> tuple[Tokenizer, GrammarCompiler]:
    """Qwen3's added tokens and normaliser over a vocabulary of bytes, in a network with rows to spare."""
    write_tokenizer(folder)
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_token_id is not None
    return tokenizer, GrammarCompiler(tokenizer, vocab_size, [tokenizer.eos_token_id])


@pytest.mark.parametrize("constant", CONSTANTS, ids=ascii)
def test_with_qwens_added_tokens_every_allowed_path_spells_the_constant(tmp_path: Path, constant: str):
    """A path is any choice among the allowed tokens: here the first, the last, and seeded ones."""
    tokenizer, compiler = qwen_compiler(tmp_path)
    for seed in range(6):
        grammar = compiler.compile(StructuredOutputsParams(choice=[constant]))
        rng, said = random.Random(seed), []
        while True:
            allowed = grammar.allowed().nonzero().flatten().tolist()
            token = allowed[0] if seed == 0 else allowed[-1] if seed == 1 else rng.choice(allowed)
            grammar.accept([token])
            if token == tokenizer.eos_token_id:
                break
            said.append(token)
        assert tokenizer.decode(said) == constant
        assert b"".join(map(tokenizer.token_bytes, said)).decode() == constant


def test_tokens_for_which_the_network_has_no_row_are_left_out(tmp_path: Path):
    tokenizer, compiler = qwen_compiler(tmp_path, vocab_size=300)
    assert len(tokenizer) < 300
    (think,) = tokenizer.encode("<think>")
    small = GrammarCompiler(tokenizer, think, [tokenizer.eos_token_id or 0])
    for each, columns, first in ((compiler, 300, think), (small, think, tokenizer.encode("<")[0])):
        allowed = each.compile(StructuredOutputsParams(regex="<think>.*")).allowed()
        assert len(allowed) == columns and allowed.nonzero().flatten().tolist() == [first]


def test_without_an_eos_token_structured_outputs_are_refused_with_the_way_out(tmp_path: Path):
    write_tokenizer(tmp_path)
    compiler = GrammarCompiler(Tokenizer.from_folder(tmp_path), 320, [])
    with pytest.raises(InvalidParametersError, match="eos_token"):
        compiler.compile(StructuredOutputsParams(choice=["a"]))
