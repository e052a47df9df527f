"""A check that migrations and tables agree, on a temporary server: `python -m db.embedded.schema_check`."""

import sys
import tempfile
from pathlib import Path

from db.embedded.server import EmbeddedPostgres
from db.schema import revisions


def check() -> int:
    """Write each difference to standard error; return 1 if there is one, else 0."""
    with tempfile.TemporaryDirectory(prefix="valence-schema-") as folder:
        # The server's user can enter it, so nothing is left outside the folder.
        Path(folder).chmod(0o755)
        server = EmbeddedPostgres(Path(folder))
        server.initialise()
        server.start()
        try:
            url = server.create_database("schema_check")
            revisions.upgrade(url)
            differences = revisions.find_differences(url)
        finally:
            server.stop()
    sys.stderr.writelines(f"migrations and tables differ: {difference}\n" for difference in differences)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(check())
