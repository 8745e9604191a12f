"""`bench --serve`: what a load test says of a server, and that it asks as its plan says."""

from __future__ import annotations

import asyncio
import json
import math
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request, Response
from starlette.responses import StreamingResponse
from typer.testing import CliRunner

from nano_qwen3_serving import cli
from nano_qwen3_serving.bench import WORKLOADS, Workload
from nano_qwen3_serving.exceptions import EngineError, InvalidParametersError
from nano_qwen3_serving.server.app import create_app
from nano_qwen3_serving.server.load_test.client import LoadPlan, bodies, event_data, load, open_loop
from nano_qwen3_serving.server.load_test.report import LatencyLimits, Sample, percentile, poisson_arrivals, summary
from nano_qwen3_serving.testing.loopback import served

pytestmark = pytest.mark.slow

SHORT = Workload(6, (4, 9), (3, 7))


def measured(url: str, plan: LoadPlan, limits: LatencyLimits = LatencyLimits(), **options: Any) -> dict[str, Any]:  # noqa: B008
    return asyncio.run(load(url, plan, limits, show_progress=False, **options))


# -- numbers --


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_percentiles_are_numpys(count: int):
    values = list(np.random.default_rng(count).exponential(size=count))
    for percent in (0, 1, 50, 90, 99, 100):
        assert percentile(values, percent) == pytest.approx(np.percentile(values, percent), rel=1e-12)


def test_arrivals_are_a_poisson_process_of_that_rate():
    times, rate = poisson_arrivals(20_000, 50.0, seed=4), 50.0
    gaps = np.diff([0.0, *times])
    assert gaps.min() >= 0 and gaps.mean() * rate == pytest.approx(1, abs=0.02)
    law = 1 - np.exp(-rate * np.sort(gaps))  # Kolmogorov and Smirnov's distance between the law and what was drawn
    places = np.arange(1, len(gaps) + 1) / len(gaps)
    assert np.abs(law - places).max() < 1.36 / math.sqrt(len(gaps)), "the gaps are not exponential"
    in_each_second = np.bincount(np.array(times, int))[:-1]
    assert in_each_second.var() / in_each_second.mean() == pytest.approx(1, abs=0.2)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.02, "gaps depend on each other"
    assert poisson_arrivals(5, 50.0, 4) == times[:5] != poisson_arrivals(5, 50.0, 5)


def test_latencies_count_from_when_a_request_was_due():
    late = Sample(scheduled=1.0, prompt_tokens=4, sent=1.5, pieces=[2.0, 2.25, 3.0], ended=3.5, output_tokens=5)
    assert (late.ttft, late.e2e, late.mean_itl) == (1.0, 2.5, 0.25)
    report = summary([late], 4.0, LatencyLimits())
    assert report["itl"] == {"p50": 0.5, "p90": pytest.approx(0.7), "p99": pytest.approx(0.745)}, "between pieces: 0.25 and 0.75"
    assert report["ttft"]["p50"] == 1.0 and report["sent_late"]["p99"] == 0.5


def test_goodput_counts_answers_within_every_limit_and_throughput_those_that_were_answered():
    quick = Sample(0.0, 10, 0.0, [0.1, 0.2], 0.2, 2)
    slow = Sample(0.0, 10, 0.0, [0.9, 1.0], 1.0, 2)
    halting = Sample(0.0, 10, 0.0, [0.1, 0.9], 0.9, 2)
    failed = Sample(0.0, 10, failure="status 503", detail="full")
    report = summary([quick, slow, halting, failed], 2.0, LatencyLimits(ttft=0.5, itl=0.3))
    assert report["goodput"]["answered_within"] == 1 and report["goodput"]["requests_per_second"] == 0.5
    assert report["requests_per_second"] == 1.5 and report["output_tokens_per_second"] == 3
    assert report["total_tokens_per_second"] == 18 and report["failures"] == {"status 503": 1}
    assert report["failure_examples"] == {"status 503": "full"}
    for limits, good in ((LatencyLimits(e2e=0.95), 2), (LatencyLimits(ttft=0.1), 2), (LatencyLimits(itl=0.01), 0)):
        assert summary([quick, slow, halting], 1.0, limits)["goodput"]["answered_within"] == good
    assert summary([failed], 1.0, LatencyLimits())["ttft"] == {"p50": None, "p90": None, "p99": None}


async def in_pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_events_are_read_however_their_bytes_are_cut(size: int):
    data = 'data: {"a": "é"}\n\n: a comment\n\nevent: x\r\ndata:2\r\n\r\ndata: [DONE]\n\n'.encode()
    assert [event async for event in event_data(in_pieces(data, size))] == ['{"a": "é"}'.encode(), b"2", b"[DONE]"]


# -- asking --


async def test_arrivals_do_not_wait_for_answers():
    """Nobody is answered before everybody has asked: with requests that wait for each other, this would hang."""
    asked: list[float] = []
    everybody = asyncio.Event()

    async def ask(body: dict[str, Any], scheduled: float) -> None:
        asked.append(scheduled)
        if len(asked) == 5:
            everybody.set()
        await everybody.wait()

    arrivals = [0.0, 0.001, 0.002, 0.003, 0.004]
    async with asyncio.timeout(30):
        await open_loop([{}] * 5, arrivals, ask, asyncio.get_running_loop().time)
    assert asked == arrivals


def test_the_same_seed_asks_the_same_and_another_asks_something_else():
    def asked(seed: int) -> list[dict[str, Any]]:
        return bodies(LoadPlan(SHORT, seed=seed), "m")

    assert asked(1) == asked(1) != asked(2)
    for body in asked(1):
        assert 4 <= len(body["prompt"]) <= 9 and 3 <= body["max_tokens"] <= 7 and body["ignore_eos"] is True
    assert bodies(LoadPlan(WORKLOADS["decode-1-sampled"]), "m")[0]["top_k"] == 20


@pytest.mark.parametrize("how", [{"concurrency": 2}, {"rate": 300.0}, {}], ids=str)
def test_a_server_of_ours_answers_every_request_with_as_many_tokens_as_were_asked_for(course_server, how):
    plan = LoadPlan(SHORT, seed=3, **how)
    report = measured(course_server.url, plan, LatencyLimits(e2e=1000.0))
    wanted = bodies(plan, "course")
    output, prompt = sum(body["max_tokens"] for body in wanted), sum(len(body["prompt"]) for body in wanted)
    assert (report["requests"], report["answered"], report["failures"]) == (6, 6, {})
    assert report["output_tokens_per_second"] * report["seconds"] == pytest.approx(output)
    assert report["total_tokens_per_second"] * report["seconds"] == pytest.approx(output + prompt)
    assert 0 < report["ttft"]["p50"] <= report["e2e"]["p50"] <= report["e2e"]["p99"] <= report["seconds"]
    assert report["goodput"]["answered_within"] == 6 and report["model"] == "course" and report["seed"] == 3
    assert report["server_version"] == httpx.get(f"{course_server.url}/version").json()["version"]
    assert report["host"]["versions"] and report["workload"]["prompt"] == (4, 9)


def test_prompts_of_a_text_workload_are_pieces_of_a_text_in_the_servers_own_tokens(course_server):
    report = measured(course_server.url, LoadPlan(Workload(2, (30, 30), (2, 2), text=True)))
    assert report["answered"] == 2


class Strange:
    """A server that answers completions as a test says, and notes how many it answers at once."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.calls, self.at_once, self.most = answers, 0, 0, 0
        self.app = FastAPI()
        self.app.get("/v1/models")(self.models)
        self.app.post("/v1/completions")(self.completions)

    async def models(self) -> dict[str, Any]:
        return {"data": [{"id": "strange"}, {"id": "stranger"}]}

    async def completions(self, request: Request) -> Response:
        await request.json()
        answer = self.answers[min(self.calls, len(self.answers) - 1)]
        self.calls += 1
        return StreamingResponse(self.stream(answer), media_type="text/event-stream") if isinstance(answer, list) else answer

    async def until(self, most: int) -> None:
        """Waits until so many were answered at once."""
        while self.most < most:
            await asyncio.sleep(0.001)

    async def stream(self, parts: list[Any]) -> AsyncIterator[bytes]:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            for part in parts:
                if isinstance(part, int):
                    await self.until(part)
                elif isinstance(part, Exception):
                    raise part
                else:
                    yield f"data: {part}\n\n".encode()
        finally:
            self.at_once -= 1


TOKEN, DONE = json.dumps({"choices": [{"text": "x"}]}), "[DONE]"
GOOD = [TOKEN, TOKEN, DONE]


@pytest.mark.parametrize("answer, kind, says", [
    (Response("full up", 503), "status 503", "full up"), ([TOKEN, 99], "timeout", "3 s"),
    ([TOKEN], "broken stream", "without [DONE]"), ([TOKEN, OSError("gone")], "broken stream", "RemoteProtocolError"),
    ([TOKEN, "{", DONE], "broken stream", "JSON"), ([TOKEN, "[1]", DONE], "broken stream", ""),
    ([DONE], "broken stream", "no tokens"),
    ([TOKEN, json.dumps({"error": {"message": "on fire"}})], "error in the stream", "on fire")])
def test_failures_are_counted_by_kind_and_the_others_measured(answer, kind, says):
    strange = Strange(GOOD, GOOD, answer, GOOD)
    with served(strange.app, log_level="critical") as url:
        report = measured(url, LoadPlan(Workload(3, (4, 4), (2, 2)), concurrency=1, timeout=3.0))
    assert report["failures"] == {kind: 1} and says in report["failure_examples"][kind]
    assert report["answered"] == 2 and report["output_tokens_per_second"] * report["seconds"] == pytest.approx(4)
    assert report["server_version"] is None and report["model"] == "strange"


@pytest.mark.parametrize("how, most", [({"concurrency": 2}, 2), ({}, 5), ({"rate": 1000.0}, 5)])
def test_as_many_are_in_flight_as_the_plan_says(how, most):
    """The server ends nobody's answer before so many have asked."""
    strange = Strange(GOOD, [TOKEN, most, TOKEN, DONE])
    with served(strange.app) as url:
        report = measured(url, LoadPlan(Workload(5, (4, 4), (2, 2)), **how))
    assert report["answered"] == 5 and strange.most == most


# -- mistakes --


def nobody() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("url, says", [
    ("127.0.0.1:8000", "begins with http://"), ("http://", "nobody answers"), ("http://127.0.0.1:x", "127.0.0.1:x")])
def test_what_is_no_address_is_named(url, says):
    with pytest.raises(EngineError, match=says):
        measured(url, LoadPlan(SHORT))


def test_nobody_or_something_else_at_the_address_is_said_at_once():
    with pytest.raises(EngineError, match=r"nobody answers at http://127.0.0.1:\d+ .*serve"):
        measured(nobody(), LoadPlan(SHORT))
    app = FastAPI()
    app.get("/")(lambda: "a shop")
    with served(app) as url, pytest.raises(EngineError, match="status 404.*OpenAI's API"):
        measured(url, LoadPlan(SHORT))
    strange = Strange(Response("no token ids here", 400))
    with served(strange.app) as url:
        with pytest.raises(EngineError, match="first request; status 400: no token ids here"):
            measured(url, LoadPlan(SHORT))
        with pytest.raises(EngineError, match="no model 'x'; there is 'strange', 'stranger'"):
            measured(url, LoadPlan(SHORT), model="x")


def test_a_key_is_sent_and_a_missing_one_is_named(course_server):
    with served(create_app(course_server.engine, api_key="secret")) as url:
        with pytest.raises(EngineError, match="wants a key; give --api-key"):
            measured(url, LoadPlan(SHORT))
        assert measured(f"{url}/v1", LoadPlan(SHORT), api_key="secret")["answered"] == 6


@pytest.mark.parametrize("plan", [{"rate": 0.0}, {"rate": math.inf}, {"concurrency": 0}, {"timeout": 0.0},
                                  {"rate": 1.0, "concurrency": 1}, {"workload": Workload(0, (1, 1), (1, 1))}])
def test_a_plan_that_cannot_be_kept_is_refused(plan):
    with pytest.raises(InvalidParametersError, match="timeout|requests|" + next(iter(plan))):
        LoadPlan(**{"workload": SHORT, **plan})


# -- the command --


def bench(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, ["bench", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_prints_a_table_or_one_json_object(course_server):
    line = ["--serve", course_server.url, "--workload", "quick", "--requests", "3"]
    said = bench(*line, "--concurrency", "2", "--ttft-limit", "1000")
    assert "answered 3 of 3" in said and "time to first token" in said and "within the limits: 3" in said
    report = json.loads(bench(*line, "--rate", "100", "--seed", "5", "--itl-limit", "0", "--json"))
    assert report["answered"] == 3 and report["rate"] == 100 and report["seed"] == 5
    assert report["goodput"]["limits"] == {"ttft": None, "itl": 0.0, "e2e": None} and report["url"] == course_server.url


@pytest.mark.parametrize("arguments, says", [
    (["--rate", "1"], "--rate is for a server"), (["--serve", "http://x", "--dtype", "auto"], "--dtype is for an engine"),
    (["--e2e-limit", "1"], "--e2e-limit is for a server"), (["--serve", "http://x", "--workload", "nosuch"], "no workload 'no")])
def test_options_that_would_change_nothing_are_refused(arguments, says):
    with pytest.raises(InvalidParametersError, match=says):
        bench(*arguments)
