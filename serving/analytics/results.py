"""The results of the analytics, and the window that an analysis reads. Values only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from db.analytics.disagreements import Disagreement
from db.analytics.windows import Coverage, SampledText, Window
from registry.analysis.mmd import MIN_VECTORS, MmdResult

# Drift in meaning is significant below this p-value.
ALPHA: Final = 0.01
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeRange:
    """A window as a caller gives it; None: the default of the analysis."""

    since: datetime | None = None
    until: datetime | None = None

    def window(self, length: timedelta, *, until: datetime | None = None) -> Window:
        """Return the window; by default it is `length` long and ends at `until`, or now."""
        end = max(self.until or until or datetime.now(UTC), _EPOCH + length)
        return Window(since=max(self.since or end - length, _EPOCH), until=end)


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """The number of judged predictions of a version, and of the right ones among them."""

    version: str
    judged: int
    right: int

    @property
    def accuracy(self) -> float:
        return self.right / self.judged


@dataclass(frozen=True, kw_only=True, slots=True)
class Topic:
    """A group of texts of similar meaning; `examples` are the nearest to its centre, with their cosine to it."""

    texts: int
    share: float
    words: Sequence[str]
    sentiments: Mapping[str, int]
    accuracy: Sequence[Accuracy]
    examples: Sequence[tuple[SampledText, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Topics:
    """The topics of a window's sample, the largest first."""

    model: str
    window: Window
    coverage: Coverage
    sampled: int
    topics: Sequence[Topic]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReviewCandidate:
    """A text worth judging, with its score and the parts of the score, each in 0…1."""

    text: SampledText
    score: float
    uncertainty: float
    density: float
    disagreement: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """The texts most worth judging among `candidates` texts without feedback, given `judged` texts with it."""

    model: str
    window: Window
    coverage: Coverage
    candidates: int
    judged: int
    items: Sequence[ReviewCandidate]


@dataclass(frozen=True, kw_only=True, slots=True)
class DisagreementCluster:
    """Texts of similar meaning on which two versions disagree."""

    texts: int
    words: Sequence[str]
    examples: Sequence[Disagreement]


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionDiff:
    """The disagreements of two versions in a window.

    `matrix` counts all compared texts by the two labels; `clusters` groups a sample of the requested disagreements.
    """

    model: str
    window: Window
    matrix: Mapping[tuple[str, str], int]
    sampled: int
    clusters: Sequence[DisagreementCluster]
    complete: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSummary:
    """A sample's texts counted by label, by tenth of the confidence and by version, and its mean confidence."""

    window: Window
    coverage: Coverage
    sampled: int
    labels: Mapping[str, int]
    confidences: Sequence[int]
    versions: Mapping[str, int]
    confidence: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """The difference of a recent window from a reference, in meaning, in labels and in confidence.

    `labels` and `confidences` are population stability indices, None if there are too few texts. `novel` texts come
    with the cosine to the nearest text of the reference.
    """

    model: str
    recent: SampleSummary
    reference: SampleSummary
    embeddings: MmdResult | None
    labels: float | None
    confidences: float | None
    novel: Sequence[tuple[SampledText, float]]

    @property
    def reason(self) -> str | None:
        """The reason why the meanings weren't compared; None if they were."""
        if self.embeddings is not None:
            return None
        sides = (
            ("reference", self.reference, "reference_since and reference_until"),
            ("window", self.recent, "since and until"),
        )
        return "; ".join(
            f"the {name} from {_utc(side.window.since)} to {_utc(side.window.until)} "
            f"has {side.sampled or 'no'} text{'' if side.sampled == 1 else 's'} of this model, and a comparison "
            f"needs {MIN_VECTORS}: choose another one by {parameters}"
            for name, side, parameters in sides
            if side.sampled < MIN_VECTORS
        )


def _utc(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M}Z"
