"""Hostile values in every filter and every stored field: matched literally, never read as SQL."""

import asyncio
from collections.abc import Awaitable, Iterator
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from db.accounts.audit import AuditFilters, AuditRepository
from db.accounts.keys import Key
from db.accounts.users import UserRepository
from db.analytics.replay import ReplayRepository
from db.connection.engine import Database
from db.errors import DatabaseError, NotFound
from db.experiments.experiments import ExperimentRepository, NewExperiment
from db.models.evaluations import EvaluationRepository
from db.models.promotions import PromotionRepository
from db.predictions.feedback import FeedbackRepository, Judgement, NewFeedback
from db.predictions.idempotency import IdempotencyRepository
from db.predictions.predictions import PredictionFilters, PredictionRepository
from db.predictions.submissions import Failed, Stored
from db.search.similarity import SimilarityFilters, SimilarityRepository
from tests.support import breadth
from tests.support.postgres import SPACE, TestServer, open_database
from tests.support.repository_tour import VECTOR
from tests.support.row_factories import (
    count_rows,
    new_idempotency,
    new_key,
    new_submission,
    new_text,
    new_writer,
    run_sql,
)

HOSTILE = (
    "' OR '1'='1",
    "'; DROP TABLE predictions; --",
    "\\'; DROP TABLE predictions; --",
    '"; DROP TABLE predictions; --',
    "positive' /*",
    "*/ OR true --",
    "%s",
    "%(sentiment)s",
    "%%",
    "100 %",
    "{fitting}",
    "{0}",
    "{}",
    "$$; DROP TABLE predictions; $$",
    "$1",
    ":sentiment",
    "::text",
    "\\",
    "\\x00",
    "E'\\047'",
    "\u02bc OR 1=1",
    "\uff07 OR 1=1 --",
    "\u202e\u2066positive",
    "\U0001f600'",
    "ﬁ\u0301",
    "\n\t\r\x1b[31m",
    "NULL",
    "",
    " " * 300,
    "x" * 5000,
)
# A value that PostgreSQL can't store is refused with its name.
UNHOLDABLE = ("positive\x00", "\ud800")
VALUES = st.one_of(
    st.sampled_from(HOSTILE + UNHOLDABLE),
    st.text(st.characters(codec=None), max_size=60),
    st.text("'\"\\%{}$:;-/*\x00\n ORselectdrop1=", max_size=40),
)
UUIDS = st.uuids()
SETTINGS = settings(
    max_examples=breadth.examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def place(server: TestServer) -> Iterator[tuple[str, Key]]:
    """Return a database with one harmless prediction, and the key that stored it."""

    async def fill(url: str) -> Key:
        async with open_database(url) as database:
            key = await new_key(database)
            assert await new_writer(database).commit([new_submission(key)]) == [Stored()]
            return key

    with server.database() as url:
        yield url, asyncio.run(fill(url))


async def assert_intact(database: Database) -> None:
    """Check that every table exists, and that no row came or went."""
    assert await count_rows(database, "api_keys") == 1
    assert await count_rows(database, "users") == 0
    assert await count_rows(database, "predictions") == 1
    assert await count_rows(database, "audit_log") == 1


@example(value="'; DROP TABLE predictions; --", other="' OR '1'='1", ident=UUID(int=0))
@example(value="%(holder)s", other="{fitting}", ident=UUID(int=2**128 - 1))
@example(value="positive\x00", other="\ud800", ident=UUID(int=0))
@given(value=VALUES, other=VALUES, ident=UUIDS)
@SETTINGS
def test_no_filter_is_read_as_sql(place: tuple[str, Key], value: str, other: str, ident: UUID) -> None:
    url, key = place

    async def ask() -> None:
        async with open_database(url) as database:
            predictions, similarity = (
                PredictionRepository(database),
                SimilarityRepository(database, space=SPACE),
            )
            holdable = all("\x00" not in each and each.isprintable() for each in (value, other))
            for field in ("sentiment", "model", "model_version", "arm"):
                for mixed in ({field: value}, {field: value, "user_id": ident}, {field: other, "arm": value}):
                    await _nothing(
                        holdable, predictions.list(PredictionFilters(**mixed), holder=key.holder_id)
                    )
            await _nothing(False, predictions.list(cursor=value))
            for filters in (
                SimilarityFilters(sentiment=value),
                SimilarityFilters(model_version=value, has_feedback=False),
                SimilarityFilters(sentiment=value, model_version=other, user_id=ident, is_correct=True),
            ):
                for exact in (False, True):
                    await _nothing(holdable, similarity.search(VECTOR, filters=filters, exact=exact))
            await _nothing(holdable, IdempotencyRepository(database).find(key.holder_id, value, other))
            await _nothing(holdable, AuditRepository(database).list(AuditFilters(subject=value)))
            await _nothing(holdable, PromotionRepository(database).history(value))
            await _nothing(False, PromotionRepository(database).history("sentiment", cursor=other))
            await _nothing(holdable, EvaluationRepository(database).find_report(value, other))
            await _nothing(holdable, ReplayRepository(database, space=value).sample(other, size=3, judged=3))
            await _nothing(holdable, SimilarityRepository(database, space=value).search(VECTOR))
            await assert_intact(database)

    asyncio.run(ask())


async def _nothing(must_answer: bool, asked: Awaitable[object]) -> None:
    """Check that a filter finds nothing or refuses the value; a value that can be stored is never refused."""
    try:
        result = await asked
    except (DatabaseError, UnicodeEncodeError, ValueError):
        assert not must_answer
        return
    for name in ("items", "results"):
        result = getattr(result, name, result)
    assert not result


@pytest.mark.anyio
@pytest.mark.parametrize("value", HOSTILE)
async def test_what_is_stored_comes_back_as_it_was(database: Database, value: str) -> None:
    key = await new_key(database)
    predictions = PredictionRepository(database)
    text = new_text(value or "x")
    new = new_submission(
        key,
        [text],
        idempotency=new_idempotency(key, value or "x"),
        model=value,
        version=value,
        label=value,
        unit=value,
        request_id=value,
    )
    assert await new_writer(database).commit([new]) == [Stored()]
    result = await predictions.get(new.predictions[0].id)
    assert (result.model, result.version, result.label, result.unit, result.request_id) == (value,) * 5
    assert result.text == (value or "x")
    filters = PredictionFilters(sentiment=value, model=value, model_version=value)
    assert [each.id for each in (await predictions.list(filters)).items] == [result.id]
    similarity = SimilarityRepository(database, space=SPACE)
    narrowed = SimilarityFilters(sentiment=value, model_version=value)
    assert [each.text_id for each in (await similarity.search(VECTOR, filters=narrowed)).results] == [text.id]
    judged = NewFeedback(
        prediction_id=result.id, holder_id=key.holder_id, key_id=key.id, is_correct=False, comment=value
    )
    stored = await FeedbackRepository(database).put(judged)
    assert isinstance(stored, Judgement)
    assert stored.comment == value
    experiment = await ExperimentRepository(database).create(
        NewExperiment(model=value, champion=value, challenger="3", share=0.5, shadow=False, salt=value),
        actor=None,
    )
    assert (await ExperimentRepository(database).get(experiment.id)).model == value
    user = await UserRepository(database).create(username=f"u{value}", email=f"e{value}", actor=None)
    assert (await UserRepository(database).get(user.id)).username == f"u{value}"
    await AuditRepository(database).add(action=value, subject=value, detail={value: value})
    assert (await AuditRepository(database).list(AuditFilters(subject=value))).items[0].detail == {
        value: value
    }


@pytest.mark.anyio
@pytest.mark.parametrize("value", UNHOLDABLE)
async def test_a_value_that_cannot_be_stored_is_refused_alone(database: Database, value: str) -> None:
    key = await new_key(database)
    good, bad = new_submission(key), new_submission(key, label=value)
    outcomes = await new_writer(database).commit([bad, good])
    assert isinstance(outcomes[0], Failed)
    assert outcomes[1] == Stored()
    with pytest.raises(NotFound):
        await PredictionRepository(database).get(bad.predictions[0].id)
    assert await run_sql(database, "SELECT count(*) FROM predictions") == [(1,)]
