"""The lexicon reads what people type."""

from collections.abc import Sequence

import numpy as np
import pytest

from registry.store.builtin_versions import open_builtin
from serving.inference.heads import Head, load_head
from serving.inference.microbatches import MicroBatch

NEGATED = [
    "I don't like it",
    "It isn't good",
    "It wasn't great, and I can't recommend it",
    "They DON'T love it!",
    "You shouldn't trust them; I won't",
    "'good' isn't the word",
]


def scores(head: Head, texts: Sequence[str]) -> np.ndarray:
    """Score texts as the lexicon sees them: it reads the texts alone."""
    rows = len(texts)
    batch = MicroBatch(
        rows=np.arange(rows),
        texts=tuple(texts),
        embedding=np.zeros((rows, 1), np.float32),
        tokens=np.zeros((rows, 1, 1), np.float32),
        mask=np.ones((rows, 1), bool),
        truncated=np.zeros(rows, bool),
        unknown=np.zeros(rows, bool),
    )
    return np.asarray(head.scores(batch))


@pytest.fixture(scope="module")
def lexicon() -> Head:
    return load_head(open_builtin("lexicon"))


@pytest.mark.parametrize("apostrophe", "\u2018\u2019\u02bc\uff07\u00b4")
def test_a_negation_is_one_with_any_apostrophe(lexicon: Head, apostrophe: str) -> None:
    typed = [text.replace("'", apostrophe) for text in NEGATED]
    np.testing.assert_array_equal(scores(lexicon, typed), scores(lexicon, NEGATED))
    # The first sentence is negative only because it is negated.
    affirmed, negated = scores(lexicon, ["I like it", typed[0]])
    assert affirmed.argmax() != negated.argmax()
