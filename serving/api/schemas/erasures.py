"""Responses about erasure."""

from typing import Literal
from uuid import UUID

from pydantic import AliasPath, AwareDatetime, Field

from serving.api.schemas.fields import ResponseBody


class ErasedCounts(ResponseBody):
    """Erased rows by kind. Predictions and feedback lost their owner but still count; comments were removed."""

    predictions: int
    texts: int
    embeddings: int
    feedback: int
    comments: int
    idempotency: int
    jobs: int


class SharedTextsResponse(ResponseBody):
    """Texts that remain because others sent them, too; at most 1,000 are listed."""

    texts: int = Field(validation_alias="shared")
    text_ids: list[UUID] = Field(validation_alias="shared_text_ids")


class NearCopiesResponse(ResponseBody):
    """Stored texts whose cosine to an erased one is at least `cosine`; `complete`: there are no others."""

    cosine: float
    text_ids: list[UUID]
    complete: bool


class ErasureResponse(ResponseBody):
    """The receipt of an erasure; backups and archived log from before it are gone by `backups_expire_at`."""

    kind: Literal["user", "text"] = Field(validation_alias=AliasPath("receipt", "kind"))
    id: UUID = Field(validation_alias=AliasPath("receipt", "subject"))
    erased_at: AwareDatetime
    erased: ErasedCounts = Field(validation_alias=AliasPath("receipt", "erased"))
    shared: SharedTextsResponse = Field(validation_alias="receipt")
    near_copies: NearCopiesResponse = Field(validation_alias=AliasPath("receipt", "near_copies"))
    backups_expire_at: AwareDatetime
