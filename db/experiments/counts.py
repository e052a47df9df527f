"""Counts of an experiment by arm and stage, from the stored predictions and feedback.

Never names a text or a user. Decides nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from sqlalchemy import text

from db.connection.repository import Repository, run_sql
from db.core.ids import uuid7_floor

# Ingress replicas learn of a new share within a second: the first seconds of a stage count for no stage.
SETTLING_SECONDS: Final = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmStageCounts:
    """The counts of one arm in one stage.

    `units` are distinct; `new_units` are those whose first answer in the experiment came from this arm and stage.
    `judged` units have feedback; a unit's mean is the share of its judged answers that were right, `total` and
    `squares` are the sums of the means and of their squares. `p95_ms`: of queue and inference time together.
    """

    stage: int
    arm: str
    units: int = 0
    new_units: int = 0
    answered: int = 0
    faults: int = 0
    p95_ms: float | None = None
    judged: int = 0
    total: float = 0.0
    squares: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentStage:
    """A period in which the share stayed the same."""

    number: int
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentCounts:
    """The stages of an experiment in order, and the counts of each arm in them."""

    stages: Sequence[ExperimentStage]
    arms: Sequence[ArmStageCounts]

    def of(self, stage: int, arm: str) -> ArmStageCounts:
        """Return the counts of one arm in one stage; zeros if it has none."""
        matching = (row for row in self.arms if row.stage == stage and row.arm == arm)
        return next(matching, ArmStageCounts(stage=stage, arm=arm))


_STAGES: Final[LiteralString] = """
    SELECT number, share,
        CASE WHEN number = 1 THEN started_at ELSE started_at + make_interval(secs => :settling) END AS low,
        lead(started_at) OVER (ORDER BY number) AS high
    FROM experiment_stages WHERE experiment_id = :experiment ORDER BY number"""

# A holder's judgement counts until they replace it, and of several holders' judgements the latest. A shadow's answer
# is right if it equals the label that the feedback on the champion's answer to the same text tells.
_COUNTS: Final[LiteralString] = """
WITH stages AS (
    SELECT * FROM unnest(CAST(:numbers AS integer[]), CAST(:lows AS uuid[]), CAST(:highs AS uuid[]))
        AS s (number, low, high)),
seen AS MATERIALIZED (
    SELECT p.id, p.arm, s.number AS stage, p.text_id, p.request_id, p.label,
        coalesce(p.unit, p.user_id::text, p.request_id) AS unit, p.queue_ms + p.infer_ms AS ms
    FROM predictions p LEFT JOIN stages s ON p.id >= s.low AND (s.high IS NULL OR p.id < s.high)
    WHERE p.experiment_id = :experiment AND p.id >= CAST(:floor AS uuid)),
counted AS (
    SELECT stage, arm, count(DISTINCT unit) AS units, count(*) AS answered,
        percentile_cont(0.95) WITHIN GROUP (ORDER BY ms) AS p95_ms
    FROM seen WHERE stage IS NOT NULL GROUP BY stage, arm),
met AS (
    SELECT stage, arm, count(*) AS new_units
    FROM (SELECT DISTINCT ON (unit) unit, stage, arm FROM seen WHERE arm <> 'shadow' ORDER BY unit, id) AS firsts
    WHERE stage IS NOT NULL GROUP BY stage, arm),
judgements AS (
    SELECT DISTINCT ON (f.prediction_id) f.prediction_id, f.is_correct, f.label
    FROM feedback f WHERE f.prediction_id >= CAST(:floor AS uuid)
        AND f.prediction_id IN (SELECT id FROM seen WHERE arm <> 'shadow')
    ORDER BY f.prediction_id, f.updated_at DESC, f.holder_id),
judged AS (
    SELECT seen.stage, seen.arm, seen.unit, j.is_correct AS is_right
    FROM seen JOIN judgements j ON j.prediction_id = seen.id
    UNION ALL
    SELECT shadow.stage, shadow.arm, shadow.unit,
        shadow.label = CASE WHEN j.is_correct THEN champion.label ELSE j.label END
    FROM seen AS shadow
    JOIN seen AS champion
        ON champion.request_id = shadow.request_id AND champion.text_id = shadow.text_id
        AND champion.arm = 'champion'
    JOIN judgements j ON j.prediction_id = champion.id
    WHERE shadow.arm = 'shadow' AND (j.is_correct OR j.label IS NOT NULL)),
means AS (
    SELECT stage, arm, unit, avg(is_right::integer)::float8 AS mean
    FROM judged WHERE stage IS NOT NULL GROUP BY stage, arm, unit),
feedback_sums AS (
    SELECT stage, arm, count(*) AS judged, sum(mean) AS total, sum(mean * mean) AS squares
    FROM means GROUP BY stage, arm),
failed AS (SELECT stage, arm, faults FROM experiment_faults WHERE experiment_id = :experiment)
SELECT stage, arm, coalesce(units, 0) AS units, coalesce(new_units, 0) AS new_units,
    coalesce(answered, 0) AS answered, coalesce(faults, 0) AS faults, p95_ms,
    coalesce(judged, 0) AS judged, coalesce(total, 0) AS total, coalesce(squares, 0) AS squares
FROM counted FULL JOIN met USING (stage, arm) FULL JOIN feedback_sums USING (stage, arm)
    FULL JOIN failed USING (stage, arm)
ORDER BY stage, arm"""


class CountRepository(Repository):
    """Counts that follow from the stored rows alone."""

    async def counts(self, experiment_id: UUID) -> ExperimentCounts:
        """Return all that an experiment's decision may be based on, at one moment."""
        async with self._database.begin() as connection:
            await connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            rows = await run_sql(connection, _STAGES, experiment=experiment_id, settling=SETTLING_SECONDS)
            stages = rows.all()
            lows = [uuid7_floor(stage.low) for stage in stages]
            counted = await run_sql(
                connection,
                _COUNTS,
                experiment=experiment_id,
                numbers=[stage.number for stage in stages],
                lows=lows,
                highs=[stage.high and uuid7_floor(stage.high) for stage in stages],
                floor=min(lows, default=None),
            )
            return ExperimentCounts(
                stages=[ExperimentStage(number=stage.number, share=stage.share) for stage in stages],
                arms=[ArmStageCounts(**row._mapping) for row in counted],
            )

    async def add_faults(self, faults: Mapping[tuple[UUID, int, str], int]) -> None:
        """Add the numbers of texts that arms failed to answer, by experiment, stage and arm."""
        if not faults:
            return
        statement = text(
            "INSERT INTO experiment_faults AS f (experiment_id, stage, arm, faults) "
            "VALUES (:experiment, :stage, :arm, :faults) "
            "ON CONFLICT (experiment_id, stage, arm) DO UPDATE SET faults = f.faults + excluded.faults"
        )
        rows = [
            {"experiment": experiment, "stage": stage, "arm": arm, "faults": count}
            for (experiment, stage, arm), count in sorted(faults.items(), key=str)
        ]
        async with self._database.begin() as connection:
            await connection.execute(statement, rows)
