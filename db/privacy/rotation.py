"""Rotation of text keys.

Values are re-encrypted under the present key, or decrypted, in bounded steps. Owns the columns involved, and when a
key's record is removed. Never changes the values that readers get.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.accounts import audit
from db.connection.engine import INSERT_TEXT_KEY, Database
from db.connection.repository import Repository, run_sql
from db.connection.retries import retry_transaction
from db.core.cipher import PLAIN, Cipher, answer_location, comment_location, text_location
from db.errors import Unreadable
from db.privacy.rotation_sql import COUNTED, KEYS, REMOVE_KEYS, STALE, UPDATE
from db.schema.tables import NIL_ID

_STEP_ROWS: Final = 500
_REPORT_EVERY: Final = 100
_MOST_UNREADABLE: Final = 10


class SealedKind(StrEnum):
    """The kinds of values that may be encrypted."""

    TEXTS = "texts"
    COMMENTS = "comments"
    ANSWERS = "answers"


@dataclass(frozen=True, kw_only=True, slots=True)
class RotationResult:
    """The result of a rotation.

    `rewritten` counts values by kind, `stored` by key (`plain`: no key) and kind. `removed_keys` encrypt nothing any
    more. `unreadable` holds the errors for the first values that couldn't be decrypted; these stay unchanged.
    """

    rewritten: Mapping[SealedKind, int]
    stored: Mapping[str, Mapping[SealedKind, int]]
    removed_keys: Sequence[str]
    unreadable: Sequence[str]


# Every row's key is greater.
_BEFORE_ALL: Final[Mapping[SealedKind, Mapping[str, Any]]] = {
    SealedKind.TEXTS: {"id": NIL_ID},
    SealedKind.COMMENTS: {"prediction_id": NIL_ID, "holder_id": NIL_ID},
    SealedKind.ANSWERS: {"holder_id": NIL_ID, "route": "", "key": ""},
}
# The plain column of a sealed row.
_EMPTY: Final[Mapping[SealedKind, bytes | None]] = {
    SealedKind.TEXTS: b"",
    SealedKind.COMMENTS: None,
    SealedKind.ANSWERS: b"",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _RewriteStep:
    """The outcome of one step; `last` is the key of the last row checked, None if there was no row."""

    checked: int
    rewritten: int
    unreadable: Sequence[str]
    last: Mapping[str, Any] | None


class KeyRotation(Repository):
    """Each value stays readable at every moment; safe during writes, searches, erasures and other rotations.

    Values under the right key stay unchanged, so the next call finishes an interrupted one.
    """

    def __init__(self, database: Database, *, step_rows: int = _STEP_ROWS) -> None:
        super().__init__(database)
        self._step_rows = step_rows

    async def run(self, report: Callable[[str], None]) -> RotationResult:
        """Re-encrypt every value under the present key, and remove the records of given keys that encrypt nothing.

        `report` gets lines about the progress. Raises Unavailable after too many lock conflicts.
        """
        rewritten: dict[SealedKind, int] = {}
        unreadable: list[str] = []
        for kind in SealedKind:
            after: Mapping[str, Any] | None = _BEFORE_ALL[kind]
            checked = steps = rewritten[kind] = 0
            while after is not None:
                step = await self._step(kind, after)
                checked, after, steps = checked + step.checked, step.last, steps + 1
                rewritten[kind] += step.rewritten
                unreadable += step.unreadable[: _MOST_UNREADABLE - len(unreadable)]
                if after is None or steps % _REPORT_EVERY == 0:
                    report(f"{kind}: {rewritten[kind]:,} of {checked:,} rewritten")
        report("counting")
        stored, removed_keys = await retry_transaction(
            self._database, lambda connection: self._close(connection, rewritten)
        )
        return RotationResult(
            rewritten=rewritten, stored=stored, removed_keys=removed_keys, unreadable=unreadable
        )

    async def _step(self, kind: SealedKind, after: Mapping[str, Any]) -> _RewriteStep:
        async def work(connection: AsyncConnection) -> _RewriteStep:
            keys = (await run_sql(connection, KEYS[kind], **after, limit=self._step_rows)).all()
            if not keys:
                return _RewriteStep(checked=0, rewritten=0, unreadable=(), last=None)
            last = dict(keys[-1]._mapping)
            bounds = {f"last_{name}": value for name, value in last.items()}
            cipher = self._database.cipher
            # Locked in the writer's order, and only now: this waits for concurrent writes, then reads their result.
            rows = await run_sql(connection, STALE[kind], **after, **bounds, head=cipher.prefix)
            changed: list[dict[str, Any]] = []
            unreadable: list[str] = []
            for row in rows.all():
                name = {column: row._mapping[column] for column in after}
                try:
                    changed.append({**name, **_rewrite(cipher, kind, name, row.plain, row.sealed)})
                except Unreadable as error:
                    unreadable.append(str(error))
            if changed:
                await connection.execute(text(UPDATE[kind]), changed)
            return _RewriteStep(checked=len(keys), rewritten=len(changed), unreadable=unreadable, last=last)

        return await retry_transaction(self._database, work)

    async def _close(
        self, connection: AsyncConnection, rewritten: Mapping[SealedKind, int]
    ) -> tuple[Mapping[str, Mapping[SealedKind, int]], Sequence[str]]:
        """Count the values under each key, remove unused keys, and return both."""
        await connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        stored: dict[str, dict[SealedKind, int]] = {}
        sealing_key = self._database.cipher.sealing_key
        for kind in SealedKind:
            for row in await run_sql(connection, COUNTED[kind]):
                name = PLAIN if row.name is None else bytes(row.name).decode("ascii", "replace")
                stored.setdefault(name, dict.fromkeys(SealedKind, 0))[kind] = row.stored
        used = [*stored, *([sealing_key] if sealing_key is not None else [])]
        # A process that still has a removed key may have sealed values under it since.
        given = self._database.cipher.fingerprints
        for key_id in given.keys() & stored.keys():
            await run_sql(connection, INSERT_TEXT_KEY, id=key_id, fingerprint=given[key_id])
        # A key that this process wasn't given was announced by another one meanwhile, which is about to use it.
        removed = await run_sql(connection, REMOVE_KEYS, given=[*given], used=used)
        removed_keys = list(removed.scalars())
        await audit.append(
            connection,
            actor=None,
            action="texts.encrypt",
            subject=sealing_key or PLAIN,
            detail={**{kind.value: count for kind, count in rewritten.items()}, "let_go": removed_keys},
        )
        return stored, removed_keys


def _rewrite(
    cipher: Cipher, kind: SealedKind, name: Mapping[str, Any], plain: str | bytes | None, sealed: bytes | None
) -> dict[str, bytes | None]:
    """Return the two columns of a row under the present key."""
    location = _location(kind, name)
    if sealed is not None:
        value = cipher.open(location, bytes(sealed))
    else:
        value = plain.encode() if isinstance(plain, str) else bytes(plain or b"")
    resealed = cipher.seal(location, value)
    return {"plain": value if resealed is None else _EMPTY[kind], "sealed": resealed}


def _location(kind: SealedKind, name: Mapping[str, Any]) -> str:
    match kind:
        case SealedKind.TEXTS:
            return text_location(name["id"])
        case SealedKind.COMMENTS:
            return comment_location(name["prediction_id"], name["holder_id"])
        case SealedKind.ANSWERS:
            return answer_location(name["holder_id"], name["route"], name["key"])
