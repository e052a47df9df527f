"""The held-out set: the labelled texts that versions are evaluated on, as one portable file.

The file comes with the package, so no container has to fetch corpora. No training reads these texts.
`python -m registry.data.held_out CACHE OUT` rebuilds the file from the corpora.
"""

import gzip
import importlib.resources
import json
import sys
from dataclasses import asdict, dataclass
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
        """The labels, int64 [n], as indices into `LABELS`."""
        return np.array([example.label for example in self.examples], dtype=np.int64)

    @property
    def sources(self) -> NDArray[np.str_]:
        """The corpus of each text: str [n]."""
        return np.array([example.source for example in self.examples])

    def dump(self) -> bytes:
        """Return compressed JSON lines; the same bytes for the same set."""
        lines = (json.dumps(asdict(each) | {"label": LABELS[each.label]}) for each in self.examples)
        return gzip.compress("".join(f"{line}\n" for line in lines).encode(), compresslevel=9, mtime=0)

    @classmethod
    def parse(cls, content: bytes, *, where: str) -> Self:
        """Parse what `dump` returns. Raises CorpusUnavailable."""
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
        """Load the rated held-out tenth of the corpora that comes with the package."""
        path = Path(str(importlib.resources.files("registry"))) / "builtin" / "held-out" / FILE
        return cls.parse(path.read_bytes(), where=str(path))

    @classmethod
    def from_corpora(cls, cache: Path) -> Self:
        """Build the same set from the corpora. Raises CorpusUnavailable."""
        held = [each for each in corpora.load(cache) if each.rated and each.part is Part.HELD_OUT]
        return cls(examples=tuple(held))


def main(arguments: list[str]) -> int:
    """Write the file, unless an equal one is there."""
    if len(arguments) != 2:
        raise SystemExit("usage: python -m registry.data.held_out CACHE OUT")
    held_out, out = HeldOutSet.from_corpora(Path(arguments[0])), Path(arguments[1])
    if not out.exists() or HeldOutSet.parse(out.read_bytes(), where=str(out)).digest != held_out.digest:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(held_out.dump())
    sys.stdout.write(f"{out}: {len(held_out.examples)} texts, digest {held_out.digest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
