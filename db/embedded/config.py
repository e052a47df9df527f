"""The embedded server's configuration, each value with its reason."""

import shlex
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

_MIB = 1 << 20
# The default memory for building the index of a merged segment.
_BUILD = 1024 * _MIB
_SHARED = Path("/dev/shm")  # noqa: S108 - looked at, not written to


def build_configuration(
    *, memory: int, base: Path, sockets: Path, extra: Mapping[str, str] | None = None
) -> str:
    """Return the text of the configuration file for a machine with `memory` bytes."""
    buffers = min(max(memory // 8, 128 * _MIB), 8192 * _MIB)
    maintenance = min(max(memory // 64, 64 * _MIB), 256 * _MIB)
    settings = {
        # Clients connect only through the socket, whose folder only its user may enter.
        "listen_addresses": "",
        "unix_socket_directories": f'"{sockets}"',
        # Outside the data directory, so that the server's user can't change who may connect.
        "hba_file": str(base / "pg_hba.conf"),
        "ident_file": str(base / "pg_ident.conf"),
        "unix_socket_permissions": "0700",
        "password_encryption": "scram-sha-256",
        # Enough for the ingress, MLflow, jobs and a person; each idle one costs about 3 MiB.
        "max_connections": "80",
        # An eighth of memory, allocated on demand: a search visits thousands of pages of the vector index, and a
        # page from the page cache costs three times as much.
        "shared_buffers": _mib(buffers),
        "effective_cache_size": _mib(memory // 2),
        # Sorts and hashes of searches; small, because every node of every query may use it.
        "work_mem": "16MB",
        # The graph of a full segment (50,000 vectors) fits while its index is built.
        "maintenance_work_mem": _mib(maintenance),
        "autovacuum_work_mem": "64MB",
        # Parallel builds share memory in /dev/shm; containers limit it to 64 MiB, and plain files replace it then.
        "dynamic_shared_memory_type": "posix" if _shared_room() > 2 * _BUILD else "mmap",
        # Searches must leave the cores to encoding; index builds get one helper.
        "max_parallel_workers_per_gather": "0",
        "max_parallel_maintenance_workers": "1",
        "max_worker_processes": "4",
        # Nearly all reads hit memory, so I/O workers would only use memory.
        "io_method": "sync",
        # Statements are short: compiling them costs more than running them.
        "jit": "off",
        # An acknowledged prediction survives kill -9 and power loss.
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        # Few, spread checkpoints: random text ids dirty many pages, and each is logged whole after a checkpoint.
        "checkpoint_timeout": "15min",
        "checkpoint_completion_target": "0.9",
        "max_wal_size": "2GB",
        "min_wal_size": "128MB",
        "wal_buffers": "16MB",
        "wal_compression": "pglz",
        # Backups need the replica level; nothing replicates logically.
        "wal_level": "replica",
        # Data is in memory or on solid-state disks.
        "random_page_cost": "1.1",
        # The month's partition and the open segment only grow: freeze and analyse them early.
        "autovacuum_vacuum_insert_scale_factor": "0.1",
        "autovacuum_analyze_scale_factor": "0.05",
        "autovacuum_naptime": "30s",
        # Logs hold names and codes, never values: no DETAIL, no parameters.
        "log_error_verbosity": "terse",
        "log_parameter_max_length": "0",
        "log_parameter_max_length_on_error": "0",
        "log_min_error_statement": "panic",
        "log_checkpoints": "off",
        "log_line_prefix": "%m [%p] %e ",
        "log_timezone": "UTC",
        "timezone": "UTC",
        **(extra or {}),
    }
    return "".join(f"{name} = {_quoted(value)}\n" for name, value in settings.items())


def archive_settings(script: Path) -> dict[str, str]:
    """Return the settings that pass each full WAL segment, or a partial one after a minute, to a script."""
    return {
        "archive_mode": "on",
        "archive_command": f"/bin/sh {shlex.quote(str(script)).replace('%', '%%')} %p %f",
        "archive_timeout": "60s",
    }


def archive_script(folder: Path) -> str:
    """Return a script that archives a WAL segment, compressed: complete and on disk, or not at all.

    Archiving the same segment again succeeds; a different one under the same name fails.
    """
    return f"""#!/bin/sh
set -eu
kept={shlex.quote(str(folder))}/"$2".gz
if [ -f "$kept" ]; then
    gzip -dc "$kept" | cmp -s - "$1"
    exit
fi
gzip -1c "$1" > "$kept.part"
sync "$kept.part"
mv "$kept.part" "$kept"
sync {shlex.quote(str(folder))}
"""


def recovery_settings(folder: Path, until: datetime | None) -> dict[str, str]:
    """Return the settings that replay the WAL in `folder` up to a time or its end, then open the database."""
    kept = shlex.quote(str(folder)).replace("%", "%%")
    target = {} if until is None else {"recovery_target_time": until.isoformat()}
    return {
        "restore_command": f"test -f {kept}/%f.gz && gzip -dc {kept}/%f.gz > %p",
        "recovery_target_action": "promote",
        **target,
    }


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def _mib(size: int) -> str:
    return f"{size // _MIB}MB"


def _shared_room() -> int:
    try:
        return shutil.disk_usage(_SHARED).free
    except OSError:
        return 0
