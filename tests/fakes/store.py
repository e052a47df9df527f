"""The rows that the fakes of one test share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import numpy as np

from db.accounts.audit import AuditEntry
from db.accounts.keys import Key
from db.accounts.users import User
from db.core.binary import Vector
from db.errors import Unavailable
from db.predictions.feedback import Judgement
from db.predictions.idempotency import StoredAnswer
from db.predictions.predictions import Prediction
from db.predictions.submissions import Mismatch, NewIdempotency, NewPrediction, NewText, Replayed
from registry.bundles.bundle import LABELS


@dataclass(frozen=True, kw_only=True)
class NamedAnswer:
    """A stored answer, and the predictions that it names."""

    answer: StoredAnswer
    names: frozenset[UUID]


class FakeStore:
    """A database in memory. While `down` is set, accesses to these rows raise Unavailable."""

    def __init__(self) -> None:
        self.down = False
        self.texts: dict[UUID, NewText] = {}
        self.predictions: dict[UUID, NewPrediction] = {}
        self.feedback: dict[tuple[UUID, UUID], Judgement] = {}
        self.answers: dict[tuple[UUID, str, str], NamedAnswer] = {}
        self.users: dict[UUID, User] = {}
        self.keys: dict[UUID, Key] = {}
        self.audit: list[AuditEntry] = []

    def reach(self) -> None:
        """Raise Unavailable while the store is down."""
        if self.down:
            raise Unavailable("the fake store is down")

    def append(
        self, actor: UUID | None, action: str, subject: str, detail: Mapping[str, Any] | None = None
    ) -> None:
        """Append an entry to the audit log."""
        self.audit.append(
            AuditEntry(
                id=len(self.audit) + 1,
                at=datetime.now(UTC),
                actor=actor,
                action=action,
                subject=subject,
                detail=dict(detail or {}),
            )
        )

    def outcome(self, claim: NewIdempotency | None) -> Replayed | Mismatch | None:
        """Return what an idempotency key's earlier request decides; None if the key is free."""
        stored = None if claim is None else self.answers.get((claim.holder_id, claim.route, claim.key))
        return None if claim is None or stored is None else stored.answer.outcome(claim.body_digest)

    def keep(self, claim: NewIdempotency | None, names: Sequence[UUID], answer: bytes | None = None) -> None:
        """Store a request's answer under its idempotency key."""
        if claim is not None:
            self.answers[claim.holder_id, claim.route, claim.key] = NamedAnswer(
                answer=StoredAnswer(
                    body_digest=claim.body_digest,
                    status=claim.status,
                    answer=claim.answer if answer is None else answer,
                ),
                names=frozenset(names),
            )

    def vector(self, text_id: UUID) -> Vector:
        """Return the stored vector of a text, float32 [384]."""
        return np.frombuffer(self.texts[text_id].embedding, "<f2").astype(np.float32)

    def visible(self, holder: UUID | None = None, *, shadows: bool = True) -> list[Prediction]:
        """Return the predictions of a holder, or of all holders, newest first."""
        return [
            self._read(row)
            for row in sorted(self.predictions.values(), key=lambda row: row.id, reverse=True)
            if holder in (None, row.holder_id) and (shadows or row.arm != "shadow")
        ]

    def _read(self, row: NewPrediction) -> Prediction:
        return Prediction(
            id=row.id,
            text_id=row.text_id,
            text=self.texts[row.text_id].content,
            user_id=row.user_id,
            key_id=row.key_id,
            holder_id=row.holder_id,
            model=row.model,
            version=row.version,
            arm=row.arm,
            experiment_id=row.experiment_id,
            unit=row.unit,
            label=row.label,
            confidence=row.confidence,
            scores=dict(zip(LABELS, row.scores, strict=True)),
            request_id=row.request_id,
            truncated=row.truncated,
            language=row.language,
            supported=row.supported,
            mostly_unknown=row.mostly_unknown,
            queue_ms=row.queue_ms,
            infer_ms=row.infer_ms,
            feedback=tuple(each for (judged, _), each in self.feedback.items() if judged == row.id),
        )
