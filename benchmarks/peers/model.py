"""The model that every peer but the tutorial serves: the platform's own encoder, engine and head."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from registry.bundle import LABELS, Bundle
from serving.encoder import open_encoder
from serving.heads import load_head

MAX_BATCH = 64


class Model:
    """Opened from the folders of an encoder's and a head's bundle."""

    def __init__(self, encoder: str, head: str, *, threads: int = 2) -> None:
        self._encoder = open_encoder(Bundle.open(Path(encoder)), threads=threads)
        self._encoder.warm_up(30)
        self._head = load_head(Bundle.open(Path(head)))

    def __call__(self, texts: Sequence[str], *, bulk: bool = False) -> list[dict[str, Any]]:
        """An answer for each text."""
        scores = np.zeros((len(texts), len(LABELS)), np.float32)
        for batch in self._encoder.run(texts, bulk=bulk):
            scores[batch.rows] = self._head.scores(batch)
        return [
            {"sentiment": LABELS[int(row.argmax())], "scores": dict(zip(LABELS, row.tolist(), strict=True))}
            for row in scores
        ]
