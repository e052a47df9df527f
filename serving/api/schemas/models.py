"""Requests and responses about models: versions, evaluations, promotions, champions."""

from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import AliasPath, AwareDatetime, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

from db.models.promotions import Act
from serving.api.schemas.fields import (
    Comment,
    Moment,
    Name,
    PageSize,
    QueryParameters,
    RequestBody,
    ResponseBody,
    is_empty,
    name_examples,
)
from serving.api.schemas.openai import ModelDescription
from serving.core.catalog import VersionState


class ModelName(ResponseBody):
    """A model, and the languages that its champion knows: BCP 47 tags, none if nobody said which they are."""

    name: str
    languages: list[str]


class ModelListResponse(ResponseBody):
    """All models; `object` and `data` are OpenAI's list of what embeds texts: the models and the live space."""

    items: list[ModelName]
    object: Literal["list"] = "list"
    data: list[ModelDescription]


class VersionSummary(ResponseBody):
    """A registered version and its state; `reason` says why it doesn't answer.

    `languages`: the BCP 47 tags of those that it knows, none if nobody said.
    """

    version: str = Field(validation_alias=AliasPath("record", "version"))
    aliases: list[str] = Field(validation_alias=AliasPath("record", "aliases"))
    name: str = Field(validation_alias=AliasPath("record", "name"))
    description: str = Field(validation_alias=AliasPath("record", "description"))
    languages: list[str] = Field(validation_alias=AliasPath("record", "languages"))
    kind: str = Field(validation_alias=AliasPath("record", "kind"))
    encoder: str | None = Field(validation_alias=AliasPath("record", "encoder"))
    metrics: dict[str, float] = Field(validation_alias=AliasPath("record", "metrics"))
    state: VersionState
    reason: Annotated[str, BeforeValidator(lambda reason: reason or "")] = Field("", exclude_if=is_empty)


class ModelResponse(ModelDescription):
    """A model, or the live space, which has none, and its versions, newest first; the rest is OpenAI's."""

    name: str
    versions: list[VersionSummary]


_FORCE_NEEDS_REASON: Final[JsonDict] = {
    "if": {"required": ["force"], "properties": {"force": {"enum": [True]}}},
    "then": {"required": ["reason"], "properties": {"reason": {"type": "string", "pattern": r"\S"}}},
}


class PromoteRequest(RequestBody):
    """Whether to promote without the gates, which needs a reason."""

    model_config = ConfigDict(
        json_schema_extra=_FORCE_NEEDS_REASON
        | name_examples(
            by_the_gates={}, without_the_gates={"force": True, "reason": "the champion is broken"}
        )
    )

    force: bool = Field(False, description="skip the gates; needs a reason")
    reason: Comment | None = None


class RollbackRequest(RequestBody):
    """The reason for a rollback."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "wrong on irony"}]})

    reason: Comment | None = None


class GateCheckResponse(ResponseBody):
    """One gate: the measured value, its bound, and in words why it passed or failed."""

    name: str
    value: float | None
    bound: float
    passed: bool
    why: str


class GateReportResponse(ResponseBody):
    """The result of the gates; `missing` maps each version without a stored report to the reason."""

    passed: bool
    candidate: str
    champion: str | None
    checks: list[GateCheckResponse]
    missing: dict[str, str]


class PromotionResponse(ResponseBody):
    """The present champion. `changed`: it wasn't champion before; `report`: the gates' result, if they ran."""

    model: str
    version: str
    previous: str | None
    changed: bool
    act: Act | None
    forced: bool
    gated: bool
    report: GateReportResponse | None


class ChampionPeriodResponse(ResponseBody):
    """One version's time as champion; `to` is null while it lasts, `by` if no key started it."""

    version: str | None = Field(validation_alias=AliasPath("promotion", "version_to"))
    since: AwareDatetime = Field(validation_alias=AliasPath("promotion", "at"), serialization_alias="from")
    until: AwareDatetime | None = Field(serialization_alias="to")
    by: UUID | None = Field(validation_alias=AliasPath("promotion", "actor"))
    act: Act = Field(validation_alias=AliasPath("promotion", "act"))
    forced: bool = Field(validation_alias=AliasPath("promotion", "forced"))
    gated: bool = Field(validation_alias=AliasPath("promotion", "gated"))
    reason: str | None = Field(validation_alias=AliasPath("promotion", "reason"))
    evidence: dict[str, Any] = Field(validation_alias=AliasPath("promotion", "evidence"))


class HistoryResponse(ResponseBody):
    """A model's champions, newest first; `next_cursor` continues after them."""

    items: list[ChampionPeriodResponse]
    next_cursor: str | None


class HistoryQuery(QueryParameters):
    """A page of the history."""

    limit: PageSize = 50
    cursor: Name | None = None


class ChampionQuery(QueryParameters):
    """The moment to look at; default: now."""

    at: Moment | None = None


class EvaluationResponse(ResponseBody):
    """An evaluation; `data` is the digest of the held-out set, `report` is null until it is done."""

    id: int
    version: str
    bundle: str = Field(validation_alias="bundle_digest")
    data: str = Field(validation_alias="data_digest")
    state: Literal["running", "done", "failed"]
    reason: str | None
    requested_by: UUID | None
    created_at: AwareDatetime
    finished_at: AwareDatetime | None
    report: dict[str, Any] | None


class _VersionOfModel(ResponseBody):
    model: str = Field(validation_alias=AliasPath("record", "model"))


class VersionResponse(VersionSummary, _VersionOfModel):
    """A version, its evaluations, newest first, and the gates' result if it were promoted now."""

    digest: str = Field(validation_alias=AliasPath("record", "digest"))
    created_at: AwareDatetime = Field(validation_alias=AliasPath("record", "created_at"))
    evaluations: list[EvaluationResponse]
    gates: GateReportResponse = Field(validation_alias="preview")
