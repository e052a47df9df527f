"""Idempotency rows: the answers to requests that are repeated within 24 hours.

Owns finding one, claiming one inside another repository's transaction, and removing the expired.
"""

from dataclasses import dataclass, field
from typing import Final, LiteralString, NamedTuple, Self
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from db.connection.repository import Repository, run_sql
from db.core.cipher import Cipher, answer_location
from db.predictions.submissions import Mismatch, NewIdempotency, Replayed

_DIGEST_BYTES: Final = 32

_SWEEP: Final[LiteralString] = (
    "DELETE FROM idempotency WHERE ctid IN (SELECT ctid FROM idempotency "
    "WHERE created_at <= now() - interval '24 hours' LIMIT :limit FOR UPDATE SKIP LOCKED)"
)
_CLAIM: Final[LiteralString] = (
    "INSERT INTO idempotency AS i (holder_id, route, key, body_digest, status, answer, sealed, names) "
    "VALUES (:holder_id, :route, :key, :body_digest, :status, :answer, :sealed, :names) "
    "ON CONFLICT (holder_id, route, key) DO UPDATE SET body_digest = excluded.body_digest, "
    "status = excluded.status, answer = excluded.answer, sealed = excluded.sealed, "
    "names = excluded.names, created_at = now() "
    "WHERE i.created_at <= now() - interval '24 hours' RETURNING true"
)
_ANSWER: Final[LiteralString] = (
    "SELECT body_digest, status, answer, sealed FROM idempotency "
    "WHERE holder_id = :holder_id AND route = :route AND key = :key"
)
_SET_ANSWER: Final[LiteralString] = (
    "UPDATE idempotency SET body_digest = :body_digest, answer = :answer, sealed = :sealed "
    "WHERE holder_id = :holder_id AND route = :route AND key = :key"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredAnswer:
    """The answer stored for an idempotency key, and the digest of the request's body."""

    body_digest: bytes
    status: int
    answer: bytes = field(repr=False)

    def outcome(self, body_digest: bytes) -> Replayed | Mismatch:
        """Return the outcome of a repeated request with this body."""
        same = body_digest == self.body_digest
        return Replayed(status=self.status, answer=self.answer) if same else Mismatch()

    @classmethod
    def read(cls, cipher: Cipher, location: str, row: tuple[bytes, int, bytes, bytes | None]) -> Self:
        """Read it from a row's `body_digest, status, answer, sealed`.

        Raises Unreadable if the row can't be decrypted.
        """
        digest, status, answer, sealed = row
        if sealed is not None:
            value = cipher.open(location, bytes(sealed))
            digest, answer = value[:_DIGEST_BYTES], value[_DIGEST_BYTES:]
        return cls(body_digest=bytes(digest), status=status, answer=bytes(answer))


class AnswerColumns(NamedTuple):
    """The columns of an answer: plain in the first two, or encrypted in the last."""

    body_digest: bytes
    answer: bytes
    sealed: bytes | None

    @classmethod
    def of(cls, cipher: Cipher, new: NewIdempotency, answer: bytes) -> Self:
        """Return the columns of an answer; the digest is sealed too, since it could confirm a guess of the body."""
        sealed = cipher.seal(location_of(new), new.body_digest + answer)
        return cls(new.body_digest, answer, None) if sealed is None else cls(b"", b"", sealed)


class IdempotencyRepository(Repository):
    """Rows live 24 hours; an expired one is never found, even before it is removed."""

    async def find(self, holder_id: UUID, route: str, key: str) -> StoredAnswer | None:
        """Return the stored answer, to spare a computation; whether the key is taken, the commit decides."""
        async with self._database.hot_read() as connection:
            cursor = await connection.execute(
                "SELECT body_digest, status, answer, sealed FROM idempotency WHERE holder_id = %s AND route = %s "
                "AND key = %s AND created_at > now() - interval '24 hours'",
                (holder_id, route, key),
                binary=True,
            )
            row = await cursor.fetchone()
        location = answer_location(holder_id, route, key)
        return None if row is None else StoredAnswer.read(self._database.cipher, location, row)

    async def sweep(self, limit: int = 10_000) -> int:
        """Delete up to `limit` expired rows; return how many."""
        async with self._database.begin() as connection:
            return (await run_sql(connection, _SWEEP, limit=limit)).rowcount


async def claim(
    connection: AsyncConnection, cipher: Cipher, new: NewIdempotency, *, names: UUID
) -> Replayed | Mismatch | None:
    """Claim the key in the caller's transaction, or return the outcome of the repetition.

    Waits for a concurrent duplicate. `names`: the prediction in the answer, by which an erasure finds the row.
    """
    key, columns = _key(new), AnswerColumns.of(cipher, new, new.answer)._asdict()
    claimed = await run_sql(connection, _CLAIM, **key, status=new.status, names=[names], **columns)
    if claimed.one_or_none() is not None:
        return None
    row = (await run_sql(connection, _ANSWER, **key)).one()
    return StoredAnswer.read(cipher, location_of(new), tuple(row)).outcome(new.body_digest)


async def set_answer(connection: AsyncConnection, cipher: Cipher, new: NewIdempotency, answer: bytes) -> None:
    """Set the answer of a row that the caller's transaction has claimed."""
    await run_sql(connection, _SET_ANSWER, **_key(new), **AnswerColumns.of(cipher, new, answer)._asdict())


def location_of(new: NewIdempotency) -> str:
    """Return the location of its row, as `db.core.cipher` names locations."""
    return answer_location(new.holder_id, new.route, new.key)


def _key(new: NewIdempotency) -> dict[str, object]:
    return {"holder_id": new.holder_id, "route": new.route, "key": new.key}
