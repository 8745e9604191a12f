"""Running an engine with the labs' parts: a text as it comes, and a workload beside the reference."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from labs.harness.parts import Engine
from nano_qwen3_serving.bench import WORKLOADS, find_workload, run_workload
from nano_qwen3_serving.engine.arg_utils import EngineArgs
from nano_qwen3_serving.engine.llm_engine import LLMEngine
from nano_qwen3_serving.llm import LLM
from nano_qwen3_serving.sampling_params import RequestOutputKind, SamplingParams


@dataclass(frozen=True)
class Streamed:
    """How a text came."""

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
    """Completes `prompt`, handing each piece of text to `show`. Raises what the request failed with."""
    llm = LLMEngine.from_engine_args(EngineArgs(**engine_args), engine.components)
    started = time.perf_counter()
    llm.add_request("0", prompt, params.clone(output_kind=RequestOutputKind.DELTA))
    tokens, first, reason = 0, 0.0, None
    while llm.has_unfinished_requests():
        for output in llm.step():
            if output.error is not None:
                raise output.error
            new = output.outputs[0]
            first = first or time.perf_counter() - started
            tokens, reason = tokens + len(new.token_ids), new.finish_reason
            show(new.text)
    return Streamed(tokens, reason, first, time.perf_counter() - started)


@dataclass(frozen=True)
class Benched:
    """Medians of `run_workload`, by name."""

    yours: dict[str, float]
    reference: dict[str, float]


def bench(engine: Engine, name: str, repeats: int, seed: int, **engine_args: Any) -> Benched:
    """Runs a workload with the parts of `engine` and with the reference's, in turns; the medians."""
    workload = find_workload(name)
    llms = [LLM(components=engine.components, **engine_args), LLM(**engine_args)]
    for llm in llms:
        run_workload(llm, WORKLOADS["quick"], seed)
    runs = [[run_workload(llm, workload, seed) for llm in llms] for _ in range(repeats)]
    medians = [{key: statistics.median(run[i][key] for run in runs) for key in runs[0][i]} for i in (0, 1)]
    return Benched(*medians)
