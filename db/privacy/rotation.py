"""Rotation: what people wrote is brought under the key that encrypts now, or back to plain, in bounded steps.

Owns which columns that is about, and when a key is let go. Never changes what anybody reads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, TypeAlias

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from db.accounts import audit
from db.connection.engine import Database
from db.connection.retries import retry_transaction
from db.core.cipher import PLAIN, Cipher, answer_location, comment_location, text_location
from db.errors import Unreadable
from db.privacy.rotation_sql import COUNTED, LET_GO, LOOKED_AT, PUT, STALE
from db.schema.tables import NIL_ID
from db.schema.text_keys import INSERT_TEXT_KEY

Say: TypeAlias = Callable[[str], None]

_STEP_ROWS: Final = 500
_SAID_EVERY: Final = 100
_NAMED: Final = 10


class SealedKind(StrEnum):
    """What may be encrypted."""

    TEXTS = "texts"
    COMMENTS = "comments"
    ANSWERS = "answers"


@dataclass(frozen=True, kw_only=True, slots=True)
class RotationResult:
    """How many values were rewritten, and how many are now under each key (`plain`: under none), by kind.

    `let_go`: keys that nothing is under any more. `unreadable`: the first values that couldn't be decrypted, as an
    error names them; they stay as they are.
    """

    rewritten: Mapping[SealedKind, int]
    stored: Mapping[str, Mapping[SealedKind, int]]
    removed_keys: Sequence[str]
    unreadable: Sequence[str]


# From here on: what a row with the smallest key comes after.
_BEFORE_ALL: Final[Mapping[SealedKind, Mapping[str, Any]]] = {
    SealedKind.TEXTS: {"id": NIL_ID},
    SealedKind.COMMENTS: {"prediction_id": NIL_ID, "holder_id": NIL_ID},
    SealedKind.ANSWERS: {"holder_id": NIL_ID, "route": "", "key": ""},
}
# What stands in the plain column of a sealed row.
_EMPTY: Final[Mapping[SealedKind, bytes | None]] = {
    SealedKind.TEXTS: b"",
    SealedKind.COMMENTS: None,
    SealedKind.ANSWERS: b"",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """Up to so many rows that were looked at; `last`: the key of the last of them, None if there was none."""

    looked: int
    rewritten: int
    unreadable: Sequence[str]
    last: Mapping[str, Any] | None


class KeyRotation:
    """Each value is whole and readable at every moment; safe beside writers, searches, erasures and other rotations.

    What is right already stays as it is, so that a call that was cut off is finished by the next one.
    """

    def __init__(self, database: Database, *, step_rows: int = _STEP_ROWS) -> None:
        self._database = database
        self._step_rows = step_rows

    async def run(self, say: Say) -> RotationResult:
        """Brings every value under the key that encrypts, and lets the keys go that nothing is under any more.

        Raises:
            Unavailable: others pushed it aside too often.
        """
        rewritten: dict[SealedKind, int] = {}
        unreadable: list[str] = []
        for kind in SealedKind:
            after: Mapping[str, Any] | None = _BEFORE_ALL[kind]
            looked = steps = rewritten[kind] = 0
            while after is not None:
                step = await self._step(kind, after)
                looked, after, steps = looked + step.looked, step.last, steps + 1
                rewritten[kind] += step.rewritten
                unreadable += step.unreadable[: _NAMED - len(unreadable)]
                if after is None or steps % _SAID_EVERY == 0:
                    say(f"{kind}: {rewritten[kind]:,} of {looked:,} rewritten")
        say("counting")
        stored, removed_keys = await retry_transaction(
            self._database, lambda connection: self._close(connection, rewritten)
        )
        return RotationResult(
            rewritten=rewritten, stored=stored, removed_keys=removed_keys, unreadable=unreadable
        )

    async def _step(self, kind: SealedKind, after: Mapping[str, Any]) -> _Step:
        async def act(connection: AsyncConnection) -> _Step:
            found = (
                await connection.execute(text(LOOKED_AT[kind]), {**after, "limit": self._step_rows})
            ).all()
            if not found:
                return _Step(looked=0, rewritten=0, unreadable=(), last=None)
            last = dict(found[-1]._mapping)
            bounds = {f"last_{name}": value for name, value in last.items()}
            cipher = self._database.cipher
            # Locked in the order of the writer, and only now: what others are writing is waited for, then read.
            rows = await connection.execute(text(STALE[kind]), {**after, **bounds, "head": cipher.prefix})
            changed: list[dict[str, Any]] = []
            unreadable: list[str] = []
            for row in rows.all():
                name = {column: row._mapping[column] for column in after}
                try:
                    changed.append({**name, **_rewritten(cipher, kind, name, row.plain, row.sealed)})
                except Unreadable as error:
                    unreadable.append(str(error))
            if changed:
                await connection.execute(text(PUT[kind]), changed)
            return _Step(looked=len(found), rewritten=len(changed), unreadable=unreadable, last=last)

        return await retry_transaction(self._database, act)

    async def _close(
        self, connection: AsyncConnection, rewritten: Mapping[SealedKind, int]
    ) -> tuple[Mapping[str, Mapping[SealedKind, int]], Sequence[str]]:
        """What is under each key, and the keys that were let go."""
        await connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        held: dict[str, dict[SealedKind, int]] = {}
        sealing = self._database.cipher.sealing_key
        for kind in SealedKind:
            for row in await connection.execute(text(COUNTED[kind])):
                name = PLAIN if row.name is None else bytes(row.name).decode("ascii", "replace")
                held.setdefault(name, dict.fromkeys(SealedKind, 0))[kind] = row.held
        kept = [*held, *([sealing] if sealing is not None else [])]
        # Whoever still had a key that was let go may have sealed under it since.
        given = self._database.cipher.fingerprints
        for key_id in given.keys() & held.keys():
            await connection.execute(text(INSERT_TEXT_KEY), {"id": key_id, "fingerprint": given[key_id]})
        let_go = list((await connection.execute(text(LET_GO), {"held": kept})).scalars())
        await audit.append(
            connection,
            actor=None,
            action="texts.encrypt",
            subject=sealing or PLAIN,
            detail={**{kind.value: count for kind, count in rewritten.items()}, "let_go": let_go},
        )
        return held, let_go


def _rewritten(
    cipher: Cipher, kind: SealedKind, name: Mapping[str, Any], plain: str | bytes | None, sealed: bytes | None
) -> dict[str, bytes | None]:
    """The two columns of a row as they should be."""
    place = _place(kind, name)
    if sealed is not None:
        value = cipher.open(place, bytes(sealed))
    else:
        value = plain.encode() if isinstance(plain, str) else bytes(plain or b"")
    fresh = cipher.seal(place, value)
    return {"plain": value if fresh is None else _EMPTY[kind], "sealed": fresh}


def _place(kind: SealedKind, name: Mapping[str, Any]) -> str:
    match kind:
        case SealedKind.TEXTS:
            return text_location(name["id"])
        case SealedKind.COMMENTS:
            return comment_location(name["prediction_id"], name["holder_id"])
        case SealedKind.ANSWERS:
            return answer_location(name["holder_id"], name["route"], name["key"])
