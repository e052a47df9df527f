"""The HTTP API: an ASGI application over the services, with one router a resource.

Knows no Ray, no SQL and no MLflow.
"""

from fastapi import FastAPI

from serving.api import errors, openapi
from serving.api.dependencies import Services
from serving.api.middleware import RequestMiddleware
from serving.api.routes import (
    accounts,
    analytics,
    console,
    docs,
    erasures,
    experiments,
    feedback,
    health,
    metrics,
    models,
    open_inference,
    openai,
    predictions,
    search,
    second_opinions,
    spaces,
    token,
)

__all__ = ["Services", "create_api"]


def create_api(services: Services) -> FastAPI:
    """Build the application; each of its routes declares the role that it needs."""
    app = FastAPI(
        title="Valence",
        version=services.version,
        summary="Versioned sentiment models behind one URL, with a memory.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    errors.install(app)
    app.add_middleware(
        RequestMiddleware,
        metrics=services.metrics,
        spans=services.spans,
        origins=services.cors_origins,
        proxies=services.proxies,
    )
    routers = (
        predictions.router,
        feedback.router,
        search.router,
        second_opinions.router,
        analytics.router,
        openai.router,
        open_inference.router,
        models.router,
        experiments.router,
        spaces.router,
        erasures.router,
        accounts.router,
        token.router,
        health.router,
        metrics.router(is_open=services.metrics_open),
        docs.router,
        console.router,
    )
    for router in routers:
        # Not `include_router`: an included router is matched twice a request, which costs time on the hot path.
        app.router.routes.extend(router.routes)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _document(app: FastAPI) -> dict[str, object]:
    if app.openapi_schema is None:
        app.openapi_schema = openapi.build_document(app)
    return app.openapi_schema
