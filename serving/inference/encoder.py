"""Text to vectors: the interface of every engine. Knows no engine and no head."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

from registry.bundles.manifest_schema import EncoderSettings
from serving.inference.microbatches import MicroBatch, WarmUp


class Encoder(Protocol):
    """Turns texts into vectors. Several threads may call it; the other texts of a batch change no result."""

    settings: EncoderSettings
    digest: str

    @property
    def engine(self) -> str:
        """The name of the engine: an `Engine`, or torch."""
        ...

    def run(
        self, texts: Sequence[str], *, bulk: bool = False, queries: Collection[int] = ()
    ) -> Iterator[MicroBatch]:
        """Encode every text once, in micro-batches of any order; `bulk` lets other calls go first.

        The texts at the places `queries` are to find others by, which some encoders prompt for.
        """
        ...

    def warm_up(self, budget_s: float) -> WarmUp:
        """Compile input shapes that occur, the likeliest first: at least one, until the time is over.

        The next call continues from there. One caller at a time.
        """
        ...


def warm_up_by_running(
    run: Callable[[Sequence[str]], Iterator[MicroBatch]], *batches: Sequence[str]
) -> WarmUp:
    """Warm an engine up that compiles no shapes, by running it once on each batch."""
    started = time.monotonic()
    for texts in batches:
        for _ in run(texts):
            pass
    return WarmUp(shapes=1, of=1, seconds=time.monotonic() - started)
