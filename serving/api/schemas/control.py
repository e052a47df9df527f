"""Requests and answers of the control plane: models, users, keys, tokens, health."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, ConfigDict, EmailStr, Field

from db.models.promotions import Act
from serving.api.schemas.fields import Body, Comment, Moment, Name, Shape
from serving.core.caller import Role
from serving.core.catalog import VersionState

Username = Annotated[
    str, Field(pattern=r"^[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]{0,148}[^\s\x00-\x1f\x7f])?$")
]


class ModelName(Shape):
    """A model."""

    name: str


class ModelList(Shape):
    """All models."""

    items: list[ModelName]


class ModelVersion(Shape):
    """A registered version, and whether it answers; `reason` says why it failed."""

    version: str
    aliases: list[str]
    kind: str
    encoder: str | None
    metrics: dict[str, float]
    state: VersionState
    reason: str = ""


class ModelAnswer(Shape):
    """A model and its versions, newest first."""

    name: str
    versions: list[ModelVersion]


class PromoteRequest(Body):
    """Whether the gates are passed over, which needs a reason."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{}, {"force": True, "reason": "the champion is broken"}],
            "anyOf": [
                {"properties": {"force": {"const": False}}},
                {"properties": {"reason": {"type": "string", "pattern": r"\S"}}, "required": ["reason"]},
            ],
        }
    )

    force: bool = False
    reason: Comment | None = None


class RollbackRequest(Body):
    """Why."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "wrong on irony"}]})

    reason: Comment | None = None


class GateCheck(Shape):
    """One gate: what was measured, where the bound lies, and in words why it passed or not."""

    name: str
    value: float | None
    bound: float
    passed: bool
    why: str


class GateAnswer(Shape):
    """What the gates say; `missing` has the versions without a stored report, and why."""

    passed: bool
    candidate: str
    champion: str | None
    checks: list[GateCheck]
    missing: dict[str, str]


class PromotionAnswer(Shape):
    """The champion now. `changed`: it wasn't before; `report` is that of the gates, if any was asked."""

    model: str
    version: str
    previous: str | None
    changed: bool
    act: Act | None
    forced: bool
    gated: bool
    report: GateAnswer | None


class ReignAnswer(Shape):
    """A champion's time, `to` is null while it lasts; `by` is the key that made it one, null if none did."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    version: str | None
    since: AwareDatetime = Field(alias="from")
    until: AwareDatetime | None = Field(alias="to")
    by: UUID | None
    act: Act
    forced: bool
    gated: bool
    reason: str | None
    evidence: dict[str, Any]


class HistoryPage(Shape):
    """Who was champion, newest first; `next_cursor` continues after them."""

    items: list[ReignAnswer]
    next_cursor: str | None


class HistoryQuery(Body):
    """A page of the history."""

    model_config = ConfigDict(strict=False)

    limit: int = Field(50, ge=1, le=200)
    cursor: Name | None = None


class EvaluationAnswer(Shape):
    """An evaluation; `data` is the digest of the held-out set, `report` is there once it is done."""

    id: int
    version: str
    bundle: str
    data: str
    state: Literal["running", "done", "failed"]
    reason: str | None
    requested_by: UUID | None
    created_at: AwareDatetime
    finished_at: AwareDatetime | None
    report: dict[str, Any] | None


class VersionAnswer(ModelVersion):
    """A version with its evaluations, newest first, and what the gates would say of it now."""

    model: str
    digest: str
    created_at: AwareDatetime
    evaluations: list[EvaluationAnswer]
    gates: GateAnswer


class UserRequest(Body):
    """A user to be made."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"username": "ada", "email": "ada@example.org"}]}
    )

    username: Username
    email: EmailStr


class UserAnswer(Shape):
    """A user."""

    id: UUID
    username: str
    email: str
    created_at: AwareDatetime


class KeyRequest(Body):
    """A key to be made; without `user_id` nobody owns it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"role": "client", "name": "web shop"}]})

    role: Annotated[Role, Field(strict=False)]
    name: Name = "unnamed"
    user_id: UUID | None = None
    rate_limit: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = Field(
        None, description="texts per second; 0: no limit; unset: the platform's"
    )
    expires_at: Moment | None = None


class KeyInfo(Shape):
    """A key, without the key itself."""

    id: UUID
    role: Role
    name: str
    user_id: UUID | None
    rate_limit: float | None
    created_at: AwareDatetime
    expires_at: AwareDatetime | None
    revoked_at: AwareDatetime | None
    last_used_at: AwareDatetime | None


class KeyAnswer(KeyInfo):
    """A key just made: `key` is shown this once."""

    key: str


class KeyList(Shape):
    """All keys, oldest first."""

    items: list[KeyInfo]


class TokenForm(Body):
    """RFC 6749, section 4.4.2, with the client's credentials in the form (2.3.1)."""

    grant_type: Literal["client_credentials"]
    client_id: str = Field(min_length=1, description="the key's id")
    client_secret: str = Field(min_length=1, description="the key")
    scope: Role = Field(Role.CLIENT, description="if given, it must be the key's role")


class TokenAnswer(Shape):
    """RFC 6749, section 5.1; `scope` is the role."""

    access_token: str
    token_type: Literal["Bearer"]
    expires_in: int
    scope: Role


class HealthAnswer(Shape):
    """How the platform is."""

    status: Literal["live", "ready"]
