"""Clusters of similar texts, their distinctive words, and unusual inputs."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.analysis.clusters import MIN_CLUSTER_SIZE, cluster_vectors, find_distinctive_words
from tests.support import breadth


def unit(rows):
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def around(centres, each, *, noise=0.1, seed=0):
    random = np.random.default_rng(seed)
    centres = np.repeat(np.asarray(centres, np.float64), each, axis=0)
    return unit(centres + noise * random.standard_normal(centres.shape))


def test_three_heaps_are_three_groups_the_largest_first_and_their_centres_first() -> None:
    centres = np.eye(16)[:3]
    vectors = np.concatenate(
        [around(centres[:1], 40), around(centres[1:2], 20, seed=1), around(centres[2:], 30, seed=2)]
    )
    groups = cluster_vectors(vectors, max_clusters=3)
    assert [len(group.rows) for group in groups] == [40, 30, 20]
    assert set(groups[0].rows) == set(range(40))
    for group in groups:
        assert list(group.cosines) == sorted(group.cosines, reverse=True)
        centre = unit(vectors[group.rows].mean(axis=0)[None])[0]
        np.testing.assert_allclose(group.cosines, vectors[group.rows] @ centre, atol=1e-5)


def test_the_same_seed_gives_the_same_groups() -> None:
    vectors = around(np.eye(8), 20, noise=0.6)
    first, again = (cluster_vectors(vectors, max_clusters=5, seed=3) for _ in range(2))
    assert [group.rows.tolist() for group in first] == [group.rows.tolist() for group in again]


@given(st.integers(0, 60), st.integers(1, 20), st.booleans(), st.integers(0, 5))
@settings(max_examples=breadth.examples(60), deadline=None)
def test_every_row_is_in_exactly_one_group_and_there_are_never_too_many(
    rows: int, most: int, same: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    vectors = unit(random.standard_normal((rows, 6))) if rows else np.zeros((0, 6), np.float32)
    if same and rows:
        vectors = np.repeat(vectors[:1], rows, axis=0)
    groups = cluster_vectors(vectors, max_clusters=most, seed=seed)
    assert sorted(row for group in groups for row in group.rows) == list(range(rows))
    assert len(groups) <= max(1, min(most, rows // MIN_CLUSTER_SIZE))


def test_words_tell_the_groups_apart_and_common_ones_tell_nothing() -> None:
    texts = [f"the battery lasts {n} days" for n in range(10)] + [
        f"the screen is bright {n}" for n in range(10)
    ]
    vectors = around(np.eye(8)[:2], 10)
    groups = cluster_vectors(vectors, max_clusters=2)
    by_row = {
        int(group.rows[0]) // 10: words
        for group, words in zip(groups, find_distinctive_words(texts, groups), strict=True)
    }
    assert set(by_row[0][:3]) == {"battery", "lasts", "days"}
    assert by_row[1] == ["bright", "screen"]
    assert all("the" not in words for words in by_row.values())


def test_words_that_are_frequent_in_all_texts_tell_nothing_in_any_language() -> None:
    """Nobody has a list of the function words of this language."""
    texts = [f"blik {'vara' if n % 3 else 'zor'} dako{n % 4} mel" for n in range(40)]
    texts += [f"{'blik' if n % 4 else 'zor'} vara pirel{n % 4} mel" for n in range(40)]
    groups = cluster_vectors(around(np.eye(8)[:2], 40), max_clusters=2)
    words = {
        int(group.rows[0]) // 40: found
        for group, found in zip(groups, find_distinctive_words(texts, groups), strict=True)
    }
    assert set(words[0][:4]) == {"dako0", "dako1", "dako2", "dako3"}
    assert set(words[1][:4]) == {"pirel0", "pirel1", "pirel2", "pirel3"}
    assert not {"blik", "mel", "vara"} & {*words[0], *words[1]}


def test_a_group_alone_is_compared_with_the_other_texts_of_the_window() -> None:
    texts = [f"ordered a phone, box {n}, came late" for n in range(9)]
    window = [*texts, *(f"ordered a phone, box {n}, works well" for n in range(40))]
    groups = cluster_vectors(around(np.eye(4)[:1], 9), max_clusters=1)
    assert find_distinctive_words(texts, groups, background=window) == [["came", "late"]]
    assert set(find_distinctive_words(texts, groups, background=texts)[0]) >= {"came", "late", "phone"}


def test_a_group_alone_tells_its_frequent_words_and_wordless_texts_none() -> None:
    texts = ["good good phone", "good case", "!!!"]
    groups = cluster_vectors(around(np.eye(4)[:1], 3), max_clusters=1)
    assert find_distinctive_words(texts, groups) == [["good"]]
    assert find_distinctive_words(["!", "?", "…"], groups) == [[]]
    assert (
        find_distinctive_words(["same"] * 16, cluster_vectors(around(np.eye(4)[:2], 8), max_clusters=2))
        is not None
    )
