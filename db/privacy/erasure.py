"""Erasure by user and by text: texts and comments go, anonymous counts stay.

Owns the remainder of an erased prediction and the order of locks. Each step is one short transaction, so the next call
finishes an interrupted one. Writes ids and counts to the audit log, never a link between a user and a text.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import numpy as np
from sqlalchemy.ext.asyncio import AsyncConnection

from db.accounts import audit
from db.connection.engine import Database
from db.connection.repository import Repository, run_sql
from db.connection.retries import retry_transaction
from db.core.binary import Vector
from db.embeddings import segments
from db.errors import NotFound
from db.privacy.erasure_sql import (
    CANDIDATES,
    COMMENTS,
    DOOMED,
    EXISTS,
    FEEDBACK,
    IDEMPOTENCY,
    JOBS,
    OWN_FEEDBACK,
    PLACEHOLDERS,
    PREDICTIONS,
    REPEATABLE,
    TEXT_LOCKS,
    TEXTS,
    VECTORS,
)
from db.schema.tables import NIL_ID
from db.search.similarity import SimilarityRepository

# The receipt names texts at least this near to an erased one: at 0.95 a few words differ.
NEAR_COSINE: Final = 0.95
MAX_LISTED: Final = 1_000
_STEP_ROWS: Final = 1_000
# Twenty seconds and the pauses: vectors can't be removed while a copy, which may be large, replaces their segment.
_ATTEMPTS: Final = 10
_NEAR_SECONDS: Final = 10.0
_NEAR_EACH: Final = 100


class ErasureKind(StrEnum):
    """The subject of an erasure."""

    USER = "user"
    TEXT = "text"


@dataclass(frozen=True, kw_only=True, slots=True)
class ErasedCounts:
    """The numbers of erased items by kind.

    Rows of predictions and feedback stay, anonymous and empty.
    """

    predictions: int = 0
    texts: int = 0
    embeddings: int = 0
    feedback: int = 0
    comments: int = 0
    idempotency: int = 0
    jobs: int = 0

    def __add__(self, other: "ErasedCounts") -> "ErasedCounts":
        theirs = other.as_dict()
        return ErasedCounts(**{name: count + theirs[name] for name, count in self.as_dict().items()})

    def as_dict(self) -> dict[str, int]:
        """Return the counts by name."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class NearCopies:
    """Stored texts near an erased one; `complete` if these are all.

    Their cosine is at least `cosine`.
    """

    cosine: float
    text_ids: tuple[UUID, ...]
    complete: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ErasureReceipt:
    """The result of an erasure.

    `shared` texts stay because others sent them too; at most `MAX_LISTED` of them are named.
    """

    kind: ErasureKind
    subject: UUID
    erased: ErasedCounts
    shared: int
    shared_text_ids: tuple[UUID, ...]
    near_copies: NearCopies


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    counts: ErasedCounts
    erased: frozenset[UUID] = frozenset()
    remaining: frozenset[UUID] = frozenset()
    vectors: Sequence[Vector] = ()
    last: bool = False


class ErasureRepository(Repository):
    """Everything acknowledged before the call is erased when it returns; safe during writes and searches.

    An erased prediction keeps its id, model, version, arm, experiment, label, timings and its confidence rounded to the
    middle of a tenth. Unit and request become aliases under a salt that is never stored; experiments count as before.
    """

    def __init__(self, database: Database, similarity: SimilarityRepository, *, space: str) -> None:
        super().__init__(database)
        self._similarity = similarity
        self._space = space

    async def erase_user(self, user_id: UUID, *, actor: UUID | None) -> ErasureReceipt:
        """Erase predictions about the user, those by the user's keys about no user, and the user's judgements.

        Raises:
            NotFound: no such user.
            Unavailable: too many lock conflicts; the next call erases the rest.
        """
        return await self._erase(ErasureKind.USER, user_id, actor)

    async def erase_text(self, text_id: UUID, *, actor: UUID | None) -> ErasureReceipt:
        """Erase a text, no matter who sent it.

        Raises:
            NotFound: no such text, and no erased text had this id.
            Unavailable: too many lock conflicts; the next call erases the rest.
        """
        return await self._erase(ErasureKind.TEXT, text_id, actor)

    async def _erase(self, kind: ErasureKind, subject: UUID, actor: UUID | None) -> ErasureReceipt:
        async with self._database.begin() as connection:
            exists = await run_sql(connection, EXISTS[kind], subject=subject, name=str(subject))
            if subject == NIL_ID or not exists.scalar_one():
                raise NotFound(f"there is no {kind} {subject}")
            await run_sql(connection, PLACEHOLDERS[0], nobody=NIL_ID)
            await run_sql(connection, PLACEHOLDERS[1], nobody=NIL_ID)
        values = {
            "subject": subject,
            "nobody": NIL_ID,
            "salt": secrets.token_hex(32),
            "limit": _STEP_ROWS,
            "holder": None,
        }
        counts, erased, remaining, vectors = ErasedCounts(), set[UUID](), set[UUID](), list[Vector]()
        last = False
        while not last:
            step = await retry_transaction(
                self._database,
                lambda connection: self._step(connection, kind, values, actor),
                attempts=_ATTEMPTS,
            )
            counts, last = counts + step.counts, step.last
            erased |= step.erased
            remaining |= step.remaining
            vectors += step.vectors[: MAX_LISTED - len(vectors)]
        shared = sorted(remaining - erased)
        return ErasureReceipt(
            kind=kind,
            subject=subject,
            erased=counts,
            shared=len(shared),
            shared_text_ids=tuple(shared[:MAX_LISTED]),
            near_copies=await self._near(vectors, erased),
        )

    async def _step(
        self, connection: AsyncConnection, kind: ErasureKind, values: Mapping[str, Any], actor: UUID | None
    ) -> _Step:
        """Erase up to `limit` predictions with their dependents; the last step also erases everything else."""
        candidates = (await run_sql(connection, CANDIDATES[kind], **values)).all()
        named = {row.text_id for row in candidates} - {NIL_ID}
        # In the writer's order: texts by id, then predictions by id. Writers of these texts wait or have committed.
        texts = list((await run_sql(connection, TEXT_LOCKS, texts=list(named))).scalars())
        rows = (await run_sql(connection, DOOMED[kind], **values, texts=texts)).all()
        last = len(candidates if kind is ErasureKind.USER else rows) < values["limit"]
        step = await self._anonymise(connection, values, texts, rows)
        counts = step.counts
        if last and kind is ErasureKind.USER:
            counts += await _erase_other_traces(connection, values)
        await audit.append(
            connection,
            actor=actor,
            action=f"{kind}.erase",
            subject=str(values["subject"]),
            detail=counts.as_dict(),
        )
        return replace(step, counts=counts, last=last)

    async def _anonymise(
        self, connection: AsyncConnection, values: Mapping[str, Any], texts: list[UUID], rows: Sequence[Any]
    ) -> _Step:
        """Unlink these predictions, and remove the texts that no other prediction names."""
        ids = [row.id for row in rows]
        named = {**values, "ids": ids, "texts": texts}
        feedback = (await run_sql(connection, COMMENTS, **named)).all()
        named["holders"] = list({row.holder_id for row in (*rows, *feedback)} - {NIL_ID})
        repeatable = await run_sql(connection, REPEATABLE, **named)
        await run_sql(connection, FEEDBACK, **named)
        await run_sql(connection, PREDICTIONS, **named)
        await segments.prevent_moves(connection)
        removed = (await run_sql(connection, VECTORS, **named)).all()
        # A retired segment and the copy that replaced it have the same vectors.
        vectors = {(row.text_id, row.space): row for row in removed}.values()
        erased_ids = frozenset((await run_sql(connection, TEXTS, **named)).scalars())
        return _Step(
            counts=ErasedCounts(
                predictions=len(ids),
                texts=len(erased_ids),
                embeddings=len(vectors),
                feedback=len(feedback),
                comments=sum(row.commented for row in feedback),
                idempotency=repeatable.rowcount,
            ),
            erased=erased_ids,
            remaining=frozenset(texts) - erased_ids,
            vectors=[np.array(row.vector, np.float32) for row in vectors if row.space == self._space],
        )

    async def _near(self, vectors: Sequence[Vector], erased: set[UUID]) -> NearCopies:
        """Return the remaining texts near the vectors of erased ones, as many as a few seconds allow."""
        near: set[UUID] = set()
        complete = len(vectors) == len(erased)
        deadline = time.monotonic() + _NEAR_SECONDS
        for vector in vectors:
            if time.monotonic() > deadline or len(near) >= MAX_LISTED:
                complete = False
                break
            neighbours = await self._similarity.search(
                vector, k=_NEAR_EACH, min_similarity=NEAR_COSINE, exact=True
            )
            # A read replica may still have erased texts.
            near |= {neighbour.text_id for neighbour in neighbours.results} - erased
            complete = complete and neighbours.complete and len(neighbours.results) < _NEAR_EACH
        return NearCopies(cosine=NEAR_COSINE, text_ids=tuple(sorted(near))[:MAX_LISTED], complete=complete)


async def _erase_other_traces(connection: AsyncConnection, values: Mapping[str, Any]) -> ErasedCounts:
    """Erase the user's other traces: judgements of others' predictions, stored answers, finished jobs."""
    rows = (await run_sql(connection, OWN_FEEDBACK, **values)).all()
    if rows:
        own = {"ids": [row.prediction_id for row in rows], "holder": values["subject"]}
        await run_sql(connection, FEEDBACK, **{**values, **own})
    answers = await run_sql(connection, IDEMPOTENCY, **values)
    jobs = await run_sql(connection, JOBS, **values)
    return ErasedCounts(
        feedback=len(rows),
        comments=sum(row.commented for row in rows),
        idempotency=answers.rowcount,
        jobs=jobs.rowcount,
    )
