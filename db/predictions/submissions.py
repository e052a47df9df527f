"""The values that the writer takes and returns, one submission per request.

Never touches the database.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias
from uuid import UUID

from db.errors import DatabaseError


@dataclass(frozen=True, kw_only=True, slots=True)
class NewText:
    """A text and its vector in the submission's space: little-endian float16, 2 bytes a dimension, unit length."""

    id: UUID
    content: str
    embedding: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionFields:
    """One prediction of one version, without its scores; times in milliseconds."""

    id: UUID
    text_id: UUID
    user_id: UUID | None
    key_id: UUID
    holder_id: UUID
    model: str
    version: str
    arm: str
    experiment_id: UUID | None
    unit: str | None
    label: str
    confidence: float
    request_id: str
    truncated: bool
    queue_ms: float
    infer_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class NewPrediction(PredictionFields):
    """A prediction to be stored; `scores` are of negative, neutral, positive.

    `language` is a BCP 47 tag, `und` if unsure. Not `supported` is a text in a language that the version doesn't know,
    or one that is `mostly_unknown`: its encoder knows less than half of the tokens.
    """

    language: str
    supported: bool
    mostly_unknown: bool
    scores: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class NewIdempotency:
    """The answer to repetitions of this request for 24 hours; `body_digest` is a SHA-256."""

    holder_id: UUID
    route: str
    key: str
    body_digest: bytes
    status: int
    answer: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """One finished request, stored as a whole or not at all; `space` of its vectors, None: the writer's.

    `beside`: stored predictions of the same texts, one for each of these predictions, without which these aren't
    stored: a shadow brings back no text that was erased meanwhile. It has no idempotency key.
    """

    texts: Sequence[NewText]
    predictions: Sequence[NewPrediction]
    idempotency: NewIdempotency | None = None
    space: str | None = None
    beside: Sequence[UUID] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """The submission was committed by this call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """The answer to an earlier request with this idempotency key and body; nothing was stored."""

    status: int
    answer: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mismatch:
    """The idempotency key was used with another body; nothing was stored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropped:
    """A prediction that this stands beside was erased or dropped; nothing was stored."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """The database refused this submission; nothing of it was stored."""

    error: DatabaseError


Outcome: TypeAlias = Stored | Replayed | Mismatch | Dropped | Failed
