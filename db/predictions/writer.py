"""The writer of the prediction path: many finished requests in one statement, round trip and transaction.

Never batches or waits by itself.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final, LiteralString
from uuid import UUID

import psycopg
from psycopg import errors as pg

from db.connection.engine import Database
from db.core import binary
from db.core.cipher import text_location
from db.errors import Rejected, Unavailable, Unreadable, translate
from db.predictions.idempotency import AnswerColumns, StoredAnswer, location_of
from db.predictions.submissions import (
    Dropped,
    Failed,
    Mismatch,
    NewIdempotency,
    NewText,
    Outcome,
    Replayed,
    Stored,
    Submission,
)
from db.predictions.writer_sql import ANSWERS, BESIDE, IDEMPOTENT, PLAIN

_ATTEMPTS: Final = 5
_STORED: Final = Stored()
_DROPPED: Final = Dropped()


class PredictionWriter:
    """Stores each submission as a whole and at most once; after Stored it survives the death of any process.

    Every text of a submission must belong to one of its predictions. A text is stored once, and its vector once
    in the submission's space; `space` is for submissions that name none.
    """

    def __init__(self, database: Database, *, space: str, dimensions: int = 384) -> None:
        self._database = database
        self._cipher = database.cipher
        self._space = space
        self._dimensions = dimensions

    async def commit(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Store submissions in one transaction; return their outcomes in order.

        A submission that the database refuses fails alone: the others are stored without it.
        Raises Unavailable if none of them is known to be stored.
        """
        if not submissions:
            return []
        kinds = {_kind(submission) for submission in submissions}
        if len(kinds) > 1:
            return await self._by_kind(submissions, kinds)
        first, repeated = _split_repeated(submissions)
        outcomes: list[Outcome] = [_STORED] * len(submissions)
        await self._commit(submissions, first, outcomes)
        for position, original in repeated:
            outcomes[position] = await self._repeat(submissions, position, original, outcomes)
        return outcomes

    async def _by_kind(
        self, submissions: Sequence[Submission], kinds: Iterable[tuple[str | None, bool]]
    ) -> list[Outcome]:
        """Commit one transaction per kind: shadows, and during a change of the space those of each space."""
        outcomes: dict[int, Outcome] = {}
        for kind in kinds:
            positions = [position for position, each in enumerate(submissions) if _kind(each) == kind]
            try:
                stored = await self.commit([submissions[position] for position in positions])
            except Unavailable as unavailable:
                # Another kind's submissions are stored, and their callers must get that outcome.
                stored = [Failed(error=unavailable)] * len(positions)
            outcomes |= dict(zip(positions, stored, strict=True))
        return [outcomes[position] for position in range(len(submissions))]

    async def _commit(
        self, submissions: Sequence[Submission], chosen: list[int], outcomes: list[Outcome]
    ) -> None:
        """Store the chosen ones; on a refusal halve them until the refused one is alone."""
        try:
            refused = await self._store([submissions[index] for index in chosen])
        except (ValueError, psycopg.DataError, psycopg.IntegrityError) as error:
            if len(chosen) == 1:
                outcomes[chosen[0]] = Failed(error=_rejection(error))
                return
            middle = len(chosen) // 2
            await self._commit(submissions, chosen[:middle], outcomes)
            try:
                await self._commit(submissions, chosen[middle:], outcomes)
            except Unavailable as unavailable:
                # The first half is stored, and its callers must get that outcome.
                for index in chosen[middle:]:
                    outcomes[index] = Failed(error=unavailable)
            return
        for index, outcome in refused.items():
            outcomes[chosen[index]] = outcome

    async def _repeat(
        self, submissions: Sequence[Submission], position: int, original: int, outcomes: list[Outcome]
    ) -> Outcome:
        """Return the outcome of a submission whose idempotency key an earlier one of the batch has."""
        mine, theirs = submissions[position].idempotency, submissions[original].idempotency
        if isinstance(outcomes[original], Stored) and mine is not None and theirs is not None:
            same = mine.body_digest == theirs.body_digest
            return Replayed(status=theirs.status, answer=theirs.answer) if same else Mismatch()
        own: list[Outcome] = [_STORED]
        await self._commit([submissions[position]], [0], own)
        return own[0]

    async def _store(self, submissions: Sequence[Submission]) -> dict[int, Outcome]:
        """Store in one transaction; return the outcomes of those that were not stored, by position."""
        parameters = self._rows(submissions)
        claims = {
            index: submission.idempotency
            for index, submission in enumerate(submissions)
            if submission.idempotency is not None
        }
        statement = BESIDE if submissions[0].beside else IDEMPOTENT if claims else PLAIN
        if statement is not PLAIN:
            parameters["submission"] = binary.encode_integers(
                [index for index, submission in enumerate(submissions) for _ in submission.predictions]
            )
        if statement is IDEMPOTENT:
            parameters |= _claim_keys(claims) | self._claims(submissions, claims)
        if statement is BESIDE:
            parameters["beside"] = binary.encode_uuids(
                [anchor for submission in submissions for anchor in submission.beside]
            )
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._execute(statement, parameters, claims)
            except psycopg.Error as error:
                if not _is_transient(error):
                    if isinstance(
                        error, (psycopg.DataError, psycopg.IntegrityError)
                    ) and not _has_no_partition(error):
                        raise
                    raise translate(error) from error
                if attempt == _ATTEMPTS:
                    conflict = Unavailable("the transaction lost too many conflicts: try again")
                    raise (translate(error) if _has_no_partition(error) else conflict) from error
                await asyncio.sleep(0.002 * 2**attempt)
        raise AssertionError

    async def _execute(
        self, statement: LiteralString, parameters: dict[str, Any], claims: dict[int, NewIdempotency]
    ) -> dict[int, Outcome]:
        async with self._database.hot_write() as connection:
            cursor = await connection.execute(statement, parameters, prepare=True)
            if statement is PLAIN:
                return {}
            refused = [int(row[0]) for row in await cursor.fetchall()]
            if not refused or statement is BESIDE:
                return dict.fromkeys(refused, _DROPPED)
            return await self._answers(connection, {index: claims[index] for index in refused})

    def _rows(self, submissions: Sequence[Submission]) -> dict[str, Any]:
        predictions = [prediction for submission in submissions for prediction in submission.predictions]
        distinct: dict[UUID, NewText] = {
            text.id: text for submission in submissions for text in submission.texts
        }
        texts = list(distinct.values())
        sealed = [self._cipher.seal(text_location(text.id), text.content.encode()) for text in texts]
        scores = [prediction.scores for prediction in predictions]
        return {
            "space": submissions[0].space or self._space,
            "text_id": binary.encode_uuids([text.id for text in texts]),
            "content": binary.encode_texts(
                [text.content if hidden is None else "" for text, hidden in zip(texts, sealed, strict=True)]
            ),
            "sealed": binary.encode_blobs(sealed),
            "vector": binary.encode_halfvecs(
                [text.embedding for text in texts],
                dimensions=self._dimensions,
                oid=self._database.halfvec_oid,
            ),
            "id": binary.encode_uuids([prediction.id for prediction in predictions]),
            "of_text": binary.encode_uuids([prediction.text_id for prediction in predictions]),
            "holder_id": binary.encode_uuids([prediction.holder_id for prediction in predictions]),
            "key_id": binary.encode_uuids([prediction.key_id for prediction in predictions]),
            "user_id": binary.encode_uuids([prediction.user_id for prediction in predictions]),
            "experiment_id": binary.encode_uuids([prediction.experiment_id for prediction in predictions]),
            "confidence": binary.encode_reals([prediction.confidence for prediction in predictions]),
            "queue_ms": binary.encode_reals([prediction.queue_ms for prediction in predictions]),
            "infer_ms": binary.encode_reals([prediction.infer_ms for prediction in predictions]),
            "truncated": binary.encode_booleans([prediction.truncated for prediction in predictions]),
            "language": binary.encode_texts([prediction.language for prediction in predictions]),
            "supported": binary.encode_booleans([prediction.supported for prediction in predictions]),
            "mostly_unknown": binary.encode_booleans(
                [prediction.mostly_unknown for prediction in predictions]
            ),
            "model": binary.encode_texts([prediction.model for prediction in predictions]),
            "version": binary.encode_texts([prediction.version for prediction in predictions]),
            "arm": binary.encode_texts([prediction.arm for prediction in predictions]),
            "label": binary.encode_texts([prediction.label for prediction in predictions]),
            "unit": binary.encode_texts([prediction.unit for prediction in predictions]),
            "request_id": binary.encode_texts([prediction.request_id for prediction in predictions]),
            "negative": binary.encode_reals([score[0] for score in scores]),
            "neutral": binary.encode_reals([score[1] for score in scores]),
            "positive": binary.encode_reals([score[2] for score in scores]),
        }

    def _claims(self, submissions: Sequence[Submission], claims: dict[int, NewIdempotency]) -> dict[str, Any]:
        """Return the parameters of the idempotency rows."""
        values = list(claims.values())
        columns = [AnswerColumns.of(self._cipher, claim, claim.answer) for claim in values]
        return {
            "claim_digest": binary.encode_blobs([each.body_digest for each in columns]),
            "claim_status": binary.encode_smallints([claim.status for claim in values]),
            "claim_answer": binary.encode_blobs([each.answer for each in columns]),
            "claim_sealed": binary.encode_blobs([each.sealed for each in columns]),
            # Array literals, since PostgreSQL has no array of arrays of different lengths.
            "claim_names": binary.encode_texts(
                [
                    f"{{{','.join(str(prediction.id) for prediction in submissions[index].predictions)}}}"
                    for index in claims
                ]
            ),
        }

    async def _answers(
        self, connection: psycopg.AsyncConnection[Any], refused: dict[int, NewIdempotency]
    ) -> dict[int, Outcome]:
        """Return the outcomes that earlier requests' idempotency rows give."""
        cursor = await connection.execute(ANSWERS, _claim_keys(refused))
        answers: dict[int, Outcome] = {}
        for index, *row in await cursor.fetchall():
            claim = refused[index]
            try:
                stored = StoredAnswer.read(self._cipher, location_of(claim), tuple(row))
            except Unreadable as error:
                # The others are stored already.
                answers[index] = Failed(error=error)
            else:
                answers[index] = stored.outcome(claim.body_digest)
        for index in refused.keys() - answers.keys():
            answers[index] = Failed(error=Unavailable("the first answer has just been removed: try again"))
        return answers


def _kind(submission: Submission) -> tuple[str | None, bool]:
    """Return what the submissions of one statement have in common."""
    return submission.space, bool(submission.beside)


def _split_repeated(submissions: Sequence[Submission]) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the positions to store together, and pairs of a repetition and the earlier one with its key."""
    first: list[int] = []
    repeated: list[tuple[int, int]] = []
    seen: dict[tuple[UUID, str, str], int] = {}
    for index, submission in enumerate(submissions):
        claim = submission.idempotency
        if claim is not None:
            original = seen.setdefault((claim.holder_id, claim.route, claim.key), index)
            if original != index:
                repeated.append((index, original))
                continue
        first.append(index)
    return first, repeated


def _claim_keys(claims: dict[int, NewIdempotency]) -> dict[str, Any]:
    """Return the parameters that name idempotency rows."""
    values = list(claims.values())
    return {
        "claim": binary.encode_integers(list(claims)),
        "claim_holder": binary.encode_uuids([claim.holder_id for claim in values]),
        "claim_route": binary.encode_texts([claim.route for claim in values]),
        "claim_key": binary.encode_texts([claim.key for claim in values]),
    }


def _is_transient(error: psycopg.Error) -> bool:
    """Return whether the same transaction may succeed at once.

    True for a deadlock, a text that was erased meanwhile, and a segment that has just been opened: a statement may
    see its row before its server process knows the new table.
    """
    if isinstance(error, (pg.DeadlockDetected, pg.SerializationFailure)):
        return True
    if _has_no_partition(error):
        return error.diag.table_name == "embeddings"
    return isinstance(error, pg.ForeignKeyViolation) and (error.diag.constraint_name or "").endswith(
        "_text_id"
    )


def _has_no_partition(error: psycopg.Error) -> bool:
    """Return whether the row has no partition, which is the platform's fault and not the row's."""
    return isinstance(error, pg.CheckViolation) and error.diag.constraint_name is None


def _rejection(error: Exception) -> Rejected:
    if isinstance(error, psycopg.Error):
        translated = translate(error)
        if isinstance(translated, Rejected):
            return translated
    return Rejected("the text or vector can't be encoded for the database")
