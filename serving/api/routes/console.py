"""The web console: static files that anybody may have, which ask for a key and use the API with it.

Owns their content types, their caching and what a browser lets the page do. Answers no data.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePath
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from serving.api.dependencies import header
from serving.api.security import GuardedRoute, public
from serving.errors import NotFound

router = APIRouter(route_class=GuardedRoute, include_in_schema=False)

# Trusted types with no policy: even a mistake in the page can't turn a stored text into markup.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    # Kept, but asked for each time: the page and its parts always come from the same release.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_PAGE: Final = "index.html"


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """A file of the console, as it is sent."""

    content: bytes
    media_type: str
    etag: str


def _read() -> Mapping[str, _File]:
    return {
        found.name: _File(
            content=(content := found.read_bytes()),
            media_type=media_type,
            etag=f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        )
        for found in files("serving.console").iterdir()
        if (media_type := _MEDIA_TYPES.get(PurePath(found.name).suffix)) is not None
    }


_FILES: Final = _read()


@router.get("/console")
@public()
async def page(request: Request) -> Response:
    """The page."""
    return _sent(request, _PAGE)


@router.get("/console/")
@public()
async def slash() -> Response:
    """The page's address without the slash, which its relative links count on."""
    return RedirectResponse("../console", 308)


@router.get("/console/{file}")
@public(errors=(404,))
async def part(request: Request, file: str) -> Response:
    """A part of the page."""
    return _sent(request, file)


def _sent(request: Request, name: str) -> Response:
    found = _FILES.get(name)
    if found is None:
        raise NotFound("the console has no such file")
    headers = {**_HEADERS, "ETag": found.etag}
    known = header(request.scope, b"if-none-match") or ""
    if found.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(found.content, headers=headers, media_type=found.media_type)
