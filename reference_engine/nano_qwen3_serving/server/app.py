"""`create_app`: an engine as a web application.

Knows the routes; each of them leaves the work to another module. Ten apps can live in one process.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, Protocol

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware

from nano_qwen3_serving.arguments import check_text
from nano_qwen3_serving.engine.async_llm_engine import AsyncLLMEngine
from nano_qwen3_serving.exceptions import InvalidParametersError
from nano_qwen3_serving.server.errors import ApiError, answer_with_errors
from nano_qwen3_serving.server.limits import Guard
from nano_qwen3_serving.server.metrics import CONTENT_TYPE, AppMetrics
from nano_qwen3_serving.server.openai.chat import begin_chat
from nano_qwen3_serving.server.openai.completions import begin_completion
from nano_qwen3_serving.server.openai.generation import Running
from nano_qwen3_serving.server.openai.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    SamplingFields,
    TokenizeRequest,
)
from nano_qwen3_serving.server.openai.replies import (
    ERRORS,
    ChatReply,
    CompletionReply,
    DetokenizeReply,
    HealthReply,
    ModelCard,
    ModelList,
    ResponseReply,
    StatsReply,
    TokenizeReply,
    VersionReply,
    or_stream,
)
from nano_qwen3_serving.server.openai.responses import begin_response, typed_events
from nano_qwen3_serving.server.openai.responses_request import ResponsesRequest
from nano_qwen3_serving.server.openai.texts import detokenized, tokenized
from nano_qwen3_serving.server.playground.routes import playground_routes
from nano_qwen3_serving.server.serving import Limits, Serving
from nano_qwen3_serving.server.streams import Chunks, ClientGoneError, EventStream, Framing, events, unless_gone

VERSION = version("nano-qwen3-serving")


def create_app(
    engine: AsyncLLMEngine,
    *,
    served_model_names: Sequence[str] = (),
    api_key: str | None = None,
    allowed_origins: Sequence[str] = (),
    allowed_hosts: Sequence[str] | None = None,
    limits: Limits = Limits(),  # noqa: B008 (frozen)
) -> FastAPI:
    """An app that serves `engine`. All its state is in `app.state.serving`; the caller shuts the engine down.

    Args:
        engine: other callers and other apps may use it at the same time.
        served_model_names: the names that clients use for the model; by default the engine's name for it.
        api_key: what clients must send as `Authorization: Bearer KEY`; None lets everybody in.
        allowed_origins: origins of pages whose scripts may read answers (CORS); by default only the app's own page may.
        allowed_hosts: names by which clients may call the server; None is any. See `KnownHosts`.
        limits: of each request.
    """
    if api_key is not None:
        check_text("api_key", api_key)
        if not re.fullmatch(r"[\x21-\x7e]+", api_key):
            raise InvalidParametersError("api_key must be some visible ASCII characters, for it goes into a header",
                                         parameter="api_key")
    serving = Serving(engine, list(served_model_names) or [engine.engine.config.model_name], limits)
    routers = [openai_routes(serving), server_routes(serving), playground_routes(serving)]
    metrics = AppMetrics(serving.names[0], [route.path for router in routers for route in router.routes])  # type: ignore[attr-defined]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        serving.live.close()
        engine.engine.observers.remove(metrics.latencies)

    engine.engine.observers.add(metrics.latencies)
    app = FastAPI(title="nano_qwen3_serving", version=VERSION, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.serving, app.state.metrics = serving, metrics
    for router in routers:
        app.include_router(router)
    answer_with_errors(app)
    app.add_middleware(Guard, serving=serving, counts=metrics.http, api_key=api_key, hosts=allowed_hosts)
    if allowed_origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(allowed_origins), allow_methods=["*"], allow_headers=["*"],
                           expose_headers=["X-Request-Id"])
    return app


class Call(Protocol):
    """A call of the API, its requests in flight."""

    @property
    def running(self) -> Running:
        """Its requests; to be left when the call is over."""

    async def answer(self) -> dict[str, Any]:
        """The whole answer at once."""

    def chunks(self) -> Chunks:
        """The answer as it is generated."""


async def answered(
    serving: Serving, http: Request, begin: Coroutine[Any, Any, Call], streams: bool, framed: Framing = events,
) -> Response:
    """Begins a call and answers it. Its requests end with the answer, or with the client's connection."""
    try:
        call = await unless_gone(http.receive, begin)
        if streams:
            return EventStream(framed(call.chunks()), call.running, serving.limits.patience)
        async with call.running:
            return JSONResponse(await unless_gone(http.receive, call.answer()))
    except ClientGoneError:
        return Response(status_code=499)  # nginx's status for a closed connection, for the log; nobody reads this answer


def check_stream_options(request: SamplingFields | ResponsesRequest) -> None:
    """Refuses `stream_options` without `stream`."""
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options needs stream=true", "invalid_value", "stream_options")


def openai_routes(serving: Serving) -> APIRouter:
    """The routes of OpenAI's API."""
    routes = APIRouter(responses=ERRORS)

    @routes.post("/v1/completions", responses=or_stream(CompletionReply))
    async def completions(body: CompletionRequest, http: Request) -> Response:
        """Completes a prompt as it stands."""
        serving.check_model(body.model)
        check_stream_options(body)
        return await answered(serving, http, begin_completion(serving, body, f"cmpl-{http.state.request_id}"), bool(body.stream))

    @routes.post("/v1/chat/completions", responses=or_stream(ChatReply))
    async def chat_completions(body: ChatRequest, http: Request) -> Response:
        """Answers a conversation."""
        serving.check_model(body.model)
        check_stream_options(body)
        return await answered(serving, http, begin_chat(serving, body, f"chatcmpl-{http.state.request_id}"), bool(body.stream))

    @routes.post("/v1/responses", responses=or_stream(ResponseReply))
    async def responses(body: ResponsesRequest, http: Request) -> Response:
        """Answers a conversation with a list of items."""
        serving.check_model(body.model)
        check_stream_options(body)
        begin = begin_response(serving, body, http.state.request_id)
        return await answered(serving, http, begin, bool(body.stream), typed_events)

    @routes.get("/v1/models", response_model=ModelList)
    async def models() -> dict[str, Any]:
        """The model that is served, under each of its names."""
        return {"object": "list", "data": [serving.card(name) for name in serving.names]}

    @routes.get("/v1/models/{name:path}", response_model=ModelCard)
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        serving.check_model(name)
        return serving.card(name)

    return routes


def server_routes(serving: Serving) -> APIRouter:
    """The other routes, as in vLLM."""
    routes = APIRouter(responses=ERRORS)
    engine = serving.engine

    @routes.post("/tokenize", response_model=TokenizeReply)
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """Text, or a conversation, as tokens."""
        serving.check_model(body.model)
        return await tokenized(serving, body)

    @routes.post("/detokenize", response_model=DetokenizeReply)
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        """Tokens as text."""
        serving.check_model(body.model)
        return await detokenized(serving, body)

    @routes.get("/health", response_model=HealthReply)
    async def health() -> dict[str, str]:
        """Whether requests are taken: 200, or 503 once the engine is dead or the server is about to stop."""
        serving.check_ready()
        return {"status": "ok"}

    @routes.get("/version", response_model=VersionReply)
    async def server_version() -> dict[str, str]:
        """The package's."""
        return {"version": VERSION}

    @routes.get("/stats", response_model=StatsReply)
    async def stats() -> dict[str, Any]:
        """Numbers of this moment: requests, blocks, the share of the KV cache in use."""
        return {**await engine.get_stats(), "num_requests_in_flight": serving.in_flight,
                "num_requests_queued": len(engine.waiting_room), "draining": serving.draining}

    @routes.get("/metrics", response_class=Response)
    async def metrics(http: Request) -> Response:
        """What Prometheus reads."""
        return Response(http.app.state.metrics.text(await engine.get_metrics()), media_type=CONTENT_TYPE)

    return routes
