"""The held-out set: the labelled texts that versions are judged on, as one file that travels.

Comes with the package, so that no container has to fetch corpora. Nothing trains on these texts.
`python -m registry.data.held_out CACHE OUT` makes the file anew from the corpora.
"""

import gzip
import importlib.resources
import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from registry.bundles.bundle import LABELS
from registry.data import corpora
from registry.data.corpora import Example, Part
from registry.errors import CorpusUnavailable

FILE = "held-out.jsonl.gz"


@dataclass(frozen=True, kw_only=True)
class HeldOutSet:
    """Labelled texts in a fixed order; `digest` names exactly these texts, labels and sources."""

    examples: tuple[Example, ...]

    @cached_property
    def digest(self) -> str:
        return corpora.data_digest(self.examples)

    @property
    def texts(self) -> list[str]:
        return [example.text for example in self.examples]

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 [n], indices into `LABELS`."""
        return np.array([example.label for example in self.examples], dtype=np.int64)

    @property
    def sources(self) -> NDArray[np.str_]:
        """Str [n]: the corpus of each text."""
        return np.array([example.source for example in self.examples])

    def dump(self) -> bytes:
        """JSON lines, compressed; the same bytes for the same set."""
        lines = (
            json.dumps(
                {
                    "text": example.text,
                    "label": LABELS[example.label],
                    "source": example.source,
                    "rating": example.rating,
                }
            )
            for example in self.examples
        )
        return gzip.compress("".join(f"{line}\n" for line in lines).encode(), compresslevel=9, mtime=0)

    @classmethod
    def parse(cls, content: bytes, *, where: str) -> Self:
        """Raises CorpusUnavailable if it isn't such a file."""
        try:
            rows = [json.loads(line) for line in gzip.decompress(content).decode().splitlines()]
            examples = tuple(
                Example(
                    text=str(row["text"]),
                    label=LABELS.index(row["label"]),
                    source=str(row["source"]),
                    rating=row["rating"],
                )
                for row in rows
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError) as exc:
            raise CorpusUnavailable(f"{where} isn't a held-out set: {exc!r}") from exc
        if not examples:
            raise CorpusUnavailable(f"{where} is an empty held-out set")
        return cls(examples=examples)

    @classmethod
    def load_builtin(cls) -> Self:
        """The rated held-out tenth of the corpora, as it comes with the package."""
        path = Path(str(importlib.resources.files("registry"))) / "builtin" / "held-out" / FILE
        return cls.parse(path.read_bytes(), where=str(path))

    @classmethod
    def from_corpora(cls, cache: Path) -> Self:
        """The same, from the corpora themselves. Raises CorpusUnavailable."""
        held = [each for each in corpora.load(cache) if each.rated and each.part is Part.HELD_OUT]
        return cls(examples=tuple(held))


def main(arguments: list[str]) -> int:
    """Writes the file; an equal one that is there stays as it is."""
    if len(arguments) != 2:
        raise SystemExit("usage: python -m registry.data.held_out CACHE OUT")
    made, out = HeldOutSet.from_corpora(Path(arguments[0])), Path(arguments[1])
    if not out.exists() or HeldOutSet.parse(out.read_bytes(), where=str(out)).digest != made.digest:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(made.dump())
    sys.stdout.write(f"{out}: {len(made.examples)} texts, digest {made.digest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
