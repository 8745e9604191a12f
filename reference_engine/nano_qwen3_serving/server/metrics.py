"""`/metrics`: what Prometheus reads, under the names of vLLM.

Counters and gauges are the engine's own; histograms are filled here, by an observer. One registry an app.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.types import Scope

from nano_qwen3_serving.observe import metrics as engine_metrics
from nano_qwen3_serving.observe.observer import EngineObserver, StepRecord
from nano_qwen3_serving.outputs import RequestOutput
from nano_qwen3_serving.request import Request

CONTENT_TYPE = CONTENT_TYPE_LATEST
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
WHOLE_REQUEST = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)


class HttpCounts:
    """Answers, by method, route and status."""

    def __init__(self, registry: CollectorRegistry, paths: Sequence[str]) -> None:
        self._paths = frozenset(paths)
        self._answers = Counter("http_requests", "Answers of the server.", ["method", "handler", "status"], registry=registry)

    def count(self, scope: Scope, status: int) -> None:
        """Counts an answer. A path or method that a client made up is not a label: each would add a series."""
        path = scope["path"] if scope["path"] in self._paths else "other"
        method = scope["method"] if scope["method"] in ("GET", "POST") else "other"
        self._answers.labels(method, path, str(status)).inc()


class Latencies(EngineObserver):
    """Histograms of what requests waited for, in seconds, and of how large they and the steps were, in tokens."""

    name = "histograms"

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"vllm:{name}", text, ["model_name"], registry=registry, buckets=buckets).labels(model)

        self._first = histogram("time_to_first_token_seconds", "From arrival to the first token.", FIRST_TOKEN)
        self._between = histogram("inter_token_latency_seconds", "From one token of a request to its next.", BETWEEN_TOKENS)
        self._whole = histogram("e2e_request_latency_seconds", "From arrival to the last token.", WHOLE_REQUEST)
        self._queue = histogram("request_queue_time_seconds", "From the queue to the first step.", WHOLE_REQUEST)
        self._prefill = histogram("request_prefill_time_seconds", "From the first step to the first token.", WHOLE_REQUEST)
        self._decode = histogram("request_decode_time_seconds", "From the first token to the last.", WHOLE_REQUEST)
        self._prompt = histogram("request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self._generated = histogram("request_generation_tokens", "Tokens generated for a request.", TOKENS)
        self._step = histogram("iteration_tokens_total", "Tokens computed in a step.", STEP_TOKENS)
        self._last_token: WeakKeyDictionary[Request, float] = WeakKeyDictionary()

    def on_step(self, step: StepRecord) -> None:
        """The step's size, and the gap before each of its tokens."""
        self._step.observe(sum(chunk.num_tokens for chunk in step.batch.chunks))
        for chunk in step.batch.chunks:
            if chunk.request.request_id in step.result.token_ids:
                before = self._last_token.get(chunk.request)
                if before is not None:
                    self._between.observe(step.executed - before)
                self._last_token[chunk.request] = step.executed

    def on_end(self, output: RequestOutput, finish_reasons: list[str]) -> None:
        """Adds the request's times, as far as it got."""
        times = output.metrics
        self._prompt.observe(len(output.prompt_token_ids))
        if times is None or not times.scheduled_ts:
            return
        self._queue.observe(times.scheduled_ts - times.queued_ts)
        if times.first_token_ts:
            self._first.observe(times.first_token_latency)
            self._prefill.observe(times.first_token_ts - times.scheduled_ts)
            self._decode.observe(times.last_token_ts - times.first_token_ts)
            self._whole.observe(times.last_token_ts - times.arrival_time)
            self._generated.observe(times.num_generation_tokens)


class EngineCollector(Collector):
    """Hands the engine's own numbers to Prometheus.

    Attributes:
        metrics: as `AsyncLLMEngine.get_metrics` gave them last.
    """

    def __init__(self, registry: CollectorRegistry, model: str) -> None:
        self.metrics: list[engine_metrics.Metric] = []
        self._model = model
        registry.register(self)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """A family for each name."""
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for metric in self.metrics:
            kind = CounterMetricFamily if isinstance(metric, engine_metrics.Counter) else GaugeMetricFamily
            labels = {"model_name": self._model, **metric.labels}
            family = families.setdefault(metric.name, kind(metric.name, metric.name, labels=list(labels)))
            family.add_metric(list(labels.values()), metric.value)  # type: ignore[attr-defined]  # counters and gauges
        yield from families.values()


class AppMetrics:
    """All that one app counts.

    Args:
        model: the label of the engine's series.
        paths: the app's routes.

    Attributes:
        latencies: to be added to the engine's observers.
        http: to be told of each answer.
    """

    def __init__(self, model: str, paths: Sequence[str]) -> None:
        self._registry = CollectorRegistry()
        self._engine = EngineCollector(self._registry, model)
        self.latencies = Latencies(self._registry, model)
        self.http = HttpCounts(self._registry, paths)

    def text(self, engine: list[engine_metrics.Metric]) -> bytes:
        """The page, with the engine's numbers of this moment."""
        self._engine.metrics = engine
        return generate_latest(self._registry)
