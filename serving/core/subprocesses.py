"""Work in processes of their own that take idle time alone: how they are started and ended, and how they yield.

Knows nothing of what they do.
"""

import asyncio
import ctypes
import os
import signal
import sys
from typing import Final

_NICE: Final = 19
_ONE_THREAD: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_STDERR_BYTES: Final = 4096
_PR_SET_PDEATHSIG: Final = 1


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent dies, however it dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


async def run_module(module: str, *arguments: str) -> str | None:
    """Runs a module in a process of its own until it ends; the end of its complaint if it failed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        # Its standard error is read for its reason, so its log goes where that of this process goes.
        env={"VALENCE_LOG_FILE": f"/proc/{os.getpid()}/fd/2"}
        | dict(os.environ)
        | dict.fromkeys(_ONE_THREAD, "1")
        | {"TOKENIZERS_PARALLELISM": "false"},
    )
    try:
        said = await _tail(process.stderr)
        code = await process.wait()
    except asyncio.CancelledError:
        process.kill()
        await _tail(process.stderr)
        await process.wait()
        raise
    if code == 0:
        return None
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return said or f"its process ended with code {code}"


def yield_to_others() -> None:
    """Has this process take what nobody else wants, and end with the one that started it."""
    end_with_parent(signal.SIGKILL)
    os.nice(_NICE)
    # Whoever serves takes the core at once, where a nice process would still have its slice.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


async def _tail(stream: asyncio.StreamReader | None) -> str:
    """The last line of what a process writes, read to its end so that it never waits."""
    kept = b""
    while stream is not None and (chunk := await stream.read(_STDERR_BYTES)):
        kept = (kept + chunk)[-_STDERR_BYTES:]
    lines = kept.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
