"""The names of a bundle's files and tensors, and the settings of an encoder's manifest."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from registry.bundles.bundle import BundleKind, Manifest
from registry.errors import BundleInvalid

TOKENIZER = "tokenizer.json"
WEIGHTS = "weights.safetensors"
HEAD_WEIGHTS = "head.safetensors"
# Holds two tensors for each changed matrix [out, in] of an encoder; their product is the change.
UPDATE = "update.safetensors"
UP, DOWN = ".up", ".down"
# The tensor that maps the labels of a classifier to our classes: [labels, classes].
MAPPING = "mapping"
# Matrices are [in, out].
ATTENTIVE_TENSORS = (
    "project.weight",
    "project.bias",
    "norm.weight",
    "norm.bias",
    "query.weight",
    "hidden.weight",
    "hidden.bias",
    "out.weight",
    "out.bias",
)


class Engine(StrEnum):
    """The engines that compute on a CPU.

    `INT8`: OpenVINO, with scales calibrated when the bundle is built; best on processors with VNNI.
    `INT8_PER_TOKEN`: ONNX Runtime, with a scale for each token. `FP32`: ONNX Runtime in float32.
    """

    INT8 = "int8"
    INT8_PER_TOKEN = "int8-per-token"  # noqa: S105  (a token of text)
    FP32 = "fp32"


ENGINES = {Engine.INT8: "int8.xml", Engine.INT8_PER_TOKEN: "int8-per-token.onnx", Engine.FP32: "fp32.onnx"}


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSettings:
    """The settings of an encoder's manifest.

    `digest` is the encoder's identity. `base` is the encoder that it updates; only an encoder without a base can
    define a space. Heads may read the token states of `token_layers`. An encoder with `labels` is a classifier's:
    instead of states it returns one row of logits a text. `pooling` names how the last states become a vector, as
    sentence-transformers does. The prompts precede texts to be found and texts to find them by.
    """

    digest: str
    space: str | None
    base: str | None = None
    dimensions: int
    max_length: int
    token_layers: tuple[int, ...]
    engine: Engine
    architecture: Mapping[str, Any]
    labels: tuple[str, ...] = ()
    pooling: tuple[str, ...] = ("mean",)
    query_prompt: str = ""
    document_prompt: str = ""

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> Self:
        """Read the settings of an encoder. Raises BundleInvalid if the manifest isn't an encoder's."""
        if manifest.kind is not BundleKind.ENCODER or manifest.encoder is None:
            raise BundleInvalid(f"{manifest.name} is a {manifest.kind.value}, not an encoder")
        raw = manifest.settings
        try:
            return cls(
                digest=manifest.encoder,
                space=manifest.space,
                base=raw.get("base"),
                dimensions=int(raw["dimensions"]),
                max_length=int(raw["max_length"]),
                token_layers=tuple(int(layer) for layer in raw["token_layers"]),
                engine=Engine(raw["engine"]),
                architecture=dict(raw["architecture"]),
                labels=tuple(str(label) for label in raw.get("labels", ())),
                pooling=tuple(str(mode) for mode in raw.get("pooling", ("mean",))),
                query_prompt=str(raw.get("query_prompt", "")),
                document_prompt=str(raw.get("document_prompt", "")),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise BundleInvalid(f"{manifest.name} has unusable encoder settings: {exc!r}") from exc

    def add_prompts(self, texts: Sequence[str], queries: Collection[int] = ()) -> Sequence[str]:
        """Return the texts with their prompts; those at the places `queries` are to find others by."""
        if not self.query_prompt and not self.document_prompt:
            return texts
        return [
            (self.query_prompt if place in queries else self.document_prompt) + text
            for place, text in enumerate(texts)
        ]

    def dump(self) -> dict[str, Any]:
        """Return the part that goes into `Manifest.settings`."""
        fields = asdict(self)
        return {name: fields[name] for name in fields if name not in ("digest", "space")}


def lexicon_features(compound: Sequence[float]) -> NDArray[np.float32]:
    """Return a lexicon head's features, float32 [n, 4]: 1, the compound score, its size, whether it is 0."""
    scores = np.asarray(compound, dtype=np.float32)
    return np.stack([np.ones_like(scores), scores, np.abs(scores), scores == 0], axis=1, dtype=np.float32)
