"""Exceptions become responses: one table for statuses, one body for each protocol.

The body is `application/problem+json` (RFC 9457), except under `/v2`, `/v1/embeddings` and `/v1/token`, whose
protocols define their own. A response never repeats a text that the client sent.
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
from serving.api.dependencies import Json, RequestContext, Services, get_header
from serving.api.schemas.fields import to_problems
from serving.core.caller import Role
from serving.errors import Problem, ServingError

log = structlog.get_logger(__name__)

PROBLEM: Final = "application/problem+json"


class UnsupportedMedia(ServingError):
    """The body is of a type that this route doesn't read; `headers` say which one it reads (RFC 9110, 15.5.16)."""

    def __init__(self, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.headers = headers or {}


class ClientDisconnected(Exception):
    """The client closed the connection before the response."""


@dataclass(frozen=True, slots=True)
class ProblemType:
    """The status, name and title of one kind of error, and the detail of one of them as an example."""

    status: int
    name: str
    title: str
    example: str

    @property
    def uri(self) -> str:
        """Return the `type` of the problem document."""
        return f"urn:valence:problem:{self.name}"


TABLE: Final[Mapping[type[ServingError], ProblemType]] = {
    errors.Unauthenticated: ProblemType(
        401, "unauthenticated", "Credentials missing or wrong", "the API key is wrong, expired or revoked"
    ),
    errors.Forbidden: ProblemType(
        403, "forbidden", "Role insufficient", "this needs the role engineer, and the key has client"
    ),
    errors.NotFound: ProblemType(404, "not-found", "Not found", "model 'sentiment' has no version '9'"),
    errors.Refused: ProblemType(
        409, "promotion-refused", "Promotion refused", "evaluation missing: evaluate versions 2 and 3 first"
    ),
    errors.TooSlow: ProblemType(
        408, "too-slow", "Request too slow", "the body came too slowly: send it at 16 KiB/s or faster"
    ),
    errors.Conflict: ProblemType(
        409, "conflict", "Conflict", "an experiment of 'sentiment' is running: stop it first"
    ),
    errors.TooLarge: ProblemType(413, "too-large", "Too large", "1001 texts are too many: send at most 1000"),
    UnsupportedMedia: ProblemType(
        415,
        "unsupported-media-type",
        "Media type not supported",
        "send the body as application/json in UTF-8",
    ),
    errors.Invalid: ProblemType(422, "invalid", "Input invalid", "text: the text is empty or blank"),
    errors.Overloaded: ProblemType(
        429, "overloaded", "Too many requests", "the queue is full: send the request again"
    ),
    errors.RateLimited: ProblemType(
        429, "rate-limited", "Rate limit reached", "the key may send 10 texts a second"
    ),
    errors.Unreadable: ProblemType(
        500, "unreadable", "A stored value can't be decrypted", "no text key is given for key id 2"
    ),
    errors.NotReady: ProblemType(503, "not-ready", "Not ready", "not ready: no champion"),
    errors.ModelNotReady: ProblemType(
        503, "model-not-ready", "Model version not ready", "version 2 of 'sentiment' is starting"
    ),
    errors.StoreUnavailable: ProblemType(
        503, "store-unavailable", "Database unavailable", "the database can't be used now"
    ),
}
_UNEXPECTED: Final = ProblemType(
    500,
    "unexpected",
    "Unexpected error",
    "the request could not be served: the log has the reason under its id",
)
_HTTP: Final = {
    404: ProblemType(404, "not-found", "Not found", "there is nothing here: /docs lists the routes"),
    405: ProblemType(405, "method-not-allowed", "Method not allowed", "this route answers GET, HEAD"),
}
PROBLEM_TYPES: Final = (*TABLE.values(), _HTTP[405], _UNEXPECTED)
_OPENAI_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_OAUTH_ERRORS: Final = {401: "invalid_client", 422: "invalid_request", 503: "temporarily_unavailable"}


class ProblemDetails(BaseModel):
    """RFC 9457; `errors` lists faults of the input, `report` is the gates' result for a refused version."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list["FieldProblem"] | None = None
    report: dict[str, Any] | None = None


class FieldProblem(BaseModel):
    """One fault of the input: its path and a message."""

    loc: list[str | int]
    msg: str


class OpenInferenceError(BaseModel):
    """An error of the Open Inference Protocol."""

    error: str


class OpenAIErrorBody(BaseModel):
    """The members of an error that OpenAI's clients read."""

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


ERROR_BODIES: Final[tuple[type[BaseModel], ...]] = (
    ProblemDetails,
    OpenInferenceError,
    OpenAIError,
    TokenError,
)
_DESCRIPTIONS: Final = {
    **{kind.status: kind.title for kind in TABLE.values()},
    400: "Request malformed",
    429: "Too many requests: see Retry-After",
    500: "A fault of the platform",
    503: "Not ready, or the database can't answer: see Retry-After",
}


def _shape_of(path: str) -> tuple[type[BaseModel], str]:
    if path == "/v2" or path.startswith("/v2/"):
        return OpenInferenceError, "application/json"
    if path == "/v1/embeddings":
        return OpenAIError, "application/json"
    if path == "/v1/token":
        return TokenError, "application/json"
    return ProblemDetails, PROBLEM


def describe_errors(path: str, statuses: Iterable[int]) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI's description of a route's responses with these statuses."""
    shape, media_type = _shape_of(path)
    if shape is OpenAIError and 422 in (statuses := set(statuses)):
        statuses = statuses - {422} | {400}
    content: Json = {"schema": {"$ref": f"#/components/schemas/{shape.__name__}"}}
    return {
        status: {
            "description": _DESCRIPTIONS[status],
            "content": {
                media_type: content | _refer_to_examples(status) if shape is ProblemDetails else content
            },
        }
        for status in sorted(statuses)
    }


def _refer_to_examples(status: int) -> Json:
    names = [kind.name for kind in PROBLEM_TYPES if kind.status == status]
    return {"examples": {name: {"$ref": f"#/components/examples/{name}"} for name in names}}


def build_examples() -> Json:
    """Return a problem document of each kind, as OpenAPI's examples."""
    return {
        kind.name: {"summary": kind.title, "value": _build_problem(kind, kind.example, "/v1/…")}
        for kind in PROBLEM_TYPES
        # Stands at no operation.
        if kind.status != 405
    }


def _build_problem(kind: ProblemType, detail: str, path: str) -> Json:
    return {
        "type": kind.uri,
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "instance": path,
    }


def build_response(
    scope: Scope,
    kind: ProblemType,
    detail: str,
    *,
    problems: Sequence[Problem] = (),
    retry_after: float | None = None,
    report: Mapping[str, Any] | None = None,
) -> Response:
    """Return an error in the form of the route's protocol."""
    path: str = scope["path"]
    shape, media_type = _shape_of(path)
    Services.of(scope).metrics.count_error(kind.name)
    headers = {}
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if kind.status == 408:
        headers["Connection"] = "close"
    if kind.status == 401:
        headers["WWW-Authenticate"] = _challenge(scope)
    content: Json
    if shape is OpenInferenceError:
        content = {"error": _join_problems(detail, problems)}
    elif shape is OpenAIError:
        content = {
            "error": {
                "message": _join_problems(detail, problems),
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
        content = _build_problem(kind, _summarize(detail, problems), path)
        if problems:
            content["errors"] = [{"loc": problem.loc, "msg": problem.message} for problem in problems]
        if report is not None:
            content["report"] = report
    return Response(_encode(content), _status_of(scope, kind), headers, media_type)


def _status_of(scope: Scope, kind: ProblemType) -> int:
    """Return the kind's status; OpenAI answers 400 to whatever can't be used in a body that was read."""
    if _shape_of(scope["path"])[0] is OpenAIError and (
        kind.status == 422 or (kind.status == 413 and RequestContext.of(scope).body_is_read)
    ):
        return 400
    return kind.status


def _challenge(scope: Scope) -> str:
    """Return the scheme that this route understands; for a token's client that is Basic (RFC 6749, section 5.2)."""
    if _shape_of(scope["path"])[0] is TokenError:
        return 'Basic realm="valence", charset="UTF-8"'
    present = get_header(scope, b"authorization") or get_header(scope, b"x-api-key")
    return 'Bearer realm="valence"' + (', error="invalid_token"' if present else "")


def build_unexpected_response(scope: Scope, error: Exception) -> Response:
    """Return the response to an unforeseen error, and log the error with the request's id."""
    log.error("request.failed", request_id=RequestContext.of(scope).request_id, exc_info=error)
    return build_response(scope, _UNEXPECTED, _UNEXPECTED.example)


def install(app: FastAPI) -> None:
    """Answer every exception of the application from the table."""
    app.add_exception_handler(ServingError, _on_serving_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameters)
    app.add_exception_handler(HTTPException, _on_http_exception)


def build_error_response(scope: Scope, error: ServingError) -> Response:
    """Return the response to an error of the serving layer."""
    kind = next((TABLE[ancestor] for ancestor in type(error).__mro__ if ancestor in TABLE), None)
    if kind is None:
        return build_unexpected_response(scope, error)
    detail = str(error)
    if isinstance(error, errors.Retryable) and not _is_engineer(scope):
        detail = error.message
    response = build_response(
        scope,
        kind,
        detail,
        problems=error.problems if isinstance(error, errors.Invalid) else (),
        retry_after=error.retry_after if isinstance(error, errors.Retryable) else None,
        report=error.report if isinstance(error, errors.Refused) else None,
    )
    if isinstance(error, UnsupportedMedia):
        response.headers.update(error.headers)
    return response


def _is_engineer(scope: Scope) -> bool:
    caller = RequestContext.of(scope).caller
    return caller is not None and caller.role.includes(Role.ENGINEER)


async def _on_serving_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServingError):
        return build_unexpected_response(request.scope, error)
    return build_error_response(request.scope, error)


async def _on_invalid_parameters(request: Request, error: Exception) -> Response:
    problems = to_problems(error.errors() if isinstance(error, RequestValidationError) else ())
    kind = TABLE[errors.Invalid]
    return build_response(request.scope, kind, "the request's parameters are invalid", problems=problems)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    kind = _HTTP.get(status)
    if kind is None:
        return build_unexpected_response(request.scope, error)
    if status == 404:
        return build_response(request.scope, kind, kind.example)
    allowed = sorted(_methods(request.scope))
    response = build_response(request.scope, kind, f"this route answers {', '.join(allowed)}")
    response.headers["Allow"] = ", ".join(allowed)
    return response


def _methods(scope: Scope) -> set[str]:
    """Return all methods of the path: each of its routes knows only one, and a route of GET answers HEAD."""
    methods = {
        method
        for route in scope["app"].routes
        if route.matches(scope)[0] is not Match.NONE
        for method in getattr(route, "methods", None) or ()
    }
    return methods | {"HEAD"} if "GET" in methods else methods


def _summarize(detail: str, problems: Sequence[Problem]) -> str:
    """Return the first fault and the number of others, the detail if there is none."""
    if not problems:
        return detail
    first, others = problems[0], len(problems) - 1
    # Without "body", "query", "path" or "header", unless there is nothing else.
    place = ".".join(map(str, first.loc[1:] or first.loc))
    more = f" (and {others} more: see errors)" if others else ""
    return f"{place}: {first.message}{more}"


def _join_problems(detail: str, problems: Sequence[Problem]) -> str:
    places = "; ".join(f"{'.'.join(map(str, problem.loc))}: {problem.message}" for problem in problems)
    return f"{detail}: {places}" if places else detail


def _encode(content: Json) -> bytes:
    try:
        return orjson.dumps(content)
    except TypeError:
        # A path may hold bytes that aren't UTF-8, which orjson refuses.
        return json.dumps(content).encode()
