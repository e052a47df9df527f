"""Answers of erasure."""

from typing import Literal
from uuid import UUID

from pydantic import AwareDatetime

from serving.api.schemas.fields import Shape


class ErasedCounts(Shape):
    """Rows by kind. Predictions and feedback were unlinked and still count; `comments` of them were removed."""

    predictions: int
    texts: int
    embeddings: int
    feedback: int
    comments: int
    idempotency: int
    jobs: int


class SharedTexts(Shape):
    """Texts that stay because others sent them too; at most 1,000 are named."""

    texts: int
    text_ids: list[UUID]


class NearCopiesAnswer(Shape):
    """Stored texts at least so near to an erased one; `complete`: certainly no others are."""

    cosine: float
    text_ids: list[UUID]
    complete: bool


class ReceiptAnswer(Shape):
    """What an erasure did; backups and archived log made before it are gone by `backups_expire_at`."""

    kind: Literal["user", "text"]
    id: UUID
    erased_at: AwareDatetime
    erased: ErasedCounts
    shared: SharedTexts
    near_copies: NearCopiesAnswer
    backups_expire_at: AwareDatetime
