"""Queries move by Rocchio's formula; ranks fuse by Cormack's."""

from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.search.fusion import LIKE, UNLIKE, fuse, rocchio

A, B, C = (UUID(int=number) for number in (1, 2, 3))
X, Y, Z = np.eye(3, dtype=np.float32)


def test_a_query_alone_stays_as_it_is() -> None:
    assert rocchio(X, [], []) == pytest.approx(X)


def test_it_is_rocchio_s_sum_at_unit_length() -> None:
    moved = rocchio(X, [Y, Z], [-X])
    wanted = X + LIKE * (Y + Z) / 2 - UNLIKE * -X
    assert moved == pytest.approx(wanted / np.linalg.norm(wanted), abs=1e-6)


def test_without_a_query_only_the_examples_count() -> None:
    assert rocchio(None, [X], []) == pytest.approx(X)
    moved = rocchio(None, [X], [Y])
    assert moved is not None
    assert moved @ Y < 0 < moved @ X


def test_what_cancels_out_is_nothing() -> None:
    assert rocchio(None, [X, -X], []) is None
    assert rocchio(None, [], []) is None


def test_ranks_fuse_to_the_sum_of_their_reciprocals() -> None:
    fused = fuse({"meaning": [A, B], "keywords": [B, C]})
    assert [each.text_id for each in fused] == [B, A, C]
    assert fused[0].score == pytest.approx(1 / 62 + 1 / 61)
    assert fused[0].ranks == {"meaning": 2, "keywords": 1}
    assert fused[2].ranks == {"meaning": None, "keywords": 2}


@given(st.permutations([A, B, C]), st.permutations([A, B, C]))
def test_what_is_first_in_both_is_first(one: list[UUID], other: list[UUID]) -> None:
    fused = fuse({"one": one, "other": other})
    assert {each.text_id for each in fused} == {A, B, C}
    if one[0] == other[0]:
        assert fused[0].text_id == one[0]
    assert [each.score for each in fused] == sorted((each.score for each in fused), reverse=True)
