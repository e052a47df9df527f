"""Requests and answers of the embedding spaces."""

from typing import Annotated

from pydantic import AwareDatetime, ConfigDict, Field

from db.embeddings.spaces import SpaceState
from serving.api.schemas.fields import Body, Shape

# An alias in MLflow, which allows no more.
SpaceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,127}$")]


class SpaceRequest(Body):
    """The space to build: one that a registered encoder defines."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "multilingual-e5-small"}]})

    name: SpaceName


class SpaceAnswer(Shape):
    """A space. `share` of the texts have its vector; `seconds_left` at its `pace`, in texts a second.

    `answers`: who answers now searches it; the live one does so once its encoder runs. `reason`: why it doesn't get on.
    """

    name: str
    state: SpaceState
    answers: bool
    vectors: int
    share: float
    pace: float | None
    seconds_left: float | None
    begun_at: AwareDatetime
    live_at: AwareDatetime | None
    reason: str | None


class SpaceList(Shape):
    """All spaces, the live one first."""

    items: list[SpaceAnswer]
