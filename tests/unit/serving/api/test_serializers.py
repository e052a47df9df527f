"""The figures of a stored prediction, equal to those of its first answer."""

from dataclasses import fields
from datetime import UTC, datetime
from uuid import uuid4

import numpy as np
import orjson

from db.core.ids import Uuid7Clock
from db.predictions.predictions import Prediction as StoredPrediction
from registry.bundles.bundle import LABELS
from serving.api import serializers
from serving.api.schemas.predictions import PredictionResponse
from serving.predictions.prediction import Prediction
from serving.predictions.service import Answer, Timing

# The exact value rounds to 0.95459, PostgreSQL's shortest decimal, 0.9545905, to 0.954591.
CONFIDENCE = np.float32(0.9545905)


def test_the_figures_of_a_prediction_dont_depend_on_when_it_is_asked_for() -> None:
    other = (1 - CONFIDENCE) / 2
    values = {
        "id": Uuid7Clock().next(),
        "text_id": uuid4(),
        "text": "so good",
        "user_id": None,
        "model": "sentiment",
        "version": "3",
        "arm": "champion",
        "experiment_id": None,
        "label": "positive",
        "truncated": False,
        "language": "en",
        "supported": True,
        "mostly_unknown": False,
    }
    result = Prediction(
        **values,
        confidence=float(CONFIDENCE),
        scores=(float(other), float(other), float(CONFIDENCE)),
        predicted_at=datetime.now(UTC),
        vector=b"",
    )
    rest = {field.name: None for field in fields(StoredPrediction) if field.name not in values}
    results = {
        label: float(str(score)) for label, score in zip(LABELS, (other, other, CONFIDENCE), strict=True)
    }
    outcome = StoredPrediction(**values, **rest | {"confidence": float(str(CONFIDENCE)), "scores": results})
    first = orjson.loads(serializers.render_one(with_embedding=False)([result]))
    later = PredictionResponse.model_validate(outcome).model_dump(mode="json")
    assert (later["confidence"], later["scores"]) == (first["confidence"], first["scores"])


def test_the_time_to_store_doesnt_tell_a_known_text_from_a_new_one() -> None:
    said = set()
    for store_ms in (0.4, 3.74, 4.46, 9.99):
        timing = Timing(queue_ms=0.123, infer_ms=4.567, store_ms=store_ms)
        answer = serializers.to_response(Answer(status=201, body=b"{}", timing=timing))
        said.add(answer.headers["server-timing"])
    assert said == {"queue;dur=0.12, infer;dur=4.57, store;dur=10"}
