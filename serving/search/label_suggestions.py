"""Labels that feedback suggests: for a prediction, and for the near-duplicates of a corrected text.

Knows no HTTP and no SQL. A caller with a scope sees only the texts and feedback of that holder's predictions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Final
from uuid import UUID

from db.analytics.labels import LabelRepository
from db.predictions.predictions import Prediction, PredictionRepository
from db.search.similarity import Neighbour, SimilarityFilters
from registry.analysis.neighbour_vote import NEIGHBOURS, Vote, vote
from serving.core.caller import Caller
from serving.core.catalog import Catalog
from serving.core.database_errors import translate_database_errors
from serving.errors import Conflict
from serving.search.service import DUPLICATE_SIMILARITY, SearchExample, SearchQuery, SearchService

# Texts with a smaller cosine don't vote.
MIN_VOTE_SIMILARITY: Final = 0.5
# Judged texts that are looked at for those whose feedback tells the right label.
_JUDGED_TEXTS: Final = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class NeighbourLabel:
    """A judged text near another one, and its right label according to feedback."""

    neighbour: Neighbour
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSuggestion:
    """The vote of the nearest judged texts on a prediction; `complete` if the search for them was.

    Texts that their version doesn't support neither vote nor are voted on.
    """

    prediction_id: UUID
    label: str
    vote: Vote
    neighbours: Sequence[NeighbourLabel]
    complete: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SuggestedCorrection:
    """A near-duplicate of a corrected text, and the champion's prediction that the correction contradicts."""

    neighbour: Neighbour
    prediction: Prediction


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrectionSuggestions:
    """The corrections that one correction to `label` suggests for the near-duplicates of its text.

    Of the `duplicates`, the `champion` predicted `label` for `agreeing` and nothing for `unpredicted`, and doesn't
    support `unsupported`; feedback gives another label to `judged`, which are left alone; the rest are `suggestions`.
    A correction of a text that the prediction's version doesn't support suggests nothing.
    """

    prediction_id: UUID
    label: str
    champion: str
    min_similarity: float
    duplicates: int
    agreeing: int
    unpredicted: int
    unsupported: int
    judged: int
    suggestions: Sequence[SuggestedCorrection]
    complete: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSuggestionService:
    """Suggests labels by the feedback on similar texts, and changes nothing."""

    predictions: PredictionRepository
    labels: LabelRepository
    search: SearchService
    catalog: Callable[[], Catalog]

    async def suggest(self, prediction_id: UUID, caller: Caller) -> LabelSuggestion:
        """Return the vote of the judged texts nearest to a prediction's text, which has no vote itself.

        Raises:
            NotFound: no such prediction, or not the caller's.
        """
        with translate_database_errors():
            prediction = await self.predictions.get(prediction_id, holder=caller.scope)
        query = SearchQuery(
            query=SearchExample(text_id=prediction.text_id),
            filters=SimilarityFilters(has_feedback=True),
            min_similarity=MIN_VOTE_SIMILARITY,
            k=_JUDGED_TEXTS,
        )
        judged = (await self.search.find_similar(query, caller)).neighbours
        near = [
            each
            for each in judged.results
            if each.text_id != prediction.text_id
            and prediction.supported is not False
            and _is_supported(each, prediction.model)
        ]
        labels = await self._labels_of([each.text_id for each in near], prediction.model, caller)
        voters = [
            NeighbourLabel(neighbour=each, label=labels[each.text_id])
            for each in near
            if each.text_id in labels
        ][:NEIGHBOURS]
        return LabelSuggestion(
            prediction_id=prediction.id,
            label=prediction.label,
            vote=vote(
                prediction.label,
                [voter.label for voter in voters],
                [voter.neighbour.similarity or 0.0 for voter in voters],
            ),
            neighbours=voters,
            complete=judged.complete,
        )

    async def suggest_corrections(
        self,
        prediction_id: UUID,
        caller: Caller,
        *,
        min_similarity: float = DUPLICATE_SIMILARITY,
        k: int = 100,
    ) -> CorrectionSuggestions:
        """Return the predictions that the latest correction of a prediction's text contradicts.

        Raises:
            NotFound: no such prediction, or not the caller's.
            Conflict: no feedback tells the right label of its text, or it confirms the prediction.
            ModelNotReady: the model has no champion.
        """
        with translate_database_errors():
            prediction = await self.predictions.get(prediction_id, holder=caller.scope)
        model = prediction.model
        label = (await self._labels_of([prediction.text_id], model, caller)).get(prediction.text_id)
        if label is None or label == prediction.label:
            raise Conflict(
                "no feedback corrects this prediction: POST /v1/feedback with is_correct false and the right label"
            )
        champion = self.catalog().champion(model).version
        duplicates = await self.search.find_duplicates(
            SearchExample(text_id=prediction.text_id), caller, min_similarity=min_similarity, k=k
        )
        labels = await self._labels_of([each.text_id for each in duplicates.results], model, caller)
        suggestions, agreeing, unpredicted, unsupported, judged = [], 0, 0, 0, 0
        for neighbour in duplicates.results:
            predicted = _prediction_by(neighbour, model, champion)
            if predicted is None:
                unpredicted += 1
            elif prediction.supported is False or predicted.supported is False:
                unsupported += 1
            elif predicted.label == label:
                agreeing += 1
            elif labels.get(neighbour.text_id, label) != label:
                judged += 1
            else:
                suggestions.append(SuggestedCorrection(neighbour=neighbour, prediction=predicted))
        return CorrectionSuggestions(
            prediction_id=prediction.id,
            label=label,
            champion=champion,
            min_similarity=min_similarity,
            duplicates=len(duplicates.results),
            agreeing=agreeing,
            unpredicted=unpredicted,
            unsupported=unsupported,
            judged=judged,
            suggestions=suggestions,
            complete=duplicates.complete and len(duplicates.results) < k,
        )

    async def _labels_of(self, text_ids: Sequence[UUID], model: str, caller: Caller) -> dict[UUID, str]:
        with translate_database_errors():
            return await self.labels.of_texts(text_ids, model=model, holder=caller.scope)


def _is_supported(neighbour: Neighbour, model: str) -> bool:
    """Return whether the latest of a model's predictions of a text, if there is one, supports it."""
    latest = max(
        (each for each in neighbour.predictions if each.model == model), key=attrgetter("id"), default=None
    )
    return latest is None or latest.supported is not False


def _prediction_by(neighbour: Neighbour, model: str, version: str) -> Prediction | None:
    """Return a version's latest prediction for a text."""
    predictions = (each for each in neighbour.predictions if (each.model, each.version) == (model, version))
    return next(predictions, None)
