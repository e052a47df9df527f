"""Evaluation reports with chosen accuracy, latency and distance from the champion."""

import base64
from datetime import UTC, datetime
from typing import Any

import numpy as np

from registry.evaluation.metrics import Interval
from registry.evaluation.report import Agreement, EvaluationReport, HeldOutResult, Latency, ModelSize, Replay

TEXTS = 1000
DATA = "d" * 64


def exactly(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)


def latency(alone_ms: float = 4.0) -> Latency:
    return Latency(engine="int8", alone_ms=alone_ms, texts_per_second=1000 / alone_ms)


def held_out(accuracy: float, *, recall: float | None = None, ece: float = 0.03) -> HeldOutResult:
    """Return a result that is right on the first texts.

    Of two results, the better one is right wherever the other is.
    """
    right = np.arange(TEXTS) < round(accuracy * TEXTS)
    return HeldOutResult(
        texts=TEXTS,
        accuracy=exactly(accuracy),
        macro_f1=exactly(accuracy),
        ece=exactly(ece),
        recall={
            "negative": exactly(0.8),
            "neutral": exactly(0.4 if recall is None else recall),
            "positive": exactly(0.8),
        },
        sources={"made": accuracy},
        hits=base64.b64encode(np.packbits(right).tobytes()).decode(),
    )


def replay(*, champion: str = "1", bundle: str = "1" * 64, flips: int = 10, texts: int = 100) -> Replay:
    return Replay(
        champion_version=champion,
        champion_bundle=bundle,
        champion_latency=latency(),
        texts=texts,
        flips=flips,
        matrix={},
        strata=(),
        corrected=None,
        furthest=(),
    )


def report(version: str, accuracy: float = 0.75, **changes: Any) -> EvaluationReport:
    values: dict[str, Any] = {
        "model": "sentiment",
        "version": version,
        "kind": "head",
        "bundle": version * 64,
        "encoder": "e" * 64,
        "data": DATA,
        "held_out": held_out(accuracy),
        "agreement": Agreement(space="s", claims_space=True, mean=0.995, worst=0.97, texts=256),
        "latency": latency(),
        "size": ModelSize(version_bytes=100, encoder_bytes=1000),
        "replay": None,
        "measured_at": datetime(2026, 1, 1, tzinfo=UTC),
        "seconds": 1.0,
        "machine": "a machine",
    }
    return EvaluationReport(**(values | changes))
