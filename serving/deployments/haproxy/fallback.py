"""A process that answers 503 while HAProxy is away.

Run by `python -m serving.deployments.haproxy.fallback HOST PORT KEEPER SECONDS [PID]`.

Each HAProxy has one, which sleeps until HAProxy (PID) has ended. If no process listens on the port then, it does, until
another HAProxy listens or Ray's raylet (KEEPER) has ended too, for SECONDS at most. The supervisor (KEEPER) has one
while Ray itself is started anew. Imports nothing heavy.
"""

import asyncio
import os
import select
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from db.core.environment import select_environment
from serving.deployments.haproxy.response import REFUSAL

_MODULE = "serving.deployments.haproxy.fallback"
_LISTEN = "0A"
_POLL_SECONDS = 0.05
_REQUEST_SECONDS = 2.0
# More than any route reads, by chunks: strangers may send them.
_MAX_BODY_BYTES = 20 << 20
_CHUNK_BYTES = 64 << 10
# If Ray outlives the platform, the port is free again after this time.
_MAX_SECONDS = 30.0
_ANSWER = REFUSAL.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1).encode()


def start_watching(host: str, port: int) -> None:
    """Start a fallback for this process, which is about to become HAProxy; it is no child of this process."""
    keeper = _parent(os.getppid())
    if os.fork():
        os.wait()
        return
    os.setsid()
    command = build_command(host, port, watched=os.getppid(), keeper=keeper, seconds=_MAX_SECONDS)
    if os.fork() == 0:
        os.execve(command[0], command, build_bare_environment())  # noqa: S606  (no shell is the point)
    os._exit(0)


def build_command(
    host: str, port: int, *, keeper: int, seconds: float, watched: int | None = None
) -> list[str]:
    """Return the command of a fallback that waits for the end of `watched`, if given, and ends with `keeper`."""
    arguments = [host, str(port), str(keeper), f"{seconds:g}", *([] if watched is None else [str(watched)])]
    return [sys.executable, "-P", "-m", _MODULE, *arguments]


def build_bare_environment() -> dict[str, str]:
    """Return the environment of HAProxy and of its fallback: what strangers reach holds no secret of the platform."""
    return select_environment("LD_LIBRARY_PATH", "PYTHONPATH", "VALENCE_HOME")


def count_listeners(port: int) -> int:
    """Count the sockets of this machine that listen on a TCP port."""
    count = 0
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with suppress(OSError):
            for line in table.read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                count += state == _LISTEN and int(local.rpartition(":")[2], 16) == port
    return count


def is_standing_in(port: int, keeper: int) -> bool:
    """Return whether it is a fallback started by this keeper that listens on the port, and will make room."""
    with suppress(OSError):
        for child in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split():
            with suppress(OSError):
                arguments = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").split("\0")
                if _MODULE in arguments and [str(port), str(keeper)] == arguments[-4:-2]:
                    return count_listeners(port) == 1
    return False


async def refuse_until_replaced(host: str, port: int, keeper: int, seconds: float) -> None:
    """Refuse every request until another process listens on the port, the keeper has ended, or the time is over."""
    ours = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        ours.setsockopt(socket.SOL_SOCKET, option, 1)
    ours.bind((host, port))
    answers: set[asyncio.Task[None]] = set()

    def arrived(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers.add(answer := asyncio.create_task(_refuse(reader, writer)))
        answer.add_done_callback(answers.discard)

    until = time.monotonic() + seconds
    async with await asyncio.start_server(arrived, sock=ours):
        # The kernel doesn't report a socket of another process, so it is polled for.
        while count_listeners(port) == 1 and _alive(keeper) and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
    await asyncio.gather(*answers)


async def _refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        async with asyncio.timeout(_REQUEST_SECONDS):
            await _read(reader)
    with suppress(OSError):
        writer.write(_ANSWER)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


async def _read(reader: asyncio.StreamReader) -> None:
    """Read a request with its body, because closing a connection with unread data drops the answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            left = min(int(value), _MAX_BODY_BYTES)
            while left > 0 and (chunk := await reader.read(min(left, _CHUNK_BYTES))):
                left -= len(chunk)


def _parent(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1])


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    """Sleep until HAProxy has ended, then refuse requests if no process listens."""
    host, port, keeper, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    for watched in sys.argv[5:]:
        with suppress(ProcessLookupError):
            ended = os.pidfd_open(int(watched))
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            poll.poll()
    if count_listeners(port) == 0 and _alive(keeper):
        asyncio.run(refuse_until_replaced(host, port, keeper, seconds))


if __name__ == "__main__":
    main()
