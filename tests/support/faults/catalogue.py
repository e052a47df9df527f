"""All faults, in the order of their trials: those of one ground together, the worst last."""

from typing import Final

from tests.support.faults.clock import ALONE_SECONDS, clock_jump, clocks_jump
from tests.support.faults.cluster import existing, ray_restarted, raylet_killed, several_nodes
from tests.support.faults.erasures import BATCH, USERS, erasure_during_shadows
from tests.support.faults.fault import Fault, together
from tests.support.faults.foreign import port_taken
from tests.support.faults.grounds import (
    DISK_MIB,
    RETENTION_DAYS,
    faked_clock,
    faked_clocks_with_retention,
    own_registry,
    plain,
    small_disk,
)
from tests.support.faults.hostile import SLOW_CLIENTS, big_bodies, slow_clients
from tests.support.faults.processes import (
    CONTROL,
    CONTROLLER,
    ENCODER,
    HAPROXY,
    HAPROXY_MANAGER,
    INGRESS,
    POSTGRES,
    crowd,
    killed,
    mlflow_server,
    out_of_memory,
    postmaster,
    stalled,
)
from tests.support.faults.promotion import during_promotion
from tests.support.faults.storage import (
    CUTS,
    WRITES_A_SECOND,
    connections_cut,
    disk_full,
    disk_slow,
    log_full,
    registry_closed,
)

STALL_SECONDS = 8.0
NODE_SECONDS = 5.0
# Longer than a transaction may idle, and than a request may wait.
PROMOTION_SECONDS = 70.0
CROWD = 600
DAYS_AHEAD = 120

FAULTS: Final = (
    Fault(
        name="encoder-killed",
        how="the only encoder replica: `kill -9`",
        hurt=killed(ENCODER),
        ground=plain,
    ),
    Fault(
        name="encoder-out-of-memory",
        how="the only encoder replica gets no page more (memory cgroup), and the kernel ends it",
        hurt=out_of_memory,
        ground=plain,
    ),
    Fault(
        name="ingress-killed",
        how="the only ingress replica: `kill -9`",
        hurt=killed(INGRESS),
        ground=plain,
    ),
    Fault(
        name="foreign-process",
        how=(
            "the only ingress replica: `kill -9`; another program has the ports that come next, "
            "takes the replica's own, and answers everything"
        ),
        hurt=port_taken,
        ground=plain,
        seconds=STALL_SECONDS,
    ),
    Fault(name="haproxy-killed", how="HAProxy: `kill -9`", hurt=killed(HAPROXY), ground=plain),
    Fault(
        name="haproxy-manager-killed",
        how="the actor that keeps HAProxy: `kill -9`",
        hurt=killed(HAPROXY_MANAGER),
        ground=plain,
    ),
    Fault(
        name="controller-killed", how="Serve's controller: `kill -9`", hurt=killed(CONTROLLER), ground=plain
    ),
    Fault(
        name="control-killed",
        how="the control, the reconciler included: `kill -9`",
        hurt=killed(CONTROL),
        ground=plain,
    ),
    Fault(
        name="postgres-killed",
        how="PostgreSQL's postmaster: `kill -9`; the supervisor starts it again",
        hurt=killed(postmaster),
        ground=plain,
    ),
    Fault(
        name="postgres-stalled",
        how=f"every process of PostgreSQL stopped for {STALL_SECONDS:.0f} s",
        hurt=stalled(POSTGRES),
        ground=plain,
        seconds=STALL_SECONDS,
    ),
    Fault(
        name="connections-cut",
        how=f"`pg_terminate_backend` of every connection, {CUTS} times in 3 s",
        hurt=connections_cut,
        ground=plain,
    ),
    Fault(
        name="disk-slow",
        how=f"PostgreSQL's disk takes {WRITES_A_SECOND} writes a second (blkio cgroup)",
        hurt=disk_slow,
        ground=plain,
        seconds=STALL_SECONDS,
    ),
    Fault(
        name="registry-down",
        how="MLflow's database lets nobody in",
        hurt=registry_closed,
        ground=plain,
        seconds=STALL_SECONDS,
    ),
    Fault(
        name="registry-down-encoder-killed",
        how="the same, and the encoder replica: `kill -9`",
        hurt=together(registry_closed, killed(ENCODER)),
        ground=plain,
        seconds=12.0,
    ),
    Fault(
        name="queue-full",
        how=f"{CROWD} clients more",
        hurt=crowd(CROWD),
        ground=plain,
        seconds=STALL_SECONDS,
    ),
    Fault(
        name="slow-clients",
        how=f"{SLOW_CLIENTS} connections that say nothing, half a line, or a byte a second, with a key and without",
        hurt=slow_clients,
        ground=plain,
        seconds=STALL_SECONDS,
    ),
    Fault(
        name="big-bodies",
        how="bodies of 2 MiB of nothing but values, members or faults, one after another on eight connections",
        hurt=big_bodies,
        ground=plain,
        seconds=STALL_SECONDS,
    ),
    Fault(
        name="erasure-during-shadows",
        how=f"every text is shadowed, and {USERS} users at a time predict {BATCH} texts and are erased at once; a row "
        "that is left of them is a failure",
        hurt=erasure_during_shadows,
        ground=plain,
        seconds=STALL_SECONDS,
    ),
    Fault(
        name="disk-full",
        how=f"no room on the home's file system ({DISK_MIB} MiB)",
        hurt=disk_full,
        ground=small_disk,
        seconds=STALL_SECONDS,
    ),
    Fault(
        name="disk-full-log",
        how="the same, just when PostgreSQL needs the next file of its WAL",
        hurt=log_full,
        ground=small_disk,
        seconds=4.0,
    ),
    Fault(
        name="mlflow-stalled",
        how="every process of an MLflow server stopped",
        hurt=stalled(mlflow_server),
        ground=own_registry,
        seconds=STALL_SECONDS,
    ),
    Fault(
        name="mlflow-stalled-promotion",
        how=f"the same for {PROMOTION_SECONDS:.0f} s, and a version is promoted meanwhile: "
        "its answer, the history and what serves must agree",
        hurt=during_promotion(stalled(mlflow_server)),
        ground=own_registry,
        seconds=PROMOTION_SECONDS,
    ),
    Fault(
        name="mlflow-killed",
        how="every process of an MLflow server: `kill -9`; it stays away",
        hurt=killed(mlflow_server),
        ground=own_registry,
    ),
    Fault(
        name="raylet-killed",
        how=f"the raylet of one of two worker nodes: `kill -9`; the node starts anew after {NODE_SECONDS:.0f} s",
        hurt=raylet_killed,
        ground=several_nodes,
        seconds=NODE_SECONDS,
    ),
    Fault(
        name="existing-ray-restarted",
        how="the Ray cluster that `RAY_ADDRESS` names: ended by SIGTERM, and started again at once",
        hurt=ray_restarted,
        ground=existing,
    ),
    Fault(
        name="clock-back",
        how="the clock of every process but PostgreSQL's an hour back, and forth again (a preloaded library)",
        hurt=clock_jump(-3600),
        ground=faked_clock,
        seconds=5.0,
    ),
    Fault(
        name="clock-forth",
        how="the same clocks an hour ahead, and back again",
        hurt=clock_jump(3600),
        ground=faked_clock,
        seconds=5.0,
    ),
    Fault(
        name="clock-ahead-with-retention",
        how=f"the same clocks {DAYS_AHEAD} days ahead, and PostgreSQL's {ALONE_SECONDS:.0f} s later, with "
        f"`VALENCE_RETENTION_DAYS={RETENTION_DAYS}`; all back again",
        hurt=clocks_jump(DAYS_AHEAD * 86_400),
        ground=faked_clocks_with_retention,
        # Maintenance runs every 15 s.
        seconds=50.0,
    ),
)

SHORT: Final = (
    "encoder-killed",
    "connections-cut",
    "postgres-stalled",
    "queue-full",
    "slow-clients",
    "big-bodies",
)
"""The faults of the test suite: quick, and all on one ground."""
