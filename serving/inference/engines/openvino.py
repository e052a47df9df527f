"""Encoders on CPU by OpenVINO, in int8.

Under load each thread runs its own stream; when idle all threads run one text.
"""

import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from registry.bundles.bundle import Bundle
from registry.bundles.manifest_schema import ENGINES, EncoderSettings, Engine
from serving.inference.engines.scheduler import RunningCalls, Scheduler
from serving.inference.microbatches import (
    BULK_TOKEN_BUDGET,
    MAX_ROWS,
    TOKEN_BUDGET,
    MicroBatch,
    MicroBatchPlan,
    TokenizedTexts,
    WarmUp,
    load_tokenizer,
    plan_micro_batches,
)

FINE_STEP, FINE_LENGTH, COARSE_STEP = 8, 72, 16


def pad_length(length: int) -> int:
    """Return the length to which a text of `length` tokens is padded: few shapes, each compiled once."""
    step = FINE_STEP if length <= FINE_LENGTH else COARSE_STEP
    return -(-length // step) * step


class OpenVinoEncoder:
    """Runs an encoder bundle in micro-batches of few shapes.

    A text's result is the same to the last bit, whatever shares its pass: scales are calibrated, and a text is always
    padded to the same length. Another length would add in another order, which rounding to 8 bits makes visible.
    """

    engine = Engine.INT8

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        self.settings = EncoderSettings.from_manifest(bundle.manifest)
        self.digest = self.settings.digest
        self.threads = threads
        self._tokenizer = load_tokenizer(bundle, self.settings)
        core = ov.Core()
        model = core.read_model(bundle.file(ENGINES[self.engine]))
        streams = core.compile_model(model, "CPU", _properties(streams=threads, threads=threads))
        self._scheduler = Scheduler(threads)
        self._idle: SimpleQueue[ov.InferRequest] = SimpleQueue()
        for _ in range(threads):
            self._idle.put(streams.create_infer_request())
        self._solo = (
            core.compile_model(model, "CPU", _properties(streams=1, threads=threads)).create_infer_request()
            if threads > 1
            else None
        )
        self._cold = deque(_likely_shapes(self.settings.max_length))
        self._shapes = len(self._cold)
        self._solo_lock = threading.Lock()
        self._calls = RunningCalls()

    def run(
        self, texts: Sequence[str], *, bulk: bool = False, queries: Collection[int] = ()
    ) -> Iterator[MicroBatch]:
        tokenized = TokenizedTexts(self._tokenizer, self.settings, texts, queries)
        rows = plan_micro_batches(
            tokenized.lengths,
            threads=self.threads,
            budget=BULK_TOKEN_BUDGET if bulk else TOKEN_BUDGET,
            pad_length=pad_length,
            mix_lengths=False,
        )
        plans = [tokenized.pad(each, pad_length=pad_length) for each in rows]
        with self._calls as running:
            alone = running == 1 and len(plans) == 1
            if alone and (result := self._run_on_all_threads(plans[0], texts)) is not None:
                yield result
            else:
                yield from self._scheduler.map(
                    lambda plan: self._run_on_one_thread(plan, texts), plans, bulk=bulk
                )

    def warm_up(self, budget_s: float) -> WarmUp:
        started = time.monotonic()
        while self._cold:
            self._compile(*self._cold.popleft())
            if time.monotonic() - started >= budget_s:
                break
        return WarmUp(
            shapes=self._shapes - len(self._cold), of=self._shapes, seconds=time.monotonic() - started
        )

    def _run_on_all_threads(self, plan: MicroBatchPlan, texts: Sequence[str]) -> MicroBatch | None:
        """Run one micro-batch on all threads; return None if a shape is being compiled there."""
        if self._solo is None or not self._solo_lock.acquire(blocking=False):
            return None
        try:
            self._solo.infer(plan.inputs, share_inputs=True)
            return plan.to_micro_batch(texts, *_outputs(self._solo))
        finally:
            self._solo_lock.release()

    def _run_on_one_thread(self, plan: MicroBatchPlan, texts: Sequence[str]) -> MicroBatch:
        request = self._idle.get()
        try:
            request.infer(plan.inputs, share_inputs=True)
            return plan.to_micro_batch(texts, *_outputs(request))
        finally:
            self._idle.put(request)

    def _compile(self, rows: int, length: int) -> None:
        ones = np.ones((rows, length), dtype=np.int64)
        inputs = {"input_ids": ones, "attention_mask": ones}
        if rows == 1 and self._solo is not None:
            with self._solo_lock:
                self._solo.infer(inputs, share_inputs=True)
        requests = [self._idle.get() for _ in range(self.threads)]
        for request in requests:
            request.start_async(inputs, share_inputs=True)
        for request in requests:
            request.wait()
            self._idle.put(request)


def _properties(*, streams: int, threads: int) -> Mapping[str, Any]:
    return {
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        # Pinned threads would wait for a core that another process uses.
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",
        # The shapes need more compiled primitives than the default of 5,000.
        "CPU_RUNTIME_CACHE_CAPACITY": 50_000,
    }


def _likely_shapes(max_length: int) -> list[tuple[int, int]]:
    """Return every (rows, padded length) that `plan_micro_batches` can give, the likeliest first."""
    lengths = sorted({pad_length(length) for length in range(3, max_length + 1)})
    shapes = [
        (rows, length) for length in lengths for rows in range(1, min(MAX_ROWS, TOKEN_BUDGET // length) + 1)
    ]
    return sorted(
        shapes, key=lambda shape: (shape[1] > FINE_LENGTH, shape[0] != 1, shape[0] != MAX_ROWS, shape[1])
    )


def _outputs(request: ov.InferRequest) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Copy the results: the next inference overwrites the request's own memory."""
    embedding: NDArray[np.float32] = request.get_tensor("embedding").data.copy()
    tokens: NDArray[np.float32] = request.get_tensor("tokens").data.copy()
    return embedding, tokens
