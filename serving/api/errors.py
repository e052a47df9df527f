"""Exceptions become answers: one table for statuses, one shape for each protocol.

Everything is `application/problem+json` (RFC 9457), but `/v2`, `/v1/embeddings` and `/v1/token`, where
the protocols have shapes of their own. An answer never repeats a text that the client sent.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from serving import errors
from serving.api.dependencies import Exchange, Json, Services, header
from serving.errors import Problem, ServingError

log = structlog.get_logger(__name__)

PROBLEM: Final = "application/problem+json"


class UnsupportedMedia(ServingError):
    """The body is of a type that this route doesn't read."""


class ClientLeft(Exception):
    """The client closed the connection; nobody waits for an answer."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of error is answered."""

    status: int
    name: str
    title: str


TABLE: Final[Mapping[type[ServingError], Kind]] = {
    errors.Unauthenticated: Kind(401, "unauthenticated", "Credentials missing or wrong"),
    errors.Forbidden: Kind(403, "forbidden", "Role insufficient"),
    errors.NotFound: Kind(404, "not-found", "Not found"),
    errors.Refused: Kind(409, "promotion-refused", "Promotion refused"),
    errors.Conflict: Kind(409, "conflict", "Conflict"),
    errors.TooLarge: Kind(413, "too-large", "Too large"),
    UnsupportedMedia: Kind(415, "unsupported-media-type", "Media type not supported"),
    errors.Invalid: Kind(422, "invalid", "Input invalid"),
    errors.Overloaded: Kind(429, "overloaded", "Too many requests"),
    errors.RateLimited: Kind(429, "rate-limited", "Rate limit reached"),
    errors.Unreadable: Kind(500, "unreadable", "A stored value can't be decrypted"),
    errors.NotReady: Kind(503, "not-ready", "Not ready"),
    errors.ModelNotReady: Kind(503, "model-not-ready", "Model version not ready"),
    errors.StoreUnavailable: Kind(503, "store-unavailable", "Database unavailable"),
}
_UNEXPECTED: Final = Kind(500, "unexpected", "Unexpected error")
_HTTP: Final = {
    404: Kind(404, "not-found", "Not found"),
    405: Kind(405, "method-not-allowed", "Method not allowed"),
}
_OPENAI_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_OAUTH_ERRORS: Final = {401: "invalid_client", 422: "invalid_request", 503: "temporarily_unavailable"}


class ProblemDetails(BaseModel):
    """RFC 9457; `errors` says where the input is wrong, `report` what the gates say of a refused version."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list["FieldProblem"] | None = None
    report: dict[str, Any] | None = None


class FieldProblem(BaseModel):
    """One fault of the input: the path to it, and what it is."""

    loc: list[str | int]
    msg: str


class V2Error(BaseModel):
    """An error of the Open Inference Protocol."""

    error: str


class OpenAIErrorBody(BaseModel):
    """What OpenAI's clients read of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """An error in OpenAI's shape."""

    error: OpenAIErrorBody


class TokenError(BaseModel):
    """An error of RFC 6749, section 5.2."""

    error: str
    error_description: str


SHAPES: Final[tuple[type[BaseModel], ...]] = (ProblemDetails, V2Error, OpenAIError, TokenError)
_DESCRIPTIONS: Final = {
    **{kind.status: kind.title for kind in TABLE.values()},
    400: "Request malformed",
    429: "Too many requests: see Retry-After",
    503: "Not ready, or the database can't answer: see Retry-After",
}


def _shape_of(path: str) -> tuple[type[BaseModel], str]:
    if path == "/v2" or path.startswith("/v2/"):
        return V2Error, "application/json"
    if path == "/v1/embeddings":
        return OpenAIError, "application/json"
    if path == "/v1/token":
        return TokenError, "application/json"
    return ProblemDetails, PROBLEM


def documented(path: str, statuses: Iterable[int]) -> dict[int | str, dict[str, Any]]:
    """The answers with these statuses, as OpenAPI describes them for a route."""
    shape, media_type = _shape_of(path)
    schema = {"$ref": f"#/components/schemas/{shape.__name__}"}
    return {
        status: {"description": _DESCRIPTIONS[status], "content": {media_type: {"schema": schema}}}
        for status in sorted(statuses)
    }


def answer(
    scope: Scope,
    kind: Kind,
    detail: str,
    *,
    problems: Sequence[Problem] = (),
    retry_after: float | None = None,
    report: Mapping[str, Any] | None = None,
) -> Response:
    """An error in the shape of the route's protocol."""
    path: str = scope["path"]
    shape, media_type = _shape_of(path)
    Services.of(scope).metrics.count_error(kind.name)
    headers = {}
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if kind.status == 401:
        given = header(scope, b"authorization") or header(scope, b"x-api-key")
        headers["WWW-Authenticate"] = 'Bearer realm="valence"' + (', error="invalid_token"' if given else "")
    content: Json
    if shape is V2Error:
        content = {"error": _joined(detail, problems)}
    elif shape is OpenAIError:
        content = {
            "error": {
                "message": _joined(detail, problems),
                "type": _OPENAI_TYPES.get(
                    kind.status, "invalid_request_error" if kind.status < 500 else "server_error"
                ),
                "param": ".".join(map(str, problems[0].loc[1:])) or None if problems else None,
                "code": kind.name.replace("-", "_"),
            }
        }
    elif shape is TokenError:
        content = {
            "error": _OAUTH_ERRORS.get(
                kind.status, "invalid_request" if kind.status < 500 else "server_error"
            ),
            "error_description": detail,
        }
    else:
        content = {
            "type": f"urn:valence:problem:{kind.name}",
            "title": kind.title,
            "status": kind.status,
            "detail": detail,
            "instance": path,
        }
        if problems:
            content["errors"] = [{"loc": problem.loc, "msg": problem.message} for problem in problems]
        if report is not None:
            content["report"] = report
    return Response(_encode(content), kind.status, headers, media_type)


def unexpected(scope: Scope, error: Exception) -> Response:
    """The answer to an error nobody foresaw: logged with the request's id, not told to the client."""
    log.error("request.failed", request_id=Exchange.of(scope).request_id, exc_info=error)
    return answer(scope, _UNEXPECTED, "the request could not be served: the log has the reason under its id")


def install(app: FastAPI) -> None:
    """Makes the application answer every exception from the table."""
    app.add_exception_handler(ServingError, _on_serving_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameters)
    app.add_exception_handler(HTTPException, _on_http_exception)


def serving_error(scope: Scope, error: ServingError) -> Response:
    """The answer to an error of the serving layer."""
    kind = next((TABLE[ancestor] for ancestor in type(error).__mro__ if ancestor in TABLE), None)
    if kind is None:
        return unexpected(scope, error)
    return answer(
        scope,
        kind,
        str(error),
        problems=error.problems if isinstance(error, errors.Invalid) else (),
        retry_after=error.retry_after if isinstance(error, errors.Retryable) else None,
        report=error.report if isinstance(error, errors.Refused) else None,
    )


async def _on_serving_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServingError):
        return unexpected(request.scope, error)
    return serving_error(request.scope, error)


async def _on_invalid_parameters(request: Request, error: Exception) -> Response:
    faults = error.errors() if isinstance(error, RequestValidationError) else ()
    problems = [Problem(loc=tuple(fault["loc"]), message=fault["msg"]) for fault in faults]
    kind = TABLE[errors.Invalid]
    return answer(request.scope, kind, "the request's parameters are invalid", problems=problems)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    kind = _HTTP.get(status)
    if kind is None:
        return unexpected(request.scope, error)
    if status == 404:
        return answer(request.scope, kind, "there is nothing here: /docs lists the routes")
    allowed = sorted(_methods(request.scope))
    response = answer(request.scope, kind, f"this route answers {', '.join(allowed)}")
    response.headers["Allow"] = ", ".join(allowed)
    return response


def _methods(scope: Scope) -> set[str]:
    """All methods of the path: its routes, one a method, each know only their own."""
    return {
        method
        for route in scope["app"].routes
        if route.matches(scope)[0] is not Match.NONE
        for method in getattr(route, "methods", None) or ()
    }


def _joined(detail: str, problems: Sequence[Problem]) -> str:
    places = "; ".join(f"{'.'.join(map(str, problem.loc))}: {problem.message}" for problem in problems)
    return f"{detail}: {places}" if places else detail


def _encode(content: Json) -> bytes:
    try:
        return orjson.dumps(content)
    except TypeError:
        # A path may hold what is no UTF-8, which orjson refuses.
        return json.dumps(content).encode()
