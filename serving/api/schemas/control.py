"""Requests and answers of the control plane: models, users, keys, tokens, health."""

from typing import Annotated, Literal
from uuid import UUID

from pydantic import AwareDatetime, ConfigDict, EmailStr, Field

from serving.api.schemas.fields import Body, Moment, Name, Shape
from serving.catalogue import State
from serving.gateway import Role

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
    state: State
    reason: str = ""


class ModelAnswer(Shape):
    """A model and its versions, newest first."""

    name: str
    versions: list[ModelVersion]


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
