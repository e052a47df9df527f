"""Composition of one ingress process: Settings → everything the API needs, opened and closed together."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version

import structlog

from db.engine import Database
from db.errors import DatabaseError
from db.feedback import FeedbackStore
from db.idempotency import Idempotency
from db.ids import TextIds, Uuid7Clock
from db.keys import Keys
from db.partitions import Partitions
from db.predictions import Predictions
from db.similarity import Similarity
from db.users import Users
from db.writer import Writer
from serving.accounts import Accounts
from serving.api.deps import Services
from serving.auth import Authenticator
from serving.catalogue import Catalogue
from serving.errors import NotFound, NotReady
from serving.gateway import Bounds, Encoders, Gateway
from serving.installation import installation_key
from serving.lifecycle import Lifecycle
from serving.limits import RateLimiter
from serving.memory import Memory
from serving.metrics import Metrics
from serving.settings import Settings
from serving.stores import database_of

log = structlog.get_logger(__name__)

_HOUR = 3600.0
_KEY_USES_SECONDS = 30.0


@asynccontextmanager
async def services(
    settings: Settings, encoders: Encoders, catalogue: Callable[[], Catalogue], lifecycle: Lifecycle
) -> AsyncIterator[Services]:
    """The services of one process; on the way out everybody inside is answered before the database closes.

    Raises:
        DatabaseError: the database can't be reached or used.
    """
    database = database_of(settings)
    await database.open()
    key = installation_key(settings)
    clock = Uuid7Clock()
    metrics = Metrics()
    users, keys = Users(database), Keys(database)
    authenticator = Authenticator(
        keys,
        installation_key=key,
        token_seconds=settings.token_seconds,
        trust_seconds=settings.credential_cache_seconds,
    )
    gateway = Gateway(
        encoders=encoders,
        writer=Writer(database, space=settings.space),
        idempotency=Idempotency(database),
        users=users,
        catalogue=catalogue,
        clock=clock,
        text_ids=TextIds(key),
        default_model=settings.model,
        bounds=Bounds(
            batch_texts=settings.batch_texts,
            batches_in_flight=settings.slots,
            queue_texts=settings.queue_texts,
            queue_seconds=settings.queue_seconds,
            store_rows=settings.store_rows,
            store_connections=settings.store_connections,
            request_seconds=settings.request_seconds,
        ),
        compute_meter=metrics.meter("compute"),
        bulk_meter=metrics.meter("bulk"),
        store_meter=metrics.meter("store"),
    )
    await _bound(clock, database)
    chores = [
        asyncio.create_task(_keep_bounded(clock, database)),
        asyncio.create_task(_keep_uses(authenticator)),
    ]

    async def missing() -> Sequence[str]:
        lacks = []
        try:
            catalogue().champion(settings.model)
        except (NotReady, NotFound) as error:
            lacks.append(str(error))
        try:
            async with asyncio.timeout(2), database.hot_read() as connection:
                await connection.execute("SELECT 1")
        except (DatabaseError, TimeoutError):
            lacks.append("the database doesn't answer")
        return lacks

    try:
        yield Services(
            gateway=gateway,
            memory=Memory(
                predictions=Predictions(database),
                feedback=FeedbackStore(database),
                similarity=Similarity(database, space=settings.space),
                embed=gateway.embed,
            ),
            accounts=Accounts(users=users, keys=keys, authenticator=authenticator),
            lifecycle=lifecycle,
            authenticator=authenticator,
            limits=RateLimiter(settings.rate_limit),
            catalogue=catalogue,
            missing=missing,
            metrics=metrics,
            space=settings.space,
            version=version("valence"),
            metrics_open=settings.metrics_open,
        )
    finally:
        for chore in chores:
            chore.cancel()
        await gateway.close()
        with suppress(DatabaseError):
            await authenticator.note_uses()
        await database.close()


async def _bound(clock: Uuid7Clock, database: Database) -> None:
    made = await Partitions(database).ensure(datetime.now(UTC))
    clock.bound(made.start, made.end)


async def _keep_bounded(clock: Uuid7Clock, database: Database) -> None:
    """Move the clock's bound along with the partitions."""
    while True:
        await asyncio.sleep(_HOUR)
        try:
            await _bound(clock, database)
        except DatabaseError as error:
            log.warning("partitions.postponed", error=str(error))


async def _keep_uses(authenticator: Authenticator) -> None:
    """Store when keys were used last, outside the request path."""
    while True:
        await asyncio.sleep(_KEY_USES_SECONDS)
        try:
            await authenticator.note_uses()
        except Exception as error:
            # A figure that is late must not end the chore.
            log.warning("key_uses.postponed", error=str(error))
