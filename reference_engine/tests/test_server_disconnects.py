"""Clients that go, clients that do not read, and requests that fail in the middle: nothing is left behind, every stream ends.

The network takes no time and a gate holds the step thread, so each test says exactly when its client goes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from nano_qwen3_serving import AsyncEngineArgs, AsyncLLMEngine
from nano_qwen3_serving.scheduling.scheduler import Scheduler
from nano_qwen3_serving.server.app import create_app
from nano_qwen3_serving.server.serving import Limits
from nano_qwen3_serving.testing.doubles import StepGate, assert_nothing_left, continued_text, double_components
from nano_qwen3_serving.testing.loopback import Wire, served, wait_until

pytestmark = pytest.mark.slow

SMALL = 4096  # bytes of a socket's buffers
LONG: dict[str, Any] = {"prompt": "hello", "max_tokens": 100, "temperature": 0, "ignore_eos": True}


@dataclass(frozen=True)
class Server:
    """What a test holds."""

    url: str
    engine: AsyncLLMEngine
    gate: StepGate

    def step(self, number: int) -> None:
        """Lets steps through until the engine waits for its step `number`."""
        self.gate.allow(max(number - self.gate.passed, 0))
        self.gate._wait_arrived(number + 1)

    def requests(self) -> int:
        """How many the engine has in flight."""
        return len(self.engine._steps._open_streams())

    def sees_them_go(self, but: int = 0) -> None:
        """Waits until the server has ended all requests but so many; lets one step through, behind which they are gone."""
        wait_until(lambda: sum(not stream.aborted for stream in self.engine._steps._open_streams()) <= but, "nobody noticed")
        self.gate.allow(1)
        wait_until(lambda: self.requests() <= but, "a request went on without its client")


@contextmanager
def server(
    limits: Limits = Limits(), is_open: bool = False, parts: dict[str, Any] | None = None,  # noqa: B008 (frozen)
    **arguments: Any,
) -> Iterator[Server]:
    """A server for one test; when the test is over no request, block, place in the queue, task or thread is left."""
    gate = StepGate(is_open)
    engine = AsyncLLMEngine.from_engine_args(
        AsyncEngineArgs(**{"model": "course", "num_gpu_blocks_override": 65, "block_size": 4} | arguments, check_invariants=True),
        components=double_components(**parts or {}), gate=gate)
    try:
        with served(create_app(engine, limits=limits), send_buffer=SMALL) as url:
            try:
                yield Server(url, engine, gate)
            finally:
                gate.open()
            asyncio.run(assert_nothing_left(engine))
            if not engine.errored:
                wait_until(lambda: httpx.get(f"{url}/stats").json()["num_requests_in_flight"] == 0, "an answer is still made")
    finally:
        engine.shutdown()
    assert not engine._steps._thread.is_alive()


# -- clients that go --


@pytest.mark.parametrize("read", [0, 1, 3])
@pytest.mark.parametrize("path, fields", [
    ("/v1/completions", LONG), ("/v1/completions", LONG | {"prompt": ["hello", "there", "you"], "max_tokens": 30}),
    ("/v1/completions", LONG | {"n": 2, "temperature": 1, "max_tokens": 30}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50, "ignore_eos": True}),
], ids=["completion", "three prompts", "n", "chat"])
def test_a_client_that_leaves_a_stream_ends_its_requests_and_frees_their_blocks(path, fields, read):
    with server() as here:
        wire = Wire(here.url)
        wire.post(path, stream=True, **fields)
        here.step(4)
        assert here.requests() and here.engine.engine.block_manager.num_free_blocks < 64
        assert wire.head()[0] == 200
        for _ in range(read):
            assert wire.event()["choices"]
            here.gate.allow(1)
        wire.close()
        here.sees_them_go()
        assert here.gate.passed <= 4 + read + 1, "tokens were generated for nobody"


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_client_that_does_not_wait_for_its_answer_ends_its_request(steps):
    with server() as here:
        wire = Wire(here.url)
        wire.post(**LONG)
        wait_until(here.requests, "it never came")
        here.step(steps)
        wire.close()
        here.sees_them_go()


def test_a_client_that_goes_while_its_request_waits_gives_its_place_to_the_next():
    with server(max_num_seqs=1, max_num_queued_reqs=1) as here:
        first, waiting = Wire(here.url), Wire(here.url)
        first.post(**LONG | {"max_tokens": 6})
        here.step(1)
        waiting.post(stream=True, **LONG)
        assert waiting.head()[0] == 200
        answer = httpx.post(f"{here.url}/v1/completions", json=LONG)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["code"] == "queue_full"
        waiting.close()
        here.sees_them_go(but=1)
        last = Wire(here.url)
        last.post(**LONG | {"max_tokens": 3})
        here.gate.open()
        assert [first.answer()[0], last.answer()[0]] == [200, 200]
        first.close()
        last.close()


def test_a_client_that_goes_while_its_prompt_is_tokenised_leaves_nothing():
    entered, leave = threading.Event(), threading.Event()

    def hold(text: str) -> None:
        if text == "slow":
            entered.set()
            assert leave.wait(30)

    with server(is_open=True, parts={"on_encode": hold}) as here:
        wire = Wire(here.url)
        wire.post(**LONG | {"prompt": "slow"})
        assert entered.wait(30)
        wire.close()
        wait_until(lambda: not here.requests(), "the request outlived its client")
        leave.set()
        assert here.gate.passed == 0


def test_a_client_that_goes_as_its_stream_ends_is_no_error(caplog):
    with server(is_open=True) as here:
        for _ in range(5):
            wire = Wire(here.url)
            wire.post(stream=True, **LONG | {"max_tokens": 3})
            wire.head()
            while (event := wire.event()) and not event["choices"][0]["finish_reason"]:
                pass
            wire.close()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_other_requests_go_on_when_a_client_goes():
    with server(is_open=True) as here:
        for _ in range(4):
            gone, stays = Wire(here.url), Wire(here.url)
            gone.post(stream=True, **LONG)
            stays.post(**LONG | {"prompt": "I stay", "max_tokens": 40})
            gone.head()
            gone.close()
            assert stays.answer()[2]["choices"][0]["text"] == continued_text("I stay", 40)
            stays.close()


# -- clients that do not read --


MANY = LONG | {"prompt": [f"prompt {i}" for i in range(8)], "logprobs": 20, "stream": True}
"""Some 800 events of more than a kilobyte each: more than all buffers between the server and a client hold together."""


def test_a_client_that_does_not_read_holds_up_nobody_and_its_connection_is_given_up():
    with server(Limits(patience=0.5), is_open=True, num_gpu_blocks_override=400) as here, Wire(here.url, SMALL) as slow:
        slow.post(**MANY)
        other = httpx.post(f"{here.url}/v1/completions", json=LONG | {"max_tokens": 5}, timeout=30)
        assert other.json()["choices"][0]["text"] == continued_text("hello", 5)
        wait_until(lambda: httpx.get(f"{here.url}/stats").json()["num_requests_in_flight"] == 0, "its answer still waits")
        assert not here.requests()
        slow.head()
        assert "[DONE]" not in slow.events(), "it was given all"


def test_a_client_that_reads_late_gets_all_of_it_in_fewer_events():
    with server(is_open=True, num_gpu_blocks_override=400) as here, Wire(here.url, SMALL) as wire:
        wire.post(**MANY, stream_options={"include_usage": True})
        wait_until(lambda: here.gate.passed and not here.requests(), "the engine waited for its reader")
        wire.head()
        *chunks, usage, done = wire.events()
        assert done == "[DONE]" and usage["usage"]["completion_tokens"] == 800
        for number, prompt in enumerate(MANY["prompt"]):
            own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == number]
            assert "".join(choice["text"] for choice in own) == continued_text(prompt, 100)
            assert sum(len(choice["logprobs"]["tokens"]) for choice in own) == 100
        assert len(chunks) < 400, "what a slow client has not read is merged"


# -- what fails in the middle --


def failing_on(text: str, after: int) -> Callable[[list[list[int]]], None]:
    """A network that fails over requests that begin with `text`, when they have `after` tokens more."""

    def forward(contexts: list[list[int]]) -> None:
        for context in contexts:
            if bytes(context[: len(text)]) == text.encode() and len(context) >= len(text) + after:
                raise RuntimeError("a matrix caught fire")

    return forward


def test_a_request_that_fails_ends_its_stream_with_one_error_and_neighbours_go_on():
    with server(is_open=True, parts={"on_forward": failing_on("BAD", 5)}) as here, Wire(here.url) as bad, Wire(here.url) as good:
        bad.post(stream=True, **LONG | {"prompt": "BAD"})
        good.post(stream=True, **LONG | {"max_tokens": 30})
        assert bad.head()[0] == good.head()[0] == 200
        *chunks, error = bad.events()
        assert error["error"]["code"] == "generation_failed" and error["error"]["type"] == "server_error"
        assert all("choices" in chunk for chunk in chunks)
        *chunks, done = good.events()
        assert done == "[DONE]" and "".join(c["choices"][0]["text"] for c in chunks) == continued_text("hello", 30)
        bad.post(**LONG | {"max_tokens": 3})
        assert bad.answer()[0] == 200, "the connection is good for another request"


def test_a_request_that_fails_before_its_answer_is_a_500_and_a_batch_fails_as_one():
    with server(is_open=True, parts={"on_forward": failing_on("BAD", 3)}) as here:
        for prompt in ("BAD", ["hello", "BAD", "you"]):
            answer = httpx.post(f"{here.url}/v1/completions", json=LONG | {"prompt": prompt})
            assert answer.status_code == 500 and answer.json()["error"]["code"] == "generation_failed"


def test_a_timeout_in_a_stream_is_its_last_event():
    with server(Limits(request_seconds=0.3)) as here, Wire(here.url) as wire:
        wire.post(stream=True, **LONG)
        here.step(2)
        assert wire.head()[0] == 200
        threading.Timer(0.4, here.gate.open).start()
        assert [event["error"]["code"] for event in wire.events() if "error" in event] == ["timeout"]


class BrokenScheduler(Scheduler):
    """Fails in a way that the engine cannot survive, when a step has five requests."""

    def schedule(self):
        """As the scheduler's."""
        if len(self.waiting) + len(self.running) >= 5:
            raise AssertionError("the queue is torn")
        return super().schedule()


def test_when_the_engine_dies_every_stream_ends_with_that_error_and_health_says_so():
    parts = {"scheduler": lambda config, block_manager: BrokenScheduler(config.scheduler, block_manager)}
    with server(is_open=False, parts=parts) as here:
        assert httpx.get(f"{here.url}/health").status_code == 200
        streams = [Wire(here.url) for _ in range(4)]
        for wire in streams:
            wire.post(stream=True, **LONG)
            assert wire.head()[0] == 200
        here.step(2)
        last = Wire(here.url)
        last.post(**LONG)
        wait_until(lambda: here.requests() == 5, "the fifth never came")
        here.gate.open()
        status, _, body = last.answer()
        assert (status, body["error"]["code"]) == (503, "engine_dead")
        for wire in streams:
            assert wire.events()[-1]["error"]["code"] == "engine_dead"
        for method, path in [("GET", "/health"), ("POST", "/v1/completions"), ("GET", "/metrics"), ("GET", "/stats")]:
            answer = httpx.request(method, here.url + path, json=LONG if method == "POST" else None)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_dead")
        assert httpx.get(f"{here.url}/v1/models").status_code == 200
        for wire in [*streams, last]:
            wire.close()


def test_what_nobody_meant_to_happen_is_a_500_that_says_nothing_of_the_inside(monkeypatch, caplog):
    with server(is_open=True) as here:
        def fall_over(*args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError("a secret")

        monkeypatch.setattr(here.engine, "get_stats", fall_over)
        answer = httpx.get(f"{here.url}/stats")
        monkeypatch.undo()
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal_error" and "secret" not in answer.text
        assert answer.headers["x-request-id"] and "a secret" in caplog.text
