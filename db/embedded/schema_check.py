"""Whether migrations and tables agree, tried on a server of its own: `python -m db.embedded.schema_check`."""

import sys
import tempfile
from pathlib import Path

from db.embedded.server import EmbeddedPostgres
from db.schema import versions


def check() -> int:
    """Name each difference on standard error; 1 if there is one, else 0."""
    with tempfile.TemporaryDirectory(prefix="valence-schema-") as folder:
        # Open to the server's user, so that nothing is left outside the folder.
        Path(folder).chmod(0o755)
        server = EmbeddedPostgres(Path(folder))
        server.initialise()
        server.start()
        try:
            url = server.create_database("schema_check")
            versions.upgrade(url)
            found = versions.find_differences(url)
        finally:
            server.stop()
    sys.stderr.writelines(f"migrations and tables differ: {difference}\n" for difference in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(check())
