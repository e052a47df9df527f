"""What looking at the whole memory finds: values, and the window that is looked at. Computes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from db.analytics.disagreements import Disagreement
from db.analytics.windows import SampledText, Window
from registry.analysis.mmd import MmdResult

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeRange:
    """A window as a caller gives it; None: now, and as long before as the use case says."""

    since: datetime | None = None
    until: datetime | None = None

    def window(self, length: timedelta, *, until: datetime | None = None) -> Window:
        """The window meant: it ends at `until`, if its end isn't given."""
        end = max(self.until or until or datetime.now(UTC), _EPOCH + length)
        return Window(since=max(self.since or end - length, _EPOCH), until=end)


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Judged predictions of a version, and how many of them are right."""

    version: str
    judged: int
    right: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Topic:
    """A group of texts of like meaning; `examples` are nearest its centre, with their cosine to it."""

    texts: int
    words: Sequence[str]
    sentiments: Mapping[str, int]
    accuracy: Sequence[Accuracy]
    examples: Sequence[tuple[SampledText, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Topics:
    """The topics of a window's sample, the largest first."""

    model: str
    window: Window
    sampled: int
    topics: Sequence[Topic]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviewCandidate:
    """A text that is worth a judgement, and why: the parts of its score, each in 0…1."""

    text: SampledText
    score: float
    uncertainty: float
    density: float
    disagreement: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """The texts most worth a judgement, of `candidates` without one, beside `judged` texts with one."""

    model: str
    window: Window
    candidates: int
    judged: int
    items: Sequence[ReviewCandidate]


@dataclass(frozen=True, kw_only=True, slots=True)
class DisagreementCluster:
    """Texts of like meaning on which two versions differ."""

    texts: int
    words: Sequence[str]
    examples: Sequence[Disagreement]


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionDiff:
    """Where two versions differ in a window: counts of all texts compared, groups of a sample of those asked for."""

    model: str
    window: Window
    matrix: Mapping[tuple[str, str], int]
    sampled: int
    clusters: Sequence[DisagreementCluster]
    complete: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSummary:
    """How a sample was judged: texts by label, by tenth of the confidence and by version; the mean confidence."""

    window: Window
    sampled: int
    labels: Mapping[str, int]
    confidences: Sequence[int]
    versions: Mapping[str, int]
    confidence: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """How a window differs from a reference: in meaning, in labels and in confidence; and its newest texts.

    `labels` and `confidences` are population stability indices, None where too little is known. `novel` texts come
    with the cosine to the nearest text of the reference.
    """

    model: str
    recent: SampleSummary
    reference: SampleSummary
    embeddings: MmdResult | None
    labels: float | None
    confidences: float | None
    novel: Sequence[tuple[SampledText, float]]
