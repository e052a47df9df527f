"""The remote call alone: the cost of a batch's answer between two Ray processes, by transport and form.

A deployment that computes nothing returns vectors of 64 texts. Run by `python -m benchmarks.transport`.
"""

import argparse
import asyncio
import time
from typing import Any

import numpy as np
import ray
from ray import serve

from benchmarks.report import middle, ratios, report
from serving.deployments.cluster import find_free_port
from serving.deployments.ray_patches import listen_on_loopback

TEXTS = 64
DIMENSIONS = 384
TEXT = "The battery lasts all day and the screen is a joy, but the speaker is a disappointment."
listen_on_loopback()


@serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0.5})
class Echo:
    """Answers with vectors that are there already."""

    def __init__(self) -> None:
        vectors = np.random.default_rng(0).normal(size=(TEXTS, DIMENSIONS)).astype(np.float32)
        self._forms: dict[str, Any] = {
            "float16 bytes": vectors.astype(np.float16).tobytes(),
            "float32 bytes": vectors.tobytes(),
            "float16 array": vectors.astype(np.float16),
            "lists of floats": vectors.tolist(),
        }

    async def infer(self, texts: list[str], form: str) -> Any:  # noqa: ARG002  (they travel)
        """Vectors in one form."""
        return self._forms[form]


@serve.deployment(ray_actor_options={"num_cpus": 0.5})
class Caller:
    """Calls as an ingress replica does, and takes the time."""

    def __init__(self, echo: Any) -> None:
        self._handles = {
            "gRPC by value": echo.options(_by_reference=False),
            "object store, by reference": echo,
        }

    async def measure(self, way: str, form: str, calls: int) -> float:
        """Milliseconds a call, two in flight, until the answer is a float32 matrix."""
        texts = [f"{TEXT} {number}" for number in range(TEXTS)]

        async def some() -> None:
            for _ in range(calls // 2):
                answer = await self._handles[way].infer.remote(texts, form)
                if isinstance(answer, bytes):
                    kind = np.float16 if form.startswith("float16") else np.float32
                    answer = np.frombuffer(answer, kind)
                np.asarray(answer, np.float32).reshape(TEXTS, DIMENSIONS)

        started = time.perf_counter()
        await asyncio.gather(some(), some())
        return (time.perf_counter() - started) * 1000 / calls


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=400)
    arguments = parser.parse_args()
    ways = [
        ("gRPC by value", "float16 bytes"),
        ("gRPC by value", "float32 bytes"),
        ("gRPC by value", "float16 array"),
        ("gRPC by value", "lists of floats"),
        ("object store, by reference", "float16 bytes"),
        ("object store, by reference", "lists of floats"),
    ]
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=2,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": find_free_port()})
    caller = serve.run(Caller.bind(Echo.bind()), route_prefix=None)
    found: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for way in ways:
        caller.measure.remote(*way, 20).result()
    for _ in range(arguments.rounds):
        for way, times in found.items():
            times.append(caller.measure.remote(*way, arguments.calls).result())
    serve.shutdown()
    ray.shutdown()
    ours = found[ways[0]]
    rows = [("way", f"vectors of {TEXTS} texts as", "ms a call", "÷ ours"),
            *((*way, middle(times), middle(ratios(times, ours))) for way, times in found.items())]  # fmt: skip
    bars = {", ".join(way): times for way, times in found.items()}
    report("transport", rows, {"milliseconds": bars}, bars, "milliseconds a call")


if __name__ == "__main__":
    main()
