"""Access of a route to the services of this process and to the context of its request."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

from starlette.requests import Request
from starlette.types import Scope

from serving.accounts.audit import AuditService
from serving.accounts.authentication import Authenticator
from serving.accounts.rate_limits import RateLimiter, RefusalLimiter
from serving.accounts.service import AccountService
from serving.analytics.service import AnalyticsService
from serving.api.uploads import UploadLimits
from serving.control.lifecycle import Lifecycle
from serving.core.caller import Caller
from serving.core.catalog import Catalog
from serving.core.tracing import Spans
from serving.experiments.service import ExperimentService
from serving.monitoring.metrics import Metrics
from serving.predictions.history import PredictionHistoryService
from serving.predictions.service import PredictionService
from serving.privacy.erasure import ErasureService
from serving.search.label_suggestions import LabelSuggestionService
from serving.search.service import SearchService
from serving.spaces.service import SpaceService

Readiness: TypeAlias = Callable[[], Awaitable[Sequence[str]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SpaceServices:
    """The services that read vectors of one embedding space; a request uses one of these throughout."""

    search: SearchService
    label_suggestions: LabelSuggestionService
    analytics: AnalyticsService
    erasure: ErasureService


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """Everything the API needs.

    `missing_parts` names what the platform lacks to be ready; `in_space` returns the services of the live space;
    `proxies` is the number of those that stand in front and name their clients.
    """

    predictions: PredictionService
    history: PredictionHistoryService
    in_space: Callable[[], SpaceServices]
    spaces: SpaceService
    accounts: AccountService
    audit: AuditService
    lifecycle: Lifecycle
    experiments: ExperimentService
    authenticator: Authenticator
    rate_limiter: RateLimiter
    catalog: Callable[[], Catalog]
    missing_parts: Readiness
    metrics: Metrics
    version: str
    refusals: RefusalLimiter = field(default_factory=RefusalLimiter)
    proxies: int = 0
    uploads: UploadLimits = field(default_factory=UploadLimits)
    metrics_open: bool = False
    cors_origins: Sequence[str] = ()
    spans: Spans | None = None

    @classmethod
    def of(cls, scope: Scope) -> Self:
        """Return the services of the application that serves this request."""
        services: Self = scope["app"].state.services
        return services


class RequestContext:
    """One request: its id, its caller and its body, as soon as they are known."""

    __slots__ = ("body", "body_is_read", "caller", "request_id")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.body = b""
        self.body_is_read = False
        self.caller: Caller | None = None

    @classmethod
    def of(cls, scope: Scope) -> "RequestContext":
        """Return the context that the middleware created."""
        context: RequestContext = scope["valence.request"]
        return context


def get_services(request: Request) -> Services:
    """Return the services of this process."""
    return Services.of(request.scope)


def get_body(request: Request) -> bytes:
    """Return the body, which the guard has read."""
    return RequestContext.of(request.scope).body


def get_caller(request: Request) -> Caller:
    """Return the caller; only on routes that need a role."""
    caller = RequestContext.of(request.scope).caller
    if caller is None:
        raise RuntimeError("a public route has no caller")
    return caller


def get_header(scope: Scope, name: bytes) -> str | None:
    """Return the first header of this name, which is in lower case."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None


def get_headers(scope: Scope, name: bytes) -> list[str]:
    """Return every header of this name, which is in lower case."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    return [value.decode("latin-1") for key, value in headers if key == name]


Json: TypeAlias = dict[str, Any]
