"""Single texts from many clients: the platform, which stores everything, beside its peers, which store nothing.

The tutorial design is the exception among them: it stores too. The servers run one after another, in rounds; a ratio
is taken within its round. All but the tutorial have the platform's own encoder, engine, head and batch limit, and call
the engine once a batch; one of them has the platform's micro-batches too, which are most of its speed.
Run by `python -m benchmarks.single_texts`.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.limit import Limit, encoder_folder, head_folder
from benchmarks.load import Load, Result, measured
from benchmarks.peers.model import MAX_BATCH
from benchmarks.report import middle, ratios, report
from benchmarks.servers import Platform, Server, home, peer
from tests.support.live import link_encoders

BENTO = Path(".cache/bentoml/bin/python")
CLIENTS = (1, 32, 64)
OURS = "Valence"
MICRO = "LitServe with our micro-batches"
GOALS = {
    "LitServe": "p50 at 1 client ≤ 1.0; requests/s ≥ 1.15 at 32 clients, ≥ 1.3 at 64",
    "tutorial": "requests/s ≥ 6 at 32 and 64 clients",
}


@contextmanager
def lasting(platform: Platform) -> Iterator[Server]:
    """Start the platform over the home of the round before."""
    platform.up()
    try:
        yield platform.server
    finally:
        platform.down()


def measure(names: list[str], rounds: int, seconds: float) -> dict[str, dict[int, list[Result]]]:
    """Results by server and clients, one each round; and the limit, as the server `in process`."""
    found: dict[str, dict[int, list[Result]]] = {}
    with home() as folder:
        link_encoders(folder)
        mine = Platform(folder)
        bundles = (str(encoder_folder()), str(head_folder()))
        limit = Limit()
        servers: dict[str, Callable[[], AbstractContextManager[Server]]] = {
            OURS: lambda: lasting(mine),
            "LitServe": lambda: peer("LitServe", "lit", *bundles),
            MICRO: lambda: peer(MICRO, "lit", *bundles, "micro"),
            "BentoML": lambda: peer("BentoML", "bento", *bundles, python=str(BENTO), shape="texts"),
            "plain Ray Serve": lambda: peer("plain Ray Serve", "plain_serve", *bundles),
            "tutorial": lambda: peer("tutorial", "tutorial"),
        }
        for number in range(rounds):
            for name in names:
                with servers[name]() as server:
                    for clients in CLIENTS:
                        result = measured(
                            server.url,
                            server.key,
                            Load(
                                path=server.path,
                                shape=server.shape,
                                clients=clients,
                                seconds=seconds,
                                warm_up=4,
                                seed=100 * number + clients,
                            ),
                        )
                        found.setdefault(name, {}).setdefault(clients, []).append(result)
                        print(f"round {number + 1}: {name}, {clients} clients: {result}", file=sys.stderr)
            alone = limit.per_second(seconds)
            found.setdefault("in process", {}).setdefault(MAX_BATCH, []).append(
                Result(
                    clients=1,
                    seconds=seconds,
                    requests=0,
                    per_second=alone,
                    mean=0,
                    p50=0,
                    p95=0,
                    p99=0,
                    statuses={},
                )
            )
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15)
    peers = ["LitServe", MICRO, "plain Ray Serve", "tutorial", *(["BentoML"] if BENTO.exists() else [])]
    parser.add_argument("--peers", default=",".join(peers))
    arguments = parser.parse_args()
    names = [OURS, *arguments.peers.split(",")]
    found = measure(names, arguments.rounds, arguments.seconds)

    def rates(name: str, clients: int) -> list[float]:
        return [result.per_second for result in found[name][clients]]

    def p50s(name: str) -> list[float]:
        return [result.p50 for result in found[name][1]]

    rows: list[tuple[Any, ...]] = [
        ("server", "1 client, p50 ms", "32 clients, requests/s", "64 clients, requests/s", "failures")
    ]
    for name in names:
        failures = {
            status: count
            for results in found[name].values()
            for result in results
            for status, count in result.statuses.items()
            if not status.startswith("2")
        }
        rows.append(
            (name, middle(p50s(name)), middle(rates(name, 32)), middle(rates(name, 64)), failures or "none")
        )
    rows.append(("the model in process, batches of 64", "", middle(rates("in process", MAX_BATCH)), "", ""))
    rows.extend(
        (
            f"Valence ÷ {name}",
            middle(ratios(p50s(OURS), p50s(name))),
            *(middle(ratios(rates(OURS, clients), rates(name, clients))) for clients in (32, 64)),
            f"goal: {GOALS[name]}" if name in GOALS else "",
        )
        for name in names[1:]
    )
    rows.append(
        (
            "Valence ÷ in process",
            "",
            *(middle(ratios(rates(OURS, clients), rates("in process", MAX_BATCH))) for clients in (32, 64)),
            "",
        )
    )
    kept = {name: {str(n): [asdict(r) for r in rs] for n, rs in by.items()} for name, by in found.items()}
    bars = {f"{name}, {clients} clients": rates(name, clients) for name in names for clients in (32, 64)}
    bars["the model in process"] = rates("in process", MAX_BATCH)
    report("single_texts", rows, {"results": kept}, bars, "requests per second")


if __name__ == "__main__":
    main()
