"""The model that every peer but the tutorial serves: the platform's own encoder and head on its chosen engine."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.bundles.bundle import LABELS, Bundle
from registry.bundles.manifest_schema import ENGINES, EncoderSettings, Engine
from serving.inference.engines.factory import open_encoder
from serving.inference.heads import load_head
from serving.inference.microbatches import TokenizedTexts, load_tokenizer

MAX_BATCH = 64
_OUTPUTS = ("embedding", "tokens")


class PlainModel:
    """The exported model in its usual form: texts padded to the longest of the batch, one pass on all threads."""

    def __init__(self, encoder: str, head: str, *, threads: int = 2) -> None:
        bundle = Bundle.open(Path(encoder))
        settings = EncoderSettings.from_manifest(bundle.manifest)
        self._tokenizer = load_tokenizer(bundle, settings)
        self._run = _session(bundle.file(ENGINES[settings.engine]), settings.engine, threads)
        self._head = load_head(Bundle.open(Path(head)))

    def __call__(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Return an answer for each text."""
        tokenised = TokenizedTexts(self._tokenizer, texts)
        batch = tokenised.pad(range(len(texts)))
        return _answers(self._head.scores(batch.to_micro_batch(texts, *self._run(batch.inputs))))


class Model:
    """The model with our micro-batches, sorted by length, two at a time."""

    def __init__(self, encoder: str, head: str, *, threads: int = 2) -> None:
        self._encoder = open_encoder(Bundle.open(Path(encoder)), threads=threads)
        self._encoder.warm_up(30)
        self._head = load_head(Bundle.open(Path(head)))

    def __call__(self, texts: Sequence[str], *, bulk: bool = False) -> list[dict[str, Any]]:
        """Return an answer for each text."""
        scores = np.zeros((len(texts), len(LABELS)), np.float32)
        for batch in self._encoder.run(texts, bulk=bulk):
            scores[batch.rows] = self._head.scores(batch)
        return _answers(scores)


def _answers(scores: NDArray[np.float32]) -> list[dict[str, Any]]:
    return [
        {"sentiment": LABELS[int(row.argmax())], "scores": dict(zip(LABELS, row.tolist(), strict=True))}
        for row in scores
    ]


def _session(file: Path, engine: Engine, threads: int) -> Callable[[dict[str, Any]], Any]:
    """Embedding and token states of padded inputs, on all threads."""
    if engine is Engine.INT8:
        import openvino as ov

        hints = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
        compiled = ov.Core().compile_model(file, "CPU", hints)
        return lambda inputs: [compiled(inputs)[name] for name in _OUTPUTS]
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(_OUTPUTS, inputs)
