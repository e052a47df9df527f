"""Composition of one ingress process: the services of the API, opened and closed together."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from typing import Any

from db.accounts.audit import AuditRepository
from db.accounts.keys import KeyRepository
from db.accounts.users import UserRepository
from db.analytics.disagreements import DisagreementRepository
from db.analytics.labels import LabelRepository
from db.analytics.statistics import StatisticsRepository
from db.analytics.windows import WindowRepository
from db.connection.engine import Database
from db.core.ids import TextIds, Uuid7Clock
from db.embeddings.spaces import SpaceRepository
from db.embeddings.vectors import VectorRepository
from db.errors import DatabaseError
from db.experiments.counts import CountRepository
from db.experiments.experiments import ExperimentRepository
from db.experiments.traffic import TrafficFeed
from db.predictions.feedback import FeedbackRepository
from db.predictions.idempotency import IdempotencyRepository
from db.predictions.partitions import Partitions
from db.predictions.predictions import PredictionRepository
from db.predictions.writer import PredictionWriter
from db.privacy.erasure import ErasureRepository
from db.search.keywords import KeywordRepository
from db.search.similarity import SimilarityRepository
from serving.accounts.audit import AuditService
from serving.accounts.authentication import Authenticator
from serving.accounts.rate_limits import RateLimiter
from serving.accounts.service import AccountService
from serving.accounts.tokens import TokenSigner, build_audience
from serving.analytics.service import AnalyticsService
from serving.api.dependencies import Services, SpaceServices
from serving.api.uploads import UploadLimits
from serving.control.lifecycle import Lifecycle
from serving.core.caller import Role
from serving.core.catalog import Catalog, short_digest
from serving.core.connections import build_database
from serving.core.executor import BackgroundExecutor
from serving.core.home import read_installation_key, read_token_keys
from serving.core.periodic import run_periodically
from serving.core.tracing import Spans, build_spans
from serving.errors import NotFound, NotReady
from serving.experiments.service import ExperimentService, traffic_of
from serving.inference.dispatcher import BatchLimits, EncoderClient
from serving.monitoring.collectors import PlatformCollector, ReplicaCollector, StoredStatistics
from serving.monitoring.metrics import Metrics
from serving.predictions.history import PredictionHistoryService
from serving.predictions.routing import Traffic
from serving.predictions.service import PredictionService
from serving.predictions.shadow import FaultCounter
from serving.privacy.erasure import ErasureService
from serving.privacy.masking import TextMasker
from serving.search.label_suggestions import LabelSuggestionService
from serving.search.service import SearchService
from serving.settings import Settings
from serving.spaces.service import SpaceService

# A clock that leapt beyond the partitions has every prediction refused until there are some.
_PARTITIONS_SECONDS = 10.0
_KEY_USES_SECONDS = 30.0
_FAULTS_SECONDS = 2.0
_STATISTICS_SECONDS = 5.0
_STATISTICS_TIMEOUT_SECONDS = 5.0
_DISTRIBUTIONS_EVERY = 6


@asynccontextmanager
async def services(
    settings: Settings,
    replicas: Callable[[str, Spans | None], EncoderClient],
    catalog: Callable[[], Catalog],
    on_version_requested: Callable[[str, str, Role], None],
    lifecycle: Lifecycle,
    *,
    replica: str | None = None,
    behind_haproxy: bool = False,
) -> AsyncIterator[Services]:
    """Open the services of one process; on exit, answer the requests in flight and then close the database.

    `replicas` gives those of an encoder, `on_version_requested` is called for each version that a request names,
    `replica` is the name of this process, and `behind_haproxy` says that HAProxy names the clients.

    Raises:
        DatabaseError: the database can't be reached or used.
        NotReady: a setting asks for masking, and the library that finds personal data isn't installed.
    """
    privacy = build_masker(settings)
    spans = build_spans(
        settings.otlp_endpoint, process="ingress", replica=replica, share=settings.trace_share
    )
    database = build_database(settings, watch=spans.database if spans else None)
    await database.open()
    key = read_installation_key(settings)
    clock = Uuid7Clock()
    metrics = Metrics(replica)
    stored = StoredStatistics()
    users, keys = UserRepository(database), KeyRepository(database)
    authenticator = Authenticator(
        keys,
        tokens=TokenSigner(
            read_token_keys(settings), audience=build_audience(key), seconds=settings.token_seconds
        ),
        trust_seconds=settings.credential_cache_seconds,
    )
    split = _TrafficSplits()
    writer = PredictionWriter(database, space=settings.space)
    metrics.add_collector(ReplicaCollector(pools=database.list_pools, stored=stored), of_replica=True)
    metrics.add_collector(
        PlatformCollector(catalog=catalog, traffic=split.current, stored=stored, version=version("valence")),
        of_replica=False,
    )
    service = PredictionService(
        replicas=lambda encoder: metrics.count_texts(short_digest(encoder), replicas(encoder, spans)),
        writer=spans.writer(writer) if spans else writer,
        idempotency=IdempotencyRepository(database),
        users=users,
        catalog=catalog,
        traffic=split.current,
        on_version_requested=on_version_requested,
        clock=clock,
        text_ids=TextIds(key),
        default_model=settings.model,
        limits=BatchLimits(
            batch_texts=settings.batch_texts,
            batches_in_flight=settings.slots,
            queue_texts=settings.queue_texts,
            queue_seconds=settings.queue_seconds,
            store_rows=settings.store_rows,
            store_connections=settings.store_connections,
            request_seconds=settings.request_seconds,
        ),
        observers=metrics.observer_of,
        on_stored=metrics.count_predictions,
        privacy=privacy,
    )
    evidence = CountRepository(database)
    aside = BackgroundExecutor()
    predictions = PredictionRepository(database)

    @cache
    def services_in(space: str) -> SpaceServices:
        labels, similarity = (
            LabelRepository(database, space=space),
            SimilarityRepository(database, space=space),
        )
        search = SearchService(
            similarity=similarity,
            vectors=VectorRepository(database, space=space),
            keywords=KeywordRepository(database, space=space),
            embed=partial(service.embed, space=space),
        )
        return SpaceServices(
            search=search,
            label_suggestions=LabelSuggestionService(
                predictions=predictions, labels=labels, search=search, catalog=catalog
            ),
            analytics=AnalyticsService(
                windows=WindowRepository(database, space=space),
                labels=labels,
                disagreements=DisagreementRepository(database, space=space),
                catalog=catalog,
                executor=aside,
                default_model=settings.model,
            ),
            erasure=ErasureService(
                ErasureRepository(database, similarity, space=space), backup_days=settings.backup_days
            ),
        )

    await _bound_clock(clock, database)
    await split.read(TrafficFeed(database))
    statistics = _StatisticsReader(StatisticsRepository(database), stored)
    loops: tuple[Coroutine[Any, Any, None], ...] = (
        split.follow(TrafficFeed(database)),
        run_periodically(
            partial(_bound_clock, clock, database),
            every=_PARTITIONS_SECONDS,
            pause_first=True,
            errors=DatabaseError,
            event="partitions.postponed",
        ),
        run_periodically(
            authenticator.note_uses,
            every=_KEY_USES_SECONDS,
            pause_first=True,
            errors=Exception,
            event="key_uses.postponed",
        ),
        run_periodically(
            partial(_store_faults, service.faults, evidence),
            every=_FAULTS_SECONDS,
            pause_first=True,
            errors=DatabaseError,
            event="faults.postponed",
        ),
        run_periodically(
            statistics.read,
            every=_STATISTICS_SECONDS,
            errors=(DatabaseError, TimeoutError),
            event="census.postponed",
        ),
    )
    tasks = [asyncio.create_task(loop) for loop in loops]

    async def missing_parts() -> Sequence[str]:
        lacks = []
        try:
            catalog().champion(settings.model)
        except NotReady as error:
            lacks.append(error.message)
        except NotFound as error:
            lacks.append(str(error))
        try:
            async with asyncio.timeout(2), database.hot_read() as connection:
                await connection.execute("SELECT 1")
        except (DatabaseError, TimeoutError):
            lacks.append("the database doesn't answer")
        return lacks

    try:
        yield Services(
            predictions=service,
            history=PredictionHistoryService(
                predictions=predictions, feedback=FeedbackRepository(database), privacy=privacy
            ),
            in_space=lambda: services_in(catalog().space or settings.space),
            spaces=SpaceService(SpaceRepository(database), lifecycle.space_encoder, catalog),
            accounts=AccountService(users=users, keys=keys, authenticator=authenticator),
            audit=AuditService(AuditRepository(database)),
            lifecycle=lifecycle,
            experiments=ExperimentService(
                ExperimentRepository(database), evidence, catalog, lifecycle.evaluate
            ),
            authenticator=authenticator,
            rate_limiter=RateLimiter(settings.rate_limit),
            catalog=catalog,
            missing_parts=missing_parts,
            metrics=metrics,
            version=version("valence"),
            proxies=settings.trusted_proxies + behind_haproxy,
            # A slow body keeps one of the places of an ingress replica, so one key gets few of them.
            uploads=UploadLimits(max(1, settings.ingress_max_ongoing // 4)),
            metrics_open=settings.metrics_open,
            cors_origins=settings.cors_origins,
            spans=spans,
        )
    finally:
        for task in tasks:
            task.cancel()
        await service.close()
        await aside.close()
        with suppress(DatabaseError):
            await authenticator.note_uses()
            await evidence.add_faults(service.faults.take())
        await database.close()
        if spans is not None:
            await asyncio.to_thread(spans.close)


def build_masker(settings: Settings) -> TextMasker | None:
    """Build the masker of personal data; None if the settings keep such data as it is.

    Raises:
        NotReady: the library that finds personal data isn't installed.
    """
    if settings.privacy == "off":
        return None
    from serving.privacy.pii import PersonalDataFinder

    return TextMasker(PersonalDataFinder(), settings.privacy)


class _TrafficSplits:
    """The traffic splits that this process knows, as one frozen value that is replaced whole."""

    def __init__(self) -> None:
        self._traffic = Traffic()

    def current(self) -> Traffic:
        """Return the present splits."""
        return self._traffic

    async def read(self, feed: TrafficFeed) -> None:
        """Read the splits once."""
        self._traffic = traffic_of(await feed.current())

    async def follow(self, feed: TrafficFeed) -> None:
        """Read the splits after every change, for ever."""
        async for experiments in feed.changes():
            self._traffic = traffic_of(experiments)


async def _store_faults(faults: FaultCounter, counts: CountRepository) -> None:
    counted = faults.take()
    try:
        await counts.add_faults(counted)
    except DatabaseError:
        faults.give_back(counted)
        raise


class _StatisticsReader:
    """Reads the stored statistics in time; the distributions, which cost most, only at every sixth reading."""

    def __init__(self, repository: StatisticsRepository, stored: StoredStatistics) -> None:
        self._repository = repository
        self._stored = stored
        self._readings = 0

    async def read(self) -> None:
        """Read once; statistics that can't be read are forgotten."""
        try:
            async with asyncio.timeout(_STATISTICS_TIMEOUT_SECONDS):
                self._stored.update(await self._repository.collect())
                if self._readings == 0:
                    self._stored.distributions = await self._repository.distributions()
            self._readings = (self._readings + 1) % _DISTRIBUTIONS_EVERY
        except (DatabaseError, TimeoutError):
            self._stored.clear()
            self._readings = 0
            raise


async def _bound_clock(clock: Uuid7Clock, database: Database) -> None:
    """Keep the times of ids within the partitions that exist."""
    partitions = await Partitions(database).ensure(datetime.now(UTC))
    clock.set_bounds(partitions.start, partitions.end)
