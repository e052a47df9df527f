"""The files of bundles and what their manifests say to the runtime; shared by whatever builds and serves."""

from collections.abc import Mapping, Sequence
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
# For each changed matrix [out, in] of an encoder, two tensors whose product is the change.
UPDATE = "update.safetensors"
UP, DOWN = ".up", ".down"
# The tensor by which a classifier's labels become ours: [theirs, ours].
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
    """How a CPU computes.

    `INT8`: OpenVINO, with scales calibrated at building; best where the processor has VNNI. `INT8_PER_TOKEN`: ONNX
    Runtime, with a scale for each token. `FP32`: ONNX Runtime in float32.
    """

    INT8 = "int8"
    INT8_PER_TOKEN = "int8-per-token"  # noqa: S105  (a token of text)
    FP32 = "fp32"


ENGINES = {
    Engine.INT8: "int8.xml",
    Engine.INT8_PER_TOKEN: "int8-per-token.onnx",
    Engine.FP32: "fp32.onnx",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSettings:
    """`digest` is the encoder's identity; `token_layers` are the layers whose token states heads may read.

    `base` is the encoder that it is an update of; only an encoder without one can define a space.
    An encoder with `labels` is a classifier's: in place of states it gives one row of their logits a text.
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

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> Self:
        """Raises BundleInvalid if the manifest isn't an encoder's."""
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
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise BundleInvalid(f"{manifest.name} has unusable encoder settings: {exc!r}") from exc

    def dump(self) -> dict[str, Any]:
        """The part that goes into `Manifest.settings`."""
        fields = asdict(self)
        return {name: fields[name] for name in fields if name not in ("digest", "space")}


def lexicon_features(compound: Sequence[float]) -> NDArray[np.float32]:
    """What a lexicon head weighs: float32 [n, 4] of one, the compound score, its size, whether it is 0."""
    scores = np.asarray(compound, dtype=np.float32)
    return np.stack([np.ones_like(scores), scores, np.abs(scores), scores == 0], axis=1, dtype=np.float32)
