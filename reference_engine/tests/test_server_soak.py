"""A server under clients of every kind at once; see `testing/soak.py`."""

from __future__ import annotations

import asyncio
import gc

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nano_qwen3_serving import AsyncEngineArgs, AsyncLLMEngine
from nano_qwen3_serving.server.app import create_app
from nano_qwen3_serving.server.serving import Limits
from nano_qwen3_serving.testing.doubles import assert_nothing_left, double_components
from nano_qwen3_serving.testing.loopback import served, wait_until
from nano_qwen3_serving.testing.quiet_logs import quiet_logs
from nano_qwen3_serving.testing.soak import Soak

pytestmark = pytest.mark.slow


def held() -> int:
    """Objects that are alive in this process: clients and server together."""
    gc.collect()
    return len(gc.get_objects())


class Fault:
    """Fails over prompts that begin with "BAD", each time, and over one step in forty, once."""

    def __init__(self) -> None:
        self.passes, self.failures = 0, 0

    def __call__(self, contexts: list[list[int]]) -> None:
        self.passes += 1
        if any(bytes(context[:3]) == b"BAD" for context in contexts):
            raise RuntimeError("a matrix caught fire")
        if self.passes % 40 == 0 and len(contexts) > 1:
            self.failures += 1
            raise RuntimeError("a passing fault")


@pytest.mark.parametrize("requests", [200, pytest.param(2000, marks=pytest.mark.proof)])
def test_every_request_ends_once_and_nothing_is_left_of_any(requests, note):
    fault = Fault()
    engine = AsyncLLMEngine.from_engine_args(
        AsyncEngineArgs(model="course", num_gpu_blocks_override=120, block_size=4, max_num_seqs=12, max_num_batched_tokens=64,
                        max_num_queued_reqs=24, check_invariants=True),
        components=double_components(on_forward=fault))
    with quiet_logs(), served(create_app(engine, limits=Limits(body_bytes=20_000)), log_level="critical") as url:
        soak = Soak(url, seed=requests, too_long=500, too_large=30_000, failing="BAD")
        asyncio.run(soak.run(requests // 4, at_once=40))
        before = held()
        report = asyncio.run(soak.run(requests - requests // 4, at_once=40))
        asyncio.run(assert_nothing_left(engine))
        wait_until(lambda: httpx.get(f"{url}/stats").json()["num_requests_in_flight"] == 0, "an answer is still made")
        page = httpx.get(f"{url}/metrics").text
        grown = held() - before
    engine.shutdown()
    assert not report.problems, report.problems[:5]
    assert sum(report.ends.values()) == requests and fault.failures
    check_sums(report, page)
    assert grown < 4000, f"{grown} objects are left of {requests} requests"  # a leak has several of each request
    assert report.ended("answered") > requests / 2 and not report.ended("turned away") and report.turned_away, report
    note(f"soak of {requests} requests: answers {dict(report.statuses)}, {fault.failures} steps failed once, "
         f"{grown} objects more after the last three quarters")


def check_sums(report, page: str) -> None:
    """What clients saw and what the server counted are the same."""
    samples = {(s.name, s.labels.get("finished_reason") or s.labels.get("status")): 0.0
               for family in text_string_to_metric_families(page) for s in family.samples}
    for family in text_string_to_metric_families(page):
        for s in family.samples:
            samples[s.name, s.labels.get("finished_reason") or s.labels.get("status")] += s.value
    ended = {reason: samples["vllm:request_success_total", reason] for reason in ("stop", "length", "abort", "error")}
    left = report.ended("left")
    assert ended["error"] == report.ended("failed"), "every failure was told to its client, and to no other"
    assert report.ended("answered") <= ended["stop"] + ended["length"] <= report.ended("answered") + left
    assert ended["abort"] <= left, "nobody else was aborted"
    assert sum(ended.values()) == samples["vllm:request_prompt_tokens_count", None], "each that was begun ended once"
    for status in (400, 404, 413, 500, 503):
        counted = samples.get(("http_requests_total", str(status)), 0)
        assert report.statuses[status] <= counted <= report.statuses[status] + left, status
    assert samples["vllm:num_requests_running", None] == samples["vllm:kv_cache_usage_perc", None] == 0
