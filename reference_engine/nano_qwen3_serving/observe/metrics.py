"""An engine's counts, under the names that dashboards of vLLM read.

Knows outputs and numbers; knows nothing of steps. `LLM.get_metrics` returns these.
"""

from __future__ import annotations

from collections import Counter as Tally
from dataclasses import dataclass, field

from nano_qwen3_serving.observe.observer import EngineObserver
from nano_qwen3_serving.outputs import RequestOutput


@dataclass(frozen=True)
class Metric:
    """One number: its name in Prometheus, and its labels."""

    name: str
    labels: dict[str, str]


@dataclass(frozen=True)
class Counter(Metric):
    """A number that only grows."""

    value: int


@dataclass(frozen=True)
class Gauge(Metric):
    """A current value, which rises and falls."""

    value: float


@dataclass
class EngineCounts(EngineObserver):
    """Sums over the requests that ended since the engine was built.

    Attributes:
        finished: how many completions ended, by finish reason.
        prompt_tokens: tokens of their prompts.
        cached_tokens: how many of these were found in the prefix cache.
        generation_tokens: tokens generated for them.
        preemptions: how often a request lost its blocks.
    """

    name = "counts"

    finished: Tally[str] = field(default_factory=Tally)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0

    def on_end(self, output: RequestOutput, finish_reasons: list[str]) -> None:
        """Counts a request by its last output, and how each of its completions ended."""
        self.finished.update(finish_reasons)
        self.prompt_tokens += len(output.prompt_token_ids)
        self.cached_tokens += output.num_cached_tokens or 0
        if output.metrics is not None:
            self.generation_tokens += output.metrics.num_generation_tokens
            self.preemptions += output.metrics.num_preemptions

    def metrics(self, running: int, waiting: int, kv_cache_usage: float) -> list[Metric]:
        """All of the counters, and the three gauges."""
        counters = {
            "prompt_tokens": self.prompt_tokens, "generation_tokens": self.generation_tokens,
            "prefix_cache_queries": self.prompt_tokens, "prefix_cache_hits": self.cached_tokens,
            "num_preemptions": self.preemptions}
        gauges = {"num_requests_running": running, "num_requests_waiting": waiting, "kv_cache_usage_perc": kv_cache_usage}
        return [
            *(Gauge(f"vllm:{name}", {}, value) for name, value in gauges.items()),
            *(Counter(f"vllm:{name}", {}, value) for name, value in counters.items()),
            *(Counter("vllm:request_success", {"finished_reason": reason}, self.finished[reason])
              for reason in ("stop", "length", "abort", "error")),
        ]
