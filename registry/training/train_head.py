"""Examples to version bundles: an attentive head on frozen token states, and the lexicon's calibration.

Deterministic by its plan; never reads a held-out text except to report on it. Never registers or serves.
"""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from registry.bundles.bundle import LABELS, Bundle, BundleKind, Manifest
from registry.bundles.manifest_schema import HEAD_WEIGHTS, lexicon_features
from registry.data.corpora import Example, Part, data_digest
from registry.errors import TrainingFailed
from registry.evaluation.metrics import fit_temperature
from registry.training.features import Progress, TextEncoder, TokenStates, collect
from registry.training.head import AttentiveNetwork, deterministic
from registry.training.samples import Samples, batches, softmax


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


def train_head(
    examples: Sequence[Example],
    encoder: TextEncoder,
    out: Path,
    *,
    name: str,
    space: str | None,
    cache: Path,
    plan: HeadPlan | None = None,
    other_engines: Mapping[str, TextEncoder] | None = None,
    progress: Progress = lambda _step, _share: None,
) -> Bundle:
    """A sealed head bundle at `out`, with its measures on the held-out part.

    `judges` are further engines of the same encoder; what the head scores on their states is reported as
    `engine.group.measure`. Raises TrainingFailed.
    """
    plan = plan or HeadPlan()
    data = Samples.from_examples(examples)
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
        metrics = data.judged(softmax(network.logits(states, held) / temperature), held)
        for engine, judge in (other_engines or {}).items():
            seen = collect([examples[row].text for row in held], judge, cache=cache, progress=progress)
            logits = network.logits(seen, np.arange(len(held)))
            judged = data.judged(softmax(logits / temperature), held)
            metrics |= {f"{engine}.{measure}": value for measure, value in judged.items()}
    manifest = Manifest(
        kind=BundleKind.HEAD,
        name=name,
        encoder=encoder.digest,
        space=space,
        labels=LABELS,
        temperature=temperature,
        metrics=metrics,
        provenance={"data": data_digest(examples), "plan": asdict(plan)},
    )
    return sealed(out, manifest, {HEAD_WEIGHTS: network.tensors()})


def fit_lexicon(
    examples: Sequence[Example], compound: Callable[[str], float], out: Path, *, name: str, lexicon: str
) -> Bundle:
    """A sealed lexicon bundle at `out`: a softmax over `compound`, the lexicon's score of a text in -1 to 1.

    `lexicon` is the digest of the lexicon that `compound` reads.
    """
    from scipy.optimize import minimize

    data = Samples.from_examples(examples)
    features = lexicon_features([compound(example.text) for example in examples]).astype(np.float64)
    train = data.rows(Part.TRAIN, rated=True)
    inputs, wanted = features[train], np.eye(len(LABELS))[data.labels[train]]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight = flat.reshape(inputs.shape[1], len(LABELS))
        scores = softmax(inputs @ weight)
        value = -np.log((scores * wanted).sum(axis=1)).mean() + 1e-4 * np.square(weight).sum()
        gradient = inputs.T @ (scores - wanted) / len(inputs) + 2e-4 * weight
        return float(value), gradient.ravel()

    start = np.zeros(inputs.shape[1] * len(LABELS))
    fitted = minimize(loss, start, jac=True, method="L-BFGS-B")
    weight = fitted.x.reshape(inputs.shape[1], len(LABELS)).astype(np.float32)
    validation, held = data.rows(Part.VALIDATION, rated=True), data.rows(Part.HELD_OUT)
    temperature = fit_temperature(features[validation] @ weight, data.labels[validation])
    manifest = Manifest(
        kind=BundleKind.LEXICON,
        name=name,
        labels=LABELS,
        temperature=temperature,
        settings={"lexicon": lexicon},
        metrics=data.judged(softmax(features[held] @ weight / temperature), held),
        provenance={"data": data_digest(examples)},
    )
    return sealed(out, manifest, {HEAD_WEIGHTS: {"weight": weight}})


def sealed(out: Path, manifest: Manifest, files: Mapping[str, Mapping[str, NDArray[Any]]]) -> Bundle:
    """A bundle at `out` with these files of tensors, there whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".training-") as scratch:
        folder = Path(scratch) / "bundle"
        folder.mkdir()
        for name, tensors in files.items():
            save_file(dict(tensors), folder / name)
        return Bundle.seal(folder, manifest).move_to(out)


def _fit(
    network: AttentiveNetwork, states: TokenStates, data: Samples, plan: HeadPlan, progress: Progress
) -> None:
    rng = np.random.default_rng(plan.seed)
    train = data.rows(Part.TRAIN)
    optimiser = network.optimiser(learning_rate=plan.learning_rate, weight_decay=plan.weight_decay)
    steps = plan.epochs * math.ceil(len(train) / plan.batch)
    step = 0
    for _ in range(plan.epochs):
        for rows in batches(rng, train, states.lengths, plan.batch):
            share = min(1.0, step / plan.warm_up_steps) * (1 + math.cos(math.pi * step / steps)) / 2
            loss = network.step(
                optimiser,
                learning_rate=plan.learning_rate * share,
                inputs=states.padded(rows),
                targets=data.targets(rows, softness=plan.softness, unrated_weight=plan.unrated_weight),
                rating_weight=plan.rating_weight,
            )
            if not math.isfinite(loss):
                raise TrainingFailed(f"the loss is {loss} after {step} steps")
            step += 1
            progress("training", min(1.0, step / steps))
