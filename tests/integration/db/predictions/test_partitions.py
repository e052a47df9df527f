"""Partitions: created before they are needed, by any process, any number of times."""

import asyncio
from datetime import UTC, datetime

import pytest

from db.connection.engine import Database
from db.core.ids import Uuid7Clock, uuid7_floor
from db.predictions.partitions import Partitions
from tests.support.row_factories import count_rows, new_key, new_submission, new_writer, run_sql

pytestmark = pytest.mark.anyio


async def test_partitions_reach_from_last_month_to_months_ahead(database: Database) -> None:
    span = await Partitions(database).ensure(datetime(2031, 12, 31, 23, 59, tzinfo=UTC), months_ahead=2)
    assert span.start == datetime(2031, 11, 1, tzinfo=UTC)
    assert span.end == datetime(2032, 3, 1, tzinfo=UTC)
    rows = await run_sql(
        database, "SELECT relname FROM pg_class WHERE relname ~ '^(predictions|feedback)_203._..$'"
    )
    months = ("2031_11", "2031_12", "2032_01", "2032_02")
    assert {name for (name,) in rows} == {
        f"{table}_{month}" for table in ("predictions", "feedback") for month in months
    }


async def test_many_at_once_make_each_partition_once(database: Database) -> None:
    partitions = Partitions(database)
    moment = datetime(2040, 6, 1, tzinfo=UTC)
    spans = await asyncio.gather(*(partitions.ensure(moment) for _ in range(4)))
    assert len(set(spans)) == 1


async def test_ids_at_both_ends_of_the_span_are_stored(database: Database) -> None:
    key = await new_key(database)
    span = await Partitions(database).ensure(datetime(2035, 2, 1, tzinfo=UTC))
    clock = Uuid7Clock(lambda: int(span.end.timestamp() * 1000) * 1_000_000 - 1)
    clock.set_bounds(span.start, span.end)
    for prediction_id in (uuid7_floor(span.start), clock.next()):
        await new_writer(database).commit([new_submission(key, id=prediction_id)])
    assert await count_rows(database, "predictions_2035_01") == 1
    assert await count_rows(database, "predictions_2035_05") == 1
