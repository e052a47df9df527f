"""Quality and cost of the trained versions, compared with logistic regression on mean-pooled vectors.

All are measured on the held-out tenth of the rated corpora. Each CPU engine of both encoders is measured for its
vectors' agreement with the space, its neighbours, and the time that the head adds to a pass.
Run by `python -m benchmarks.heads`.
"""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from benchmarks.limit import encoder_folder, space_folder
from benchmarks.load import CACHE
from benchmarks.report import report
from registry.bundles.bundle import Bundle
from registry.bundles.manifest_schema import ENGINES, Engine
from registry.data import corpora
from registry.data.corpora import Part
from registry.evaluation import metrics
from registry.store.builtin_versions import open_builtin
from serving.inference.encoder import Encoder
from serving.inference.engines.factory import open_encoder
from serving.inference.heads import Head, load_head

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
    """Return the time for all texts, in batches of the size that the batcher sends."""
    started = time.perf_counter()
    for start in range(0, len(texts), BATCH):
        for batch in encoder.run(texts[start : start + BATCH]):
            if head is not None:
                head.scores(batch)
    return time.perf_counter() - started


def nearest(found: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the exact neighbours of each row among all others: [n, NEIGHBOURS]."""
    similarity = found @ found.T
    np.fill_diagonal(similarity, -1)
    return np.argsort(-similarity, axis=1)[:, :NEIGHBOURS]


def measures(name: str, probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> Sequence[object]:
    """One row of the table of quality."""
    report = metrics.classification_report(probabilities, labels)
    recalls = (f"{report[f'recall_{label}']:.3f}" for label in ("negative", "neutral", "positive"))
    return name, *(f"{report[measure]:.3f}" for measure in ("accuracy", "macro_f1", "ece")), *recalls


def agreement(found: NDArray[np.float32], reference: NDArray[np.float32]) -> tuple[str, str]:
    """Mean and worst cosine to the space's vectors, and the share of neighbours that stay."""
    cosines = (found * reference).sum(axis=1)
    pairs = zip(nearest(found), nearest(reference), strict=True)
    shared = np.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in pairs])
    return f"{cosines.mean():.4f} · {cosines.min():.4f}", f"{shared:.3f}"


def cost(encoder: Encoder, head: Head, texts: Sequence[str]) -> tuple[str, str, str]:
    """Texts a second without and with the head, and what it adds; medians of alternating rounds."""
    alone, both = [], []
    for _ in range(ROUNDS):
        alone.append(seconds(encoder, texts, None))
        both.append(seconds(encoder, texts, head))
    one, two = float(np.median(alone)), float(np.median(both))
    return f"{len(texts) / one:.0f}", f"{len(texts) / two:.0f}", f"{100 * (two / one - 1):.1f} %"


def main() -> None:
    """Measure and print."""
    rated = [example for example in corpora.load(CACHE) if example.rated]
    train = [example for example in rated if example.part is Part.TRAIN]
    held = [example for example in rated if example.part is Part.HELD_OUT]
    texts, labels = [each.text for each in held], np.array([each.label for each in held])
    space = open_encoder(Bundle.open(space_folder()), engine=Engine.FP32, threads=THREADS)
    baseline = LogisticRegression(max_iter=2000).fit(
        vectors(space, [each.text for each in train]), [each.label for each in train]
    )
    reference = vectors(space, texts)
    quality = [("version", "accuracy", "macro-F1", "ECE", "recall −", "recall 0", "recall +")]
    quality.append(
        measures("logistic regression, mean-pooled, fp32", baseline.predict_proba(reference), labels)
    )
    costs: list[Sequence[object]] = [
        (
            "engine",
            "cosine to the space: mean · worst",
            f"neighbours@{NEIGHBOURS}",
            "texts/s",
            "with head",
            "head adds",
        )
    ]
    chosen = []
    for name, folder in (("head", space_folder()), ("joint", encoder_folder())):
        bundle, head = Bundle.open(folder), load_head(open_builtin(name))
        for engine, file in ENGINES.items():
            if file not in bundle.manifest.files:
                continue
            encoder = open_encoder(bundle, engine=engine, threads=THREADS)
            chosen.append(f"{name}: {encoder.settings.engine}")
            said = scores(encoder, head, texts).astype(np.float64)
            quality.append(measures(f"{name}, {engine}", said, labels))
            costs.append(
                (
                    f"{name}, {engine}",
                    *agreement(vectors(encoder, texts), reference),
                    *cost(encoder, head, texts),
                )
            )
    print(f"{len(held)} held-out texts; engines that were chosen here: {sorted(set(chosen))}")
    report("heads", quality, {})
    report("engines", costs, {})


if __name__ == "__main__":
    main()
