"""The held-out set in the package, and as a file."""

import pytest

from registry.bundles.bundle import LABELS
from registry.data.corpora import Example, Part
from registry.data.held_out import HeldOutSet
from registry.errors import CorpusUnavailable


def test_the_one_in_the_package_is_the_rated_held_out_tenth() -> None:
    held = HeldOutSet.load_builtin()
    assert len(held.examples) == 2427
    assert held.digest == "d6ac584177379b2dc1a896086291378ff37fd189001088b214d6fc5993f8fb85"
    assert all(example.rated and example.part is Part.HELD_OUT for example in held.examples)
    assert set(held.labels) == set(range(len(LABELS)))
    assert {source.split("-")[0] for source in held.sources.tolist()} == {"rated"}


def test_it_comes_back_from_its_file_whatever_the_texts_hold() -> None:
    held = HeldOutSet(
        examples=(
            Example(text="a\u2028b\x85c", label=0, source="made", rating=-1.5),
            Example(text="\ufffd é 😀", label=2, source="made"),
        )
    )
    content = held.dump()
    assert HeldOutSet.parse(content, where="here") == held
    assert HeldOutSet.parse(content, where="here").digest == held.digest
    assert held.dump() == content


@pytest.mark.parametrize("content", [b"", b"no gzip", HeldOutSet(examples=()).dump()])
def test_what_is_no_set_is_refused_by_name(content: bytes) -> None:
    with pytest.raises(CorpusUnavailable, match="here"):
        HeldOutSet.parse(content, where="here")
