"""What an evaluation found of a version, as one frozen value that is stored as JSON.

Owns the fields and their meaning. Holds ids of stored texts, never a text.
"""

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from registry.bundles.bundle import LABELS
from registry.errors import ReportInvalid
from registry.evaluation import metrics
from registry.evaluation.metrics import Interval, Labels, Probabilities

FORMAT = 1
ROUNDS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutResult:
    """How a version does on the held-out set, each measure with a 95 % bootstrap interval.

    `recall` by class, a class without texts left out; `sources` is the accuracy by corpus. `hits` says which texts
    were judged right, in the set's order, as base64 of packed bits: two versions are compared text by text.
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
        cls,
        probabilities: Probabilities,
        labels: Labels,
        sources: NDArray[np.str_],
        *,
        rounds: int = ROUNDS,
    ) -> Self:
        """Probabilities [n, 3], labels int [n], sources str [n]."""
        right = probabilities.argmax(axis=1) == labels

        def interval(measure: metrics.Measure, rows: NDArray[np.bool_] | None = None) -> Interval:
            chosen = slice(None) if rows is None else rows
            found = metrics.bootstrap(measure, probabilities[chosen], labels[chosen], rounds=rounds)
            return Interval(value=round(found.value, 6), low=round(found.low, 6), high=round(found.high, 6))

        return cls(
            texts=len(labels),
            accuracy=interval(metrics.accuracy),
            macro_f1=interval(metrics.macro_f1),
            ece=interval(metrics.ece),
            # Of the texts of a class, the share judged right: its recall.
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
        """Which texts were judged right: bool [texts]."""
        packed = np.frombuffer(base64.b64decode(self.hits), np.uint8)
        return np.unpackbits(packed, count=self.texts).astype(np.bool_)


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How near the vectors, as they are served, are to the space's own in float32: cosines over some texts.

    `claims_space`: these vectors go into the index. Only then do the cosines have to be high.
    """

    space: str
    claims_space: bool
    mean: float
    worst: float
    texts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """What an answer costs on one thread, in time of the processor, so that what else runs counts little.

    Everything that a prediction needs: the version's encoder and head, and the space's encoder if the version's
    own isn't of the space. `alone_ms`: the median of single texts. `texts_per_second`: in batches of 32.
    """

    engine: str
    alone_ms: float
    texts_per_second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """Bytes of the files of the version's bundle, and of its encoder's; 0 without one."""

    version_bytes: int
    encoder_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Stratum:
    """One cluster of the stored texts: how many of the sample are in it, have feedback, and flipped."""

    texts: int
    judged: int
    flips: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Disagreement:
    """A stored text on which both differ, and by how much: total variation distance, 0 to 1."""

    text_id: str
    distance: float
    champion: str
    candidate: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrectedAccuracy:
    """Accuracy of both on the texts whose right label feedback tells."""

    texts: int
    candidate: float
    champion: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """The candidate against the champion of the moment on a stratified sample of stored texts.

    `matrix[a][b]`: texts that the champion calls a and the candidate b. `flips` of `texts` differ.
    `champion_latency` was measured in the same run. `corrected` is None where feedback tells no label.
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
    """One evaluation of one bundle on one held-out set.

    `bundle` and `data` are the digests that it is stored by. `agreement` is None for a version without an
    encoder, `replay` for the champion itself and where no champion or no stored text was there. `seconds` is how long
    it took, `machine` on what.
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
        """As JSON has it."""
        content = {"format": FORMAT, **asdict(self), "measured_at": self.measured_at.isoformat()}
        if self.replay is not None:
            content["replay"]["flips_share"] = round(self.replay.flips_share, 6)
        return content

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        """Raises ReportInvalid."""
        try:
            if raw["format"] != FORMAT:
                raise ReportInvalid(f"the report has format {raw['format']}: evaluate the version again")
            held, agreement, replay = raw["held_out"], raw["agreement"], raw["replay"]
            return cls(
                **{
                    name: raw[name]
                    for name in (
                        "model",
                        "version",
                        "kind",
                        "bundle",
                        "encoder",
                        "data",
                        "seconds",
                        "machine",
                    )
                },
                held_out=HeldOutResult(
                    texts=held["texts"],
                    accuracy=Interval(**held["accuracy"]),
                    macro_f1=Interval(**held["macro_f1"]),
                    ece=Interval(**held["ece"]),
                    recall={name: Interval(**each) for name, each in held["recall"].items()},
                    sources=dict(held["sources"]),
                    hits=held["hits"],
                ),
                agreement=None if agreement is None else Agreement(**agreement),
                latency=Latency(**raw["latency"]),
                size=ModelSize(**raw["size"]),
                replay=None if replay is None else _replay(replay),
                measured_at=datetime.fromisoformat(raw["measured_at"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise ReportInvalid(f"the report can't be read ({exc!r}): evaluate the version again") from exc


def _replay(raw: Mapping[str, Any]) -> Replay:
    return Replay(
        champion_version=raw["champion_version"],
        champion_bundle=raw["champion_bundle"],
        champion_latency=Latency(**raw["champion_latency"]),
        texts=raw["texts"],
        flips=raw["flips"],
        matrix={said: dict(row) for said, row in raw["matrix"].items()},
        strata=tuple(Stratum(**each) for each in raw["strata"]),
        corrected=None if raw["corrected"] is None else CorrectedAccuracy(**raw["corrected"]),
        furthest=tuple(Disagreement(**each) for each in raw["furthest"]),
    )
