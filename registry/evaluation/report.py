"""The report of a version's evaluation: a frozen value that is stored as JSON.

Owns the fields and their meaning. Holds ids of stored texts, never a text.
"""

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from registry.bundles.bundle import LABELS
from registry.errors import ReportInvalid
from registry.evaluation import metrics
from registry.evaluation.metrics import Interval, Labels, Probabilities

FORMAT = 1
ROUNDS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutResult:
    """The measures of a version on the held-out set, each with a 95 % bootstrap interval.

    `recall` is by class, without classes that have no texts; `sources` is the accuracy by corpus. `hits` is base64 of
    one bit a text, in the set's order: 1 if the version is right. Two versions are compared text by text with it.
    """

    texts: int
    accuracy: Interval
    macro_f1: Interval
    ece: Interval
    recall: Mapping[str, Interval]
    sources: Mapping[str, float]
    hits: str = field(repr=False)

    @classmethod
    def measure(
        cls, probabilities: Probabilities, labels: Labels, sources: NDArray[np.str_], *, rounds: int = ROUNDS
    ) -> Self:
        """Measure probabilities [n, 3] by labels, int [n], and sources, str [n]."""
        right = probabilities.argmax(axis=1) == labels

        def interval(measure: metrics.Measure, rows: NDArray[np.bool_] | None = None) -> Interval:
            chosen = slice(None) if rows is None else rows
            exact = metrics.bootstrap(measure, probabilities[chosen], labels[chosen], rounds=rounds)
            return Interval(value=round(exact.value, 6), low=round(exact.low, 6), high=round(exact.high, 6))

        return cls(
            texts=len(labels),
            accuracy=interval(metrics.accuracy),
            macro_f1=interval(metrics.macro_f1),
            ece=interval(metrics.ece),
            # The accuracy on the texts of a class is its recall.
            recall={
                name: interval(metrics.accuracy, labels == index)
                for index, name in enumerate(LABELS)
                if (labels == index).any()
            },
            sources={
                str(source): round(float(right[sources == source].mean()), 6) for source in np.unique(sources)
            },
            hits=base64.b64encode(np.packbits(right).tobytes()).decode(),
        )

    @property
    def right(self) -> NDArray[np.bool_]:
        """The texts on which the version is right: bool [texts]."""
        packed = np.frombuffer(base64.b64decode(self.hits), np.uint8)
        return np.unpackbits(packed, count=self.texts).astype(np.bool_)


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """The cosines of the served vectors to the space's own in float32, over some texts.

    `claims_space`: these vectors go into the index. Only then must the cosines be high.
    """

    space: str
    claims_space: bool
    mean: float
    worst: float
    texts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """The cost of an answer on one thread, in processor time, which other load hardly changes.

    Covers all that a prediction needs: the version's encoder and head, and the space's encoder if the version's
    own isn't of the space. `alone_ms` is the median of single texts; `texts_per_second` is in batches of 32.
    """

    engine: str
    alone_ms: float
    texts_per_second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """The bytes of the version's bundle and of its encoder's; 0 without an encoder."""

    version_bytes: int
    encoder_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Stratum:
    """The number of sampled texts in one cluster, of those with feedback (`judged`), and of those that flipped."""

    texts: int
    judged: int
    flips: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Disagreement:
    """A stored text on which both differ, and their total variation distance, 0 to 1."""

    text_id: str
    distance: float
    champion: str
    candidate: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrectedAccuracy:
    """The accuracy of both on the texts whose right label is known from feedback."""

    texts: int
    candidate: float
    champion: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """The comparison of a candidate with the present champion on a stratified sample of stored texts.

    `matrix[a][b]` counts texts with the label a by the champion and b by the candidate; `flips` of `texts` differ.
    `champion_latency` was measured in the same run. `corrected` is None if no text has a label from feedback.
    """

    champion_version: str
    champion_bundle: str
    champion_latency: Latency
    texts: int
    flips: int
    matrix: Mapping[str, Mapping[str, int]]
    strata: tuple[Stratum, ...]
    corrected: CorrectedAccuracy | None
    furthest: tuple[Disagreement, ...]

    @property
    def flips_share(self) -> float:
        return self.flips / self.texts if self.texts else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationReport:
    """The evaluation of one bundle on one held-out set.

    `bundle` and `data` are the digests that it is stored by. `agreement` is None for a version without an encoder.
    `replay` is None for the champion itself, without a champion, and without stored texts. `seconds` is the duration
    and `machine` the hardware.
    """

    model: str
    version: str
    kind: str
    bundle: str
    encoder: str | None
    data: str
    held_out: HeldOutResult
    agreement: Agreement | None
    latency: Latency
    size: ModelSize
    replay: Replay | None
    measured_at: datetime
    seconds: float
    machine: str

    def dump(self) -> dict[str, Any]:
        """Return the JSON object that `parse` reads."""
        content = {"format": FORMAT, **asdict(self), "measured_at": self.measured_at.isoformat()}
        if self.replay is not None:
            content["replay"]["flips_share"] = round(self.replay.flips_share, 6)
        return content

    def measures(self) -> dict[str, float]:
        """Return the figures to compare versions by, by name."""
        measures = {
            "accuracy": self.held_out.accuracy.value,
            "macro_f1": self.held_out.macro_f1.value,
            "ece": self.held_out.ece.value,
            "alone_ms": self.latency.alone_ms,
        }
        measures |= {f"recall_{label}": recall.value for label, recall in self.held_out.recall.items()}
        if self.agreement is not None:
            measures |= {"cosine_mean": self.agreement.mean, "cosine_worst": self.agreement.worst}
        if self.replay is not None:
            measures["flips_share"] = self.replay.flips_share
        return measures

    def dump_figures(self) -> dict[str, Any]:
        """Return what `dump` returns without the ids of texts, which are erased with their texts."""
        content = self.dump()
        if content["replay"] is not None:
            del content["replay"]["furthest"]
        return content

    @staticmethod
    def parse(raw: Mapping[str, Any]) -> "EvaluationReport":
        """Parse a stored report. Raises ReportInvalid."""
        try:
            if raw["format"] != FORMAT:
                raise ReportInvalid(f"the report has format {raw['format']}: evaluate the version again")
            return _REPORT.validate_python(raw)
        except (KeyError, TypeError) as exc:
            raise ReportInvalid(f"the report can't be read ({exc!r}): evaluate the version again") from exc
        except ValidationError as exc:
            first = exc.errors()[0]
            field_name = ".".join(map(str, first["loc"]))
            reason = first["msg"].removeprefix("Value error, ")
            raise ReportInvalid(
                f"the report can't be read ({field_name}: {reason}): evaluate the version again"
            ) from exc


_REPORT = TypeAdapter(EvaluationReport)
