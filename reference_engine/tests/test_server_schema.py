"""Bodies that a program makes up from `/openapi.json`, good and bad: answers are what it promises, and never a 500."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from nano_qwen3_serving import AsyncEngineArgs, AsyncLLMEngine
from nano_qwen3_serving.server.app import create_app
from nano_qwen3_serving.testing.loopback import served

schemathesis = pytest.importorskip(
    "schemathesis", reason="schemathesis is not installed: pip install -r requirements-dev.txt")

pytestmark = pytest.mark.slow

POSTED = ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize", "/detokenize"]
READ = ["/v1/models", "/v1/models/{name}", "/health", "/version", "/stats", "/metrics"]


@pytest.fixture(scope="module")
def schema():
    """The schema of a server whose answers are short."""
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(
        model="course", device="cpu", max_model_len=48, max_num_queued_reqs=32, check_invariants=True))
    with served(create_app(engine)) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")
        free = engine.engine.block_manager.num_free_blocks
        assert free == engine.engine.config.cache.num_blocks - 1, "blocks are lost"
    engine.shutdown()


def checks(*more: Any) -> list[Any]:
    named = schemathesis.checks
    named.load_all_checks()
    every = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]
    return [schemathesis.checks.CHECKS.get_by_names([name])[0] for name in (*every, *more)]


def run(schema: Any, path: str, method: str, mode: Any, examples: int, *more: str) -> Counter[int]:
    """Calls a route with made up requests, the same in each run; how often it answered with which status."""
    operation = schema[path][method]
    statuses: Counter[int] = Counter()

    @seed(20)
    @settings(max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def call(case: Any) -> None:
        statuses[case.call_and_validate(checks=checks(*more), timeout=60).status_code] += 1

    call()
    return statuses


@pytest.mark.parametrize("path", POSTED)
def test_bodies_that_the_schema_allows_are_answered_as_it_says(schema, path):
    statuses = run(schema, path, "POST", schemathesis.GenerationMode.POSITIVE, 40)
    assert statuses[400] + statuses[404] >= 20, "most numbers that a program makes up are out of range"


@pytest.mark.parametrize("path", POSTED)
def test_bodies_that_it_does_not_allow_are_refused(schema, path):
    statuses = run(schema, path, "POST", schemathesis.GenerationMode.NEGATIVE, 40, "negative_data_rejection")
    assert sum(statuses.values()) >= 20 and not statuses[200]


@pytest.mark.parametrize("path", READ)
def test_what_is_read_is_as_it_says(schema, path):
    assert run(schema, path, "GET", schemathesis.GenerationMode.POSITIVE, 5)


def test_every_route_is_in_one_of_these_tests(schema):
    assert {operation.ok().path for operation in schema.get_all_operations()} == {*POSTED, *READ}
