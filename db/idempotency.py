"""Idempotency rows: what a repeated request is answered within 24 hours.

Owns looking one up, claiming one inside another repository's transaction, and sweeping the expired.
"""

from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.cipher import Cipher, of_answer
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
                "SELECT body_digest, status, answer, sealed FROM idempotency WHERE holder_id = %s AND route = %s "
                "AND key = %s AND created_at > now() - interval '24 hours'",
                (holder_id, route, key),
                binary=True,
            )
            row = await cursor.fetchone()
        if row is None:
            return None
        answer = (
            row[2] if row[3] is None else self._database.cipher.open(of_answer(holder_id, route, key), row[3])
        )
        return Kept(body_digest=row[0], status=row[1], answer=answer)

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


async def claim(
    connection: AsyncConnection, cipher: Cipher, new: NewIdempotency, *, names: UUID
) -> Replayed | Mismatch | None:
    """Takes the key in the caller's transaction, or says what stands; waits for a concurrent duplicate.

    `names`: the prediction that the answer names, by which an erasure finds it.
    """
    claimed = await connection.execute(
        text(
            "INSERT INTO idempotency AS i (holder_id, route, key, body_digest, status, answer, sealed, names) "
            "VALUES (:holder_id, :route, :key, :body_digest, :status, :answer, :sealed, :names) "
            "ON CONFLICT (holder_id, route, key) DO UPDATE SET body_digest = excluded.body_digest, "
            "status = excluded.status, answer = excluded.answer, sealed = excluded.sealed, "
            "names = excluded.names, created_at = now() "
            "WHERE i.created_at <= now() - interval '24 hours' RETURNING true"
        ),
        {
            **_name(new),
            "body_digest": new.body_digest,
            "status": new.status,
            "names": [names],
            **_kept(cipher, new, new.answer),
        },
    )
    if claimed.one_or_none() is not None:
        return None
    found = await connection.execute(
        text(
            "SELECT body_digest, status, answer, sealed FROM idempotency "
            "WHERE holder_id = :holder_id AND route = :route AND key = :key"
        ),
        _name(new),
    )
    row = found.one()
    answer = answer_of(cipher, new, row.answer, row.sealed)
    kept = Kept(body_digest=bytes(row.body_digest), status=row.status, answer=answer)
    return kept.outcome(new.body_digest)


async def answer_with(
    connection: AsyncConnection, cipher: Cipher, new: NewIdempotency, answer: bytes
) -> None:
    """Sets the answer of a row that the caller's transaction has claimed."""
    await connection.execute(
        text(
            "UPDATE idempotency SET answer = :answer, sealed = :sealed "
            "WHERE holder_id = :holder_id AND route = :route AND key = :key"
        ),
        {**_name(new), **_kept(cipher, new, answer)},
    )


def answer_of(cipher: Cipher, named: NewIdempotency, plain: bytes, sealed: bytes | None) -> bytes:
    """The answer that a row with this name keeps, whichever of its two columns holds it.

    Raises:
        Unreadable: it can't be decrypted.
    """
    if sealed is None:
        return bytes(plain)
    return cipher.open(of_answer(named.holder_id, named.route, named.key), bytes(sealed))


def _kept(cipher: Cipher, new: NewIdempotency, answer: bytes) -> dict[str, bytes | None]:
    sealed = cipher.seal(of_answer(new.holder_id, new.route, new.key), answer)
    return {"answer": answer if sealed is None else b"", "sealed": sealed}


def _name(new: NewIdempotency) -> dict[str, object]:
    return {"holder_id": new.holder_id, "route": new.route, "key": new.key}
