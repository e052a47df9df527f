"""Idempotency rows: what a repeated request is answered within 24 hours.

Owns looking one up, claiming one inside another repository's transaction, and sweeping the expired.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.connection.engine import Database
from db.core.cipher import Cipher, answer_location
from db.predictions.submissions import Mismatch, NewIdempotency, Replayed

_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredAnswer:
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

    @classmethod
    def read(cls, cipher: Cipher, place: str, row: tuple[bytes, int, bytes, bytes | None]) -> Self:
        """Out of a row's `body_digest, status, answer, sealed`.

        Raises:
            Unreadable: it can't be decrypted.
        """
        digest, status, answer, sealed = row
        if sealed is not None:
            value = cipher.open(place, bytes(sealed))
            digest, answer = value[:_DIGEST_BYTES], value[_DIGEST_BYTES:]
        return cls(body_digest=bytes(digest), status=status, answer=bytes(answer))


class AnswerColumns(NamedTuple):
    """What a row says of a request, either in the first two or in the last."""

    body_digest: bytes
    answer: bytes
    sealed: bytes | None

    @classmethod
    def of(cls, cipher: Cipher, new: NewIdempotency, answer: bytes) -> Self:
        """With this answer. The digest is sealed with it, since by it a guess of the body could be tested."""
        sealed = cipher.seal(place_of(new), new.body_digest + answer)
        return cls(new.body_digest, answer, None) if sealed is None else cls(b"", b"", sealed)


class IdempotencyRepository:
    """Rows live 24 hours: an expired one is never found, whether swept or not."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, holder_id: UUID, route: str, key: str) -> StoredAnswer | None:
        """The answer that stands, for a look before anything is computed; the commit decides."""
        async with self._database.hot_read() as connection:
            cursor = await connection.execute(
                "SELECT body_digest, status, answer, sealed FROM idempotency WHERE holder_id = %s AND route = %s "
                "AND key = %s AND created_at > now() - interval '24 hours'",
                (holder_id, route, key),
                binary=True,
            )
            row = await cursor.fetchone()
        return (
            None
            if row is None
            else StoredAnswer.read(self._database.cipher, answer_location(holder_id, route, key), row)
        )

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
            "status": new.status,
            "names": [names],
            **AnswerColumns.of(cipher, new, new.answer)._asdict(),
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
    return StoredAnswer.read(cipher, place_of(new), tuple(row)).outcome(new.body_digest)


async def set_answer(connection: AsyncConnection, cipher: Cipher, new: NewIdempotency, answer: bytes) -> None:
    """Sets the answer of a row that the caller's transaction has claimed."""
    await connection.execute(
        text(
            "UPDATE idempotency SET body_digest = :body_digest, answer = :answer, sealed = :sealed "
            "WHERE holder_id = :holder_id AND route = :route AND key = :key"
        ),
        {**_name(new), **AnswerColumns.of(cipher, new, answer)._asdict()},
    )


def place_of(new: NewIdempotency) -> str:
    """Where its row is, as `db.core.cipher` names places."""
    return answer_location(new.holder_id, new.route, new.key)


def _name(new: NewIdempotency) -> dict[str, object]:
    return {"holder_id": new.holder_id, "route": new.route, "key": new.key}
