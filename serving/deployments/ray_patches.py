"""Changes to private parts of Ray, each where Ray has no setting; made for Ray 2.60.

A test fails on any other Ray: look at each patch again before `RAY_VERSION` moves on.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

RAY_VERSION: Final = "2.60"
# Off Linux Ray listens on 127.0.0.1 only, unless it is told otherwise; this switches that on anywhere.
LOOPBACK_ONLY: Final[Mapping[str, str]] = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def listen_on_loopback() -> None:
    """Bind this replica's gRPC port, which takes pickled calls, to 127.0.0.1 if Ray itself listens only there.

    Ray Serve binds the port to every address, after it has imported the module of the deployment.
    """
    if not LOOPBACK_ONLY.items() <= os.environ.items():
        return
    from ray.serve._private import replica

    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(
        server, address.replace("[::]", "127.0.0.1")
    )


@contextmanager
def start_core_only() -> Iterator[None]:
    """Start no dashboard, no autoscaler of nodes and no forwarder of logs with a Ray that starts meanwhile.

    They take seconds of a start and do nothing for one machine; `ray.init` has no setting for two of them.
    """
    from ray._private.node import Node

    starters = {
        name: getattr(Node, name) for name in ("start_api_server", "start_monitor", "start_log_monitor")
    }
    for name in starters:
        setattr(Node, name, lambda _node, **_options: None)
    try:
        yield
    finally:
        for name, start in starters.items():
            setattr(Node, name, start)
