"""Child processes that use only idle CPU time: their start, their end and their priority. Knows no work of theirs."""

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
    """Run a module in a child process until it ends; return None, or the reason why it failed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        # A module of the same name in the working directory isn't ours.
        "-P",
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        # Its standard error is read for the reason, so it logs to this process's standard error.
        env={"VALENCE_LOG_FILE": f"/proc/{os.getpid()}/fd/2"}
        | dict(os.environ)
        | dict.fromkeys(_ONE_THREAD, "1")
        | {"TOKENIZERS_PARALLELISM": "false"},
    )
    try:
        message = await _tail(process.stderr)
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
    return message or f"its process ended with code {code}"


def yield_to_others() -> None:
    """Use only idle CPU time in this process, and end it with its parent."""
    end_with_parent(signal.SIGKILL)
    os.nice(_NICE)
    # A serving process preempts an idle one at once; one that is merely nice would finish its time slice.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


async def _tail(stream: asyncio.StreamReader | None) -> str:
    """Return the last line of a stream, read to its end so that the process never blocks on it."""
    tail = b""
    while stream is not None and (chunk := await stream.read(_STDERR_BYTES)):
        tail = (tail + chunk)[-_STDERR_BYTES:]
    lines = tail.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
