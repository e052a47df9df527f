"""Faults of storage: connections cut, the disk full or slow, the registry's database closed."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
from psycopg import sql

from serving.core.connections import DATABASE, REGISTRY_SUFFIX
from tests.support.faults.cgroup import limited
from tests.support.faults.ledger import Ledger
from tests.support.faults.processes import POSTGRES, found
from tests.support.faults.proof import database
from tests.support.live import LivePlatform

CUTS = 10
WRITES_A_SECOND = 20

_BETWEEN_CUTS_SECONDS = 0.3
_CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = ANY(%s) AND pid <> pg_backend_pid()"
_REGISTRY = DATABASE + REGISTRY_SUFFIX
_MIB = 1 << 20
_LOG_FILES = 12


@contextmanager
def connections_cut(platform: LivePlatform, _ledger: Ledger) -> Iterator[None]:
    """Cut every connection of the platform and of MLflow, again and again."""
    with psycopg.connect(database(platform, "postgres"), autocommit=True) as connection:
        for _ in range(CUTS):
            connection.execute(_CUT, ([DATABASE, _REGISTRY],))
            time.sleep(_BETWEEN_CUTS_SECONDS)
    yield


@contextmanager
def registry_closed(platform: LivePlatform, _ledger: Ledger) -> Iterator[None]:
    """Let MLflow's database refuse all connections."""
    with psycopg.connect(database(platform, "postgres"), autocommit=True) as connection:
        alter = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        name = sql.Identifier(_REGISTRY)
        connection.execute(alter.format(name, sql.Literal(False)))
        connection.execute(_CUT, ([_REGISTRY],))
        try:
            yield
        finally:
            connection.execute(alter.format(name, sql.Literal(True)))


@contextmanager
def disk_full(platform: LivePlatform, _ledger: Ledger) -> Iterator[None]:
    """Fill the home's disk with a file; space that is freed meanwhile may be used again."""
    filler = platform.home.parent / "filler"
    try:
        fill(filler)
        yield
    finally:
        filler.unlink()


@contextmanager
def log_full(platform: LivePlatform, ledger: Ledger) -> Iterator[None]:
    """Fill the disk just when PostgreSQL needs the next file of its WAL."""
    with disk_full(platform, ledger):
        with (
            suppress(psycopg.OperationalError),
            psycopg.connect(database(platform), autocommit=True) as connection,
        ):
            for _ in range(_LOG_FILES):
                connection.execute("SELECT pg_logical_emit_message(true, 'valence', 'on'), pg_switch_wal()")
        yield


@contextmanager
def disk_slow(platform: LivePlatform, _ledger: Ledger) -> Iterator[None]:
    """Limit the write operations of PostgreSQL's processes a second, including flushes of the WAL."""
    device = platform.home.stat().st_dev
    limit = f"{os.major(device)}:{os.minor(device)} {WRITES_A_SECOND}"
    with limited("blkio", {"blkio.throttle.write_iops_device": limit}, found(POSTGRES, platform)):
        yield


def fill(filler: Path) -> None:
    """Grow a file until no page is left."""
    with filler.open("wb") as file:
        size, step = 0, 256 * _MIB
        while step >= 4096:
            try:
                os.posix_fallocate(file.fileno(), size, step)
                size += step
            except OSError:
                step //= 2
