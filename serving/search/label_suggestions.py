"""Use cases of what people said before: a second opinion on a prediction, and what else a correction would mend.

Knows no HTTP and no SQL. A caller with a scope hears only of texts and feedback in that holder's predictions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

from db.predictions.predictions import Prediction
from db.search.similarity import Neighbour, SimilarityFilters
from registry.analysis.neighbour_vote import NEIGHBOURS, Vote, vote
from serving.core.caller import Caller
from serving.core.catalog import Catalog
from serving.core.database_errors import translate_database_errors
from serving.errors import Conflict
from serving.predictions.history import PredictionRecords
from serving.search.service import DUPLICATE, SearchExample, SearchQuery, SearchService

# Texts farther than this have no say, and so many of the judged ones are looked at for those whose label is told.
HEARD: Final = 0.5
_JUDGED: Final = 50


class TruthRecords(Protocol):
    """What people hold for right."""

    async def of_texts(
        self, text_ids: Sequence[UUID], *, model: str, holder: UUID | None = None
    ) -> dict[UUID, str]:
        """The right label of texts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourLabel:
    """A judged text near to another, and the label that people hold for right."""

    neighbour: Neighbour
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSuggestion:
    """What the nearest judged texts say of a prediction; `complete` as of the search for them."""

    prediction_id: UUID
    label: str
    vote: Vote
    voices: Sequence[NeighbourLabel]
    complete: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SuggestedCorrection:
    """A near-duplicate of a corrected text, and the champion's prediction of it that the correction speaks against."""

    neighbour: Neighbour
    prediction: Prediction


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrectionSuggestions:
    """What a correction to `label` suggests for the near-duplicates of its text, of which there are `duplicates`.

    Of them the `champion` says the same of `agreeing`, hasn't judged `unpredicted`, and people have said otherwise of
    `judged`, which are left alone; the rest are `fixes`.
    """

    prediction_id: UUID
    label: str
    champion: str
    min_similarity: float
    duplicates: int
    agreeing: int
    unpredicted: int
    judged: int
    fixes: Sequence[SuggestedCorrection]
    complete: bool


class LabelSuggestionService:
    """Says what feedback says, and changes nothing."""

    def __init__(
        self,
        *,
        predictions: PredictionRecords,
        truths: TruthRecords,
        searching: SearchService,
        catalog: Callable[[], Catalog],
    ) -> None:
        self._predictions = predictions
        self._truths = truths
        self._searching = searching
        self._catalog = catalog

    async def of(self, prediction_id: UUID, caller: Caller) -> LabelSuggestion:
        """The vote of the judged texts nearest to a prediction's; its own text has none.

        Raises:
            NotFound: no such prediction, or not the caller's.
        """
        with translate_database_errors():
            prediction = await self._predictions.get(prediction_id, holder=caller.scope)
        judged = SimilarityFilters(has_feedback=True)
        search = SearchQuery(
            query=SearchExample(text_id=prediction.text_id), filters=judged, min_similarity=HEARD, k=_JUDGED
        )
        found = (await self._searching.similar(search, caller)).neighbours
        near = [each for each in found.results if each.text_id != prediction.text_id]
        labels = await self._right([each.text_id for each in near], prediction.model, caller)
        voices = [
            NeighbourLabel(neighbour=each, label=labels[each.text_id])
            for each in near
            if each.text_id in labels
        ][:NEIGHBOURS]
        return LabelSuggestion(
            prediction_id=prediction.id,
            label=prediction.label,
            vote=vote(
                prediction.label,
                [voice.label for voice in voices],
                [voice.neighbour.similarity for voice in voices],
            ),
            voices=voices,
            complete=found.complete,
        )

    async def corrections(
        self, prediction_id: UUID, caller: Caller, *, min_similarity: float = DUPLICATE, k: int = 100
    ) -> CorrectionSuggestions:
        """What else the latest correction of a prediction's text speaks against.

        Raises:
            NotFound: no such prediction, or not the caller's.
            Conflict: no feedback on its text says which label is right, or it holds the prediction for right.
            ModelNotReady: its model has no champion.
        """
        with translate_database_errors():
            prediction = await self._predictions.get(prediction_id, holder=caller.scope)
        model = prediction.model
        label = (await self._right([prediction.text_id], model, caller)).get(prediction.text_id)
        if label is None or label == prediction.label:
            raise Conflict(
                "no feedback corrects this prediction: POST /v1/feedback with is_correct false and the right label"
            )
        champion = self._catalog().champion(model).version
        found = await self._searching.duplicates(
            SearchExample(text_id=prediction.text_id), caller, min_similarity=min_similarity, k=k
        )
        right = await self._right([each.text_id for each in found.results], model, caller)
        fixes, agreeing, unpredicted, judged = [], 0, 0, 0
        for neighbour in found.results:
            said = _said(neighbour, model, champion)
            if said is None:
                unpredicted += 1
            elif said.label == label:
                agreeing += 1
            elif right.get(neighbour.text_id, label) != label:
                judged += 1
            else:
                fixes.append(SuggestedCorrection(neighbour=neighbour, prediction=said))
        return CorrectionSuggestions(
            prediction_id=prediction.id,
            label=label,
            champion=champion,
            min_similarity=min_similarity,
            duplicates=len(found.results),
            agreeing=agreeing,
            unpredicted=unpredicted,
            judged=judged,
            fixes=fixes,
            complete=found.complete and len(found.results) < k,
        )

    async def _right(self, text_ids: Sequence[UUID], model: str, caller: Caller) -> dict[UUID, str]:
        with translate_database_errors():
            return await self._truths.of_texts(text_ids, model=model, holder=caller.scope)


def _said(neighbour: Neighbour, model: str, version: str) -> Prediction | None:
    """The latest prediction of a version for a text."""
    found = (each for each in neighbour.predictions if (each.model, each.version) == (model, version))
    return next(found, None)
