"""Encoders on CPU by ONNX Runtime, float32 or int8 by token: no shape is compiled, so texts are hardly padded."""

import threading
import time
from collections.abc import Iterator, Sequence

import onnxruntime as ort

from registry.bundles.bundle import Bundle
from registry.bundles.manifest_schema import ENGINES, EncoderSettings, Engine
from serving.inference.engines.scheduler import Scheduler
from serving.inference.microbatches import (
    BULK_TOKEN_BUDGET,
    TOKEN_BUDGET,
    MicroBatch,
    MicroBatchPlan,
    TokenizedTexts,
    WarmUp,
    load_tokenizer,
    plan_micro_batches,
)

_OUTPUTS = ("embedding", "tokens")
_ERRORS_ONLY = 3


class OnnxEncoder:
    """Runs an encoder bundle: one micro-batch a thread under load, all threads on one text when idle."""

    def __init__(self, bundle: Bundle, *, engine: Engine = Engine.FP32, threads: int = 1) -> None:
        self.engine = engine
        self.settings = EncoderSettings.from_manifest(bundle.manifest)
        self.digest = self.settings.digest
        self.threads = threads
        self._tokenizer = load_tokenizer(bundle, self.settings)
        model = str(bundle.file(ENGINES[engine]))
        self._narrow = _session(model, threads=1)
        self._wide = _session(model, threads=threads) if threads > 1 else self._narrow
        self._lanes = Scheduler(threads)
        self._running = 0
        self._counting = threading.Lock()

    def run(self, texts: Sequence[str], *, bulk: bool = False) -> Iterator[MicroBatch]:
        tokenised = TokenizedTexts(self._tokenizer, texts)
        cuts = [
            tokenised.pad(rows)
            for rows in plan_micro_batches(
                tokenised.lengths, lanes=self.threads, budget=BULK_TOKEN_BUDGET if bulk else TOKEN_BUDGET
            )
        ]
        alone = self._count(+1) == 1 and len(cuts) == 1
        try:
            if alone:
                yield cuts[0].passed(texts, *self._wide.run(_OUTPUTS, cuts[0].inputs))
            else:

                def passed(piece: MicroBatchPlan) -> MicroBatch:
                    return piece.passed(texts, *self._narrow.run(_OUTPUTS, piece.inputs))

                yield from self._lanes.map(passed, cuts, bulk=bulk)
        finally:
            self._count(-1)

    def warm_up(self, budget_s: float) -> WarmUp:  # noqa: ARG002  (two short passes are all it needs)
        started = time.monotonic()
        for texts in (["warm"], ["warm", "up"]):
            for _ in self.run(texts):
                pass
        return WarmUp(shapes=1, of=1, seconds=time.monotonic() - started)

    def _count(self, step: int) -> int:
        with self._counting:
            self._running += step
            return self._running


def _session(model: str, *, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # Between two passes threads that wait busily would take the cores from the ingress and the database.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
