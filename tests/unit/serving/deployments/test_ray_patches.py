"""The patches of Ray: made for one release of it, and undone or left out where they should be."""

import inspect

import pytest
import ray
from ray._private.node import Node
from ray.serve._private import replica

from serving.deployments.ray_patches import LOOPBACK_ONLY, RAY_VERSION, listen_on_loopback, start_core_only

STARTERS = ("start_api_server", "start_monitor", "start_log_monitor")


def test_the_installed_ray_is_the_one_that_the_patches_were_made_for() -> None:
    assert ray.__version__.startswith(f"{RAY_VERSION}."), "look at serving.deployments.ray_patches again"


def test_ray_still_calls_what_is_patched() -> None:
    source = inspect.getsource(Node)
    assert all(f"self.{name}(" in source for name in STARTERS)
    assert "add_port_to_grpc_server(" in inspect.getsource(replica)
    assert "[::]" in inspect.getsource(replica) or "get_all_interfaces_ip" in inspect.getsource(replica)


def test_the_parts_of_a_node_are_left_out_only_meanwhile() -> None:
    before = [getattr(Node, name) for name in STARTERS]
    with start_core_only():
        assert not set(before) & {getattr(Node, name) for name in STARTERS}
    assert [getattr(Node, name) for name in STARTERS] == before


@pytest.mark.parametrize(("is_local", "bound"), [(True, "127.0.0.1:9000"), (False, "[::]:9000")])
def test_a_replicas_port_is_on_loopback_if_ray_is(
    monkeypatch: pytest.MonkeyPatch, is_local: bool, bound: str
) -> None:
    addresses: list[str] = []
    monkeypatch.setattr(
        replica, "add_port_to_grpc_server", lambda _server, address: addresses.append(address)
    )
    for name, value in LOOPBACK_ONLY.items():
        monkeypatch.setenv(name, value) if is_local else monkeypatch.delenv(name, raising=False)
    listen_on_loopback()
    replica.add_port_to_grpc_server(None, "[::]:9000")
    assert addresses == [bound]
