"""The export of an encoder's weights to an encoder bundle: ONNX, then one file for each CPU engine.

An updated encoder may claim the space of its base only if its vectors are measured to be in it. Building imports torch,
transformers and NNCF; serving a bundle needs none of them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from registry.bundles.bundle import Bundle, BundleKind, Manifest, draft_folder
from registry.bundles.manifest_schema import ENGINES, TOKENIZER, WEIGHTS, EncoderSettings, Engine
from registry.encoders.classifier import ClassifierSource
from registry.encoders.engine_selection import (
    Vectors,
    check_engines,
    load_engines,
    quantise_classifier,
    quantise_to,
    select_engine,
)
from registry.encoders.inputs import Inputs, calibration_batches, calibration_texts, probe_texts
from registry.encoders.sources import SentenceEncoderSource, silence_libraries
from registry.errors import ExportFailed, RegistryError

_OPSET = 17

Progress = Callable[[str], None]
EncoderSource: TypeAlias = SentenceEncoderSource | ClassifierSource


def build_encoder(
    source: EncoderSource,
    target: Path,
    *,
    calibration: Sequence[str] | None = None,
    probe: Sequence[str] | None = None,
    progress: Progress = lambda _: None,
) -> Bundle:
    """Build a sealed encoder bundle at `target`, in one step at the end.

    The bundle holds a file for each CPU engine, the tokenizer, float16 weights for torch, and the name of the engine
    that was fastest here. An int8 file is kept only if it agrees with float32 (a source with labels), or if its
    vectors stay in the space on the sentences of `probe` (an updated encoder). Raises ExportFailed; OutOfSpace if an
    updated encoder leaves the space that it claims even in float32.
    """
    source.check()
    with draft_folder(target) as folder, silence_libraries():
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
            # The tracing of foreign networks raises errors of any type.
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
    progress("exporting the encoder")
    onnx = folder / ENGINES[Engine.FP32]
    graph = source.graph()
    prompt = source.encoding.get("document_prompt", "")
    calibration, probe = ([prompt + text for text in texts] for texts in (calibration, probe))
    probes = list(calibration_batches(tokenizer, probe)) if source.base is not None and source.space else []
    reference = _vectors(graph, probes)
    source.update_weights(graph)
    _export_onnx(graph, onnx, folder / WEIGHTS, states=not source.labels)
    batches = list(calibration_batches(tokenizer, calibration))
    progress("quantising the encoder")
    metrics: dict[str, float] = {}
    if source.labels:
        metrics = quantise_classifier(folder, batches)
    else:
        quantise_to(folder, Engine.INT8, batches)
        quantise_to(folder, Engine.INT8_PER_TOKEN, batches)
    progress("comparing the engines of the encoder")
    if probes:
        metrics = check_engines(folder, source.name, probes, reference)
    runs = load_engines(folder)
    settings = EncoderSettings(
        digest=source.digest,
        space=source.space,
        base=source.base,
        dimensions=runs[Engine.FP32](batches[0])[0].shape[1],
        max_length=source.max_length,
        token_layers=source.token_layers,
        engine=select_engine(runs),
        architecture=source.architecture,
        labels=source.labels,
        **source.encoding,
    )
    return settings, metrics


def _vectors(graph: Any, batches: Sequence[Inputs]) -> Vectors:
    """Return the vectors of a graph for some batches, in float32."""
    import torch

    vectors = []
    with torch.inference_mode():
        for batch in batches:
            ids, mask = (torch.from_numpy(batch[name]) for name in ("input_ids", "attention_mask"))
            vectors.append(graph(ids, mask)[0].numpy())
    return np.concatenate(vectors) if vectors else np.zeros((0, 0), np.float32)


def _export_onnx(graph: Any, onnx: Path, weights: Path, *, states: bool) -> None:
    import torch
    from safetensors.torch import save_file

    state = graph.encoder.state_dict()
    save_file({name: _to_half(tensor) for name, tensor in state.items()}, weights)
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


def _to_half(tensor: Any) -> Any:
    """Convert to float16, unless the tensor holds integers or numbers that are too large."""
    half = tensor.half() if tensor.is_floating_point() else tensor
    return (half if half.isfinite().all() else tensor).clone().contiguous()
