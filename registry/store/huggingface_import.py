"""Import of Hugging Face classifiers: labels mapped to our classes, the network as an encoder without a space.

Never trains or measures a version, and moves no alias.
"""

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from registry.bundles.bundle import LABELS, Bundle, BundleKind, Manifest, draft_folder
from registry.bundles.manifest_schema import HEAD_WEIGHTS, MAPPING
from registry.encoders.classifier import ClassifierSource, declared_labels
from registry.encoders.export import Progress, build_encoder
from registry.errors import ImportRefused, NotRegistered
from registry.store.model_registry import MODEL, ModelRegistry
from registry.store.records import EncoderRecord, VersionRecord

# A label of the model may contain a comma, so only a comma before one of our classes separates.
_SEPARATOR = re.compile(rf",\s*(?=(?:{'|'.join(LABELS)})=)")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelMap:
    """A mapping of a model's labels to our classes.

    `mapping` gives for each of `LABELS` the model's labels, none if the model has no such class; the probabilities of
    several labels add up. The probability of `ignored` labels is shared out among the others.
    """

    mapping: Mapping[str, tuple[str, ...]]
    ignored: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, *, ignored: Sequence[str] = ()) -> Self:
        """Parse `negative=A,neutral=,positive=B,positive=C`. Raises ValueError."""
        mapping: dict[str, list[str]] = {}
        for part in _SEPARATOR.split(text.strip()):
            name, separator, label = part.partition("=")
            if name not in LABELS or not separator:
                raise ValueError(f"{part!r} isn't one of {', '.join(f'{each}=LABEL' for each in LABELS)}")
            mapping.setdefault(name, []).append(label.strip())
        if missing := [name for name in LABELS if name not in mapping]:
            raise ValueError(f"{missing[0]} isn't mapped: write {missing[0]}= if the model has no such class")
        if any("" in labels and len(labels) > 1 for labels in mapping.values()):
            raise ValueError("a class has labels or it has none, not both")
        named = [label for labels in mapping.values() for label in labels if label] + [*ignored]
        if repeated := sorted({label for label in named if named.count(label) > 1}):
            raise ValueError(f"{repeated[0]!r} is named more than once")
        if sum(labels != [""] for labels in mapping.values()) < 2:
            raise ValueError("fewer than two classes are mapped, so every text would get the same class")
        return cls(
            mapping={name: tuple(label for label in mapping[name] if label) for name in LABELS},
            ignored=tuple(ignored),
        )

    def matrix(self, labels: Sequence[str]) -> NDArray[np.float32]:
        """Return float32 [n, 3]: 1 where label i of the model belongs to our class j.

        Raises ImportRefused if a named label isn't one of the model's, or one of the model's isn't named.
        """
        classes = {label: index for index, name in enumerate(LABELS) for label in self.mapping[name]}
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


def propose_labels(labels: Sequence[str]) -> str:
    """Return a mapping for `LabelMap.parse`, by the beginnings of a model's labels; to be looked at by a person."""
    matching = {
        name: [label for label in labels if label.lower().startswith(name[:3])] or [""] for name in LABELS
    }
    return ",".join(f"{name}={label}" for name in LABELS for label in matching[name])


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportResult:
    """The version and the encoder that an import registered."""

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
    description: str | None = None,
    languages: Sequence[str] | None = None,
    online: bool = False,
    progress: Progress = lambda _: None,
) -> ImportResult:
    """Register a text-classification model, from a folder or the hub, as a version and its encoder.

    `languages` default to those that the model's card names.
    A second import of the same model returns what is registered. Raises ImportRefused, ExportFailed,
    RegistryUnavailable.
    """
    declared = declared_labels(source)
    if declared is not None:
        labels.matrix(declared)
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
        version = registry.register(
            bundle,
            model=model,
            name=name,
            description=description,
            languages=loaded.languages if languages is None else languages,
        )
        return ImportResult(version=version, encoder=encoder)


def classifier_bundle(source: ClassifierSource, labels: LabelMap, out: Path, *, name: str) -> Bundle:
    """Seal a version at `out` that maps the logits of the source's encoder to our classes. Raises ImportRefused."""
    matrix = labels.matrix(source.labels)
    manifest = Manifest(
        kind=BundleKind.CLASSIFIER,
        name=name,
        encoder=source.digest,
        labels=LABELS,
        settings={
            "activation": "sigmoid" if source.multi_label else "softmax",
            "labels": list(source.labels),
            "mapping": {name: list(mapped) for name, mapped in labels.mapping.items()},
            "ignored": list(labels.ignored),
        },
        provenance=source.provenance,
    )
    with draft_folder(out) as folder:
        save_file({MAPPING: matrix}, folder / HEAD_WEIGHTS)
        return Bundle.seal(folder, manifest).move_to(out)
