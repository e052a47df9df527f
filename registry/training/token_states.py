"""Token states and vectors of many texts, computed once and cached as arrays on disk. Never trains."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from registry.encoders.inputs import pad_rows

_CHUNK = 1024

Progress = Callable[[str, float], None]


class EncodedBatch(Protocol):
    """Some of a call's texts, encoded.

    `rows` int64 [b] into the texts, `tokens` [b, t, w], `mask` [b, t], `embedding` [b, d] of unit length.
    """

    @property
    def rows(self) -> NDArray[np.int64]: ...

    @property
    def tokens(self) -> NDArray[np.float32]: ...

    @property
    def mask(self) -> NDArray[np.bool_]: ...

    @property
    def embedding(self) -> NDArray[np.float32]: ...


class TextEncoder(Protocol):
    """An encoder as training needs it: its identity, its engine, and every text once in any order."""

    @property
    def digest(self) -> str: ...

    @property
    def engine(self) -> str: ...

    def run(self, texts: Sequence[str]) -> Iterator[EncodedBatch]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenStates:
    """The states of n texts in a row: float16 [tokens, w]; text i has the rows `offsets[i]:offsets[i + 1]`."""

    states: NDArray[np.float16]
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @property
    def width(self) -> int:
        return int(self.states.shape[1])

    def pad(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the texts `rows` as float32 [b, t, w], zero where the mask, bool [b, t], is False."""
        return pad_rows([self.states[self.offsets[row] : self.offsets[row + 1]] for row in rows], np.float32)


def collect_vectors(
    texts: Sequence[str], encoder: TextEncoder, *, cache: Path, progress: Progress
) -> NDArray[np.float16]:
    """Return the vectors of `texts` [n, d], of unit length; read from `cache` like the states of `collect_states`."""
    file = cache / f"vectors-{_digest(texts, encoder)}.npy"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        chunks = []
        for start in range(0, len(texts), _CHUNK):
            chunks.append(encode_vectors(texts[start : start + _CHUNK], encoder))
            progress("encoding", min(1.0, (start + _CHUNK) / len(texts)))
        partial = file.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(chunks).astype(np.float16))
        os.replace(partial, file)
    vectors: NDArray[np.float16] = np.load(file)
    return vectors


def encode_vectors(texts: Sequence[str], encoder: TextEncoder) -> NDArray[np.float32]:
    """Return the vectors of `texts` [n, d], of unit length."""
    vectors: dict[int, NDArray[np.float32]] = {}
    for batch in encoder.run(texts):
        vectors.update(zip(batch.rows.tolist(), batch.embedding, strict=True))
    return np.stack([vectors[row] for row in range(len(texts))])


def collect_states(
    texts: Sequence[str], encoder: TextEncoder, *, cache: Path, progress: Progress
) -> TokenStates:
    """Return the states of `texts`; read them from `cache` if the same engine of the same encoder computed them before.

    The cache takes 2 bytes a value: with three layers of 384 dimensions, 4.3 GB for 62,000 sentences.
    """
    digest = _digest(texts, encoder)
    file, index = cache / f"states-{digest}.f16", cache / f"states-{digest}.npy"
    if not index.exists():
        cache.mkdir(parents=True, exist_ok=True)
        lengths = _write(texts, encoder, file, progress)
        partial = index.with_suffix(".partial.npy")
        np.save(partial, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        os.replace(partial, index)
    offsets = np.load(index)
    states = np.memmap(file, dtype=np.float16, mode="r").reshape(int(offsets[-1]), -1)
    return TokenStates(states=states, offsets=offsets)


def _digest(texts: Sequence[str], encoder: TextEncoder) -> str:
    return hashlib.sha256(json.dumps([encoder.digest, encoder.engine, *texts]).encode()).hexdigest()[:16]


def _write(texts: Sequence[str], encoder: TextEncoder, file: Path, progress: Progress) -> list[int]:
    lengths: list[int] = []
    with file.open("wb") as stream:
        for start in range(0, len(texts), _CHUNK):
            chunk = texts[start : start + _CHUNK]
            chunk_states: list[NDArray[np.float16] | None] = [None] * len(chunk)
            for batch in encoder.run(chunk):
                for index, row in enumerate(batch.rows):
                    chunk_states[row] = batch.tokens[index][batch.mask[index]].astype(np.float16)
            for states in chunk_states:
                if states is None:
                    raise ValueError("the encoder left out a text")
                lengths.append(len(states))
                stream.write(states.tobytes())
            progress("encoding", min(1.0, (start + _CHUNK) / len(texts)))
    return lengths
