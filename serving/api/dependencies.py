"""What a route may use: the services of this process, and the exchange it is part of."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from starlette.requests import Request
from starlette.types import Scope

from serving.accounts.audit import AuditService
from serving.accounts.authentication import Authenticator
from serving.accounts.rate_limits import RateLimiter
from serving.accounts.service import AccountService
from serving.analytics.service import AnalyticsService
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
    """What works on the vectors of one embedding space; a request uses one of these from its beginning to its end."""

    search: SearchService
    label_suggestions: LabelSuggestionService
    analytics: AnalyticsService
    erasure: ErasureService


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """Everything the API needs.

    `missing_parts` names what keeps the platform from answering; `in_space` gives the services of the present space.
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
    metrics_open: bool = False
    spans: Spans | None = None

    @property
    def search(self) -> SearchService:
        """Search in the space of now."""
        return self.in_space().search

    @property
    def label_suggestions(self) -> LabelSuggestionService:
        """Opinions in the space of now."""
        return self.in_space().label_suggestions

    @property
    def analytics(self) -> AnalyticsService:
        """Insights in the space of now."""
        return self.in_space().analytics

    @property
    def erasure(self) -> ErasureService:
        """Erasure, whose receipts name what is near in the space of now."""
        return self.in_space().erasure

    @classmethod
    def of(cls, scope: Scope) -> Self:
        """Those of the application that this request came to."""
        services: Self = scope["app"].state.services
        return services


class Exchange:
    """One request and what became known of it on its way: its id, its caller, its body."""

    __slots__ = ("body", "caller", "request_id")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.body = b""
        self.caller: Caller | None = None

    @classmethod
    def of(cls, scope: Scope) -> "Exchange":
        """The exchange that the edge began."""
        exchange: Exchange = scope["valence.exchange"]
        return exchange


def services_of(request: Request) -> Services:
    """The services of this process."""
    return Services.of(request.scope)


def body_of(request: Request) -> bytes:
    """The body, read and bounded already."""
    return Exchange.of(request.scope).body


def caller_of(request: Request) -> Caller:
    """Who asks; only on routes that have a role."""
    caller = Exchange.of(request.scope).caller
    if caller is None:
        raise RuntimeError("a public route has no caller")
    return caller


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of this name (lower case)."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    for key, value in headers:
        if key == name:
            return value.decode("latin-1")
    return None


Json: TypeAlias = dict[str, Any]
