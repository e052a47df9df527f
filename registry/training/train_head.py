"""The training of an attentive head on frozen token states, from examples to a version's bundle.

Deterministic by its plan. Reads held-out texts only to report on them. Never registers or serves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from registry.bundles.bundle import LABELS, Bundle, BundleKind, Manifest, draft_folder
from registry.bundles.manifest_schema import HEAD_WEIGHTS
from registry.data.corpora import Example, Part, data_digest
from registry.errors import TrainingFailed
from registry.evaluation.metrics import fit_temperature
from registry.training.head import AttentiveNetwork, deterministic
from registry.training.samples import Samples, batches
from registry.training.token_states import Progress, TextEncoder, TokenStates, collect_states


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadPlan:
    """The hyperparameters of `train_head`, which decide its result.

    A logistic of width `softness` around the bounds of the classes turns ratings into soft labels; the mean rating is
    an auxiliary target. Texts without a rating have the weight `unrated_weight` and a separate output, because their
    raters use "neutral" differently; only the rated output is served.
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
    """Train a head and return its sealed bundle at `out`, with its measures on the held-out part.

    `other_engines` are further engines of the same encoder; the measures on their states are reported as
    `engine.group.measure`. Raises TrainingFailed.
    """
    plan = plan or HeadPlan()
    data = Samples.from_examples(examples)
    states = collect_states([example.text for example in examples], encoder, cache=cache, progress=progress)
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
        metrics = data.measure(network.logits(states, held), temperature, held)
        held_texts = [examples[row].text for row in held]
        for engine, other in (other_engines or {}).items():
            other_states = collect_states(held_texts, other, cache=cache, progress=progress)
            logits = network.logits(other_states, np.arange(len(held)))
            measured = data.measure(logits, temperature, held)
            metrics |= {f"{engine}.{measure}": value for measure, value in measured.items()}
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
    with draft_folder(out) as folder:
        save_file(network.tensors(), folder / HEAD_WEIGHTS)
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
                inputs=states.pad(rows),
                targets=data.targets(rows, softness=plan.softness, unrated_weight=plan.unrated_weight),
                rating_weight=plan.rating_weight,
            )
            if not math.isfinite(loss):
                raise TrainingFailed(f"the loss is {loss} after {step} steps")
            step += 1
            progress("training", min(1.0, step / steps))
