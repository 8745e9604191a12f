"""Log-probabilities of the prompt's own tokens, against transformers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nano_qwen3_serving import LLM, SamplingParams
from nano_qwen3_serving.testing.oracle import Oracle

PROMPT = "A block table maps the positions of a request to blocks of the KV cache, and 你好 🙂."


def check(output, oracle: Oracle, count: int) -> None:
    """Every token's value, rank and the `count` best ones are the oracle's."""
    ids = output.prompt_token_ids
    expected = torch.log_softmax(oracle.logits(ids), dim=-1)
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(ids)
    for i, entry in enumerate(output.prompt_logprobs[1:], start=1):
        row = expected[i - 1]
        assert entry[ids[i]].logprob == pytest.approx(float(row[ids[i]]), abs=1e-3)
        assert set(entry) >= set(row.topk(count).indices.tolist()) and len(entry) <= count + 1
        assert next(iter(entry)) == ids[i], "the prompt's own token comes first"


@pytest.mark.parametrize("chunk", [0, 1, 5])
def test_they_are_the_oracles_however_the_prompt_is_chunked(make_llm: Callable[..., LLM], oracle: Oracle, chunk: int):
    llm = make_llm(long_prefill_token_threshold=chunk, num_gpu_blocks_override=64)
    check(llm.generate(PROMPT, SamplingParams(max_tokens=2, prompt_logprobs=3))[0], oracle, 3)


def test_a_cached_prompt_is_computed_again_for_them(course_llm: LLM, oracle: Oracle):
    params = SamplingParams(temperature=0, max_tokens=2)
    course_llm.generate(PROMPT, params)
    output = course_llm.generate(PROMPT, params.clone(prompt_logprobs=1))[0]
    assert output.num_cached_tokens == 0
    check(output, oracle, 1)


def test_their_text_is_the_tokens(course_llm: LLM):
    output = course_llm.generate("What is a KV cache?", SamplingParams(max_tokens=1, prompt_logprobs=0))[0]
    texts = [entry[i].decoded_token for entry, i in zip(output.prompt_logprobs[1:], output.prompt_token_ids[1:], strict=True)]
    assert texts == [" is", " a", " KV", " cache", "?"]


def test_nobody_gets_them_unasked(course_llm: LLM):
    assert course_llm.generate("Hello", SamplingParams(max_tokens=1))[0].prompt_logprobs is None
