"""Encoders on CPU by ONNX Runtime, float32 or int8 by token.

ONNX Runtime compiles no shapes, so texts need little padding.
"""

from collections.abc import Collection, Iterator, Sequence

import onnxruntime as ort

from registry.bundles.bundle import Bundle
from registry.bundles.manifest_schema import ENGINES, EncoderSettings, Engine
from serving.inference.encoder import warm_up_by_running
from serving.inference.engines.scheduler import RunningCalls, Scheduler
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
    """Runs one micro-batch on each thread under load, or one text on all threads when idle."""

    def __init__(self, bundle: Bundle, *, engine: Engine = Engine.FP32, threads: int = 1) -> None:
        self.engine = engine
        self.settings = EncoderSettings.from_manifest(bundle.manifest)
        self.digest = self.settings.digest
        self.threads = threads
        self._tokenizer = load_tokenizer(bundle, self.settings)
        model = str(bundle.file(ENGINES[engine]))
        self._narrow = _session(model, threads=1)
        self._wide = _session(model, threads=threads) if threads > 1 else self._narrow
        self._scheduler = Scheduler(threads)
        self._calls = RunningCalls()

    def run(
        self, texts: Sequence[str], *, bulk: bool = False, queries: Collection[int] = ()
    ) -> Iterator[MicroBatch]:
        tokenized = TokenizedTexts(self._tokenizer, self.settings, texts, queries)
        plans = [
            tokenized.pad(rows)
            for rows in plan_micro_batches(
                tokenized.lengths, threads=self.threads, budget=BULK_TOKEN_BUDGET if bulk else TOKEN_BUDGET
            )
        ]
        with self._calls as running:
            if running == 1 and len(plans) == 1:
                yield plans[0].to_micro_batch(texts, *self._wide.run(_OUTPUTS, plans[0].inputs))
            else:

                def run_pass(plan: MicroBatchPlan) -> MicroBatch:
                    return plan.to_micro_batch(texts, *self._narrow.run(_OUTPUTS, plan.inputs))

                yield from self._scheduler.map(run_pass, plans, bulk=bulk)

    def warm_up(self, budget_s: float) -> WarmUp:  # noqa: ARG002  (two short passes are enough)
        return warm_up_by_running(self.run, ["warm"], ["warm", "up"])


def _session(model: str, *, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    # Threads that spin between two passes would take the cores from the ingress and the database.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
