"""Weighted votes with a quorum; texts worth labelling are uncertain, dense and disagreed with."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.analysis.neighbour_vote import QUORUM, score_informativeness, select_diverse, vote
from registry.bundles.bundle import LABELS

neighbours = st.lists(st.tuples(st.sampled_from(LABELS), st.floats(-1, 1)), max_size=12)


def test_the_nearer_weighs_more() -> None:
    result = vote("positive", ["positive", "negative", "negative"], [0.9, 0.4, 0.4])
    assert result.suggests == "positive"
    assert result.agreement == pytest.approx(0.9 / 1.7)


def test_few_votes_give_no_suggestion_and_a_draw_keeps_the_prediction() -> None:
    assert vote("positive", ["negative"] * (QUORUM - 1), [1.0] * (QUORUM - 1)).agreement is None
    assert vote("positive", ["negative"] * 3, [0.0] * 3).suggests is None
    assert vote("neutral", ["negative", "neutral", "negative", "neutral"], [0.5] * 4).suggests == "neutral"


@given(st.sampled_from(LABELS), neighbours)
def test_agreement_is_a_share_and_what_all_say_is_suggested(
    predicted: str, votes: list[tuple[str, float]]
) -> None:
    result = vote(predicted, [label for label, _ in votes], [cosine for _, cosine in votes])
    if result.agreement is not None:
        assert 0 <= result.agreement <= 1 + 1e-9
        assert result.suggests in {label for label, _ in votes}


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_each_part_of_the_score_moves_it() -> None:
    random = np.random.default_rng(1)
    heap = unit(np.eye(16)[:1] + 0.05 * random.standard_normal((12, 16)))
    lone = unit(np.eye(16)[5:6])
    vectors = np.concatenate([heap, lone])
    scores = np.tile([0.1, 0.1, 0.8], (13, 1))
    scores[0] = [0.34, 0.33, 0.33]
    scores[12] = [0.34, 0.33, 0.33]
    result = score_informativeness(
        scores, vectors, np.zeros((0, 0), np.float32), [], supported=np.ones(13, bool), min_cosine=0.5
    )
    assert result.uncertainty[0] == pytest.approx(0.99)
    assert result.uncertainty[1] == pytest.approx(0.3)
    assert result.density[0] > 0.9 > 0.3 > result.density[12]
    assert not result.disagreement.any()
    assert result.score[0] > result.score[1] > result.score[12]
    supported = np.arange(13) != 2
    judged = score_informativeness(
        scores, vectors, heap[:3], [LABELS.index("negative")] * 3, supported=supported, min_cosine=0.5
    )
    assert judged.disagreement[1] == pytest.approx(1)
    assert judged.disagreement[0] == 0, "what it says is what was judged"
    assert judged.disagreement[12] == 0, "none of them is near"
    assert judged.disagreement[2] == 0, "others have no vote on what its version doesn't know"
    np.testing.assert_allclose(judged.score, judged.density * (judged.uncertainty + judged.disagreement) / 2)


def test_fewer_judged_texts_than_a_quorum_disagree_with_nothing() -> None:
    vectors = unit(np.eye(8)[:1] + 0.01 * np.random.default_rng(2).standard_normal((5, 8)))
    scores = np.tile([0.1, 0.1, 0.8], (5, 1))
    far = unit(np.eye(8)[3:4])
    for judged in (QUORUM - 1, QUORUM):
        labelled = np.concatenate([vectors[:judged], far, far])
        labels = [LABELS.index("negative")] * len(labelled)
        result = score_informativeness(
            scores, vectors, labelled, labels, supported=np.ones(5, bool), min_cosine=0.5
        )
        assert result.disagreement.any() == (judged == QUORUM), judged


def test_one_text_alone_is_worth_nothing_by_density() -> None:
    result = score_informativeness(
        np.array([[0.3, 0.3, 0.4]]),
        unit(np.eye(4)[:1]),
        np.zeros((0, 0), np.float32),
        [],
        supported=np.ones(1, bool),
        min_cosine=0.5,
    )
    assert result.score.tolist() == [0]


def test_near_duplicates_of_what_was_chosen_are_left_out() -> None:
    vectors = unit(np.array([[1.0, 0], [1, 0.01], [0, 1]]))
    score, texts = np.array([0.5, 0.9, 0.1]), ["a", "b", "c"]
    assert select_diverse(score, vectors, texts, limit=3, max_cosine=0.95) == [1, 2]
    assert select_diverse(score, vectors, texts, limit=1, max_cosine=0.95) == [1]


def test_texts_that_differ_in_a_number_alone_are_left_out_whatever_their_vectors() -> None:
    texts = ["Order 48213: late by 2.5 days", "ORDER 7: late by 11 days", "Order 7: lost", "Order: lost"]
    score = np.array([0.9, 0.8, 0.7, 0.6])
    assert select_diverse(score, np.eye(4, dtype=np.float32), texts, limit=4, max_cosine=0.8) == [0, 2, 3]
