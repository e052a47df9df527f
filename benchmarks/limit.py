"""The physical limit: the platform's encoder and head alone in this process, without HTTP, queue or database."""

import time
from pathlib import Path

from benchmarks.load import sentences
from benchmarks.peers.model import MAX_BATCH, Model
from registry.bootstrap import builtin
from registry.bundle import Bundle
from registry.export import build_encoder
from registry.sources import EncoderSource, default_source, joint_source

ENCODERS = Path(".cache/encoders")


def encoder_folder() -> Path:
    """The bundle of the champion's encoder, built where it lacks: the same engine for all."""
    return _built(joint_source(builtin("joint")))


def space_folder() -> Path:
    """The bundle of the space's own encoder, built where it lacks."""
    return _built(default_source())


def _built(source: EncoderSource) -> Path:
    folder = ENCODERS / source.digest[:16]
    if not folder.exists():
        build_encoder(source, folder)
    Bundle.open(folder)
    return folder


def head_folder() -> Path:
    """The bundle of the version that a fresh installation answers with."""
    return builtin("joint").path


class Limit:
    """The model, warm; asked again and again, because a machine's speed changes within minutes."""

    def __init__(self, seed: int = 7) -> None:
        self._model = Model(str(encoder_folder()), str(head_folder()))
        self._texts = sentences(seed)
        self._model(self._texts[:MAX_BATCH])

    def per_second(self, seconds: float, batch: int = MAX_BATCH) -> float:
        """Texts a second in batches of that many; those of over 64 in the engine's way with many texts."""
        done, started = 0, time.perf_counter()
        while (taken := time.perf_counter() - started) < seconds:
            first = done % (len(self._texts) - batch)
            self._model(self._texts[first : first + batch], bulk=batch > MAX_BATCH)
            done += batch
        return done / taken
