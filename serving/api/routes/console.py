"""The web console: public static files of a page that asks for a key and calls the API with it.

Owns their content types, their caching and their security headers. Returns no data.
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

from serving.api.dependencies import get_header
from serving.api.security import GuardedRoute, public
from serving.errors import NotFound

router = APIRouter(route_class=GuardedRoute, include_in_schema=False)

# Trusted types without a policy: a mistake in the page can't turn a stored text into markup.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    # Cached, but revalidated each time: the page and its parts always come from the same release.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
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
    """A file of the console and its headers."""

    content: bytes
    media_type: str
    etag: str


def _read_files() -> Mapping[str, _File]:
    return {
        file.name: _File(
            content=(content := file.read_bytes()),
            media_type=media_type,
            etag=f'"{hashlib.sha256(content).hexdigest()[:32]}"',
        )
        for file in files("serving.console").iterdir()
        if (media_type := _MEDIA_TYPES.get(PurePath(file.name).suffix)) is not None
    }


_FILES: Final = _read_files()


@router.get("/")
@public()
async def home() -> Response:
    """Redirect to the console."""
    return RedirectResponse("console")


@router.get("/favicon.ico")
@public()
async def icon() -> Response:
    """Redirect to the console's icon, for pages that name none."""
    return RedirectResponse("console/icon.svg", 308)


@router.get("/console")
@public()
async def page(request: Request) -> Response:
    """Return the console's page."""
    return _respond(request, _PAGE)


@router.get("/console/")
@public()
async def redirect_slash() -> Response:
    """Redirect to the address without a slash, which the page's relative links need."""
    return RedirectResponse("../console", 308)


@router.get("/console/{file}")
@public(errors=(404,))
async def part(request: Request, file: str) -> Response:
    """Return a file that the page loads: a script, a style sheet or an image."""
    return _respond(request, file)


def _respond(request: Request, name: str) -> Response:
    file = _FILES.get(name)
    if file is None:
        raise NotFound("the console has no such file")
    headers = {**_HEADERS, "ETag": file.etag}
    known = get_header(request.scope, b"if-none-match") or ""
    if file.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
