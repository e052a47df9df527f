"""The statistics: they count stored rows by version and by state, and cost little."""

from datetime import UTC, datetime, timedelta

import pytest

from db.analytics.statistics import FeedbackCounts, StatisticsRepository
from db.connection.engine import Database
from db.core.ids import Uuid7Clock
from db.embeddings.segments import Segments
from db.models.evaluations import EvaluationRepository, NewEvaluation
from db.predictions.feedback import FeedbackRepository, NewFeedback
from db.predictions.partitions import Partitions
from tests.support.postgres import SPACE
from tests.support.row_factories import new_key, new_submission, new_text, new_writer

pytestmark = pytest.mark.anyio


async def test_segments_are_counted_by_state(database: Database) -> None:
    key = await new_key(database)
    await new_writer(database).commit([new_submission(key, [new_text() for _ in range(5)])])
    await Segments(database, SPACE).roll(5)
    await new_writer(database).commit([new_submission(key, [new_text() for _ in range(2)])])
    statistics = await StatisticsRepository(database).collect()
    assert {(row.space, row.state, row.segments, row.rows) for row in statistics.segments} == {
        (SPACE, "closed", 1, 5),
        (SPACE, "open", 1, 2),
    }


async def test_evaluations_wait_or_run(database: Database) -> None:
    evaluations = EvaluationRepository(database)
    for number in range(3):
        await evaluations.request(
            NewEvaluation(bundle_digest=f"{number}", data_digest="d", model="sentiment", version=f"{number}")
        )
    await evaluations.claim()
    statistics = await StatisticsRepository(database).collect()
    assert statistics.evaluations == {"running": 1, "waiting": 2}
    assert 0 <= statistics.oldest_waiting < 60


async def test_judgements_are_counted_by_version_as_they_stand(database: Database) -> None:
    key, other = await new_key(database), await new_key(database)
    feedback = FeedbackRepository(database)
    for version, right in (("1", True), ("1", False), ("2", True)):
        given = new_submission(key, version=version)
        await new_writer(database).commit([given])
        for holder, result in ((key, not right), (key, right)):
            await feedback.put(
                NewFeedback(
                    prediction_id=given.predictions[0].id,
                    holder_id=holder.holder_id,
                    key_id=holder.id,
                    is_correct=result,
                    label=None,
                    comment=None,
                )
            )
    assert other.holder_id != key.holder_id
    statistics = await StatisticsRepository(database).collect()
    assert statistics.judged == {
        ("sentiment", "1"): FeedbackCounts(judged=2, right=1),
        ("sentiment", "2"): FeedbackCounts(judged=1, right=1),
    }


async def test_the_last_hour_is_counted_apart_from_the_week_before(database: Database) -> None:
    key = await new_key(database)
    now = datetime.now(UTC)
    # Within this month's partition, so that the test passes on a month's first days.
    later = now + timedelta(hours=3)
    old = new_submission(key, [new_text() for _ in range(4)], label="negative", confidence=0.35)
    await new_writer(database).commit([old])
    ahead = Uuid7Clock(lambda: int(later.timestamp() * 1e9))
    for label, confidence in (("positive", 1.0), ("neutral", 0.5)):
        await new_writer(database).commit(
            [new_submission(key, id=ahead.next(), label=label, confidence=confidence)]
        )
    result = await StatisticsRepository(database).distributions(later + timedelta(minutes=1))
    recent, reference = result.recent["sentiment", "2"], result.reference["sentiment", "2"]
    assert recent.labels == {"positive": 1, "neutral": 1}
    assert list(recent.confidences) == [0] * 5 + [1] + [0] * 3 + [1]
    assert recent.confidence == pytest.approx(0.75)
    assert set(reference.labels) == {"negative"}
    assert reference.confidences[3] == reference.total == 4, "each once"


async def test_the_reference_is_spread_over_the_times_that_have_answers(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two times with answers, each gives half of what is read, and no answer is read twice."""
    monkeypatch.setattr("db.analytics.statistics._PICKED", 1)
    key, end = await new_key(database), datetime.now(UTC) - timedelta(hours=2)
    for label, days, texts in (("negative", 6, 40), ("positive", 1, 40), ("neutral", 3, 5)):
        at = end - timedelta(days=days)
        await Partitions(database).ensure(at)
        clock = Uuid7Clock(lambda at=at: int(at.timestamp() * 1e9))
        for _ in range(texts):
            await new_writer(database).commit([new_submission(key, id=clock.next(), label=label)])
    result = (await StatisticsRepository(database).distributions()).reference["sentiment", "2"]
    assert result.labels == {"negative": 9, "positive": 9, "neutral": 5}, "28 of them, in three parts"


async def test_an_empty_installation_has_nothing_to_tell(database: Database) -> None:
    repository = StatisticsRepository(database)
    statistics, result = await repository.collect(), await repository.distributions()
    assert statistics.judged == {}
    assert statistics.evaluations == {"running": 0, "waiting": 0}
    assert (result.recent, result.reference) == ({}, {})


async def test_pools_say_what_they_hold(database: Database) -> None:
    async with database.hot_write(), database.begin():
        pools = {pool.name: pool for pool in database.list_pools()}
    assert pools.keys() == {"writers", "readers", "searchers", "repositories"}
    assert pools["writers"].open - pools["writers"].idle == 1
    assert pools["repositories"].open - pools["repositories"].idle == 1
    assert pools["writers"].waiting == 0
