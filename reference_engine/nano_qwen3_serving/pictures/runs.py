"""Runs to look at: named requests on the course's model, and what the flight recorder noted of each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nano_qwen3_serving.engine.arg_utils import EngineArgs
from nano_qwen3_serving.engine.llm_engine import LLMEngine
from nano_qwen3_serving.llm import LLM
from nano_qwen3_serving.observe.trace import Recorder
from nano_qwen3_serving.outputs import RequestOutput
from nano_qwen3_serving.sampling_params import SamplingParams


def record(requests: Mapping[str, tuple[int, int]], **engine_args: Any) -> list[dict[str, Any]]:
    """The flight recorder's steps of a run in which all requests are there from the beginning.

    Blocks have 4 slots and none is shared, unless `engine_args` say otherwise.

    Args:
        requests: tokens of the prompt and tokens to generate, by name. Which tokens they are does not matter.
        engine_args: of the engine.
    """
    chosen: dict[str, Any] = {"model": "course", "block_size": 4, "enable_prefix_caching": False} | engine_args
    engine = LLMEngine.from_engine_args(EngineArgs(**chosen), recorder=Recorder())
    for i, (name, (prompt, new)) in enumerate(requests.items()):
        params = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True)
        engine.add_request(name, {"prompt_token_ids": list(range(300 + 7 * i, 300 + 7 * i + prompt))}, params)
    while engine.has_unfinished_requests():
        engine.step()
    assert engine.recorder is not None
    return engine.recorder.steps


def warm_llm() -> tuple[LLM, Recorder]:
    """The course's model, which has answered once already, because the very first call is slower; and its flight recorder."""
    recorder = Recorder()
    llm = LLM("course", recorder=recorder)
    llm.generate("Hello!", SamplingParams(max_tokens=4), use_tqdm=False)
    recorder.steps.clear()
    return llm, recorder


def on_a_clock(
    requests: Mapping[str, tuple[int, int, float]], ends: Sequence[float], **engine_args: Any
) -> tuple[dict[str, list[float]], dict[str, RequestOutput]]:
    """When each request's tokens came, in a run on a clock that is set by hand, and the last output of each request.

    Args:
        requests: tokens of the prompt, tokens to generate and time of arrival, by name.
        ends: when each step ends.
        engine_args: of the engine.
    """
    now = 0.0
    chosen: dict[str, Any] = {"model": "course", "block_size": 4} | engine_args
    engine = LLMEngine.from_engine_args(EngineArgs(**chosen), clock=lambda: now, recorder=Recorder())
    for i, (name, (prompt, new, now)) in enumerate(requests.items()):
        params = SamplingParams(temperature=0.0, max_tokens=new, ignore_eos=True)
        engine.add_request(name, {"prompt_token_ids": [300 + i] * prompt}, params)
    last: dict[str, RequestOutput] = {}
    for now in ends:
        last |= {output.request_id: output for output in engine.step()}
    assert engine.recorder is not None
    return {name: [step["time"] for step in engine.recorder.steps if name in step["sampled"]] for name in requests}, last


def apart_and_together(
    prompts: Sequence[str], params: SamplingParams
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[RequestOutput]]:
    """The steps of one call for each prompt, those of one call for all, and the outputs of the latter.

    Raises:
        AssertionError: an answer differs.
    """
    alone, batch = (LLM("course", recorder=Recorder()) for _ in range(2))
    apart = [alone.generate(prompt, params, use_tqdm=False)[0] for prompt in prompts]
    together = batch.generate(list(prompts), params, use_tqdm=False)
    assert [o.outputs[0].token_ids for o in together] == [o.outputs[0].token_ids for o in apart]
    assert alone.llm_engine.recorder is not None
    assert batch.llm_engine.recorder is not None
    return alone.llm_engine.recorder.steps, batch.llm_engine.recorder.steps, together


def in_groups(lengths: Sequence[int], size: int, max_num_seqs: int) -> list[dict[str, Any]]:
    """The steps of an engine that is given so many requests at once, and more only when all of these are done.

    Args:
        lengths: tokens that each request generates.
        size: requests in a group.
        max_num_seqs: the engine's.
    """
    recorder = Recorder()
    llm = LLM("course", max_num_seqs=max_num_seqs, recorder=recorder)
    params = [SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True) for length in lengths]
    for i in range(0, len(lengths), size):
        group = params[i : i + size]
        llm.generate(["Once upon a time"] * len(group), group, use_tqdm=False)
    return recorder.steps


def with_and_without_cache(prompt: str, new: int) -> tuple[list[int], list[int]]:
    """Tokens that are computed in each step of one request, with its keys and values kept, and with none kept.

    Without a cache means: a request of its own for every token, whose prompt is all the text so far.

    Raises:
        AssertionError: the two answers differ.
    """
    recorder = Recorder()
    llm = LLM("course", dtype="float32", enable_prefix_caching=False, recorder=recorder)

    def generate(token_ids: list[int], count: int) -> tuple[list[int], list[int]]:
        recorder.steps.clear()
        params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
        (output,) = llm.generate([{"prompt_token_ids": token_ids}], params, use_tqdm=False)
        return output.outputs[0].token_ids, [sum(chunk["num_tokens"] for chunk in step["chunks"]) for step in recorder.steps]

    beginning = llm.get_tokenizer().encode(prompt)
    answer, cached = generate(beginning, new)
    passes = [generate(beginning + answer[:n], 1) for n in range(new)]
    assert [token for (token,), _ in passes] == answer
    return cached, [count for _, (count,) in passes]
