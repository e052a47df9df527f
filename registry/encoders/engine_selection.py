"""The CPU engines of an encoder bundle during its build: quantised, compared with float32, and timed."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from registry.analysis.cosines import mean_and_worst_cosine
from registry.bundles.manifest_schema import ENGINES, Engine
from registry.encoders.inputs import Inputs
from registry.encoders.int8 import quantise
from registry.errors import OutOfSpace

# An encoder is in a space if its vectors have at least these cosines to the space's own.
SPACE_COSINE_MEAN, SPACE_COSINE_WORST = 0.98, 0.9

_TIMED_SHAPE, _TIMED_ROUNDS = (8, 24), 3
# An int8 engine is chosen only if it is at least this many times as fast as float32.
_INT8_GAIN = 1.1
# In int8 a classifier may change the label of one text in fifty, and a probability by two hundredths on average.
_LEAST_AGREEMENT, _MOST_SHIFT = 0.98, 0.02

Vectors: TypeAlias = NDArray[np.float32]
Run: TypeAlias = Callable[[Inputs], tuple[Vectors, NDArray[np.float32]]]


def load_engine(folder: Path, engine: Engine) -> Run:
    """Load an engine on one thread: token ids and mask [b, t] to vectors [b, d] and tokens [b, t, w]."""
    file = folder / ENGINES[engine]
    return _openvino_run(file) if engine is Engine.INT8 else _onnx_run(file)


def load_engines(folder: Path) -> dict[Engine, Run]:
    """Load each engine that has a file in the folder."""
    return {
        engine: load_engine(folder, engine) for engine, name in ENGINES.items() if (folder / name).exists()
    }


def check_space(name: str, vectors: Vectors, reference: Vectors) -> dict[str, float]:
    """Measure the cosines of vectors [n, d] to the space's own. Raises OutOfSpace if they are too small."""
    mean, worst = mean_and_worst_cosine(vectors, reference)
    # Written with `not`, because every comparison with NaN is false.
    if not (mean >= SPACE_COSINE_MEAN and worst >= SPACE_COSINE_WORST):
        raise OutOfSpace(
            f"{name} leaves its space: mean cosine {mean:.4f}, worst {worst:.4f}; "
            f"at least {SPACE_COSINE_MEAN} and {SPACE_COSINE_WORST} are required"
        )
    return {"cosine_mean": round(mean, 4), "cosine_worst": round(worst, 4)}


def select_engine(runs: Mapping[Engine, Run], spent: Callable[[], float] = time.process_time) -> Engine:
    """Return the engine to serve with on this machine: an int8 engine if it is faster than float32.

    Times the engines on one thread in alternating rounds. Measures seconds of processor time that this process has
    `spent`, because a first start keeps the cores busy with other work.
    """
    ids = np.ones(_TIMED_SHAPE, dtype=np.int64)
    inputs = {"input_ids": ids, "attention_mask": ids}
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(_TIMED_ROUNDS):
        for engine, run in runs.items():
            run(inputs)
            started = spent()
            run(inputs)
            best[engine] = min(best[engine], spent() - started)
    smaller = min(best.keys() - {Engine.FP32}, key=best.__getitem__, default=Engine.FP32)
    return smaller if best[smaller] * _INT8_GAIN < best[Engine.FP32] else Engine.FP32


def quantise_to(folder: Path, engine: Engine, batches: Sequence[Inputs]) -> None:
    """Write the int8 file of an engine from the float32 file, with activations measured on `batches`."""
    import openvino as ov

    onnx, target = folder / ENGINES[Engine.FP32], folder / ENGINES[engine]
    if engine is Engine.INT8:
        ov.save_model(_quantise_with_nncf(ov.Core().read_model(onnx), batches), target)
    else:
        quantise(onnx, target, batches)


def quantise_classifier(folder: Path, batches: Sequence[Inputs]) -> dict[str, float]:
    """Write both int8 files, without any that fails or disagrees with float32; return how they compare with it."""
    measured: dict[str, float] = {}
    exact = _probabilities(load_engine(folder, Engine.FP32), batches)
    for engine in (Engine.INT8, Engine.INT8_PER_TOKEN):
        agrees = False
        # Quantisers raise many errors on graphs that they can't read; float32 serves any graph.
        with contextlib.suppress(Exception):
            quantise_to(folder, engine, batches)
            rough = _probabilities(load_engine(folder, engine), batches)
            agreement = float((rough.argmax(axis=1) == exact.argmax(axis=1)).mean())
            shift = float(np.abs(rough - exact).mean())
            agrees = agreement >= _LEAST_AGREEMENT and shift <= _MOST_SHIFT
            measured |= {f"{engine}.agreement": round(agreement, 4), f"{engine}.shift": round(shift, 6)}
        if not agrees:
            _remove(folder, engine)
    return measured


def _probabilities(run: Run, batches: Sequence[Inputs]) -> NDArray[np.float64]:
    """Return the softmax over all labels, whatever activation the head uses: float64 [n, labels]."""
    logits = np.concatenate([run(batch)[1][:, 0, :] for batch in batches]).astype(np.float64)
    probabilities: NDArray[np.float64] = softmax(logits, axis=1)
    return probabilities


def _quantise_with_nncf(model: Any, batches: Sequence[Inputs]) -> Any:
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


def check_engines(folder: Path, name: str, batches: Sequence[Inputs], reference: Vectors) -> dict[str, float]:
    """Measure the cosines of each engine's vectors to the space's own.

    Removes an int8 file whose vectors leave the space. Raises OutOfSpace if those of float32 do.
    """
    metrics: dict[str, float] = {}
    for engine, run in load_engines(folder).items():
        vectors = np.concatenate([run(batch)[0] for batch in batches])
        prefix = "" if engine is Engine.FP32 else f"{engine}."
        try:
            measured = check_space(f"{name} in {engine}", vectors, reference)
        except OutOfSpace:
            if engine is Engine.FP32:
                raise
            _remove(folder, engine)
        else:
            metrics |= {f"{prefix}{measure}": value for measure, value in measured.items()}
    return metrics


def _remove(folder: Path, engine: Engine) -> None:
    for file in (folder / ENGINES[engine], (folder / ENGINES[engine]).with_suffix(".bin")):
        file.unlink(missing_ok=True)


def _openvino_run(file: Path) -> Run:
    import openvino as ov

    hints = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(file, "CPU", hints).create_infer_request()

    def run(inputs: Inputs) -> tuple[Vectors, NDArray[np.float32]]:
        request.infer(inputs)
        return request.get_tensor("embedding").data.copy(), request.get_tensor("tokens").data.copy()

    return run


def _onnx_run(file: Path) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> tuple[Vectors, NDArray[np.float32]]:
        embedding, tokens = session.run(["embedding", "tokens"], inputs)
        return embedding, tokens

    return run
