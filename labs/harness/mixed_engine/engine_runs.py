"""Running an engine with the labs' parts: a streamed text, and a workload beside the reference."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from labs.harness.mixed_engine.parts import Engine
from labs.harness.mixed_engine.verdict import Remembering, Verdict, judged
from nano_qwen3_serving.bench import WORKLOADS, find_workload, run_workload
from nano_qwen3_serving.engine.arg_utils import EngineArgs
from nano_qwen3_serving.engine.llm_engine import LLMEngine
from nano_qwen3_serving.outputs import RequestOutput
from nano_qwen3_serving.sampling_params import RequestOutputKind, SamplingParams


@dataclass(frozen=True)
class Streamed:
    """The measurements of one generated text."""

    tokens: int
    finish_reason: str | None
    first_token_s: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens ({self.finish_reason}), {self.tokens / self.seconds:.1f} tokens/s, "
            f"the first after {1000 * self.first_token_s:.0f} ms")


def stream(
    engine: Engine, prompt: str, params: SamplingParams, show: Callable[[str], object], **engine_args: Any
) -> Streamed:
    """Completes `prompt`, handing each piece of text to `show`.

    Raises `Stopped`, which says after how many tokens, from the request's error or from the `BrokenPromise` of a part that
    returned an impossible result, such as NaN.
    """
    llm = LLMEngine.from_engine_args(EngineArgs(**engine_args), engine.components)
    started = time.perf_counter()
    llm.add_request("0", prompt, params.clone(output_kind=RequestOutputKind.DELTA))
    tokens, first, reason = 0, 0.0, None
    while llm.has_unfinished_requests():
        for output in _step(llm, engine, tokens):
            new = output.outputs[0]
            first = first or time.perf_counter() - started
            tokens, reason = tokens + len(new.token_ids), new.finish_reason
            show(new.text)
    return Streamed(tokens, reason, first, time.perf_counter() - started)


class Stopped(Exception):
    """A text ended with an error, its `__cause__`."""


def _step(llm: LLMEngine, engine: Engine, tokens: int) -> list[RequestOutput]:
    """A step's outputs. Raises `Stopped` if its request failed, or a part returned an impossible result."""
    try:
        outputs = llm.step()
    except Exception as error:
        raise Stopped(f"Token {tokens + 1} did not come") from error
    failed = next((output.error for output in outputs if output.error is not None), None) or engine.watch.suspect
    if failed is not None:
        raise Stopped(f"Token {tokens + 1} did not come") from failed
    return outputs


@dataclass(frozen=True)
class Benched:
    """The results of `run_workload` for each turn, by name, and whether the learner's engine was right."""

    yours: list[dict[str, float]]
    reference: list[dict[str, float]]
    verdict: Verdict
    shares: dict[str, float]
    """Field of `Components` → the share of the learner's engine's time that its part took."""

    def medians(self) -> dict[str, tuple[float, float]]:
        """Name → the medians of both engines."""
        return {
            name: (statistics.median(run[name] for run in self.yours), statistics.median(run[name] for run in self.reference))
            for name in self.yours[0]}

    def ratios(self, name: str) -> list[float]:
        """Yours divided by the reference's, for each turn, in rising order."""
        return sorted(yours[name] / other[name] for yours, other in zip(self.yours, self.reference, strict=True) if other[name])


def bench(engine: Engine, name: str, repeats: int, seed: int, **engine_args: Any) -> Benched:
    """Runs a workload with the parts of `engine` and with the reference's, in turns, and compares their tokens."""
    workload = find_workload(name)
    yours, reference = Remembering(components=engine.components, **engine_args), Remembering(**engine_args)
    for llm in (yours, reference):
        run_workload(llm, WORKLOADS["quick"], seed)
    engine.watch.seconds.clear()
    runs = [[run_workload(llm, workload, seed) for llm in (yours, reference)] for _ in range(repeats)]
    mine, theirs = ([run[i] for run in runs] for i in (0, 1))
    seconds = sum(run["seconds"] for run in mine)
    shares = {field: spent / seconds for field, spent in engine.watch.seconds.items()}
    return Benched(mine, theirs, judged(engine, yours, reference), shares)
