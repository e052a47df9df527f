"""Factories of rows for database tests: keys, texts with vectors, submissions."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from itertools import count
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import psycopg
from psycopg import sql

from db.accounts.keys import Key, KeyRepository, NewKey
from db.connection.engine import Database
from db.core.ids import TextIds, Uuid7Clock
from db.predictions.submissions import NewIdempotency, NewPrediction, NewText, Submission
from db.predictions.writer import PredictionWriter
from tests.support.postgres import KEY, SPACE

text_id = TextIds(KEY)
clock = Uuid7Clock()
_numbers = count()


async def new_key(database: Database, *, owner_id: UUID | None = None, role: str = "client") -> Key:
    """Store a key whose secret nobody knows."""
    return await add_key(KeyRepository(database), owner_id=owner_id, role=role)


async def add_key(keys: Any, *, owner_id: UUID | None = None, role: str = "client") -> Key:
    """Store such a key in a repository: a fake or the real one."""
    new = NewKey(
        id=uuid4(), digest=hashlib.sha256(uuid4().bytes).digest(), role=role, name="test", owner_id=owner_id
    )
    key: Key = await keys.create(new, actor=None)
    return key


def unit_vectors(rows: int, *, seed: int = 0) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Return random vectors of length 1 in ten clusters, similar to those of texts."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((10, 384))
    vectors = centres[random.integers(10, size=rows)] + 0.8 * random.standard_normal((rows, 384))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def new_text(content: str | None = None, vector: "np.ndarray[Any, Any] | None" = None) -> NewText:
    content = content if content is not None else f"text {next(_numbers)}"
    vector = vector if vector is not None else unit_vectors(1, seed=next(_numbers))[0]
    return NewText(id=text_id(content), content=content, embedding=vector.astype("<f2").tobytes())


def new_prediction(key: Key, text: NewText, **changes: Any) -> NewPrediction:
    values: dict[str, Any] = {
        "id": clock.next(),
        "text_id": text.id,
        "user_id": None,
        "key_id": key.id,
        "holder_id": key.holder_id,
        "model": "sentiment",
        "version": "2",
        "arm": "champion",
        "experiment_id": None,
        "unit": None,
        "label": "positive",
        "confidence": 0.75,
        "scores": (0.125, 0.125, 0.75),
        "request_id": "test",
        "truncated": False,
        "language": "en",
        "supported": True,
        "mostly_unknown": False,
        "queue_ms": 1.5,
        "infer_ms": 2.5,
    }
    return NewPrediction(**(values | changes))


def new_submission(
    key: Key,
    texts: Sequence[NewText] | None = None,
    *,
    idempotency: NewIdempotency | None = None,
    **changes: Any,
) -> Submission:
    """Return one request with a prediction for each of its texts."""
    texts = texts if texts is not None else [new_text()]
    predictions = [new_prediction(key, text, **changes) for text in texts]
    return Submission(texts=texts, predictions=predictions, idempotency=idempotency)


def new_idempotency(
    key: Key, name: str, *, body: bytes = b"body", answer: bytes = b"answer"
) -> NewIdempotency:
    return NewIdempotency(
        holder_id=key.holder_id,
        route="/v1/predict",
        key=name,
        body_digest=hashlib.sha256(body).digest(),
        status=201,
        answer=answer,
    )


def new_writer(database: Database, space: str = SPACE) -> PredictionWriter:
    return PredictionWriter(database, space=space)


async def count_rows(database: Database, table: str) -> int:
    """Return the number of rows of a table."""
    async with database.begin() as connection:
        return int((await connection.exec_driver_sql(f"SELECT count(*) FROM {table}")).scalar_one())


async def run_sql(database: Database, statement: str, *parameters: Any) -> list[Any]:
    """Run a statement; return its rows, if it has any."""
    async with database.begin() as connection:
        result = await connection.exec_driver_sql(statement, tuple(parameters))
        return [tuple(row) for row in result] if result.returns_rows else []


async def wait_for_lock(database: Database) -> None:
    """Wait until any session waits for a lock."""
    for _ in range(1000):
        if (await run_sql(database, "SELECT count(*) FROM pg_locks WHERE NOT granted"))[0][0]:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody waits")


def now() -> datetime:
    return datetime.now(UTC)


def field_names(value_type: Any) -> list[str]:
    """Return the names of a dataclass's fields, inherited ones included."""
    return [each.name for each in fields(value_type)]


async def set_defaults(url: str, parameters: Mapping[str, str]) -> None:
    """Set parameters for all later sessions of a database."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        for parameter, value in parameters.items():
            statement = sql.SQL("ALTER DATABASE {} SET {} = {}")
            await connection.execute(statement.format(name, sql.Identifier(parameter), value))
