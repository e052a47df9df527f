"""Check every rendered overlay: form, references, security. Run by `python -m k8s.check`."""

import sys

from k8s import references, schemas, security
from k8s.rendered import OVERLAYS, Resource, Unrenderable, render


def faults(overlay: str, resources: list[Resource]) -> list[str]:
    """Yield everything that is wrong with an overlay."""
    found = [
        *schemas.core_faults(resources),
        *schemas.operated_faults(resources, schemas.read_definitions()),
        *schemas.serve_faults(resources),
        *references.reference_faults(resources),
        *security.security_faults(resources),
        *security.environment_faults(resources),
    ]
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
        kinds = schemas.unchecked_kinds(resources, schemas.read_definitions())
        unchecked = (
            f"; not checked, for {schemas.CRD_VARIABLE} names no definition: {', '.join(kinds)}"
            if kinds
            else ""
        )
        print(f"{overlay}: {len(resources)} resources, {len(found)} faults{unchecked}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
