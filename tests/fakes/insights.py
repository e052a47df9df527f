"""In-memory stands-in for what looks at the whole of a fake store: truths, windows, contrasts."""

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

from db.analytics.disagreements import Disagreement, Disagreements, VersionAnswer
from db.analytics.labels import LabelledText
from db.analytics.windows import JudgedPrediction, SampledText, Window
from db.core.ids import uuid7_time
from db.predictions.predictions import Prediction
from tests.fakes.data import FakeStore
from tests.fakes.search import answers


class FakeLabelRepository:
    """What the feedback in a fake store holds for right."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def of_texts(
        self, text_ids: Sequence[UUID], *, model: str, holder: UUID | None = None
    ) -> dict[UUID, str]:
        """The right label of texts."""
        self._store.reach()
        told = sorted(
            (
                (given.updated_at, each.text_id, given.label or (each.label if given.is_correct else None))
                for each in answers(self._store, holder)
                for given in each.feedback
                if each.model == model and each.text_id in text_ids
            ),
            key=lambda each: each[0],
        )
        return {text_id: label for _, text_id, label in told if label is not None}

    async def latest(self, model: str, *, most: int) -> Sequence[LabelledText]:
        """The texts that were judged last."""
        judged = [each.text_id for each in answers(self._store, None) if each.feedback][:most]
        labels = await self.of_texts(judged, model=model)
        return [
            LabelledText(text_id=text_id, vector=self._store.vector(text_id), label=label)
            for text_id, label in labels.items()
        ]


class FakeWindowRepository:
    """Every text of a fake store's window is in its sample, up to the size."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def sample(
        self,
        model: str,
        window: Window,
        *,
        size: int,
        seed: int = 0,
    ) -> Sequence[SampledText]:
        """Texts of a window."""
        self._store.reach()
        visible = answers(self._store, None)
        judged = {each.text_id for each in visible if each.feedback}
        latest: dict[UUID, Prediction] = {}
        for each in visible:
            if each.model == model and _within(each, window):
                latest.setdefault(each.text_id, each)
        return [
            SampledText(
                prediction_id=each.id,
                text_id=each.text_id,
                text=each.text,
                version=each.version,
                label=each.label,
                confidence=each.confidence,
                scores=dict(each.scores),
                judged=each.text_id in judged,
                vector=self._store.vector(each.text_id),
            )
            for each in list(latest.values())[:size]
        ]

    async def list_judged(
        self, model: str, window: Window, text_ids: Sequence[UUID]
    ) -> Sequence[JudgedPrediction]:
        """The judged predictions of texts."""
        self._store.reach()
        return [
            JudgedPrediction(
                text_id=each.text_id, version=each.version, is_correct=each.feedback[-1].is_correct
            )
            for each in answers(self._store, None)
            if each.feedback and each.model == model and each.text_id in text_ids and _within(each, window)
        ]


class FakeDisagreementRepository:
    """Compares all that a fake store holds."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def compare(
        self,
        model: str,
        one: str,
        other: str,
        window: Window,
        *,
        one_label: str | None = None,
        other_label: str | None = None,
        size: int,
    ) -> Disagreements:
        """Where they differ."""
        self._store.reach()
        said: dict[tuple[UUID, str], Prediction] = {}
        touched = set()
        for each in self._store.visible(None):
            if each.model == model:
                said.setdefault((each.text_id, each.version), each)
                if _within(each, window) and each.version in (one, other):
                    touched.add(each.text_id)
        pairs = [
            (said[text_id, one], said[text_id, other])
            for text_id in sorted(touched)
            if (text_id, one) in said and (text_id, other) in said
        ]
        differences = [
            Disagreement(
                text_id=before.text_id,
                text=before.text,
                vector=self._store.vector(before.text_id),
                one=VersionAnswer(prediction_id=before.id, label=before.label, confidence=before.confidence),
                other=VersionAnswer(prediction_id=after.id, label=after.label, confidence=after.confidence),
            )
            for before, after in pairs
            if before.label != after.label
            and one_label in (None, before.label)
            and other_label in (None, after.label)
        ]
        matrix = Counter((before.label, after.label) for before, after in pairs)
        return Disagreements(matrix=matrix, differences=differences[:size], complete=True)


def _within(prediction: Prediction, window: Window) -> bool:
    return window.since <= uuid7_time(prediction.id) < window.until
