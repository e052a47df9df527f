"""Examples as arrays: soft labels, batches and parts."""

import numpy as np
import pytest

from registry.bundles.bundle import LABELS
from registry.data.corpora import Example, Part, assign_part
from registry.errors import TrainingFailed
from registry.training.samples import Samples, batches

RATINGS = (-3.0, -0.5, 0.0, 0.5, 3.0, None)


def samples() -> Samples:
    return Samples.from_examples(
        [
            Example(text=f"text {number}", label=LABELS.index("neutral"), source="some", rating=rating)
            for number, rating in enumerate(RATINGS)
        ]
    )


def test_soft_labels_follow_the_rating_and_are_hard_without_one() -> None:
    targets = samples().targets(np.arange(6), softness=0.35, unrated_weight=0.3)
    assert np.allclose(targets.soft.sum(axis=1), 1, atol=1e-6)
    assert targets.soft.argmax(axis=1).tolist()[0::2] == [0, 1, 2]
    assert targets.soft[1, 0] == pytest.approx(0.5)
    assert targets.soft[3, 2] == pytest.approx(0.5)
    assert targets.soft[5].tolist() == [0, 1, 0]
    assert targets.weights.tolist() == pytest.approx([1, 1, 1, 1, 1, 0.3])
    assert targets.rated.tolist() == [True] * 5 + [False]


def test_batches_hold_every_row_once_and_texts_of_like_length() -> None:
    lengths = np.arange(1000) % 50
    results = list(batches(np.random.default_rng(0), np.arange(1000), lengths, 32))
    assert sorted(np.concatenate(results).tolist()) == list(range(1000))
    assert max(int(np.ptp(lengths[rows])) for rows in results) < 4
    again = list(batches(np.random.default_rng(0), np.arange(1000), lengths, 32))
    assert all((one == two).all() for one, two in zip(results, again, strict=True))


def test_part_without_rows_is_refused_by_name() -> None:
    text = next(
        text for text in (f"text {number}" for number in range(99)) if assign_part(text) is Part.TRAIN
    )
    only = Samples.from_examples([Example(text=text, label=0, source="some")])
    assert only.rows(Part.TRAIN).tolist() == [0]
    with pytest.raises(TrainingFailed, match="no held-out part"):
        only.rows(Part.HELD_OUT)
    with pytest.raises(TrainingFailed, match="no rated train part"):
        only.rows(Part.TRAIN, rated=True)
