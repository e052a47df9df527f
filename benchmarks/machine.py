"""The machine that figures were measured on, as one line, and the memory of a tree of processes."""

import os
import platform
from pathlib import Path

import psutil


def machine() -> str:
    """Processor, cores, memory, kernel and Python."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    flags = next((set(line.split()) for line in _cpuinfo() if line.startswith("flags")), set())
    vectors = next(
        (name for name in ("avx512_vnni", "avx_vnni", "avx512f", "avx2") if name in flags), "no AVX"
    )
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{names[0] if names else platform.machine()} ({vectors}), {len(os.sched_getaffinity(0))} cores, "
        f"{memory:.0f} GiB, Linux {platform.release()}, Python {platform.python_version()}"
    )


def tree_memory(pid: int) -> dict[str, float]:
    """Proportional set sizes in MiB of a process and all that it started, by program and in `total`."""
    root = psutil.Process(pid)
    sizes: dict[str, float] = {}
    for process in [root, *root.children(recursive=True)]:
        try:
            name = process.name()
            size = process.memory_full_info().pss / 2**20
        except psutil.NoSuchProcess:
            continue
        sizes[name] = sizes.get(name, 0) + size
    return sizes | {"total": sum(sizes.values())}


def _cpuinfo() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()
