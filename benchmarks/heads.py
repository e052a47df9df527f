"""What the champion's head is worth, and what it costs: against logistic regression on mean-pooled vectors.

Both see the rated corpora's training part alone and are measured on its held-out tenth; each CPU engine is measured
for its vectors' agreement with fp32, its neighbours, and the time that the head adds to a pass.
Run by `python -m benchmarks.heads`.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from benchmarks.load import CACHE
from benchmarks.report import report
from registry import corpora, evaluate
from registry.bootstrap import builtin
from registry.bundle import Bundle
from registry.corpora import Part
from registry.export import build_encoder, default_source
from registry.layout import Engine
from serving.encoder import Encoder, open_encoder
from serving.heads import Head, load_head

ENCODERS = Path(".cache/encoders")
THREADS = 2
BATCH = 64
ROUNDS = 3
NEIGHBOURS = 10


def vectors(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Embeddings [n, d] of all texts."""
    found = np.zeros((len(texts), encoder.settings.dimensions), np.float32)
    for batch in encoder.run(texts):
        found[batch.rows] = batch.embedding
    return found


def scores(encoder: Encoder, head: Head, texts: Sequence[str]) -> NDArray[np.float32]:
    """Probabilities [n, 3] of all texts."""
    found = np.zeros((len(texts), 3), np.float32)
    for batch in encoder.run(texts):
        found[batch.rows] = head.scores(batch)
    return found


def seconds(encoder: Encoder, texts: Sequence[str], head: Head | None) -> float:
    """Time for all texts in batches as they come from the door."""
    started = time.perf_counter()
    for start in range(0, len(texts), BATCH):
        for batch in encoder.run(texts[start : start + BATCH]):
            if head is not None:
                head.scores(batch)
    return time.perf_counter() - started


def nearest(found: NDArray[np.float32]) -> NDArray[np.int64]:
    """The neighbours of each row among all others, exactly: [n, NEIGHBOURS]."""
    similarity = found @ found.T
    np.fill_diagonal(similarity, -1)
    return np.argsort(-similarity, axis=1)[:, :NEIGHBOURS]


def measures(name: str, probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> Sequence[object]:
    """One row of the table of quality."""
    report = evaluate.report(probabilities, labels)
    recalls = (f"{report[f'recall_{label}']:.3f}" for label in ("negative", "neutral", "positive"))
    return name, *(f"{report[measure]:.3f}" for measure in ("accuracy", "macro_f1", "ece")), *recalls


def main() -> None:
    """Measure and print."""
    source, head = default_source(), load_head(builtin("head"))
    folder = ENCODERS / source.digest[:16]
    bundle = Bundle.open(folder) if folder.exists() else build_encoder(source, folder)
    rated = [example for example in corpora.load(CACHE) if example.rated]
    train = [example for example in rated if example.part is Part.TRAIN]
    held = [example for example in rated if example.part is Part.HELD_OUT]
    texts, labels = [each.text for each in held], np.array([each.label for each in held])
    engines = {engine: open_encoder(bundle, engine=engine, threads=THREADS) for engine in Engine}
    exact = engines[Engine.FP32]

    baseline = LogisticRegression(max_iter=2000).fit(
        vectors(exact, [each.text for each in train]), [each.label for each in train]
    )
    reference = vectors(exact, texts)
    quality = [("version", "accuracy", "macro-F1", "ECE", "recall −", "recall 0", "recall +")]
    quality.append(
        measures("logistic regression, mean-pooled, fp32", baseline.predict_proba(reference), labels)
    )
    cost: list[Sequence[object]] = [
        (
            "engine",
            "cosine to fp32: mean · worst",
            f"neighbours@{NEIGHBOURS}",
            "texts/s",
            "with head",
            "head adds",
        )
    ]
    near = nearest(reference)
    for engine, encoder in engines.items():
        quality.append(measures(f"head, {engine}", scores(encoder, head, texts).astype(np.float64), labels))
        found = vectors(encoder, texts)
        cosines = (found * reference).sum(axis=1)
        shared = np.mean(
            [len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(nearest(found), near, strict=True)]
        )
        alone, both = [], []
        for _ in range(ROUNDS):
            alone.append(seconds(encoder, texts, None))
            both.append(seconds(encoder, texts, head))
        one, two = float(np.median(alone)), float(np.median(both))
        cost.append(
            (
                engine,
                f"{cosines.mean():.4f} · {cosines.min():.4f}",
                f"{shared:.3f}",
                f"{len(texts) / one:.0f}",
                f"{len(texts) / two:.0f}",
                f"{100 * (two / one - 1):.1f} %",
            )
        )
    print(f"{len(held)} held-out texts; built here, the engine is {exact.settings.engine}")
    report("heads", quality, {})
    report("engines", cost, {})


if __name__ == "__main__":
    main()
