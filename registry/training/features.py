"""Frozen token states of many texts, computed once and kept as arrays on disk. Never trains or judges."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

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
    """States of n texts in a row: float16 [tokens, w]; text i has `offsets[i]` to `offsets[i + 1]`."""

    states: NDArray[np.float16]
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @property
    def width(self) -> int:
        return int(self.states.shape[1])

    def padded(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The texts `rows` as float32 [b, t, w], zero where mask, bool [b, t], is False."""
        lengths = self.lengths[rows]
        mask = np.arange(lengths.max())[None, :] < lengths[:, None]
        flat = np.concatenate([np.arange(self.offsets[row], self.offsets[row + 1]) for row in rows])
        tokens = np.zeros((*mask.shape, self.width), dtype=np.float32)
        tokens[mask] = self.states[flat]
        return tokens, mask


def collect_vectors(
    texts: Sequence[str], encoder: TextEncoder, *, cache: Path, progress: Progress
) -> NDArray[np.float16]:
    """The vectors of `texts` [n, d], of unit length; read from `cache` like those of `collect`."""
    file = cache / f"vectors-{_digest(texts, encoder)}.npy"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        chunks = []
        for start in range(0, len(texts), _CHUNK):
            chunks.append(vectors(texts[start : start + _CHUNK], encoder))
            progress("encoding", min(1.0, (start + _CHUNK) / len(texts)))
        partial = file.with_suffix(".partial.npy")
        np.save(partial, np.concatenate(chunks).astype(np.float16))
        os.replace(partial, file)
    found: NDArray[np.float16] = np.load(file)
    return found


def vectors(texts: Sequence[str], encoder: TextEncoder) -> NDArray[np.float32]:
    """The vectors of `texts` [n, d], of unit length."""
    found: dict[int, NDArray[np.float32]] = {}
    for batch in encoder.run(texts):
        found.update(zip(batch.rows.tolist(), batch.embedding, strict=True))
    return np.stack([found[row] for row in range(len(texts))])


def collect(texts: Sequence[str], encoder: TextEncoder, *, cache: Path, progress: Progress) -> TokenStates:
    """The states of `texts`; read from `cache` if the same engine of the same encoder saw them before.

    Takes 2 bytes a value: with three layers of 384 dimensions, 4.3 GB for 62,000 sentences.
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
            found: list[NDArray[np.float16] | None] = [None] * len(chunk)
            for batch in encoder.run(chunk):
                for place, row in enumerate(batch.rows):
                    found[row] = batch.tokens[place][batch.mask[place]].astype(np.float16)
            for states in found:
                if states is None:
                    raise ValueError("the encoder left out a text")
                lengths.append(len(states))
                stream.write(states.tobytes())
            progress("encoding", min(1.0, (start + _CHUNK) / len(texts)))
    return lengths
