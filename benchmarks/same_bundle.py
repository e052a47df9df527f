"""Compare two trained bundles; on another processor, say how far apart they are.

The same processor trains the same bytes. Another one rounds differently, and training amplifies this. There the bundles
must have the same data, plan and initial encoder, and be equally good. Run by `make train-proof`.
"""

import sys
from pathlib import Path

from registry.bundles.bundle import Bundle

NEAR = 0.015


def begun_from(bundle: Bundle) -> tuple[object, ...]:
    """Return the origin of a training: data, plan and initial encoder."""
    manifest = bundle.manifest
    base = manifest.settings.get("base", manifest.encoder)
    return base, manifest.provenance["data"], manifest.provenance["plan"]


def main() -> None:
    """Compare the two folders that are named; the exit status is 1 if they differ."""
    made, kept = (Bundle.open(Path(argument)) for argument in sys.argv[1:])
    if made.digest == kept.digest:
        print(f"the same, {made.digest}")
        return
    same = begun_from(made) == begun_from(kept)
    was, now = (bundle.manifest.metrics["rated.accuracy"] for bundle in (kept, made))
    print(
        f"other bytes; data, plan and encoder are {'the same' if same else 'others'}; accuracy {was} and {now}"
    )
    sys.exit(not same or abs(was - now) > NEAR)


if __name__ == "__main__":
    main()
