"""The truth behind predict.toml: each question's function runs the engine or a part of it."""

import functools
import re

import torch

from nano_qwen3_serving import LLM, EngineArgs, LLMEngine, SamplingParams
from nano_qwen3_serving.execution.sampler import Sampler
from nano_qwen3_serving.interfaces import SamplingRow
from nano_qwen3_serving.observe.trace import Recorder

COUNT = "Count to ten."
STORY = "Once upon a time"


def case(random) -> dict:
    """Four probabilities, and how many requests of what length."""
    percent = random.choice([(50, 25, 15, 10), (40, 35, 15, 10), (60, 20, 15, 5), (45, 30, 20, 5)])
    copies, shortest, gap = random.randint(3, 9), random.randint(2, 6), random.randint(3, 20)
    longest, first, tokens = random.randint(8, 20), random.randint(20, 90), random.randint(4, 12)
    return {f"p{i}": p for i, p in enumerate(percent)} | {
        "top_p": random.choice([0.3, 0.55, 0.7, 0.85, 0.99]),
        "copies": copies,
        "seed": random.randint(1, 999),
        "stop": random.randint(3, 9),
        "limit": random.choice([12, 20, 28, 40, 64]),
        "longest": longest,
        "shortest": shortest,
        "others": copies - 1,
        "one_by_one": longest + (copies - 1) * shortest,
        "first": first,
        "tokens": tokens,
        "gaps": tokens - 1,
        "gap": gap,
        "last": first + gap * (tokens - 1),
    }


def greedy_answers(case: dict) -> int:
    params = [SamplingParams(temperature=0.0, seed=seed, max_tokens=12) for seed in range(case["copies"])]
    return len({output.outputs[0].text for output in _course().generate(["What is a token?"] * len(params), params)})


def drawable(case: dict) -> int:
    """Draws so often that a token of 5 percent is missed with a probability under 1e-22."""
    logits = torch.tensor([[case[f"p{i}"] / 100 for i in range(4)]]).log()
    params = SamplingParams(top_p=case["top_p"], seed=0)
    rows = [SamplingRow(params, prompt_token_ids=[0] * position, output_token_ids=[], seed=0) for position in range(1000)]
    drawn, _ = Sampler().sample(logits.expand(len(rows), -1), rows)
    return len(set(drawn))


def same_seed(case: dict) -> str:
    params = [SamplingParams(temperature=0.8, seed=case["seed"] + i, max_tokens=12) for i in range(case["copies"])]
    alone, *_ = _course().generate(STORY, params[0])
    crowd = _course().generate([STORY] * len(params), params)
    return "the same" if crowd[0].outputs[0].token_ids == alone.outputs[0].token_ids else "another"


def last_number(case: dict) -> int:
    [output] = _course().generate(COUNT, SamplingParams(temperature=0.0, max_tokens=64, stop=str(case["stop"])))
    return int(re.findall(r"\d+", output.outputs[0].text)[-1])


def ending(case: dict) -> str:
    [output] = _course().generate(COUNT, SamplingParams(temperature=0.0, max_tokens=case["limit"]))
    return output.outputs[0].finish_reason


def batch_steps(case: dict) -> int:
    lengths = [case["longest"]] + [case["shortest"]] * case["others"]
    llm = LLM(model="course-draft", recorder=Recorder())
    llm.generate([STORY] * len(lengths), [_exactly(length) for length in lengths])
    return len(llm.llm_engine.recorder.steps)


def mean_itl_ms(case: dict) -> int:
    """The engine on a clock of our own, in milliseconds, moved between its steps."""
    now = 0.0
    engine = LLMEngine.from_engine_args(EngineArgs(model="course-draft"), clock=lambda: now)
    engine.add_request("a", STORY, _exactly(case["tokens"]))
    now, shown = float(case["first"]), []
    while engine.has_unfinished_requests():
        shown += engine.step()
        now += case["gap"]
    times = shown[-1].metrics
    return round((times.last_token_ts - times.first_token_ts) / (times.num_generation_tokens - 1))


def _exactly(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)


@functools.cache
def _course() -> LLM:
    return LLM(model="course")
