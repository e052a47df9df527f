"""The OpenAPI document and its page: FastAPI's document of the routes, completed from their declarations."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from serving.api import serializers
from serving.api.errors import ERROR_BODIES
from serving.api.security import GuardedRoute, public

router = APIRouter(route_class=GuardedRoute, include_in_schema=False)

_REFERENCE = "#/components/schemas/{model}"
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key, or a token from /v1/token"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


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
    """Return this document."""
    return serializers.json_response(request.app.openapi())


@router.get("/docs")
@public()
async def docs() -> Response:
    """Return the page that shows the document."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Valence",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="/docs/favicon.png",
    )


@router.get("/docs/{name}")
@public()
async def docs_file(name: Literal["swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"]) -> Response:
    """Return a file of that page, which must work without access to other machines."""
    return FileResponse(_PAGE_FILES / name, headers={"Cache-Control": "public, max-age=86400"})


def document(app: FastAPI) -> dict[str, Any]:
    """Build the whole document."""
    routes = [route for route in app.routes if isinstance(route, GuardedRoute)]
    content = get_openapi(title=app.title, version=app.version, description=app.description, routes=routes)
    bodies = {route.access.body for route in routes if route.access.body is not None}
    _, definitions = models_json_schema(
        [(shape, "validation") for shape in sorted(bodies, key=lambda shape: shape.__name__)]
        + [(shape, "serialization") for shape in ERROR_BODIES],
        ref_template=_REFERENCE,
    )
    components = content.setdefault("components", {})
    components.setdefault("schemas", {}).update(definitions["$defs"])
    components["securitySchemes"] = _SECURITY
    for route in routes:
        if route.include_in_schema:
            for method in route.methods or ():
                _declare(content["paths"][route.path_format][method.lower()], route)
    return content


def _declare(operation: dict[str, Any], route: GuardedRoute) -> None:
    access = route.access
    if access.body is not None:
        reference = {"$ref": _REFERENCE.format(model=access.body.__name__)}
        operation["requestBody"] = {
            "required": not access.optional,
            "content": {access.media_type: {"schema": reference}},
        }
    if access.role is not None:
        operation["security"] = [{scheme: []} for scheme in _SECURITY]
        operation["description"] = (
            f"{operation.get('description', '')}\n\nNeeds the role `{access.role}`.".strip()
        )
