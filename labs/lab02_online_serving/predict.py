"""The truth behind predict.toml: each question's function runs the engine and reads its recorder."""

import functools
import itertools

from nano_qwen3_serving import EngineArgs, LLMEngine, RequestOutput, SamplingParams
from nano_qwen3_serving.observe.trace import Recorder

NAMES = "abc"


def case(random) -> dict:
    """Three requests: prompt lengths, and different numbers of tokens to generate."""
    prompts = [random.randint(3, 15) for _ in NAMES]
    tokens = random.sample(range(3, 13), 3)
    return {f"prompt_{name}": length for name, length in zip(NAMES, prompts, strict=True)} | {
        f"tokens_{name}": count for name, count in zip(NAMES, tokens, strict=True)
    }


def steps_alone(case: dict) -> int:
    steps, _ = _run(case, "a")
    return len(steps)


def steps_one_by_one(case: dict) -> int:
    return sum(len(_run(case, name)[0]) for name in NAMES)


def steps_together(case: dict) -> int:
    steps, _ = _run(case, NAMES)
    return len(steps)


def first_to_finish(case: dict) -> str:
    steps, _ = _run(case, NAMES)
    return next(name for step in steps for name in step["finished"]).upper()


def blocks_of_a(case: dict) -> int:
    steps, _ = _run(case, "a")
    return len(steps[-1]["block_tables"]["a"])


def reason(case: dict) -> str:
    _, outputs = _run(case, "a")
    return outputs["a"].outputs[0].finish_reason


def _run(case: dict, names: str) -> tuple[list[dict], dict[str, RequestOutput]]:
    """Serve the requests `names` together: the recorder's steps, and each request's last output."""
    return _run_once(names, tuple(sorted(case.items())))


@functools.cache
def _run_once(names: str, numbers: tuple) -> tuple[list[dict], dict[str, RequestOutput]]:
    case = dict(numbers)
    engine = LLMEngine.from_engine_args(EngineArgs(model="course-draft", block_size=4), recorder=Recorder())
    for name in names:
        first = 300 + 100 * NAMES.index(name)
        prompt = {"prompt_token_ids": list(itertools.islice(itertools.count(first), case[f"prompt_{name}"]))}
        params = SamplingParams(temperature=0.0, max_tokens=case[f"tokens_{name}"], ignore_eos=True)
        engine.add_request(name, prompt, params)
    outputs = {}
    while engine.has_unfinished_requests():
        outputs |= {output.request_id: output for output in engine.step()}
    return engine.recorder.steps, outputs
