"""Load on a running server that speaks OpenAI's API, ours or vLLM's, as its clients see it.

Knows HTTP from a client's side, and the clock; knows no engine. In an open loop requests arrive when they are due, whether
or not earlier ones were answered, and latencies count from then: a server that stalls is not asked less often.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from nano_qwen3_serving.arguments import check_float, check_int, invalid
from nano_qwen3_serving.bench import QWEN3, Workload
from nano_qwen3_serving.engine import step_loop
from nano_qwen3_serving.exceptions import EngineError, InvalidParametersError
from nano_qwen3_serving.observe.host import host
from nano_qwen3_serving.observe.progress import progress_bar
from nano_qwen3_serving.server.load_test.report import LatencyLimits, Sample, poisson_arrivals, summary

VOCABULARY = 256
"""Prompts are drawn from this many first tokens: every byte-level vocabulary has them, and most others."""
CONNECT_SECONDS = 10.0
DETAIL_BYTES = 300  # of what a server says about a failure

Body = dict[str, Any]


@dataclass(frozen=True)
class LoadPlan:
    """How a server is asked.

    Attributes:
        workload: lengths, and how many requests.
        rate: requests a second, of an open loop; their times are drawn.
        concurrency: requests in flight, of a closed loop: each one that ends makes room for the next.
        timeout: seconds until a request is given up.
        seed: of the drawn prompts, lengths and times.

    Without `rate` and `concurrency` all requests are sent at once.
    """

    workload: Workload
    rate: float | None = None
    concurrency: int | None = None
    timeout: float = 600.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_int("requests", self.workload.requests, at_least=1)
        check_int("concurrency", self.concurrency, at_least=1, optional=True)
        check_float("timeout", self.timeout, low=0, high=1e9, open_low=True)
        if self.rate is not None:
            check_float("rate", self.rate, low=0, high=1e6, open_low=True)
            if self.concurrency is not None:
                raise InvalidParametersError(
                    f"rate={self.rate:g} and concurrency={self.concurrency} exclude each other; give one of them",
                    parameter="rate", value=self.rate)


@dataclass(frozen=True)
class ServedModel:
    """A server's own account: the model's name, and the server's version if it gives one."""

    name: str
    version: str | None


class LoadClient:
    """Sends requests to one server, and notes when each piece came. An asynchronous context; leaving it closes all connections.

    Args:
        connect: makes a client for one connection. httpx looks at every connection of a client for each request, so
            one client for hundreds of requests in flight would measure itself.
        timeout: seconds until a request is given up.
        clock: in seconds.
    """

    def __init__(
        self, connect: Callable[[], httpx.AsyncClient], timeout: float, clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._connect, self._timeout, self._clock = connect, timeout, clock
        self._began = clock()
        self._idle: list[httpx.AsyncClient] = []
        self._all = AsyncExitStack()

    async def __aenter__(self) -> LoadClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._all.aclose()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpx.AsyncClient]:
        """An idle connection: the last that became free, or a new one."""
        http = self._idle.pop() if self._idle else await self._all.enter_async_context(self._connect())
        try:
            yield http
        finally:
            self._idle.append(http)

    def begin(self) -> None:
        """A run begins: times count from now."""
        self._began = self._clock()

    def now(self) -> float:
        """Seconds since the run began."""
        return self._clock() - self._began

    async def ask(self, body: Body, scheduled: float) -> Sample:
        """Sends a streamed completion that was due at `scheduled` and reads it to its end; a failure is noted, not raised."""
        sample = Sample(scheduled, len(body["prompt"]), sent=self.now())
        try:
            async with asyncio.timeout(self._timeout):
                await self._read(body, sample)
        except (TimeoutError, httpx.TimeoutException):
            sample.fail("timeout", f"no complete answer within {self._timeout:g} s")
        except httpx.ConnectError as error:
            sample.fail("no connection", str(error))
        except (httpx.HTTPError, ValueError, TypeError, LookupError, AttributeError) as error:
            sample.fail("broken stream", f"{type(error).__name__}: {error}")
        return sample

    async def _read(self, body: Body, sample: Sample) -> None:
        done = False
        async with self._connection() as http, http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                return sample.fail(f"status {response.status_code}", beginning(await response.aread()))
            async for data in event_data(response.aiter_raw()):
                if data == b"[DONE]":
                    sample.ended, done = self.now(), True
                else:
                    self._note(json.loads(data), sample)
        if sample.failure:
            return
        if not done:
            sample.fail("broken stream", "it ended without [DONE]")
        elif not sample.pieces:
            sample.fail("broken stream", "it had no tokens")
        sample.output_tokens = sample.output_tokens or len(sample.pieces)

    def _note(self, event: dict[str, Any], sample: Sample) -> None:
        if "error" in event:
            sample.fail("error in the stream", beginning(json.dumps(event["error"]).encode()))
        if event.get("choices"):
            sample.pieces.append(self.now())
        if usage := event.get("usage"):
            sample.output_tokens = int(usage["completion_tokens"])


def beginning(text: bytes) -> str:
    """The beginning of a server's text, short enough to read."""
    return " ".join(text[:DETAIL_BYTES].decode("utf-8", "replace").split())


async def event_data(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of server-sent events, from bytes however they are cut."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[len(b"data:"):].strip()


def bodies(plan: LoadPlan, model: str, text: Sequence[int] = ()) -> list[Body]:
    """What each request sends."""
    prompts, lengths = plan.workload.draw(VOCABULARY, plan.seed, text)
    how = QWEN3 if plan.workload.sampled else {"temperature": 0.0}
    return [{"model": model, "prompt": prompt, "max_tokens": length, "ignore_eos": True, "seed": plan.seed + i, **how,
             "stream": True, "stream_options": {"include_usage": True}}
            for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))]


Ask = Callable[[Body, float], Coroutine[Any, Any, None]]


async def open_loop(orders: Sequence[Body], arrivals: Sequence[float], ask: Ask, now: Callable[[], float]) -> None:
    """Sends each request when it is due, `arrivals` seconds from the beginning, whether or not others were answered."""
    async with asyncio.TaskGroup() as asking:
        for order, arrival in zip(orders, arrivals, strict=True):
            await asyncio.sleep(max(arrival - now(), 0))
            asking.create_task(ask(order, arrival))


async def closed_loop(orders: Iterable[Body], concurrency: int, ask: Ask, now: Callable[[], float]) -> None:
    """Keeps `concurrency` requests in flight; the next is due when one has ended."""
    waiting = iter(orders)

    async def one_after_the_other() -> None:
        for order in waiting:
            await ask(order, now())

    await asyncio.gather(*(one_after_the_other() for _ in range(concurrency)))


async def run_plan(client: LoadClient, plan: LoadPlan, orders: Sequence[Body], show_progress: bool = True) -> list[Sample]:
    """Sends all requests, as the plan says. Cancelling it closes every connection."""
    samples: list[Sample] = []
    with progress_bar(show_progress) as bar:
        task = bar.add_task("Requests", total=len(orders), note="")

        async def ask(body: Body, scheduled: float) -> None:
            samples.append(await client.ask(body, scheduled))
            bar.advance(task)

        client.begin()
        if plan.rate is None:
            await closed_loop(orders, min(plan.concurrency or len(orders), len(orders)), ask, client.now)
        else:
            await open_loop(orders, poisson_arrivals(len(orders), plan.rate, plan.seed), ask, client.now)
    return samples


async def find_model(http: httpx.AsyncClient, wanted: str | None) -> ServedModel:
    """The model that is served. Raises an `EngineError` if no server listens, or one that is not OpenAI's kind."""
    listed = await fetched(http, "/v1/models")
    try:
        names = [str(card["id"]) for card in listed["data"]]
        first = names[0]
    except (LookupError, TypeError):
        raise EngineError(f"{http.base_url} has no models to offer; is it a server with OpenAI's API?") from None
    if wanted is not None and wanted not in names:
        raise EngineError(f"{http.base_url} serves no model {wanted!r}; there is {', '.join(map(repr, names))}")
    try:
        version = (await fetched(http, "/version")).get("version")
    except (EngineError, AttributeError):
        version = None  # OpenAI's API has no such route
    return ServedModel(wanted or first, version)


async def fetched(http: httpx.AsyncClient, path: str, body: Body | None = None) -> Any:
    """The JSON at a path. Raises an `EngineError` that quotes any other answer."""
    where = f"{http.base_url}".rstrip("/")
    try:
        response = await http.request("GET" if body is None else "POST", path, json=body, timeout=CONNECT_SECONDS)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EngineError(f"nobody answers at {where} ({type(error).__name__}: {error}); start a server with "
                          "python -m nano_qwen3_serving serve, or give the right address with --serve") from error
    if response.status_code == 401:
        raise EngineError(f"{where} wants a key; give --api-key")
    try:
        response.raise_for_status()
        return response.json()
    except (httpx.HTTPStatusError, ValueError):
        raise EngineError(f"{where}{path} answered with status {response.status_code} and {beginning(response.content)!r}; "
                          "is it a server with OpenAI's API?") from None


async def text_tokens(http: httpx.AsyncClient, model: str) -> list[int]:
    """A text in the server's own tokens, for workloads whose prompts are pieces of one."""
    answer = await fetched(http, "/tokenize", {"model": model, "prompt": inspect.getsource(step_loop)})
    return list(answer["tokens"])


def connector(url: str, api_key: str | None) -> Callable[[], httpx.AsyncClient]:
    """Makes clients of a server. `url` may end with `/v1`, as OpenAI's clients have it."""
    if not url.startswith(("http://", "https://")):
        raise invalid("serve", url, "an address that begins with http:// or https://")
    try:
        base = httpx.URL(url.rstrip("/").removesuffix("/v1"))
    except httpx.InvalidURL as error:
        raise invalid("serve", url, f"the address of a server ({error})") from None
    headers = {"Accept-Encoding": "identity"}  # streams are read as they come
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    certificates = httpx.create_ssl_context()  # takes longer than a request

    def connect() -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=base, headers=headers, verify=certificates,
                                 timeout=httpx.Timeout(None, connect=CONNECT_SECONDS))

    return connect


async def load(
    url: str, plan: LoadPlan, limits: LatencyLimits, *, model: str | None = None, api_key: str | None = None,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Sends a server the plan's requests; returns what was measured, and under which conditions.

    A first request is not counted: it warms the server up, and shows that it accepts token ids.

    Args:
        url: of the server.
        limits: for goodput.
        model: its name there; None is the server's first.
        api_key: sent with every request.

    Raises:
        EngineError: `url` is not an address, or no server of OpenAI's kind listens there.
    """
    connect = connector(url, api_key)
    async with connect() as http, LoadClient(connect, plan.timeout) as client:
        served = await find_model(http, model)
        orders = bodies(plan, served.name, await text_tokens(http, served.name) if plan.workload.text else ())
        first = await client.ask({**orders[0], "prompt": [1, 2, 3], "max_tokens": 2}, client.now())
        if first.failure:
            raise EngineError(f"{http.base_url} did not answer a first request; {first.failure}: {first.detail}")
        used = time.process_time()
        samples = await run_plan(client, plan, orders, show_progress)
        seconds = client.now()
        used = time.process_time() - used
    return {
        "url": url, "model": served.name, "server_version": served.version, **asdict(plan),
        **summary(samples, seconds, limits), "client_cpu_share": used / seconds, "host": host()}
