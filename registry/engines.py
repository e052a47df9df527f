"""The CPU engines of an encoder bundle while it is built: which is fastest here, and whether one keeps to a space.

What serves them is elsewhere.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from registry.errors import OutOfSpace
from registry.layout import ENGINES, Engine
from registry.quantise import Inputs

# An encoder is in a space if its vectors have these cosines to the space's own.
SPACE_COSINE_MEAN, SPACE_COSINE_WORST = 0.98, 0.9

_RACE_SHAPE, _RACE_ROUNDS = (8, 24), 3
# Less precision must buy time.
_INT8_GAIN = 1.1

Vectors: TypeAlias = NDArray[np.float32]
Run: TypeAlias = Callable[[Inputs], tuple[Vectors, NDArray[np.float32]]]


def run_of(folder: Path, engine: Engine) -> Run:
    """An engine on one thread: token ids and mask [b, t] to vectors [b, d] and tokens [b, t, w]."""
    file = folder / ENGINES[engine]
    return _openvino_run(file) if engine is Engine.INT8 else _onnx_run(file)


def runs_of(folder: Path) -> dict[Engine, Run]:
    """Each engine that there is a file for."""
    return {engine: run_of(folder, engine) for engine, name in ENGINES.items() if (folder / name).exists()}


def check_space(name: str, vectors: Vectors, reference: Vectors) -> dict[str, float]:
    """The cosines of vectors [n, d] to the space's own of the same texts. Raises OutOfSpace if they are too small."""
    cosines = (vectors * reference).sum(axis=1)
    mean, worst = float(cosines.mean()), float(cosines.min())
    # In this form, because a comparison with NaN is never true.
    if not (mean >= SPACE_COSINE_MEAN and worst >= SPACE_COSINE_WORST):
        raise OutOfSpace(
            f"{name} leaves its space: mean cosine {mean:.4f}, worst {worst:.4f}; "
            f"{SPACE_COSINE_MEAN} and {SPACE_COSINE_WORST} are asked"
        )
    return {"cosine_mean": round(mean, 4), "cosine_worst": round(worst, 4)}


def faster(runs: Mapping[Engine, Run]) -> Engine:
    """The engine to serve with on this machine: an int8 one where it pays, on one thread, in alternating rounds.

    Measured in processor time, because a first start keeps the cores busy with much else.
    """
    ids = np.ones(_RACE_SHAPE, dtype=np.int64)
    inputs = {"input_ids": ids, "attention_mask": ids}
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(_RACE_ROUNDS):
        for engine, run in runs.items():
            run(inputs)
            started = time.process_time()
            run(inputs)
            best[engine] = min(best[engine], time.process_time() - started)
    smaller = min(best.keys() - {Engine.FP32}, key=best.__getitem__, default=Engine.FP32)
    return smaller if best[smaller] * _INT8_GAIN < best[Engine.FP32] else Engine.FP32


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
