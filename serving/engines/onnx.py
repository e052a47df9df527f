"""Encoders on CPU by ONNX Runtime in float32: nothing is compiled by shape, so texts are padded as little as can be."""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import onnxruntime as ort

from registry.bundle import Bundle
from registry.layout import ENGINES, EncoderSettings, Engine
from serving.encoder import Cut, MicroBatch, Tokenised, WarmUp, cut, tokenizer_of

_OUTPUTS = ("embedding", "tokens")
_ERRORS_ONLY = 3


class OnnxEncoder:
    """Runs an encoder bundle: one micro-batch a thread under load, all threads on one text when idle."""

    engine = Engine.FP32

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        self.settings = EncoderSettings.of(bundle.manifest)
        self.digest = self.settings.digest
        self.threads = threads
        self._tokenizer = tokenizer_of(bundle, self.settings)
        model = str(bundle.file(ENGINES[self.engine]))
        self._narrow = _session(model, threads=1)
        self._wide = _session(model, threads=threads) if threads > 1 else self._narrow
        self._lanes = ThreadPoolExecutor(threads, thread_name_prefix="lane")
        self._running = 0
        self._counting = threading.Lock()

    def run(self, texts: Sequence[str]) -> Iterator[MicroBatch]:
        tokenised = Tokenised(self._tokenizer, texts)
        cuts = [tokenised.pad(rows) for rows in cut(tokenised.lengths, lanes=self.threads)]
        alone = self._count(+1) == 1 and len(cuts) == 1
        try:
            if alone:
                yield _passed(self._wide, cuts[0], texts)
            else:
                yield from self._run_lanes(cuts, texts)
        finally:
            self._count(-1)

    def warm_up(self, budget_s: float) -> WarmUp:  # noqa: ARG002  (two short passes are all it needs)
        started = time.monotonic()
        for texts in (["warm"], ["warm", "up"]):
            for _ in self.run(texts):
                pass
        return WarmUp(shapes=1, of=1, seconds=time.monotonic() - started)

    def _run_lanes(self, cuts: Sequence[Cut], texts: Sequence[str]) -> Iterator[MicroBatch]:
        flying: deque[Future[MicroBatch]] = deque()
        waiting = deque(cuts)
        try:
            while waiting or flying:
                # One more than can run, so that no thread waits for the caller.
                while waiting and len(flying) <= self.threads:
                    flying.append(self._lanes.submit(_passed, self._narrow, waiting.popleft(), texts))
                landed = flying[0].result()
                flying.popleft()
                yield landed
        finally:
            for flight in flying:
                flight.cancel()

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


def _passed(session: ort.InferenceSession, cut: Cut, texts: Sequence[str]) -> MicroBatch:
    return cut.passed(texts, *session.run(_OUTPUTS, cut.inputs))
