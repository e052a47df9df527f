"""Check every rendered overlay: form, references, security. Run by `python -m k8s.check`."""

import sys

from k8s import references, schemas, security
from k8s.rendered import OVERLAYS, Resource, Unrenderable, render


def faults(overlay: str, resources: list[Resource]) -> list[str]:
    """Yield everything that is wrong with an overlay."""
    found = [
        *schemas.core_faults(resources),
        *schemas.serve_faults(resources),
        *references.reference_faults(resources),
        *security.security_faults(resources),
        *security.environment_faults(resources),
    ]
    if (folder := schemas.crd_folder()) is not None:
        found += schemas.ray_faults(resources, folder)
    if overlay != "local":
        found += security.secret_faults(resources)
    return found


def main() -> int:
    """Check all overlays; return 1 if anything is wrong."""
    wrong = 0
    for overlay in OVERLAYS:
        try:
            resources = render(overlay)
        except Unrenderable as error:
            print(f"{overlay}: {error}")
            wrong += 1
            continue
        found = faults(overlay, resources)
        for fault in found:
            print(f"{overlay}: {fault}")
        wrong += len(found)
        kinds = sorted({resource["kind"] for resource in resources} & schemas.UNCHECKED)
        print(
            f"{overlay}: {len(resources)} resources, {len(found)} faults; no schema at hand for {', '.join(kinds)}"
        )
    if schemas.crd_folder() is None:
        print(f"skipped: RayService against its definition ({schemas.CRD_VARIABLE} names no folder)")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
