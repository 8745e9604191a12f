"""Every answer that is an error, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

Knows the engine's errors and what HTTP calls them; knows no route. What went wrong inside the server stays in its log.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from nano_qwen3_serving.exceptions import (
    EngineDeadError,
    EngineError,
    GenerationError,
    InvalidParametersError,
    PromptTooLongError,
    QueueFullError,
    RequestTimeoutError,
    shown,
)

BAD_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
FRAMEWORKS = {  # status of an error that the framework, or a guard, raises → its code, and what is said instead of its text
    400: ("invalid_json", "the body is no JSON in UTF-8, or nested too deep"),
    404: ("not_found", "there is no such route; /openapi.json lists those there are"),
    405: ("method_not_allowed", "this route has other methods; the header Allow lists them"),
    408: ("body_timeout", ""),
    413: ("body_too_large", ""),
}


@dataclass
class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        message: for people; names the value and the way out.
        code: for programs, such as "model_not_found".
        param: the field of the request that is wrong.
        kind: OpenAI's `type`.
        headers: of the answer.
    """

    status: int
    message: str
    code: str
    param: str | None = None
    kind: str = BAD_REQUEST
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """What is sent."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole answer. It is ASCII: it may quote half of a surrogate pair, which UTF-8 cannot encode."""
        return Response(json.dumps(self.body()), self.status, self.headers, "application/json")


def api_error(error: Exception) -> ApiError:
    """The answer to a request that raised `error`."""
    match error:
        case ApiError():
            return error
        case PromptTooLongError():
            return ApiError(400, str(error), "context_length_exceeded", error.parameter)
        case InvalidParametersError():
            return ApiError(400, str(error), "invalid_value", error.parameter)
        case QueueFullError():
            retry = {"Retry-After": str(math.ceil(error.retry_after))}
            return ApiError(503, str(error), "queue_full", kind=SERVER_ERROR, headers=retry)
        case RequestTimeoutError():
            message = str(error).removesuffix("; what it generated is in .partial")
            return ApiError(504, message, "timeout", kind=SERVER_ERROR)
        case GenerationError():
            return ApiError(500, str(error), "generation_failed", kind=SERVER_ERROR)
        case EngineDeadError():
            return ApiError(503, str(error), "engine_dead", kind=SERVER_ERROR)
        case HTTPException():
            return of_http(error)
    return ApiError(500, "the server failed over this request; its log says why", "internal_error", kind=SERVER_ERROR)


def draining_error() -> ApiError:
    """The answer to new requests while the server waits for its last ones."""
    return ApiError(503, "the server is about to stop and takes no new requests; ask another one, or this one later",
                    "draining", kind=SERVER_ERROR, headers={"Retry-After": "5", "Connection": "close"})


def of_http(error: HTTPException) -> ApiError:
    """The answer to what the framework and the guards raise: no such route, a body that is not JSON, or one that is too large."""
    code, message = FRAMEWORKS.get(error.status_code, ("http_error", ""))
    return ApiError(error.status_code, message or str(error.detail), code, headers=dict(error.headers or {}))


def of_validation(error: RequestValidationError) -> ApiError:
    """The answer to a body with wrong fields or types: it names the first one."""
    problems = error.errors()
    first = problems[0]
    place, raised = list(first["loc"]), first.get("ctx", {}).get("error")
    if isinstance(raised, InvalidParametersError):
        return ApiError(400, str(raised), "unknown_field", spelled([*place[1:], raised.parameter]))
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {raised} at position {place[-1]}", "invalid_json")
    if isinstance(error.body, bytes):
        return ApiError(415, "the body is JSON here; send the header Content-Type: application/json", "unsupported_media_type")
    if place == ["body"]:
        return ApiError(400, "the body must be a JSON object", "invalid_json")
    alternatives = [p for p in problems if p["loc"][:2] == first["loc"][:2] and isinstance((*p["loc"], 0, 0)[2], str)]
    if len(alternatives) > 1:  # one complaint for each form that the field may have
        place = place[:2]
    name = spelled(place[1:])
    if first["type"] == "missing":
        return ApiError(400, f"{name} is missing", "missing_field", name)
    complaints = dict.fromkeys(p["msg"].removeprefix("Input ") for p in alternatives or [first])
    value = value_at(error.body, place[1:], first["input"])
    return ApiError(400, f"{name} {', or '.join(complaints)}; got {shown(value)}", "invalid_type", name)


def spelled(place: Sequence[str | int]) -> str:
    """A place in a body, in the usual notation: `messages[0].content`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def value_at(body: Any, place: Sequence[str | int], otherwise: Any) -> Any:
    """The value at a place in a body, if there is one."""
    try:
        for part in place:
            body = body[part]
    except (LookupError, TypeError):
        return otherwise
    return body


def answer_with_errors(app: FastAPI) -> None:
    """Makes `app` answer in this shape when its routes raise an error on purpose. `Guard` answers all other exceptions."""

    async def answer(request: Request, error: Exception) -> Response:
        return api_error(error).response()

    async def answer_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return of_validation(error).response()

    for kind in (ApiError, EngineError, HTTPException):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(RequestValidationError, answer_validation)
