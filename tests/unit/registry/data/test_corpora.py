"""The split and the labels of texts, and the reading of the archives."""

import io
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from registry.bundles.bundle import LABELS
from registry.data import corpora
from registry.data.corpora import (
    Example,
    Part,
    assign_part,
    data_digest,
    fold,
    label_rating,
    read_rated,
    read_tweets,
)
from registry.errors import CorpusUnavailable


@pytest.mark.parametrize(
    "copy",
    [
        "the film is GREAT",
        "RT @someone: The film is great!!! http://t.co/abc",
        "  The   film...is, great ",
        "The film is great @friend www.example.org",
        "The film &quot;is great&quot;",
    ],
)
def test_near_copies_are_on_one_side(copy: str) -> None:
    assert fold(copy) == fold("The film is great.") == "the film is great"
    assert assign_part(copy) is assign_part("The film is great.")


def test_other_words_are_another_text() -> None:
    assert fold("The film is not great") != fold("The film is great")


def test_a_tenth_is_held_out_and_a_tenth_validates() -> None:
    parts = Counter(assign_part(f"sentence number {number}") for number in range(10_000))
    assert 900 < parts[Part.HELD_OUT] < 1100
    assert 900 < parts[Part.VALIDATION] < 1100


def test_texts_of_nothing_but_punctuation_are_split_too() -> None:
    assert {assign_part(mark * length) for mark in "!?." for length in range(1, 40)} == set(Part)


@pytest.mark.parametrize(
    ("rating", "label"),
    [(0.51, "positive"), (0.5, "neutral"), (-0.5, "neutral"), (-0.51, "negative"), (0.0, "neutral")],
)
def test_rating_bounds_are_neutral(rating: float, label: str) -> None:
    assert LABELS[label_rating(rating)] == label


def test_data_digest_changes_with_a_label() -> None:
    first = [Example(text="a", label=0, source="s")]
    assert data_digest(first) == data_digest(list(first))
    assert data_digest(first) != data_digest([Example(text="a", label=1, source="s")])


def test_rated_archive_is_read(tmp_path: Path) -> None:
    lines = "\ufeff1_1\t-0.9\tbad thing.\r\n1_2\t0.2\tsome thing\twith a tab\r\n\r\n1_3\t3.0\t \r\n"
    inner = tar({name: lines.encode() for name in corpora.RATED_FILES.values()})
    archive = tmp_path / corpora.RATED_ARCHIVE
    archive.write_bytes(tar({corpora.RATED_DATA: inner}))
    result = read_rated(archive)
    assert [example.source for example in result] == [s for s in corpora.RATED_FILES for _ in range(2)]
    assert result[0] == Example(text="bad thing.", label=0, source="rated-tweets", rating=-0.9)
    assert result[1].text == "some thing\twith a tab"


def test_tweets_are_read(tmp_path: Path) -> None:
    archive = tmp_path / corpora.TWEETS_ARCHIVE
    with zipfile.ZipFile(archive, "w") as wheel:
        rows = b'sentiment,confidence,text\nnegative,1,"no, \xff never"\npositive,,yes\nneutral,1, \n'
        wheel.writestr(corpora.TWEETS_FILE, rows)
    result = read_tweets(archive)
    assert result == [
        Example(text="no, \ufffd never", label=0, source="tweets"),
        Example(text="yes", label=2, source="tweets"),
    ]
    assert not result[0].rated


@pytest.mark.parametrize("read", [read_rated, read_tweets])
def test_broken_archive_is_named(tmp_path: Path, read) -> None:
    archive = tmp_path / "broken"
    archive.write_bytes(b"nothing")
    with pytest.raises(CorpusUnavailable, match="broken"):
        read(archive)


def test_archive_of_another_digest_is_refused(tmp_path: Path) -> None:
    for name in (corpora.RATED_ARCHIVE, corpora.TWEETS_ARCHIVE):
        (tmp_path / name).write_bytes(b"forged")
    with pytest.raises(CorpusUnavailable, match="sha256"):
        corpora.load(tmp_path)


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
