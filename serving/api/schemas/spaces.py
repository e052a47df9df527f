"""Requests and responses about embedding spaces."""

from typing import Annotated

from pydantic import AliasPath, AwareDatetime, ConfigDict, Field

from db.embeddings.spaces import SpaceState
from serving.api.schemas.fields import RequestBody, ResponseBody

# An alias in MLflow, which allows no more.
SpaceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")]


class SpaceRequest(RequestBody):
    """The space to build; a registered encoder must define it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "multilingual-e5-small"}]})

    name: SpaceName


class SpaceResponse(ResponseBody):
    """A space. `share` of the texts have a vector of it; `seconds_left` at its `pace`, in texts a second.

    `answers`: this process searches it; a live space is searched once its encoder runs. `reason`: why it is stuck.
    """

    name: str = Field(validation_alias=AliasPath("space", "name"))
    state: SpaceState = Field(validation_alias=AliasPath("space", "state"))
    answers: bool = Field(validation_alias="is_searched")
    vectors: int = Field(validation_alias=AliasPath("space", "vectors"))
    share: float
    pace: float | None = Field(validation_alias=AliasPath("space", "pace"))
    seconds_left: float | None
    begun_at: AwareDatetime = Field(validation_alias=AliasPath("space", "begun_at"))
    live_at: AwareDatetime | None = Field(validation_alias=AliasPath("space", "live_at"))
    reason: str | None = Field(validation_alias=AliasPath("space", "reason"))


class SpaceListResponse(ResponseBody):
    """All spaces, the live one first."""

    items: list[SpaceResponse]
