"""The statements of a similarity search: the fitting texts, and the nearest of them by index or by scan.

Owns SQL text; every value is a bound parameter, and only partitions' numbers are put into it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias
from uuid import UUID

from psycopg import sql

from db.connection.engine import PsycopgConnection
from db.core import binary
from db.core.binary import Vector
from db.core.ids import uuid7_floor

Matches: TypeAlias = list[tuple[UUID, float]]

_FITS: Final = sql.SQL("(SELECT true FROM predictions p WHERE p.text_id = e.text_id AND {fitting} LIMIT 1)")

# A scalar subquery stays a filter of the index scan, which goes on until enough rows pass it; the planner might turn
# a join or EXISTS into a hash join that reads the whole segment.
_INDEXED: Final = sql.SQL(
    "(SELECT e.text_id, e.embedding <#> %(vector)b::halfvec AS distance FROM {table} e WHERE {fits} "
    "ORDER BY e.embedding <#> %(vector)b::halfvec LIMIT %(walked)s)"
)
# Adding 0 keeps the planner from using the order of an index, which would make the scan approximate.
_COMPARED: Final = sql.SQL("SELECT text_id, (embedding <#> %(vector)b::halfvec) + 0 AS distance FROM {table}")
_NOTHING: Final = sql.SQL("SELECT NULL::uuid AS text_id, NULL::float8 AS distance WHERE false")
_SCANNED: Final = sql.SQL(
    "(SELECT e.text_id, e.distance FROM reached e WHERE {fits} ORDER BY e.distance LIMIT %(k)s)"
)
# Only the nearest `reach` scanned rows are sorted, in a heap, and filtered; the result has the distance of the last
# of them if there are more rows.
_NEAREST: Final = sql.SQL(
    "WITH reached AS MATERIALIZED (SELECT * FROM ({compared}) c ORDER BY distance LIMIT %(reach)s), "
    "near AS MATERIALIZED ({parts}) "
    "SELECT found.text_id, -found.distance, edge.distance "
    "FROM (SELECT CASE WHEN count(*) = %(reach)s THEN max(distance) END AS distance FROM reached) edge "
    "LEFT JOIN (SELECT text_id, distance FROM near WHERE distance <= %(farthest)s "
    "ORDER BY distance, text_id LIMIT %(k)s) found ON true ORDER BY found.distance, found.text_id"
)
_MATCHED: Final = sql.SQL(
    "WITH fitting AS MATERIALIZED (SELECT DISTINCT p.text_id FROM predictions p WHERE {fitting}) "
    "SELECT text_id, -distance, NULL FROM ("
    "SELECT text_id, (e.embedding <#> %(vector)b::halfvec) + 0 AS distance "
    "FROM fitting JOIN embeddings e USING (text_id) "
    "WHERE e.segment = ANY(%(segments)s)) near "
    "WHERE distance <= %(farthest)s ORDER BY distance, text_id LIMIT %(k)s"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SimilarityFilters:
    """A text fits if one of its non-shadow predictions matches every field that isn't None."""

    sentiment: str | None = None
    model_version: str | None = None
    user_id: UUID | None = None
    since: datetime | None = None
    until: datetime | None = None
    has_feedback: bool | None = None
    is_correct: bool | None = None


class SimilarityQuery:
    """One search's statements and parameters; `narrowed`: some texts may not fit."""

    def __init__(
        self,
        vector: Vector,
        *,
        k: int,
        filters: SimilarityFilters,
        holder: UUID | None,
        min_similarity: float | None,
    ) -> None:
        self.k = k
        self._fitting, values = fitting_condition(filters, holder)
        self.narrowed = bool(values)
        self._parameters = {
            **values,
            "k": k,
            "vector": binary.encode_halfvec(vector),
            "farthest": float("inf") if min_similarity is None else -min_similarity,
        }

    async def estimate(self, connection: PsycopgConnection) -> float:
        """Return the number of fitting predictions by the planner's estimate."""
        statement = sql.SQL("EXPLAIN (FORMAT JSON) SELECT FROM predictions p WHERE {}").format(self._fitting)
        row = await (await connection.execute(statement, self._parameters, prepare=False)).fetchone()
        return float(row[0][0]["Plan"]["Plan Rows"]) if row else 0.0

    async def by_scan(
        self, connection: PsycopgConnection, segments: list[int], *, reach: int | None
    ) -> Matches:
        """Return exactly the nearest. `reach` None: few texts fit, so start from them and not from the vectors."""
        if reach is not None:
            return await self.find_nearest(connection, [], segments, reach=reach)
        statement = _MATCHED.format(fitting=self._fitting)
        return (await self._fetch(connection, statement, {"segments": segments}))[0]

    async def find_nearest(
        self,
        connection: PsycopgConnection,
        indexed: list[int],
        scanned: list[int],
        *,
        reach: int,
        walked: int | None = None,
    ) -> Matches:
        """Return the nearest by the indexes of some segments, which may miss some, and by a scan of the others.

        `walked`: fitting rows to visit in each index, k or more. `reach`: nearest scanned rows to filter first.
        """
        fits = _FITS.format(fitting=self._fitting)
        parts = [_INDEXED.format(table=_partition(segment), fits=fits) for segment in indexed]
        compared: list[sql.Composable] = [_COMPARED.format(table=_partition(segment)) for segment in scanned]
        union = sql.SQL(" UNION ALL ")
        statement = _NEAREST.format(
            compared=union.join(compared or [_NOTHING]),
            parts=union.join([*parts, _SCANNED.format(fits=fits)]),
        )
        matches, edge = await self._fetch(connection, statement, {"reach": reach, "walked": walked})
        if edge is None or edge >= self._parameters["farthest"]:
            return matches
        if len(matches) < self.k or -matches[-1][1] >= edge:
            matches, _ = await self._fetch(connection, statement, {"reach": None, "walked": walked})
        return matches

    async def _fetch(
        self, connection: PsycopgConnection, statement: sql.Composed, parameters: Mapping[str, Any]
    ) -> tuple[Matches, float | None]:
        """Return the rows, and the distance up to which all scanned rows were filtered; None if all were."""
        cursor = await connection.execute(statement, {**self._parameters, **parameters}, binary=True)
        rows = await cursor.fetchall()
        # By float16 rounding a vector's product with itself may exceed 1.
        matches = [(row[0], min(1.0, max(-1.0, row[1]))) for row in rows if row[0] is not None]
        return matches, rows[0][2] if rows else None


def _partition(segment: int) -> sql.Identifier:
    return sql.Identifier(f"embeddings_{segment}")


def fitting_condition(filters: SimilarityFilters, holder: UUID | None) -> tuple[sql.Composed, dict[str, Any]]:
    """Return the condition on a prediction `p` that makes its text fit, and its parameters; none if all texts fit."""
    conditions = [sql.SQL("p.arm <> 'shadow'")]
    values: dict[str, Any] = {}
    judged = "EXISTS (SELECT FROM feedback f WHERE f.prediction_id = p.id)"
    verdict = "EXISTS (SELECT FROM feedback f WHERE f.prediction_id = p.id AND f.is_correct = %(is_correct)s)"
    since = uuid7_floor(filters.since) if filters.since else None
    until = uuid7_floor(filters.until) if filters.until else None
    for name, value, condition in (
        ("sentiment", filters.sentiment, sql.SQL("p.label = %(sentiment)s")),
        ("version", filters.model_version, sql.SQL("p.version = %(version)s")),
        ("user", filters.user_id, sql.SQL("p.user_id = %(user)s")),
        ("holder", holder, sql.SQL("p.holder_id = %(holder)s")),
        ("since", since, sql.SQL("p.id >= %(since)s")),
        ("until", until, sql.SQL("p.id < %(until)s")),
        ("has_feedback", filters.has_feedback, sql.SQL(judged if filters.has_feedback else "NOT " + judged)),
        ("is_correct", filters.is_correct, sql.SQL(verdict)),
    ):
        if value is not None:
            conditions.append(condition)
            values[name] = value
    return sql.SQL(" AND ").join(conditions), values
