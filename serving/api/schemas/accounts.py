"""Requests and responses about users, API keys, tokens and the audit log."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, ConfigDict, EmailStr, Field

from serving.api.schemas.fields import (
    Deadline,
    Moment,
    Name,
    PageSize,
    QueryParameters,
    RequestBody,
    ResponseBody,
    Windowed,
)
from serving.core.caller import Role

Username = Annotated[
    str, Field(pattern=r"^[^\s\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]{0,148}[^\s\x00-\x1f\x7f])?$")
]


class UserRequest(RequestBody):
    """A user to add."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"username": "ada", "email": "ada@example.org"}]}
    )

    username: Username
    email: EmailStr


class UserResponse(ResponseBody):
    """A user."""

    id: UUID
    username: str
    email: str
    created_at: AwareDatetime


class UserQuery(QueryParameters):
    """The users to list, and their page; `name` is the beginning of a username, whatever its case."""

    name: Name | None = None
    limit: PageSize = 50
    cursor: Name | None = None


class UserListResponse(ResponseBody):
    """Users, newest first; `next_cursor` continues after them."""

    items: list[UserResponse]
    next_cursor: str | None


class KeyRequest(RequestBody):
    """A key to create; without `user_id` it has no owner."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"role": "client", "name": "web shop"}]})

    role: Annotated[Role, Field(strict=False)]
    name: Name = "unnamed"
    user_id: UUID | None = None
    rate_limit: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = Field(
        None, description="texts per second; 0: no limit; unset: the platform's"
    )
    expires_at: Deadline | None = Field(None, description="90d: in 90 days")


class KeyResponse(ResponseBody):
    """A key's record, without the key itself."""

    id: UUID
    role: Role
    name: str
    user_id: UUID | None = Field(validation_alias="owner_id")
    rate_limit: float | None
    created_at: AwareDatetime
    expires_at: AwareDatetime | None
    revoked_at: AwareDatetime | None
    last_used_at: AwareDatetime | None


class NewKeyResponse(KeyResponse):
    """A new key: `key` is shown only here."""

    key: str


class KeyListResponse(ResponseBody):
    """All keys, oldest first."""

    items: list[KeyResponse]


class TokenRequest(RequestBody):
    """A request for an access token: a form with the client's credentials (RFC 6749, sections 4.4.2 and 2.3.1)."""

    grant_type: Literal["client_credentials"]
    client_id: str = Field(min_length=1, description="the key's id")
    client_secret: str = Field(min_length=1, description="the key")
    scope: Role | None = Field(None, description="if given, it must be the key's role")


class TokenResponse(ResponseBody):
    """An access token (RFC 6749, section 5.1); `scope` is the key's role, `expires_in` is in seconds."""

    access_token: str
    token_type: Literal["Bearer"]
    expires_in: int
    scope: Role


class AuthorizationServerResponse(ResponseBody):
    """The way to a token (RFC 8414, section 3.2)."""

    issuer: str
    token_endpoint: str
    grant_types_supported: list[str]
    token_endpoint_auth_methods_supported: list[str]
    scopes_supported: list[Role]
    response_types_supported: list[str]


class AuditQuery(Windowed, QueryParameters):
    """Filters of the audit log, and its page; `since` is inclusive, `until` exclusive."""

    actor: UUID | None = None
    action: Name | None = None
    subject: Name | None = None
    since: Moment | None = None
    until: Moment | None = None
    limit: PageSize = 50
    cursor: Name | None = None


class AuditEntryResponse(ResponseBody):
    """One action; `actor` is the id of the key that asked for it, null for the platform itself."""

    id: int
    at: AwareDatetime
    actor: UUID | None
    action: str
    subject: str
    detail: dict[str, Any]


class AuditResponse(ResponseBody):
    """Entries of the audit log, newest first; `next_cursor` continues after them."""

    items: list[AuditEntryResponse]
    next_cursor: str | None
