"""The computations behind the analytics, on samples in memory. Pure."""

from collections import Counter
from collections.abc import Sequence
from typing import Final, TypeAlias
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from db.analytics.disagreements import Disagreement
from db.analytics.labels import LabelledText
from db.analytics.windows import JudgedPrediction, SampledText, Window, WindowSample
from registry.analysis.clusters import TextCluster, cluster_vectors, find_distinctive_words
from registry.analysis.mmd import compute_mmd, find_novel
from registry.analysis.neighbour_vote import score_informativeness, select_diverse
from registry.analysis.psi import compute_psi
from registry.bundles.bundle import LABELS
from serving.analytics.results import (
    Accuracy,
    DisagreementCluster,
    Drift,
    ReviewCandidate,
    SampleSummary,
    Topic,
)
from serving.search.label_suggestions import MIN_VOTE_SIMILARITY

# The kernel compares every text with every other, so fewer of them are compared.
KERNEL_TEXTS: Final = 500
EXAMPLES: Final = 3
CONFIDENCE_BINS: Final = 10
# Texts with a larger cosine mostly say the same with another detail, so judging one of them is enough. It is far below
# that of near-duplicates, which may differ in a negation.
REVIEW_SIMILARITY: Final = 0.8

Vectors: TypeAlias = NDArray[np.float32]


def group_topics(sample: Sequence[SampledText], judged: Sequence[JudgedPrediction], most: int) -> list[Topic]:
    """Group a sample into at most `most` topics, with the accuracy of each version by the judged predictions."""
    judgements: dict[UUID, list[JudgedPrediction]] = {}
    for each in judged:
        judgements.setdefault(each.text_id, []).append(each)
    topics = []
    for group, words in _groups(sample, most):
        members = [sample[row] for row in group.rows]
        given = [each for member in members for each in judgements.get(member.text_id, ())]
        versions = sorted({each.version for each in given}, key=lambda version: (len(version), version))
        topics.append(
            Topic(
                texts=len(members),
                share=len(members) / len(sample),
                words=words,
                sentiments=Counter(member.label for member in members),
                accuracy=[
                    Accuracy(
                        version=version,
                        judged=sum(each.version == version for each in given),
                        right=sum(each.version == version and each.is_correct for each in given),
                    )
                    for version in versions
                ],
                examples=[
                    (member, float(cosine))
                    for member, cosine in zip(members[:EXAMPLES], group.cosines[:EXAMPLES], strict=True)
                ],
            )
        )
    return topics


def rank_for_review(
    candidates: Sequence[SampledText], labelled: Sequence[LabelledText], most: int
) -> list[ReviewCandidate]:
    """Return at most `most` candidates, no two of them alike, the most useful to judge first."""
    if not candidates:
        return []
    vectors = _vectors(candidates)
    scores = np.array([[each.scores[label] for label in LABELS] for each in candidates], np.float64)
    labels = [LABELS.index(each.label) for each in labelled]
    supported = np.array([each.supported is not False for each in candidates])
    value = score_informativeness(
        scores, vectors, _vectors(labelled), labels, supported=supported, min_cosine=MIN_VOTE_SIMILARITY
    )
    return [
        ReviewCandidate(
            text=candidates[row],
            score=float(value.score[row]),
            uncertainty=float(value.uncertainty[row]),
            density=float(value.density[row]),
            disagreement=float(value.disagreement[row]),
        )
        for row in select_diverse(
            value.score,
            vectors,
            [each.text for each in candidates],
            limit=most,
            max_cosine=REVIEW_SIMILARITY,
        )
    ]


def cluster_differences(
    differences: Sequence[Disagreement], background: Sequence[SampledText], most: int
) -> list[DisagreementCluster]:
    """Group texts on which two versions disagree into at most `most` clusters.

    Their words set them apart from each other and from the `background`, the texts of the window.
    """
    return [
        DisagreementCluster(
            texts=len(group.rows), words=words, examples=[differences[row] for row in group.rows[:EXAMPLES]]
        )
        for group, words in _groups(differences, most, [each.text for each in background])
    ]


def measure_drift(
    model: str,
    reference: tuple[Window, WindowSample],
    recent: tuple[Window, WindowSample],
    most: int,
) -> Drift:
    """Compare the sample of a recent window with that of a reference window."""
    before, after = _summarize(*reference), _summarize(*recent)
    old, new = _vectors(reference[1].texts), _vectors(recent[1].texts)
    # Samples are ordered by time: evenly spaced rows cover the whole window.
    return Drift(
        model=model,
        recent=after,
        reference=before,
        embeddings=compute_mmd(_thinned(old, KERNEL_TEXTS), _thinned(new, KERNEL_TEXTS)),
        labels=compute_psi(
            [before.labels.get(label, 0) for label in LABELS],
            [after.labels.get(label, 0) for label in LABELS],
        ),
        confidences=compute_psi(before.confidences, after.confidences),
        novel=[(recent[1].texts[each.row], each.nearest) for each in find_novel(old, new, limit=most)],
    )


def _summarize(window: Window, sample: WindowSample) -> SampleSummary:
    texts = sample.texts
    bins = [0] * CONFIDENCE_BINS
    for each in texts:
        bins[min(int(each.confidence * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)] += 1
    return SampleSummary(
        window=window,
        coverage=sample.coverage,
        sampled=len(texts),
        labels=Counter(each.label for each in texts),
        confidences=bins,
        versions=Counter(each.version for each in texts),
        confidence=sum(each.confidence for each in texts) / len(texts) if texts else None,
    )


def _groups(
    texts: Sequence[SampledText] | Sequence[Disagreement], most: int, background: Sequence[str] = ()
) -> list[tuple[TextCluster, list[str]]]:
    """Group texts by meaning; each group comes with its distinctive words."""
    groups = cluster_vectors(_vectors(texts), max_clusters=most)
    words = find_distinctive_words([each.text for each in texts], groups, background=background)
    return list(zip(groups, words, strict=True))


def _vectors(texts: Sequence[SampledText] | Sequence[Disagreement] | Sequence[LabelledText]) -> Vectors:
    """Stack the vectors of texts: float32 [n, d]."""
    return np.stack([each.vector for each in texts]) if texts else np.zeros((0, 0), np.float32)


def _thinned(vectors: Vectors, most: int) -> Vectors:
    """Return at most `most` of the rows, evenly spaced."""
    if len(vectors) <= most:
        return vectors
    return vectors[np.linspace(0, len(vectors) - 1, most).round().astype(np.int64)]
