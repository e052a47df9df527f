"""The measures on cases with known values."""

import numpy as np
import pytest

from registry.evaluation import metrics

LABELS = np.array([0, 0, 1, 2])
SURE = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float64)


def test_accuracy_recall_and_f1() -> None:
    assert metrics.accuracy(SURE, LABELS) == 0.75
    assert metrics.per_class_recall(SURE, LABELS) == {"negative": 0.5, "neutral": 1.0, "positive": 1.0}
    assert metrics.macro_f1(SURE, LABELS) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_class_without_rows_has_no_recall_and_is_left_out_of_the_report() -> None:
    only = np.zeros(4, dtype=np.int64)
    assert np.isnan(metrics.per_class_recall(SURE, only)["positive"])
    assert "recall_positive" not in metrics.classification_report(SURE, only)


def test_ece_is_the_gap_between_confidence_and_accuracy() -> None:
    sure_and_wrong_once = metrics.ece(SURE, LABELS)
    assert sure_and_wrong_once == pytest.approx(0.25)
    halves = np.array([[0.5, 0.5, 0.0]] * 4)
    assert metrics.ece(halves, np.array([0, 0, 1, 1])) == pytest.approx(0.0)


def test_temperature_undoes_overconfidence() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 3)) * 1.5
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(3, p=row) for row in chances])
    assert metrics.fit_temperature(logits * 3, labels) == pytest.approx(3.0, rel=0.1)


def test_bootstrap_is_repeatable_and_holds_the_estimate() -> None:
    rng = np.random.default_rng(1)
    probabilities, labels = rng.dirichlet(np.ones(3), size=500), rng.integers(0, 3, 500)
    first = metrics.bootstrap(metrics.accuracy, probabilities, labels, rounds=200)
    assert first == metrics.bootstrap(metrics.accuracy, probabilities, labels, rounds=200)
    assert first.low < first.value < first.high
    assert first.high - first.low < 0.1


def test_groups_without_rows_are_left_out() -> None:
    groups = {"some": np.array([True, True, False, False]), "none": np.zeros(4, dtype=np.bool_)}
    result = metrics.classification_report_by_group(SURE, LABELS, groups)
    assert result["some.accuracy"] == 0.5
    assert not any(name.startswith("none") for name in result)


def test_agreement_is_whole_for_equal_vectors_and_small_for_others() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(60, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    same = metrics.agreement(vectors, vectors)
    assert same == {"cosine_mean": 1.0, "cosine_worst": 1.0, "neighbour_recall_10": 1.0}
    other = metrics.agreement(vectors[::-1], vectors)
    assert other["cosine_worst"] < other["cosine_mean"] < 0.5
    assert other["neighbour_recall_10"] < 0.5
