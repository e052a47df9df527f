"""Examples as arrays: their parts, targets and batches, and the measures on a part. Never trains."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from registry.bundles.bundle import LABELS
from registry.data.corpora import Example, Part
from registry.errors import TrainingFailed
from registry.evaluation.metrics import (
    accuracy,
    bootstrap,
    classification_report,
    classification_report_by_group,
)

Rows = NDArray[np.int64]
_POOL = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """The training targets of n texts.

    `soft`: float32 [n, 3]. `ratings`: float32 [n], 0 where `rated`, bool [n], is False. `weights`: float32 [n].
    """

    soft: NDArray[np.float32]
    ratings: NDArray[np.float32]
    rated: NDArray[np.bool_]
    weights: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """The examples as arrays; each array has one row an example."""

    labels: NDArray[np.int64]
    ratings: NDArray[np.float32]
    rated: NDArray[np.bool_]
    sources: NDArray[np.str_]
    parts: NDArray[np.str_]

    @classmethod
    def from_examples(cls, examples: Sequence[Example]) -> "Samples":
        return cls(
            labels=np.array([example.label for example in examples], dtype=np.int64),
            ratings=np.array([example.rating or 0.0 for example in examples], dtype=np.float32),
            rated=np.array([example.rated for example in examples], dtype=np.bool_),
            sources=np.array([example.source for example in examples]),
            parts=np.array([example.part.value for example in examples]),
        )

    def rows(self, part: Part, *, rated: bool = False) -> Rows:
        """Return the rows of a part, or only its rated ones. Raises TrainingFailed if there are none."""
        rows = np.flatnonzero((self.parts == part.value) & (self.rated | (not rated)))
        if not len(rows):
            raise TrainingFailed(f"the examples have no {'rated ' if rated else ''}{part.value} part")
        return rows

    def targets(self, rows: Rows, *, softness: float, unrated_weight: float) -> Targets:
        """Return the targets of some rows; the soft label of a rated text depends on the bounds near its rating."""
        ratings, rated = self.ratings[rows], self.rated[rows]
        hard = np.eye(len(LABELS), dtype=np.float32)[self.labels[rows]]
        positive = 1 / (1 + np.exp(-(ratings - 0.5) / softness))
        negative = 1 / (1 + np.exp((ratings + 0.5) / softness))
        soft = np.stack([negative, np.maximum(1 - positive - negative, 0), positive], axis=1)
        return Targets(
            soft=np.where(rated[:, None], soft, hard).astype(np.float32),
            ratings=ratings,
            rated=rated,
            weights=np.where(rated, 1.0, unrated_weight).astype(np.float32),
        )

    def measure(self, logits: NDArray[np.float64], temperature: float, rows: Rows) -> dict[str, float]:
        """Measure logits [n, 3] on these rows: the rated corpora together, and each source."""
        probabilities = softmax(logits / temperature, axis=1)
        labels, rated, sources = self.labels[rows], self.rated[rows], self.sources[rows]
        groups = {str(source): sources == source for source in sorted(set(sources.tolist()))}
        measures = {
            f"rated.{name}": value
            for name, value in classification_report(probabilities[rated], labels[rated]).items()
        }
        interval = bootstrap(accuracy, probabilities[rated], labels[rated])
        measures |= {
            "rated.accuracy_low": round(interval.low, 4),
            "rated.accuracy_high": round(interval.high, 4),
        }
        return measures | classification_report_by_group(probabilities, labels, groups)


def batches(rng: np.random.Generator, rows: Rows, lengths: NDArray[np.int64], size: int) -> Iterator[Rows]:
    """Yield all rows once, in random batches of texts of similar length."""
    shuffled = rng.permutation(rows)
    ordered: list[Rows] = []
    for start in range(0, len(shuffled), size * _POOL):
        pool = shuffled[start : start + size * _POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        ordered += [pool[first : first + size] for first in range(0, len(pool), size)]
    for index in rng.permutation(len(ordered)):
        yield ordered[index]
