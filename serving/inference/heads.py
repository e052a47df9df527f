"""Heads: vectors or texts to calibrated class scores, one class for each kind of head bundle. Numpy only."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from registry.bundles.bundle import LABELS, Bundle, BundleKind, file_digest
from registry.bundles.manifest_schema import ATTENTIVE_TENSORS, HEAD_WEIGHTS, MAPPING, lexicon_features
from registry.errors import BundleInvalid
from serving.inference.microbatches import MicroBatch

Scores = NDArray[np.float32]

# The lexicon has negations with the plain apostrophe; phones and other keyboards type these.
_APOSTROPHES: Final = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\uff07\u00b4", "'"))


class Head(Protocol):
    """Scores micro-batches. Several threads may call it; the other texts of a batch change no score."""

    def scores(self, batch: MicroBatch) -> Scores:
        """Return float32 [b, 3] in the order of `LABELS`: calibrated probabilities that sum to 1.

        A row without a finite answer is all NaN: an error of that row, never an answer.
        """
        ...


def load_head(bundle: Bundle) -> Head:
    """Load the head of a version's bundle. Raises BundleInvalid for a kind without a head."""
    builder = _BUILDERS.get(bundle.manifest.kind)
    if builder is None:
        raise BundleInvalid(f"{bundle.manifest.name} is a {bundle.manifest.kind.value}, which has no head")
    return builder(bundle)


def has_answer(scores: Scores) -> NDArray[np.bool_]:
    """Return for each row of `Head.scores` whether it holds an answer: bool [b]."""
    finite: NDArray[np.bool_] = np.isfinite(scores.sum(axis=1))
    return finite


class LexiconHead:
    """vaderSentiment's compound score, -1 to 1, mapped to three classes by a fitted softmax.

    Refuses to load with another lexicon than the one it was fitted on.
    """

    def __init__(self, bundle: Bundle) -> None:
        from vaderSentiment import vaderSentiment

        lexicon = Path(vaderSentiment.__file__).parent / "vader_lexicon.txt"
        expected, actual = bundle.manifest.settings.get("lexicon"), file_digest(lexicon)
        if expected != actual:
            raise BundleInvalid(
                f"{bundle.manifest.name} was fitted on lexicon {expected}, {lexicon} is {actual}"
            )
        self._analyzer = vaderSentiment.SentimentIntensityAnalyzer()
        self._weight = _load_tensors(bundle, ("weight",))["weight"]
        self._temperature = bundle.manifest.temperature

    def scores(self, batch: MicroBatch) -> Scores:
        texts = [text.translate(_APOSTROPHES) for text in batch.texts]
        compound = [self._analyzer.polarity_scores(text)["compound"] for text in texts]
        return _softmax(lexicon_features(compound) @ self._weight, self._temperature)


class AttentiveHead:
    """Attentive pooling over token states of several layers, and one hidden layer.

    After Lin et al., "A Structured Self-Attentive Sentence Embedding" (arXiv 1703.03130): each attention
    row pools its own slice of the projected states; the slices and a maximum over tokens feed the layer.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._weights = _load_tensors(bundle, ATTENTIVE_TENSORS)
        self._temperature = bundle.manifest.temperature

    def scores(self, batch: MicroBatch) -> Scores:
        return _softmax(self.logits(batch.tokens, batch.mask), self._temperature)

    def logits(self, tokens: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return the logits before the temperature: tokens float32 [b, t, w], mask bool [b, t] → float32 [b, 3].

        Each row of the mask is true from its start on, at least once, then false; padding is never read.
        """
        weights = self._weights
        lengths = mask.sum(axis=1)
        starts = np.concatenate([[0], np.cumsum(lengths[:-1])])
        states = tokens[mask] @ weights["project.weight"]
        states += weights["project.bias"]
        _layer_norm(states)
        states *= weights["norm.weight"]
        states += weights["norm.bias"]
        _gelu(states)
        attention = states @ weights["query.weight"]
        attention -= np.repeat(np.maximum.reduceat(attention, starts), lengths, axis=0)
        np.exp(attention, out=attention)
        attention /= np.repeat(np.add.reduceat(attention, starts), lengths, axis=0)
        highest = np.maximum.reduceat(states, starts)
        states.reshape(*attention.shape, -1)[...] *= attention[..., None]
        features = np.concatenate([np.add.reduceat(states, starts), highest], axis=1)
        hidden = features @ weights["hidden.weight"]
        hidden += weights["hidden.bias"]
        _gelu(hidden)
        logits: NDArray[np.float32] = hidden @ weights["out.weight"] + weights["out.bias"]
        return logits


class ClassifierHead:
    """Maps an imported classifier's labels to our classes; probabilities of labels with the same class add up.

    Our classes share the probability of labels without a class.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._name = bundle.manifest.name
        mapping = _load_tensors(bundle, (MAPPING,))[MAPPING]
        plain = mapping.ndim == 2 and mapping.shape[1] == len(LABELS) and np.isin(mapping, (0, 1)).all()
        if not plain or (mapping.sum(axis=1) > 1).any() or not mapping.any():
            raise BundleInvalid(f"{self._name} has a {MAPPING} that doesn't map labels to {LABELS}")
        self._mapping = mapping
        self._temperature = bundle.manifest.temperature
        match bundle.manifest.settings.get("activation"):
            case "softmax":
                self._activate = _softmax
            case "sigmoid":
                self._activate = _sigmoid
            case other:
                raise BundleInvalid(f"{self._name} has the activation {other!r}, not softmax or sigmoid")

    def scores(self, batch: MicroBatch) -> Scores:
        logits = batch.tokens[:, 0, :]
        if logits.shape[1] != len(self._mapping):
            raise BundleInvalid(
                f"{self._name} maps {len(self._mapping)} labels, its encoder gives {logits.shape[1]}"
            )
        mapped = self._mapping.any(axis=1)
        scores = self._activate(logits[:, mapped], self._temperature) @ self._mapping[mapped]
        finite = np.isfinite(logits).all(axis=1) & (scores.sum(axis=1) > 0)
        total = np.where(finite, scores.sum(axis=1), 1)[:, None]
        normalized: Scores = np.where(finite[:, None], scores / total, np.float32(np.nan))
        return normalized


_BUILDERS: dict[BundleKind, Callable[[Bundle], Head]] = {
    BundleKind.LEXICON: LexiconHead,
    BundleKind.HEAD: AttentiveHead,
    BundleKind.CLASSIFIER: ClassifierHead,
    # Its head is like any other, but reads the states of the encoder in the same bundle.
    BundleKind.JOINT: AttentiveHead,
}


def _load_tensors(bundle: Bundle, names: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Load the named tensors as float32. Raises BundleInvalid if one is missing."""
    try:
        tensors = load_file(bundle.file(HEAD_WEIGHTS))
        return {name: np.ascontiguousarray(tensors[name], dtype=np.float32) for name in names}
    except (KeyError, SafetensorError) as exc:
        raise BundleInvalid(f"{bundle.manifest.name} has no usable {HEAD_WEIGHTS}: {exc}") from exc


def _layer_norm(states: NDArray[np.float32]) -> None:
    """Normalize each row of float32 [n, w] in place."""
    states -= states.mean(axis=-1, keepdims=True)
    variance = np.einsum("nw,nw->n", states, states) / np.float32(states.shape[-1])
    states /= np.sqrt(variance + np.float32(1e-5))[:, None]


def _gelu(x: NDArray[np.float32]) -> None:
    """Apply GELU in place, by its tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415)."""
    inner = x * x
    inner *= np.float32(0.044715)
    inner += 1
    inner *= x
    inner *= np.float32(0.7978845608)
    np.tanh(inner, out=inner)
    inner += 1
    x *= inner
    x *= np.float32(0.5)


def _softmax(logits: NDArray[np.float32], temperature: float) -> Scores:
    scaled = logits.astype(np.float64) / temperature
    finite = np.isfinite(scaled).all(axis=1, keepdims=True)
    scaled = np.where(finite, scaled, 0.0)
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    scores = scaled / scaled.sum(axis=1, keepdims=True)
    return np.where(finite, scores, np.nan).astype(np.float32)


def _sigmoid(logits: NDArray[np.float32], temperature: float) -> Scores:
    scaled = np.clip(logits.astype(np.float64) / temperature, -80, 80)
    scores: Scores = (1 / (1 + np.exp(-scaled))).astype(np.float32)
    return scores
