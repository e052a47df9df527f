"""Tokens: a key for a JWT, by OAuth 2 client credentials (RFC 6749, section 4.4; RFC 8414)."""

import base64
import binascii
from typing import Final
from urllib.parse import parse_qsl, unquote_plus

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from serving.api.bodies import FORM
from serving.api.dependencies import get_body, get_header, get_services
from serving.api.schemas.accounts import AuthorizationServerResponse, TokenRequest, TokenResponse
from serving.api.security import GuardedRoute, check_credential, public
from serving.core.caller import Role
from serving.errors import Unauthenticated

router = APIRouter(route_class=GuardedRoute, tags=["keys"])

_FIELDS: Final = 16
_MAX_BODY: Final = 8 * 1024
_NO_STORE: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}


class _Refused(Exception):
    """A refusal in the terms of RFC 6749, section 5.2."""

    def __init__(self, description: str, error: str = "invalid_request") -> None:
        super().__init__(description)
        self.error = error


@router.post("/v1/token", response_model=TokenResponse)
@public(body=TokenRequest, media_type=FORM, errors=(400, 401, 408, 413, 415, 429, 503), max_body=_MAX_BODY)
async def create_token(request: Request, response: Response) -> TokenResponse | Response:
    """Exchange a key for a token."""
    try:
        form = _form(get_body(request))
        client_id, secret = _client(request, form)
        if (grant := form.get("grant_type")) != "client_credentials":
            raise _Refused(
                "grant_type must be client_credentials",
                "unsupported_grant_type" if grant else "invalid_request",
            )
        issuing = get_services(request).authenticator.issue_token(client_id, secret)
        issued = await check_credential(request.scope, secret, issuing)
        if form.get("scope", issued.role) != issued.role:
            raise _Refused("scope must be the key's role", "invalid_scope")
    except _Refused as refused:
        content = orjson.dumps({"error": refused.error, "error_description": str(refused)})
        return Response(content, 400, _NO_STORE, "application/json")
    response.headers.update(_NO_STORE)
    return TokenResponse(
        access_token=issued.text,
        token_type="Bearer",  # noqa: S106
        expires_in=issued.seconds,
        scope=issued.role,
    )


@router.get("/.well-known/oauth-authorization-server")
@public()
async def get_authorization_server(request: Request) -> AuthorizationServerResponse:
    """Say where and how tokens are issued, by the address that this request was sent to."""
    issuer = str(request.base_url).rstrip("/")
    return AuthorizationServerResponse(
        issuer=issuer,
        token_endpoint=f"{issuer}/v1/token",
        grant_types_supported=["client_credentials"],
        token_endpoint_auth_methods_supported=["client_secret_basic", "client_secret_post"],
        scopes_supported=list(Role),
        # There is no authorization endpoint.
        response_types_supported=[],
    )


def _form(body: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(body.decode("ascii"), max_num_fields=_FIELDS, errors="strict")
    except ValueError:
        raise _Refused("the form can't be read") from None
    form = dict(pairs)
    if len(form) != len(pairs):
        raise _Refused("a parameter is given twice")
    return form


def _client(request: Request, form: dict[str, str]) -> tuple[str, str]:
    scheme, _, encoded = (get_header(request.scope, b"authorization") or "").partition(" ")
    if scheme.lower() == "basic":
        if "client_secret" in form:
            raise _Refused("authenticate in the header or in the form, not in both")
        try:
            user, _, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise Unauthenticated("the Authorization header can't be read") from None
        return unquote_plus(user), unquote_plus(password)
    if "client_id" not in form or "client_secret" not in form:
        raise _Refused("client_id and client_secret are required")
    return form["client_id"], form["client_secret"]
