"""The physical limit: the platform's encoder and head alone in this process, without HTTP, queue or database."""

import time
from pathlib import Path

from benchmarks.load import sentences
from benchmarks.peers.model import MAX_BATCH, Model
from registry.store.builtin_versions import open_builtin
from tests.support.live import build_encoders


def encoder_folder() -> Path:
    """Return the bundle of the champion's encoder: the same engine for all."""
    *_, folder = build_encoders().values()
    return folder


def space_folder() -> Path:
    """Return the bundle of the space's own encoder."""
    folder, *_ = build_encoders().values()
    return folder


def head_folder() -> Path:
    """Return the bundle of the version that a fresh installation answers with."""
    return open_builtin("joint").path


class Limit:
    """The model, warm. Benchmarks measure it in every round, because a machine's speed changes within minutes."""

    def __init__(self, seed: int = 7) -> None:
        self._model = Model(str(encoder_folder()), str(head_folder()))
        self._texts = sentences(seed)
        self._model(self._texts[:MAX_BATCH])

    def per_second(self, seconds: float, batch: int = MAX_BATCH) -> float:
        """Return texts a second in batches of `size`; batches of over 64 texts take the engine's bulk path."""
        done, started = 0, time.perf_counter()
        while (taken := time.perf_counter() - started) < seconds:
            first = done % (len(self._texts) - batch)
            self._model(self._texts[first : first + batch], bulk=batch > MAX_BATCH)
            done += batch
        return done / taken
