"""Who may use a route, and what it reads: declared at the route, enforced here and nowhere else.

A route without a declaration can't be made. Credentials are checked before a byte of the body is read.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from fastapi import Depends
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from serving.api.dependencies import Exchange, Services, header
from serving.api.errors import ClientLeft, UnsupportedMedia, documented
from serving.api.schemas.fields import ParsedBody, parse
from serving.core.caller import Caller, Role
from serving.errors import Forbidden, TooLarge, Unauthenticated

MAX_BODY: Final = 2 * 1024 * 1024
JSON: Final = "application/json"
FORM: Final = "application/x-www-form-urlencoded"

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """What a route asks of a request. `role` None: anybody; `body` None: none is read.

    `sheds`: turned away before its body is read while there is no room to compute one text more. `optional`: the
    body may be left out, which is as an empty object.
    """

    role: Role | None
    body: type[BaseModel] | None = None
    media_type: str = JSON
    errors: tuple[int, ...] = ()
    sheds: bool = False
    optional: bool = False

    async def admit(self, scope: Scope) -> Caller | None:
        """The caller, if the route asks who it is.

        Raises:
            Unauthenticated, Forbidden, StoreUnavailable: it may not come in, or can't be checked.
            Overloaded: it would have to wait too long.
        """
        if self.role is None:
            return None
        services = Services.of(scope)
        credential = _credential(scope)
        if credential is None:
            raise Unauthenticated("send an API key or a token: Authorization: Bearer …, or X-API-Key: …")
        caller = await services.authenticator.check(credential)
        if not caller.role.includes(self.role):
            raise Forbidden(f"this needs the role {self.role}, and the key has {caller.role}")
        # What was answered before is answered again, so a request with an idempotency key is always read.
        if self.sheds and header(scope, b"idempotency-key") is None:
            services.predictions.require_room()
        return caller


async def _parse_body(request: Request) -> BaseModel:
    route: GuardedRoute = request.scope["route"]
    if route.access.body is None:
        raise RuntimeError("this route reads no body")
    return parse(route.access.body, Exchange.of(request.scope).body)


_PARSED: Final = Depends(_parse_body)
# The request's body as this schema: `body: Parsed[KeyRequest]` also declares that the route reads one.
Parsed: TypeAlias = Annotated[ParsedBody, _PARSED]


def public(
    *, body: type[BaseModel] | None = None, media_type: str = JSON, errors: Iterable[int] = ()
) -> Callable[[Endpoint], Endpoint]:
    """Declares a route that answers without credentials."""
    return _declare(Access(role=None, body=body, media_type=media_type, errors=tuple(errors)))


def requires(
    role: Role,
    *,
    errors: Iterable[int] = (),
    sheds: bool = False,
    optional: bool = False,
) -> Callable[[Endpoint], Endpoint]:
    """Declares a route that wants this role; `errors` are answered besides those of any such route."""
    return _declare(Access(role=role, errors=tuple(errors), sheds=sheds, optional=optional))


def _declare(access: Access) -> Callable[[Endpoint], Endpoint]:
    def declared(endpoint: Endpoint) -> Endpoint:
        endpoint.__access__ = replace(access, body=access.body or _body_of(endpoint))  # type: ignore[attr-defined]
        return endpoint

    return declared


def _body_of(endpoint: Callable[..., Any]) -> type[BaseModel] | None:
    """Return the schema of the endpoint's `Parsed` parameter."""
    for annotation in endpoint.__annotations__.values():
        if _PARSED in getattr(annotation, "__metadata__", ()):
            shape: type[BaseModel] = annotation.__origin__
            return shape
    return None


class GuardedRoute(APIRoute):
    """A route that admits only whom its declaration admits, and documents what it refuses."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        access = getattr(endpoint, "__access__", None)
        if not isinstance(access, Access):
            raise TypeError(f"{path} has no declared access: decorate its endpoint with public or requires")
        self.access = access
        options["responses"] = {**documented(path, _statuses(access)), **(options.get("responses") or {})}
        super().__init__(path, endpoint, **options)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit, read the body, then run the endpoint."""
        if scope["method"] in (self.methods or ()):
            exchange = Exchange.of(scope)
            exchange.caller = await self.access.admit(scope)
            if self.access.body is not None:
                exchange.body = await self._read(scope, receive)
        await super().handle(scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        if not self.access.optional:
            return await read(scope, receive, self.access.media_type)
        return (_announces_body(scope) and await read(scope, receive, self.access.media_type)) or b"{}"


async def read(scope: Scope, receive: Receive, media_type: str) -> bytes:
    """The whole body.

    Raises:
        UnsupportedMedia: it is something else than `media_type`, or compressed.
        TooLarge: it is over the limit; what is over is never kept.
        ClientLeft: the client closed before its end.
    """
    given, _, parameters = (header(scope, b"content-type") or "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if given.strip().lower() != media_type or charset not in ("", "utf-8", "utf8"):
        raise UnsupportedMedia(f"send the body as {media_type} in UTF-8")
    if (header(scope, b"content-encoding") or "identity").lower() != "identity":
        raise UnsupportedMedia("send the body uncompressed")
    announced = header(scope, b"content-length")
    if announced is not None and announced.isdecimal() and int(announced) > MAX_BODY:
        raise TooLarge(f"the body has {int(announced):,} bytes: send at most {MAX_BODY:,}")
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > MAX_BODY:
            raise TooLarge(f"the body is larger than {MAX_BODY:,} bytes: send less at once")
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _announces_body(scope: Scope) -> bool:
    length = header(scope, b"content-length")
    return header(scope, b"transfer-encoding") is not None or length not in (None, "0")


def _credential(scope: Scope) -> str | None:
    scheme, _, credential = (header(scope, b"authorization") or "").partition(" ")
    if scheme.lower() == "bearer" and credential.strip():
        return credential.strip()
    return header(scope, b"x-api-key") or None


def _statuses(access: Access) -> set[int]:
    statuses = set(access.errors)
    if access.role is not None:
        statuses |= {401, 503}
        if access.role is not Role.CLIENT:
            statuses.add(403)
    if access.body is not None and access.media_type == JSON:
        statuses |= {413, 415, 422}
    return statuses
