"""The cosine between two texts: after small edits of one, and between unrelated texts.

Measured on an encoder's bundle in a folder. Run by `python -m benchmarks.near_duplicates FOLDER`.
"""

import argparse
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.load import sentences
from benchmarks.report import report
from registry.bundles.bundle import Bundle
from serving.inference.encoder import Encoder
from serving.inference.engines.factory import open_encoder

TEXTS = 500
BOUND = 0.95


def typo(text: str, draw: random.Random) -> str:
    """Swap two letters."""
    at = draw.randrange(len(text) - 1)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def shorter(text: str, draw: random.Random) -> str:
    """Leave one word out."""
    words = text.split()
    del words[draw.randrange(len(words))]
    return " ".join(words)


EDITS: dict[str, Callable[[str, random.Random], str]] = {
    "in capitals": lambda text, _: text.upper(),
    "no full stop at the end, or one more": lambda text, _: text[:-1] if text[-1] in ".!?" else text + ".",
    "a link behind it": lambda text, _: text + " https://t.co/a1B2c3",
    "two letters changed places": typo,
    "a word less": shorter,
    "turned into its opposite: “not ” before it": lambda text, _: "not " + text,
}


def vectors(encoder: Encoder, texts: list[str]) -> np.ndarray:
    """float32 [n, d]"""
    found = np.zeros((len(texts), 384), np.float32)
    for batch in encoder.run(texts):
        found[batch.rows] = batch.embedding
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    encoder = open_encoder(Bundle.open(arguments.folder))
    texts = [text for text in sentences() if 8 <= len(text.split()) <= 30][:TEXTS]
    plain = vectors(encoder, texts)
    rows = [("what", "cosine: median", "5 % quantile", f"at {BOUND} or above")]
    found = {}
    for name, edit in EDITS.items():
        draw = random.Random(1)
        cosines = (plain * vectors(encoder, [edit(text, draw) for text in texts])).sum(axis=1)
        found[name] = [round(float(cosine), 4) for cosine in cosines]
    near = plain @ plain.T
    np.fill_diagonal(near, -1)
    found["the nearest of the other texts"] = [round(float(cosine), 4) for cosine in near.max(axis=1)]
    for name, each in found.items():
        share = np.mean(np.array(each) >= BOUND)
        rows.append((name, f"{np.median(each):.3f}", f"{np.quantile(each, 0.05):.3f}", f"{share:.0%}"))
    report("near_duplicates", rows, {"cosines": found, "engine": encoder.engine})


if __name__ == "__main__":
    main()
