"""What the arms of an experiment did, counted from predictions and feedback as they stand.

Counts units by arm and stage, and never texts or users by name. Decides nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from sqlalchemy import text

from db.connection.engine import Database
from db.core.ids import uuid7_floor

# Ingress replicas learn of a new share within a second; until then nothing counts for the stage it begins.
SETTLING_SECONDS: Final = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmStageCounts:
    """One arm in one stage.

    `units` are distinct; `new_units` those that the experiment met first here, in the arm that answered first.
    `judged` units have feedback, and `total` and `squares` sum over them the share of their judged answers that were
    right, and its square. `p95_ms` is that of the time from the door to the scores.
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
    """A time in which the share stood still."""

    number: int
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentCounts:
    """The stages of an experiment in order, and what each arm did in them."""

    stages: Sequence[ExperimentStage]
    arms: Sequence[ArmStageCounts]

    def of(self, stage: int, arm: str) -> ArmStageCounts:
        """One arm in one stage; zeros if it did nothing."""
        found = (row for row in self.arms if row.stage == stage and row.arm == arm)
        return next(found, ArmStageCounts(stage=stage, arm=arm))


_STAGES: Final[LiteralString] = """
    SELECT number, share,
        CASE WHEN number = 1 THEN started_at ELSE started_at + make_interval(secs => :settling) END AS low,
        lead(started_at) OVER (ORDER BY number) AS high
    FROM experiment_stages WHERE experiment_id = :experiment ORDER BY number"""

# A judgement stands until its holder replaces it; of several holders' the last one counts. A shadow is right where it
# says what the feedback on the answer beside it holds for right.
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
        shadow.label = CASE WHEN j.is_correct THEN beside.label ELSE j.label END
    FROM seen AS shadow
    JOIN seen AS beside ON beside.request_id = shadow.request_id AND beside.text_id = shadow.text_id
        AND beside.arm = 'champion'
    JOIN judgements j ON j.prediction_id = beside.id
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


class CountRepository:
    """Counts that anyone gets again from the same tables."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def counts(self, experiment_id: UUID) -> ExperimentCounts:
        """Everything that an experiment's decision may be based on, at one moment."""
        values = {"experiment": experiment_id, "settling": SETTLING_SECONDS}
        async with self._database.begin() as connection:
            await connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            stages = (await connection.execute(text(_STAGES), values)).all()
            lows = [uuid7_floor(stage.low) for stage in stages]
            counted = await connection.execute(
                text(_COUNTS),
                {
                    "experiment": experiment_id,
                    "numbers": [stage.number for stage in stages],
                    "lows": lows,
                    "highs": [stage.high and uuid7_floor(stage.high) for stage in stages],
                    "floor": min(lows, default=None),
                },
            )
            return ExperimentCounts(
                stages=[ExperimentStage(number=stage.number, share=stage.share) for stage in stages],
                arms=[ArmStageCounts(**row._mapping) for row in counted],
            )

    async def add_faults(self, faults: Mapping[tuple[UUID, int, str], int]) -> None:
        """Adds what arms could not answer: texts by experiment, stage and arm."""
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
