"""Encoders on CPU by ONNX Runtime: int8 with scales of each text, so one text a pass and no padding."""

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from registry.bundle import Bundle
from registry.layout import ENGINES, EncoderSettings, Engine
from serving.encoder import Cut, MicroBatch, Tokenised, WarmUp, cut, micro_batch, tokenizer_of

_OUTPUTS = ("embedding", "tokens")
_QUIET = 3
_AHEAD = 2

Pass = tuple[NDArray[np.float32], NDArray[np.float32]]


class OnnxEncoder:
    """Runs an encoder bundle a text at a time: one text a thread under load, all threads on one text when idle.

    A scale is taken from the activations of a whole pass; with one text in it no other text can change the answer.
    """

    engine = Engine.INT8_DYNAMIC

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        self.settings = EncoderSettings.of(bundle.manifest)
        self.digest = self.settings.digest
        self._tokenizer = tokenizer_of(bundle, self.settings)
        model = str(bundle.file(ENGINES[self.engine]))
        self._session = _session(model, threads=1)
        self._wide = _session(model, threads=threads) if threads > 1 else self._session
        self._lanes = ThreadPoolExecutor(threads, thread_name_prefix="lane")
        self._running = 0
        self._counting = threading.Lock()

    def run(self, texts: Sequence[str]) -> Iterator[MicroBatch]:
        tokenised = Tokenised(self._tokenizer, texts)
        alone = self._count(+1) == 1 and len(texts) == 1
        try:
            if alone:
                only = tokenised.pad([0])
                yield _joined(only, texts, [_pass(self._wide, only, 0)])
                return
            yield from self._run_lanes(
                [tokenised.pad(rows) for rows in cut(tokenised.lengths, lanes=1)], texts
            )
        finally:
            self._count(-1)

    def warm_up(self, budget_s: float) -> WarmUp:  # noqa: ARG002  (nothing is compiled by shape)
        started = time.monotonic()
        for texts in (["warm"], ["warm", "up"]):
            for _ in self.run(texts):
                pass
        return WarmUp(shapes=1, of=1, seconds=time.monotonic() - started)

    def _run_lanes(self, cuts: Sequence[Cut], texts: Sequence[str]) -> Iterator[MicroBatch]:
        flying: deque[tuple[Cut, list[Future[Pass]]]] = deque()
        waiting = deque(cuts)
        try:
            while waiting or flying:
                while waiting and len(flying) <= _AHEAD:
                    each = waiting.popleft()
                    rows = range(len(each.rows))
                    flying.append(
                        (each, [self._lanes.submit(_pass, self._session, each, row) for row in rows])
                    )
                landed, passes = flying[0]
                done = [one.result() for one in passes]
                flying.popleft()
                yield _joined(landed, texts, done)
        finally:
            for _, passes in flying:
                for one in passes:
                    one.cancel()

    def _count(self, step: int) -> int:
        with self._counting:
            self._running += step
            return self._running


def _session(model: str, *, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _QUIET
    # Threads that wait busily would take the cores from the ingress and the database.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _pass(session: ort.InferenceSession, cut: Cut, row: int) -> Pass:
    """One text: its vector [d] and its token states [t, w]."""
    length = int(cut.mask[row].sum())
    inputs = {
        "input_ids": cut.ids[row : row + 1, :length],
        "attention_mask": cut.mask[row : row + 1, :length],
    }
    embedding, tokens = session.run(_OUTPUTS, inputs)
    return embedding[0], tokens[0]


def _joined(cut: Cut, texts: Sequence[str], passes: Sequence[Pass]) -> MicroBatch:
    """The passes over one cut's texts as one micro-batch, so that heads work on all of them at once."""
    tokens = np.zeros((*cut.mask.shape, passes[0][1].shape[1]), dtype=np.float32)
    for row, (_, states) in enumerate(passes):
        tokens[row, : len(states)] = states
    return micro_batch(cut, texts, np.stack([embedding for embedding, _ in passes]), tokens)
