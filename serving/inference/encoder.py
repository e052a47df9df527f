"""Text to vectors: what every engine offers, whatever computes. Knows no engine and no head."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from registry.bundles.manifest_schema import EncoderSettings
from serving.inference.microbatches import MicroBatch, WarmUp


class Encoder(Protocol):
    """Turns texts into vectors. Safe to call from several threads; batch-mates change nothing."""

    settings: EncoderSettings
    digest: str

    @property
    def engine(self) -> str:
        """What computes: an `Engine`, or torch."""
        ...

    def run(self, texts: Sequence[str], *, bulk: bool = False) -> Iterator[MicroBatch]:
        """Every text once, in micro-batches whose order is free; `bulk` lets other calls go first."""
        ...

    def warm_up(self, budget_s: float) -> WarmUp:
        """Compiles input shapes that occur, the likeliest first: at least one, until the time is over.

        The next call goes on where this one ended. One caller at a time.
        """
        ...
