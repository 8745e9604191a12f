"""What a server says of itself: Prometheus' page adds up, the playground shows every step, health is true."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nano_qwen3_serving import AsyncEngineArgs, AsyncLLMEngine
from nano_qwen3_serving.server.app import create_app
from nano_qwen3_serving.testing.doubles import double_components
from nano_qwen3_serving.testing.loopback import Wire, served, wait_until

pytestmark = pytest.mark.slow

ASKED: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


@pytest.fixture
def fresh():
    """A server that has counted nothing yet: its URL and its engine."""
    engine = AsyncLLMEngine.from_engine_args(
        AsyncEngineArgs(model="course", num_gpu_blocks_override=65, block_size=4, check_invariants=True),
        components=double_components())
    app = create_app(engine)
    with served(app) as url:
        yield url, engine
    assert app.state.metrics.latencies not in engine.engine.observers
    engine.shutdown()


def counted(url: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """(name, values of the labels but the model's) → value, of every sample on the page."""
    page = httpx.get(f"{url}/metrics")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/plain")
    samples = [sample for family in text_string_to_metric_families(page.text) for sample in family.samples]
    assert all(sample.labels["model_name"] == "course" for sample in samples if sample.name.startswith("vllm:"))
    return {(s.name, tuple(v for k, v in sorted(s.labels.items()) if k != "model_name")): s.value for s in samples}


def test_the_page_adds_up_to_what_was_done(fresh):
    url, _ = fresh
    for fields in ({"prompt": "hello", "max_tokens": 5}, {"prompt": "hello", "max_tokens": 3},
                   {"prompt": "something longer", "max_tokens": 8},
                   {"prompt": "ab", "n": 2, "temperature": 1, "max_tokens": 4}):
        httpx.post(f"{url}/v1/completions", json=ASKED | fields).raise_for_status()
    got = counted(url)
    prompts, generated = 5 + 5 + 16 + 2, 5 + 3 + 8 + 8
    assert got["vllm:prompt_tokens_total", ()] == got["vllm:prefix_cache_queries_total", ()] == prompts
    assert got["vllm:generation_tokens_total", ()] == generated
    assert got["vllm:prefix_cache_hits_total", ()] == 4  # one block of the second "hello"
    assert got["vllm:request_success_total", ("length",)] == 5 and got["vllm:request_success_total", ("abort",)] == 0
    assert got["vllm:request_prompt_tokens_sum", ()] == prompts and got["vllm:request_prompt_tokens_count", ()] == 4
    assert got["vllm:request_generation_tokens_sum", ()] == generated
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time",
                 "request_decode_time"):
        assert got[f"vllm:{name}_seconds_count", ()] == 4, name
        assert got[f"vllm:{name}_seconds_sum", ()] >= 0
    assert got["vllm:inter_token_latency_seconds_count", ()] == generated - 5  # each completion's first has none before it
    computed = prompts - 4 + 2 + generated - 5  # n completions compute their prompt each; a last token is not computed
    assert got["vllm:iteration_tokens_total_sum", ()] == computed
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert got[f"vllm:{name}", ()] == 0
    assert got["http_requests_total", ("/v1/completions", "POST", "200")] == 4


def test_what_was_refused_is_no_request_of_the_engines_and_an_answer_all_the_same(fresh):
    url, _ = fresh
    httpx.post(f"{url}/v1/completions", json={"prompt": ""})
    httpx.get(f"{url}/made/up/by/a/client")
    httpx.request("BREW", f"{url}/health")
    got = counted(url)
    assert got["vllm:prompt_tokens_total", ()] == 0 and ("vllm:time_to_first_token_seconds_count", ()) in got
    assert got["http_requests_total", ("/v1/completions", "POST", "400")] == 1
    assert got["http_requests_total", ("other", "GET", "404")] == got["http_requests_total", ("/health", "other", "405")] == 1


def test_a_client_that_went_is_counted_as_an_abort(fresh):
    url, engine = fresh
    with Wire(url) as wire:
        wire.post(**ASKED, prompt="hello", max_tokens=200, stream=True)
        wire.head()
        wire.event()
    wait_until(lambda: not engine._steps._open_streams(), "it goes on")
    assert counted(url)["vllm:request_success_total", ("abort",)] == 1


def test_every_name_that_dashboards_read_is_there(fresh):
    names = {name.removesuffix("_total").removesuffix("_count") for name, _ in counted(fresh[0])}
    assert {f"vllm:{name}" for name in (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prompt_tokens", "generation_tokens",
        "prefix_cache_queries", "prefix_cache_hits", "num_preemptions", "request_success", "time_to_first_token_seconds",
        "inter_token_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds",
        "request_decode_time_seconds", "iteration_tokens_total")} <= names


def test_stats_health_and_version_are_plain_json(fresh):
    url, engine = fresh
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
    stats = httpx.get(f"{url}/stats").json()
    assert stats["num_free_blocks"] == stats["num_total_blocks"] == 64 and stats["draining"] is False
    assert httpx.get(f"{url}/version").json()["version"]
    engine.shutdown()
    assert httpx.get(f"{url}/health").status_code == 503


def test_the_playground_is_a_page_and_shows_the_engine_and_its_steps_while_watched(fresh):
    url, engine = fresh
    page = httpx.get(url)
    assert page.status_code == 200 and "<html" in page.text and page.headers["content-type"].startswith("text/html")
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    before = list(engine.engine.observers)
    events = []
    with httpx.stream("GET", f"{url}/playground/steps") as stream:
        lines = stream.iter_lines()
        events.append((next(lines), json.loads(next(lines).removeprefix("data: "))))
        httpx.post(f"{url}/v1/completions", json=ASKED | {"prompt": "hello", "max_tokens": 3}).raise_for_status()
        for line in lines:
            if line.startswith("event: "):
                events.append((line, json.loads(next(lines).removeprefix("data: "))))
            if len(events) == 4:
                break
    assert events[0] == ("event: engine", {"model": "course", "block_size": 4, "num_blocks": 65, "max_num_seqs": 128,
                                           "max_num_batched_tokens": 2048, "max_model_len": 256})
    assert [name for name, _ in events[1:]] == ["event: step"] * 3
    assert sum(chunk["num_tokens"] for _, step in events[1:] for chunk in step["chunks"]) == 5 + 2
    wait_until(lambda: list(engine.engine.observers) == before, "steps are noted for nobody")
