"""Foreign classifiers to versions: their labels mapped to ours, their network as an encoder of no space.

Never trains or measures a version, and moves no alias.
"""

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from registry.bundles.bundle import LABELS, Bundle, BundleKind, Manifest
from registry.bundles.manifest_schema import HEAD_WEIGHTS, MAPPING
from registry.encoders.classifier import ClassifierSource
from registry.encoders.export import build_encoder
from registry.errors import ImportRefused, NotRegistered
from registry.store.model_registry import MODEL, ModelRegistry
from registry.store.records import EncoderRecord, VersionRecord

Say = Callable[[str], None]

# A comma in a label of theirs is no border.
_BORDER = re.compile(rf",\s*(?=(?:{'|'.join(LABELS)})=)")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelMap:
    """Which labels of a model stand for which of ours; several may stand for one, and their probabilities add up.

    `theirs` has every one of `LABELS`, with nothing where the model has no such class; `ignored` are labels whose
    probability counts for none, so that the others share it.
    """

    theirs: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, *, ignored: Sequence[str] = ()) -> Self:
        """From `negative=A,neutral=,positive=B,positive=C`. Raises ValueError."""
        theirs: dict[str, list[str]] = {}
        for part in _BORDER.split(text.strip()):
            ours, border, label = part.partition("=")
            if ours not in LABELS or not border:
                raise ValueError(f"{part!r} isn't one of {', '.join(f'{name}=LABEL' for name in LABELS)}")
            theirs.setdefault(ours, []).append(label.strip())
        if missing := [name for name in LABELS if name not in theirs]:
            raise ValueError(f"{missing[0]} isn't mapped: write {missing[0]}= if the model has no such class")
        used = [label for labels in theirs.values() for label in labels if label]
        if any("" in labels and len(labels) > 1 for labels in theirs.values()):
            raise ValueError("a class has labels or it has none, not both")
        if twice := sorted({label for label in [*used, *ignored] if [*used, *ignored].count(label) > 1}):
            raise ValueError(f"{twice[0]!r} is named more than once")
        if sum(labels != [""] for labels in theirs.values()) < 2:
            raise ValueError("fewer than two classes are mapped: every text would be of the same one")
        return cls(
            theirs={name: tuple(label for label in theirs[name] if label) for name in LABELS},
            ignored=tuple(ignored),
        )

    def matrix(self, labels: Sequence[str]) -> NDArray[np.float32]:
        """Float32 [n, 3]: 1 where label i of the model is of our class j.

        Raises ImportRefused if a named label is none of the model's, or one of the model's isn't named.
        """
        classes = {label: place for place, name in enumerate(LABELS) for label in self.theirs[name]}
        known = ", ".join(f"{number}: {label}" for number, label in enumerate(labels))
        if unknown := sorted({*classes, *self.ignored} - {*labels}):
            raise ImportRefused(f"the model has no label {unknown[0]!r}; it has {known}")
        if unmapped := [label for label in labels if label not in classes and label not in self.ignored]:
            raise ImportRefused(f"{unmapped[0]!r} is neither mapped nor ignored; the model has {known}")
        matrix = np.zeros((len(labels), len(LABELS)), dtype=np.float32)
        for row, label in enumerate(labels):
            if label in classes:
                matrix[row, classes[label]] = 1
        return matrix


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportResult:
    """What an import registered."""

    version: VersionRecord
    encoder: EncoderRecord


def import_model(
    registry: ModelRegistry,
    source: str,
    labels: LabelMap,
    *,
    work: Path,
    model: str = MODEL,
    name: str | None = None,
    online: bool = False,
    progress: Say = lambda _: None,
) -> ImportResult:
    """Registers a text-classification model, from a folder or a name on the hub, as a version and its encoder.

    Importing the same again gives what is registered already. Raises ImportRefused, ExportFailed, RegistryUnavailable.
    """
    progress("loading")
    loaded = ClassifierSource.load(source, online=online)
    labels.matrix(loaded.labels)
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix=".importing-") as scratch:
        try:
            encoder = registry.encoder(loaded.digest)
        except NotRegistered:
            built = build_encoder(loaded, Path(scratch) / "encoder", progress=progress)
            progress("comparing with transformers")
            loaded.verify(built)
            progress("registering")
            encoder = registry.register_encoder(built)
        bundle = classifier_bundle(loaded, labels, Path(scratch) / "version", name=name or loaded.name)
        return ImportResult(version=registry.register(bundle, model=model), encoder=encoder)


def classifier_bundle(source: ClassifierSource, labels: LabelMap, out: Path, *, name: str) -> Bundle:
    """A sealed version at `out` that maps the logits of the source's encoder to our classes. Raises ImportRefused."""
    matrix = labels.matrix(source.labels)
    manifest = Manifest(
        kind=BundleKind.CLASSIFIER,
        name=name,
        encoder=source.digest,
        labels=LABELS,
        settings={
            "activation": "sigmoid" if source.multi_label else "softmax",
            "labels": list(source.labels),
            "mapping": {ours: list(theirs) for ours, theirs in labels.theirs.items()},
            "ignored": list(labels.ignored),
        },
        provenance=source.provenance,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".mapping-") as scratch:
        folder = Path(scratch) / "bundle"
        folder.mkdir()
        save_file({MAPPING: matrix}, folder / HEAD_WEIGHTS)
        return Bundle.seal(folder, manifest).move_to(out)
