"""Ray clusters as the target of faults: one of several nodes, and one that was there before the platform.

The nodes are those of the production overlay, all on this machine. Loopback only.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from k8s.rendered import render
from tests.support.existing_ray import ExistingRay, existing_ray
from tests.support.faults.ledger import Ledger
from tests.support.faults.processes import ENCODER, found
from tests.support.live import LivePlatform, unstarted_platform
from tests.support.nodes import Nodes, new_cluster
from tests.support.postgres import running_server
from tests.support.tracking import tracking_server


@dataclass(kw_only=True)
class ClusterPlatform(LivePlatform):
    """The cluster, as far as clients and faults need it."""

    nodes: Nodes

    def processes(self) -> Sequence[psutil.Process]:
        """Return every process of its nodes, found by the folder in its environment."""
        mine = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("VALENCE_HOME", "").startswith(f"{self.nodes.folder}/"):
                    mine.append(process)
            except psutil.Error:
                continue
        return mine

    def down(self) -> None:
        """Do nothing: only its operator could start it again."""

    def up(self) -> None:
        """Wait until it answers."""
        self.wait_until_ready(300)


@contextmanager
def several_nodes() -> Iterator[LivePlatform]:
    """Run the production overlay's head and workers, with their own database and registry."""
    with running_server() as server, tracking_server() as registry:
        database = server.empty()
        with new_cluster(
            render("production"),
            database=database,
            mlflow=registry,
            installation_key=secrets.token_hex(32),
        ) as cluster:
            cluster.deploy()
            yield ClusterPlatform(
                home=cluster.folder / "jobs",
                port=cluster.port,
                settings={"DATABASE_URL": database, "MLFLOW_TRACKING_URI": registry},
                nodes=cluster,
            )


@contextmanager
def raylet_killed(platform: LivePlatform, _ledger: Ledger) -> Iterator[None]:
    """`kill -9` the raylet of a worker node with an encoder replica; then restart the node."""
    assert isinstance(platform, ClusterPlatform)
    name = Path(found(ENCODER, platform)[0].environ()["VALENCE_HOME"]).name
    home = str(platform.nodes.folder / name)
    for process in platform.find_processes("raylet/raylet"):
        if process.environ()["VALENCE_HOME"] == home:
            process.kill()
    yield
    platform.nodes.work(name)


@dataclass(kw_only=True)
class GuestPlatform(LivePlatform):
    """A platform on a Ray cluster of somebody else."""

    cluster: ExistingRay


@contextmanager
def existing() -> Iterator[LivePlatform]:
    """Run a platform on a Ray cluster that was there before it."""
    with (
        existing_ray() as cluster,
        unstarted_platform(RAY_ADDRESS=cluster.address, **cluster.authentication) as platform,
    ):
        platform.up()
        yield GuestPlatform(
            home=platform.home, port=platform.port, settings=platform.settings, cluster=cluster
        )


@contextmanager
def ray_restarted(platform: LivePlatform, _ledger: Ledger) -> Iterator[None]:
    """End the cluster as its operator would, and start it again."""
    assert isinstance(platform, GuestPlatform)
    platform.cluster.restart()
    yield
