"""The stratified sample, and the comparison of two versions on known cases."""

import numpy as np
import pytest

from registry.evaluation.replay import compare, stratify
from registry.evaluation.report import HeldOutResult
from tests.support.reports import latency
from tests.support.row_factories import unit_vectors

SURE = np.eye(3, dtype=np.float32)


def test_every_cluster_gives_its_share_and_judged_texts_first() -> None:
    random = np.random.default_rng(0)
    centres = np.eye(4, 16)
    sizes = (400, 300, 200, 100)
    vectors = np.repeat(centres, sizes, axis=0) + 0.01 * random.standard_normal((1000, 16))
    judged = np.zeros(1000, np.bool_)
    judged[::50] = True
    rows, clusters = stratify(vectors.astype(np.float32), judged, size=100)
    assert len(rows) == len(set(rows.tolist())) == len(clusters)
    assert 95 <= len(rows) <= 100
    # k-means may cut a blob, but never mixes two: the share of each blob is kept.
    blob = np.repeat(np.arange(4), sizes)[rows]
    assert np.bincount(blob).tolist() == pytest.approx([40, 30, 20, 10], abs=5)
    assert judged[rows].sum() == judged.sum()


def test_a_sample_is_the_same_by_its_seed_and_never_larger_than_asked() -> None:
    vectors, judged = unit_vectors(500), np.zeros(500, np.bool_)
    first, again = (stratify(vectors, judged, size=50, seed=3) for _ in range(2))
    assert first[0].tolist() == again[0].tolist()
    assert len(first[0]) <= 50
    assert len(stratify(vectors, judged, size=3)[0]) == 3
    assert sorted(stratify(vectors, judged, size=9999)[0]) == list(range(500))


def test_few_texts_are_one_stratum_and_none_are_none() -> None:
    rows, clusters = stratify(unit_vectors(5), np.zeros(5, np.bool_), size=10)
    assert sorted(rows) == list(range(5))
    assert set(clusters) == {0}
    assert len(stratify(np.zeros((0, 4), np.float32), np.zeros(0, np.bool_), size=10)[0]) == 0


def test_flips_matrix_corrections_and_the_furthest() -> None:
    champion = SURE[[0, 0, 1, 2]]
    candidate = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0.4, 0, 0.6]], np.float32)
    result = compare(
        candidate=candidate,
        champion=champion,
        text_ids=["a", "b", "c", "d"],
        clusters=np.array([0, 0, 5, 5]),
        judged=np.array([True, False, True, False]),
        corrected=["negative", "neutral", None, None],
        champion_version="1",
        champion_bundle="1" * 64,
        champion_latency=latency(),
    )
    assert (result.texts, result.flips, result.flips_share) == (4, 1, 0.25)
    assert result.matrix["negative"] == {"negative": 1, "neutral": 1, "positive": 0}
    assert [(each.texts, each.judged, each.flips) for each in result.strata] == [(2, 1, 1), (2, 1, 0)]
    assert result.corrected is not None
    assert (result.corrected.texts, result.corrected.candidate, result.corrected.champion) == (2, 1.0, 0.5)
    assert [(each.text_id, each.distance) for each in result.furthest] == [("b", 1.0), ("d", 0.4)]


def test_a_held_out_result_keeps_which_texts_were_right() -> None:
    labels = np.array([0, 1, 2, 0, 1] * 3)
    answers = SURE[[0, 1, 1, 0, 2] * 3]
    sources = np.array(["a", "a", "b", "b", "b"] * 3)
    result = HeldOutResult.measure(answers, labels, sources, rounds=50)
    assert result.right.tolist() == [True, True, False, True, False] * 3
    assert result.accuracy.value == pytest.approx(0.6)
    assert result.accuracy.low <= 0.6 <= result.accuracy.high
    assert result.recall["negative"].value == 1.0
    assert (result.recall["positive"].value, result.recall["positive"].high) == (0.0, 0.0)
    assert result.sources == {"a": 1.0, "b": pytest.approx(1 / 3, abs=1e-6)}
