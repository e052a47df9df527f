"""Fakes of what analytics reads: labels, windows and disagreements."""

from collections import Counter
from collections.abc import Iterable, Sequence
from uuid import UUID

from db.analytics.disagreements import Disagreement, Disagreements, VersionAnswer
from db.analytics.labels import LabelledText
from db.analytics.windows import Coverage, JudgedPrediction, SampledText, Window, WindowSample
from db.core.ids import uuid7_floor
from db.predictions.feedback import Judgement
from db.predictions.predictions import Prediction
from tests.fakes.store import FakeStore


class FakeLabelRepository:
    """The labels that the feedback in a fake store tells."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def of_texts(
        self, text_ids: Sequence[UUID], *, model: str, holder: UUID | None = None
    ) -> dict[UUID, str]:
        """Return the correct label of each text that has feedback which tells it."""
        self._store.reach()
        return _labels(
            (each, judgement)
            for each in self._store.visible(holder, shadows=False)
            for judgement in each.feedback
            if each.model == model and each.text_id in text_ids
        )

    async def latest(self, model: str, *, most: int) -> Sequence[LabelledText]:
        """Return the texts and labels of the feedback on the latest predictions, without unsupported ones."""
        self._store.reach()
        judged = [(each, judgement) for each in self._store.visible() for judgement in each.feedback]
        texts = _labels(
            (each, judgement)
            for each, judgement in judged[:most]
            if each.model == model and each.arm != "shadow" and each.supported is not False
        )
        labels = await self.of_texts(list(texts), model=model)
        return [
            LabelledText(text_id=text_id, vector=self._store.vector(text_id), label=label)
            for text_id, label in sorted(labels.items())
        ]


class FakeWindowRepository:
    """The texts of a time window of a fake store."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def sample(self, model: str, window: Window, *, size: int, seed: int = 0) -> WindowSample:
        """Return the latest texts of a window, each with its latest prediction there, oldest first."""
        self._store.reach()
        visible = self._store.visible()
        judged = {each.text_id for each in visible if each.feedback and each.model == model}
        read = [
            each
            for each in visible
            if each.model == model and each.arm != "shadow" and _is_within(each, window)
        ]
        latest: dict[UUID, Prediction] = {}
        for each in read:
            latest.setdefault(each.text_id, each)
        texts = [
            SampledText(
                prediction_id=each.id,
                text_id=each.text_id,
                text=each.text,
                version=each.version,
                label=each.label,
                confidence=each.confidence,
                scores=dict(each.scores),
                supported=each.supported,
                mostly_unknown=each.mostly_unknown,
                judged=each.text_id in judged,
                vector=self._store.vector(each.text_id),
            )
            for each in reversed(list(latest.values())[:size])
        ]
        return WindowSample(texts=texts, coverage=Coverage(predictions=len(read), read=len(read), exact=True))

    async def list_judged(
        self, model: str, window: Window, text_ids: Sequence[UUID]
    ) -> Sequence[JudgedPrediction]:
        """Return the judged predictions of these texts in the window, oldest first."""
        self._store.reach()
        return [
            JudgedPrediction(
                text_id=each.text_id,
                version=each.version,
                is_correct=max(each.feedback, key=lambda judgement: judgement.updated_at).is_correct,
            )
            for each in reversed(self._store.visible(shadows=False))
            if each.feedback and each.model == model and each.text_id in text_ids and _is_within(each, window)
        ]


class FakeDisagreementRepository:
    """Compares the latest answers of two versions in a fake store."""

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
        """Return the texts of the window on which the versions differ, shadows included."""
        self._store.reach()
        latest: dict[tuple[UUID, str], Prediction] = {}
        touched = set()
        for each in self._store.visible():
            if each.model == model:
                latest.setdefault((each.text_id, each.version), each)
                if _is_within(each, window) and each.version in (one, other):
                    touched.add(each.text_id)
        pairs = [
            (latest[text_id, one], latest[text_id, other])
            for text_id in sorted(touched)
            if (text_id, one) in latest and (text_id, other) in latest
        ]
        differences = [
            Disagreement(
                text_id=first.text_id,
                text=first.text,
                vector=self._store.vector(first.text_id),
                one=_answer(first),
                other=_answer(second),
            )
            for first, second in pairs
            if first.label != second.label
            and one_label in (None, first.label)
            and other_label in (None, second.label)
        ]
        matrix = Counter((first.label, second.label) for first, second in pairs)
        return Disagreements(matrix=matrix, differences=differences[:size], complete=True)


def _labels(judged: Iterable[tuple[Prediction, Judgement]]) -> dict[UUID, str]:
    """Return the label that the latest feedback on each text tells."""
    labels: dict[UUID, str] = {}
    by_holder = sorted(judged, key=lambda each: each[1].holder_id, reverse=True)
    for prediction, judgement in sorted(by_holder, key=lambda each: (each[1].updated_at, each[0].id)):
        label = judgement.label or (prediction.label if judgement.is_correct else None)
        if label is not None:
            labels[prediction.text_id] = label
    return labels


def _answer(prediction: Prediction) -> VersionAnswer:
    return VersionAnswer(
        prediction_id=prediction.id, label=prediction.label, confidence=prediction.confidence
    )


def _is_within(prediction: Prediction, window: Window) -> bool:
    return uuid7_floor(window.since) <= prediction.id < uuid7_floor(window.until)
