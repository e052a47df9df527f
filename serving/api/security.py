"""The role that a route needs and the body that it reads: declared at the route, enforced only here.

A route must have a declaration. Credentials are checked before the body is read.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from fastapi import Depends
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.api.addresses import client_address
from serving.api.bodies import JSON, MAX_BODY, announces_body, read_body
from serving.api.dependencies import RequestContext, Services, get_header
from serving.api.errors import describe_errors
from serving.api.schemas.fields import ParsedBody, parse
from serving.api.tensors import HEADER_LENGTH, OCTETS, split_body
from serving.api.uploads import Upload
from serving.core.caller import Caller, Role
from serving.errors import Forbidden, Invalid, Unauthenticated

# From this size on, an answer is compressed if its client reads gzip.
_LARGE: Final = 16 * 1024
_LEVEL: Final = 5
_NO_GZIP: Final = re.compile(r"gzip\s*;\s*q=0(\.0*)?\s*(,|$)", re.IGNORECASE)
# Clients of the Open Inference Protocol send no media type, or none of JSON with binary tensors.
_TENSOR_TYPES: Final = ("", OCTETS)
_MAX_PARAMETERS: Final = 100
# Up to this size a body is parsed in less time than it takes to hand it to a thread.
_INLINE_BYTES: Final = 64 * 1024

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
Checked = TypeVar("Checked")


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """The requirements of a route. `role` None: no credentials; `body` None: no body is read.

    `sheds`: refuse a request before its body is read while no more texts are admitted. `optional`: a request without a
    body is read as an empty object. `max_body`: its most bytes. `tensors`: the body may hold binary tensors after its
    JSON, and needs no media type. `reads`: its cost in reads; 0: the route takes texts.
    """

    role: Role | None
    body: type[BaseModel] | None = None
    media_type: str = JSON
    errors: tuple[int, ...] = ()
    sheds: bool = False
    optional: bool = False
    max_body: int = MAX_BODY
    tensors: bool = False
    reads: int = 1

    async def admit(self, scope: Scope) -> Caller | None:
        """Return the caller, None on a public route.

        Raises:
            Unauthenticated: the credentials are missing or wrong.
            Forbidden: the caller's role is insufficient.
            StoreUnavailable: the credentials can't be checked.
            Overloaded: no more texts are admitted.
            RateLimited: the key has used up its reads, or its address its wrong credentials.
        """
        if self.role is None:
            return None
        services = Services.of(scope)
        credential = _credential(scope)
        if credential is None:
            raise Unauthenticated("send an API key or a token: Authorization: Bearer …, or X-API-Key: …")
        caller = await check_credential(scope, credential, services.authenticator.check(credential))
        if not caller.role.includes(self.role):
            raise Forbidden(f"this needs the role {self.role}, and the key has {caller.role}")
        if self.reads:
            services.rate_limiter.take_reads(caller, self.reads)
        # A request with an idempotency key may have a stored answer, which needs no room, so it is always read.
        if self.sheds and get_header(scope, b"idempotency-key") is None:
            services.predictions.require_room()
        return caller


async def check_credential(scope: Scope, credential: str, check: Coroutine[Any, Any, Checked]) -> Checked:
    """Return what the check returns; count a refusal, and refuse at once where too many came from the same address."""
    services = Services.of(scope)
    address = client_address(scope, services.proxies)
    try:
        if not services.authenticator.is_familiar(credential):
            services.refusals.require_room(address)
        return await check
    except Unauthenticated:
        services.refusals.count(address)
        raise
    finally:
        check.close()


async def _parse_body(request: Request) -> BaseModel:
    route: GuardedRoute = request.scope["route"]
    if route.access.body is None:
        raise RuntimeError("this route reads no body")
    shape, body, tensors = route.access.body, RequestContext.of(request.scope).body, b""
    if route.access.tensors:
        body, tensors = split_body(body, request.headers.get(HEADER_LENGTH))
    if len(body) + len(tensors) <= _INLINE_BYTES:
        return parse(shape, body, tensors)
    return await asyncio.to_thread(parse, shape, body, tensors)


_PARSED: Final = Depends(_parse_body)
# The request's body as this schema: `body: Parsed[KeyRequest]` also declares that the route reads one.
Parsed: TypeAlias = Annotated[ParsedBody, _PARSED]


def public(
    *,
    body: type[BaseModel] | None = None,
    media_type: str = JSON,
    errors: Iterable[int] = (),
    max_body: int = MAX_BODY,
) -> Callable[[Endpoint], Endpoint]:
    """Declare a route that needs no credentials."""
    return _declare(
        Access(role=None, body=body, media_type=media_type, errors=tuple(errors), max_body=max_body)
    )


def requires(
    role: Role,
    *,
    errors: Iterable[int] = (),
    sheds: bool = False,
    optional: bool = False,
    max_body: int = MAX_BODY,
    tensors: bool = False,
    reads: int = 1,
) -> Callable[[Endpoint], Endpoint]:
    """Declare a route that needs this role; `errors` are statuses beyond those of every such route."""
    return _declare(
        Access(
            role=role,
            errors=tuple(errors),
            sheds=sheds,
            optional=optional,
            max_body=max_body,
            tensors=tensors,
            reads=reads,
        )
    )


def _declare(access: Access) -> Callable[[Endpoint], Endpoint]:
    def decorate(endpoint: Endpoint) -> Endpoint:
        endpoint.__access__ = replace(access, body=access.body or _body_of(endpoint))  # type: ignore[attr-defined]  # read by the guard
        return endpoint

    return decorate


def _body_of(endpoint: Callable[..., Any]) -> type[BaseModel] | None:
    """Return the schema of the endpoint's `Parsed` parameter."""
    for annotation in endpoint.__annotations__.values():
        if _PARSED in getattr(annotation, "__metadata__", ()):
            shape: type[BaseModel] = annotation.__origin__
            return shape
    return None


class GuardedRoute(APIRoute):
    """A route that enforces its declaration and documents its refusals."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        access = getattr(endpoint, "__access__", None)
        if not isinstance(access, Access):
            raise TypeError(f"{path} declares no access: decorate its endpoint with public or requires")
        self.access = access
        options["responses"] = {
            **describe_errors(path, _statuses(access)),
            **(options.get("responses") or {}),
        }
        options["operation_id"] = endpoint.__name__
        super().__init__(path, endpoint, **options)
        # Large answers are lists and metrics, whose callers have a key; the hot path's are small.
        self._gzip: ASGIApp | None = None
        if access.role is not None and self.methods == {"GET"}:
            self._gzip = GZipMiddleware(super().handle, minimum_size=_LARGE, compresslevel=_LEVEL)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit the caller, read the body, then run the endpoint."""
        if scope["method"] in (self.methods or ()):
            context = RequestContext.of(scope)
            if scope["query_string"].count(b"&") >= _MAX_PARAMETERS:
                raise Invalid(f"the query has more than {_MAX_PARAMETERS} parameters")
            context.caller = await self.access.admit(scope)
            spans = Services.of(scope).spans
            if spans is not None and context.caller is not None:
                spans.trust()
            if self.access.body is not None:
                caller = context.caller
                with Services.of(scope).uploads.open(receive, caller.key_id if caller else None) as upload:
                    context.body = await self._read(scope, upload)
                    await super().handle(scope, receive, send)
                return
        if self._gzip is None or _refuses_gzip(scope):
            await super().handle(scope, receive, send)
        else:
            await self._gzip(scope, receive, send)

    async def _read(self, scope: Scope, upload: Upload) -> bytes:
        access = self.access
        if access.optional and not announces_body(scope):
            return b"{}"
        others = _TENSOR_TYPES if access.tensors else ()
        body = await read_body(scope, upload, access.media_type, access.max_body, others=others)
        RequestContext.of(scope).body_is_read = True
        return body or b"{}" if access.optional else body


def _refuses_gzip(scope: Scope) -> bool:
    return _NO_GZIP.search(get_header(scope, b"accept-encoding") or "") is not None


def _credential(scope: Scope) -> str | None:
    scheme, _, credential = (get_header(scope, b"authorization") or "").partition(" ")
    if scheme.lower() == "bearer" and credential.strip():
        return credential.strip()
    return get_header(scope, b"x-api-key") or None


def _statuses(access: Access) -> set[int]:
    statuses = {*access.errors, 500}
    if access.role is not None:
        statuses |= {401, 429, 503}
        if access.role is not Role.CLIENT:
            statuses.add(403)
    if access.body is not None and access.media_type == JSON:
        statuses |= {408, 413, 415, 422}
    return statuses
