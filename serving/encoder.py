"""Text to vectors: tokenise, cut into micro-batches, run the encoder. OpenVINO on CPU, torch on GPU.

Never imports torch, transformers or ONNX Runtime unless the torch encoder is asked for; knows no head.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from registry.bundle import Bundle
from registry.layout import ENGINES, TOKENIZER, WEIGHTS, EncoderSettings, Engine

if TYPE_CHECKING:
    import torch

MAX_ROWS = 16
TOKEN_BUDGET = 1024
FINE_STEP, FINE_LENGTH, COARSE_STEP = 4, 72, 16


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """What one pass over at most `MAX_ROWS` texts gave; row i of each array belongs to `rows[i]`.

    `rows`: int64 [b], indices into the texts that were given. `embedding`: float32 [b, d], unit length.
    `tokens`: float32 [b, t, w], the token states that heads may read. `mask`: bool [b, t], False is padding.
    `truncated`: bool [b], the text is longer than the encoder reads.
    """

    rows: NDArray[np.int64]
    texts: tuple[str, ...]
    embedding: NDArray[np.float32]
    tokens: NDArray[np.float32]
    mask: NDArray[np.bool_]
    truncated: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmUp:
    """How many of the input shapes that occur are compiled, and how long that took."""

    shapes: int
    of: int
    seconds: float

    @property
    def complete(self) -> bool:
        return self.shapes == self.of


class Encoder(Protocol):
    """Turns texts into vectors. Safe to call from several threads; batch-mates change nothing."""

    settings: EncoderSettings
    digest: str
    device: str

    def run(self, texts: Sequence[str]) -> Iterator[MicroBatch]:
        """Every text once, in micro-batches whose order is free."""
        ...

    def warm_up(self, budget_s: float) -> WarmUp:
        """Compiles input shapes that occur, the likeliest first: at least one, until the time is over.

        The next call goes on where this one ended. One caller at a time.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cut:
    """The padded input of one micro-batch."""

    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    truncated: NDArray[np.bool_]

    @property
    def inputs(self) -> dict[str, NDArray[np.int64]]:
        return {"input_ids": self.ids, "attention_mask": self.mask}


def padded_length(length: int) -> int:
    """The length a text of `length` tokens is padded to: few shapes, each compiled once."""
    step = FINE_STEP if length <= FINE_LENGTH else COARSE_STEP
    return -(-length // step) * step


def cut(lengths: Sequence[int], *, lanes: int, max_rows: int = MAX_ROWS) -> list[list[int]]:
    """Indices sorted by length and cut into micro-batches, longest first, as many for each lane."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    rounds = max(1, -(-len(order) // (lanes * max_rows)))
    share = max(1, -(-len(order) // (lanes * rounds)))
    cuts: list[list[int]] = []
    start = 0
    while start < len(order):
        rows = max(1, min(share, TOKEN_BUDGET // padded_length(lengths[order[start]])))
        cuts.append(order[start : start + rows])
        start += rows
    return cuts


class _Tokenised:
    """Texts as token ids, ready to be cut."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        self._encodings: list[Encoding] = tokenizer.encode_batch_fast(list(texts))
        self.lengths = [len(encoding.ids) for encoding in self._encodings]

    def pad(self, rows: Sequence[int]) -> _Cut:
        length = padded_length(max(self.lengths[row] for row in rows))
        ids = np.zeros((len(rows), length), dtype=np.int64)
        mask = np.zeros((len(rows), length), dtype=np.int64)
        for place, row in enumerate(rows):
            ids[place, : self.lengths[row]] = self._encodings[row].ids
            mask[place, : self.lengths[row]] = 1
        truncated = np.array([bool(self._encodings[row].overflowing) for row in rows])
        return _Cut(rows=np.array(rows, dtype=np.int64), ids=ids, mask=mask, truncated=truncated)


def _tokenizer(bundle: Bundle, settings: EncoderSettings) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(bundle.file(TOKENIZER)))
    tokenizer.no_padding()
    tokenizer.enable_truncation(settings.max_length)
    return tokenizer


def _micro_batch(
    cut: _Cut, texts: Sequence[str], embedding: NDArray[np.float32], tokens: NDArray[np.float32]
) -> MicroBatch:
    return MicroBatch(
        rows=cut.rows,
        texts=tuple(texts[row] for row in cut.rows),
        embedding=embedding,
        tokens=tokens,
        mask=cut.mask.astype(np.bool_),
        truncated=cut.truncated,
    )


class OpenVinoEncoder:
    """Runs an encoder bundle on CPU: one stream a thread under load, all threads on one text when idle.

    `engine` None takes the one that was measured to be fastest where the bundle was built.
    """

    device = "cpu"

    def __init__(self, bundle: Bundle, *, engine: Engine | None = None, threads: int = 1) -> None:
        self.settings = EncoderSettings.of(bundle.manifest)
        self.digest = self.settings.digest
        self.engine = engine or self.settings.engine
        self.threads = threads
        self._tokenizer = _tokenizer(bundle, self.settings)
        core = ov.Core()
        model = core.read_model(bundle.file(ENGINES[self.engine]))
        lanes = core.compile_model(model, "CPU", _properties(streams=threads, threads=threads))
        self._idle_lanes: SimpleQueue[ov.InferRequest] = SimpleQueue()
        for _ in range(threads):
            self._idle_lanes.put(lanes.create_infer_request())
        self._solo = (
            core.compile_model(model, "CPU", _properties(streams=1, threads=threads)).create_infer_request()
            if threads > 1
            else None
        )
        self._cold = deque(_likely_shapes(self.settings.max_length))
        self._shapes = len(self._cold)
        self._solo_free = threading.Lock()
        self._busy = 0
        self._counting = threading.Lock()

    def run(self, texts: Sequence[str]) -> Iterator[MicroBatch]:
        tokenised = _Tokenised(self._tokenizer, texts)
        cuts = [tokenised.pad(rows) for rows in cut(tokenised.lengths, lanes=self.threads)]
        if len(cuts) == 1:
            alone = self._run_solo(cuts[0], texts)
            if alone is not None:
                yield alone
                return
        yield from self._run_lanes(cuts, texts)

    def warm_up(self, budget_s: float) -> WarmUp:
        started = time.monotonic()
        while self._cold:
            self._compile(*self._cold.popleft())
            if time.monotonic() - started >= budget_s:
                break
        return WarmUp(
            shapes=self._shapes - len(self._cold), of=self._shapes, seconds=time.monotonic() - started
        )

    def _run_solo(self, only: _Cut, texts: Sequence[str]) -> MicroBatch | None:
        """All threads on one micro-batch, if no other call is running."""
        if self._solo is None or self._busy or not self._solo_free.acquire(blocking=False):
            return None
        try:
            self._solo.infer(only.inputs, share_inputs=True)
            return _micro_batch(only, texts, *_outputs(self._solo))
        finally:
            self._solo_free.release()

    def _run_lanes(self, cuts: Sequence[_Cut], texts: Sequence[str]) -> Iterator[MicroBatch]:
        flying: deque[tuple[ov.InferRequest, _Cut]] = deque()
        waiting = deque(cuts)
        self._count(+1)
        try:
            while waiting or flying:
                while waiting and (lane := self._lane(wait=not flying)) is not None:
                    flying.append((lane, waiting[0]))
                    lane.start_async(waiting.popleft().inputs, share_inputs=True)
                lane, landed = flying[0]
                lane.wait()
                outputs = _outputs(lane)
                flying.popleft()
                self._idle_lanes.put(lane)
                yield _micro_batch(landed, texts, *outputs)
        finally:
            self._count(-1)
            for lane, _ in flying:
                _settle(lane)
                self._idle_lanes.put(lane)

    def _lane(self, *, wait: bool) -> ov.InferRequest | None:
        try:
            return self._idle_lanes.get(block=wait)
        except Empty:
            return None

    def _compile(self, rows: int, length: int) -> None:
        ones = np.ones((rows, length), dtype=np.int64)
        inputs = {"input_ids": ones, "attention_mask": ones}
        if rows == 1 and self._solo is not None:
            with self._solo_free:
                self._solo.infer(inputs)
        lanes = [self._idle_lanes.get() for _ in range(self.threads)]
        for lane in lanes:
            lane.start_async(inputs)
        for lane in lanes:
            lane.wait()
            self._idle_lanes.put(lane)

    def _count(self, step: int) -> None:
        with self._counting:
            self._busy += step


class TorchEncoder:
    """Runs an encoder bundle on a torch device, in half precision on a GPU."""

    def __init__(self, bundle: Bundle, *, device: str = "cuda", max_rows: int = 64) -> None:
        import torch
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModel

        self.settings = EncoderSettings.of(bundle.manifest)
        self.digest = self.settings.digest
        self.device = device
        self._max_rows = max_rows
        self._tokenizer = _tokenizer(bundle, self.settings)
        self._torch = torch
        dtype = torch.float16 if device.startswith("cuda") else torch.float32
        config = AutoConfig.for_model(**self.settings.architecture)
        model = AutoModel.from_config(config, attn_implementation="sdpa", add_pooling_layer=False)
        model.load_state_dict(load_file(bundle.file(WEIGHTS)), strict=True)
        self._model = model.eval().to(device=device, dtype=dtype)

    def run(self, texts: Sequence[str]) -> Iterator[MicroBatch]:
        tokenised = _Tokenised(self._tokenizer, texts)
        for rows in cut(tokenised.lengths, lanes=1, max_rows=self._max_rows):
            piece = tokenised.pad(rows)
            embedding, tokens = self._forward(piece)
            yield _micro_batch(piece, texts, embedding, tokens)

    def warm_up(self, budget_s: float) -> WarmUp:  # noqa: ARG002  (one short pass is all it needs)
        started = time.monotonic()
        for _ in self.run(["warm"]):
            pass
        return WarmUp(shapes=1, of=1, seconds=time.monotonic() - started)

    def _forward(self, piece: _Cut) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        torch = self._torch
        with torch.inference_mode():
            ids = torch.from_numpy(piece.ids).to(self.device)
            mask = torch.from_numpy(piece.mask).to(self.device)
            states = self._model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
            last = states[-1].float()
            weights = mask.unsqueeze(-1).float()
            pooled = (last * weights).sum(1) / weights.sum(1)
            embedding = torch.nn.functional.normalize(pooled, dim=1)
            tokens = torch.cat([states[layer].float() for layer in self.settings.token_layers], dim=-1)
        return _numpy(embedding), _numpy(tokens)


def _numpy(tensor: "torch.Tensor") -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.cpu().numpy()
    return array


def _properties(*, streams: int, threads: int) -> Mapping[str, Any]:
    return {
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        # Pinned threads wait for a core that another process holds.
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",
        # The default of 5,000 compiled primitives is fewer than the shapes need.
        "CPU_RUNTIME_CACHE_CAPACITY": 50_000,
    }


def _likely_shapes(max_length: int) -> list[tuple[int, int]]:
    """Every (rows, padded length) that `cut` can make, the likeliest first."""
    lengths = sorted({padded_length(length) for length in range(3, max_length + 1)})
    shapes = [
        (rows, length) for length in lengths for rows in range(1, min(MAX_ROWS, TOKEN_BUDGET // length) + 1)
    ]
    return sorted(
        shapes, key=lambda shape: (shape[1] > FINE_LENGTH, shape[0] != 1, shape[0] != MAX_ROWS, shape[1])
    )


def _outputs(request: ov.InferRequest) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Copies: the request's own memory is written again by its next inference."""
    embedding: NDArray[np.float32] = request.get_tensor("embedding").data.copy()
    tokens: NDArray[np.float32] = request.get_tensor("tokens").data.copy()
    return embedding, tokens


def _settle(lane: ov.InferRequest) -> None:
    """Waits for an abandoned inference, whose result and error nobody wants."""
    try:
        lane.wait()
    except RuntimeError:
        return
