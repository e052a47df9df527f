"""The API for tests: the whole ASGI application over fakes, or over a real database with fake replicas."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import httpx
from fastapi import FastAPI

from db.accounts.keys import NewKey
from db.connection.engine import Database
from db.core.cipher import Cipher
from db.core.ids import TextIds, Uuid7Clock
from registry.store.records import VersionRecord
from serving.accounts.audit import AuditService
from serving.accounts.authentication import Authenticator, GeneratedKey, generate_key
from serving.accounts.rate_limits import RateLimiter
from serving.accounts.service import AccountService
from serving.accounts.tokens import TokenSigner
from serving.analytics.service import AnalyticsService
from serving.api import Services, create_api
from serving.api.dependencies import SpaceServices
from serving.control.lifecycle import LocalLifecycle
from serving.core.caller import Role
from serving.core.catalog import Catalog, CatalogEntry, VersionState
from serving.core.executor import BackgroundExecutor
from serving.experiments.service import ExperimentService
from serving.inference.dispatcher import BatchLimits
from serving.models.evaluation_queue import EvaluationQueue
from serving.models.promotion import PromotionService
from serving.monitoring.collectors import PlatformCollector, StoredStatistics
from serving.monitoring.metrics import Metrics
from serving.predictions.history import PredictionHistoryService
from serving.predictions.routing import Split, Traffic
from serving.predictions.service import PredictionService
from serving.privacy.erasure import ErasureService
from serving.privacy.masking import TextMasker
from serving.search.label_suggestions import LabelSuggestionService
from serving.search.service import SearchService
from serving.spaces.service import SpaceService
from tests.fakes.accounts import FakeKeyRepository
from tests.fakes.inference import FakeEncoderClient
from tests.fakes.registry import FakeModelRegistry
from tests.fakes.store import FakeStore
from tests.support.postgres import KEY, SPACE, open_database
from tests.support.repositories import Repositories, fake_repositories, stored_repositories

MODEL = "sentiment"


class ManualClock:
    """A clock that a test moves: its date goes on by itself, its seconds stand still meanwhile."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> float:
        return datetime.now(UTC).timestamp() + self.ahead

    def monotonic(self) -> float:
        return self.ahead


class ManualTraffic:
    """Traffic whose split a test sets."""

    def __init__(self) -> None:
        self.splits: dict[str, Split] = {}

    def current(self) -> Traffic:
        return Traffic(splits=dict(self.splits))


@dataclass(kw_only=True)
class Platform:
    """An application, the parts that tests need, and a key for each role."""

    app: FastAPI
    services: Services
    encoders: FakeEncoderClient
    clock: ManualClock
    ids: Uuid7Clock
    keys: dict[Role, GeneratedKey]
    executor: BackgroundExecutor
    registry: FakeModelRegistry
    lifecycle: LocalLifecycle
    evaluations: Any
    spaces: Any
    store: FakeStore | None = None
    key_records: FakeKeyRepository | None = None
    database: Database | None = None
    lacks: list[str] = field(default_factory=list)
    traffic: ManualTraffic = field(default_factory=ManualTraffic)
    requested_versions: set[tuple[str, str]] = field(default_factory=set)

    def client(self, role: Role | None = Role.CLIENT, *, key: str | None = None) -> httpx.AsyncClient:
        """Return a client with the key of this role, with another key, or with none."""
        text = key or (self.keys[role].text if role is not None else None)
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app),
            base_url="http://valence",
            headers={"Authorization": f"Bearer {text}"} if text else {},
        )


def new_record(version: str, *, aliases: Sequence[str] = (), kind: str = "head") -> VersionRecord:
    return VersionRecord(
        model=MODEL,
        version=version,
        kind=kind,
        digest=version * 64,
        encoder=None if kind == "lexicon" else "e" * 64,
        uri=f"file:///nowhere/{version}",
        aliases=tuple(aliases),
        metrics={"accuracy": 0.75},
        languages=("en",),
        name=f"the {kind}",
        description="Made for tests.",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def catalog() -> Catalog:
    """Return a catalog: version 1 ready, 2 champion, 3 starting, 4 failed."""
    return Catalog(
        revision=1,
        champions={MODEL: "2"},
        space=SPACE,
        space_encoders=frozenset(["e" * 64]),
        embedder="e" * 64,
        models={
            MODEL: {
                "1": CatalogEntry(record=new_record("1", kind="lexicon"), state=VersionState.READY),
                "2": CatalogEntry(record=new_record("2", aliases=["champion"]), state=VersionState.READY),
                "3": CatalogEntry(record=new_record("3"), state=VersionState.STARTING),
                "4": CatalogEntry(
                    record=new_record("4"), state=VersionState.FAILED, reason="the head's digest is wrong"
                ),
            }
        },
    )


def _platform(
    *,
    repositories: Repositories,
    clock: ManualClock,
    ids: Uuid7Clock,
    limits: BatchLimits | None,
    rate: float,
    privacy: TextMasker | None = None,
    **settings: Any,
) -> Platform:
    encoders, metrics, lacks = FakeEncoderClient(), Metrics(), []
    traffic = ManualTraffic()
    requested_versions: set[tuple[str, str]] = set()
    authenticator = Authenticator(
        repositories.keys,
        tokens=TokenSigner([KEY], audience="tests", now=clock.now),
        now=clock.now,
        monotonic=clock.monotonic,
    )
    service = PredictionService(
        replicas=lambda digest: metrics.count_texts(digest[:16], encoders),
        writer=repositories.writer,
        idempotency=repositories.idempotency,
        users=repositories.users,
        catalog=catalog,
        traffic=traffic.current,
        on_version_requested=lambda model, version, _role: requested_versions.add((model, version)),
        clock=ids,
        text_ids=TextIds(KEY),
        default_model=MODEL,
        limits=limits or BatchLimits(),
        observers=metrics.observer_of,
        on_stored=metrics.count_predictions,
        privacy=privacy,
    )
    metrics.add_collector(
        PlatformCollector(catalog=catalog, traffic=traffic.current, stored=StoredStatistics(), version="0"),
        of_replica=False,
    )

    registry = FakeModelRegistry(
        {version: entry.record for version, entry in catalog().models[MODEL].items()}, champion="2"
    )
    lifecycle = LocalLifecycle(
        promotions=PromotionService(
            promotions=repositories.promotions,
            evaluations=repositories.evaluations,
            registry=registry,
            catalog=catalog,
        ),
        evaluations=EvaluationQueue(evaluations=repositories.evaluations, registry=registry, catalog=catalog),
        registry=registry,
        audit=repositories.audit,
    )

    async def missing_parts() -> Sequence[str]:
        return lacks

    executor = BackgroundExecutor()
    searching = SearchService(
        similarity=repositories.similarity,
        vectors=repositories.vectors,
        keywords=repositories.keywords,
        embed=partial(service.embed, space=SPACE),
    )
    in_space = SpaceServices(
        search=searching,
        label_suggestions=LabelSuggestionService(
            predictions=repositories.predictions,
            labels=repositories.labels,
            search=searching,
            catalog=catalog,
        ),
        analytics=AnalyticsService(
            windows=repositories.windows,
            labels=repositories.labels,
            disagreements=repositories.disagreements,
            catalog=catalog,
            executor=executor,
            default_model=MODEL,
        ),
        erasure=ErasureService(repositories.erasure, backup_days=30),
    )
    services = Services(
        predictions=service,
        history=PredictionHistoryService(
            predictions=repositories.predictions, feedback=repositories.feedback, privacy=privacy
        ),
        in_space=lambda: in_space,
        spaces=SpaceService(repositories.spaces, lifecycle.space_encoder, catalog),
        accounts=AccountService(
            users=repositories.users, keys=repositories.keys, authenticator=authenticator
        ),
        audit=AuditService(repositories.audit),
        experiments=ExperimentService(
            repositories.experiments, repositories.counts, catalog, lifecycle.evaluate
        ),
        lifecycle=lifecycle,
        authenticator=authenticator,
        rate_limiter=RateLimiter(rate, clock=clock.monotonic),
        catalog=catalog,
        missing_parts=missing_parts,
        metrics=metrics,
        version="0",
        **settings,
    )
    return Platform(
        app=create_api(services),
        services=services,
        encoders=encoders,
        clock=clock,
        ids=ids,
        registry=registry,
        lifecycle=lifecycle,
        evaluations=repositories.evaluations,
        spaces=repositories.spaces,
        keys={},
        executor=executor,
        lacks=lacks,
        traffic=traffic,
        requested_versions=requested_versions,
    )


async def add_key(
    keys: Any,
    role: Role,
    *,
    owner: UUID | None = None,
    rate: float | None = None,
    seconds: float | None = None,
) -> GeneratedKey:
    """Store a key; only the result knows its text."""
    key = generate_key()
    ends = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
    new = NewKey(
        id=key.id, digest=key.digest, role=role, name="test", owner_id=owner, rate_limit=rate, expires_at=ends
    )
    await keys.create(new, actor=None)
    return key


@asynccontextmanager
async def fake_platform(
    *, rate: float = 0, limits: BatchLimits | None = None, **settings: Any
) -> AsyncIterator[Platform]:
    """Yield a platform whose parts are all in memory."""
    store = FakeStore()
    repositories = fake_repositories(store)
    platform = _platform(
        repositories=repositories,
        clock=ManualClock(),
        ids=Uuid7Clock(),
        limits=limits,
        rate=rate,
        **settings,
    )
    platform.store, platform.key_records = store, repositories.keys
    platform.keys = {role: await add_key(repositories.keys, role) for role in Role}
    yield platform
    await platform.services.predictions.close()
    await platform.executor.close()


@asynccontextmanager
async def stored_platform(
    url: str, *, rate: float = 0, cipher: Cipher | None = None, **settings: Any
) -> AsyncIterator[Platform]:
    """Yield a platform over a real database, with fake replicas."""
    async with open_database(url, cipher=cipher) as database:
        repositories = stored_repositories(database)
        platform = _platform(
            repositories=repositories,
            clock=ManualClock(),
            ids=Uuid7Clock(),
            limits=None,
            rate=rate,
            **settings,
        )
        platform.database = database
        platform.keys = {role: await add_key(repositories.keys, role) for role in Role}
        yield platform
        await platform.services.predictions.close()
        await platform.executor.close()
