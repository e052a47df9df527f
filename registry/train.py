"""Examples to version bundles: an attentive head on frozen token states, and the lexicon's calibration.

Deterministic by its plan; never reads a held-out text except to report on it. Never registers or serves.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from registry.bundle import LABELS, Bundle, Kind, Manifest
from registry.corpora import Example, Part, data_digest
from registry.errors import TrainingFailed
from registry.evaluate import accuracy, bootstrap, fit_temperature, report, report_by_source
from registry.features import Progress, StateEncoder, TokenStates, collect
from registry.layout import HEAD_WEIGHTS, lexicon_features
from registry.network import AttentiveNetwork, deterministic

Rows = NDArray[np.int64]
_POOL = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadPlan:
    """Every number that decides what `train_head` makes.

    Ratings become soft labels by a logistic of width `softness` around the bounds of the classes; the mean
    rating itself is an auxiliary target. Texts without a rating weigh `unrated_weight` and have an output of
    their own, because what their raters call neutral differs; only the rated output is served.
    """

    seed: int = 0
    epochs: int = 6
    batch: int = 128
    width: int = 128
    attention: int = 8
    dropout: float = 0.3
    input_dropout: float = 0.1
    learning_rate: float = 1e-3
    warm_up_steps: int = 200
    weight_decay: float = 0.02
    unrated_weight: float = 0.3
    softness: float = 0.35
    rating_weight: float = 0.5
    threads: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class _Data:
    """The examples as arrays, with the rows of each part."""

    labels: NDArray[np.int64]
    ratings: NDArray[np.float32]
    rated: NDArray[np.bool_]
    sources: NDArray[np.str_]
    parts: NDArray[np.str_]

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "_Data":
        return cls(
            labels=np.array([example.label for example in examples], dtype=np.int64),
            ratings=np.array([example.rating or 0.0 for example in examples], dtype=np.float32),
            rated=np.array([example.rated for example in examples], dtype=np.bool_),
            sources=np.array([example.source for example in examples]),
            parts=np.array([example.part.value for example in examples]),
        )

    def rows(self, part: Part, *, rated: bool = False) -> Rows:
        found = np.flatnonzero((self.parts == part.value) & (self.rated | (not rated)))
        if not len(found):
            raise TrainingFailed(f"the examples have no {'rated ' if rated else ''}{part.value} part")
        return found

    def soft_labels(self, softness: float) -> NDArray[np.float32]:
        """Float32 [n, 3]: the class, or for a rated text how near its rating is to the bounds."""
        hard = np.eye(len(LABELS), dtype=np.float32)[self.labels]
        positive = 1 / (1 + np.exp(-(self.ratings - 0.5) / softness))
        negative = 1 / (1 + np.exp((self.ratings + 0.5) / softness))
        soft = np.stack([negative, np.maximum(1 - positive - negative, 0), positive], axis=1)
        return np.where(self.rated[:, None], soft, hard).astype(np.float32)


def train_head(
    examples: Sequence[Example],
    encoder: StateEncoder,
    out: Path,
    *,
    name: str,
    space: str | None,
    cache: Path,
    plan: HeadPlan | None = None,
    judges: Mapping[str, StateEncoder] | None = None,
    progress: Progress = lambda _step, _share: None,
) -> Bundle:
    """A sealed head bundle at `out`, with its measures on the held-out part.

    `judges` are further engines of the same encoder; what the head scores on their states is reported as
    `engine.group.measure`. Raises TrainingFailed.
    """
    plan = plan or HeadPlan()
    data = _Data.of(examples)
    states = collect([example.text for example in examples], encoder, cache=cache, progress=progress)
    with deterministic(seed=plan.seed, threads=plan.threads):
        network = AttentiveNetwork(
            states.width,
            width=plan.width,
            attention=plan.attention,
            dropout=plan.dropout,
            input_dropout=plan.input_dropout,
        )
        _fit(network, states, data, plan, progress)
        network.round_to_half()
        validation = data.rows(Part.VALIDATION, rated=True)
        temperature = fit_temperature(network.logits(states, validation), data.labels[validation])
        held = data.rows(Part.HELD_OUT)
        metrics = _judged(_softmax(network.logits(states, held) / temperature), data, held)
        for engine, judge in (judges or {}).items():
            seen = collect([examples[row].text for row in held], judge, cache=cache, progress=progress)
            logits = network.logits(seen, np.arange(len(held)))
            judged = _judged(_softmax(logits / temperature), data, held)
            metrics |= {f"{engine}.{measure}": value for measure, value in judged.items()}
    manifest = Manifest(
        kind=Kind.HEAD,
        name=name,
        encoder=encoder.digest,
        space=space,
        labels=LABELS,
        temperature=temperature,
        metrics=metrics,
        provenance={"data": data_digest(examples), "plan": asdict(plan)},
    )
    return _sealed(out, manifest, network.tensors())


def fit_lexicon(
    examples: Sequence[Example], compound: Callable[[str], float], out: Path, *, name: str, lexicon: str
) -> Bundle:
    """A sealed lexicon bundle at `out`: a softmax over `compound`, the lexicon's score of a text in -1 to 1.

    `lexicon` is the digest of the lexicon that `compound` reads.
    """
    from scipy.optimize import minimize

    data = _Data.of(examples)
    features = lexicon_features([compound(example.text) for example in examples]).astype(np.float64)
    train = data.rows(Part.TRAIN, rated=True)
    inputs, wanted = features[train], np.eye(len(LABELS))[data.labels[train]]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight = flat.reshape(inputs.shape[1], len(LABELS))
        scores = _softmax(inputs @ weight)
        value = -np.log((scores * wanted).sum(axis=1)).mean() + 1e-4 * np.square(weight).sum()
        gradient = inputs.T @ (scores - wanted) / len(inputs) + 2e-4 * weight
        return float(value), gradient.ravel()

    start = np.zeros(inputs.shape[1] * len(LABELS))
    fitted = minimize(loss, start, jac=True, method="L-BFGS-B")
    weight = fitted.x.reshape(inputs.shape[1], len(LABELS)).astype(np.float32)
    validation, held = data.rows(Part.VALIDATION, rated=True), data.rows(Part.HELD_OUT)
    temperature = fit_temperature(features[validation] @ weight, data.labels[validation])
    manifest = Manifest(
        kind=Kind.LEXICON,
        name=name,
        labels=LABELS,
        temperature=temperature,
        settings={"lexicon": lexicon},
        metrics=_judged(_softmax(features[held] @ weight / temperature), data, held),
        provenance={"data": data_digest(examples)},
    )
    return _sealed(out, manifest, {"weight": weight})


def _fit(
    network: AttentiveNetwork, states: TokenStates, data: _Data, plan: HeadPlan, progress: Progress
) -> None:
    rng = np.random.default_rng(plan.seed)
    train = data.rows(Part.TRAIN)
    soft = data.soft_labels(plan.softness)
    weights = np.where(data.rated, 1.0, plan.unrated_weight).astype(np.float32)
    optimiser = network.optimiser(learning_rate=plan.learning_rate, weight_decay=plan.weight_decay)
    steps = plan.epochs * math.ceil(len(train) / plan.batch)
    step = 0
    for _ in range(plan.epochs):
        for rows in _batches(rng, train, states.lengths, plan.batch):
            share = min(1.0, step / plan.warm_up_steps) * (1 + math.cos(math.pi * step / steps)) / 2
            loss = network.step(
                optimiser,
                learning_rate=plan.learning_rate * share,
                inputs=states.padded(rows),
                soft=soft[rows],
                ratings=data.ratings[rows],
                rated=data.rated[rows],
                weights=weights[rows],
                rating_weight=plan.rating_weight,
            )
            if not math.isfinite(loss):
                raise TrainingFailed(f"the loss is {loss} after {step} steps")
            step += 1
            progress("training", min(1.0, step / steps))


def _batches(rng: np.random.Generator, rows: Rows, lengths: NDArray[np.int64], size: int) -> Iterator[Rows]:
    """All rows once, in random batches of texts of like length."""
    drawn = rng.permutation(rows)
    batches: list[Rows] = []
    for start in range(0, len(drawn), size * _POOL):
        pool = drawn[start : start + size * _POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[at : at + size] for at in range(0, len(pool), size)]
    for index in rng.permutation(len(batches)):
        yield batches[index]


def _judged(probabilities: NDArray[np.float64], data: _Data, held: Rows) -> dict[str, float]:
    """The measures on the held-out rows: the rated corpora together, and each source."""
    labels, rated, sources = data.labels[held], data.rated[held], data.sources[held]
    groups = {str(source): sources == source for source in sorted(set(sources.tolist()))}
    found = {f"rated.{name}": value for name, value in report(probabilities[rated], labels[rated]).items()}
    interval = bootstrap(accuracy, probabilities[rated], labels[rated])
    found |= {"rated.accuracy_low": round(interval.low, 4), "rated.accuracy_high": round(interval.high, 4)}
    return found | report_by_source(probabilities, labels, groups)


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    normed: NDArray[np.float64] = scores / scores.sum(axis=1, keepdims=True)
    return normed


def _sealed(out: Path, manifest: Manifest, tensors: Mapping[str, NDArray[Any]]) -> Bundle:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".training-") as scratch:
        folder = Path(scratch) / "bundle"
        folder.mkdir()
        save_file(dict(tensors), folder / HEAD_WEIGHTS)
        return Bundle.seal(folder, manifest).move_to(out)
