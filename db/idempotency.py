"""Idempotency rows: what a repeated request is answered within 24 hours.

Owns looking one up, claiming one inside another repository's transaction, and sweeping the expired.
"""

from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.engine import Database
from db.submissions import Mismatch, NewIdempotency, Replayed


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """The answer that stands for an idempotency key, and the digest of the body it answered."""

    body_digest: bytes
    status: int
    answer: bytes = field(repr=False)

    def outcome(self, body_digest: bytes) -> Replayed | Mismatch:
        """What a request with this body gets instead of being carried out."""
        return (
            Replayed(status=self.status, answer=self.answer)
            if body_digest == self.body_digest
            else Mismatch()
        )


class Idempotency:
    """Rows live 24 hours: an expired one is never found, whether swept or not."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, holder_id: UUID, route: str, key: str) -> Kept | None:
        """The answer that stands, for a look before anything is computed; the commit decides."""
        async with self._database.hot_read() as connection:
            cursor = await connection.execute(
                "SELECT body_digest, status, answer FROM idempotency WHERE holder_id = %s AND route = %s "
                "AND key = %s AND created_at > now() - interval '24 hours'",
                (holder_id, route, key),
                binary=True,
            )
            row = await cursor.fetchone()
        return None if row is None else Kept(body_digest=row[0], status=row[1], answer=row[2])

    async def sweep(self, limit: int = 10_000) -> int:
        """Deletes up to `limit` expired rows; how many."""
        async with self._database.begin() as connection:
            done = await connection.execute(
                text(
                    "DELETE FROM idempotency WHERE ctid IN (SELECT ctid FROM idempotency "
                    "WHERE created_at <= now() - interval '24 hours' LIMIT :limit FOR UPDATE SKIP LOCKED)"
                ),
                {"limit": limit},
            )
        return done.rowcount


async def claim(connection: AsyncConnection, new: NewIdempotency) -> Replayed | Mismatch | None:
    """Takes the key in the caller's transaction, or says what stands; waits for a concurrent duplicate."""
    claimed = await connection.execute(
        text(
            "INSERT INTO idempotency AS i (holder_id, route, key, body_digest, status, answer) "
            "VALUES (:holder_id, :route, :key, :body_digest, :status, :answer) "
            "ON CONFLICT (holder_id, route, key) DO UPDATE SET body_digest = excluded.body_digest, "
            "status = excluded.status, answer = excluded.answer, created_at = now() "
            "WHERE i.created_at <= now() - interval '24 hours' RETURNING true"
        ),
        {
            **_name(new),
            "body_digest": new.body_digest,
            "status": new.status,
            "answer": new.answer,
        },
    )
    if claimed.one_or_none() is not None:
        return None
    found = await connection.execute(
        text(
            "SELECT body_digest, status, answer FROM idempotency "
            "WHERE holder_id = :holder_id AND route = :route AND key = :key"
        ),
        _name(new),
    )
    row = found.one()
    kept = Kept(body_digest=bytes(row.body_digest), status=row.status, answer=bytes(row.answer))
    return kept.outcome(new.body_digest)


async def answer_with(connection: AsyncConnection, new: NewIdempotency, answer: bytes) -> None:
    """Sets the answer of a row that the caller's transaction has claimed."""
    await connection.execute(
        text(
            "UPDATE idempotency SET answer = :answer "
            "WHERE holder_id = :holder_id AND route = :route AND key = :key"
        ),
        {**_name(new), "answer": answer},
    )


def _name(new: NewIdempotency) -> dict[str, object]:
    return {"holder_id": new.holder_id, "route": new.route, "key": new.key}
