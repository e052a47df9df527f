"""Statistics of the stored rows for monitoring, cheap for tables of any size.

Owns the statements and their bounds: each reads a few thousand rows at most. Never writes, and judges no figure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, LiteralString, TypeAlias

from sqlalchemy import Row

from db.connection.repository import Repository, run_sql
from db.core.ids import uuid7_floor
from db.models.evaluations import STALE_SECONDS

# Rows of an open segment that are counted at most, so that counting an oversized one stays cheap.
OPEN_ROWS_COUNTED: Final = 500_000
JUDGED: Final = 2_000
RECENT: Final = 2_000
RECENT_TIME: Final = timedelta(hours=1)
REFERENCE_TIME: Final = timedelta(days=7)
# The reference week is read in 28 parts, the first 100 predictions of each on average.
_PARTS, _PICKED = 28, 100
BINS: Final = 10

Version: TypeAlias = tuple[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentCounts:
    """The numbers of segments of a space in one state, and of the vectors in them."""

    space: str
    state: str
    segments: int
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedbackCounts:
    """The number of a version's predictions that were judged lately, and of those judged right."""

    judged: int
    right: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerDistribution:
    """Some predictions of a version: counts by label and by tenth of the confidence; the mean confidence."""

    labels: Mapping[str, int] = field(default_factory=dict)
    confidences: Sequence[int] = (0,) * BINS
    confidence: float = 0.0

    @property
    def total(self) -> int:
        """The number of predictions."""
        return sum(self.labels.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """Statistics at one moment.

    `evaluations`: the numbers that are `running` and `waiting`; `oldest_waiting` in seconds. `judged` covers the
    latest `JUDGED` predictions with feedback.
    """

    segments: Sequence[SegmentCounts] = ()
    evaluations: Mapping[str, int] = field(default_factory=dict)
    oldest_waiting: float = 0.0
    judged: Mapping[Version, FeedbackCounts] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Distributions:
    """The predictions of versions in the last hour, and in the week before, sampled over its whole length."""

    recent: Mapping[Version, AnswerDistribution] = field(default_factory=dict)
    reference: Mapping[Version, AnswerDistribution] = field(default_factory=dict)


_SEGMENTS: Final[LiteralString] = """
    SELECT space, state, count(*) AS segments, coalesce(sum(CASE WHEN state = 'open' THEN (
        SELECT count(*) FROM (
            SELECT FROM embeddings WHERE segment = segments.id LIMIT CAST(:counted AS integer)) AS counted)
        ELSE rows END), 0)::bigint AS rows
    FROM segments GROUP BY space, state"""

_EVALUATIONS: Final[LiteralString] = """
    SELECT count(*) FILTER (WHERE worked_on) AS running, count(*) FILTER (WHERE NOT worked_on) AS waiting,
        coalesce(extract(epoch FROM now() - min(created_at) FILTER (WHERE NOT worked_on)), 0)::float8 AS oldest
    FROM (SELECT created_at, coalesce(seen_at >= now() - make_interval(secs => :stale), false) AS worked_on
        FROM evaluations WHERE state = 'running') AS requested"""

# A holder's judgement counts until they replace it, and of several holders' judgements the latest.
_JUDGED: Final[LiteralString] = """
    SELECT p.model, p.version, count(*) AS judged, count(*) FILTER (WHERE j.is_correct) AS right
    FROM (SELECT DISTINCT ON (prediction_id) prediction_id, is_correct
        FROM (SELECT prediction_id, holder_id, is_correct, updated_at FROM feedback
            ORDER BY prediction_id DESC LIMIT CAST(:judged AS integer)) AS last
        ORDER BY prediction_id, updated_at DESC, holder_id) AS j
    JOIN predictions p ON p.id = j.prediction_id
    GROUP BY p.model, p.version"""

_COUNTED: Final[LiteralString] = """
    SELECT model, version, label, least(floor(confidence * 10), 9)::integer AS bin, count(*) AS answers,
        sum(confidence)::float8 AS confidence
    FROM ({rows}) AS answered GROUP BY model, version, label, bin"""

_RECENT: Final[LiteralString] = _COUNTED.replace(
    "{rows}",
    "SELECT model, version, label, confidence FROM predictions WHERE id >= CAST(:since AS uuid) "
    "ORDER BY id DESC LIMIT CAST(:most AS integer)",
)

# The primary key leads to the beginning of each part, so a week costs no more than a minute. No prediction is in two
# parts, and those that have some share what the others lack.
_REFERENCE: Final[LiteralString] = _COUNTED.replace(
    "{rows}",
    "WITH filled AS MATERIALIZED (SELECT part.low, part.high "
    "FROM unnest(CAST(:lows AS uuid[]), CAST(:highs AS uuid[])) AS part (low, high) "
    "WHERE EXISTS (SELECT FROM predictions WHERE id >= part.low AND id < part.high)) "
    "SELECT p.* FROM filled CROSS JOIN LATERAL ("
    "SELECT model, version, label, confidence FROM predictions WHERE id >= filled.low AND id < filled.high "
    "ORDER BY id LIMIT (SELECT CAST(:most AS integer) / greatest(count(*), 1) FROM filled)) AS p",
)


class StatisticsRepository(Repository):
    """Reads statistics, which are the same in every process."""

    async def collect(self) -> Statistics:
        """Return the numbers of segments, evaluations and judgements."""
        async with self._database.begin() as connection:
            await connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            segments = await run_sql(connection, _SEGMENTS, counted=OPEN_ROWS_COUNTED)
            by_state = [SegmentCounts(**row._mapping) for row in segments]
            evaluations = (await run_sql(connection, _EVALUATIONS, stale=STALE_SECONDS)).one()
            judged = await run_sql(connection, _JUDGED, judged=JUDGED)
            return Statistics(
                segments=by_state,
                evaluations={"running": evaluations.running, "waiting": evaluations.waiting},
                oldest_waiting=evaluations.oldest,
                judged={
                    (row.model, row.version): FeedbackCounts(judged=row.judged, right=row.right)
                    for row in judged
                },
            )

    async def distributions(self, now: datetime | None = None) -> Distributions:
        """Return the predictions of versions in the hour before `now`, and in the week before that hour."""
        now = now or datetime.now(UTC)
        since = now - RECENT_TIME
        step = REFERENCE_TIME / _PARTS
        edges = [uuid7_floor(since - step * number) for number in range(_PARTS, -1, -1)]
        async with self._database.begin() as connection:
            await connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            recent = _distributions(await run_sql(connection, _RECENT, since=edges[-1], most=RECENT))
            rows = await run_sql(
                connection, _REFERENCE, lows=edges[:-1], highs=edges[1:], most=_PARTS * _PICKED
            )
            return Distributions(recent=recent, reference=_distributions(rows))


def _distributions(rows: Iterable[Row[Any]]) -> dict[Version, AnswerDistribution]:
    labels: dict[Version, dict[str, int]] = {}
    bins: dict[Version, list[int]] = {}
    sums: dict[Version, float] = {}
    for row in rows:
        version = (row.model, row.version)
        counted = labels.setdefault(version, {})
        counted[row.label] = counted.get(row.label, 0) + row.answers
        bins.setdefault(version, [0] * BINS)[row.bin] += row.answers
        sums[version] = sums.get(version, 0.0) + row.confidence
    return {
        version: AnswerDistribution(
            labels=counted, confidences=bins[version], confidence=sums[version] / sum(counted.values())
        )
        for version, counted in labels.items()
    }
