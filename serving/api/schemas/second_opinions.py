"""Requests and responses about what feedback on nearby texts says of a prediction."""

from uuid import UUID

from pydantic import AliasPath, Field

from serving.api.schemas.fields import QueryParameters, ResponseBody, Rounded, Sentiment
from serving.api.schemas.predictions import PredictionResponse
from serving.api.schemas.search import Cosine, UpTo100
from serving.search.service import DUPLICATE_SIMILARITY


class NeighbourLabelResponse(ResponseBody):
    """A text nearby that has feedback, and its right sentiment according to it."""

    text_id: UUID = Field(validation_alias=AliasPath("neighbour", "text_id"))
    text: str = Field(validation_alias=AliasPath("neighbour", "text"))
    similarity: Rounded = Field(validation_alias=AliasPath("neighbour", "similarity"))
    sentiment: Sentiment = Field(validation_alias="label")


class SecondOpinionResponse(ResponseBody):
    """The vote of at most 10 nearby texts with feedback, weighted by cosine; null if fewer than 3 vote.

    `agreement`: the share of the weight that supports the prediction. `complete`: no such text is missing. Texts that
    aren't `supported` neither vote nor are voted on.
    """

    prediction_id: UUID
    sentiment: Sentiment = Field(validation_alias="label")
    agreement: Rounded | None = Field(validation_alias=AliasPath("vote", "agreement"))
    suggests: Sentiment | None = Field(validation_alias=AliasPath("vote", "suggests"))
    neighbours: list[NeighbourLabelResponse]
    complete: bool


class ExplainedPredictionResponse(PredictionResponse):
    """A stored prediction; with `explain` also a second opinion, null if none is available now."""

    second_opinion: SecondOpinionResponse | None = Field(None, description="with explain")


class CorrectionsQuery(QueryParameters):
    """The cosine from which texts count as near-duplicates, and how many of them to look at."""

    min_similarity: Cosine = DUPLICATE_SIMILARITY
    k: UpTo100 = 100


class CorrectionResponse(ResponseBody):
    """A near-duplicate, and the champion's prediction of it that the correction contradicts."""

    text_id: UUID = Field(validation_alias=AliasPath("neighbour", "text_id"))
    text: str = Field(validation_alias=AliasPath("neighbour", "text"))
    similarity: Rounded = Field(validation_alias=AliasPath("neighbour", "similarity"))
    prediction: PredictionResponse


class CorrectionsResponse(ResponseBody):
    """The near-duplicates of a corrected text whose predictions the correction contradicts.

    The `duplicates` are counted: the champion agrees with the correction on `agreeing`, has no prediction for
    `unpredicted`, doesn't support `unsupported`, and feedback contradicts the correction for `judged`; the rest are
    `fixes`. A correction of a text that isn't `supported` gives none.
    """

    prediction_id: UUID
    sentiment: Sentiment = Field(validation_alias="label")
    champion: str
    min_similarity: float
    duplicates: int
    agreeing: int
    unpredicted: int
    unsupported: int
    judged: int
    fixes: list[CorrectionResponse] = Field(validation_alias="suggestions")
    complete: bool
