"""Ports for what tests start, which another process can't take before it listens."""

import os
import random
import socket
from itertools import cycle

# Ray's workers listen below 20,000; from 32,768 on, the system gives ports to connections.
_FIRST, _EACH, _PARTS = 20_000, 2_000, 6
_PART = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PARTS
_OFFSET = random.SystemRandom().randrange(_EACH)
_ports = cycle(_FIRST + _PART * _EACH + (_OFFSET + number) % _EACH for number in range(_EACH))


def find_free_port() -> int:
    """Return a port that nobody listens on, from this worker's part, and another one each time."""
    for port in _ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("the ports never end")
