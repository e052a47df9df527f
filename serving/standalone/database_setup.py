"""Sets up a migrated database for the first request: partitions, a segment, the first admin key. Safe to run again.

Owns the admin key's file in the home, which `valence up` writes; a mounted secret may take its place.
"""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from db.accounts.keys import KeyRepository, NewKey
from db.embeddings.segments import Segments
from db.embeddings.spaces import SpaceRepository
from db.predictions.partitions import Partitions
from serving.accounts.authentication import digest_key, generate_key, is_weak, parse_key_id
from serving.core.caller import Role
from serving.core.connections import build_database
from serving.core.home import Home, write_secret
from serving.core.logs import configure_logging
from serving.settings import Settings


async def set_up_database(settings: Settings) -> None:
    """Add to the database what it lacks.

    Raises:
        DatabaseError: the database can't be reached or used.
        ValueError: the admin key's file holds no key, or one that can be guessed.
    """
    database = build_database(settings)
    await database.open()
    try:
        await Partitions(database).ensure(datetime.now(UTC))
        await Segments(database, await SpaceRepository(database).ensure_live(settings.space)).ensure()
        await _store_admin(KeyRepository(database), _admin_key(Home(settings.home).admin_key))
    finally:
        await database.close()


def _admin_key(path: Path) -> str:
    """Return the first admin key; its file is written before its row, because the row doesn't hold the key itself."""
    if not path.exists():
        write_secret(path, generate_key().text)
    return path.read_text().strip()


async def _store_admin(keys: KeyRepository, text: str) -> None:
    key_id = parse_key_id(text)
    if key_id is None:
        raise ValueError("admin.key holds no key: remove the file, and a new key is made")
    if is_weak(text):
        raise ValueError(
            "admin.key holds a key that can be guessed: its secret needs 32 random characters or more "
            "(`openssl rand -hex 32`)"
        )
    if await keys.find(key_id) is None:
        await keys.create(
            NewKey(id=key_id, digest=digest_key(text), role=Role.ADMIN, name="first admin"), actor=None
        )


def main() -> None:
    """Set up the database that the settings name."""
    settings = Settings()
    configure_logging(settings.log_level, process="furnish", file=settings.log_file)
    asyncio.run(set_up_database(settings))


if __name__ == "__main__":
    main()
