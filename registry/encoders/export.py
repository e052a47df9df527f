"""An encoder's weights to an encoder bundle: ONNX, then one file for each CPU engine.

Lets an updated encoder claim the space of its base only after measuring that it keeps to it. Imports torch,
transformers and NNCF when it builds; whatever serves a bundle needs none of them.
"""

import importlib.resources
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from registry.bundles.bundle import Bundle, BundleKind, Manifest
from registry.bundles.manifest_schema import ENGINES, TOKENIZER, WEIGHTS, EncoderSettings, Engine
from registry.encoders.engine_selection import (
    Vectors,
    check_engines,
    load_engines,
    quantise_classifier,
    quantise_to,
    select_engine,
)
from registry.encoders.int8 import Inputs
from registry.encoders.sources import EncoderSource, silence_libraries
from registry.errors import ExportFailed, RegistryError

_CALIBRATION_ROWS = 8
_OPSET = 17

Progress = Callable[[str], None]


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
    here. Of a source with labels, an int8 file is kept only if it decides as float32 does; of an updated
    encoder, only if its vectors keep to the space on the sentences of `probe`. Raises ExportFailed; OutOfSpace if an
    updated encoder leaves the space that it claims even in float32.
    """
    source.check()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as scratch, silence_libraries():
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
            kind=BundleKind.ENCODER,
            name=source.name,
            encoder=source.digest,
            space=source.space,
            settings=settings.dump(),
            metrics=metrics,
            provenance=source.provenance,
        )
        return Bundle.seal(folder, manifest).move_to(target)


def _build(
    source: EncoderSource,
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
        metrics = quantise_classifier(folder, batches)
    else:
        quantise_to(folder, Engine.INT8, batches)
        quantise_to(folder, Engine.INT8_PER_TOKEN, batches)
    progress("measuring")
    if probes:
        metrics = check_engines(folder, source.name, probes, reference)
    runs = load_engines(folder)
    engine = select_engine(runs)
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


def _halved(tensor: Any) -> Any:
    """Float16, unless the tensor holds whole numbers, or numbers that are too large for it."""
    half = tensor.half() if tensor.is_floating_point() else tensor
    return (half if half.isfinite().all() else tensor).clone().contiguous()


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
