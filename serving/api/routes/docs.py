"""The OpenAPI document and the page that shows it, which needs no other machine.

Every address on the page is relative, so that it works below any path prefix.
"""

import asyncio
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from serving.api import serializers
from serving.api.security import GuardedRoute, public

router = APIRouter(route_class=GuardedRoute, include_in_schema=False)

_PAGE: Final = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Valence: API</title>
<link rel="icon" type="image/svg+xml" href="console/icon.svg">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/page.js"></script>
</body>
</html>
"""
# Swagger UI sets styles of its own and shows its icons as data.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SCRIPT: Final = """\
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#page",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis],
});
"""


def _page_files() -> Path:
    # Not imported: only the package's static files are needed.
    package = find_spec("fastapi_offline")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("fastapi-offline is not installed")
    return Path(package.origin).parent / "static"


_PAGE_FILES = _page_files()


@router.get("/openapi.json")
@public()
async def openapi(request: Request) -> Response:
    """Return the OpenAPI document."""
    state = request.app.state
    if not hasattr(state, "document"):
        # Built once, beside the event loop, because it takes most of a second.
        state.document = asyncio.ensure_future(asyncio.to_thread(_render, request.app))
    return Response(await asyncio.shield(state.document), media_type="application/json")


def _render(app: FastAPI) -> bytes:
    return serializers.encode(app.openapi())


@router.get("/docs")
@public()
async def page() -> Response:
    """Return the page that shows the document."""
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY, "X-Frame-Options": "DENY"})


@router.get("/docs/page.js")
@public()
async def script() -> Response:
    """Return the script that starts the page."""
    return Response(_SCRIPT, media_type="text/javascript")


@router.get("/docs/{name}")
@public()
async def page_file(name: Literal["swagger-ui-bundle.js", "swagger-ui.css"]) -> Response:
    """Return a file of the page."""
    return FileResponse(_PAGE_FILES / name, headers={"Cache-Control": "public, max-age=86400"})
