"""The training of a joint version: an encoder's low-rank update and a head, so that one pass gives vectors and classes.

The loss is cross-entropy for the classes, plus a term that keeps the vectors near those of the original encoder. A run
that was killed resumes at its last checkpoint. Reads held-out texts only to report on them.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from registry.bundles.bundle import LABELS, Bundle, BundleKind, Manifest, draft_folder
from registry.bundles.manifest_schema import HEAD_WEIGHTS, TOKENIZER, UPDATE, Engine
from registry.data.corpora import Example, Part, data_digest
from registry.encoders.inputs import pad_rows
from registry.encoders.sources import SentenceEncoderSource, silence_libraries
from registry.errors import TrainingFailed
from registry.evaluation.metrics import agreement, fit_temperature
from registry.training.head import AttentiveNetwork, deterministic
from registry.training.lora import JointNetwork, StepMetrics
from registry.training.samples import Rows, Samples, batches
from registry.training.token_states import Progress, TextEncoder, collect_vectors

_VALIDATED_ROWS = 64
_REPORTS = 100
_SMOOTHING = 0.95

# A function that builds an encoder and opens it in each engine.
OpenEngines: TypeAlias = Callable[[SentenceEncoderSource], Mapping[Engine, TextEncoder]]


@dataclass(frozen=True, kw_only=True, slots=True)
class JointPlan:
    """The hyperparameters of `train_joint`, which decide its result; `HeadPlan` explains those that it has, too.

    An epoch reads all rated training texts and a new random share of the others, at most `texts` in all. The learning
    rates are the highest of a cosine schedule. The running mean of the weights over about `averaged` steps is evaluated
    and kept. The version is the most accurate checkpoint whose vectors have a mean cosine of at least `least_cosine` on
    the validation part. `budget_minutes` shortens the schedule; the result then depends on the machine.
    """

    seed: int = 0
    epochs: int = 3
    batch: int = 32
    rank: int = 8
    width: int = 128
    attention: int = 8
    dropout: float = 0.3
    input_dropout: float = 0.1
    encoder_dropout: float = 0.1
    learning_rate: float = 1e-3
    head_learning_rate: float = 1e-3
    warm_up: float = 0.05
    weight_decay: float = 0.02
    unrated_weight: float = 0.5
    unrated_share: float = 0.3
    softness: float = 0.35
    rating_weight: float = 0.5
    space_weight: float = 3.0
    averaged: int = 200
    least_cosine: float = 0.987
    texts: int | None = None
    budget_minutes: float | None = None
    threads: int = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class _TokenisedTexts:
    """Texts as token ids, with the original encoder's vectors, float16 [n, d]."""

    ids: Sequence[NDArray[np.int64]]
    lengths: NDArray[np.int64]
    vectors: NDArray[np.float16]

    @classmethod
    def tokenise(
        cls, texts: Sequence[str], source: SentenceEncoderSource, vectors: NDArray[np.float16]
    ) -> "_TokenisedTexts":
        tokenizer = Tokenizer.from_file(str(source.path / TOKENIZER))
        tokenizer.no_padding()
        tokenizer.enable_truncation(source.max_length)
        encodings = tokenizer.encode_batch_fast(list(texts))
        ids = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        return cls(ids=ids, lengths=np.array([len(each) for each in ids]), vectors=vectors)

    def pad(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the texts `rows` as ids and mask, both [b, t]."""
        return pad_rows([self.ids[row] for row in rows], np.int64)


def train_joint(
    examples: Sequence[Example],
    source: SentenceEncoderSource,
    out: Path,
    *,
    name: str,
    original: TextEncoder,
    open_engines: OpenEngines,
    cache: Path,
    plan: JointPlan | None = None,
    checkpoint_seconds: float = 120.0,
    progress: Progress = lambda _step, _share: None,
) -> Bundle:
    """Train a joint version and return its sealed bundle at `out`, with its held-out measures by each CPU engine.

    `original` is the encoder of `source`; `cache` keeps its vectors and the checkpoint. `open_engines` opens the
    trained encoder. Raises TrainingFailed, and any error of `open_engines`.
    """
    plan = plan or JointPlan()
    if original.digest != source.digest:
        raise TrainingFailed(f"{source.name} is {source.digest}, not {original.digest}")
    texts = [example.text for example in examples]
    data, digest = Samples.from_examples(examples), data_digest(examples)
    held = data.rows(Part.HELD_OUT)
    vectors = collect_vectors(texts, original, cache=cache, progress=progress)
    identity = json.dumps([digest, source.digest, asdict(plan)])
    file = cache / f"joint-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.pt"
    with deterministic(seed=plan.seed, threads=plan.threads):
        with silence_libraries():
            network = _network(source, plan)
        run = _TrainingRun(network, data, _TokenisedTexts.tokenise(texts, source, vectors), plan, file)
        chosen = run.finish(checkpoint_seconds, progress)
        network.round_to_half()
    with draft_folder(out) as folder:
        save_file(network.head.tensors(), folder / HEAD_WEIGHTS)
        save_file(network.tensors(), folder / UPDATE)
        merged = replace(source, name=name, update=folder / UPDATE)
        evaluator = _Evaluator(
            head=network.head, texts=texts, data=data, vectors=vectors.astype(np.float32), progress=progress
        )
        encoders = open_engines(merged)
        temperature = evaluator.fit_temperature(encoders[Engine.FP32])
        metrics: dict[str, float] = {}
        for engine, encoder in encoders.items():
            prefix = "" if engine is Engine.FP32 else f"{engine}."
            measured = evaluator.measure(encoder, held, temperature)
            metrics |= {f"{prefix}{measure}": value for measure, value in measured.items()}
        manifest = Manifest(
            kind=BundleKind.JOINT,
            name=name,
            encoder=merged.digest,
            space=source.space,
            labels=LABELS,
            temperature=temperature,
            settings={"base": source.digest, "token_layers": list(source.token_layers)},
            metrics=metrics,
            provenance={"data": digest, "plan": asdict(plan), "chosen": chosen},
        )
        bundle = Bundle.seal(folder, manifest).move_to(out)
    file.unlink(missing_ok=True)
    return bundle


def _network(source: SentenceEncoderSource, plan: JointPlan) -> JointNetwork:
    states = int(source.architecture["hidden_size"]) * len(source.token_layers)
    head = AttentiveNetwork(
        states,
        width=plan.width,
        attention=plan.attention,
        dropout=plan.dropout,
        input_dropout=plan.input_dropout,
    )
    return JointNetwork(
        source.path, head, token_layers=source.token_layers, rank=plan.rank, dropout=plan.encoder_dropout
    )


class _TrainingRun:
    """A training run whose result is the same with and without interruptions."""

    def __init__(
        self, network: JointNetwork, data: Samples, texts: _TokenisedTexts, plan: JointPlan, file: Path
    ) -> None:
        self._network = network
        self._data = data
        self._texts = texts
        self._plan = plan
        self._file = file
        self._optimiser = network.optimiser(
            learning_rate=plan.learning_rate,
            head_learning_rate=plan.head_learning_rate,
            weight_decay=plan.weight_decay,
        )
        self._validation = data.rows(Part.VALIDATION, rated=True)
        self._epoch_steps = math.ceil(len(self._draw(0)) / plan.batch)
        self._steps = plan.epochs * self._epoch_steps
        self._mean = {name: value.detach().clone() for name, value in network.trained().items()}
        self._step = 0
        self._seconds = 0.0
        self._best: dict[str, Any] = {}
        self._smoothed: StepMetrics | None = None

    def finish(self, checkpoint_seconds: float, progress: Progress) -> dict[str, float]:
        """Train the remaining steps and restore the best checkpoint; return its step and its measures."""
        if self._file.exists():
            self._resume()
            progress(f"resuming at step {self._step}", self._share)
        saved = since = time.monotonic()
        order: list[Rows] = []
        while self._share < 1:
            epoch, epoch_step = divmod(self._step, self._epoch_steps)
            if epoch_step == 0 or not order:
                order = self._order(epoch)
            self._train(order[epoch_step])
            now = time.monotonic()
            self._seconds, since = self._seconds + now - since, now
            if self._step % self._epoch_steps in (0, self._epoch_steps // 2) or self._share >= 1:
                self._validate(progress)
            if self._step % max(1, self._steps // _REPORTS) == 0:
                progress(self._report(), min(1.0, self._share))
            if now - saved >= checkpoint_seconds:
                self._save()
                saved = time.monotonic()
        self._save()
        if not self._best:
            raise TrainingFailed(
                f"no checkpoint has a mean cosine of {self._plan.least_cosine} to the space: raise space_weight"
            )
        self._network.resume_from(self._best["trained"])
        return {name: value for name, value in self._best.items() if name != "trained"}

    @property
    def _share(self) -> float:
        """The share of the schedule that is done."""
        budget = self._plan.budget_minutes
        return max(self._step / self._steps, self._seconds / (budget * 60) if budget else 0.0)

    def _draw(self, epoch: int) -> Rows:
        rng = np.random.default_rng([self._plan.seed, epoch])
        train = self._data.rows(Part.TRAIN)
        rated = self._data.rated[train]
        others = rng.permutation(train[~rated])[: int(self._plan.unrated_share * (~rated).sum())]
        return rng.permutation(np.concatenate([train[rated], others]))[: self._plan.texts]

    def _order(self, epoch: int) -> list[Rows]:
        rng = np.random.default_rng([self._plan.seed, epoch, 1])
        return list(batches(rng, self._draw(epoch), self._texts.lengths, self._plan.batch))

    def _train(self, rows: Rows) -> None:
        plan, share = self._plan, self._share
        step = self._network.step(
            self._optimiser,
            share=min(1.0, (share + 1 / self._steps) / plan.warm_up) * (1 + math.cos(math.pi * share)) / 2,
            inputs=self._texts.pad(rows),
            targets=self._data.targets(rows, softness=plan.softness, unrated_weight=plan.unrated_weight),
            vectors=self._texts.vectors[rows].astype(np.float32),
            rating_weight=plan.rating_weight,
            space_weight=plan.space_weight,
        )
        if not math.isfinite(step.loss):
            raise TrainingFailed(f"the loss is {step.loss} after {self._step} steps")
        self._step += 1
        # The mean covers only the steps so far, so that it doesn't stay near the initial weights.
        weight = 1 / min(self._step, plan.averaged)
        for name, value in self._network.trained().items():
            self._mean[name].lerp_(value.detach(), weight)
        old = self._smoothed or step
        self._smoothed = StepMetrics(
            **{
                name: _SMOOTHING * getattr(old, name) + (1 - _SMOOTHING) * value
                for name, value in asdict(step).items()
            }
        )

    def _validate(self, progress: Progress) -> None:
        """Evaluate the running mean on the validation part; keep it if it is the best that is near the space."""
        trained = {name: value.detach().clone() for name, value in self._network.trained().items()}
        self._network.resume_from(self._mean)
        rows = self._validation[np.argsort(self._texts.lengths[self._validation], kind="stable")]
        hits, cosines = [], []
        for start in range(0, len(rows), _VALIDATED_ROWS):
            chunk = rows[start : start + _VALIDATED_ROWS]
            vectors, logits = self._network.predict(*self._texts.pad(chunk))
            hits.append(logits.argmax(axis=1) == self._data.labels[chunk])
            cosines.append((vectors * self._texts.vectors[chunk]).sum(axis=1))
        measured = {
            "step": float(self._step),
            "accuracy": round(float(np.concatenate(hits).mean()), 4),
            "cosine_mean": round(float(np.concatenate(cosines).mean()), 4),
            "cosine_worst": round(float(np.concatenate(cosines).min()), 4),
        }
        self._network.resume_from(trained)
        shown = ", ".join(f"{name} {value:g}" for name, value in measured.items())
        progress(f"validation: {shown}", min(1.0, self._share))
        near = measured["cosine_mean"] >= self._plan.least_cosine
        rank = ("accuracy", "cosine_mean")
        if near and [measured[name] for name in rank] > [self._best.get(name, 0.0) for name in rank]:
            self._best = {**measured, "trained": {name: value.clone() for name, value in self._mean.items()}}

    def _report(self) -> str:
        share, shown = self._share, self._smoothed
        left = self._seconds * (1 - share) / share / 60
        return (
            f"step {self._step} of {self._steps}: loss {shown.loss:.3f}, accuracy {shown.accuracy:.3f}, "
            f"cosine {shown.cosine:.4f}, {left:.0f} min left"
            if shown
            else ""
        )

    def _save(self) -> None:
        content = {
            "step": self._step,
            "seconds": self._seconds,
            "trained": self._network.trained(),
            "mean": self._mean,
            "optimiser": self._optimiser.state_dict(),
            "random": torch.get_rng_state(),
            "best": self._best,
        }
        draft = self._file.with_suffix(".new")
        torch.save(content, draft)
        os.replace(draft, self._file)

    def _resume(self) -> None:
        saved = torch.load(self._file, weights_only=True)
        self._step, self._seconds, self._best = saved["step"], saved["seconds"], saved["best"]
        self._network.resume_from(saved["trained"])
        self._mean = saved["mean"]
        self._optimiser.load_state_dict(saved["optimiser"])
        torch.set_rng_state(saved["random"])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Evaluator:
    """The evaluation of a head, and of the vectors' agreement with the space, by the engines of an encoder."""

    head: AttentiveNetwork
    texts: Sequence[str]
    data: Samples
    vectors: NDArray[np.float32]
    progress: Progress

    def fit_temperature(self, encoder: TextEncoder) -> float:
        """Fit the temperature on the validation part."""
        rows = self.data.rows(Part.VALIDATION, rated=True)
        logits, _ = self._read(encoder, rows)
        return fit_temperature(logits, self.data.labels[rows])

    def measure(self, encoder: TextEncoder, rows: Rows, temperature: float) -> dict[str, float]:
        """Measure the head on some rows, and the vectors on the rated rows."""
        logits, vectors = self._read(encoder, rows)
        rated = self.data.rated[rows]
        near = agreement(vectors[rated], self.vectors[rows[rated]])
        return self.data.measure(logits, temperature, rows) | near

    def _read(self, encoder: TextEncoder, rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Return the rated logits [n, 3] and vectors [n, d] of some rows."""
        logits = np.zeros((len(rows), len(LABELS)))
        vectors = np.zeros((len(rows), self.vectors.shape[1]), dtype=np.float32)
        done = 0
        for batch in encoder.run([self.texts[row] for row in rows]):
            logits[batch.rows] = self.head.predict(batch.tokens, batch.mask)
            vectors[batch.rows] = batch.embedding
            done += len(batch.rows)
            self.progress(f"evaluating by {encoder.engine}", done / len(rows))
        return logits, vectors
